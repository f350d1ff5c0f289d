"""A mesh on hosts of its own: peers, mounts beside them, and an under-store.

Everything here is started by `start` and gone after `__exit__`: readers are the
run's own and end before.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from prometheus_client.parser import text_string_to_metric_families

from chaos.config import METRICS_PORT, PEER_PORT, MeshSettings, PeerPlace, mesh_toml
from chaos.daemons import Daemon, end, mesh_command
from chaos.disks import Disk, MemoryDisk
from chaos.network import Host, Network
from chaos.orders import Orders
from chaos.place import is_mounted, run, take_away, until
from chaos.under_store import UnderStore

RELAY_PORT = 7201
ZONES = 2


@dataclass
class Node:
    """One host of the mesh: its peer, its mount, and what stands between."""

    index: int
    place: PeerPlace
    host: Host
    peer: Daemon
    mount: Daemon
    view: Path
    config: Path
    disk: Disk | None = None
    relay: Orders | None = None
    extras: list[Daemon] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.place.name

    @property
    def socket(self) -> Path:
        return self.place.directory / "s"

    @property
    def store(self) -> Path:
        return self.place.store

    @property
    def serves(self) -> bool:
        """Whether the peer said so since its last start."""
        return "peer serves" in self.peer.said()

    def start_peer(self) -> float:
        """Start the peer and wait until it serves; return how long it took."""
        self.peer.start()
        return self.peer.wait_until(lambda: self.serves)

    def start_mount(self) -> None:
        self.mount.start()
        self.mount.wait_until(lambda: is_mounted(self.view))

    def metrics_page(self) -> tuple[dict[str, str], str]:
        """Return the headers and the text of the peer's metrics."""
        with self.host.connect("127.0.0.1", METRICS_PORT, timeout_s=5.0) as connection:
            connection.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
            with connection.makefile("rb") as answer:
                head, _, body = answer.read().partition(b"\r\n\r\n")
        pairs = (line.partition(":") for line in head.decode("latin-1").split("\r\n")[1:])
        return {name.lower(): value.strip() for name, _, value in pairs}, body.decode()

    def metric(self, name: str, **labels: str) -> float:
        """Return the sum of the samples of that name; 0 when the peer does not answer."""
        try:
            _, page = self.metrics_page()
        except OSError:
            return 0.0
        return sum(
            sample.value
            for family in text_string_to_metric_families(page)
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )


