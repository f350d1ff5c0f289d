"""A file that is being written: a file of this host, until it is published.

Writes go to it in any order, as to any local file, and ask nobody. What its writer has left
behind it is sent while the rest is written, so that the last close waits for the tail only.
"""

from __future__ import annotations

import asyncio
import errno
import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from mesh.blocks import MIB, is_staged
from mesh.client.file import MeshFile
from mesh.clock import monotonic_s
from mesh.errors import MeshError, Stale, StoreFull
from mesh.store.extents import write_all
from mesh.store.journal import FREE_BYTES_MIN
from mesh.wire.messages import StatReply
from mesh.wire.writes import GrowRequest, PublishRequest

if TYPE_CHECKING:
    from mesh.client.writes import Writes

GROW_EVERY_BYTES = 16 * MIB
COPY_BYTES = MIB

FULL_DISK_WAIT_S = 2.0
FULL_DISK_CHECK_S = 0.1
"""A writer that finds the disk full waits for what is being evicted, and for files that
were given up a moment ago: the kernel tells of their last close after it has answered it."""

T = TypeVar("T")


class Draft:
    """What is written to one path by this mount, by all who have it open; made by `Writes`."""

    def __init__(
        self,
        writes: Writes,
        fd: int,
        token: str,
        path: str,
        *,
        over: str,
        base: MeshFile | None,
        mode: int,
        is_exclusive: bool,
    ) -> None:
        self.path = path
        self.over = over
        """The tag of what is at the path; "" while there is nothing."""

        self.mode = mode
        self.size_bytes = 0 if base is None else base.file.size_bytes
        self.mtime_ns = time.time_ns()
        self.is_dirty = base is None
        """Whether something was written that is not published."""

        self.is_removed = False
        """Nobody is to see it any more but those who have it open."""

        self.token = token
        self._writes = writes
        self._fd = fd
        self._base = base
        self._is_exclusive = is_exclusive
        self.turn = asyncio.Lock()
        """Held by whoever writes, publishes, renames or removes it."""

        self._edge_bytes = self._grown_bytes = 0
        self._is_grown_rewritten = False
        self._is_new = base is None
        self._growing: asyncio.Task[None] | None = None
        self._failure: MeshError | None = None
        self._is_promised = self._is_beside = False

    @property
    def is_unseen(self) -> bool:
        """Whether it holds what was never shown, and what is removed counts as such."""
        return self.is_dirty or self._is_beside or self.is_removed

    # Reading what is written

    def read_now(self, offset_bytes: int, into: memoryview) -> int | None:
        return None

    async def read(self, offset_bytes: int, into: memoryview) -> int:
        """Read into a buffer what the file holds now; return how many bytes."""
        if self._base is not None:
            return await self._base.read(offset_bytes, into)
        return await self._in_thread(lambda: os.preadv(self._fd, [into], offset_bytes))

    # Writing

    async def write(self, offset_bytes: int, data: bytes) -> None:
        """Put bytes anywhere; `StoreFull` when this host's disk is, and stays so for 2 s.

        What could not be put would be missing from the file, so that it is not shown then.
        """
        if not data:
            return
        async with self.turn:
            await self._copy_up(self.size_bytes)
            self.is_dirty = True  # be it by a half of it
            try:
                await self._once_there_is_room(lambda: self._put(data, offset_bytes))
            except MeshError as error:
                self._failure = error
                raise
            end_bytes = offset_bytes + len(data)
            self._note_change(offset_bytes)
            if offset_bytes <= self._edge_bytes < end_bytes:
                self._edge_bytes = end_bytes
            self.size_bytes = max(self.size_bytes, end_bytes)
            self._grow()

    async def _once_there_is_room(self, put: Callable[[], None]) -> None:
        deadline_s = monotonic_s() + FULL_DISK_WAIT_S
        while True:
            try:
                return await self._in_thread(put)
            except StoreFull:
                # Who has been told already, and writes on, does not wait each time.
                if self._failure is not None or monotonic_s() >= deadline_s:
                    raise
            await asyncio.sleep(FULL_DISK_CHECK_S)

    def _put(self, data: bytes | memoryview, offset_bytes: int) -> None:
        disk = os.fstatvfs(self._fd)
        if disk.f_bavail * disk.f_frsize < len(data) + FREE_BYTES_MIN:
            raise OSError(errno.ENOSPC, "what is left is for the peer's tables")
        write_all(self._fd, data, offset_bytes)

    async def truncate(self, size_bytes: int) -> None:
        """Cut the file, or have it end with zeros."""
        async with self.turn:
            await self._copy_up(min(size_bytes, self.size_bytes))
            await self._in_thread(lambda: os.ftruncate(self._fd, size_bytes))
            self._note_change(min(size_bytes, self.size_bytes))
            self._edge_bytes = min(self._edge_bytes, size_bytes)
            self.size_bytes = size_bytes
            self._failure = None

    async def settle(self) -> None:
        """Bring all that the file held before here: it will be had nowhere else."""
        async with self.turn:
            await self._copy_up(self.size_bytes)

    def _note_change(self, offset_bytes: int) -> None:
        self.is_dirty = True
        self.mtime_ns = time.time_ns()
        if offset_bytes < self._grown_bytes:
            self._is_grown_rewritten = True

    async def _copy_up(self, size_bytes: int) -> None:
        """Bring what the file held before here, once, so that it can be changed."""
        if self._is_promised:
            await self._move_on(size_bytes)
        base = self._base
        if base is None:
            return
        buffer = memoryview(bytearray(COPY_BYTES))
        done_bytes = 0
        while done_bytes < size_bytes:
            into = buffer[: min(COPY_BYTES, size_bytes - done_bytes)]
            got_bytes = await base.read(done_bytes, into)
            if not got_bytes:
                raise Stale(f"{self.path}: is shorter than it was")
            await self._once_there_is_room(lambda: self._put(into[:got_bytes], done_bytes))  # noqa: B023
            done_bytes += got_bytes
        self._base = None
        base.close()

    async def _move_on(self, size_bytes: int) -> None:
        """Go on in another draft, with so much of what this one has."""
        token, fd = await self._writes.make()

        def copy() -> None:
            done_bytes = 0
            while done_bytes < size_bytes:
                rest_bytes = size_bytes - done_bytes
                copied = os.copy_file_range(self._fd, fd, rest_bytes, done_bytes, done_bytes)
                if not copied:
                    raise OSError(errno.EIO, "the draft is shorter than it was")
                done_bytes += copied

        try:
            await self._in_thread(copy)
        except MeshError:
            os.close(fd)
            raise
        before, self._fd = self._fd, fd
        await self._writes.retire(self.token, is_published=False)
        os.close(before)
        self.token, self._is_promised = token, False

    def _grow(self) -> None:
        """Have what was written in order sent already."""
        if not self._is_new or self._is_grown_rewritten or self._growing is not None:
            return
        if self._edge_bytes - self._grown_bytes < GROW_EVERY_BYTES:
            return
        self._grown_bytes = self._edge_bytes
        self._growing = asyncio.get_running_loop().create_task(self._tell_growth())

    async def _tell_growth(self) -> None:
        try:
            await self._writes.grow(
                GrowRequest(self.token, self.path, self._grown_bytes, self.mode)
            )
        except MeshError:
            pass  # then all of it goes at the end
        finally:
            self._growing = None

    # Showing it

    async def publish(self) -> StatReply | None:
        """Show what is written to everybody; None when there is nothing new.

        Raises what the caller of close(2) is to hear: then nobody sees it, and it may be
        tried again.
        """
        async with self.turn:
            if not self.is_dirty or self.is_removed:
                return None
            if self._failure is not None:
                raise self._failure
            request = PublishRequest(
                self.token,
                self.path,
                self.size_bytes,
                self.over,
                is_rewritten=self._is_grown_rewritten,
                is_exclusive=self._is_exclusive,
                mode=self.mode,
            )
            try:
                reply = await self._writes.publish(request)
            except Stale:
                # It lies beside what somebody else has put there.
                self.is_dirty, self._is_beside = False, True
                raise
            self._is_beside = False
            self.is_dirty = self._is_exclusive = False
            self.over = reply.attributes.tag
            # Staged: these very bytes are what was promised, so that nothing may change them.
            self._is_promised = is_staged(self.over)
            # All of it is there now: what is changed from here on is changed in that.
            self._grown_bytes, self._is_grown_rewritten, self._is_new = 0, True, False
            return reply

    async def close(self) -> None:
        """Give the file up; what was published of it is kept here as blocks."""
        if self._growing is not None:
            await asyncio.wait({self._growing})
        if self._base is not None:
            self._base.close()
        try:
            is_published = not (self.is_dirty or self.is_removed or self._is_beside)
            await self._writes.retire(self.token, is_published=is_published)
        finally:
            os.close(self._fd)

    async def _in_thread(self, call: Callable[[], T]) -> T:
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._writes.threads, call)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise StoreFull(f"{self.path}: the disk of this host is full") from error
            raise MeshError(f"{self.path}: {error.strerror}") from error
