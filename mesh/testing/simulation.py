"""A cluster from one number: peers, clients, accidents and checks, all in one loop.

    all start ── quiet: strict checks ── accidents and reads ── all is mended ── strict checks

`run(seed)` raises `Violation` when the mesh broke a promise; the same seed breaks it
again, to the last event. The promises:

* whatever is read has the right bytes
* a read fails only when neither a holder nor the under-store could be reached, and it
  ends within `READ_MAX_S`
* while all is well a block is filled once, however many want it
* when all is mended, all views agree within `MEND_MAX_S`, and nothing is left over
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import blake2b
from random import Random

import structlog

from mesh.blocks import KIB, MIB, FileVersion, Span
from mesh.errors import MeshError, StoreFull
from mesh.membership.view import Member, State
from mesh.peer import rings
from mesh.peer.rings import placement
from mesh.testing.blocks import MemoryBlocks
from mesh.testing.loop import simulate
from mesh.testing.membership import SimWorld
from mesh.testing.memory import DistantUnderStore, MemoryUnderStore
from mesh.testing.network import SimNetwork, SimTasks
from mesh.testing.simpeer import Build, SimPeer

BLOCK_BYTES = 64 * KIB
NOISE = Random(1).randbytes(2 * MIB)  # noqa: S311
FILES = {
    "tiny": NOISE[: 3 * KIB],
    "model": NOISE[: 4 * BLOCK_BYTES + 17],
    "data": NOISE[5:][: 24 * BLOCK_BYTES],
    "pieces": NOISE[: MIB + 200 * KIB],
    "cold": NOISE[7:][: 4 * BLOCK_BYTES],
}
"""Nobody reads `cold` before all is mended."""

READ = ("tiny", "model", "data", "data", "data", "data", "pieces")
"""What clients read, as often as it stands here."""

READ_MAX_S = 20.0
MEND_MAX_S = 90.0
"""A peer that was slow is left alone for up to a minute."""

SETTLE_S = 6.0
"""After an accident's end: deaths noticed, connections made anew, grudges forgotten."""

CALM_S = 3.0
IDLE_MAX_S = 70.0
"""No stream lives longer."""


RINGS = lru_cache(maxsize=1024)(rings._ring_of.__wrapped__)


class Violation(AssertionError):
    """The mesh broke a promise."""


@dataclass(slots=True)
class Host:
    """What outlives the runs of a peer."""

    name: str
    disk: MemoryBlocks
    peer: SimPeer | None = None
    runs: int = 0
    has_left: bool = False

    @property
    def running(self) -> SimPeer | None:
        return self.peer if self.peer is not None and self.peer.is_up else None


@dataclass(slots=True)
class Tally:
    """What a run came to."""

    reads: int = 0
    failed_reads: int = 0
    fills: int = 0
    virtual_s: float = 0.0
    longest_read_s: float = 0.0
    accidents: list[str] = field(default_factory=list)
    digest: str = ""


