"""What a path is: believed for so long as the mount says, and never when it was an error."""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NoReturn
from unittest.mock import ANY

import pytest

from mesh.blocks import DIRECTORY, DirectoryEntry
from mesh.errors import (
    NotADirectory,
    NotFound,
    PeerUnavailable,
    Refused,
    UnderStoreUnavailable,
)
from mesh.membership.view import Member, view_of
from mesh.metrics import Metrics, by_label
from mesh.peer.catalog import AWAY_S, Catalog
from mesh.peer.listings import BROUGHT_MAX, PAGE_ENTRIES
from mesh.peer.neighbors import RingNeighbors
from mesh.peer.shards import Shards
from mesh.store.entries import NEGATIVE_S, Entries, boot_digest, directory_key
from mesh.store.entry_store import EntryStore
from mesh.store.index import Writer, open_index
from mesh.testing.clock import ManualClock
from mesh.testing.memory import SOURCE, MemoryUnderStore
from mesh.understore.table import MountTable
from mesh.understore.understore import UnderStore, UnderStoreSettings
from mesh.wire.messages import ListRequest
from mesh.wire.pages import entries_of

MODEL = "datasets/model"
ME = Member("one", "127.0.0.1:1", id="one")


class Desk:
    """A catalog over under-stores in memory, and the time."""

    def __init__(
        self, catalog: Catalog, entries: EntryStore, clock: ManualClock, metrics: Metrics
    ) -> None:
        self.catalog = catalog
        self.entries = entries
        self.clock = clock
        self.metrics = metrics

    @property
    def answers(self) -> dict[str, int]:
        return by_label(self.metrics.catalog_requests, "answer")

    async def list_all(self, path: str) -> list[DirectoryEntry]:
        return [entry async for page in self.catalog.scan(path) for entry in page]

    async def names(self, path: str) -> list[str]:
        return [entry.name for entry in await self.list_all(path)]


@asynccontextmanager
async def desk(
    root: Path, stores: Mapping[str, UnderStore], *, max_age_s: float = 60.0
) -> AsyncIterator[Desk]:
    """Have one under-store at each path of the mesh, and tables in *root*."""
    mounts = {
        path: UnderStoreSettings(url=f"{SOURCE}{path}", max_age_s=max_age_s) for path in stores
    }
    table = MountTable(mounts, {f"{SOURCE}{path}": store for path, store in stores.items()})
    clock, metrics = ManualClock(), Metrics()
    index = open_index(root)
    writer = Writer(index.env)
    entries = EntryStore(Entries(index.env, writable=True), writer, clock)
    neighbors = RingNeighbors(view_of([ME]), ME.name, MemoryNetwork(), clock=clock)
    try:
        async with asyncio.TaskGroup() as tasks:
            shards = Shards(neighbors, tasks, metrics)
            catalog = Catalog(table, entries, shards, tasks, metrics, clock=clock)
            yield Desk(catalog, entries, clock, metrics)
    finally:
        entries.flush()
        writer.close()
        index.env.close()


class MemoryNetwork:
    """Nobody is there."""

    async def call(self, address: str, *_: object, **__: object) -> NoReturn:
        raise PeerUnavailable(address, "nobody is there")

    def pieces(self, address: str, *_: object) -> NoReturn:
        raise PeerUnavailable(address, "nobody is there")


def origin(**files: bytes) -> MemoryUnderStore:
    return MemoryUnderStore(files or {MODEL: b"1234"})


# Look-ups


@pytest.mark.parametrize(
    ("max_age_s", "after_s", "asked"),
    [(60.0, 59.9, 1), (60.0, 60.0, 2), (0.0, 0.0, 2), (math.inf, 1e9, 1)],
)
async def test_an_answer_is_believed_for_max_age(
    tmp_path: Path, max_age_s: float, after_s: float, asked: int
) -> None:
    store = origin()
    async with desk(tmp_path, {"/": store}, max_age_s=max_age_s) as d:
        first = await d.catalog.stat(MODEL)
        d.clock.advance(after_s)
        second = await d.catalog.stat(MODEL)
        assert first.file == second.file
        assert first.attributes.size_bytes == 4
        assert store.stats == asked
        assert d.answers == {"asked": asked} | ({"cached": 1} if asked == 1 else {})


