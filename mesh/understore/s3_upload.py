"""Objects that go to S3: one request if they are small, else parts, several at once."""

from __future__ import annotations

import asyncio
from typing import Any, Protocol

from mesh.blocks import Attributes
from mesh.errors import Stale
from mesh.understore.uploads import Call
from mesh.understore.writable import part_bytes

PARTS_AT_ONCE = 4
"""With the one that is being collected, five parts of 8 MiB are in memory for each upload."""


class Bucket(Protocol):
    """The requests of one object; all of it blocks."""

    def put(self, path: str, body: bytes, over: str | None) -> str:
        """Put an object in one request; return its ETag."""
        ...

    def begin(self, path: str) -> str: ...

    def put_part(self, path: str, upload: str, number: int, body: bytes) -> str: ...

    def complete(self, path: str, upload: str, parts: list[str], over: str | None) -> str:
        """Make an object of parts, given by their ETags; return its ETag."""
        ...

    def give_up(self, path: str, upload: str) -> None: ...

    def check_replaced(self, path: str, over: str | None) -> None: ...

    def head(self, path: str) -> Attributes | None: ...


class S3Upload:
    """An `Upload`. Parts are repeated until they are there; what makes the object is not."""

    def __init__(self, call: Call, bucket: Bucket, path: str, size_bytes: int | None) -> None:
        self._call = call
        self._bucket = bucket
        self._path = path
        self._size_bytes = size_bytes
        self._upload = ""
        self._collected = bytearray()
        self._parts: list[asyncio.Task[str]] = []
        self._is_published = False

    async def add(self, data: bytes | memoryview) -> None:
        self._collected += data
        while len(self._collected) > (size_bytes := self._part_bytes()):
            part = bytes(memoryview(self._collected)[:size_bytes])
            del self._collected[:size_bytes]
            await self._send(part)

    def _part_bytes(self) -> int:
        return part_bytes(len(self._parts), self._size_bytes)

    async def _send(self, part: bytes) -> None:
        if not self._upload:
            self._upload = await self._do(self._bucket.begin, attempts=1)
        while len(pending := [task for task in self._parts if not task.done()]) >= PARTS_AT_ONCE:
            await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
        for task in self._parts:
            if task.done():
                task.result()  # raises what sending a part has raised
        number = len(self._parts) + 1
        work = self._do(self._bucket.put_part, self._upload, number, part)
        self._parts.append(asyncio.create_task(work, name=f"part {number} of {self._path}"))

    async def publish(self, *, over: str | None) -> Attributes:
        await self._do(self._bucket.check_replaced, over)
        if not self._upload:
            body = bytes(self._collected)
            tag = await self._do(self._bucket.put, body, over, attempts=1)
        else:
            if self._collected:
                await self._send(bytes(self._collected))
                self._collected.clear()
            parts = list(await asyncio.gather(*self._parts))
            tag = await self._do(self._bucket.complete, self._upload, parts, over, attempts=1)
        self._is_published = True
        about: Attributes | None = await self._do(self._bucket.head)
        if about is None or about.tag != tag:
            raise Stale(f"{self._path} was replaced as soon as it was there")
        return about

    async def abort(self) -> None:
        for task in self._parts:
            task.cancel()
        await asyncio.gather(*self._parts, return_exceptions=True)
        self._collected.clear()
        if self._upload and not self._is_published:
            await self._do(self._bucket.give_up, self._upload)
            self._upload = ""

    async def _do(self, work: Any, *args: Any, **options: Any) -> Any:
        return await self._call("upload", self._path, work, self._path, *args, **options)
