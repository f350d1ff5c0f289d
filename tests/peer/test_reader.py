"""The read path returns the right bytes, whoever is dead."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.blocks import MIB, FileVersion, Span
from mesh.errors import NotFound, Stale, StoreFull, UnderStoreUnavailable
from mesh.metrics import LOCAL, PEER, UNDER_STORE, Metrics, by_label, total
from mesh.peer.reader import BlockReader
from mesh.store.store import BlockStore, StoreSettings, open_store
from mesh.testing.memory import MemoryNeighbors, MemoryUnderStore, OneUnderStore

ME = "me"
DATA = Random(7).randbytes(2 * MIB + 5)
WHOLE = Span(0, 0, len(DATA))


class Node:
    """A reader over a real store, with neighbors and an under-store in memory."""

    def __init__(
        self, reader: BlockReader, store: BlockStore, origin: MemoryUnderStore, metrics: Metrics
    ) -> None:
        self.reader = reader
        self.store = store
        self.origin = origin
        self.metrics = metrics
        self.file: FileVersion = origin.version("model")

    async def bytes_here(self) -> bytes:
        parts = [(await self.store.read(self.file, 0, n))[0] for n in range(3)]
        return b"".join(parts)

    async def served(self) -> bytes:
        pieces = [p async for p in self.reader.serve(self.file, 0, 1) if p.data]
        assert [p.number for p in pieces] == [1, 2, 0]
        return b"".join(bytes(p.data) for p in sorted(pieces, key=lambda p: p.number))


@asynccontextmanager
async def node(
    neighbors: MemoryNeighbors, origin: MemoryUnderStore, *, capacity_bytes: int = 64 * MIB
) -> AsyncIterator[Node]:
    metrics = Metrics()
    with tempfile.TemporaryDirectory() as root:
        told = StoreSettings(
            directory=Path(root) / "s", capacity_bytes=capacity_bytes, free_space_ratio=0.0
        )
        async with open_store(told, cluster="c", peer_id=UUID(int=1), metrics=metrics) as store:
            async with asyncio.TaskGroup() as tasks:
                reader = BlockReader(
                    store, neighbors, OneUnderStore(origin), tasks, metrics, memory_bytes=64 * MIB
                )
                yield Node(reader, store, origin, metrics)


def alone() -> MemoryNeighbors:
    return MemoryNeighbors([ME], ME)


def origin_of(data: bytes = DATA) -> MemoryUnderStore:
    return MemoryUnderStore({"model": data})


PEERS = ["a", "b", "c"]


@settings(max_examples=40)
@given(
    holders=st.sets(st.sampled_from(PEERS)),
    dead=st.sets(st.sampled_from(PEERS)),
    liars=st.sets(st.sampled_from(PEERS)),
    half_way=st.dictionaries(st.sampled_from(PEERS), st.integers(0, 2)),
)
def test_any_mix_of_dead_empty_and_lying_peers_gives_the_same_bytes(
    holders: set[str], dead: set[str], liars: set[str], half_way: dict[str, int]
) -> None:
    """The under-store is asked exactly when the living peers could not give all pieces."""

    async def scenario() -> None:
        origin = origin_of()
        neighbors = MemoryNeighbors(PEERS, ME)
        for name in holders:
            neighbors.held[name][origin.version("model").key(0)] = DATA
        neighbors.dead, neighbors.lies = dead, liars
        neighbors.dies_after_pieces = half_way
        async with node(neighbors, origin) as n:
            reply = await n.reader.read(n.file, WHOLE)
            # Wait for the whole, so that the record is there too.
            while not await n.store.holds(n.file, 0):
                await asyncio.sleep(0)
            assert await n.bytes_here() == DATA
            honest = holders - dead - liars
            if any(name not in half_way for name in honest):
                assert sum(origin.reads.values()) == 0
                assert reply.origin == PEER
            elif not honest:
                assert origin.reads["model", 0] == 1
                assert reply.origin == UNDER_STORE

    asyncio.run(scenario())


async def test_a_second_read_asks_nobody() -> None:
    neighbors, origin = alone(), origin_of()
    async with node(neighbors, origin) as n:
        first = await n.reader.read(n.file, WHOLE)
        while not await n.store.holds(n.file, 0):
            await asyncio.sleep(0)
        second = await n.reader.read(n.file, WHOLE)
        assert (first.origin, second.origin) == (UNDER_STORE, LOCAL)
        assert second.inode == n.store.extents.path(n.file.id).stat().st_ino
        assert origin.reads["model", 0] == 1


async def test_a_thousand_readers_cause_one_fill() -> None:
    origin = origin_of()
    async with node(alone(), origin) as n:
        replies = await asyncio.gather(*(n.reader.read(n.file, WHOLE) for _ in range(1000)))
        assert {reply.origin for reply in replies} == {UNDER_STORE}
        assert origin.reads["model", 0] == 1
        assert total(n.metrics.fills) == 1
        assert total(n.metrics.fill_bytes) == len(DATA)


async def test_readers_here_and_neighbors_share_one_fill() -> None:
    origin = origin_of()
    async with node(alone(), origin) as n:
        served, *_ = await asyncio.gather(
            n.served(), *(n.reader.read(n.file, WHOLE) for _ in range(5))
        )
        assert served == DATA
        assert origin.reads["model", 0] == 1


async def test_a_cancelled_reader_does_not_cancel_the_others() -> None:
    origin = origin_of()
    origin.gate.clear()
    async with node(alone(), origin) as n:
        first = asyncio.create_task(n.reader.read(n.file, WHOLE))
        second = asyncio.create_task(n.reader.read(n.file, WHOLE))
        await asyncio.sleep(0)
        first.cancel()
        origin.gate.set()
        assert (await second).origin == UNDER_STORE
        assert origin.reads["model", 0] == 1


async def test_a_piece_can_be_read_before_its_block_has_landed() -> None:
    """The first byte does not wait for the block."""
    origin = origin_of()
    async with node(alone(), origin) as n:
        origin.gate.clear()
        first = asyncio.create_task(n.reader.read(n.file, Span(0, 10, 20)))
        last = asyncio.create_task(n.reader.read(n.file, Span(0, 2 * MIB, 5)))
        await asyncio.sleep(0.01)
        origin.gate.set()
        await asyncio.sleep(0)
        origin.gate.clear()
        reply = await asyncio.wait_for(first, 5)
        extent = n.store.extents.path(n.file.id)
        assert reply.inode == extent.stat().st_ino
        with extent.open("rb") as file:
            assert file.read(30)[10:] == DATA[10:30]
        assert not last.done()
        assert n.store.index.block(n.file.key(0)) is None
        origin.gate.set()
        await last


async def test_a_reader_of_many_pieces_goes_on_where_the_dead_peer_left_off() -> None:
    origin = origin_of()
    neighbors = MemoryNeighbors(["a", "b"], ME)
    for name in ("a", "b"):
        neighbors.held[name][origin.version("model").key(0)] = DATA
    neighbors.dies_after_pieces = {"a": 1}
    async with node(neighbors, origin) as n:
        await n.reader.read(n.file, WHOLE)
        assert by_label(n.metrics.peer_bytes, "peer") == {"a": MIB, "b": MIB + 5}
        assert total(n.metrics.failovers) == 1
        assert not origin.reads


async def test_two_owners_that_both_miss_do_not_wait_for_each_other() -> None:
    """Each asks the other while being asked: at most one fill each, no deadlock."""

    class Other(MemoryNeighbors):
        reader: BlockReader

        def served(self, peer: str, file: FileVersion, index: int, first_piece: int):  # type: ignore[no-untyped-def]
            return self.reader.serve(file, index, first_piece)

    origin = origin_of()
    east, west = Other(["west", ME], ME), Other(["east", ME], ME)
    async with asyncio.timeout(10), node(west, origin) as a, node(east, origin) as b:
        east.reader, west.reader = a.reader, b.reader
        await asyncio.gather(a.reader.read(a.file, WHOLE), b.reader.read(b.file, WHOLE))
        assert origin.reads["model", 0] <= 2
        assert await a.served() == await b.served() == DATA


async def test_peek_never_fills() -> None:
    origin = origin_of()
    async with node(alone(), origin) as n:
        with pytest.raises(NotFound):
            _ = [p async for p in n.reader.peek(n.file, 0, 0)]
        assert not origin.reads


async def test_a_changed_file_is_stale_for_everybody_and_nothing_is_kept() -> None:
    origin = origin_of()
    async with node(alone(), origin) as n:
        origin.write("model", DATA[::-1])
        with pytest.raises(Stale):
            await n.reader.read(n.file, WHOLE)
        with pytest.raises(Stale):
            await n.served()
        assert n.store.block_count == 0


async def test_a_file_changed_in_the_middle_of_a_fill_is_never_a_mix() -> None:
    origin = origin_of()
    async with node(alone(), origin) as n:
        origin.gate.clear()
        reading = asyncio.create_task(n.reader.read(n.file, WHOLE))
        await asyncio.sleep(0.01)
        origin.gate.set()
        await asyncio.sleep(0)
        origin.gate.clear()
        origin.write("model", DATA[::-1])
        origin.gate.set()
        with pytest.raises(Stale):
            await reading
        assert not await n.store.holds(n.file, 0)


async def test_an_error_is_not_kept_as_a_fact() -> None:
    origin = origin_of()
    async with node(alone(), origin) as n:
        origin.go_away()
        with pytest.raises(UnderStoreUnavailable):
            await n.reader.read(n.file, WHOLE)
        assert by_label(n.metrics.errors, "kind") == {"UnderStoreUnavailable": 1}
        origin.come_back()
        assert (await n.reader.read(n.file, WHOLE)).origin == UNDER_STORE


async def test_a_full_store_still_serves_neighbors() -> None:
    """The bytes go through memory; nothing is kept, and nobody gets an error."""
    origin = origin_of()
    async with node(alone(), origin, capacity_bytes=MIB) as n:
        assert await n.served() == DATA
        assert n.store.used_bytes == 0


async def test_a_rotten_block_is_filled_again() -> None:
    origin = origin_of()
    async with node(alone(), origin) as n:
        await n.reader.read(n.file, WHOLE)
        while not await n.store.holds(n.file, 0):
            await asyncio.sleep(0)
        with n.store.extents.path(n.file.id).open("r+b") as extent:
            extent.write(b"rot")
        with pytest.raises(Exception, match="piece 0"):
            await n.served()
        assert await n.served() == DATA
        assert origin.reads["model", 0] == 2
        assert total(n.metrics.corrupt_blocks) == 1


async def test_small_files_are_kept_in_the_index() -> None:
    origin = origin_of(b"tiny")
    async with node(alone(), origin) as n:
        reply = await n.reader.read(n.file, Span(0, 0, 4))
        assert reply.inode == 0
        assert n.store.index.inline(n.file.id) == b"tiny"
        assert list(n.store.extents.versions()) == []


async def test_memory_in_flight_is_bounded() -> None:
    """200 cold blocks wanted at once: fills wait for the budget."""
    origin = origin_of(bytes(400 * MIB))
    async with node(alone(), origin, capacity_bytes=1024 * MIB) as n:
        origin.gate.clear()
        reads = [
            asyncio.create_task(n.reader.read(n.file, Span(index, 0, 10))) for index in range(100)
        ]
        for _ in range(50):
            await asyncio.sleep(0)
        in_flight = by_label_gauge(n.metrics)
        assert in_flight["fills"] <= 32 * MIB
        assert in_flight["reads"] <= 32 * MIB
        assert sum(origin.reads.values()) <= 8
        origin.gate.set()
        await asyncio.gather(*reads)
        while sum(by_label_gauge(n.metrics).values()):
            await asyncio.sleep(0.001)


def by_label_gauge(metrics: Metrics) -> dict[str, int]:
    return {group: total(metrics.in_flight_bytes, group=group) for group in ("reads", "fills")}


async def test_what_nobody_waits_for_is_left_when_memory_is_short() -> None:
    origin = origin_of(bytes(400 * MIB))
    async with node(alone(), origin, capacity_bytes=1024 * MIB) as n:
        origin.gate.clear()
        for index in range(100):
            await n.reader.read_ahead(n.file, index)
            await asyncio.sleep(0)
        assert 0 < len(n.reader._reads) <= 5
        origin.gate.set()


async def test_blocks_that_cannot_be_are_not_found() -> None:
    origin = origin_of()
    async with node(alone(), origin) as n:
        huge = origin.version("model", block_bytes=1 << 31)
        for file, index in ((n.file, 1), (n.file, 1 << 31), (huge, 0)):
            with pytest.raises(NotFound):
                _ = [p async for p in n.reader.serve(file, index, 0)]
            with pytest.raises(NotFound):
                await n.reader.read(file, Span(index, 0, 1))
        with pytest.raises(NotFound):
            await n.reader.read(n.file, Span(0, 0, len(DATA) + 1))
        # A piece that is not there is taken for one that is.
        pieces = [p async for p in n.reader.serve(n.file, 0, 99) if p.data]
        assert sorted(p.number for p in pieces) == [0, 1, 2]


async def test_bring_has_a_block_kept_and_counts_no_read() -> None:
    origin = origin_of()
    async with node(alone(), origin) as n:
        assert await n.reader.bring(n.file, 0) == UNDER_STORE
        assert await n.bytes_here() == DATA
        assert await n.reader.bring(n.file, 0) == LOCAL
        assert total(n.metrics.read_bytes) == 0
        assert origin.reads["model", 0] == 1


async def test_bring_takes_a_copy_from_who_has_it() -> None:
    origin = origin_of()
    neighbors = MemoryNeighbors([ME, "a"], ME)
    neighbors.held["a"][origin.version("model").key(0)] = DATA
    async with node(neighbors, origin) as n:
        assert await n.reader.bring(n.file, 0, holder="a") == PEER
        assert await n.bytes_here() == DATA
        assert not origin.reads
    neighbors.dead = {"a"}
    async with node(neighbors, origin) as n:
        assert await n.reader.bring(n.file, 0, holder="a") == UNDER_STORE


async def test_bring_goes_to_another_owner_when_only_this_peer_is_cut_off() -> None:
    origin = origin_of()
    neighbors = MemoryNeighbors([ME, "a"], ME)
    neighbors.held["a"][origin.version("model").key(0)] = DATA
    async with node(neighbors, origin) as n:
        origin.go_away()
        assert await n.reader.bring(n.file, 0) == PEER
        assert await n.bytes_here() == DATA


async def test_bring_says_when_a_block_cannot_be_kept() -> None:
    async with node(alone(), origin_of(), capacity_bytes=MIB) as n:
        with pytest.raises(StoreFull):
            await n.reader.bring(n.file, 0)
        with pytest.raises(NotFound):
            await n.reader.bring(n.file, 1)