async def test_a_change_is_seen_when_max_age_is_over(tmp_path: Path) -> None:
    store = origin()
    async with desk(tmp_path, {"/": store}) as d:
        before = await d.catalog.stat(MODEL)
        store.write(MODEL, b"12345")
        assert await d.catalog.stat(MODEL) == before
        d.clock.advance(60)
        after = await d.catalog.stat(MODEL)
        assert after.attributes.size_bytes == 5
        assert before.file is not None
        assert after.file is not None
        assert before.file.id != after.file.id


async def test_fresh_s_counts_down(tmp_path: Path) -> None:
    """The kernel of each host believes an answer only as long as the peer still does."""
    async with desk(tmp_path, {"/": origin()}) as d:
        assert (await d.catalog.stat(MODEL)).fresh_s == 60
        d.clock.advance(59)
        assert (await d.catalog.stat(MODEL)).fresh_s == 1
        d.clock.advance(1)
        assert (await d.catalog.stat(MODEL)).fresh_s == 60


async def test_refresh_asks_whatever_is_known_and_everybody_gains(tmp_path: Path) -> None:
    store = origin()
    async with desk(tmp_path, {"/": store}) as d:
        await d.catalog.stat(MODEL)
        store.write(MODEL, b"12345")
        fresh = await d.catalog.stat(MODEL, refresh=True)
        assert fresh.attributes.size_bytes == 5
        assert await d.catalog.stat(MODEL) == fresh
        assert store.stats == 2


@pytest.mark.parametrize("way", ["/datasets//model", "datasets/model/", "//datasets/model"])
async def test_a_path_is_the_same_however_it_is_written(tmp_path: Path, way: str) -> None:
    store = origin()
    async with desk(tmp_path, {"/": store}) as d:
        assert (await d.catalog.stat(way)).file == (await d.catalog.stat(MODEL)).file
        assert store.stats == 1


@pytest.mark.parametrize("max_age_s", [60.0, math.inf])
async def test_that_a_path_is_nothing_is_believed_for_a_moment(
    tmp_path: Path, max_age_s: float
) -> None:
    store = origin()
    async with desk(tmp_path, {"/": store}, max_age_s=max_age_s) as d:
        for _ in range(10):
            with pytest.raises(NotFound):
                await d.catalog.stat("new")
        assert store.stats == 1
        store.write("new", b"")
        d.clock.advance(NEGATIVE_S)
        assert (await d.catalog.stat("new")).attributes.size_bytes == 0


async def test_with_max_age_0_nothing_is_believed_to_be_nothing(tmp_path: Path) -> None:
    store = origin()
    async with desk(tmp_path, {"/": store}, max_age_s=0.0) as d:
        with pytest.raises(NotFound):
            await d.catalog.stat("new")
        store.write("new", b"")
        assert (await d.catalog.stat("new")).file is not None


async def test_a_file_that_was_removed_is_gone_and_not_stale(tmp_path: Path) -> None:
    store = origin()
    async with desk(tmp_path, {"/": store}) as d:
        await d.catalog.stat(MODEL)
        store.remove(MODEL)
        with pytest.raises(NotFound):
            await d.catalog.stat(MODEL, refresh=True)
        with pytest.raises(NotFound):
            await d.catalog.stat(MODEL)


@pytest.mark.parametrize("error", [UnderStoreUnavailable("away"), Refused("no")])
async def test_an_error_is_never_kept(
    tmp_path: Path, error: UnderStoreUnavailable | Refused
) -> None:
    store = origin()
    async with desk(tmp_path, {"/": store}, max_age_s=math.inf) as d:
        store.error = error
        with pytest.raises(type(error)):
            await d.catalog.stat(MODEL)
        store.come_back()
        assert (await d.catalog.stat(MODEL)).attributes.size_bytes == 4


