"""One open file: a read is cut into spans, and each comes from the nearest place.

here, and in the page cache    read at once, without a thread
here                           read in a thread
not here                       the own peer brings it here, then as above
own peer away or full          `direct`
"""

from __future__ import annotations

import asyncio
import os
from functools import partial
from typing import TYPE_CHECKING

from crc32c import crc32c

from mesh.blocks import KIB, FileVersion, Span, piece_range, pieces_of, spans
from mesh.client.ahead import ReadAhead
from mesh.client.here import Descriptor
from mesh.errors import MeshError, Stale, StoreFull, Unavailable
from mesh.metrics import LOCAL
from mesh.store.index import BlockRecord
from mesh.wire.messages import FetchRequest

if TYPE_CHECKING:
    from mesh.client.client import MeshClient

TRIES = 3
AHEAD_TASKS_MAX = 16
CHECKED_MAX = 4096
SMALL_BYTES = 128 * KIB
"""A read of less that goes on nowhere is a random one."""


class MeshFile:
    """A handle on one version of one file."""

    def __init__(self, client: MeshClient, path: str, file: FileVersion) -> None:
        self.path = path
        self.file = file
        self._client = client
        self._descriptor = Descriptor()
        self._ahead = ReadAhead(size_bytes=file.size_bytes, block_bytes=file.block_bytes)
        self._ahead_tasks: set[asyncio.Task[None]] = set()
        self._local_bytes = client.metrics.read_bytes.labels(LOCAL)
        self._local_blocks = client.metrics.read_blocks.labels(LOCAL)
        self._brought: set[int] = set()
        self._suspects: set[int] = set()
        self._checked: dict[int, tuple[int, int]] = {}  # by block: stamp, bitmap of pieces

    def read_now(self, offset_bytes: int, into: memoryview) -> int | None:
        """Read into a buffer what is here and in memory; None when a read must wait.

        Returns the number of bytes, fewer than the buffer holds only at the end.
        """
        size_bytes = max(0, min(len(into), self.file.size_bytes - offset_bytes))
        is_small = self._is_small(offset_bytes, size_bytes)
        done_bytes = 0
        for span in spans(offset_bytes, size_bytes, block_bytes=self.file.block_bytes):
            target = into[done_bytes : done_bytes + span.size_bytes]
            try:
                if not self._read_here(span, target, is_small=is_small, flags=os.RWF_NOWAIT):
                    return None
            except BlockingIOError:
                return None
            self._count(span)
            done_bytes += span.size_bytes
        if done_bytes:
            self._note(offset_bytes, done_bytes)
        return done_bytes

    async def read(self, offset_bytes: int, into: memoryview) -> int:
        """Read into a buffer, wherever the bytes are; return how many.

        Raises `Stale` when the version is gone everywhere, `Refused`, or
        `UnderStoreUnavailable` when nobody could answer.
        """
        size_bytes = max(0, min(len(into), self.file.size_bytes - offset_bytes))
        is_small = self._is_small(offset_bytes, size_bytes)
        done_bytes = 0
        self._note(offset_bytes, size_bytes)
        for span in spans(offset_bytes, size_bytes, block_bytes=self.file.block_bytes):
            target = into[done_bytes : done_bytes + span.size_bytes]
            try:
                await self._read_span(span, target, is_small=is_small)
            except Stale:
                self._client.suspect(self.path)
                raise
            done_bytes += span.size_bytes
        return done_bytes

    def close(self) -> None:
        """Close the descriptor and leave what is read ahead to itself."""
        self._descriptor.close()
        for task in self._ahead_tasks:
            task.cancel()

    # One span

    def _read_here(self, span: Span, target: memoryview, *, is_small: bool, flags: int = 0) -> bool:
        """Read a span from this host's store; False when it is not there, or not any more."""
        here = self._client.here
        key = self.file.key(span.block_index)
        record = here.record(key)
        if record is None:
            return False
        if self.file.is_inline:
            data = here.inline(self.file.id)
            if data is None:
                return False
            target[:] = data[span.start_bytes : span.stop_bytes]
            return True
        fd = self._descriptor.at(here.extents, self.file, record.inode)
        if fd is None:
            return False
        offset_bytes = span.block_index * self.file.block_bytes + span.start_bytes
        if os.preadv(fd, [target], offset_bytes, flags) != len(target):
            return False
        if not is_small and not self._is_right(span, target, record, flags):
            return False
        after = here.record(key)
        return after is not None and after.stamp == record.stamp

    def _is_right(self, span: Span, target: memoryview, record: BlockRecord, flags: int) -> bool:
        """Check the pieces that a span touches against their CRCs, each once for a handle.

        A piece that was not read whole is read whole for it. False also when it would
        have to be waited for. Small reads here and there are left alone: each would cost
        a MiB of the disk; see `docs/semantics.md`.
        """
        stamp, checked = self._checked.get(span.block_index, (0, 0))
        if stamp != record.stamp:
            checked = 0
        for piece in pieces_of(span):
            if checked >> piece & 1:
                continue
            start_bytes, size_bytes = piece_range(piece, length_bytes=record.length_bytes)
            begin = start_bytes - span.start_bytes
            if begin >= 0 and begin + size_bytes <= span.size_bytes:
                whole = target[begin : begin + size_bytes]
            else:
                whole = memoryview(bytearray(size_bytes))
                fd = self._descriptor.at(self._client.here.extents, self.file, record.inode)
                offset_bytes = span.block_index * self.file.block_bytes + start_bytes
                if fd is None or os.preadv(fd, [whole], offset_bytes, flags) != size_bytes:
                    return False
            if crc32c(whole) != record.crcs[piece]:
                self._suspects.add(span.block_index)
                return False
            checked |= 1 << piece
        if len(self._checked) >= CHECKED_MAX:
            self._checked.clear()
        self._checked[span.block_index] = (record.stamp, checked)
        return True

    def _is_small(self, offset_bytes: int, size_bytes: int) -> bool:
        return size_bytes < SMALL_BYTES and self._ahead.is_elsewhere(offset_bytes)

    async def _read_span(self, span: Span, target: memoryview, *, is_small: bool) -> None:
        loop = asyncio.get_running_loop()
        threads = self._client.threads
        is_here = self._client.here.record(self.file.key(span.block_index)) is not None
        read_here = partial(self._read_here, span, target, is_small=is_small)
        if is_here and await loop.run_in_executor(threads, read_here):
            self._count(span)
            return
        for _ in range(TRIES):
            asked_s = loop.time()
            request = FetchRequest(
                self.file,
                span.block_index,
                span.start_bytes,
                span.size_bytes,
                is_suspect=span.block_index in self._suspects,
            )
            try:
                reply = await self._client.fetch(request)
            except (Unavailable, StoreFull):
                break
            self._suspects.discard(span.block_index)
            if reply.origin != LOCAL:
                self._brought.add(span.block_index)
            if self.file.is_inline:
                if self._read_here(span, target, is_small=True):
                    return
                continue
            fd = self._descriptor.at(self._client.here.extents, self.file, reply.inode)
            if fd is None:
                continue
            offset_bytes = span.block_index * self.file.block_bytes + span.start_bytes
            try:
                # It was written a moment ago.
                got_bytes = os.preadv(fd, [target], offset_bytes, os.RWF_NOWAIT)
            except BlockingIOError:
                got_bytes = 0
            if got_bytes != len(target):
                args = (fd, [target], offset_bytes)
                got_bytes = await loop.run_in_executor(threads, os.preadv, *args)
            if got_bytes == len(target) and loop.time() - asked_s < reply.lease_s:
                return
        data = await self._client.direct.block(self.file, span.block_index)
        target[:] = memoryview(data)[span.start_bytes : span.stop_bytes]

    def _count(self, span: Span) -> None:
        """Count what was read from here, but for what was brought here to be read: the
        peer has counted that by where it came from."""
        if span.block_index not in self._brought:
            self._local_bytes.inc(span.size_bytes)
            if not span.start_bytes:
                self._local_blocks.inc()
        elif span.stop_bytes == self.file.length_bytes(span.block_index):
            self._brought.discard(span.block_index)

    # Reading ahead

    def _note(self, offset_bytes: int, size_bytes: int) -> None:
        self._client.note_use(self.file.id)
        for index in self._ahead.note(offset_bytes, size_bytes):
            if len(self._ahead_tasks) >= AHEAD_TASKS_MAX:
                return
            if self._client.here.record(self.file.key(index)) is None:
                self._brought.add(index)
                task = asyncio.get_running_loop().create_task(self._bring(index))
                self._ahead_tasks.add(task)
                task.add_done_callback(self._ahead_tasks.discard)

    async def _bring(self, index: int) -> None:
        size_bytes = self.file.length_bytes(index)
        request = FetchRequest(self.file, index, 0, size_bytes, is_ahead=True)
        try:
            await self._client.fetch(request)
        except MeshError:
            return  # the read itself will meet it, and say so
