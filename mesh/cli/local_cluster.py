"""A mesh of real daemons on this machine, from start to certain death.

    directory/
      mesh-<peer>.toml   <peer>.log   <peer>/      each peer's config, log and store
      view-<number>/     view-<number>.log         each mount

Starting a process and noting it happen between two awaits, and the end awaits
nothing. So a cancel, which can come only at an await, finds everything noted.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from mesh.cli.ask import host_peer
from mesh.cli.info import mesh_mountpoints
from mesh.cli.quantities import MIB, toml_tables
from mesh.errors import MeshError
from mesh.testing.servers import free_ports
from mesh.wire.codec import DESCRIBE, OVERVIEW
from mesh.wire.messages import Nothing

HOST = "127.0.0.1"
READY_WITHIN_S = 60.0
POLL_S = 0.05
STOP_PATIENCE_S = 5.0
TAIL_LINES = 8
OWN_WORDS = "mesh: "
"""How the one line begins with which a command of ours says why it ends."""


class DaemonFailed(Exception):
    """A child did not become ready; says why, and has the last lines of its log."""

    def __init__(self, reason: str, log: Path) -> None:
        lines = tail(log)
        if lines and lines[-1].startswith(OWN_WORDS):
            super().__init__(lines[-1].removeprefix(OWN_WORDS))
            self.last_lines: list[str] = []
        else:
            super().__init__(reason)
            self.last_lines = lines


@dataclass(frozen=True, slots=True)
class LocalPeer:
    """One peer of the cluster."""

    name: str
    address: str
    config: Path
    socket: Path
    log: Path


class LocalCluster:
    """Peers and mounts that are our children; made by `local_cluster`."""

    def __init__(self, directory: Path, peers: Sequence[LocalPeer]) -> None:
        self.peers = {peer.name: peer for peer in peers}
        self._directory = directory
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._mounts: dict[Path, subprocess.Popen[bytes]] = {}

    async def start_peers(self) -> None:
        """Start all peers; return when each has answered and found the others."""
        for peer in self.peers.values():
            self._running[peer.name] = _spawn(peer.log, "peer", "-c", str(peer.config))
        for peer in self.peers.values():
            await _until(
                lambda peer=peer: _answers(peer),  # type: ignore[misc]
                what=f"peer {peer.name}",
                child=self._running[peer.name],
                log=peer.log,
            )
        first = next(iter(self.peers.values()))
        await _until(
            lambda: _sees_all_up(first),
            what=f"the mesh, seen from {first.name},",
            child=self._running[first.name],
            log=first.log,
        )

    def kill(self, name: str) -> None:
        """SIGKILL one peer."""
        child = self._running.pop(name)
        child.kill()
        child.wait()

    def survivors(self) -> list[str]:
        """Return the peers that were not killed."""
        return list(self._running)

    async def mount(self, name: str) -> Path:
        """Mount the mesh through one of the peers; return where, once it is there."""
        mountpoint = self._directory / f"view-{len(self._mounts) + 1}"
        log = self.log_of(mountpoint)
        config = str(self.peers[name].config)
        child = _spawn(log, "mount", "-c", config, str(mountpoint))
        self._mounts[mountpoint] = child

        async def is_mounted() -> bool:
            return mountpoint in mesh_mountpoints()

        await _until(is_mounted, what="the mount", child=child, log=log)
        return mountpoint

    def log_of(self, mountpoint: Path) -> Path:
        return mountpoint.with_suffix(".log")

    def end(self) -> None:
        """Unmount, stop all children, and kill those that don't stop."""
        _stop(list(self._mounts.values()))
        for mountpoint in self._mounts:
            if mountpoint in mesh_mountpoints():
                _umount_lazily(mountpoint)
        _stop(list(self._running.values()))


@contextmanager
def local_cluster(
    directory: Path, under_store: Path, names: Sequence[str], *, capacity_bytes: int
) -> Iterator[LocalCluster]:
    """Write the configs of a mesh that shows *under_store*; nothing runs after the block."""
    ports = free_ports(len(names))
    peers = [
        LocalPeer(
            name,
            f"{HOST}:{port}",
            directory / f"mesh-{name}.toml",
            socket_of(directory, name),
            directory / f"{name}.log",
        )
        for name, port in zip(names, ports, strict=True)
    ]
    everybody = [{"name": peer.name, "address": peer.address} for peer in peers]
    for peer in peers:
        config = {
            "cluster": {"name": "demo", "peers": everybody},
            "peer": {"name": peer.name},
            "store": {
                "directory": str(directory / peer.name),
                "capacity": max(64 * MIB, capacity_bytes),
                "free_space_ratio": 0.0,
            },
            "mounts": {"/": {"url": f"file://{under_store}"}},
        }
        text = "\n\n".join("\n".join(lines) for lines in toml_tables(config))
        peer.config.write_text(text + "\n", encoding="utf-8")
    cluster = LocalCluster(directory, peers)
    try:
        yield cluster
    finally:
        cluster.end()


def socket_of(directory: Path, name: str) -> Path:
    """Return where the peer *name* of a cluster in *directory* has its socket."""
    return directory / name / "peer.sock"


def tail(log: Path) -> list[str]:
    """Return the last lines of a log, none when there is no log."""
    try:
        return log.read_text(errors="replace").splitlines()[-TAIL_LINES:]
    except OSError:
        return []


def _spawn(log: Path, *arguments: str) -> subprocess.Popen[bytes]:
    # In a session of its own, so that Ctrl-C reaches us alone and we end it in order.
    # Without our environment's MESH_…, which would win over the config.
    environment = {k: v for k, v in os.environ.items() if not k.upper().startswith("MESH_")}
    with log.open("ab") as out:
        return subprocess.Popen(
            [sys.executable, "-m", "mesh.cli.main", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            env=environment,
            start_new_session=True,
        )


async def _until(
    is_ready: Callable[[], Awaitable[bool]],
    *,
    what: str,
    child: subprocess.Popen[bytes],
    log: Path,
) -> None:
    """Wait; `DaemonFailed` when the child has ended or it takes too long."""
    give_up_s = time.monotonic() + READY_WITHIN_S
    while not await is_ready():
        if child.poll() is not None:
            raise DaemonFailed(f"{what} ended with code {child.returncode}", log)
        if time.monotonic() > give_up_s:
            raise DaemonFailed(f"{what} was not ready in {READY_WITHIN_S:g} s", log)
        await asyncio.sleep(POLL_S)


async def _answers(peer: LocalPeer) -> bool:
    if peer.socket.exists():
        with suppress(MeshError):
            async with host_peer(peer.socket) as host:
                await host.ask(DESCRIBE, Nothing())
                return True
    return False


async def _sees_all_up(peer: LocalPeer) -> bool:
    with suppress(MeshError):
        async with host_peer(peer.socket) as host:
            overview = await host.ask(OVERVIEW, Nothing())
            return all(description.is_up for description in overview.peers)
    return False


def _stop(children: Sequence[subprocess.Popen[bytes]]) -> None:
    for child in children:
        child.terminate()
    give_up_s = time.monotonic() + STOP_PATIENCE_S
    for child in children:
        try:
            child.wait(max(0.0, give_up_s - time.monotonic()))
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def _umount_lazily(mountpoint: Path) -> None:
    command = ["umount", "-l"] if os.geteuid() == 0 else ["fusermount3", "-u", "-z"]
    if shutil.which(command[0]) is not None:
        subprocess.run([*command, str(mountpoint)], capture_output=True, timeout=30, check=False)
