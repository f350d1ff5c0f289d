"""Objects that get another key: S3 has no word for that but to copy and to remove.

    copy all  ->  look once more  ->  remove what was copied, and is still that

A file is copied in one request, on the conditions that source and target are what was seen;
one of more than COPY_BYTES_MAX in parts, so that no request outlives its deadline. A directory
is as many files as lie below it, and nobody sees it move in one step:

    breaks off while it copies    the copies are taken back, as far as the server answers
    breaks off while it removes   the target has all, the source the rest
    something comes or changes    that stays where it is: `Stale`
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import suppress
from functools import partial
from itertools import groupby
from typing import Any, Protocol, TypeVar

from mesh.blocks import GIB, Attributes
from mesh.errors import MeshError, Stale
from mesh.understore.uploads import Call
from mesh.understore.writable import part_bytes

COPY_BYTES_MAX = GIB
"""S3 copies up to 5 GiB at once, which takes longer than a request may."""

Object = tuple[str, Attributes]
T = TypeVar("T")


class Bucket(Protocol):
    """The requests of a move; all of it blocks. What lies below a path may be no path itself."""

    def head(self, path: str) -> Attributes | None: ...

    def objects(self, path: str, token: str) -> tuple[list[Object], str]:
        """Return a page of what is at and below *path* as a directory, and the next token."""
        ...

    def copy(self, path: str, about: Attributes, target: str, over: str | None) -> str:
        """Copy an object that is still that in one request; return the ETag of the copy."""
        ...

    def mark(self, path: str) -> None:
        """Put an empty object, the mark of a directory: *path* ends with a slash."""
        ...

    def begin_copy(self, path: str, target: str) -> str:
        """Begin an object of parts that tells of itself what the one at *path* does."""
        ...

    def copy_part(
        self, path: str, about: Attributes, target: str, upload: str, number: int, start_bytes: int
    ) -> str: ...

    def complete(self, path: str, upload: str, parts: list[str], over: str | None) -> str: ...

    def give_up(self, path: str, upload: str) -> None: ...

    def delete(self, path: str) -> None: ...


def _depth(path: str) -> int:
    return path.count("/")


class S3Move:
    """One move of a file or a directory."""

    def __init__(
        self,
        call: Call,
        bucket: Bucket,
        path: str,
        target: str,
        *,
        at_once: int,
        has_directories: bool,
    ) -> None:
        """Have *at_once* requests under way at most.

        With *has_directories* the server may have directories besides keys, as SeaweedFS has:
        they stay, empty, until they are removed as if each had a mark.
        """
        self._call = call
        self._bucket = bucket
        self._path = path
        self._target = target
        self._at_once = at_once
        self._has_directories = has_directories
        self._turns = asyncio.Semaphore(at_once)

    async def file(self, about: Attributes, over: str | None) -> Attributes:
        """Move a file that is still that; return what is at the target."""
        tag = await self._copied(self._path, about, self._target, over)
        copy: Attributes | None = await self._do(self._bucket.head, self._target)
        if copy is None or copy.tag != tag:
            raise Stale(f"{self._target} was replaced as soon as it was there")
        source: Attributes | None = await self._do(self._bucket.head, self._path)
        if source is not None:
            if source.tag != about.tag:
                raise Stale(f"{self._path} was changed while it was copied")
            await self._do(self._bucket.delete, self._path)
        return copy

    async def directory(self) -> None:
        """Move a directory with all below it."""
        tags: dict[str, str] = {}
        try:
            async for page in self._pages():
                await self._each(page, partial(self._copy_one, tags))
        except MeshError:
            with suppress(MeshError):
                await self._take_back([self._moved(path) for path in tags])
            raise
        stayed = 0
        async for page in self._pages():
            for path, about in page:
                if tags.get(path) != about.tag:
                    stayed += 1
                    tags.pop(path, None)
            files = (path for path, _ in page if path in tags and not path.endswith("/"))
            await self._each(files, self._delete)
        await self._delete_marks(self._path, tags)
        if stayed:
            raise Stale(f"{self._path}: {stayed} objects came or changed while it was moved")

    async def _pages(self) -> AsyncIterator[list[Object]]:
        token = ""
        while True:
            page, token = await self._do(self._bucket.objects, self._path, token)
            yield page
            if not token:
                return

    async def _copy_one(self, tags: dict[str, str], found: Object) -> None:
        path, about = found
        if path.endswith("/") and not about.size_bytes:
            await self._do(self._bucket.mark, self._moved(path))  # SeaweedFS copies no marks
        else:
            await self._copied(path, about, self._moved(path), None)
        tags[path] = about.tag

    async def _take_back(self, copies: list[str]) -> None:
        files = (path for path in copies if not path.endswith("/"))
        await self._each(files, self._delete)
        await self._delete_marks(self._target, copies)

    async def _delete_marks(self, root: str, paths: Iterable[str]) -> None:
        """Delete the marks among *paths*, all below *root*: those deep down first."""
        marks = set()
        for path in paths:
            end = len(root)
            while (end := path.find("/", end) + 1) > 0:
                if self._has_directories or end == len(path):
                    marks.add(path[:end])
        for _, level in groupby(sorted(marks, key=_depth, reverse=True), key=_depth):
            await self._each(level, self._delete)

    def _moved(self, path: str) -> str:
        return self._target + path[len(self._path) :]

    async def _delete(self, path: str) -> None:
        await self._do(self._bucket.delete, path)

    async def _copied(self, path: str, about: Attributes, target: str, over: str | None) -> str:
        """Copy one object; return the ETag of the copy."""
        if about.size_bytes > COPY_BYTES_MAX:
            return await self._copied_in_parts(path, about, target, over)
        # On a condition it must not be repeated: the first one may have met it.
        once = {} if over is None else {"attempts": 1}
        tag: str = await self._do(self._bucket.copy, path, about, target, over, **once)
        return tag

    async def _copied_in_parts(
        self, path: str, about: Attributes, target: str, over: str | None
    ) -> str:
        size_bytes = part_bytes(0, about.size_bytes)
        starts = range(0, about.size_bytes, size_bytes)
        tags = [""] * len(starts)
        upload = await self._do(self._bucket.begin_copy, path, target, attempts=1)

        async def copy_part(number: int) -> None:
            tags[number] = await self._do(
                self._bucket.copy_part, path, about, target, upload, number + 1, starts[number]
            )

        try:
            await self._each(range(len(starts)), copy_part)
            tag: str = await self._do(self._bucket.complete, target, upload, tags, over, attempts=1)
        except (MeshError, asyncio.CancelledError):
            with suppress(MeshError):
                await self._do(self._bucket.give_up, target, upload)
            raise
        return tag

    async def _each(self, items: Iterable[T], work: Callable[[T], Awaitable[None]]) -> None:
        """Do *work* for all, several at once. After an error none is begun; what runs ends."""
        left = iter(items)
        errors: list[MeshError] = []

        async def worker() -> None:
            for item in left:
                try:
                    await work(item)
                except MeshError as error:
                    errors.append(error)
                if errors:
                    return

        async with asyncio.TaskGroup() as workers:
            for _ in range(self._at_once):
                workers.create_task(worker())
        if errors:
            raise errors[0]

    async def _do(self, work: Any, *args: Any, **options: Any) -> Any:
        async with self._turns:  # outside of the deadline, which waiting would use up
            return await self._call("move", self._path, work, *args, **options)
