"""One open file: a read is cut into spans, and each comes from the nearest place.

here, and in the page cache    read at once, without a thread
here                           read in a thread
not here                       the own peer brings it here, then as above
own peer away or full          `direct`

Whatever is read here is checked against its CRCs, each time, the page cache too: the
kernel reads ahead of any reader, so nobody knows when a page of it came from the disk.
It costs 50 µs for a MiB, and 10 µs for 4 KiB, which take 100 µs through FUSE.
What does not match is suspect: the own peer looks at the block, and brings it again.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mesh.blocks import FileVersion, Span, spans
from mesh.client.ahead import ReadAhead
from mesh.client.checked import is_right, widened
from mesh.client.here import Descriptor
from mesh.errors import MeshError, Stale, StoreFull, Unavailable
from mesh.metrics import LOCAL
from mesh.wire.messages import FetchRequest

if TYPE_CHECKING:
    from mesh.client.client import MeshClient

TRIES = 3
AHEAD_TASKS_MAX = 16
LOOK_AGAIN_S = 0.002
"""Until a block that is landing is whole; seldom needed."""


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

    def read_now(self, offset_bytes: int, into: memoryview) -> int | None:
        """Read into a buffer what is here and in memory; None when a read must wait.

        Returns the number of bytes, fewer than the buffer holds only at the end.
        """
        size_bytes = max(0, min(len(into), self.file.size_bytes - offset_bytes))
        done_bytes = 0
        for span in spans(offset_bytes, size_bytes, block_bytes=self.file.block_bytes):
            target = into[done_bytes : done_bytes + span.size_bytes]
            if not self._read_here(span, target, os.RWF_NOWAIT):
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
        done_bytes = 0
        self._note(offset_bytes, size_bytes)
        for span in spans(offset_bytes, size_bytes, block_bytes=self.file.block_bytes):
            target = into[done_bytes : done_bytes + span.size_bytes]
            try:
                await self._read_span(span, target)
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

    def _read_here(self, span: Span, target: memoryview, flags: int = 0) -> bool:
        """Read a span from this host's store and check it; False when it is not there, not
        any more, not right, or would have to be waited for."""
        here = self._client.here
        key = self.file.key(span.block_index)
        record = here.record(key)
        if record is None:
            return False
        if record.length_bytes != self.file.length_bytes(span.block_index):
            self._suspects.add(span.block_index)
            return False
        start_bytes, buffers = widened(span, target, record)
        if self.file.is_inline:
            data = here.inline(self.file.id)
            if data is None:
                return False
            start_bytes, buffers = 0, [memoryview(data)]
        elif not self._preadv(span.block_index, start_bytes, buffers, record.inode, flags):
            return False
        after = here.record(key)
        if after is None or after.stamp != record.stamp:
            return False
        if not is_right(start_bytes, buffers, record):
            self._suspects.add(span.block_index)
            return False
        if self.file.is_inline:
            target[:] = buffers[0][span.start_bytes : span.stop_bytes]
        return True

    def _preadv(
        self,
        block_index: int,
        start_bytes: int,
        buffers: Sequence[memoryview],
        inode: int,
        flags: int,
    ) -> bool:
        """Fill the buffers from an extent file; False when it has not all, or not at once."""
        fd = self._descriptor.at(self._client.here.extents, self.file, inode)
        if fd is None:
            return False
        offset_bytes = block_index * self.file.block_bytes + start_bytes
        try:
            return os.preadv(fd, buffers, offset_bytes, flags) == sum(map(len, buffers))
        except BlockingIOError:
            return False
        except OSError:  # a sector that can't be read is no better than a wrong one
            self._suspects.add(block_index)
            return False

    async def _read_span(self, span: Span, target: memoryview) -> None:
        index = span.block_index
        may_be_right = index not in self._suspects and self._is_recorded(index)
        if may_be_right and await self._read_in_thread(span, target):
            self._count(span)
            return
        loop = asyncio.get_running_loop()
        is_in_memory = not self.file.is_inline
        for _ in range(TRIES):
            asked_s = loop.time()
            request = FetchRequest(
                self.file,
                index,
                span.start_bytes,
                span.size_bytes,
                is_suspect=index in self._suspects,
            )
            try:
                reply = await self._client.fetch(request)
            except (Unavailable, StoreFull):
                break
            self._suspects.discard(index)
            if reply.origin != LOCAL:
                self._brought.add(index)
            until_s = asked_s + reply.lease_s
            if is_in_memory and not self._is_recorded(index):
                is_in_memory = self._read_landing(span, target, reply.inode)
                if is_in_memory and loop.time() < until_s:
                    return
            if await self._until_recorded(index, until_s) and await self._read_soon(span, target):
                return
        data = await self._client.direct.block(self.file, index)
        target[:] = memoryview(data)[span.start_bytes : span.stop_bytes]

    def _read_landing(self, span: Span, target: memoryview, inode: int) -> bool:
        """Read what the own peer has checked and written a moment ago, from memory.

        While a block is landing there are no CRCs to check it against. So once this was
        in vain its record must be waited for: RWF_NOWAIT that finds nothing makes the
        kernel read ahead, and another try would have what the disk gave.
        """
        return self._preadv(
            span.block_index, span.start_bytes, [target], inode, flags=os.RWF_NOWAIT
        )

    async def _until_recorded(self, index: int, until_s: float) -> bool:
        """Wait until a block that is landing is whole; False when that takes too long."""
        loop = asyncio.get_running_loop()
        while not self._is_recorded(index):
            if loop.time() >= until_s:
                return False
            await asyncio.sleep(LOOK_AGAIN_S)
        return True

    async def _read_soon(self, span: Span, target: memoryview) -> bool:
        if self._read_here(span, target, os.RWF_NOWAIT):
            return True
        return span.block_index not in self._suspects and await self._read_in_thread(span, target)

    def _is_recorded(self, index: int) -> bool:
        return self._client.here.record(self.file.key(index)) is not None

    async def _read_in_thread(self, span: Span, target: memoryview) -> bool:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._client.threads, self._read_here, span, target)

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
        ahead = self._ahead.note(offset_bytes, size_bytes)
        for index in ahead:
            if len(self._ahead_tasks) >= AHEAD_TASKS_MAX:
                return
            is_here = self._client.here.record(self.file.key(index)) is not None
            if not is_here:
                self._brought.add(index)
            # The peer hears how far a stream has come, so that it goes on bringing what follows.
            if not is_here or index == ahead[-1]:
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
