"""One contract for the blocks of a node: on a disk, and in memory for simulations."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any
from uuid import UUID

import pytest
from crc32c import crc32c

from mesh.blocks import KIB, MIB, FileVersion, Span, piece_count, piece_range, version_of
from mesh.errors import BlockCorrupt, NotFound, StoreFull
from mesh.store.eviction import Rank
from mesh.store.extents import open_extent
from mesh.store.store import BlockStore, StoreSettings, open_store
from mesh.testing.blocks import MemoryBlocks
from mesh.testing.clock import ManualClock

BLOCK = 96 * KIB
COUNT = 12
CAPACITY = COUNT * BLOCK


def version(name: str, size_bytes: int, block_bytes: int = BLOCK) -> FileVersion:
    return version_of(
        source="memory://", path=name, size_bytes=size_bytes, tag="1", block_bytes=block_bytes
    )


BIG, OTHER, TINY = version("big", 20 * BLOCK - 7), version("other", 5 * BLOCK), version("tiny", 99)
PIECES = version("pieces", MIB + 5, 4 * MIB)


def content(file: FileVersion, index: int) -> bytes:
    return Random(f"{file.path}{index}").randbytes(file.length_bytes(index))


@dataclass
class Subject:
    """Blocks, and the ways in which each kind of them is handled."""

    store: Any
    clock: ManualClock
    rot: Callable[[FileVersion, int], object]
    reopen: Callable[[], Any]
    """Ends it as a crash would, and opens it again."""

    see: Callable[[FileVersion, Span, int], bytes | None]
    """What a mount reads from the extent of an inode."""

    async def put(self, file: FileVersion, index: int, *, rank: Rank = Rank.OWNED) -> int:
        data = content(file, index)
        async with self.store.writing(file, index) as writer:
            for number in range(piece_count(len(data))):
                start, size = piece_range(number, length_bytes=len(data))
                part = memoryview(data)[start : start + size]
                await writer.write(number, part, crc32c(part))
            await writer.commit(rank=rank)
            return int(writer.inode)

    async def get(self, file: FileVersion, index: int) -> bytes:
        count = piece_count(file.length_bytes(index))
        parts = [await self.store.read(file, index, number) for number in range(count)]
        assert all(crc32c(data) == crc for data, crc in parts)
        return b"".join(data for data, _ in parts)

    async def held(self, file: FileVersion) -> list[int]:
        return [index for index in range(file.block_count) if await self.store.holds(file, index)]


class Crash(Exception):
    pass


async def _on_disk(root: Path, stack: AsyncExitStack) -> Subject:
    clock = ManualClock()
    told = StoreSettings(directory=root / "s", capacity_bytes=CAPACITY, free_space_ratio=0.0)
    inner = AsyncExitStack()

    async def opened() -> BlockStore:
        return await inner.enter_async_context(
            open_store(told, cluster="c", peer_id=UUID(int=1), clock=clock)
        )

    def rot(file: FileVersion, index: int) -> None:
        with subject.store.extents.path(file.id).open("r+b") as extent:
            extent.seek(index * file.block_bytes)
            extent.write(b"rotten")

    async def reopen() -> None:
        with suppress(Crash):
            await inner.__aexit__(Crash, Crash(), None)
        subject.store = await opened()

    def see(file: FileVersion, span: Span, inode: int) -> bytes | None:
        try:
            descriptor = open_extent(subject.store.extents.path(file.id))
        except NotFound:
            return None
        with open(descriptor, "rb") as extent:  # noqa: PTH123
            extent.seek(span.block_index * file.block_bytes + span.start_bytes)
            return extent.read(span.size_bytes)

    subject = Subject(await opened(), clock, rot, reopen, see)
    stack.push_async_callback(inner.aclose)
    return subject


def _in_memory() -> Subject:
    clock = ManualClock()
    store = MemoryBlocks(CAPACITY, clock=clock)

    async def reopen() -> None:
        store.crash()

    return Subject(
        store, clock, store.rot, reopen, lambda file, span, inode: store.bytes_at(inode, file, span)
    )


@pytest.fixture(params=["disk", "memory"])
async def subject(request: Any, tmp_path: Path) -> AsyncIterator[Subject]:
    async with AsyncExitStack() as stack:
        if request.param == "memory":
            yield _in_memory()
        else:
            yield await _on_disk(tmp_path, stack)


@pytest.mark.parametrize(("file", "index"), [(BIG, 0), (BIG, 19), (TINY, 0), (PIECES, 0)])
async def test_what_was_put_is_read(subject: Subject, file: FileVersion, index: int) -> None:
    assert not await subject.store.holds(file, index)
    with pytest.raises(NotFound):
        await subject.store.read(file, index, 0)
    inode = await subject.put(file, index)
    assert (inode == 0) is file.is_inline
    assert await subject.store.holds(file, index)
    assert await subject.get(file, index) == content(file, index)
    record = subject.store.index.block(file.key(index))
    assert (record.inode, record.length_bytes) == (inode, file.length_bytes(index))
    assert [number for number, _ in subject.store.index.blocks(file.id)] == [index]
    assert (subject.store.used_bytes, subject.store.block_count) == (file.length_bytes(index), 1)


async def test_without_a_commit_there_is_nothing(subject: Subject) -> None:
    data = content(BIG, 0)
    with pytest.raises(Crash):
        async with subject.store.writing(BIG, 0) as writer:
            await writer.write(0, data, crc32c(data))
            # Whoever waits for this piece on this host may have it now.
            assert subject.see(BIG, Span(0, 5, 100), writer.inode) == data[5:105]
            raise Crash
    assert not await subject.store.holds(BIG, 0)
    assert subject.store.used_bytes == 0


async def test_to_put_twice_is_to_put_once(subject: Subject) -> None:
    await subject.put(BIG, 0)
    await subject.put(BIG, 0)
    assert (subject.store.used_bytes, subject.store.block_count) == (BLOCK, 1)


@pytest.mark.parametrize(("file", "rank"), [(BIG, Rank.OWNED), (PIECES, Rank.COPY)])
async def test_a_dropped_block_is_gone(subject: Subject, file: FileVersion, rank: Rank) -> None:
    await subject.put(file, 0, rank=rank)
    await subject.put(OTHER, 1)
    assert await subject.store.drop([file.key(0)]) == file.length_bytes(0)
    assert not await subject.store.holds(file, 0)
    assert await subject.get(OTHER, 1) == content(OTHER, 1)
    assert (subject.store.used_bytes, subject.store.block_count) == (BLOCK, 1)
    assert subject.store.index.file(file.id) is None


async def test_a_leased_block_stays_until_the_lease_ends(subject: Subject) -> None:
    await subject.put(BIG, 0)
    assert subject.store.lease(BIG.key(0), for_s=1.0)
    assert await subject.store.drop([BIG.key(0)]) == 0
    assert await subject.store.holds(BIG, 0)
    subject.clock.advance(1.1)
    assert await subject.store.drop([BIG.key(0)]) == BLOCK
    await subject.store.settled(BIG.id)
    assert not await subject.store.holds(BIG, 0)


async def test_a_rotten_block_is_said_to_be_once_and_then_gone(subject: Subject) -> None:
    await subject.put(BIG, 3)
    subject.rot(BIG, 3)
    with pytest.raises(BlockCorrupt):
        await subject.store.read(BIG, 3, 0)
    assert not await subject.store.holds(BIG, 3)
    assert subject.store.used_bytes == 0
    await subject.put(BIG, 3)
    assert await subject.get(BIG, 3) == content(BIG, 3)


async def test_a_second_look_drops_what_has_rotted_and_nothing_else(subject: Subject) -> None:
    await subject.put(BIG, 0)
    await subject.put(BIG, 1)
    subject.rot(BIG, 0)
    assert subject.store.lease(BIG.key(0), for_s=5.0)  # the reader who saw it has one
    for index in (0, 1, 2):
        await subject.store.recheck(BIG, index)
    assert await subject.held(BIG) == [1]


async def test_room_is_made_copies_first_oldest_first(subject: Subject) -> None:
    for index in range(COUNT - 6):
        await subject.put(BIG, index)
    for index in range(4):
        await subject.put(OTHER, index, rank=Rank.COPY)
    subject.store.touch(OTHER.id)
    await subject.put(BIG, COUNT - 6)
    await subject.put(BIG, COUNT - 5)
    await subject.store.evict()
    assert await subject.held(BIG) == list(range(COUNT - 4))
    assert 0 < len(await subject.held(OTHER)) < 4
    assert subject.store.used_bytes <= 0.9 * CAPACITY


async def test_a_full_store_says_so_before_a_byte_is_written(subject: Subject) -> None:
    for index in range(COUNT):
        await subject.put(BIG, index)
        assert subject.store.lease(BIG.key(index), for_s=5.0)
    with pytest.raises(StoreFull):
        async with subject.store.writing(OTHER, 0):
            pytest.fail("there is no room")
    subject.clock.advance(6.0)
    await subject.put(OTHER, 0)
    assert await subject.held(OTHER) == [0]


async def test_what_is_on_its_way_takes_room_too(subject: Subject) -> None:
    async with AsyncExitStack() as stack:
        for index in range(COUNT):
            await stack.enter_async_context(subject.store.writing(BIG, index))
        with pytest.raises(StoreFull):
            await stack.enter_async_context(subject.store.writing(OTHER, 0))
    await subject.put(OTHER, 0)


async def test_room_is_kept_while_the_peer_runs(subject: Subject) -> None:
    keeping = asyncio.create_task(subject.store.keep_room())
    for index in range(COUNT):
        await subject.put(BIG, index)
    async with asyncio.timeout(10):
        while subject.store.used_bytes > 0.9 * CAPACITY:
            await asyncio.sleep(0.001)
    keeping.cancel()
    await asyncio.gather(keeping, return_exceptions=True)
    held = await subject.held(BIG)
    assert subject.store.used_bytes == len(held) * BLOCK <= 0.9 * CAPACITY
    assert held
    for index in held:
        assert await subject.get(BIG, index) == content(BIG, index)


async def test_after_a_crash_nothing_is_believed_before_it_was_checked(subject: Subject) -> None:
    for index in (0, 1):
        await subject.put(BIG, index)
    await subject.put(TINY, 0)
    subject.rot(BIG, 0)
    await subject.reopen()
    with pytest.raises(NotFound):
        await subject.store.read(BIG, 1, 0)  # nobody has looked at it yet
    assert await subject.held(BIG) == [1]
    assert await subject.get(BIG, 1) == content(BIG, 1)
    assert await subject.held(TINY) == [0]
    assert subject.store.used_bytes == BLOCK + 99


async def test_the_stock_is_told_page_by_page(subject: Subject) -> None:
    files = sorted([BIG, OTHER, TINY], key=lambda file: file.id)
    for file in files:
        await subject.put(file, 0)
    index = subject.store.index
    first = index.files_after(b"", 2)
    rest = index.files_after(first[-1][0], 2)
    assert [record.version() for _, record in first + rest] == files
    assert index.files_after(rest[-1][0], 2) == []
    assert index.file(BIG.id).version() == BIG
