"""Reads of a stored block with what it takes to check them.

A CRC is kept for each grain of a block (`store.index`), so a read is widened to whole
grains. What nobody asked for goes to buffers of its own, in the same system call, and
a CRC goes on from buffer to buffer: nothing is copied.

    grains    |               |               |               |
    buffers   | before |         target         |    after    |
"""

from __future__ import annotations

from collections.abc import Sequence

from crc32c import crc32c

from mesh.blocks import Span
from mesh.store.index import BlockRecord


def widened(span: Span, target: memoryview, record: BlockRecord) -> tuple[int, list[memoryview]]:
    """Return where in the block to begin, and the buffers to read into from there on."""
    step_bytes = record.checked_bytes
    before_bytes = span.start_bytes % step_bytes
    stop_bytes = min(-(-span.stop_bytes // step_bytes) * step_bytes, record.length_bytes)
    buffers = [target]
    if before_bytes:
        buffers.insert(0, memoryview(bytearray(before_bytes)))
    if stop_bytes > span.stop_bytes:
        buffers.append(memoryview(bytearray(stop_bytes - span.stop_bytes)))
    return span.start_bytes - before_bytes, buffers


def is_right(start_bytes: int, buffers: Sequence[memoryview], record: BlockRecord) -> bool:
    """Whether what was read from there on is what was written, and ends with a grain."""
    step_bytes = record.checked_bytes
    at_bytes = start_bytes
    crc = 0
    for buffer in buffers:
        done_bytes = 0
        while done_bytes < len(buffer):
            left_bytes = step_bytes - at_bytes % step_bytes
            part = buffer[done_bytes : done_bytes + left_bytes]
            crc = crc32c(part, crc, gil_release_mode=0)  # it takes 5 µs, as would the GIL
            done_bytes += len(part)
            at_bytes += len(part)
            if len(part) == left_bytes or at_bytes == record.length_bytes:
                if crc != record.crc((at_bytes - 1) // step_bytes):
                    return False
                crc = 0
    return at_bytes % step_bytes == 0 or at_bytes == record.length_bytes
