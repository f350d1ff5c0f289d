"""Timed reads, the same for subject and control, and the order they are run in.

A control is measured beside its subject, in turns (control, subject, control,
...), so that a neighbor's burst hits both; the median of the turns counts.
"""

from __future__ import annotations

import mmap
import os
import random
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from crc32c import crc32c

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB
GB = 1_000_000_000
MB = 1_000_000

Figure = Callable[[int], float]
"""Measures once, given the number of the turn; returns what is to be compared."""


class Median(float):
    """The median of some samples, which it keeps: a median alone hides how far they lie apart."""

    samples: list[float]

    def __new__(cls, samples: Sequence[float]) -> Self:
        median = super().__new__(cls, statistics.median(samples))
        median.samples = list(samples)
        return median


def in_turns(*figures: Figure, turns: int) -> list[Median]:
    """Run all *figures* by turns; return the median of each."""
    samples = [[figure(turn) for figure in figures] for turn in range(turns)]
    return [Median(column) for column in zip(*samples, strict=True)]


@contextmanager
def stopwatch() -> Iterator[Callable[[], float]]:
    """Give a function that returns the seconds since the start, or of the whole block."""
    started_s = time.perf_counter()
    ended_s: float | None = None
    yield lambda: (ended_s or time.perf_counter()) - started_s
    ended_s = time.perf_counter()


def sequential_mb_per_s(path: Path, *, request_bytes: int = MIB) -> float:
    """Read the file at *path* once from start to end."""
    buffer = bytearray(request_bytes)
    total_bytes = 0
    fd = os.open(path, os.O_RDONLY)
    try:
        with stopwatch() as elapsed_s:
            while got_bytes := os.readv(fd, [buffer]):
                total_bytes += got_bytes
    finally:
        os.close(fd)
    return total_bytes / elapsed_s() / MB


def mmap_mb_per_s(path: Path) -> float:
    """Copy the file at *path* out of a mapping, from start to end, 1 MiB at a time."""
    buffer = bytearray(MIB)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        size_bytes = len(mapped)
        with memoryview(mapped) as view, stopwatch() as elapsed_s:
            for start_bytes in range(0, size_bytes, MIB):
                stop_bytes = min(start_bytes + MIB, size_bytes)
                buffer[: stop_bytes - start_bytes] = view[start_bytes:stop_bytes]
    return size_bytes / elapsed_s() / MB


def random_reads_per_s(path: Path, *, count: int, seed: int, request_bytes: int = 4 * KIB) -> float:
    """Read *count* aligned pieces of the file at *path*, one after the other."""
    pieces = path.stat().st_size // request_bytes
    draw = random.Random(seed)
    offsets = [draw.randrange(pieces) * request_bytes for _ in range(count)]
    buffer = bytearray(request_bytes)
    fd = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
        with stopwatch() as elapsed_s:
            for offset in offsets:
                os.preadv(fd, [buffer], offset)
    finally:
        os.close(fd)
    return count / elapsed_s()


def parallel_mb_per_s(path: Path, *, threads: int, request_bytes: int) -> float:
    """Read the file at *path* once, its pieces taken in order by *threads* readers."""
    size_bytes = path.stat().st_size
    fd = os.open(path, os.O_RDONLY)

    def read_piece(offset: int, buffer: bytearray) -> None:
        os.preadv(fd, [buffer], offset)

    try:
        return take_pieces(
            read_piece, size_bytes=size_bytes, threads=threads, request_bytes=request_bytes
        )
    finally:
        os.close(fd)


def take_pieces(
    read_piece: Callable[[int, bytearray], None],
    *,
    size_bytes: int,
    threads: int,
    request_bytes: int,
) -> float:
    """Have *threads* threads call *read_piece* for all offsets; return MB/s."""
    offsets = iter(range(0, size_bytes, request_bytes))
    errors: list[BaseException] = []

    def work() -> None:
        buffer = bytearray(request_bytes)
        try:
            for offset in offsets:
                read_piece(offset, buffer)
        except BaseException as error:
            errors.append(error)

    workers = [threading.Thread(target=work) for _ in range(threads)]
    with stopwatch() as elapsed_s:
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    if errors:
        raise errors[0]
    return size_bytes / elapsed_s() / MB


def files_per_s(paths: Sequence[Path]) -> float:
    """Open, read to the end and close each of *paths*."""
    buffer = bytearray(MIB)
    with stopwatch() as elapsed_s:
        for path in paths:
            fd = os.open(path, os.O_RDONLY)
            while os.readv(fd, [buffer]):
                pass
            os.close(fd)
    return len(paths) / elapsed_s()


def stats_per_s(paths: Sequence[Path]) -> float:
    """Stat each of *paths* once."""
    names = [str(path) for path in paths]
    with stopwatch() as elapsed_s:
        for name in names:
            os.stat(name)  # noqa: PTH116 (a Path would cost more than the stat)
    return len(names) / elapsed_s()


def checksum(path: Path) -> int:
    """Return the CRC-32C of the file at *path*."""
    sum_so_far = 0
    with path.open("rb", buffering=0) as file:
        while piece := file.read(4 * MIB):
            sum_so_far = crc32c(piece, sum_so_far)
    return sum_so_far


def must_be_equal(subject: Path, control: Path) -> None:
    """Raise unless both files have the same bytes; a fast wrong answer is no figure."""
    if checksum(subject) != checksum(control):
        raise RuntimeError(f"{subject} and {control} differ")


def forget_pages(path: Path) -> None:
    """Drop the file at *path* from the kernel's page cache, for whoever caches it there."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)


def forget_all() -> bool:
    """Drop all clean pages, dentries and inodes of this machine; False if not allowed to."""
    os.sync()
    try:
        Path("/proc/sys/vm/drop_caches").write_text("3")
    except OSError:
        return False
    return True
