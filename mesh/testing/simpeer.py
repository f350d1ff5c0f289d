"""A whole peer in a simulation: the real parts, over blocks and a network in memory."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from crc32c import crc32c

from mesh.blocks import MIB, FileVersion, Span, piece_range, pieces_of
from mesh.errors import MeshError, Unavailable
from mesh.membership.view import Member, State, view_of
from mesh.metrics import Metrics
from mesh.peer.catalog import Catalog
from mesh.peer.gather import Gatherer
from mesh.peer.neighbors import RingNeighbors
from mesh.peer.presence import Presence
from mesh.peer.reader import BlockReader
from mesh.peer.repair import Repair
from mesh.peer.report import Reporter
from mesh.peer.server import Servicers
from mesh.store.store import BlockStore
from mesh.testing.blocks import MemoryBlocks
from mesh.testing.membership import SimMembership, SimWorld
from mesh.testing.memory import DistantUnderStore, OneUnderStore
from mesh.testing.network import SimNetwork, SimTasks
from mesh.understore.understore import UnderStore

GRACE_S = 3.0
SLOW_START_S = 1.5
MEMORY_BYTES = 8 * MIB
LOOKS_MAX = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Build:
    """What peers are built from; a test puts something broken here."""

    reader: type[BlockReader] = BlockReader
    neighbors: type[RingNeighbors] = RingNeighbors


class SimPeer:
    """One run of a peer: `start` it, then `kill` it or let it `leave`."""

    def __init__(
        self,
        me: Member,
        disk: MemoryBlocks,
        under_store: DistantUnderStore,
        world: SimWorld,
        network: SimNetwork,
        build: Build,
    ) -> None:
        loop = asyncio.get_running_loop()
        self.me = me
        self.disk = disk
        self.is_up = False
        self.metrics = Metrics()
        self.loads = SimTasks()
        self.duties = SimTasks()
        """What a peer does as long as it runs."""

        self._network = network
        store = cast(BlockStore, disk)
        wire = network.channels(me.name, lambda: self.neighbors.view.epoch, self._note_epoch)
        self.neighbors = build.neighbors(
            view_of([me]), me.name, wire, metrics=self.metrics, clock=loop.time
        )
        self.reader = build.reader(
            store,
            self.neighbors,
            OneUnderStore(cast(UnderStore, under_store)),
            cast(asyncio.TaskGroup, self.loads),
            self.metrics,
            memory_bytes=MEMORY_BYTES,
            clock=loop.time,
        )
        self.repair = Repair(
            store,
            self.neighbors,
            self.reader,
            self.metrics,
            bytes_per_s=64 * MIB,
            capacity_bytes=1024 * MIB,
            clock=loop.time,
        )
        self.membership = SimMembership(world, me, grace_s=GRACE_S)
        self.presence = Presence(
            self.membership,
            self.neighbors,
            me,
            view_path=Path("/nonexistent/view"),
            moved=(self.repair.due,),
            clock=loop.time,
        )
        reporter = Reporter("sim", store, self.neighbors, self.metrics, clock=loop.time)
        self.servicers = Servicers(self.reader, cast(Gatherer, None), cast(Catalog, None), reporter)

    @property
    def name(self) -> str:
        return self.me.name

    async def start(self) -> None:
        """Open the doors and become a member, as `mesh.peer.peer` does."""
        self._network.listen(
            self.me.address, self.name, self.servicers, lambda: self.neighbors.view.epoch
        )
        self.is_up = True
        self._do("probe", self.neighbors.probe())
        self._do("repair", self.repair.run())
        self._do("keep room", self.disk.keep_room())
        await self.membership.start()
        await self.presence.check()
        is_new = not self.disk.block_count and self.me.run == 1
        slowly = is_new and await self.presence.is_newcomer()
        await self.presence.enter(slowly=slowly)
        await self.presence.look()
        self._do("follow", self.presence.follow())
        self._do("heal", self.presence.heal())
        if slowly:
            self._do("slow start", self.presence.warm_up(SLOW_START_S))

    def _do(self, name: str, duty: Coroutine[Any, Any, None]) -> None:
        self.duties.create_task(duty, name=name)

    def _note_epoch(self, address: str, epoch: int) -> None:
        self.presence.note_epoch(address, epoch)

    async def kill(self) -> None:
        """End at once, as SIGKILL does; the disk keeps its bytes."""
        self.is_up = False
        await self._network.hang_up(self.me.address)
        await self._end()
        self.disk.crash()

    async def leave(self) -> None:
        """Tell the others, end what is under way, and stop."""
        await self.presence.drain(for_s=0.5)
        self.is_up = False
        await self._network.hang_up(self.me.address)
        await self.membership.leave()
        await self._end()

    async def _end(self) -> None:
        await self.membership.aclose()
        await self.duties.cancel()
        await self.loads.cancel()
        await self.neighbors.aclose()

    async def read(self, file: FileVersion, span: Span) -> bytes:
        """Return what a mount on this host reads; it looks again at what has rotted."""
        for _ in range(LOOKS_MAX):
            reply = await self.reader.read(file, span)
            data = self.disk.bytes_at(reply.inode, file, span)
            if data is None:
                continue  # gone between the word and the look
            if self._is_good(file, span, reply.inode):
                return data
            await self.reader.recheck(file, span.block_index)
        raise Unavailable(f"block {file.key(span.block_index)} goes whenever one looks")

    def _is_good(self, file: FileVersion, span: Span, inode: int) -> bool:
        """Compare what is here with the checksums that are here, if there are any yet."""
        record = self.disk.index.trusted_block(file.key(span.block_index))
        if record is None:
            return True
        for number in pieces_of(span):
            start_bytes, size_bytes = piece_range(number, length_bytes=record.length_bytes)
            piece = self.disk.bytes_at(inode, file, Span(span.block_index, start_bytes, size_bytes))
            if piece is None or crc32c(piece) != record.crcs[number]:
                return False
        return True

    # What checkers ask

    def is_ready(self) -> bool:
        """Whether it takes part with all of its weight, and has nothing against anybody."""
        view = self.neighbors.view
        me = view.find(self.name)
        health, now_s = self.neighbors.health, asyncio.get_running_loop().time()
        return (
            me is not None
            and me.state is State.ACTIVE
            and me.portion == 1.0
            and view.epoch == self.membership.view.epoch
            and not any(
                health.is_away(member.name, now_s) or health.is_barren(member.name, now_s)
                for member in view.members
            )
        )

    def unfinished(self) -> list[str]:
        """Return what is under way although nobody reads."""
        found = self.loads.names()
        for group in ("reads", "fills"):
            gauge = self.metrics.in_flight_bytes.labels(group)
            in_flight_bytes = gauge._value.get()
            if in_flight_bytes:
                found.append(f"{in_flight_bytes:g} bytes of {group}")
        return found

    def failures(self) -> list[BaseException]:
        """Return what ended a task of this peer and should not have."""
        ended = [*self.loads.failures, *self.duties.failures]
        return [error for error in ended if not isinstance(error, MeshError)]
