"""An open file hands out the bytes that were put, whatever has become of them on the disk."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from typing import Any, cast
from uuid import UUID

import pytest
from crc32c import crc32c
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.blocks import KIB, MIB, PIECE_BYTES, FileVersion, version_of
from mesh.client.client import MeshClient
from mesh.client.file import MeshFile
from mesh.client.here import BlocksHere
from mesh.errors import Unavailable
from mesh.metrics import LOCAL, UNDER_STORE, Metrics, total
from mesh.store.eviction import Rank
from mesh.store.index import GRAIN_BYTES
from mesh.store.store import BlockStore, BlockWriter, StoreSettings, open_store
from mesh.wire.messages import FetchReply, FetchRequest

BLOCK = MIB + 96 * KIB
"""Its second piece is a whole grain and a half one."""

SIZE = 2 * BLOCK + 100_001
SOURCE = Random(7).randbytes(SIZE)


def version(size_bytes: int = SIZE) -> FileVersion:
    return version_of(
        source="memory://", path="f", size_bytes=size_bytes, tag="1", block_bytes=BLOCK
    )


@dataclass
class Host:
    """A store and the part of a `MeshClient` that an open file needs; brings from SOURCE."""

    store: BlockStore
    here: BlocksHere
    threads: ThreadPoolExecutor
    metrics: Metrics = field(default_factory=Metrics)
    fetched: list[FetchRequest] = field(default_factory=list)
    is_peer_up: bool = True
    on_fetch: Callable[[FetchRequest], None] = lambda request: None
    direct_blocks: int = 0

    @property
    def direct(self) -> Host:
        return self

    def note_use(self, version: bytes) -> None:
        """Nothing is evicted here."""

    def open(self, file: FileVersion) -> MeshFile:
        return MeshFile(cast(MeshClient, self), "f", file)

    async def block(self, file: FileVersion, index: int) -> bytes:
        self.direct_blocks += 1
        return _content(file, index)

    async def fetch(self, request: FetchRequest) -> FetchReply:
        if not self.is_peer_up:
            raise Unavailable("the peer is down")
        self.fetched.append(request)
        file, index = request.file, request.index
        if request.is_suspect:
            await self.store.recheck(file, index)
        origin = LOCAL
        if not await self.store.holds(file, index):
            origin = UNDER_STORE
            await self.put(file, index)
        record = self.store.index.block(file.key(index))
        assert record is not None
        self.on_fetch(request)
        return FetchReply(record.inode, 0.5, origin)

    async def put(self, file: FileVersion, index: int, *, with_grains: bool = True) -> None:
        async with self.store.writing(file, index) as writer:
            await _write(writer, _content(file, index))
            await writer.commit(rank=Rank.OWNED)
        record = self.store.index.block(file.key(index))
        about = self.store.index.file(file.id)
        assert record is not None
        assert about is not None
        if not with_grains:
            old = replace(record, grains=b"")
            key = file.key(index)
            await self.store._write(lambda txn: self.store.index.put_block(txn, key, old, about))

    async def put_all(self, file: FileVersion, *, with_grains: bool = True) -> FileVersion:
        for index in range(file.block_count):
            await self.put(file, index, with_grains=with_grains)
        return file

    def flip(self, file: FileVersion, offset_bytes: int) -> None:
        """Change a byte on the disk, so that the next read of it asks the disk."""
        fd = os.open(self.store.extents.path(file.id), os.O_RDWR)
        try:
            os.pwrite(fd, bytes([SOURCE[offset_bytes] ^ 16]), offset_bytes)
        finally:
            os.close(fd)
        self.forget_pages(file)

    def forget_pages(self, file: FileVersion) -> None:
        fd = os.open(self.store.extents.path(file.id), os.O_RDWR)
        try:
            os.fsync(fd)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(fd)

    @property
    def corrupt_blocks(self) -> int:
        return int(total(self.store._metrics.corrupt_blocks))


def _content(file: FileVersion, index: int) -> bytes:
    start = index * file.block_bytes
    return SOURCE[start : start + file.length_bytes(index)]


async def _write(writer: BlockWriter, data: bytes) -> None:
    for number, start in enumerate(range(0, len(data), PIECE_BYTES)):
        piece = data[start : start + PIECE_BYTES]
        await writer.write(number, piece, crc32c(piece))


@asynccontextmanager
async def opened(root: Path) -> AsyncIterator[Host]:
    told = StoreSettings(directory=root / "s", capacity_bytes=1 << 30, free_space_ratio=0.0)
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(
            open_store(told, cluster="c", peer_id=UUID(int=1), metrics=Metrics())
        )
        here = BlocksHere(root / "s")
        here.share(store.index, store.extents)
        threads = ThreadPoolExecutor(2)
        stack.callback(threads.shutdown)
        yield Host(store, here, threads)


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[Host]:
    async with opened(tmp_path) as host:
        yield host


async def read(handle: MeshFile, offset_bytes: int, size_bytes: int) -> bytes:
    """Read as the FUSE frontend does."""
    target = memoryview(bytearray(size_bytes))
    got_bytes = handle.read_now(offset_bytes, target)
    if got_bytes is None:
        got_bytes = await handle.read(offset_bytes, target)
    return bytes(target[:got_bytes])


def right(offset_bytes: int, size_bytes: int) -> bytes:
    return SOURCE[offset_bytes : offset_bytes + size_bytes]


START, STOP = 70 * KIB, 300 * KIB
AROUND = (64 * KIB, 320 * KIB)
"""The read that is flipped under, and the whole grains around it."""


@pytest.mark.parametrize(
    "flipped",
    [
        pytest.param(START + 10, id="in the ragged first grain, read"),
        pytest.param(AROUND[0] + 10, id="before the read, in its first grain"),
        pytest.param(130 * KIB, id="in a grain wholly inside"),
        pytest.param(200 * KIB, id="in a second one"),
        pytest.param(STOP - 10, id="in the ragged last grain, read"),
        pytest.param(AROUND[1] - 1, id="behind the read, in its last grain"),
    ],
)
@pytest.mark.parametrize("with_grains", [True, False])
async def test_a_flipped_byte_is_noticed_wherever_it_is(
    host: Host, flipped: int, with_grains: bool
) -> None:
    file = await host.put_all(version(), with_grains=with_grains)
    handle = host.open(file)
    assert await read(handle, START, STOP - START) == right(START, STOP - START)
    assert host.fetched == []
    host.flip(file, flipped)
    assert await read(handle, START, STOP - START) == right(START, STOP - START)
    assert [request.is_suspect for request in host.fetched] == [True]
    assert host.corrupt_blocks == 1
    assert await read(handle, START, STOP - START) == right(START, STOP - START)
    assert len(host.fetched) == 1
    handle.close()


@pytest.mark.parametrize("flipped", [AROUND[0] - 1, AROUND[1], BLOCK + 5])
async def test_a_flipped_byte_in_another_grain_does_no_harm(host: Host, flipped: int) -> None:
    file = await host.put_all(version())
    host.flip(file, flipped)
    handle = host.open(file)
    assert await read(handle, START, STOP - START) == right(START, STOP - START)
    assert host.fetched == []
    assert await read(handle, flipped, 1) == right(flipped, 1)
    assert host.corrupt_blocks == 1
    handle.close()


@pytest.mark.parametrize("flipped", [BLOCK - 1, MIB + 64 * KIB, 2 * BLOCK, SIZE - 1])
async def test_short_grains_at_the_end_of_blocks_are_checked(host: Host, flipped: int) -> None:
    file = await host.put_all(version())
    host.flip(file, flipped)
    handle = host.open(file)
    assert await read(handle, flipped - 9, 100) == right(flipped - 9, 100)
    assert host.corrupt_blocks == 1
    handle.close()


async def test_what_came_into_the_page_cache_behind_our_back_is_checked(host: Host) -> None:
    """Another reader, or the kernel's reading ahead, may have brought what has rotted since."""
    file = await host.put_all(version())
    handle = host.open(file)
    assert await read(handle, 0, 4096) == right(0, 4096)
    host.flip(file, 5)
    host.store.extents.path(file.id).read_bytes()
    target = memoryview(bytearray(4096))
    assert handle.read_now(0, target) is None
    assert await handle.read(0, target) == 4096
    assert bytes(target) == right(0, 4096)
    assert host.corrupt_blocks == 1
    handle.close()


