"""The store keeps what it was given, drops what it must, and never hands out a hole."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from random import Random
from uuid import UUID

import pytest
from crc32c import crc32c

from mesh.blocks import MIB, PIECE_BYTES, FileVersion, piece_count, version_of
from mesh.errors import BlockCorrupt, NotFound, StoreFull
from mesh.metrics import Metrics, total
from mesh.store.eviction import Rank
from mesh.store.store import BlockStore, StoreSettings, open_store
from mesh.testing.clock import ManualClock

PEER = UUID(int=1)


def version(name: str, size_bytes: int, block_bytes: int = 2 * MIB) -> FileVersion:
    return version_of(
        source="memory://", path=name, size_bytes=size_bytes, tag="1", block_bytes=block_bytes
    )


@asynccontextmanager
async def opened(
    root: Path, *, capacity_bytes: int = 1024 * MIB, clock: ManualClock | None = None
) -> AsyncIterator[BlockStore]:
    settings = StoreSettings(
        directory=root / "store", capacity_bytes=capacity_bytes, free_space_ratio=0.0
    )
    async with open_store(
        settings, cluster="c", peer_id=PEER, metrics=Metrics(), clock=clock or ManualClock()
    ) as store:
        yield store


class Crash(Exception):
    """Ends a store as a crash would: without the mark of a clean stop."""


async def put(
    store: BlockStore, file: FileVersion, index: int, data: bytes, *, rank: Rank = Rank.OWNED
) -> None:
    async with store.writing(file, index) as writer:
        for number in range(piece_count(len(data))):
            part = data[number * PIECE_BYTES : (number + 1) * PIECE_BYTES]
            await writer.write(number, part, crc32c(part))
        await writer.commit(rank=rank)


async def got(store: BlockStore, file: FileVersion, index: int) -> bytes:
    count = piece_count(file.length_bytes(index))
    return b"".join([(await store.read(file, index, n))[0] for n in range(count)])


@pytest.mark.parametrize("size_bytes", [1, 65536, 65537, 2 * MIB - 1, 2 * MIB, 5 * MIB + 1])
async def test_what_was_put_is_got(tmp_path: Path, noise: Random, size_bytes: int) -> None:
    file = version("f", size_bytes)
    data = noise.randbytes(size_bytes)
    async with opened(tmp_path) as store:
        for index in reversed(range(file.block_count)):
            assert not await store.holds(file, index)
            start = index * file.block_bytes
            await put(store, file, index, data[start : start + file.length_bytes(index)])
        found = b"".join([await got(store, file, i) for i in range(file.block_count)])
        assert found == data
        assert store.used_bytes == size_bytes
        assert store.block_count == file.block_count


async def test_it_is_all_there_after_a_clean_stop_and_after_a_crash(
    tmp_path: Path, noise: Random
) -> None:
    big, small = version("big", 3 * MIB), version("small", 100)
    blocks = {(big, 0): noise.randbytes(2 * MIB), (big, 1): noise.randbytes(MIB)}
    blocks[small, 0] = noise.randbytes(100)
    async with opened(tmp_path) as store:
        for (file, index), data in blocks.items():
            await put(store, file, index, data)
    with pytest.raises(Crash):
        async with opened(tmp_path) as store:
            for (file, index), data in blocks.items():
                assert store.index.trusted_block(file.key(index)) is not None
                assert await got(store, file, index) == data
            raise Crash
    async with opened(tmp_path) as store:
        assert store.used_bytes == 3 * MIB + 100
        for (file, index), data in blocks.items():
            # Nobody may believe it before it was checked.
            assert store.index.trusted_block(file.key(index)) is None
            assert await store.holds(file, index)
            assert store.index.trusted_block(file.key(index)) is not None
            assert await got(store, file, index) == data


async def test_bytes_lost_in_a_power_cut_are_not_believed(tmp_path: Path, noise: Random) -> None:
    """The record survived and the bytes did not: the extent file reads as zeros."""
    file = version("f", 4 * MIB)
    data = noise.randbytes(2 * MIB)
    with pytest.raises(Crash):
        async with opened(tmp_path) as store:
            await put(store, file, 0, data)
            await put(store, file, 1, data)
            store.extents.punch(file.id, 2 * MIB, 2 * MIB)
            raise Crash
    async with opened(tmp_path) as store:
        assert await store.holds(file, 0)
        assert not await store.holds(file, 1)
        assert store.index.block(file.key(1)) is None
        with pytest.raises(NotFound):
            await store.read(file, 1, 0)
        assert store.used_bytes == 2 * MIB


async def test_a_crash_between_bytes_and_record_leaves_nothing(
    tmp_path: Path, noise: Random
) -> None:
    file = version("f", 2 * MIB)
    with pytest.raises(Crash):
        async with opened(tmp_path) as store, store.writing(file, 0) as writer:
            part = noise.randbytes(PIECE_BYTES)
            await writer.write(0, part, crc32c(part))
            raise Crash
    path = tmp_path / "store" / "data" / file.id.hex()[:2] / file.id.hex()[2:4] / file.id.hex()
    assert path.exists()
    async with opened(tmp_path) as store:
        assert not await store.holds(file, 0)
        assert not path.exists(), "an extent file that no record speaks of was kept"
        await put(store, file, 0, noise.randbytes(2 * MIB))
        assert await store.holds(file, 0)


async def test_a_flipped_bit_is_noticed_and_the_block_dropped(
    tmp_path: Path, noise: Random
) -> None:
    file = version("f", 2 * MIB)
    async with opened(tmp_path) as store:
        await put(store, file, 0, noise.randbytes(2 * MIB))
        path = store.extents.path(file.id)
        with path.open("r+b") as extent:
            extent.seek(MIB + 5)
            byte = extent.read(1)
            extent.seek(MIB + 5)
            extent.write(bytes([byte[0] ^ 1]))
        await store.read(file, 0, 0)
        with pytest.raises(BlockCorrupt):
            await store.read(file, 0, 1)
        assert not await store.holds(file, 0)


async def test_a_broken_index_is_set_aside_and_the_peer_starts(
    tmp_path: Path, noise: Random
) -> None:
    file = version("f", 2 * MIB)
    async with opened(tmp_path) as store:
        await put(store, file, 0, noise.randbytes(2 * MIB))
    table = tmp_path / "store" / "index" / "data.mdb"
    table.write_bytes(os.urandom(table.stat().st_size))
    async with opened(tmp_path) as store:
        assert not await store.holds(file, 0)
        assert store.used_bytes == 0
        assert list(store.extents.versions()) == []


async def test_files_are_for_their_owner_alone(tmp_path: Path, noise: Random) -> None:
    file = version("secret-name", 2 * MIB)
    async with opened(tmp_path) as store:
        await put(store, file, 0, noise.randbytes(2 * MIB))
    root = tmp_path / "store"
    assert root.stat().st_mode & 0o777 == 0o700
    for path in root.rglob("*"):
        assert path.stat().st_mode & 0o077 == 0, path
        assert "secret" not in str(path)


# Eviction


async def test_eviction_starts_at_the_watermark_and_takes_copies_first(
    tmp_path: Path, noise: Random
) -> None:
    async with opened(tmp_path, capacity_bytes=20 * MIB) as store:
        owned = [version(f"owned{n}", 2 * MIB) for n in range(5)]
        copies = [version(f"copy{n}", 2 * MIB) for n in range(4)]
        for file in owned:
            await put(store, file, 0, noise.randbytes(2 * MIB))
        for file in copies:
            await put(store, file, 0, noise.randbytes(2 * MIB), rank=Rank.COPY)
        assert store.used_bytes == 18 * MIB  # exactly 90 %: nothing goes yet
        await store.evict()
        assert store.used_bytes == 18 * MIB
        await put(store, version("one more", 2 * MIB), 0, noise.randbytes(2 * MIB))
        await store.evict()
        assert store.used_bytes <= 17 * MIB
        assert all([await store.holds(file, 0) for file in owned])
        assert sum([await store.holds(file, 0) for file in copies]) == 2


async def test_a_leased_block_stays_until_its_lease_ends(tmp_path: Path, noise: Random) -> None:
    clock = ManualClock()
    async with opened(tmp_path, capacity_bytes=6 * MIB, clock=clock) as store:
        files = [version(f"f{n}", 2 * MIB) for n in range(3)]
        for file in files:
            await put(store, file, 0, noise.randbytes(2 * MIB))
            store.lease(file.key(0), for_s=10)
        await store.evict()
        assert store.block_count == 3
        clock.advance(11)
        await store.evict()
        assert store.block_count == 2


async def test_a_punched_block_is_gone_before_its_bytes_are(tmp_path: Path, noise: Random) -> None:
    """Whoever saw the same stamp before and after has read the right bytes."""
    file = version("f", 4 * MIB)
    data = noise.randbytes(2 * MIB)
    async with opened(tmp_path) as store:
        await put(store, file, 0, data)
        await put(store, file, 1, data)
        before = store.index.block(file.key(0))
        assert before is not None
        await store.drop([file.key(0)])
        assert store.index.block(file.key(0)) is None
        assert store.extents.read(file.id, 0, MIB, inode=before.inode) == bytes(MIB)
        assert await got(store, file, 1) == data
        await put(store, file, 0, data)
        after = store.index.block(file.key(0))
        assert after is not None
        assert after.stamp != before.stamp


async def test_the_last_block_takes_the_file_with_it(tmp_path: Path, noise: Random) -> None:
    file = version("f", 2 * MIB)
    async with opened(tmp_path) as store:
        await put(store, file, 0, noise.randbytes(2 * MIB))
        before = store.index.block(file.key(0))
        await store.drop([file.key(0)])
        assert list(store.extents.versions()) == []
        assert store.index.file(file.id) is None
        await put(store, file, 0, noise.randbytes(2 * MIB))
        after = store.index.block(file.key(0))
        assert before is not None
        assert after is not None
        # The old inode's number may come again; then the stamps differ.
        assert (after.inode, after.stamp) != (before.inode, before.stamp)


async def test_a_version_that_is_being_written_is_not_dropped(
    tmp_path: Path, noise: Random
) -> None:
    """A drop that unlinked the file would take the bytes of the write with it."""
    file = version("f", 4 * MIB)
    data = noise.randbytes(2 * MIB)
    async with opened(tmp_path) as store:
        await put(store, file, 0, data)
        async with store.writing(file, 1) as writer:
            for number in range(2):
                part = data[number * MIB : (number + 1) * MIB]
                await writer.write(number, part, crc32c(part))
            assert await store.drop([file.key(0)]) == 0
            await writer.commit(rank=Rank.OWNED)
        assert await got(store, file, 0) == data
        assert await got(store, file, 1) == data


async def test_a_store_without_room_says_so(tmp_path: Path, noise: Random) -> None:
    async with opened(tmp_path, capacity_bytes=3 * MIB) as store:
        file = version("f", 2 * MIB)
        await put(store, file, 0, noise.randbytes(2 * MIB))
        store.lease(file.key(0), for_s=10)
        with pytest.raises(StoreFull):
            await put(store, version("g", 2 * MIB), 0, noise.randbytes(2 * MIB))
        assert store.used_bytes == 2 * MIB


async def test_eviction_runs_by_itself_while_blocks_come(tmp_path: Path, noise: Random) -> None:
    async with opened(tmp_path, capacity_bytes=10 * MIB) as store:
        keeping = asyncio.create_task(store.keep_room())
        for n in range(20):
            await put(store, version(f"f{n}", 2 * MIB), 0, noise.randbytes(2 * MIB))
            await asyncio.sleep(0)
        keeping.cancel()
        assert store.used_bytes <= 10 * MIB
        assert store.used_bytes == sum(
            record.length_bytes
            for version_id, _ in store.index.files()
            for _, record in store.index.blocks(version_id)
        )
        assert total(store._metrics.evicted_blocks) == 20 - store.block_count


async def test_a_rotten_block_is_forgotten_while_another_of_its_version_is_written(
    tmp_path: Path, noise: Random
) -> None:
    """A drop would wait for the writer; a reader must not be given the bytes meanwhile."""
    file = version("f", 4 * MIB)
    async with opened(tmp_path) as store:
        await put(store, file, 0, noise.randbytes(2 * MIB))
        with store.extents.path(file.id).open("r+b") as extent:
            extent.write(b"rot")
        async with store.writing(file, 1):
            await store.recheck(file, 0)
            assert not await store.holds(file, 0)
            assert store.used_bytes == 0
        await put(store, file, 0, noise.randbytes(2 * MIB))
        assert await store.holds(file, 0)
        await store.recheck(file, 0)
        assert await store.holds(file, 0)


async def test_a_cancelled_caller_does_not_end_the_writer(tmp_path: Path, noise: Random) -> None:
    """A neighbor that hangs up while its block is being checked."""
    file = version("f", 2 * MIB)
    with pytest.raises(Crash):
        async with opened(tmp_path) as store:
            await put(store, file, 0, noise.randbytes(2 * MIB))
            raise Crash
    async with opened(tmp_path) as store:
        for _ in range(50):
            asked = asyncio.create_task(store._write(lambda txn: None))
            await asyncio.sleep(0)
            asked.cancel()
        checking = asyncio.create_task(store.holds(file, 0))
        await asyncio.sleep(0)
        checking.cancel()
        assert await store.holds(file, 0)
        await put(store, version("g", 10), 0, b"0123456789")
        assert store.used_bytes == store.index.usage()[1] == 2 * MIB + 10
        assert await store.drop([file.key(0)]) == 2 * MIB
    assert asked.cancelled()


async def test_a_victim_that_was_leased_meanwhile_stays(tmp_path: Path, noise: Random) -> None:
    """A mount was told that it is here, between the choice of victims and their end."""
    file = version("f", 4 * MIB)
    data = noise.randbytes(2 * MIB)
    async with opened(tmp_path) as store:
        for index in range(2):
            await put(store, file, index, data)
        assert store.lease(file.key(0), for_s=10)
        assert await store.drop([file.key(0), file.key(1)]) == 2 * MIB
        assert await store.holds(file, 0)
        assert await got(store, file, 0) == data
        assert not await store.holds(file, 1)


async def test_what_is_being_dropped_cannot_be_leased(tmp_path: Path, noise: Random) -> None:
    """Its record may still be there when its bytes are as good as gone."""
    file = version("f", 4 * MIB)
    async with opened(tmp_path) as store:
        for index in range(2):
            await put(store, file, index, noise.randbytes(2 * MIB))
        dropping = asyncio.create_task(store.drop([file.key(0)]))
        await asyncio.sleep(0)
        assert not store.lease(file.key(0), for_s=10)
        await store.settled(file.id)
        assert not await store.holds(file, 0)
        assert store.lease(file.key(1), for_s=10)
        assert await dropping == 2 * MIB


async def test_a_record_with_a_wrong_crc_of_a_grain_is_dropped_with_its_block(
    tmp_path: Path, noise: Random
) -> None:
    """A mount would go on to suspect bytes that the pieces' CRCs find right."""
    file = version("f", 2 * MIB)
    data = noise.randbytes(2 * MIB)
    async with opened(tmp_path) as store:
        for spoilt in (b"", b"\0\0\0\0"):
            await put(store, file, 0, data)
            record = store.index.block(file.key(0))
            assert record is not None
            assert len(record.grains) == 4 * 32
            changed = replace(record, grains=spoilt + record.grains[len(spoilt) :])
            await store._write(partial(store.index.stamp_block, key=file.key(0), record=changed))
            await store.recheck(file, 0)
            assert await store.holds(file, 0) is (not spoilt)
