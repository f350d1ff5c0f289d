"""Records come back as they were put, and what is committed is synced in time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import lmdb
import pytest
from crc32c import crc32c
from hypothesis import given
from hypothesis import strategies as st

from mesh.blocks import KIB, MIB, PIECE_BYTES, piece_count
from mesh.store.index import (
    _BLOCK,
    GRAIN_BYTES,
    SYNC_EVERY_S,
    BlockRecord,
    Writer,
    grain_crcs,
    open_index,
)
from mesh.testing.clock import ManualClock

u64 = st.integers(0, 2**64 - 1)


@given(st.integers(1, 9 * MIB), st.integers(0, 255), u64, u64, st.booleans())
def test_a_record_is_what_was_put(
    length_bytes: int, flags: int, stamp: int, inode: int, has_grains: bool
) -> None:
    crcs = tuple(range(5, 5 + piece_count(length_bytes)))
    grains = b"grai" * -(-length_bytes // GRAIN_BYTES) if has_grains else b""
    record = BlockRecord(length_bytes, flags, stamp, inode, crcs, grains)
    assert BlockRecord.unpack(record.pack()) == record


def test_a_record_of_an_older_mesh_is_checked_by_its_pieces() -> None:
    old = _BLOCK.pack(MIB + 5, 1, 7, 8) + (111).to_bytes(4, "big") + (222).to_bytes(4, "big")
    record = BlockRecord.unpack(old)
    assert record == BlockRecord(MIB + 5, 1, 7, 8, (111, 222))
    assert (record.checked_bytes, record.crc(0), record.crc(1)) == (PIECE_BYTES, 111, 222)


@pytest.mark.parametrize("size_bytes", [1, 64 * KIB, 64 * KIB + 1, MIB - 1, MIB])
def test_each_grain_has_its_crc(size_bytes: int) -> None:
    data = bytes(n % 251 for n in range(size_bytes))
    record = BlockRecord(size_bytes, 0, 0, 0, (0,), grain_crcs(memoryview(data)))
    grains = [data[at : at + GRAIN_BYTES] for at in range(0, size_bytes, GRAIN_BYTES)]
    assert record.checked_bytes == GRAIN_BYTES
    assert [record.crc(n) for n in range(len(grains))] == [crc32c(grain) for grain in grains]
    assert len(record.grains) == 4 * len(grains)


class CountedEnv:
    """As much of an LMDB environment as a `Writer` needs; notes when it is synced."""

    def __init__(self, clock: ManualClock) -> None:
        self._clock = clock
        self.synced_s: list[float] = []
        self.synced = threading.Event()
        self.commits = 0
        self.fails = 0

    @contextmanager
    def begin(self, *, write: bool) -> Iterator[None]:
        assert write
        yield
        self.commits += 1

    def sync(self, force: bool) -> None:
        assert force
        if self.fails:
            self.fails -= 1
            raise lmdb.Error("Input/output error")
        self.synced_s.append(self._clock())
        self.synced.set()


class Writing:
    """A writer on a clock that each operation moves on."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.env = CountedEnv(self.clock)
        env: Any = self.env
        self.writer = Writer(env, clock=self.clock)

    def work(self, times: int, *, each_s: float) -> None:
        """Submit operations one by one, so that each is a commit of its own."""
        for _ in range(times):
            self.writer.submit(lambda txn: self.clock.advance(each_s)).result(timeout=10)

    def settle(self) -> None:
        """Return when the thread has done all that follows the last commit."""
        self.writer.submit(lambda txn: None).result(timeout=10)


def test_it_is_synced_under_steady_load_and_no_more_often_than_it_must() -> None:
    writing = Writing()
    began_s = writing.clock()
    writing.work(100, each_s=0.3)
    writing.settle()
    took_s = writing.clock() - began_s
    moments = [began_s, *writing.env.synced_s]
    gaps_s = [after - before for before, after in pairwise(moments)]
    assert all(SYNC_EVERY_S <= gap_s <= SYNC_EVERY_S + 2 * 0.3 + 1e-6 for gap_s in gaps_s)
    assert took_s / (SYNC_EVERY_S + 2 * 0.3) - 1 <= len(gaps_s) <= took_s / SYNC_EVERY_S
    writing.writer.close()


def test_the_end_is_synced_and_an_idle_writer_never() -> None:
    writing = Writing()
    writing.writer.close()
    assert writing.env.synced_s == []
    writing = Writing()
    writing.work(2, each_s=0.1)
    assert writing.env.synced_s == []
    writing.writer.close()
    assert len(writing.env.synced_s) == 1


def test_it_is_synced_when_nothing_follows() -> None:
    writing = Writing()
    clock_of_walls = threading.Timer(0.05, lambda: writing.clock.advance(SYNC_EVERY_S))
    writing.work(1, each_s=0.0)
    clock_of_walls.start()
    assert writing.env.synced.wait(timeout=10)
    writing.writer.close()
    assert len(writing.env.synced_s) == 1
    clock_of_walls.join()


def test_a_disk_that_fails_to_sync_does_not_end_the_writer() -> None:
    writing = Writing()
    writing.env.fails = 1
    writing.work(5, each_s=0.6)
    assert writing.env.fails == 0
    writing.settle()
    assert writing.env.synced_s, "it is tried again"
    writing.writer.close()


def test_what_one_can_not_do_is_no_failure_of_the_others(tmp_path: Path) -> None:
    """All that waits is committed together; a record that can't be packed failed all of it."""
    index = open_index(tmp_path)
    writer = Writer(index.env)
    held, told = threading.Event(), threading.Event()

    def hold(_: object) -> None:
        told.set()
        assert held.wait(timeout=10)

    def put(key: bytes) -> Callable[[Any], object]:
        return lambda txn: txn.put(key, b"1")

    def fail(txn: Any) -> None:
        txn.put(b"half", b"1")
        raise ValueError("not packed")

    first = writer.submit(hold)
    assert told.wait(timeout=10)
    others = [writer.submit(put(b"a")), writer.submit(put(b"b"))]
    failed = writer.submit(fail)
    others.append(writer.submit(put(b"c")))
    held.set()
    first.result(timeout=10)
    with pytest.raises(ValueError, match="not packed"):
        failed.result(timeout=10)
    assert all(done.result(timeout=10) for done in others)
    with index.env.begin() as txn:
        assert [txn.get(key) for key in (b"a", b"b", b"c", b"half")] == [b"1", b"1", b"1", None]
    writer.close()
    index.env.close()
