"""Resident memory of every daemon under a thousand concurrent readers.

Each reader is a thread that takes whole files at random, one after the other,
through one mount of a cluster of three peers. The goal is the configured budget.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import threading
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench import cpu, flags
from bench.cluster import Cluster, Daemon, UnderStore, workplace
from bench.data import make_files, parse_size
from bench.measure import MB, MIB, stopwatch
from bench.table import Table, value_at_most

COMPARED = (
    "VmRSS of each daemon with its children, sampled 5 times a second; control: before the readers"
)
BUFFER_BYTES = 128 * 1024  # a thousand of them must not be what fills the machine
SAMPLE_S = 0.2


def main() -> None:
    parser = flags.parser(__doc__, size="8GiB", quick_size="512MiB")
    parser.add_argument("--files", type=int, default=200)
    parser.add_argument("--readers", type=int, default=1000)
    parser.add_argument("--reads", type=int, default=1, help="files that each reader reads")
    parser.add_argument("--processes", type=int, default=4, help="that hold the readers")
    parser.add_argument("--peers", type=int, default=3)
    parser.add_argument("--budget", type=parse_size, default=parse_size("512MiB"))
    parser.add_argument("--capacity", default="20GiB", help="of each peer's store")
    given = flags.settled(parser)
    table = Table("memory", compared=COMPARED)
    table.settings = {
        name: getattr(given, name)
        for name in ("size", "files", "readers", "reads", "peers", "budget")
    }
    with workplace(given.directory) as place:
        make_files(place / "data", given.files, given.size // given.files)
        under_store = UnderStore(f"file://{place / 'data'}")
        with Cluster(
            place / "mesh", under_store, peers=given.peers, capacity=given.capacity, settle_s=3.0
        ) as mesh:
            paths = sorted(path for path in mesh.view().rglob("*") if path.is_file())
            before = {daemon.name: daemon.rss_bytes() for daemon in mesh.daemons}
            with sampled(mesh.daemons) as peaks:
                mb_per_s = read_all(
                    paths, readers=given.readers, reads=given.reads, processes=given.processes
                )
            add_rows(table, mesh.daemons, before, peaks, budget_bytes=given.budget)
            table.add(f"{given.readers} readers together", mb_per_s, "MB/s")
    table.finish()


def add_rows(
    table: Table,
    daemons: Sequence[Daemon],
    before: dict[str, int],
    peaks: dict[str, int],
    *,
    budget_bytes: int,
) -> None:
    """Add the rows of each daemon: peak against budget, anonymous part, what stays."""
    goal = value_at_most(budget_bytes / MIB)
    for daemon in daemons:
        name, start = daemon.name, before[daemon.name] / MIB
        table.add(f"{name}: peak RSS", peaks[name] / MIB, "MiB", control=start, goal=goal)
        anonymous = peaks[f"{name} anonymous"] / MIB
        table.add(f"{name}: peak, anonymous part", anonymous, "MiB")
        table.add(f"{name}: RSS afterwards", daemon.rss_bytes() / MIB, "MiB", control=start)


@contextmanager
def sampled(daemons: Sequence[Daemon]) -> Iterator[dict[str, int]]:
    """Give a dict of the highest RSS of each daemon seen during the block."""
    peaks: dict[str, int] = defaultdict(int)
    over = threading.Event()

    def sample() -> None:
        while True:
            for daemon in daemons:
                anonymous = f"{daemon.name} anonymous"
                peaks[daemon.name] = max(peaks[daemon.name], daemon.rss_bytes())
                peaks[anonymous] = max(peaks[anonymous], cpu.anonymous_bytes(daemon.pid))
            if over.wait(SAMPLE_S):
                return

    sampler = threading.Thread(target=sample)
    sampler.start()
    try:
        yield peaks
    finally:
        over.set()
        sampler.join()


def read_all(paths: Sequence[Path], *, readers: int, reads: int, processes: int) -> float:
    """Run *readers* readers, spread over *processes*; return MB/s of all together."""
    context = multiprocessing.get_context("spawn")
    total_bytes = context.Value("q", 0)
    names = [str(path) for path in paths]
    start = context.Barrier(processes + 1)
    children = [
        context.Process(target=_read_some, args=(names, share, reads, seed, start, total_bytes))
        for seed, share in enumerate(_shares(readers, processes))
    ]
    for child in children:
        child.start()
    start.wait(timeout=60)
    with stopwatch() as elapsed_s:
        for child in children:
            child.join()
    if any(child.exitcode for child in children):
        raise RuntimeError("a reader failed")
    return float(total_bytes.value) / elapsed_s() / MB


def _shares(total: int, parts: int) -> list[int]:
    return [total // parts + (part < total % parts) for part in range(parts)]


def _read_some(
    names: list[str], readers: int, reads: int, seed: int, start: Any, total_bytes: Any
) -> None:
    """Be *readers* readers: the kernel does the work, Python only loops."""
    errors: list[BaseException] = []

    def read(reader_seed: int) -> None:
        draw = random.Random(reader_seed)
        try:
            read_bytes = sum(_read_whole(draw.choice(names)) for _ in range(reads))
        except BaseException as error:
            errors.append(error)
            raise
        with total_bytes.get_lock():
            total_bytes.value += read_bytes

    threading.stack_size(256 * 1024)
    threads = [
        threading.Thread(target=read, args=(seed * 1_000_000 + index,)) for index in range(readers)
    ]
    start.wait()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise SystemExit(1)


def _read_whole(name: str) -> int:
    buffer = bytearray(BUFFER_BYTES)
    fd = os.open(name, os.O_RDONLY)
    try:
        read_bytes = 0
        while got_bytes := os.readv(fd, [buffer]):
            read_bytes += got_bytes
        return read_bytes
    finally:
        os.close(fd)


if __name__ == "__main__":
    main()
