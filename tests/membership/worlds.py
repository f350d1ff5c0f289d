"""Peers that find each other in four ways, for the tests of membership."""

from __future__ import annotations

import asyncio
import contextlib
from abc import ABC, abstractmethod
from base64 import b64encode
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from itertools import count
from random import Random
from typing import Any

from mesh.membership.detector import Patience
from mesh.membership.etcd import Etcd, EtcdSettings
from mesh.membership.etcd_api import EtcdAccess
from mesh.membership.gossip import Gossip, GossipSettings, Timings
from mesh.membership.membership import PROTOCOL
from mesh.membership.static import StaticList
from mesh.membership.view import Member, State, View
from mesh.testing.membership import SimMembership, SimWorld
from mesh.testing.servers import free_port

GRACE_S = 2.0
WITHIN_S = 15.0
KEY = b64encode(bytes(range(32))).decode()
QUICK = Timings(probe_every_s=0.2, probe_timeout_s=0.1, gossip_every_s=0.05, reconnect_every_s=0.5)
PATIENCE = Patience(suspect_after_s=0.8, dead_after_s=1.6)
TTL_S = 2
GONE = (State.DEAD, State.LEFT)
_ports = count(20_000)


@dataclass
class Node:
    """One run of a peer."""

    membership: Any
    me: Member

    @property
    def view(self) -> View:
        return self.membership.view

    def sees(self, other: Node) -> Member | None:
        return self.view.find(other.me.name)


class World(ABC):
    """Starts and ends peers that find each other in one way."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.protocol = PROTOCOL

    async def start(self, name: str, *, protocol: int = PROTOCOL, **about: Any) -> Node:
        """Start a peer on a new address, under an id that is made of its name."""
        self.protocol = protocol
        fields = {"address": f"127.0.0.1:{next(_ports)}", "id": f"id-{name}", "run": 1} | about
        node = await self._start(Member(name=name, **fields))
        self.nodes.append(node)
        return node

    async def kill(self, node: Node) -> None:
        self.nodes.remove(node)
        await node.membership.aclose()

    async def leave(self, node: Node) -> None:
        await node.membership.leave()
        await self.kill(node)

    async def restart(self, node: Node, **about: Any) -> Node:
        """Start a peer that was killed on its data, at another address."""
        return await self.start(node.me.name, id=node.me.id, run=node.me.run + 1, **about)

    async def end(self) -> None:
        for node in list(self.nodes):
            await self.kill(node)

    @abstractmethod
    async def _start(self, me: Member) -> Node: ...


class GossipWorld(World):
    def __init__(self, *, cluster: str = "c", key: str = KEY) -> None:
        super().__init__()
        self.cluster, self.key = cluster, key
        self.seed = f"127.0.0.1:{free_port()}"

    async def _start(self, me: Member) -> Node:
        is_seed_free = all(node.me.gossip != self.seed for node in self.nodes)
        me = replace(me, gossip=self.seed if is_seed_free else f"127.0.0.1:{free_port()}")
        seeds = [self.seed, *(node.me.gossip for node in self.nodes[:1])]
        settings = GossipSettings(
            cluster=self.cluster,
            seeds=seeds,
            key=self.key,
            grace_s=GRACE_S,
            timings=QUICK,
            protocol=self.protocol,
        )
        gossip = Gossip(settings, me)
        try:
            await gossip.start()
        except BaseException:
            await gossip.aclose()
            raise
        return Node(gossip, me)


class StaticWorld(World):
    """Peers a, b and c, whose addresses never change."""

    async def _start(self, me: Member) -> Node:
        listed = [Member(name, f"{name}:1", id=f"id-{name}") for name in "abc"]
        me = replace(me, address=f"{me.name}:1")
        static = StaticList(listed, me, self._probe, grace_s=GRACE_S, patience=PATIENCE)
        await static.start()
        return Node(static, me)

    async def _probe(self, member: Member) -> Member | None:
        await asyncio.sleep(0.01)
        for node in self.nodes:
            if node.me.id == member.id:
                return node.view.member(member.name)
        return None


class EtcdWorld(World):
    def __init__(self, endpoint: str, cluster: str) -> None:
        super().__init__()
        self.endpoint, self.cluster = endpoint, cluster

    async def _start(self, me: Member) -> Node:
        access = EtcdAccess(endpoints=[self.endpoint])
        settings = EtcdSettings(
            cluster=self.cluster,
            access=access,
            ttl_s=TTL_S,
            grace_s=GRACE_S,
            protocol=self.protocol,
        )
        etcd = Etcd(settings, me)
        await etcd.start()
        return Node(etcd, me)


class SimulatedWorld(World):
    def __init__(self) -> None:
        super().__init__()
        self.world = SimWorld(Random(7))

    async def _start(self, me: Member) -> Node:
        sim = SimMembership(
            self.world, me, grace_s=GRACE_S, patience=PATIENCE, protocol=self.protocol
        )
        await sim.start()
        return Node(sim, me)


async def until(condition: Callable[[], object], within_s: float = WITHIN_S) -> None:
    async with asyncio.timeout(within_s):
        while not condition():
            await asyncio.sleep(0.01)


def agree(nodes: list[Node]) -> bool:
    return len({node.view.epoch for node in nodes}) == 1


async def all_started(world: World, names: str = "abc", **about: Any) -> list[Node]:
    nodes = [await world.start(name, **about) for name in names]
    await until(lambda: all(len(n.view.here) == len(nodes) for n in nodes) and agree(nodes))
    return nodes


async def watch(node: Node, seen: list[View]) -> None:
    """Note every view of a peer, until cancelled."""
    view = node.view
    while True:
        seen.append(view)
        view = await node.membership.changed(view.epoch)


@contextlib.asynccontextmanager
async def watched(node: Node) -> AsyncIterator[list[View]]:
    seen: list[View] = []
    task = asyncio.create_task(watch(node, seen))
    try:
        yield seen
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
