"""Lists that may be longer than memory: appended to a file, read from it in order.

    frame   size of the rest (u32) | zlib of the items, as msgpack

A reader sees what was appended before it came to the end; so a queue is a spool that is
appended to while it is read.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import zlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Generic, TypeVar

import msgspec

from mesh.blocks import FileVersion, version_of

T = TypeVar("T")

PREFIX = "spool-"
_HEAD_BYTES = 4


class Spool(Generic[T]):
    """Frames of items, in a file that is gone when this is closed."""

    def __init__(self, directory: Path, kind: type[T]) -> None:
        """Keep items of that kind, which msgspec must know how to write."""
        # A file without a name: what a crash leaves of it is nothing.
        self._file = tempfile.TemporaryFile(dir=directory, prefix=PREFIX)  # noqa: SIM115
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(list[kind])  # type: ignore[valid-type]
        self._end_bytes = 0
        self._appending = asyncio.Lock()
        self.count = 0
        """Of items."""

    def __enter__(self) -> Spool[T]:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    async def append(self, items: Sequence[T]) -> None:
        """Put items behind all others, as one frame."""
        if not items:
            return
        async with self._appending:
            written_bytes = await asyncio.to_thread(self._append, items, self._end_bytes)
            self._end_bytes += written_bytes
            self.count += len(items)

    def clear(self) -> None:
        """Begin anew."""
        self._end_bytes = self.count = 0

    async def frames(self) -> AsyncIterator[list[T]]:
        """Yield the frames from the first to the last that is there when it is its turn."""
        offset_bytes = 0
        while offset_bytes < self._end_bytes:
            items, offset_bytes = await asyncio.to_thread(self._read, offset_bytes)
            yield items

    def _append(self, items: Sequence[T], offset_bytes: int) -> int:
        packed = zlib.compress(self._encoder.encode(list(items)), 1)
        data = len(packed).to_bytes(_HEAD_BYTES, "big") + packed
        os.pwrite(self._file.fileno(), data, offset_bytes)
        return len(data)

    def _read(self, offset_bytes: int) -> tuple[list[T], int]:
        fd = self._file.fileno()
        size_bytes = int.from_bytes(os.pread(fd, _HEAD_BYTES, offset_bytes), "big")
        start_bytes = offset_bytes + _HEAD_BYTES
        packed = os.pread(fd, size_bytes, start_bytes)
        return self._decoder.decode(zlib.decompress(packed)), start_bytes + size_bytes


@dataclass(frozen=True, slots=True)
class PlannedFile:
    """One file of a plan: its path in the mesh, and what names its version."""

    path: bytes
    source: str
    source_path: bytes
    size_bytes: int
    tag: str
    block_bytes: int

    @property
    def shown(self) -> str:
        return os.fsdecode(self.path)

    def version(self) -> FileVersion:
        return version_of(
            source=self.source,
            path=self.source_path.decode("utf-8", "surrogateescape"),
            size_bytes=self.size_bytes,
            tag=self.tag,
            block_bytes=self.block_bytes,
        )


def planned(path: str, file: FileVersion) -> PlannedFile:
    """Return how a plan notes that the file at *path* has this version."""
    return PlannedFile(
        path.encode("utf-8", "surrogateescape"),
        file.source,
        file.path.encode("utf-8", "surrogateescape"),
        file.size_bytes,
        file.tag,
        file.block_bytes,
    )
