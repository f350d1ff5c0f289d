"""The same reads through mesh, JuiceFS, rclone and the plain directory.

All of them show the same files, kept on the same disk, one after the other:

    plain    the directory itself: the control
    mesh     one peer and one mount over that directory
    juicefs  sqlite3 metadata, storage "file"; the files are put in through its mount
    rclone   a local remote, --vfs-cache-mode full

They run by turns, in an order that rotates, and the medians of the turns count.
Cold: an empty cache, a fresh daemon, and all caches of the kernel dropped. Warm:
read once before, then the kernel's pages of the mounted files dropped, so that
the daemons and their caches are measured, not the page cache above them; the
plain directory keeps its pages, since they are the only store that it has. For
`stat`, warm keeps what the kernel cached; "kernel caches dropped" starts with a
warm daemon over a cold kernel, the backing directory's own entries included.
All may keep attributes and entries for 60 s; the rest is as they ship it.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from itertools import count
from pathlib import Path
from typing import Protocol

from bench import flags
from bench.cluster import Cluster, Mount, UnderStore, workplace
from bench.data import make_file, make_files
from bench.measure import (
    KIB,
    Median,
    checksum,
    files_per_s,
    forget_all,
    forget_pages,
    random_reads_per_s,
    sequential_mb_per_s,
    stats_per_s,
)
from bench.table import Table
from mesh.testing.servers import find_program, free_port

KERNEL_TIMEOUT_S = 60
COMPARED = (
    "control: that rival, in the same run, by turns; medians; a ratio over 1: {subject} is faster"
)


Forget = Callable[[Sequence[Path]], None]
Figures = dict[str, dict[str, Median]]
Leg = Callable[[Path, Forget], dict[str, float]]


class Rival(Protocol):
    """Something that shows the data as a directory."""

    name: str

    has_daemon: bool
    """Whether it keeps a cache below the kernel's pages of what it shows."""

    def running(self) -> AbstractContextManager[Path]:
        """Start with an empty cache; give the directory to read from."""
        ...


class Plain:
    """The control: the directory itself."""

    name = "plain"
    has_daemon = False

    def __init__(self, data: Path) -> None:
        self._data = data

    @contextmanager
    def running(self) -> Iterator[Path]:
        yield self._data


class Mesh:
    """One peer of mesh and a mount beside it."""

    name = "mesh"
    has_daemon = True

    def __init__(self, data: Path, place: Path) -> None:
        self._under_store = UnderStore(f"file://{data}")
        self._place = place
        self._starts = count()

    @contextmanager
    def running(self) -> Iterator[Path]:
        fresh = self._place / f"mesh-{next(self._starts)}"
        with Cluster(fresh, self._under_store) as mesh:
            yield mesh.view()
        shutil.rmtree(fresh / "store-1", ignore_errors=True)


class JuiceFS:
    """A volume of its own that the files were copied into."""

    name = "juicefs"
    has_daemon = True

    def __init__(self, data: Path, place: Path) -> None:
        """Make the volume and put *data* in, through a mount."""
        self._program = find_program("juicefs")
        self._place = place
        self._meta = f"sqlite3://{place / 'juicefs.db'}"
        self._starts = count()
        self._format()
        with self.running() as view:
            shutil.copytree(data, view, dirs_exist_ok=True)

    def _format(self) -> None:
        volume = ["--storage", "file", "--bucket", f"{self._place / 'juicefs-bucket'}/"]
        command = [self._program, "format", *volume, "--trash-days", "0", self._meta, "bench"]
        run_quietly(command, self._place / "juicefs-format.log")

    @contextmanager
    def running(self) -> Iterator[Path]:
        fresh = self._place / f"juicefs-{next(self._starts)}"
        timeouts = [f"--{kind}-cache={KERNEL_TIMEOUT_S}" for kind in ("attr", "entry", "dir-entry")]
        command = [
            self._program,
            "mount",
            *timeouts,
            f"--cache-dir={fresh / 'cache'}",
            "--free-space-ratio=0.02",  # its default of 0.1 would cache nothing on a full disk
            f"--metrics=127.0.0.1:{free_port()}",
            "--no-usage-report",
            self._meta,
            str(fresh / "view"),
        ]
        with Mount("juicefs", command, point=fresh / "view", log=fresh / "log") as mount:
            yield mount.point
        shutil.rmtree(fresh / "cache", ignore_errors=True)


class Rclone:
    """A local remote behind rclone's own file cache."""

    name = "rclone"
    has_daemon = True

    def __init__(self, data: Path, place: Path) -> None:
        self._program = find_program("rclone")
        self._data, self._place = data, place
        self._starts = count()

    @contextmanager
    def running(self) -> Iterator[Path]:
        fresh = self._place / f"rclone-{next(self._starts)}"
        fresh.mkdir()
        (fresh / "rclone.conf").touch()
        command = [
            self._program,
            "mount",
            f"--config={fresh / 'rclone.conf'}",
            f"--cache-dir={fresh / 'cache'}",
            "--vfs-cache-mode=full",
            f"--attr-timeout={KERNEL_TIMEOUT_S}s",
            str(self._data),
            str(fresh / "view"),
        ]
        with Mount("rclone", command, point=fresh / "view", log=fresh / "log") as mount:
            yield mount.point
        shutil.rmtree(fresh / "cache", ignore_errors=True)