async def test_a_hundred_that_ask_at_once_are_one_question(tmp_path: Path) -> None:
    store = origin()
    async with desk(tmp_path, {"/": store}) as d:
        replies = await asyncio.gather(*(d.catalog.stat(MODEL) for _ in range(100)))
        assert store.stats == 1
        assert all(reply == replies[0] for reply in replies)


async def test_a_hundred_that_ask_at_once_share_an_error_too(tmp_path: Path) -> None:
    store = origin()
    async with desk(tmp_path, {"/": store}) as d:
        store.go_away()
        replies = await asyncio.gather(
            *(d.catalog.stat(MODEL) for _ in range(100)), return_exceptions=True
        )
        assert store.stats == 1
        assert {type(reply) for reply in replies} == {UnderStoreUnavailable}


async def test_one_who_gives_up_takes_the_answer_from_nobody(tmp_path: Path) -> None:
    store = origin()
    async with desk(tmp_path, {"/": store}) as d:
        first = asyncio.create_task(d.catalog.stat(MODEL))
        second = asyncio.create_task(d.catalog.stat(MODEL))
        await asyncio.sleep(0)
        first.cancel()
        assert (await second).attributes.size_bytes == 4
        assert store.stats == 1


async def test_while_the_under_store_is_away_the_last_answer_is_marked_stale(
    tmp_path: Path,
) -> None:
    store = origin()
    async with desk(tmp_path, {"/": store}) as d:
        known = await d.catalog.stat(MODEL)
        store.go_away()
        d.clock.advance(3600)
        stale = await d.catalog.stat(MODEL)
        assert (stale.file, stale.is_stale, stale.fresh_s) == (known.file, True, 0)
        assert d.answers["stale"] == 1
        store.come_back()
        d.clock.advance(AWAY_S)
        fresh = await d.catalog.stat(MODEL)
        assert (fresh.is_stale, fresh.fresh_s) == (False, 60)


async def test_what_was_nothing_is_not_said_to_be_nothing_while_nobody_knows(
    tmp_path: Path,
) -> None:
    store = origin()
    async with desk(tmp_path, {"/": store}) as d:
        with pytest.raises(NotFound):
            await d.catalog.stat("new")
        store.go_away()
        d.clock.advance(NEGATIVE_S)
        with pytest.raises(UnderStoreUnavailable):
            await d.catalog.stat("new")


# Listings


def many(count: int) -> MemoryUnderStore:
    return MemoryUnderStore({f"big/{number:04}": bytes(number % 3) for number in range(count)})


async def test_a_big_directory_comes_in_pages_of_one_listing(tmp_path: Path) -> None:
    store = many(2500)
    async with desk(tmp_path, {"/": store}) as d:
        first = await d.catalog.page("big")
        assert (len(entries_of(first.page)), first.is_last) == (PAGE_ENTRIES, False)
        entries = await d.list_all("/big/")
        assert [entry.name for entry in entries] == [f"{number:04}" for number in range(2500)]
        assert [entry.attributes.size_bytes for entry in entries[:4]] == [0, 1, 2, 0]
        middle = await d.catalog.page("big", "1499")
        assert [e.name for e in entries_of(middle.page)] == [f"{n:04}" for n in range(1500, 2500)]
        after = await d.catalog.page("big", "2499")
        assert (entries_of(after.page), after.is_last) == ((), True)
        assert store.listings == 1


async def test_names_that_are_not_utf8_survive(tmp_path: Path) -> None:
    store = origin(**{"caf\udce9": b"", "ü": b""})
    async with desk(tmp_path, {"/": store}) as d:
        assert set(await d.names("")) == {"caf\udce9", "ü"}


async def test_an_empty_directory_has_one_empty_page(tmp_path: Path) -> None:
    store = MemoryUnderStore()
    async with desk(tmp_path, {"/": store}) as d:
        assert await d.catalog.page("") == await d.catalog.page("")
        assert await d.list_all("") == []


async def test_those_who_begin_together_share_a_listing(tmp_path: Path) -> None:
    store = many(2500)
    async with desk(tmp_path, {"/": store}) as d:
        pages = await asyncio.gather(*(d.catalog.page("big") for _ in range(50)))
        assert {page.page for page in pages} == {pages[0].page}
        assert store.listings == 1


