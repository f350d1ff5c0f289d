"""The files below some paths, as a plan on disk.

Directories wait in a spool, not in memory, and each is listed in one go: nobody holds
a listing open while a tree of a million files is walked below it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from mesh.blocks import Attributes, DirectoryEntry, FileVersion
from mesh.errors import MeshError, NotADirectory, NotFound
from mesh.peer.spool import PlannedFile, Spool, planned
from mesh.wire.care import Tally
from mesh.wire.messages import StatReply

T = TypeVar("T")
A = TypeVar("A")

PAGE_FILES = 256
PAGE_BLOCKS = 1_000_000
"""A page of a plan has no more files or blocks, so that a message about it stays small."""

LISTED_AT_ONCE = 16
ASKED_AT_ONCE = 32


class Tree(Protocol):
    """What a path is and what lies in it; the catalog of this peer."""

    async def stat(self, path: str, *, refresh: bool = False) -> StatReply: ...

    def scan(self, path: str) -> AsyncIterator[tuple[DirectoryEntry, ...]]:
        """Yield the entries of a directory in order; an error makes them no listing."""
        ...

    def version(self, path: str, attributes: Attributes) -> FileVersion | None:
        """Return the version of a listed file; None when its listing did not name it."""
        ...


@dataclass(frozen=True, slots=True)
class Walked:
    """What a walk calls while it goes."""

    patiently: Callable[[Callable[[], Awaitable[None]]], Awaitable[None]]
    """Does something, again and again while the under-store is away."""

    note: Callable[[str, MeshError], None]
    """Takes a path that can't be walked, and why."""


class Walk:
    """One walk over a tree."""

    def __init__(
        self,
        tree: Tree,
        plan: Spool[PlannedFile] | None,
        tally: Tally,
        walked: Walked,
        *,
        spools: Path,
    ) -> None:
        """Put the files into *plan*, if there is one, and count them in *tally*.

        What waits on the way is kept in files in *spools*.
        """
        self._tree = tree
        self._spools = spools
        self._plan = plan
        self._tally = tally
        self._walked = walked
        self._page: list[PlannedFile] = []
        self._page_blocks = 0

    async def go(self, roots: Spool[bytes]) -> None:
        """Walk everything below *roots*."""
        with Spool(self._spools, bytes) as directories:
            async for paths in roots.frames():
                for some in _cut(paths, ASKED_AT_ONCE):
                    await _all(some, lambda path: self._root(path, directories))
            async for paths in directories.frames():
                for some in _cut(paths, LISTED_AT_ONCE):
                    await _all(some, lambda path: self._directory(path, directories))
        await self._flush()

    async def _root(self, packed: bytes, directories: Spool[bytes]) -> None:
        path = _text(packed)
        found: list[StatReply] = []

        async def ask() -> None:
            found.append(await self._tree.stat(path))

        try:
            await self._walked.patiently(ask)
        except MeshError as error:
            self._walked.note(path, error)
            return
        if found[0].file is None:
            await directories.append([packed])
        else:
            await self._file(path, found[0].file)

    async def _directory(self, packed: bytes, directories: Spool[bytes]) -> None:
        path = _text(packed)
        # Kept until it is whole: listed anew, a directory must not be planned twice.
        with Spool(self._spools, tuple[bytes, Attributes]) as entries:

            async def scan() -> None:
                entries.clear()
                async for page in self._tree.scan(path):
                    await entries.append([(_bytes(one.name), one.attributes) for one in page])

            try:
                await self._walked.patiently(scan)
            except (NotFound, NotADirectory):
                self._tally.vanished_directories += 1
                return
            except MeshError as error:
                self._walked.note(path, error)
                return
            self._tally.directories += 1
            async for page in entries.frames():
                await self._entries(path, page, directories)

    async def _entries(
        self, path: str, page: Sequence[tuple[bytes, Attributes]], directories: Spool[bytes]
    ) -> None:
        below = [_bytes(below_of(path, _text(name))) for name, about in page if about.is_directory]
        await directories.append(below)
        unnamed = []
        for name, about in page:
            if about.is_directory:
                continue
            at = below_of(path, _text(name))
            if self._plan is None:
                self._tally.files += 1
                self._tally.size_bytes += about.size_bytes
            elif (file := self._tree.version(at, about)) is None:
                unnamed.append(at)
            else:
                await self._file(at, file)
        for some in _cut(unnamed, ASKED_AT_ONCE):
            await _all(some, self._unnamed)

    async def _unnamed(self, path: str) -> None:
        """Ask what the version of a file is that its listing did not name."""
        found: list[StatReply] = []

        async def ask() -> None:
            found.append(await self._tree.stat(path))

        try:
            await self._walked.patiently(ask)
        except MeshError as error:
            self._tally.files += 1
            self._walked.note(path, error)
            return
        if found[0].file is not None:
            await self._file(path, found[0].file)

    async def _file(self, path: str, file: FileVersion) -> None:
        self._tally.files += 1
        self._tally.blocks += file.block_count
        self._tally.size_bytes += file.size_bytes
        if self._plan is None:
            return
        if self._page_blocks + file.block_count > PAGE_BLOCKS:
            await self._flush()
        self._page.append(planned(path, file))
        self._page_blocks += file.block_count
        if len(self._page) >= PAGE_FILES:
            await self._flush()

    async def _flush(self) -> None:
        page, self._page, self._page_blocks = self._page, [], 0
        if self._plan is not None:
            await self._plan.append(page)


def below_of(path: str, name: str) -> str:
    """Return the path of what is called *name* in the directory *path*."""
    return f"{path.rstrip('/')}/{name}"


def _bytes(path: str) -> bytes:
    return path.encode("utf-8", "surrogateescape")


def _text(packed: bytes) -> str:
    return packed.decode("utf-8", "surrogateescape")


def _cut(items: Sequence[T], together: int) -> Iterable[Sequence[T]]:
    for start in range(0, len(items), together):
        yield items[start : start + together]


async def _all(items: Iterable[A], call: Callable[[A], Awaitable[None]]) -> None:
    async def one(item: A) -> None:
        await call(item)

    async with asyncio.TaskGroup() as calls:
        for item in items:
            calls.create_task(one(item))