class Simulation:
    """One cluster; `run` it once, inside a `SimLoop`."""

    def __init__(self, random: Random, *, peers: int = 4, build: Build | None = None) -> None:
        self.random = random
        self.world = SimWorld(random)
        self.network = SimNetwork(self.world, random)
        self.under_store = MemoryUnderStore(FILES)
        self.under_store_delay_s = (0.005, 0.03)
        self.is_under_store_up = True
        self.cut_off: dict[str, None] = {}
        """Peers that do not reach the under-store."""

        self.files = {
            name: self.under_store.version(
                name, block_bytes=4 * MIB if name == "pieces" else BLOCK_BYTES
            )
            for name in FILES
        }
        self.has_small_disks = random.random() < 0.2
        self.hosts: dict[str, Host] = {}
        self.tally = Tally()
        self.log: list[str] = []
        self._build = build or Build()
        self._peer_count = peers
        self._clients = SimTasks()
        self._restless: dict[str, float] = {}
        """By what had an accident: when it last began or ended."""

        self._violations: list[str] = []

    # A run

    async def run(self, accidents: Callable[[Simulation], Awaitable[None]]) -> Tally:
        """Let *accidents* happen; raises `Violation`."""
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        for number in range(self._peer_count):
            await self.start(f"p{number}")
        await self._until(self.agrees, MEND_MAX_S, "the first views agree")
        await self.everybody_reads("model")
        await accidents(self)
        await self._clients_end()
        await asyncio.sleep(CALM_S)  # what was lost or stopped a moment ago is noticed by now
        await self._until(self.agrees, MEND_MAX_S, "views agree after all was mended")
        await self.everybody_reads("cold")
        await self._until(lambda: not self._unfinished(), IDLE_MAX_S, "nothing is left over")
        for host in list(self.hosts.values()):
            if host.running is not None:
                await self.leave(host.name)
        self.check()
        await self.network.tasks.cancel()
        if left := [*self._unfinished(), *self.network.busy]:
            self._violate(f"left over at the end: {left}")
            self.check()
        self.tally.fills = sum(self.under_store.reads.values())
        self.tally.virtual_s = loop.time() - began_s
        self.tally.digest = blake2b("\n".join(self.log).encode(), digest_size=8).hexdigest()
        return self.tally

    def note(self, event: str) -> None:
        self.log.append(f"{asyncio.get_running_loop().time() - 1000:9.4f} {event}")

    def check(self) -> None:
        """Raise what was found since the last check."""
        for host in self.hosts.values():
            if host.peer is not None and (failures := host.peer.failures()):
                self._violate(f"a task of {host.name} ended: {failures[0]!r}")
        for failure in self.network.failures:
            self._violate(f"a handler failed: {failure!r}")
        if self._violations:
            raise Violation("; ".join(self._violations))

    def _violate(self, what: str) -> None:
        self.note(f"VIOLATION {what}")
        self._violations.append(what)

    async def _until(self, condition: Callable[[], bool], within_s: float, what: str) -> None:
        give_up_s = asyncio.get_running_loop().time() + within_s
        while not condition():
            self.check()
            if asyncio.get_running_loop().time() > give_up_s:
                self._violate(f"not within {within_s:g} s: {what}; {self._state()}")
                self.check()
            await asyncio.sleep(0.5)
        self.note(what)

    def _state(self) -> str:
        return "; ".join(
            f"{h.name}: ready={h.peer.is_ready()} {placement(h.peer.neighbors.view)} "
            f"away={h.peer.neighbors.health.away()} unfinished={h.peer.unfinished()}"
            for h in self.hosts.values()
            if h.peer is not None and h.peer.is_up
        )

    # Peers

    @property
    def running(self) -> list[SimPeer]:
        return [host.peer for host in self.hosts.values() if host.peer and host.peer.is_up]

    async def start(self, name: str) -> None:
        """Start a peer, on its disk if it has one, at another address than before."""
        loop = asyncio.get_running_loop()
        if name not in self.hosts:
            capacity_bytes = 16 * BLOCK_BYTES + 2 * MIB if self.has_small_disks else 64 * MIB
            self.hosts[name] = Host(name, MemoryBlocks(capacity_bytes, clock=loop.time))
        host = self.hosts[name]
        host.runs += 1
        host.has_left = False
        self.disturb(name)
        me = Member(
            name,
            f"{name}:{host.runs}",
            id=f"id-{name}",
            run=host.runs,
            state=State.JOINING,
            zone=f"z{int(name[1:]) % 2}",
        )
        reach = DistantUnderStore(
            self.under_store,
            delay_s=lambda: self.random.uniform(*self.under_store_delay_s),
            is_reached=lambda: self.is_under_store_up and name not in self.cut_off,
        )
        host.peer = SimPeer(me, host.disk, reach, self.world, self.network, self._build)
        self.note(f"start {name} run {host.runs}")
        await host.peer.start()
        self.disturb(name)

    async def kill(self, name: str) -> None:
        peer = self.hosts[name].running
        assert peer is not None
        self.note(f"kill {name}")
        self.disturb(name)
        await peer.kill()
        self.disturb(name)

    async def leave(self, name: str) -> None:
        peer = self.hosts[name].running
        assert peer is not None
        self.note(f"leave {name}")
        self.disturb(name)
        await peer.leave()
        self.hosts[name].has_left = True
        self.disturb(name)

    def disturb(self, what: str) -> None:
        """Note that something had an accident, or got over it, just now."""
        self._restless[what] = asyncio.get_running_loop().time()

    def is_calm(self, since_s: float, *what: str) -> bool:
        """Whether none of these had an accident in the time before which all settles."""
        return all(self._restless.get(each, 0.0) < since_s - SETTLE_S for each in what)

    def agrees(self) -> bool:
        """Whether all that run have the same ring, all of it is theirs, and all are ready."""
        running = self.running
        rings = {placement(peer.neighbors.view) for peer in running}
        names = {member.name for peer in running for member in peer.neighbors.view.placed}
        return (
            len(rings) == 1
            and names == {peer.name for peer in running}
            and all(peer.is_ready() for peer in running)
        )

    def _unfinished(self) -> list[str]:
        found = [f"{p.name}: {what}" for p in self.running for what in p.unfinished()]
        return found + self._clients.names()

    # Clients

    def read_somewhere(self) -> None:
        """Have a client read some bytes on some peer."""
        peer = self.random.choice(self.running)
        name = self.random.choice(READ)
        file = self.files[name]
        index = self.random.randrange(file.block_count)
        length_bytes = file.length_bytes(index)
        start_bytes = self.random.randrange(length_bytes)
        size_bytes = min(self.random.choice([1, 4 * KIB, MIB]), length_bytes - start_bytes)
        span = Span(index, start_bytes, size_bytes)
        self._clients.create_task(self._read(peer, name, span), name=f"read on {peer.name}")

    async def _read(self, peer: SimPeer, name: str, span: Span) -> None:
        loop = asyncio.get_running_loop()
        file, began_s = self.files[name], loop.time()
        told = f"{name}/{span.block_index} on {peer.name}"
        try:
            async with asyncio.timeout(READ_MAX_S):
                data = await peer.read(file, span)
        except TimeoutError:
            if self._is_peer_fine(peer, began_s):
                self._violate(f"read {told} did not end")
            return
        except MeshError as error:
            self._note_failed_read(peer, file, span, began_s, error)
            return
        offset_bytes = span.block_index * file.block_bytes + span.start_bytes
        if data != FILES[name][offset_bytes : offset_bytes + span.size_bytes]:
            self._violate(f"read {told}: wrong bytes")
        self.tally.reads += 1
        self.tally.longest_read_s = max(self.tally.longest_read_s, loop.time() - began_s)
        self.note(f"read {told}")

    def _note_failed_read(
        self, peer: SimPeer, file: FileVersion, span: Span, began_s: float, error: MeshError
    ) -> None:
        told = f"{file.path}/{span.block_index} on {peer.name} failed: {error!r}"
        self.note(f"read {told}")
        self.tally.failed_reads += 1
        if isinstance(error, StoreFull) and self.has_small_disks:
            return  # a mount then goes to the owners and the under-store itself
        if not self._is_peer_fine(peer, began_s):
            return
        if helper := self._helper(peer, file, span.block_index, began_s):
            self._violate(f"read {told}, although {helper} could have helped")

    def _is_peer_fine(self, peer: SimPeer, began_s: float) -> bool:
        return peer.is_up and self.is_calm(began_s, peer.name)

    def _helper(self, peer: SimPeer, file: FileVersion, index: int, began_s: float) -> str:
        """Return who could have given a block all the time; "" if nobody."""
        if (
            self.is_under_store_up
            and peer.name not in self.cut_off
            and self.is_calm(began_s, "under-store", f"under-store {peer.name}")
        ):
            return "the under-store"
        if not self.is_calm(began_s, "weather"):
            return ""
        for other in self.running:
            record = other.disk.index.trusted_block(file.key(index))
            if (
                other is not peer
                and record is not None
                and other.name not in [n for n in self.hosts if self.world.is_stopped(n)]
                and self.world.carries(peer.name, other.name)
                and self.world.carries(other.name, peer.name)
                and self.is_calm(began_s, other.name, f"{file.key(index)} on {other.name}", "cuts")
            ):
                return other.name
        return ""

    async def _clients_end(self) -> None:
        await self._until(lambda: not len(self._clients), READ_MAX_S + 5, "all reads have ended")

    async def everybody_reads(self, name: str) -> None:
        """While all is well: all read all of a file that nobody has, and each block is
        filled once."""
        file = self.files[name]
        self.check()
        for index in range(file.block_count):
            for peer in self.running:
                span = Span(index, 0, file.length_bytes(index))
                work = self._read(peer, name, span)
                self._clients.create_task(work, name=f"strict read on {peer.name}")
        failed = self.tally.failed_reads
        await self._clients_end()
        if self.tally.failed_reads > failed and not self.has_small_disks:
            self._violate(f"a read of {name} failed while all was well")
        for index in range(file.block_count):
            fills = self.under_store.reads[file.path, index * file.block_bytes]
            if fills != 1 and not self.has_small_disks:
                self._violate(f"{name}/{index} was filled {fills} times while all was well")
        self.check()


def run(
    seed: int,
    accidents: Callable[[Simulation], Awaitable[None]],
    *,
    build: Build | None = None,
    peers: int | None = None,
) -> Tally:
    """Run a cluster from *seed*; raises `Violation`, which tells the seed and the end of
    the story."""
    simulations: list[Simulation] = []

    async def main(random: Random) -> Tally:
        count = peers or random.randint(3, 6)
        simulations.append(Simulation(random, peers=count, build=build))
        return await simulations[0].run(accidents)

    with _quiet(), _rings_kept():
        try:
            return simulate(main, seed)
        except Exception as error:
            story = "\n".join(simulations[0].log[-40:]) if simulations else ""
            raise Violation(f"MESH_SEED={seed}: {error}\n{story}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Log nothing: a thousand clusters say a lot."""
    before = structlog.get_config()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    try:
        yield
    finally:
        structlog.configure(**before)


@contextmanager
def _rings_kept() -> Iterator[None]:
    """Let all clusters share the rings that any of them had: to build one takes 3 ms."""
    before = rings._ring_of
    rings._ring_of = RINGS
    try:
        yield
    finally:
        rings._ring_of = before
