"""What mounts write on this host: nobody's until it is adopted, and swept up after them."""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from random import Random
from uuid import UUID

import pytest
from crc32c import crc32c

from mesh.blocks import KIB, MIB, PIECE_BYTES, FileVersion, version_of
from mesh.errors import NotFound
from mesh.store import drafts as drafts_module
from mesh.store.drafts import DRAFTS, Digests, Drafts, make_draft, new_token
from mesh.store.eviction import Rank
from mesh.store.index import BlockRecord
from mesh.store.store import BlockStore, StoreSettings, open_store

SIZES = [1, 64 * KIB, 64 * KIB + 1, MIB, MIB + 1, 5 * MIB + 7]
BLOCK = 2 * MIB


def version(size_bytes: int, token: str = "one", *, block_bytes: int = BLOCK) -> FileVersion:
    return version_of(
        source="memory://",
        path="f",
        size_bytes=size_bytes,
        tag=f"mesh-{token}=1",
        block_bytes=block_bytes,
    )


@asynccontextmanager
async def opened(
    root: Path, *, capacity_bytes: int = 1024 * MIB
) -> AsyncIterator[tuple[BlockStore, Drafts]]:
    directory = root / "store"
    settings = StoreSettings(
        directory=directory, capacity_bytes=capacity_bytes, free_space_ratio=0.0
    )
    async with open_store(settings, cluster="c", peer_id=UUID(int=1)) as store:
        yield store, Drafts(store, directory)


@contextmanager
def draft_of(root: Path, data: bytes) -> Iterator[str]:
    """Write a draft, as a mount that still has it open."""
    token = new_token()
    fd = make_draft(root / "store", token)
    try:
        os.write(fd, data)
        yield token
    finally:
        os.close(fd)


def digests_of(data: bytes, *, step_bytes: int = 8 * MIB, block_bytes: int = MIB) -> Digests:
    digests = Digests(block_bytes)
    for start in range(0, len(data), step_bytes):
        digests.add(data[start : start + step_bytes])
    return digests


async def put(store: BlockStore, file: FileVersion, data: bytes) -> None:
    """Put all blocks of a version as a fill does."""
    for index in range(file.block_count):
        start = index * file.block_bytes
        block = data[start : start + file.length_bytes(index)]
        async with store.writing(file, index) as writer:
            for number, at in enumerate(range(0, len(block), PIECE_BYTES)):
                piece = block[at : at + PIECE_BYTES]
                await writer.write(number, piece, crc32c(piece))
            await writer.commit(rank=Rank.OWNED)


