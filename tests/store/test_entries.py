"""The catalog's tables: small, ordered by name, and never half a listing."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.blocks import Attributes
from mesh.errors import StoreFull
from mesh.store import entry_store
from mesh.store.entries import (
    LATE_MS,
    Entries,
    EntryRecord,
    directory_key,
    is_same,
)
from mesh.store.entry_store import Changes, EntryStore
from mesh.store.index import Writer, open_index
from mesh.testing.clock import ManualClock

SOURCE = "s3://bucket"
HEX = "0123456789abcdef0123456789abcdef"

tags = st.one_of(
    st.just(""), st.just(HEX), st.just(HEX + "-12"), st.text(max_size=40), st.just(HEX.upper())
)
attributes = st.builds(
    Attributes,
    is_directory=st.booleans(),
    size_bytes=st.integers(0, 2**63 - 1),
    mtime_ns=st.integers(-(2**62), 2**62),
    tag=tags,
    mode=st.integers(0, 0o777),
)


@contextmanager
def opened(root: Path) -> Iterator[tuple[EntryStore, ManualClock]]:
    index = open_index(root)
    writer = Writer(index.env)
    clock = ManualClock()
    store = EntryStore(Entries(index.env, writable=True), writer, clock)
    try:
        yield store, clock
    finally:
        writer.close()
        index.env.close()


def file(size_bytes: int, tag: str = HEX) -> Attributes:
    return Attributes(is_directory=False, size_bytes=size_bytes, mtime_ns=10**18, tag=tag)


async def listed(
    store: EntryStore,
    path: str,
    names: list[str],
    *,
    asked_s: float = 1000.0,
    size: int = 1,
    is_sure: bool = True,
) -> Changes:
    scan = await store.begin_scan(SOURCE, path, asked_s)
    assert scan is not None
    page = [(name, file(size)) for name in names]
    changes = await store.add_page(scan, page, is_sure=is_sure)
    gone = await store.end_scan(scan)
    changes.add(gone.names)
    changes.is_all |= gone.is_all
    changes.is_listing |= gone.is_listing
    return changes


def shown(store: EntryStore, path: str, after: str = "", count: int = 100) -> list[str]:
    found, _ = store.tables.after(directory_key(SOURCE, path), after, count)
    return [name for name, _ in found]


@given(about=st.one_of(st.none(), attributes), asked=st.integers(-(2**50), 2**50))
def test_a_record_says_what_was_put(about: Attributes | None, asked: int) -> None:
    record = EntryRecord(about, asked, 7, 3)
    assert EntryRecord.unpack(record.pack()) == record


def test_a_record_is_small() -> None:
    """ETags of S3 are digests in hex: half their length is enough."""
    assert len(EntryRecord(file(1), 1, 1, 1).pack()) == 33 + 16
    local = Attributes(is_directory=False, size_bytes=1, mtime_ns=10**18, tag=str(10**18))
    assert len(EntryRecord(local, 1, 1, 1).pack()) == 33


async def test_what_another_host_knew_before_this_one_was_booted_is_kept(tmp_path: Path) -> None:
    """Ages come from hosts that run for months, to one whose clock began a minute ago."""
    with opened(tmp_path) as (store, clock):
        store.note(SOURCE, "e", "noted", file(1), clock() - 1e9)
        scan = await store.begin_scan(SOURCE, "d", clock() - 1e9)
        assert scan is not None
        await store.add_page(scan, [("listed", file(2))])
        await store.end_scan(scan)
        await store.flushed()
        directory = directory_key(SOURCE, "d")
        assert store.tables.entry(directory, "listed") == (ANY, clock() - 1e9)
        assert store.tables.entry(directory_key(SOURCE, "e"), "noted") == (ANY, clock() - 1e9)
        assert store.listed_s(directory) == clock() - 1e9


async def test_an_entry_takes_at_most_250_bytes(tmp_path: Path) -> None:
    with opened(tmp_path) as (store, _):
        for directory in range(4):
            scan = await store.begin_scan(SOURCE, f"d{directory}", 1000.0)
            assert scan is not None
            for start in range(0, 5000, 1000):
                page = [(f"{n * 7919 % 5000:030}", file(n)) for n in range(start, start + 1000)]
                await store.add_page(scan, page)
            await store.end_scan(scan)
        count, size_bytes = store.tables.usage()
        assert count == 20_000
        assert size_bytes / count < 250


async def test_nothing_shows_before_a_scan_is_whole_and_nothing_of_one_that_failed(
    tmp_path: Path,
) -> None:
    with opened(tmp_path) as (store, _):
        directory = directory_key(SOURCE, "d")
        scan = await store.begin_scan(SOURCE, "d", 1000.0)
        assert scan is not None
        await store.add_page(scan, [("a", file(1))])
        assert store.listed_s(directory) is None
        await listed(store, "d", ["b", "c"])
        assert store.listed_s(directory) == 1000.0
        assert shown(store, "d") == ["b", "c"]


async def test_a_listing_is_gone_on_with_after_any_name(tmp_path: Path) -> None:
    names = [f"{n:04}" for n in range(3000)]
    with opened(tmp_path) as (store, _):
        await listed(store, "d", names)
        await listed(store, "d2", ["x"])
        got: list[str] = []
        while page := shown(store, "d", got[-1] if got else "", 7):
            got += page
        assert got == names
        assert shown(store, "d", "0999x", 2) == ["1000", "1001"]
        assert store.tables.after(directory_key(SOURCE, "d"), "2998", 5) == (
            [("2999", file(1))],
            True,
        )


async def test_a_scan_says_what_has_changed(tmp_path: Path) -> None:
    with opened(tmp_path) as (store, _):
        first = await listed(store, "d", ["a", "b", "c"])
        assert not first
        same = await listed(store, "d", ["a", "b", "c"], asked_s=1001.0)
        assert not same
        gone = await listed(store, "d", ["a", "c"], asked_s=1002.0)
        assert (gone.names, gone.is_listing) == (["b"], True)
        came = await listed(store, "d", ["a", "c", "d"], asked_s=1003.0)
        assert (came.names, came.is_listing) == ([], True)
        grown = await listed(store, "d", ["a", "c", "d"], asked_s=1004.0, size=2)
        assert (grown.names, grown.is_listing) == (["a", "c", "d"], False)
        many = [f"{n}" for n in range(500)]
        await listed(store, "d", many, asked_s=1005.0)
        all_of_them = await listed(store, "d", many, asked_s=1006.0, size=3)
        assert (all_of_them.names, all_of_them.is_all) == ([], True)


async def test_a_late_page_does_not_take_back_what_was_seen_since(tmp_path: Path) -> None:
    """A scan began, then a name was looked up: the look-up knows better."""
    with opened(tmp_path) as (store, clock):
        scan = await store.begin_scan(SOURCE, "d", clock())
        assert scan is not None
        clock.advance(1)
        store.note(SOURCE, "d", "new", file(5), clock())
        store.note(SOURCE, "d", "gone", None, clock())
        await store.flushed()
        await store.add_page(scan, [("gone", file(1)), ("new", file(1)), ("other", file(1))])
        await store.end_scan(scan)
        found, _ = store.tables.after(directory_key(SOURCE, "d"), "", 10)
        assert [(name, about.size_bytes) for name, about in found] == [("new", 5), ("other", 1)]


async def test_what_is_noted_can_be_read_at_once_and_is_committed_soon(tmp_path: Path) -> None:
    with opened(tmp_path) as (store, _):
        directory = directory_key(SOURCE, "d")
        assert not store.note(SOURCE, "d", "a", file(1), 1000.0)
        assert store.look(directory, "a")[0] is not None
        while store.tables.entry(directory, "a")[0] is None:
            await asyncio.sleep(0.001)
        changes = store.note(SOURCE, "d", "a", file(2), 1001.0)
        assert (changes.names, changes.is_listing) == (["a"], False)
        changes = store.note(SOURCE, "d", "a", None, 1002.0)
        assert (changes.names, changes.is_listing) == (["a"], True)


@pytest.mark.parametrize(
    "changes", [Changes(["a"]), Changes(is_all=True), Changes(["a"], is_listing=True)]
)
async def test_what_is_doubted_is_not_fresh_until_it_is_asked_again(
    tmp_path: Path, changes: Changes
) -> None:
    with opened(tmp_path) as (store, clock):
        directory = directory_key(SOURCE, "d")
        await listed(store, "d", ["a", "b"], asked_s=clock())
        store.note(SOURCE, "d", "a", file(1), clock())  # not committed yet
        await store.doubt(directory, changes)
        assert store.look(directory, "a")[1] == float("-inf")
        assert store.listed_s(directory) == float("-inf")
        assert (store.look(directory, "b")[1] == float("-inf")) is changes.is_all
        clock.advance(0.01)
        store.note(SOURCE, "d", "a", file(2), clock())
        await listed(store, "d", ["a", "b"], asked_s=clock())
        assert store.look(directory, "a")[1] == pytest.approx(clock(), abs=0.001)
        assert store.listed_s(directory) == pytest.approx(clock(), abs=0.001)


async def test_a_directory_that_is_forgotten_leaves_nothing(tmp_path: Path) -> None:
    with opened(tmp_path) as (store, _):
        await listed(store, "d", [f"{n}" for n in range(5000)])
        await listed(store, "e", ["x"])
        await store.forget(directory_key(SOURCE, "d"))
        assert store.listed_s(directory_key(SOURCE, "d")) is None
        assert store.tables.usage()[0] == 1
        assert shown(store, "e") == ["x"]


async def test_another_process_reads_what_is_committed_however_much_it_grew(
    tmp_path: Path,
) -> None:
    """A mount has the tables open from the beginning on: 10 MiB were the end of its map."""
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from mesh.store.entries import Entries, directory_key\n"
        "from mesh.store.index import read_index\n"
        "tables = Entries(read_index(Path(sys.argv[1])).env, writable=False)\n"
        "print(tables.usage()[0], flush=True)\n"
        "sys.stdin.readline()\n"
        "found, _ = tables.after(directory_key('s3://bucket', 'd'), '', 10**6)\n"
        "print(len(found))\n"
    )
    with opened(tmp_path) as (store, _):
        command = [sys.executable, "-c", code, str(tmp_path)]
        with subprocess.Popen(  # noqa: ASYNC220
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as reader:
            assert reader.stdout is not None
            assert reader.stdout.readline() == "0\n"
            await listed(store, "d", [f"{n:0100}" for n in range(100_000)])
            told, _ = reader.communicate("\n", timeout=60)
        assert told == "100000\n"


def test_directories_of_two_sources_are_two() -> None:
    assert directory_key("s3://a", "b") != directory_key("s3://a/b", "")
    assert directory_key("s3://a", "b") == directory_key("s3://a", "b")


def test_what_counts_as_the_same() -> None:
    one = file(1)
    assert is_same(one, file(1))
    assert not is_same(one, file(2))
    assert not is_same(one, file(1, "other"))
    assert not is_same(one, None)
    assert is_same(None, None)
    # A listing that names no tags: size and second must do.
    assert is_same(one, file(1, ""))
    directory = Attributes(is_directory=True, size_bytes=0, mtime_ns=1)
    assert is_same(directory, Attributes(is_directory=True, size_bytes=0, mtime_ns=2))
    assert not is_same(directory, one)


async def test_what_was_heard_late_is_not_in_a_listing_that_began_after_it(tmp_path: Path) -> None:
    """A file was looked up and removed, then the directory scanned, then the copy came."""
    with opened(tmp_path) as (store, clock):
        looked_s = clock()
        clock.advance(5)
        await listed(store, "d", ["other"], asked_s=clock())
        store.note(SOURCE, "d", "gone", file(1), looked_s)
        await store.flushed()
        assert shown(store, "d") == ["other"]
        store.note(SOURCE, "d", "new", file(1), clock())
        await store.flushed()
        assert shown(store, "d") == ["new", "other"]


async def test_what_a_scan_shows_is_newer_than_what_was_noted_before_it(tmp_path: Path) -> None:
    """Within one millisecond: what is noted waits for its commit longer than a scan begins."""
    with opened(tmp_path) as (store, clock):
        store.note(SOURCE, "d", "a", file(1), clock())
        await listed(store, "d", ["a"], asked_s=clock(), size=2)
        await store.flushed()
        found, _ = store.tables.after(directory_key(SOURCE, "d"), "", 10)
        assert [(name, about.size_bytes) for name, about in found] == [("a", 2)]


async def test_a_late_copy_of_what_has_changed_is_no_news(tmp_path: Path) -> None:
    """The word of a change overtakes the copy of what was before."""
    with opened(tmp_path) as (store, clock):
        directory = directory_key(SOURCE, "d")
        store.note(SOURCE, "d", "a", file(1), clock() - 2)
        await store.flushed()
        await store.doubt(directory, Changes(["a"]))
        await store.doubt(directory, Changes(["b"]))  # which was not known here
        store.note(SOURCE, "d", "b", file(1), clock() - 1, is_sure=False)
        assert store.look(directory, "b")[1] == float("-inf")
        for late in (file(1), file(2)):
            store.note(SOURCE, "d", "a", late, clock() - 1, is_sure=False)
            await store.flushed()
            assert store.look(directory, "a")[1] == float("-inf")
        await listed(store, "d", ["a"], asked_s=clock() - 1, size=2, is_sure=False)
        assert store.look(directory, "a")[1] == float("-inf")
        store.note(SOURCE, "d", "a", file(3), clock() - 1)
        assert store.look(directory, "a")[1] == pytest.approx(clock() - 1)


@pytest.mark.parametrize("was", [None, file(7)])
async def test_a_scan_lists_what_it_saw_though_a_word_came_of_it_meanwhile(
    tmp_path: Path, was: Attributes | None
) -> None:
    """In the millisecond in which it began: it listed what was known before, or nothing, and
    said at each scan that this had changed."""
    with opened(tmp_path) as (store, clock):
        directory = directory_key(SOURCE, "d")
        store.note(SOURCE, "d", "a", was, clock() - 5)
        await store.flushed()
        await store.doubt(directory, Changes(["a"], is_listing=True))
        await listed(store, "d", ["a"], asked_s=clock(), size=2, is_sure=False)
        found, _ = store.tables.after(directory, "", 10)
        assert [(name, about.size_bytes) for name, about in found] == [("a", 2)]
        assert store.look(directory, "a")[1] == float("-inf")
        assert not await listed(store, "d", ["a"], asked_s=clock(), size=2, is_sure=False)
        await listed(store, "d", [], asked_s=clock(), is_sure=False)
        assert shown(store, "d") == []


async def test_an_older_scan_does_not_bring_back_what_is_gone_and_doubted(tmp_path: Path) -> None:
    with opened(tmp_path) as (store, clock):
        directory = directory_key(SOURCE, "d")
        store.note(SOURCE, "d", "a", None, clock())
        await store.flushed()
        await store.doubt(directory, Changes(["a"], is_listing=True))
        await listed(store, "d", ["a"], asked_s=clock() - 1, is_sure=False)
        assert shown(store, "d") == []


async def test_an_older_listing_does_not_make_a_word_that_came_since_forgotten(
    tmp_path: Path,
) -> None:
    """Or the copy of what was before the word, that is still on its way, would be believed."""
    with opened(tmp_path) as (store, clock):
        directory = directory_key(SOURCE, "d")
        store.note(SOURCE, "d", "gone", None, clock())
        await store.doubt(directory, Changes(["a"]))
        await listed(store, "d", ["b"], asked_s=clock() - 5)
        for late in ("a", "gone"):
            store.note(SOURCE, "d", late, file(1), clock() - 2, is_sure=False)
        await store.flushed()
        assert store.look(directory, "a")[1] == float("-inf")
        assert store.look(directory, "gone")[0] == EntryRecord(None, ANY, ANY, ANY)
        clock.advance(LATE_MS / 1000)
        await listed(store, "d", ["b"], asked_s=clock() + 1)
        assert store.look(directory, "a") == (None, float("-inf")), "and not kept for ever"


async def test_a_copy_of_an_older_listing_is_not_begun_beside_a_newer_one(tmp_path: Path) -> None:
    with opened(tmp_path) as (store, clock):
        scan = await store.begin_scan(SOURCE, "d", clock())
        assert scan is not None
        assert await store.begin_scan(SOURCE, "d", clock() - 1) is None
        await store.add_page(scan, [("new", file(1))])
        await store.end_scan(scan)
        assert shown(store, "d") == ["new"]


async def test_what_can_not_be_written_on_a_full_disk_is_known_and_written_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or else what was known before would be known again."""
    monkeypatch.setattr(entry_store, "AGAIN_S", 0.01)
    with opened(tmp_path) as (store, _):
        key = directory_key(SOURCE, "d")
        store.note(SOURCE, "d", "f", file(1), 1000.0)
        await store.flushed()
        put_all, is_full = store._put_all, True

        def put(txn: object, batch: dict[tuple[bytes, str], Any]) -> None:
            if is_full:
                raise StoreFull("index: no space left")
            put_all(txn, batch)

        monkeypatch.setattr(store, "_put_all", put)
        store.note(SOURCE, "d", "f", file(2), 1001.0)
        store.note(SOURCE, "d", "g", file(3), 1001.0)
        for _ in range(3):
            with suppress(StoreFull):  # what is committed together fails together
                await store.flushed()
            await asyncio.sleep(0.02)
            record, _ = store.look(key, "f")
            assert record is not None
            assert record.attributes == file(2)
        store.note(SOURCE, "d", "g", file(4), 1002.0)
        is_full = False
        async with asyncio.timeout(5.0):
            while store._noted or store._flushing:
                await asyncio.sleep(0.01)
        found = {name: store.tables.entry(key, name)[0] for name in "fg"}
        assert {name: r and r.attributes for name, r in found.items()} == {
            "f": file(2),
            "g": file(4),
        }
