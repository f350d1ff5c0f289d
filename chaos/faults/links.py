"""Faults between hosts: cut, one-way, lossy, slow, late. The under-store is always reached."""

from __future__ import annotations

from collections.abc import Sequence

from chaos.cluster import Node
from chaos.faults.base import Fault
from chaos.network import Rules, addresses


class _Dropping(Fault):
    """Rules on some hosts; the packets that they count are the evidence."""

    _rules: list[Rules]

    def heal(self) -> None:
        for rules in self._rules:
            rules.remove()
        self._rules = []

    def evidence(self) -> str | None:
        packets = sum(rules.dropped_packets() for rules in self._rules)
        return f"{packets:,} packets dropped" if packets else None


class Cut(_Dropping):
    """Nothing passes between a host and others, in either direction."""

    def __init__(self, node: Node, others: Sequence[Node]) -> None:
        self.label = f"cut {node.name} off"
        self._node, self._others = node, others

    def inject(self) -> None:
        them = addresses([other.host for other in self._others])
        incoming, outgoing = [f"ip saddr {them}"], [f"ip daddr {them}"]
        self._rules = [Rules(self._node.host, incoming=incoming, outgoing=outgoing)]


class OneWay(_Dropping):
    """What others send to a host is lost; what it sends arrives."""

    def __init__(self, node: Node, others: Sequence[Node]) -> None:
        self.label = f"{node.name} hears nobody"
        self._node, self._others = node, others

    def inject(self) -> None:
        them = addresses([other.host for other in self._others])
        self._rules = [Rules(self._node.host, incoming=[f"ip saddr {them}"])]


class Loss(_Dropping):
    """A share of the packets between a host and others is lost."""

    def __init__(self, node: Node, others: Sequence[Node], *, percent: int = 5) -> None:
        self.label = f"{node.name} loses {percent} %"
        self._node, self._others, self._percent = node, others, percent

    def inject(self) -> None:
        them = addresses([other.host for other in self._others])
        some = f"numgen random mod 100 < {self._percent}"
        incoming, outgoing = [f"ip saddr {them} {some}"], [f"ip daddr {them} {some}"]
        self._rules = [Rules(self._node.host, incoming=incoming, outgoing=outgoing)]


class Split(_Dropping):
    """Two halves that cannot reach each other."""

    label = "split in halves"

    def __init__(self, some: Sequence[Node], others: Sequence[Node]) -> None:
        self._some, self._others = some, others

    def inject(self) -> None:
        them = addresses([other.host for other in self._others])
        incoming, outgoing = [f"ip saddr {them}"], [f"ip daddr {them}"]
        self._rules = [
            Rules(node.host, incoming=incoming, outgoing=outgoing) for node in self._some
        ]


class SlowLink(Fault):
    """The cable of a host has a low rate."""

    def __init__(self, node: Node, *, bytes_s: float) -> None:
        self.label = f"{node.name} at {bytes_s / 1e6:g} MB/s"
        self._node, self._bytes_s = node, bytes_s

    def inject(self) -> None:
        self._node.host.limit_rate(self._bytes_s)

    def heal(self) -> None:
        self._node.host.unlimit_rate()

    def evidence(self) -> str | None:
        packets = self._node.host.delayed_packets()
        return f"{packets:,} packets had to wait for the rate" if packets else None


class Late(Fault):
    """Whatever goes to a peer, and back, takes longer; needs the relay before it."""

    def __init__(self, node: Node, *, base_s: float, jitter_s: float) -> None:
        self.label = f"{node.name} {base_s * 1000:g} ms late"
        assert node.relay is not None, "the scenario must say relayed=True"
        self._relay = node.relay
        self._base_s, self._jitter_s = base_s, jitter_s
        self._before_bytes = 0

    def inject(self) -> None:
        counts = self._relay.give(base_s=self._base_s, jitter_s=self._jitter_s)
        self._before_bytes = counts["delayed_bytes"]

    def heal(self) -> None:
        self._relay.give(base_s=0.0, jitter_s=0.0)

    def evidence(self) -> str | None:
        delayed_bytes = self._relay.counts()["delayed_bytes"] - self._before_bytes
        return f"{delayed_bytes:,} bytes were held back" if delayed_bytes else None
