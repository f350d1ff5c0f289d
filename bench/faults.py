"""Parallel page faults in a cold file, against read() of as cold a one.

Eight processes of eight threads each take a file to pieces, a sixty-fourth for each
thread, as loaders of safetensors do: mapped, so that the kernel asks for each page
when it is touched, or by pread of 1 MiB. Every turn has files of its own, which
nobody has read before.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from bench import flags
from bench.cluster import Cluster, UnderStore, workplace
from bench.data import make_file
from bench.measure import MB, forget_pages, in_turns, stopwatch
from bench.table import Table, ratio_at_least

PROCESSES = 8
COMPARED = "control: the same through pread of 1 MiB, each of a cold file, by turns, medians"
READER = """
import mmap, os, sys, threading
path, how, process = sys.argv[1], sys.argv[2], int(sys.argv[3])
size = os.path.getsize(path)
fd = os.open(path, os.O_RDONLY)
mapped = mmap.mmap(fd, 0, prot=mmap.PROT_READ) if how == "mmap" else None
def work(thread):
    begin = size * (process * 8 + thread) // 64
    end = size * (process * 8 + thread + 1) // 64
    for offset in range(begin, end, 1 << 20):
        stop = min(offset + (1 << 20), end)
        data = mapped[offset:stop] if mapped else os.pread(fd, stop - offset, offset)
        assert len(data) == stop - offset
threads = [threading.Thread(target=work, args=(k,)) for k in range(8)]
[t.start() for t in threads]
[t.join() for t in threads]
"""


def main() -> None:
    given = flags.settled(flags.parser(__doc__, size="512MiB", quick_size="128MiB"))
    table = Table("faults", compared=COMPARED)
    table.settings = {"size_bytes": given.size, "turns": given.turns}
    with workplace(given.directory) as place:
        for turn in range(given.turns):
            for how in ("mmap", "read"):
                make_file(place / "data" / f"{how}-{turn}", given.size, seed=turn)
        with Cluster(place / "mesh", UnderStore(f"file://{place / 'data'}")) as mesh:

            def figure(how: str, turn: int) -> float:
                name = f"{how}-{turn}"
                forget_pages(place / "data" / name)
                return mb_per_s(mesh.view() / name, how, size_bytes=given.size)

            read, mapped = in_turns(
                lambda turn: figure("read", turn),
                lambda turn: figure("mmap", turn),
                turns=given.turns,
            )
            table.add(
                "cold, 64 threads fault pages",
                mapped,
                "MB/s",
                control=read,
                goal=ratio_at_least(0.75),
            )
    table.finish()


def mb_per_s(path: Path, how: str, *, size_bytes: int) -> float:
    """Return how fast eight processes had the whole file."""
    with stopwatch() as seconds:
        readers = [
            subprocess.Popen([sys.executable, "-c", READER, str(path), how, str(process)])
            for process in range(PROCESSES)
        ]
        codes = [reader.wait() for reader in readers]
    if any(codes):
        raise RuntimeError(f"readers ended with {codes}")
    return size_bytes / MB / seconds()


if __name__ == "__main__":
    main()
