"""A disk that is full ends no peer, and there is room to make room."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import lmdb
import pytest

from mesh.blocks import MIB
from mesh.errors import StoreFull
from mesh.store import spare as spare_module
from mesh.store import store as store_module
from mesh.store.eviction import Room
from mesh.store.index import Writer
from mesh.store.spare import SPARE_BYTES, Spare, is_disk_full
from mesh.store.store import BlockStore, StoreSettings, open_store

FULL = lmdb.DiskError("mdb_txn_commit: No space left on device")


@asynccontextmanager
async def opened(root: Path) -> AsyncIterator[BlockStore]:
    settings = StoreSettings(directory=root / "store", capacity_bytes=1 << 30)
    async with open_store(settings, cluster="test") as store:
        yield store


def test_room_is_taken_once_and_given_once(tmp_path: Path) -> None:
    spare = Spare(tmp_path)
    spare.take()
    spare.take()
    assert (tmp_path / "spare").stat().st_blocks * 512 >= SPARE_BYTES
    assert spare.give()
    assert not spare.give()
    assert list(tmp_path.iterdir()) == []


def test_room_is_not_taken_from_those_who_have_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spare_module, "TAKEN_FROM_BYTES", 1 << 62)
    Spare(tmp_path).take()
    assert list(tmp_path.iterdir()) == []


def test_what_lmdb_says_of_a_full_disk() -> None:
    assert is_disk_full(FULL)
    assert is_disk_full(lmdb.Error("mdb_txn_commit: Input/output error"))
    assert not is_disk_full(lmdb.CorruptedError("mdb_get: MDB_CORRUPTED"))
    assert not is_disk_full(OSError("Input/output error"))


async def test_the_tables_are_written_in_the_room_that_was_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    committed = Writer._committed
    spare = tmp_path / "store" / "spare"

    def full_with_spare(self: Writer, batch: Any) -> list[Any]:
        if spare.exists():
            raise FULL
        return committed(self, batch)

    async with opened(tmp_path) as store:
        assert spare.exists()
        monkeypatch.setattr(Writer, "_committed", full_with_spare)
        assert await store._write(lambda txn: "done") == "done"
        assert not spare.exists()


async def test_who_writes_into_a_full_table_is_told_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Writer, batch: Any) -> list[Any]:
        raise FULL

    async with opened(tmp_path) as store:
        with monkeypatch.context() as patch:
            patch.setattr(Writer, "_committed", full)
            with pytest.raises(StoreFull, match="No space left"):
                await store._write(lambda txn: None)
        assert await store._write(lambda txn: "again") == "again"


async def test_a_journal_that_is_full_says_so_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(values: object) -> None:
        raise FULL

    async with opened(tmp_path) as store:
        with monkeypatch.context() as patch:
            patch.setattr(store.jobs, "_put", full)
            with pytest.raises(StoreFull, match="journal: mdb_txn_commit"):
                await store.jobs.put({b"k": b"v"})
        await store.jobs.put({b"k": b"v"})
        assert await store.jobs.all() == {b"k": b"v"}


async def test_eviction_goes_on_after_a_full_disk_and_without_a_block_that_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others fill the disk: nothing here tells of that."""
    monkeypatch.setattr(store_module, "LOOK_EVERY_S", 0.05)
    full = Room(MIB, 2 * MIB, disk_free_bytes=0, disk_total_bytes=MIB, free_space_ratio=0.5)
    tries: list[str] = []
    evicted = asyncio.Event()

    async def evict() -> None:
        tries.append("full" if not tries else "done")
        if len(tries) == 1:
            raise StoreFull("index: full")
        evicted.set()

    async with opened(tmp_path) as store:
        monkeypatch.setattr(store, "room", lambda: full)
        monkeypatch.setattr(store, "evict", evict)
        keeping = asyncio.create_task(store.keep_room())
        try:
            async with asyncio.timeout(10):
                await evicted.wait()
        finally:
            keeping.cancel()
        assert tries[:2] == ["full", "done"]


async def test_a_store_is_opened_on_a_disk_that_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(tmp_path) as store:
        await store.jobs.put({b"k": b"v"})
    monkeypatch.setattr("mesh.store.journal.FREE_BYTES_MIN", 1 << 62)
    monkeypatch.setattr(spare_module, "TAKEN_FROM_BYTES", 1 << 62)
    async with opened(tmp_path) as store:
        assert await store.jobs.all() == {b"k": b"v"}
        assert not (tmp_path / "store" / "spare").exists()