@pytest.mark.parametrize(("max_age_s", "after_s"), [(60.0, 60.0), (0.0, 0.0)])
async def test_what_came_and_what_went_is_seen_when_max_age_is_over(
    tmp_path: Path, max_age_s: float, after_s: float
) -> None:
    store = many(3)
    async with desk(tmp_path, {"/": store}, max_age_s=max_age_s) as d:
        assert await d.names("big") == ["0000", "0001", "0002"]
        store.write("big/new", b"")
        store.remove("big/0001")
        if after_s:
            d.clock.advance(after_s / 2)
            assert await d.names("big") == ["0000", "0001", "0002"]
        d.clock.advance(after_s / 2)
        assert await d.names("big") == ["0000", "0002", "new"]


async def test_a_name_that_was_looked_up_is_listed_as_it_was_found(tmp_path: Path) -> None:
    """A look-up knows it better than a listing that is older."""
    store = many(3)
    async with desk(tmp_path, {"/": store}) as d:
        await d.names("big")
        store.write("big/0001", b"12345")
        store.write("big/new", b"1")
        store.remove("big/0002")
        d.clock.advance(1)
        for name in ("0001", "new"):
            await d.catalog.stat(f"big/{name}", refresh=True)
        with pytest.raises(NotFound):
            await d.catalog.stat("big/0002", refresh=True)
        listed = {e.name: e.attributes.size_bytes for e in await d.list_all("big")}
        assert listed == {"0000": 0, "0001": 5, "new": 1}
        assert store.listings == 1


async def test_a_listing_answers_the_look_ups_after_it(tmp_path: Path) -> None:
    store = many(100)
    async with desk(tmp_path, {"/": store}) as d:
        await d.names("big")
        for number in range(100):
            found = await d.catalog.stat(f"big/{number:04}")
            assert found.attributes.size_bytes == number % 3
        assert store.stats == 0


async def test_look_ups_one_after_the_other_bring_the_listing(tmp_path: Path) -> None:
    store = many(1000)
    async with desk(tmp_path, {"/": store}) as d:
        for number in range(8):
            await d.catalog.stat(f"big/{number:04}")
        while d.entries.listed_s(directory_key(f"{SOURCE}/", "big")) is None:
            await asyncio.sleep(0.01)
        for number in range(1000):
            await d.catalog.stat(f"big/{number:04}")
        assert store.listings == 1
        assert 1 <= store.stats <= 8  # as many as were looked up before the listing was here


class Paged(MemoryUnderStore):
    """Says how far a scan of it came."""

    pages = 0
    is_over = False

    async def scan(self, path: str) -> AsyncIterator[list[DirectoryEntry]]:
        try:
            async for page in super().scan(path):
                self.pages += 1
                yield page
        finally:
            self.is_over = True


async def test_a_listing_that_nobody_asked_for_is_given_up_when_it_is_long(tmp_path: Path) -> None:
    store = Paged(many(BROUGHT_MAX + 2000).files)
    async with desk(tmp_path, {"/": store}) as d:
        for number in range(8):
            await d.catalog.stat(f"big/{number:04}")
        while not store.is_over:
            await asyncio.sleep(0.01)
        assert store.pages == BROUGHT_MAX // 1000 + 1
        assert len(await d.names("big")) == BROUGHT_MAX + 2000


async def test_a_reader_goes_on_in_an_old_listing(tmp_path: Path) -> None:
    """Whoever takes an hour over a listing goes on after the name that he had."""
    store = many(2500)
    async with desk(tmp_path, {"/": store}) as d:
        first = entries_of((await d.catalog.page("big")).page)
        store.remove("big/0000")
        d.clock.advance(3600)
        second = await d.catalog.page("big", first[-1].name)
        assert entries_of(second.page)[0].name == "1000"
        assert store.listings == 1