async def test_a_small_version_in_the_index_is_checked(host: Host) -> None:
    file = await host.put_all(version(500))
    rotten = bytes(500)
    await host.store._write(lambda txn: host.store.index.put_inline(txn, file.id, rotten))
    handle = host.open(file)
    assert await read(handle, 100, 50) == right(100, 50)
    assert host.corrupt_blocks == 1
    assert len(host.fetched) == 1
    handle.close()


async def test_what_the_peer_says_is_here_is_checked_too(host: Host) -> None:
    """It rots between the answer of the peer and the read."""
    file = version()
    flips = iter([17])

    def flip(request: FetchRequest) -> None:
        for at in flips:
            host.flip(file, at)

    host.on_fetch = flip
    handle = host.open(file)
    assert await read(handle, 0, 4096) == right(0, 4096)
    assert [request.is_suspect for request in host.fetched] == [False, True]
    handle.close()


async def test_wrong_bytes_with_the_own_peer_down_come_from_elsewhere(host: Host) -> None:
    file = await host.put_all(version())
    host.flip(file, 100)
    host.is_peer_up = False
    handle = host.open(file)
    for _ in range(2):
        assert await read(handle, 0, 200) == right(0, 200)
    assert host.direct_blocks == 2
    host.is_peer_up = True
    assert await read(handle, 0, 200) == right(0, 200)
    assert host.corrupt_blocks == 1
    handle.close()