async def got(store: BlockStore, file: FileVersion) -> bytes:
    pieces = []
    for index in range(file.block_count):
        for number in range(-(-file.length_bytes(index) // PIECE_BYTES)):
            pieces.append((await store.read(file, index, number))[0])
    return b"".join(pieces)


def record(store: BlockStore, file: FileVersion, index: int) -> BlockRecord:
    found = store.index.trusted_block(file.key(index))
    assert found is not None
    return found


def owned(_: int) -> Rank:
    return Rank.OWNED


# Drafts


async def test_a_draft_is_a_locked_file_of_its_own_and_nobody_elses(tmp_path: Path) -> None:
    async with opened(tmp_path) as (_, drafts):
        with draft_of(tmp_path, b"one") as token:
            path = drafts.path(token)
            assert path == tmp_path / "store" / DRAFTS / token
            assert path.stat().st_mode & 0o777 == 0o600
            with path.open("rb") as other, pytest.raises(BlockingIOError):
                fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


async def test_tokens_differ_and_are_tokens(tmp_path: Path) -> None:
    async with opened(tmp_path) as (_, drafts):
        tokens = {new_token() for _ in range(100)}
        assert len(tokens) == 100
        assert {drafts.path(token).name for token in tokens} == tokens


@pytest.mark.parametrize(
    "token",
    ["", ".", "..", "../" + "a" * 29, "a" * 31, "a" * 33, "A" * 32, "g" * 32, "a" * 32 + "\n"],
)
async def test_what_is_no_token_names_no_file(tmp_path: Path, token: str) -> None:
    async with opened(tmp_path) as (_, drafts):
        for each in (drafts.read(token, 0, 1), drafts.remove(token)):
            with pytest.raises(NotFound):
                await each
        with pytest.raises(NotFound):
            drafts.path(token)


async def test_a_draft_is_read_where_it_has_bytes_and_nowhere_else(tmp_path: Path) -> None:
    async with opened(tmp_path) as (_, drafts):
        with draft_of(tmp_path, b"0123456789") as token:
            assert await drafts.read(token, 0, 10) == b"0123456789"
            assert await drafts.read(token, 4, 3) == b"456"
            assert await drafts.read(token, 10, 0) == b""
            for offset, size in ((0, 11), (9, 2), (20, 1)):
                with pytest.raises(NotFound):
                    await drafts.read(token, offset, size)
        with pytest.raises(NotFound):
            await drafts.read(new_token(), 0, 1)


async def test_a_link_is_not_followed(tmp_path: Path) -> None:
    """Who may write there, and that is the mounts, may not have the peer read just anything."""
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret")
    async with opened(tmp_path) as (_, drafts):
        token = new_token()
        drafts.path(token).symlink_to(secret)
        with pytest.raises(OSError, match="symbolic links"):
            await drafts.read(token, 0, 6)
        with pytest.raises(OSError, match="symbolic links"):
            make_draft(tmp_path / "store", token)


async def test_who_has_a_draft_open_keeps_its_bytes_when_it_is_removed(tmp_path: Path) -> None:
    async with opened(tmp_path) as (_, drafts):
        token = new_token()
        fd = make_draft(tmp_path / "store", token)
        try:
            os.write(fd, b"one")
            await drafts.remove(token)
            await drafts.remove(token)  # as one whose answer was lost does
            assert not drafts.path(token).exists()
            assert os.pread(fd, 10, 0) == b"one"
        finally:
            os.close(fd)


# Sweeping


async def test_what_a_dead_mount_left_is_swept_and_what_is_written_stays(tmp_path: Path) -> None:
    async with opened(tmp_path) as (_, drafts):
        assert await drafts.sweep() == []
        with draft_of(tmp_path, b"left") as left:
            pass
        with draft_of(tmp_path, b"held") as held:
            assert await drafts.sweep() == [left]
            assert not drafts.path(left).exists()
            assert await drafts.read(held, 0, 4) == b"held"
            assert await drafts.sweep() == []
        assert await drafts.sweep() == [held]


async def test_a_draft_that_was_swept_before_it_was_locked_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one moment in which a draft has no lock although its mount lives."""
    lock = fcntl.flock
    swept: list[str] = []
    async with opened(tmp_path) as (_, drafts):
        token = new_token()

        def swept_before(fd: int, how: int) -> None:
            if not swept:
                swept.append(token)
                drafts.path(token).unlink()
            lock(fd, how)

        monkeypatch.setattr(drafts_module.fcntl, "flock", swept_before)
        fd = make_draft(tmp_path / "store", token)
        monkeypatch.undo()
        try:
            os.write(fd, b"one")
            assert swept == [token]
            assert await drafts.sweep() == []
            assert await drafts.read(token, 0, 3) == b"one"
        finally:
            os.close(fd)


async def test_no_draft_is_lost_while_it_is_swept_all_the_time(tmp_path: Path) -> None:
    over = threading.Event()
    async with opened(tmp_path) as (_, drafts):

        def sweep() -> None:
            while not over.is_set():
                with suppress(OSError):
                    drafts._sweep()

        sweeper = threading.Thread(target=sweep)
        sweeper.start()
        try:
            for number in range(200):
                with draft_of(tmp_path, b"%d" % number) as token:
                    assert drafts.path(token).read_bytes() == b"%d" % number
        finally:
            over.set()
            sweeper.join()


# Digests


@pytest.mark.parametrize("size_bytes", SIZES)
@pytest.mark.parametrize("step_bytes", [PIECE_BYTES, 3 * PIECE_BYTES, 8 * MIB])
async def test_digests_are_those_of_a_fill(
    tmp_path: Path, noise: Random, size_bytes: int, step_bytes: int
) -> None:
    data, file = noise.randbytes(size_bytes), version(size_bytes)
    digests = digests_of(data, step_bytes=step_bytes)
    assert digests.size_bytes == size_bytes
    async with opened(tmp_path) as (store, _):
        await put(store, file, data)
        blocks = list(digests.blocks(file))
        assert len(blocks) == file.block_count
        for index, (crcs, grains) in enumerate(blocks):
            theirs = record(store, file, index)
            assert crcs == theirs.crcs
            if not file.is_inline:
                assert grains == theirs.grains


def test_the_same_bytes_have_the_same_digests_and_others_have_not(noise: Random) -> None:
    data = noise.randbytes(2 * MIB + 5)
    flipped = bytes([data[0] ^ 1]) + data[1:]
    mine = digests_of(data)
    assert mine.is_same(digests_of(data, step_bytes=MIB))
    for other in (flipped, data[:-1], data + b"\0", data[::-1], b""):
        assert not mine.is_same(digests_of(other))
        assert not digests_of(other).is_same(mine)
    assert Digests().is_same(digests_of(b""))


def test_digests_of_too_much_say_so_and_take_no_more_memory_for_grains(
    monkeypatch: pytest.MonkeyPatch, noise: Random
) -> None:
    monkeypatch.setattr(drafts_module, "PIECES_MAX", 2)
    data = noise.randbytes(2 * MIB + 1)
    assert digests_of(data[: 2 * MIB]).are_whole
    more = digests_of(data)
    assert not more.are_whole
    assert not more.is_same(digests_of(data[:-1]))
    assert more.is_same(digests_of(data))  # a lost answer is still told from another content


# Adopting


@pytest.mark.parametrize("size_bytes", SIZES)
async def test_what_was_adopted_is_read_like_what_was_put(
    tmp_path: Path, noise: Random, size_bytes: int
) -> None:
    data, file = noise.randbytes(size_bytes), version(size_bytes)
    async with opened(tmp_path) as (store, drafts):
        with draft_of(tmp_path, data) as token:
            assert await drafts.adopt(drafts.path(token), file, digests_of(data), owned)
            await drafts.remove(token)
        assert await got(store, file) == data
        assert (store.used_bytes, store.block_count) == (size_bytes, file.block_count)
        for index in range(file.block_count):
            assert await store.holds(file, index)
        is_extent = store.extents.path(file.id).exists()
        assert is_extent is (size_bytes > 64 * KIB)
    async with opened(tmp_path) as (store, _):
        assert await got(store, file) == data


@pytest.mark.parametrize("block_bytes", [64 * KIB, 512 * KIB])
async def test_blocks_smaller_than_a_piece_are_adopted_too(
    tmp_path: Path, noise: Random, block_bytes: int
) -> None:
    """The mount table allows blocks from 64 KiB on."""
    data = noise.randbytes(3 * MIB + 5)
    file = version(len(data), block_bytes=block_bytes)
    async with opened(tmp_path) as (store, drafts):
        with draft_of(tmp_path, data) as token:
            digests = digests_of(data, block_bytes=block_bytes)
            assert await drafts.adopt(drafts.path(token), file, digests, owned)
        assert await got(store, file) == data


async def test_what_was_adopted_is_verified_after_a_crash(tmp_path: Path, noise: Random) -> None:
    """Its CRCs are as good as those of a fill."""
    data, file = noise.randbytes(3 * MIB + 9), version(3 * MIB + 9)
    async with opened(tmp_path) as (store, drafts):
        with draft_of(tmp_path, data) as token:
            assert await drafts.adopt(drafts.path(token), file, digests_of(data), owned)
        for index in range(file.block_count):
            await store.recheck(file, index)
            assert await store.holds(file, index)
        path = store.extents.path(file.id)
        with path.open("r+b") as extent:
            extent.seek(2 * MIB + 5)
            extent.write(bytes([data[2 * MIB + 5] ^ 1]))
        for index in range(file.block_count):
            await store.recheck(file, index)
        assert [await store.holds(file, index) for index in (0, 1)] == [True, False]


async def test_no_byte_is_copied_to_adopt_a_draft(tmp_path: Path, noise: Random) -> None:
    data, file = noise.randbytes(2 * MIB), version(2 * MIB)
    async with opened(tmp_path) as (store, drafts):
        with draft_of(tmp_path, data) as token:
            inode = drafts.path(token).stat().st_ino
            assert await drafts.adopt(drafts.path(token), file, digests_of(data), owned)
            assert store.extents.path(file.id).stat().st_ino == inode
            assert record(store, file, 0).inode == inode


async def test_each_block_has_the_rank_that_it_is_given(tmp_path: Path, noise: Random) -> None:
    data, file = noise.randbytes(5 * MIB), version(5 * MIB)
    ranks = [Rank.OWNED, Rank.COPY, Rank.SPARE]
    async with opened(tmp_path) as (store, drafts):
        with draft_of(tmp_path, data) as token:
            assert await drafts.adopt(
                drafts.path(token), file, digests_of(data), lambda index: ranks[index]
            )
        assert [record(store, file, index).rank for index in range(3)] == ranks


async def test_blocks_that_were_adopted_are_dropped_like_others(
    tmp_path: Path, noise: Random
) -> None:
    data, file = noise.randbytes(5 * MIB), version(5 * MIB)
    async with opened(tmp_path) as (store, drafts):
        with draft_of(tmp_path, data) as token:
            assert await drafts.adopt(drafts.path(token), file, digests_of(data), owned)
            await drafts.remove(token)
        await store.drop([file.key(1)])
        assert [await store.holds(file, index) for index in range(3)] == [True, False, True]
        assert store.used_bytes == 3 * MIB
        await store.drop([file.key(0), file.key(2)])
        assert store.used_bytes == 0
        assert not store.extents.path(file.id).exists()


@pytest.mark.parametrize("size_bytes", [100, 2 * MIB])
async def test_nothing_is_adopted_by_a_full_store(
    tmp_path: Path, noise: Random, size_bytes: int
) -> None:
    data, file = noise.randbytes(size_bytes), version(size_bytes, "two")
    other = noise.randbytes(3 * MIB)
    async with opened(tmp_path, capacity_bytes=2 * MIB) as (store, drafts):
        first = version(len(other))
        with draft_of(tmp_path, other) as token:
            assert await drafts.adopt(drafts.path(token), first, digests_of(other), owned)
        with draft_of(tmp_path, data) as token:
            assert not await drafts.adopt(drafts.path(token), file, digests_of(data), owned)
            assert not await store.holds(file, 0)
            assert store.used_bytes == len(other)
            assert not store.extents.path(file.id).exists()
            await store.drop([first.key(0), first.key(1)])
            assert await drafts.adopt(drafts.path(token), file, digests_of(data), owned)
        assert await got(store, file) == data


async def test_a_reader_that_was_faster_keeps_what_it_has(tmp_path: Path, noise: Random) -> None:
    """Two files under one version would have the index speak of the wrong one."""
    data, file = noise.randbytes(2 * MIB), version(2 * MIB)
    async with opened(tmp_path) as (store, drafts):
        await put(store, file, data)
        before = record(store, file, 0)
        with draft_of(tmp_path, data) as token:
            assert not await drafts.adopt(drafts.path(token), file, digests_of(data), owned)
        assert record(store, file, 0) == before
        assert await got(store, file) == data
        assert store.used_bytes == 2 * MIB


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(lambda path: path.unlink(), id="gone"),
        pytest.param(lambda path: os.truncate(path, 10), id="cut"),
    ],
)
async def test_a_small_draft_that_is_not_there_is_not_adopted(
    tmp_path: Path, fault: Callable[[Path], None]
) -> None:
    data, file = b"x" * 100, version(100)
    async with opened(tmp_path) as (store, drafts):
        with draft_of(tmp_path, data) as token:
            fault(drafts.path(token))
            with pytest.raises(NotFound):
                await drafts.adopt(drafts.path(token), file, digests_of(data), owned)
        assert not await store.holds(file, 0)


async def test_a_large_draft_that_is_gone_is_not_adopted(tmp_path: Path, noise: Random) -> None:
    data, file = noise.randbytes(MIB), version(MIB)
    async with opened(tmp_path) as (store, drafts):
        assert not await drafts.adopt(new_token(), file, digests_of(data), owned)
        assert not await store.holds(file, 0)


async def test_digests_that_are_not_whole_are_not_adopted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, noise: Random
) -> None:
    monkeypatch.setattr(drafts_module, "PIECES_MAX", 2)
    data, file = noise.randbytes(3 * MIB), version(3 * MIB)
    async with opened(tmp_path) as (store, drafts):
        with draft_of(tmp_path, data) as token:
            assert not await drafts.adopt(drafts.path(token), file, digests_of(data), owned)
        assert not await store.holds(file, 0)


async def test_an_empty_file_has_no_blocks_to_adopt(tmp_path: Path) -> None:
    file = version(0)
    async with opened(tmp_path) as (store, drafts):
        with draft_of(tmp_path, b"") as token:
            await drafts.adopt(drafts.path(token), file, Digests(), owned)
        assert (store.used_bytes, store.block_count) == (0, 0)