async def test_a_page_is_as_old_as_it_was_when_it_was_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A listing that is made anew while an older page is read does not make that any newer:
    who copied it believed what was gone for twice `max_age`."""
    store = origin(**{MODEL: b"1234"})
    async with desk(tmp_path, {"/": store}) as d:
        await d.list_all("datasets")
        d.clock.advance(50)
        store.write(MODEL, b"123456")
        read, go_on = threading.Event(), threading.Event()
        after = d.entries.tables.after

        def held(directory: bytes, name: str, count: int) -> Any:
            page = after(directory, name, count)
            if not read.is_set():
                read.set()
                assert go_on.wait(timeout=10)
            return page

        monkeypatch.setattr(d.entries.tables, "after", held)
        copied = ListRequest("datasets", asker="two", is_copy=True)
        copying = asyncio.create_task(d.catalog.list_directory(copied))
        await asyncio.to_thread(read.wait, 10)
        await d.catalog.refresh("datasets", is_recursive=False)
        go_on.set()
        reply = await copying
        size_bytes = entries_of(reply.page)[0].attributes.size_bytes
        assert (size_bytes, reply.age_s) == (4, pytest.approx(50, abs=0.01))


class HalfWay(MemoryUnderStore):
    """Goes away after the first page, while `breaks` is set."""

    breaks = True

    async def scan(self, path: str) -> AsyncIterator[list[DirectoryEntry]]:
        async for page in super().scan(path):
            yield page
            if self.breaks:
                raise UnderStoreUnavailable("switched off by the test half-way")


async def test_a_listing_that_fails_half_way_raises_and_is_not_kept(tmp_path: Path) -> None:
    store = HalfWay(many(2500).files)
    async with desk(tmp_path, {"/": store}) as d:
        with pytest.raises(UnderStoreUnavailable):
            await d.list_all("big")
        store.breaks = False
        assert len(await d.list_all("big")) == 2500


async def test_while_the_under_store_is_away_the_last_listing_is_marked_stale(
    tmp_path: Path,
) -> None:
    store = many(3)
    async with desk(tmp_path, {"/": store}) as d:
        await d.names("big")
        store.go_away()
        d.clock.advance(3600)
        stale = await d.catalog.page("big")
        assert (len(entries_of(stale.page)), stale.is_stale, stale.fresh_s) == (3, True, 0)
        store.come_back()
        assert not (await d.catalog.page("big")).is_stale


class Gated(MemoryUnderStore):
    """Lists when the test lets it."""

    async def scan(self, path: str) -> AsyncIterator[list[DirectoryEntry]]:
        async for page in super().scan(path):
            await self.gate.wait()
            yield page


@pytest.mark.parametrize("refresh", [False, True])
async def test_who_waits_for_a_long_listing_waits_for_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refresh: bool
) -> None:
    """max_age 0 and a refresh want one that began after they asked, and no more than that."""
    monkeypatch.setattr("mesh.peer.listings.PENDING_S", 0.01)
    store = Gated(many(3).files)
    async with desk(tmp_path, {"/": store}, max_age_s=60.0 if refresh else 0.0) as d:
        store.gate.clear()
        assert (await d.catalog.page("big", refresh=refresh)).is_pending
        d.clock.advance(5)
        assert (await d.catalog.page("big", refresh=refresh, waited_s=5.0)).is_pending
        store.gate.set()
        d.clock.advance(5)
        reply = await d.catalog.page("big", refresh=refresh, waited_s=10.0)
        assert len(entries_of(reply.page)) == 3
        assert store.listings == 1


async def test_a_directory_that_was_removed_has_no_listing(tmp_path: Path) -> None:
    store = many(3)
    async with desk(tmp_path, {"/": store}) as d:
        await d.names("big")
        store.files.clear()
        d.clock.advance(60)
        with pytest.raises(NotFound):
            await d.names("big")
        store.go_away()
        with pytest.raises(UnderStoreUnavailable):
            await d.names("big")


async def test_what_is_known_survives_a_restart_of_the_peer(tmp_path: Path) -> None:
    store = many(2500)
    async with desk(tmp_path, {"/": store}) as d:
        before = await d.list_all("big")
        await d.catalog.stat("big")
    async with desk(tmp_path, {"/": store}) as d:
        assert await d.list_all("big") == before
        await d.catalog.stat("big")
        assert (store.listings, store.stats) == (1, 1)


async def test_after_a_boot_of_the_host_it_is_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock began anew: nobody knows how old it is. But it is there if all else fails."""
    store = many(3)
    async with desk(tmp_path, {"/": store}) as d:
        await d.names("big")
    boot = tmp_path / "boot_id"
    boot.write_text("another one")
    monkeypatch.setattr("mesh.store.entries.BOOT_ID", boot)
    boot_digest.cache_clear()
    try:
        async with desk(tmp_path, {"/": store}) as d:
            store.go_away()
            assert (await d.catalog.page("big")).is_stale
            assert (await d.catalog.stat("big/0001")).is_stale
            store.come_back()
            assert not (await d.catalog.page("big")).is_stale
            assert store.listings == 3
    finally:
        boot_digest.cache_clear()


