"""What a node must not forget is there after a crash, and pinned blocks stay."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import UUID

import pytest
from crc32c import crc32c

from mesh.blocks import MIB, FileVersion, version_of
from mesh.errors import StoreFull
from mesh.store.eviction import Rank
from mesh.store.journal import claim
from mesh.store.store import PINS_IN_THE_WAY_S, BlockStore, StoreSettings, open_store
from mesh.testing.clock import ManualClock


class Crash(Exception):
    pass


@asynccontextmanager
async def store_in(
    directory: Path, *, capacity_bytes: int = 64 * MIB, clock: ManualClock | None = None
) -> AsyncIterator[BlockStore]:
    told = StoreSettings(directory=directory, capacity_bytes=capacity_bytes, free_space_ratio=0.0)
    opened = open_store(told, cluster="c", peer_id=UUID(int=1), clock=clock or ManualClock())
    async with opened as store:
        yield store


def file_of(number: int) -> FileVersion:
    return version_of(source="s3://b", path=f"d/{number}", size_bytes=MIB, tag="t", block_bytes=MIB)


async def put(store: BlockStore, number: int) -> None:
    data = bytes([number]) * MIB
    async with store.writing(file_of(number), 0) as writer:
        await writer.write(0, data, crc32c(data))
        await writer.commit(rank=Rank.OWNED)


async def kept(store: BlockStore) -> set[int]:
    return {number for number in range(16) if await store.holds(file_of(number), 0)}


async def test_notes_are_there_after_a_crash_by_table_and_in_order(tmp_path: Path) -> None:
    with pytest.raises(Crash):
        async with store_in(tmp_path / "s") as store:
            await store.jobs.put({b"2": b"two", b"1": b"one", b"3": b"three"})
            await store.pins.put({b"2": b"a pin"})
            await store.jobs.put({b"3": None, b"1": b"uno"})
            raise Crash
    async with store_in(tmp_path / "s") as store:
        assert list((await store.jobs.all()).items()) == [(b"1", b"uno"), (b"2", b"two")]
        assert await store.pins.all() == {b"2": b"a pin"}


async def test_the_directory_of_an_older_mesh_gets_its_tables(tmp_path: Path) -> None:
    claim(tmp_path / "s", cluster="c", peer_id=UUID(int=1)).release()
    async with store_in(tmp_path / "s") as store:
        assert await store.jobs.all() == {}
        assert store.run == 2


async def test_pinned_blocks_stay_and_the_others_go_oldest_first(tmp_path: Path) -> None:
    async with store_in(tmp_path / "s", capacity_bytes=10 * MIB) as store:
        store.is_pinned = lambda about: about.path in ("d/0", "d/3")
        for number in range(8):
            await put(store, number)
        store._settings = StoreSettings(
            directory=tmp_path / "s", capacity_bytes=5 * MIB, free_space_ratio=0.0
        )
        await store.evict()
        left = await kept(store)
        assert {0, 3} <= left
        assert len(left) == 4


async def test_when_pins_are_in_the_way_it_is_full_and_says_so_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = ManualClock()
    async with store_in(tmp_path / "s", capacity_bytes=4 * MIB, clock=clock) as store:
        store.is_pinned = lambda about: True
        for number in range(4):
            await put(store, number)
        for number in range(4, 8):
            with pytest.raises(StoreFull):
                await put(store, number)
        assert await kept(store) == {0, 1, 2, 3}
        assert capsys.readouterr().out.count("pins leave too little to evict") == 1
        store.is_pinned = lambda about: False
        with pytest.raises(StoreFull):
            await put(store, 4)  # it was looked at a moment ago
        clock.advance(PINS_IN_THE_WAY_S)
        await put(store, 4)
        assert 4 in await kept(store)


async def test_what_is_put_later_is_written_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Threads may overtake each other; what two tasks say of one key may not."""
    async with store_in(tmp_path / "s") as store:
        put, second = store.jobs._put, threading.Event()

        def slow(values: Mapping[bytes, bytes | None]) -> None:
            if values == {b"1": b"first"}:
                second.wait(0.2)  # for as long as it takes to be overtaken
            put(values)
            second.set()

        monkeypatch.setattr(store.jobs, "_put", slow)
        await asyncio.gather(store.jobs.put({b"1": b"first"}), store.jobs.put({b"1": None}))
        assert await store.jobs.all() == {}
