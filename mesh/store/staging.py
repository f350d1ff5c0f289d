"""Files that wait on this node for the under-store to have them.

    staged/abcd…   the bytes; the name is the token of the version
    journal        table "staged": token -> who it is for (packed by `wire.writes`)

Order of a put: bytes on the disk, their name on the disk, then the record, each synced before
the next. So what has a record is whole, whatever happens; what has none was promised to
nobody, and is removed at the next start. The extent file of the version is another name of
the same file: it may be read as any block, and nothing may punch a hole into it.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from pathlib import Path

import structlog

from mesh.errors import StoreFull
from mesh.store.drafts import check_token, read_part
from mesh.store.notes import Notes

log = structlog.get_logger()

STAGED = "staged"


class Staging:
    """The staged files of one node, by token."""

    def __init__(self, directory: Path, notes: Notes) -> None:
        self._directory = directory / STAGED
        self._notes = notes

    def path(self, token: str) -> Path:
        """Return where the bytes are; `NotFound` if there can't be a file of that name."""
        return self._directory / check_token(token)

    async def load(self) -> Mapping[str, bytes]:
        """Return the records of what is whole here, and remove what is not."""
        records = {key.decode(): value for key, value in (await self._notes.all()).items()}
        return await asyncio.to_thread(self._load, records)

    def _load(self, records: dict[str, bytes]) -> dict[str, bytes]:
        here = {path.name: path for path in self._directory.iterdir()}
        for name in here.keys() - records.keys():
            here[name].unlink()
        for token in records.keys() - here.keys():
            log.error("staged file lost", token=token, reason="its bytes are not there")
        return {token: record for token, record in records.items() if token in here}

    async def put(self, token: str, record: bytes, source: Path) -> None:
        """Keep a file, durable on return; *source* is another name that it has.

        Raises `StoreFull` when the disk is full, or fails.
        """
        try:
            await asyncio.to_thread(self._link, self.path(token), source)
        except OSError as error:
            raise StoreFull(f"staged: {error.strerror}") from error
        await self._notes.put({token.encode(): record})

    async def change(self, token: str, record: bytes) -> None:
        """Keep another record of a file that is here; durable on return."""
        await self._notes.put({token.encode(): record})

    async def remove(self, token: str) -> None:
        """Let a file go: it is promised to nobody any more."""
        await self._notes.put({token.encode(): None})
        await asyncio.to_thread(self.path(token).unlink, missing_ok=True)

    def _link(self, target: Path, source: Path) -> None:
        fd = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
        if not target.exists():
            os.link(source, target)
        directory = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    async def read(self, token: str, offset_bytes: int, size_bytes: int) -> bytes:
        """Return bytes of a file; `NotFound` when it has not so many."""
        return await asyncio.to_thread(read_part, self.path(token), offset_bytes, size_bytes)