class Cluster:
    """The nodes, the under-store, and the network between them."""

    def __init__(
        self,
        place: Path,
        *,
        peers: int,
        settings: MeshSettings,
        disk_bytes: int | None = None,
        in_memory: bool = False,
        relayed: bool = False,
        directory: Path | None = None,
    ) -> None:
        """Describe a mesh; *disk_bytes* puts each store on a disk of its own, which may be *in
        memory*. Its under-store is an S3 server, or a *directory*."""
        self.place = place
        self.settings = settings
        self._disk_bytes, self._in_memory, self._relayed = disk_bytes, in_memory, relayed
        self._directory = directory
        self._count = peers
        self._stack = ExitStack()
        self.network = Network()
        self.nodes: list[Node] = []
        self.under_store: UnderStore

    def __enter__(self) -> Self:
        with ExitStack() as starting:
            starting.enter_context(self.network)
            if self._directory is None:
                host = self.network.add("s3")
                self.under_store = UnderStore(host, self.place / "s3", seed=self.settings.seed)
                starting.enter_context(self.under_store)
            starting.callback(self._end_nodes)
            hosts = [self.network.add(f"p{number + 1}") for number in range(self._count)]
            places = [self._place_of(index, host) for index, host in enumerate(hosts)]
            for index, host in enumerate(hosts):
                self.nodes.append(self._node(index, host, places))
            self._stack = starting.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def _place_of(self, index: int, host: Host) -> PeerPlace:
        directory = self.place / f"n{index + 1}"
        store = directory / "disk" / "store" if self._disk_bytes else directory / "store"
        return PeerPlace(f"peer-{index + 1}", host.ip, f"rack-{index % ZONES}", directory, store)

    def _node(self, index: int, host: Host, places: Sequence[PeerPlace]) -> Node:
        me = places[index]
        me.directory.mkdir()
        disk = self._disk_of(index, me)
        config = self.place / f"{me.name}.toml"
        shown = self._directory or self.under_store.place
        config.write_text(mesh_toml(me, places, shown, self.settings))
        view = self.place / f"view-{index + 1}"
        view.mkdir()
        peer = mesh_command("peer", "-c", str(config))
        mount = mesh_command("mount", "-c", str(config), str(view))
        node = Node(
            index,
            me,
            host,
            Daemon(me.name, host, peer, log=self.place / f"{me.name}.log"),
            Daemon(f"mount-{index + 1}", host, mount, log=self.place / f"mount-{index + 1}.log"),
            view,
            config,
            disk,
        )
        if self._relayed:
            self._put_relay_before(node)
        return node

    def _disk_of(self, index: int, me: PeerPlace) -> Disk | None:
        if not self._disk_bytes:
            return None
        point = me.directory / "disk"
        if self._in_memory:
            return MemoryDisk(point, size_bytes=self._disk_bytes)
        return Disk(self.place / f"disk-{index + 1}.img", point, size_bytes=self._disk_bytes)

    def _put_relay_before(self, node: Node) -> None:
        control = node.place.directory / "r"
        words = [
            *("--port", str(RELAY_PORT), "--target", f"{node.host.ip}:{PEER_PORT}"),
            *("--control", str(control), "--seed", str(self.settings.seed + node.index)),
        ]
        relay = Daemon(
            f"relay-{node.index + 1}",
            node.host,
            [sys.executable, "-m", "chaos.relay", *words],
            log=self.place / f"relay-{node.index + 1}.log",
        )
        node.extras.append(relay)
        node.relay = Orders(control)
        relay.start()
        relay.wait_until(node.relay.is_listening)
        rule = f"tcp dport {PEER_PORT} redirect to :{RELAY_PORT}"
        chain = f"chain in {{\n type nat hook prerouting priority -100\n {rule}\n }}"
        run(*node.host.command("nft", "-f", "-"), text=f"table ip relay {{\n {chain}\n}}\n")

    def launch(self, nodes: Sequence[Node]) -> None:
        """Begin to start peers and the mounts beside them; each takes seconds of CPU."""
        for node in nodes:
            node.peer.start()
            node.mount.start()

    def wait(self, nodes: Sequence[Node]) -> None:
        """Wait until all that was launched serves."""
        for node in nodes:
            node.peer.wait_until(lambda node=node: node.serves)  # type: ignore[misc]
            node.mount.wait_until(lambda node=node: is_mounted(node.view))  # type: ignore[misc]

    def release_readers(self) -> None:
        """Take all mounts away, so that nobody can wait in them any more."""
        mounts = [node.mount for node in self.nodes]
        for mount in mounts:
            mount.signal(signal.SIGCONT)
            mount.signal(signal.SIGTERM)
        with suppress(TimeoutError):
            until(lambda: not any(m.is_running for m in mounts), "mounts end", within_s=5.0)
        for node in self.nodes:  # one that is killed first may wait in the kernel for ever
            take_away(node.view)
        end(mounts, patience_s=5.0)

    def _end_nodes(self) -> None:
        self.release_readers()
        end([daemon for node in self.nodes for daemon in (node.peer, *node.extras)])
        for node in self.nodes:
            if node.disk:
                node.disk.take_away()

    def others(self, node: Node) -> list[Node]:
        return [each for each in self.nodes if each is not node]

    def running(self) -> list[Node]:
        return [node for node in self.nodes if node.peer.is_running]

    def wait_for_egress_to_end(self, *, within_s: float = 30.0, quiet_s: float = 0.5) -> None:
        """Wait until nothing leaves the under-store for a while."""
        last = -1
        with suppress(TimeoutError):

            def is_quiet() -> bool:
                nonlocal last
                before, last = last, self.under_store.egress_bytes
                return before == last

            until(is_quiet, "the under-store is quiet", within_s=within_s, every_s=quiet_s)
