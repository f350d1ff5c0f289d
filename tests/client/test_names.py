"""Look-ups that come one after the other are answered by one listing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from mesh.blocks import Attributes, DirectoryEntry, FileVersion, version_of
from mesh.client.names import ENTRIES_A_LISTING_MAX, LOOKUPS_BEFORE, ListedNames
from mesh.errors import UnderStoreUnavailable
from mesh.testing.clock import ManualClock

MAX_AGE_S = 60.0


class Directory:
    """A directory of some files, and how often it was listed."""

    def __init__(self, count: int, *, tag: str = "t", max_age_s: float = MAX_AGE_S) -> None:
        self.count = count
        self.tag = tag
        self.max_age_s = max_age_s
        self.scans: list[str] = []
        self.pages = 0
        self.fails = False
        self.clock = ManualClock()
        self.names = ListedNames(self.scan, self.listed, clock=self.clock)

    async def scan(self, path: str) -> AsyncIterator[tuple[DirectoryEntry, ...]]:
        self.scans.append(path)
        for start in range(0, self.count, 1000):
            await asyncio.sleep(0)
            if self.fails:
                raise UnderStoreUnavailable("half-way")
            self.pages += 1
            stop = min(start + 1000, self.count)
            yield tuple(DirectoryEntry(f"f{n}", self.attributes(n)) for n in range(start, stop))

    def attributes(self, n: int) -> Attributes:
        return Attributes(is_directory=False, size_bytes=n, mtime_ns=0, tag=self.tag)

    def listed(self, path: str, attributes: Attributes) -> tuple[FileVersion | None, float]:
        file = version_of(
            source="m",
            path=path,
            size_bytes=attributes.size_bytes,
            tag=attributes.tag,
            block_bytes=1 << 20,
        )
        return (file if attributes.tag else None), self.max_age_s

    async def look_at(self, count: int) -> None:
        for n in range(count):
            self.names.look(f"d/f{n}")
        for _ in range(100):
            await asyncio.sleep(0)


async def test_a_few_look_ups_bring_the_listing_and_it_answers_the_rest() -> None:
    directory = Directory(3000)
    await directory.look_at(LOOKUPS_BEFORE - 1)
    assert directory.scans == []
    await directory.look_at(1)
    assert directory.scans == ["d"]
    found = directory.names.look("d/f2999")
    assert found is not None
    assert (found.attributes.size_bytes, found.fresh_s) == (2999, MAX_AGE_S)
    assert found.file == directory.listed("d/f2999", directory.attributes(2999))[0]
    assert directory.names.look("d/nothing") is None
    assert directory.names.look("e/f1") is None


async def test_it_is_believed_for_max_age_and_no_longer() -> None:
    directory = Directory(10)
    await directory.look_at(LOOKUPS_BEFORE)
    directory.clock.advance(59)
    found = directory.names.look("d/f1")
    assert found is not None
    assert found.fresh_s == 1
    directory.clock.advance(1)
    assert directory.names.look("d/f1") is None


async def test_slow_look_ups_bring_nothing() -> None:
    directory = Directory(10)
    for _ in range(20):
        await directory.look_at(1)
        directory.clock.advance(0.6)
    assert directory.scans == []


async def test_where_nothing_may_be_believed_nothing_is_brought() -> None:
    directory = Directory(10, max_age_s=0)
    await directory.look_at(10)
    assert directory.scans == []


async def test_listings_without_tags_say_nothing_of_versions() -> None:
    directory = Directory(10, tag="")
    await directory.look_at(LOOKUPS_BEFORE)
    assert directory.names.look("d/f1") is None


async def test_a_huge_directory_is_not_brought_whole() -> None:
    directory = Directory(100_000)
    await directory.look_at(LOOKUPS_BEFORE)
    assert directory.pages * 1000 < ENTRIES_A_LISTING_MAX + 1000


async def test_a_failure_is_nobodys_and_what_is_forgotten_is_asked_again() -> None:
    directory = Directory(10)
    directory.fails = True
    await directory.look_at(LOOKUPS_BEFORE)
    assert directory.names.look("d/f1") is None
    directory.fails = False
    directory.clock.advance(2)
    await directory.look_at(LOOKUPS_BEFORE)
    assert directory.names.look("d/f1") is not None
    directory.names.forget("d/f1")
    assert directory.names.look("d/f1") is None
    await directory.names.aclose()
