"""What a path is: believed for so long as the mount says, and never when it was an error."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from unittest.mock import ANY

import pytest

from mesh.blocks import DirectoryEntry
from mesh.errors import ListingGone, NotADirectory, NotFound, Refused, UnderStoreUnavailable
from mesh.metrics import Metrics, by_label
from mesh.peer.catalog import DIRECTORY, LISTING_FRESH_S, LISTINGS_MAX, NEGATIVE_S, Catalog
from mesh.testing.clock import ManualClock
from mesh.testing.memory import SOURCE, MemoryUnderStore
from mesh.understore.table import MountTable
from mesh.understore.understore import PAGE_ENTRIES, UnderStore, UnderStoreSettings

MODEL = "datasets/model"


class Desk:
    """A catalog over under-stores in memory, and the time."""

    def __init__(self, catalog: Catalog, clock: ManualClock, metrics: Metrics) -> None:
        self.catalog = catalog
        self.clock = clock
        self.metrics = metrics

    @property
    def answers(self) -> dict[str, int]:
        return by_label(self.metrics.catalog_requests, "answer")

    async def list_all(self, path: str) -> list[DirectoryEntry]:
        entries: list[DirectoryEntry] = []
        listing, is_last = 0, False
        while not is_last:
            reply = await self.catalog.page(path, listing, len(entries))
            assert listing in (0, reply.listing)
            listing, is_last = reply.listing, reply.is_last
            entries.extend(reply.entries)
        return entries

    async def names(self, path: str) -> list[str]:
        return [entry.name for entry in await self.list_all(path)]


@asynccontextmanager
async def desk(
    spool: Path, stores: Mapping[str, UnderStore], *, max_age_s: float = 60.0
) -> AsyncIterator[Desk]:
    """Have one under-store at each path of the mesh."""
    mounts = {
        path: UnderStoreSettings(url=f"{SOURCE}{path}", max_age_s=max_age_s) for path in stores
    }
    table = MountTable(mounts, {f"{SOURCE}{path}": store for path, store in stores.items()})
    clock, metrics = ManualClock(), Metrics()
    async with asyncio.TaskGroup() as tasks:
        catalog = Catalog(table, tasks, metrics, spool=spool, clock=clock)
        try:
            yield Desk(catalog, clock, metrics)
        finally:
            catalog.close()


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
async def test_that_a_path_is_nothing_is_believed_for_a_second(
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
        first = await d.catalog.page("big", 0, 0)
        assert (len(first.entries), first.is_last) == (PAGE_ENTRIES, False)
        entries = await d.list_all("/big/")
        assert [entry.name for entry in entries] == [f"{number:04}" for number in range(2500)]
        assert [entry.attributes.size_bytes for entry in entries[:4]] == [0, 1, 2, 0]
        middle = await d.catalog.page("big", first.listing, 1500)
        assert [entry.name for entry in middle.entries] == [f"{n:04}" for n in range(1500, 2000)]
        after = await d.catalog.page("big", first.listing, 2500)
        assert (after.entries, after.is_last) == ((), True)
        assert store.listings == 1


async def test_names_that_are_not_utf8_survive(tmp_path: Path) -> None:
    store = origin(**{"caf\udce9": b"", "ü": b""})
    async with desk(tmp_path, {"/": store}) as d:
        assert set(await d.names("")) == {"caf\udce9", "ü"}


async def test_an_empty_directory_has_one_empty_page(tmp_path: Path) -> None:
    store = MemoryUnderStore()
    async with desk(tmp_path, {"/": store}) as d:
        assert await d.catalog.page("", 0, 0) == await d.catalog.page("", 0, 0)
        assert await d.list_all("") == []


async def test_those_who_begin_together_share_a_listing(tmp_path: Path) -> None:
    store = many(2500)
    async with desk(tmp_path, {"/": store}) as d:
        pages = await asyncio.gather(*(d.catalog.page("big", 0, 0) for _ in range(50)))
        assert {page.listing for page in pages} == {pages[0].listing}
        assert store.listings == 1


async def test_a_new_file_is_seen_by_the_next_ls_whatever_max_age_says(tmp_path: Path) -> None:
    store = many(3)
    async with desk(tmp_path, {"/": store}, max_age_s=math.inf) as d:
        await d.names("big")
        store.write("big/new", b"")
        d.clock.advance(LISTING_FRESH_S)
        assert "new" in await d.names("big")


async def test_a_reader_goes_on_in_an_old_listing(tmp_path: Path) -> None:
    """Whoever takes an hour over a listing must not get half of two."""
    store = many(2500)
    async with desk(tmp_path, {"/": store}) as d:
        first = await d.catalog.page("big", 0, 0)
        store.remove("big/0000")
        d.clock.advance(3600)
        assert len(await d.names("big")) == 2499
        second = await d.catalog.page("big", first.listing, PAGE_ENTRIES)
        assert second.entries[0].name == "1000"


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


async def test_a_listing_that_is_not_kept_any_more_is_gone(tmp_path: Path) -> None:
    files = {f"{number}/file": b"" for number in range(LISTINGS_MAX + 1)}
    async with desk(tmp_path, {"/": MemoryUnderStore(files)}) as d:
        with pytest.raises(ListingGone):
            await d.catalog.page("0", 17, 0)
        pages = [await d.catalog.page(f"{n}", 0, 0) for n in range(LISTINGS_MAX + 1)]
        with pytest.raises(ListingGone):
            await d.catalog.page("0", pages[0].listing, 1)
        assert await d.catalog.page("1", pages[1].listing, 0) == pages[1]


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


def paths_in(directory: Path) -> list[Path]:
    return list(directory.iterdir())


async def test_spools_give_their_disk_space_back(tmp_path: Path) -> None:
    async with desk(tmp_path, {"/": many(1001)}) as d:
        await d.names("big")
        assert paths_in(tmp_path) == []


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