class Course:
    """The reads that every rival runs."""

    def __init__(self, data: Path, *, small_files: int, reads: int) -> None:
        self._data = data
        self._reads = reads
        # In no order that any cache could have been filled in.
        self._small = [path.relative_to(data) for path in (data / "small").rglob("*/*")]
        assert len(self._small) == small_files
        random.Random(1).shuffle(self._small)

        self.legs: list[Leg] = [self._sequential, self._random, self._small_files, self._stats]

    def run(self, rival: Rival, leg: Leg) -> dict[str, float]:
        """Run *leg* once with a fresh *rival*; return the figures by name."""
        forget = _forget_each if rival.has_daemon else _forget_none
        with rival.running() as view:
            forget_all()
            return leg(view, forget)

    def _sequential(self, view: Path, forget: Forget) -> dict[str, float]:
        big = view / "big"
        cold = sequential_mb_per_s(big)
        if checksum(big) != checksum(self._data / "big"):
            raise RuntimeError(f"{big} is not what was put in")
        forget([big])
        warm = sequential_mb_per_s(big)
        return {"sequential 1 MiB, cold, MB/s": cold, "sequential 1 MiB, warm, MB/s": warm}

    def _random(self, view: Path, forget: Forget) -> dict[str, float]:
        big = view / "big"
        few = self._reads // 10  # each of them may fetch a whole block
        cold = random_reads_per_s(big, count=few, seed=1)
        sequential_mb_per_s(big)
        forget([big])
        warm = random_reads_per_s(big, count=self._reads, seed=2)
        return {"random 4 KiB, cold, reads/s": cold, "random 4 KiB, warm, reads/s": warm}

    def _small_files(self, view: Path, forget: Forget) -> dict[str, float]:
        paths = [view / path for path in self._small]
        cold = files_per_s(paths)
        forget(paths)
        warm = files_per_s(paths)
        return {"files of 100 KiB, cold, files/s": cold, "files of 100 KiB, warm, files/s": warm}

    def _stats(self, view: Path, forget: Forget) -> dict[str, float]:
        paths = [view / path for path in self._small]
        cold = stats_per_s(paths)
        warm = stats_per_s(paths)
        forget_all()
        dropped = stats_per_s(paths)
        return {
            "stat, cold, stats/s": cold,
            "stat, warm, stats/s": warm,
            "stat, warm, kernel caches dropped, stats/s": dropped,
        }


def _forget_each(paths: Sequence[Path]) -> None:
    for path in paths:
        forget_pages(path)


def _forget_none(paths: Sequence[Path]) -> None:
    pass


def main() -> None:
    parser = flags.parser(__doc__, size="2GiB", quick_size="256MiB")
    parser.add_argument("--small-files", type=int, help="of 100 KiB (default 5000; quick: 500)")
    parser.add_argument("--only", nargs="+", default=["mesh", "juicefs", "rclone"])
    given = flags.settled(parser)
    given.small_files = given.small_files or (500 if given.quick else 5000)
    subject = "mesh" if "mesh" in given.only else "plain"
    table = Table("rivals", compared=COMPARED.format(subject=subject))
    table.settings = {
        "size_bytes": given.size,
        "turns": given.turns,
        "files": given.small_files,
        "kernel_caches_dropped": forget_all(),
    }
    with workplace(given.directory) as place:
        data = place / "data"
        make_file(data / "big", given.size, seed=0)
        make_files(data / "small", given.small_files, 100 * KIB)
        reads = 2000 if given.quick else 10_000
        course = Course(data, small_files=given.small_files, reads=reads)
        rivals = [Plain(data), *(_rival(name, data, place) for name in given.only)]
        figures = run_all(course, rivals, turns=given.turns)
    add_rows(table, figures, subject=subject)
    table.finish()


def run_all(course: Course, rivals: list[Rival], *, turns: int) -> Figures:
    """Run *course* with all *rivals*, *turns* times; return the median figures by rival.

    All rivals run one leg before the next leg starts, since what a disk of a shared
    machine gives changes threefold within minutes.
    """
    samples: dict[str, dict[str, list[float]]] = {rival.name: {} for rival in rivals}
    for turn in range(turns):
        first = turn % len(rivals)
        for leg in course.legs:
            for rival in rivals[first:] + rivals[:first]:
                for what, figure in course.run(rival, leg).items():
                    print(f"turn {turn + 1}: {rival.name}: {what}: {figure:,.0f}", flush=True)
                    samples[rival.name].setdefault(what, []).append(figure)
    return {
        name: {what: Median(figures) for what, figures in each.items()}
        for name, each in samples.items()
    }


def _rival(name: str, data: Path, place: Path) -> Rival:
    kinds: dict[str, Callable[[Path, Path], Rival]] = {
        "mesh": Mesh,
        "juicefs": JuiceFS,
        "rclone": Rclone,
    }
    return kinds[name](data, place)


def add_rows(table: Table, figures: Figures, *, subject: str) -> None:
    """Add a row for each figure of *subject* against each other one; samples are stored too."""
    others = {rival: theirs for rival, theirs in figures.items() if rival != subject}
    for what, figure in figures[subject].items():
        name, _, unit = what.rpartition(", ")
        for rival, theirs in others.items():
            table.add(f"{name}: {subject} / {rival}", figure, unit, control=theirs[what])


def run_quietly(command: list[str], log: Path) -> None:
    """Run *command* to its end; its output goes to *log*, and into the error if it fails."""
    with log.open("wb") as output:
        done = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, env=os.environ)
    if done.returncode:
        raise RuntimeError(f"{command[0]} failed: {log.read_text()}")


if __name__ == "__main__":
    main()