async def test_a_file_is_listed_as_itself_and_has_no_listing(tmp_path: Path) -> None:
    async with desk(tmp_path, {"/": origin()}) as d:
        (entry,) = await d.list_all("datasets")
        assert entry == DirectoryEntry("model", ANY)
        assert entry.attributes == (await d.catalog.stat(MODEL)).attributes
        with pytest.raises(NotADirectory):
            await d.list_all(MODEL)


async def test_a_listing_of_nothing_is_not_found(tmp_path: Path) -> None:
    store = origin()
    async with desk(tmp_path, {"/": store}) as d:
        with pytest.raises(NotFound):
            await d.list_all("nothing")
        store.write("nothing/file", b"")
        assert await d.names("nothing") == ["file"]


async def test_a_bug_in_a_listing_ends_no_peer(tmp_path: Path) -> None:
    """A full disk under the spool is no MeshError either."""

    class Broken(MemoryUnderStore):
        async def scan(self, path: str) -> AsyncIterator[list[DirectoryEntry]]:
            yield []
            raise OSError("no space left on device")

    async with desk(tmp_path, {"/": Broken({"f": b"1"})}) as d:
        with pytest.raises(Exception):  # noqa: B017, PT011  # whatever: but it comes
            await d.list_all("")
        assert (await d.catalog.stat("f")).file is not None


# Several mounts


async def test_the_deepest_mount_has_a_path(tmp_path: Path) -> None:
    root = origin(**{MODEL: b"root", "datasets/x/hidden": b"hidden", "datasets/y": b""})
    inner = origin(**{"a/b": b"inner"})
    async with desk(tmp_path, {"/": root, "/datasets/x": inner}) as d:
        found = await d.catalog.stat("datasets/x/a/b")
        assert found.file is not None
        assert (found.file.source, found.file.path) == (f"{SOURCE}/datasets/x", "a/b")
        with pytest.raises(NotFound):
            await d.catalog.stat("datasets/x/hidden")
        assert sorted(await d.names("datasets")) == ["model", "x", "y"]
        assert await d.names("datasets/x") == ["a"]
        assert await d.names("/") == ["datasets"]


async def test_a_mount_is_seen_where_its_parent_has_nothing(tmp_path: Path) -> None:
    """An empty bucket at / and another under /datasets/x: /datasets is a directory."""
    async with desk(tmp_path, {"/": origin(other=b""), "/datasets/x": origin()}) as d:
        assert (await d.catalog.stat("datasets")).attributes.is_directory
        assert sorted(await d.names("")) == ["datasets", "other"]
        assert await d.names("datasets") == ["x"]
        with pytest.raises(NotFound):
            await d.catalog.stat("datasets/z")


async def test_directories_between_mounts(tmp_path: Path) -> None:
    store = origin()
    async with desk(tmp_path, {"/a/b": store}) as d:
        for path, name in (("", "a"), ("a", "b")):
            assert (await d.catalog.stat(path)).attributes == DIRECTORY
            assert await d.list_all(path) == [DirectoryEntry(name, DIRECTORY)]
        assert store.stats == store.listings == 0
        assert (await d.catalog.stat(f"a/b/{MODEL}")).file is not None
        for nothing in ("z", "a/z"):
            with pytest.raises(NotFound):
                await d.catalog.stat(nothing)
            with pytest.raises(NotFound):
                await d.list_all(nothing)