async def test_a_disk_that_cannot_read_is_no_error_of_the_reader(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = await host.put_all(version())
    plain = os.preadv
    fails = [True, False]

    def preadv(fd: int, *args: Any) -> int:
        if fails.pop(0) if fails else False:
            raise OSError(5, "Input/output error")
        return plain(fd, *args)

    monkeypatch.setattr(os, "preadv", preadv)
    handle = host.open(file)
    assert await read(handle, 0, 200) == right(0, 200)
    assert [request.is_suspect for request in host.fetched] == [True]
    handle.close()


async def test_a_block_that_is_landing_is_read_from_memory_or_when_it_is_whole(
    host: Host,
) -> None:
    file = version()
    handle = host.open(file)
    async with host.store.writing(file, 0) as writer:
        await _write(writer, _content(file, 0))

        async def landing(request: FetchRequest) -> FetchReply:
            return FetchReply(writer.inode, 5.0, UNDER_STORE)

        host.fetch = landing  # type: ignore[method-assign]
        assert await read(handle, 10, 4096) == right(10, 4096)
        host.forget_pages(file)
        # Whether the kernel let the pages go is for it to say: then this waits for the whole.
        waiting = asyncio.create_task(read(handle, 10, 4096))
        await asyncio.sleep(0.05)
        await writer.commit(rank=Rank.OWNED)
        assert await waiting == right(10, 4096)
    handle.close()


async def test_no_more_is_read_than_whole_grains(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = await host.put_all(version())
    plain = os.preadv
    asked: list[list[int]] = []

    def preadv(fd: int, buffers: list[memoryview], *rest: int) -> int:
        asked.append([len(buffer) for buffer in buffers])
        return plain(fd, buffers, *rest)

    monkeypatch.setattr(os, "preadv", preadv)
    handle = host.open(file)
    assert await read(handle, 70_000, 4096) == right(70_000, 4096)
    assert await read(handle, GRAIN_BYTES, 2 * GRAIN_BYTES) == right(GRAIN_BYTES, 2 * GRAIN_BYTES)
    assert asked[0] == [70_000 - GRAIN_BYTES, 4096, 2 * GRAIN_BYTES - 70_000 - 4096]
    assert asked[-1] == [2 * GRAIN_BYTES]
    handle.close()


offsets = st.one_of(
    st.integers(0, SIZE - 1),
    st.sampled_from([0, GRAIN_BYTES, MIB, BLOCK, 2 * BLOCK]).flatmap(
        lambda at: st.integers(max(0, at - 3), at + 3)
    ),
)
reads = st.tuples(
    st.just("read"), offsets, st.one_of(st.integers(1, 8192), st.integers(1, 600 * KIB))
)
flips = st.tuples(st.just("flip"), offsets, st.just(0))
forgets = st.tuples(st.just("forget"), st.just(0), st.just(0))


@settings(max_examples=60)
@given(
    steps=st.lists(st.one_of(reads, reads, flips, forgets), max_size=12),
    with_grains=st.booleans(),
)
def test_any_reads_are_right_whatever_flips(
    steps: list[tuple[str, int, int]], with_grains: bool
) -> None:
    async def play(root: Path) -> None:
        async with opened(root) as host:
            file = await host.put_all(version(), with_grains=with_grains)
            handles = [host.open(file) for _ in range(2)]
            for number, (what, offset_bytes, size_bytes) in enumerate(steps):
                if what == "flip":
                    host.flip(file, offset_bytes)
                elif what == "forget":
                    host.forget_pages(file)
                else:
                    found = await read(handles[number % 2], offset_bytes, size_bytes)
                    assert found == right(offset_bytes, size_bytes)
            for handle in handles:
                handle.close()

    root = Path(tempfile.mkdtemp())
    try:
        asyncio.run(play(root))
    finally:
        shutil.rmtree(root)
