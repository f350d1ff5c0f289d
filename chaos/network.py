"""Hosts of a run's own: network namespaces on one bridge, with addresses nobody else has.

    bridge namespace:   br0 ── v1, v2, …          never connected to the machine's own network
    host namespaces:    eth0 10.77.0.1, …         lo, and the host's own nftables

Only the network is apart. Processes of a host are started by nsenter with its
network namespace alone: `ip netns exec` would give them a private mount table, and
the mounts that they make could be seen by nobody.
"""

from __future__ import annotations

import ctypes
import itertools
import json
import os
import socket
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from chaos.place import NAMESPACES, PREFIX, run

CLONE_NEWNET = 0x40000000
SUBNET = "10.77.0"
_libc = ctypes.CDLL(None, use_errno=True)
_tables = itertools.count(1)


@dataclass(frozen=True, slots=True)
class Host:
    """One machine of the run."""

    name: str
    namespace: str
    bridge: str
    """The namespace of the bridge."""
    ip: str
    link: str
    """The end of its cable that is in the bridge."""

    def command(self, *words: str) -> list[str]:
        """Return how to run a program on this host."""
        return ["nsenter", f"--net={NAMESPACES / self.namespace}", *words]

    def connect(self, address: str, port: int, *, timeout_s: float = 2.0) -> socket.socket:
        """Return a connection made from this host."""
        with self._inside():
            return socket.create_connection((address, port), timeout_s)

    @contextmanager
    def _inside(self) -> Iterator[None]:
        """Have this thread make its sockets on this host."""
        with (
            Path("/proc/thread-self/ns/net").open("rb") as here,
            (NAMESPACES / self.namespace).open("rb") as there,
        ):
            _set_namespace(there.fileno())
            try:
                yield
            finally:
                _set_namespace(here.fileno())

    def limit_rate(self, bytes_s: float, *, queue_s: float = 0.2) -> None:
        """Give its cable a rate, in both directions, and a queue of *queue_s* at each end."""
        latency = f"{int(queue_s * 1000)}ms"
        rate = ("tbf", "rate", f"{int(bytes_s * 8)}bit", "burst", "256kb", "latency", latency)
        run("tc", "-n", self.namespace, "qdisc", "replace", "dev", "eth0", "root", *rate)
        run("tc", "-n", self.bridge, "qdisc", "replace", "dev", self.link, "root", *rate)

    def send_large_packets(self, segments: int) -> None:
        """Have its TCP connections send so many segments at once, however slow the link is.

        TCP sends what goes out in a millisecond, two segments over a slow link, and each such
        packet costs as much as one of 64 KiB. With cubic, as bbr has a minimum of its own.
        """
        where = (f"{SUBNET}.0/24", "dev", "eth0", "src", self.ip)
        run("ip", "-n", self.namespace, "route", "replace", *where, "congctl", "cubic")
        least = f"echo {segments} > /proc/sys/net/ipv4/tcp_min_tso_segs"
        run(*self.command("sh", "-c", least))

    def unlimit_rate(self) -> None:
        for namespace, device in ((self.namespace, "eth0"), (self.bridge, self.link)):
            with suppress(RuntimeError):  # there is none
                run("tc", "-n", namespace, "qdisc", "del", "dev", device, "root")

    def delayed_packets(self) -> int:
        """Return how often its cable's rate made a packet wait."""
        return sum(
            sum(int(each.get("overlimits", 0)) for each in json.loads(shown))
            for shown in (
                run("tc", "-n", self.namespace, "-s", "-j", "qdisc", "show", "dev", "eth0"),
                run("tc", "-n", self.bridge, "-s", "-j", "qdisc", "show", "dev", self.link),
            )
        )


def _set_namespace(fd: int) -> None:
    if _libc.setns(fd, CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")


class Rules:
    """An nftables table of one host: drops packets, and counts them."""

    def __init__(
        self, host: Host, *, incoming: Iterable[str], outgoing: Iterable[str] = ()
    ) -> None:
        """Apply rules such as `ip saddr 10.77.0.2`; what matches is dropped."""
        self._host = host
        self._name = f"chaos{next(_tables)}"
        chains = [
            f" chain {hook} {{\n  type filter hook {hook} priority 0\n"
            + "".join(f"  {rule} counter drop\n" for rule in rules)
            + " }"
            for hook, rules in (("input", incoming), ("output", outgoing))
        ]
        self._nft("-f", "-", text=f"table ip {self._name} {{\n" + "\n".join(chains) + "\n}\n")

    def dropped_packets(self) -> int:
        shown = json.loads(self._nft("-j", "list", "table", "ip", self._name))
        expressions = (
            expression
            for item in shown["nftables"]
            if "rule" in item
            for expression in item["rule"]["expr"]
        )
        return sum(e["counter"]["packets"] for e in expressions if "counter" in e)

    def remove(self) -> None:
        self._nft("delete", "table", "ip", self._name)

    def _nft(self, *words: str, text: str | None = None) -> str:
        return run(*self._host.command("nft", *words), text=text)


class Network:
    """A bridge and the hosts that are plugged into it."""

    def __init__(self) -> None:
        self._prefix = f"{PREFIX}{os.getpid()}"
        self._bridge = f"{self._prefix}-br"
        self._made: list[str] = []
        self._numbers = itertools.count(1)

    def __enter__(self) -> Self:
        self._add_namespace(self._bridge)
        run("ip", "-n", self._bridge, "link", "add", "br0", "type", "bridge")
        run("ip", "-n", self._bridge, "link", "set", "br0", "up")
        # No rule is kept in the bridge, so no packet need be shown to the rules there.
        hooks = "/proc/sys/net/bridge/bridge-nf-call-*"
        off = f"for hook in {hooks}; do test ! -e $hook || echo 0 > $hook; done"
        run("nsenter", f"--net={NAMESPACES / self._bridge}", "sh", "-c", off)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for namespace in reversed(self._made):
            with suppress(RuntimeError):
                run("ip", "netns", "del", namespace)

    def add(self, name: str) -> Host:
        """Return a new host, up and reachable by all others."""
        number = next(self._numbers)
        namespace, link = f"{self._prefix}-{name}", f"v{number}"
        host = Host(name, namespace, self._bridge, f"{SUBNET}.{number}", link)
        self._add_namespace(namespace)
        peer = ("peer", "name", "eth0", "netns", namespace)
        run("ip", "-n", self._bridge, "link", "add", link, "type", "veth", *peer)
        run("ip", "-n", self._bridge, "link", "set", link, "master", "br0", "up")
        run("ip", "-n", namespace, "addr", "add", f"{host.ip}/24", "dev", "eth0")
        run("ip", "-n", namespace, "link", "set", "eth0", "up")
        run("ip", "-n", namespace, "link", "set", "lo", "up")
        return host

    def _add_namespace(self, name: str) -> None:
        run("ip", "netns", "add", name)
        self._made.append(name)


def addresses(hosts: Sequence[Host]) -> str:
    """Return the addresses of hosts as a set of nftables."""
    return "{ " + ", ".join(host.ip for host in hosts) + " }"
