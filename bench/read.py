"""Reads through one mount, against reading the backing file itself in the same run.

Cold: nothing of the file is in the mesh, nothing of the backing file in the page
cache. Warm: the block is in the node's store, and the kernel's own pages of the
mounted file are dropped, so that the daemon (or passthrough) does the work. Page
cache: read again with nothing dropped.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from bench import flags
from bench.cluster import Cluster, UnderStore, workplace
from bench.data import make_file
from bench.measure import (
    GB,
    forget_pages,
    in_turns,
    mmap_mb_per_s,
    must_be_equal,
    random_reads_per_s,
    sequential_mb_per_s,
)
from bench.table import Goal, Table, ratio_at_least

COMPARED = (
    "control: the same reads of the backing file, by turns, medians; "
    "warm: kernel pages of the view dropped"
)


def main() -> None:
    given = flags.settled(flags.parser(__doc__, size="1GiB", quick_size="128MiB"))
    table = Table("read", compared=COMPARED)
    table.settings = {"size_bytes": given.size, "turns": given.turns}
    with workplace(given.directory) as place:
        names = [f"cold-{turn}" for turn in range(given.turns)] + ["random", "warm"]
        for seed, name in enumerate(names):
            make_file(place / "data" / name, given.size, seed=seed)
        with Cluster(place / "mesh", UnderStore(f"file://{place / 'data'}")) as mesh:
            bench = ReadBench(mesh, place / "data", table, turns=given.turns)
            bench.cold_sequential()
            bench.cold_random(count=200 if given.quick else 1000)
            bench.warm(count=2000 if given.quick else 10_000)
    table.finish()


class ReadBench:
    """The rows of this benchmark, one method for each family."""

    def __init__(self, mesh: Cluster, data: Path, table: Table, *, turns: int) -> None:
        self._mesh = mesh
        self._data = data
        self._view = mesh.view()
        self._table = table
        self._turns = turns

    def cold_sequential(self) -> None:
        """Each turn reads a file of its own, so that each is the first read."""

        def control(turn: int) -> float:
            forget_pages(self._data / f"cold-{turn}")
            return sequential_mb_per_s(self._data / f"cold-{turn}")

        def subject(turn: int) -> float:
            forget_pages(self._data / f"cold-{turn}")
            return sequential_mb_per_s(self._view / f"cold-{turn}")

        with self._mesh.counted_cpu() as used:
            plain, through = in_turns(control, subject, turns=self._turns)
        self._table.add("cold, sequential 1 MiB", through, "MB/s", control=plain)
        self._cpu_rows("cold, sequential 1 MiB", used, read_bytes=self._bytes(turns=self._turns))
        must_be_equal(self._view / "cold-0", self._data / "cold-0")

    def cold_random(self, *, count: int) -> None:
        """Only the first turn of a file is cold, so there is one."""
        name = "random"
        forget_pages(self._data / name)
        plain = random_reads_per_s(self._data / name, count=count, seed=1)
        forget_pages(self._data / name)
        through = random_reads_per_s(self._view / name, count=count, seed=1)
        self._table.add("cold, random 4 KiB (one turn)", through, "reads/s", control=plain)

    def warm(self, *, count: int) -> None:
        """The same file again and again."""
        must_be_equal(self._view / "warm", self._data / "warm")  # this warms both
        goal = ratio_at_least(0.25)
        plain, through = self._warm_row("warm, sequential 1 MiB", sequential_mb_per_s, goal=goal)
        self._warm_row(
            "warm, sequential 128 KiB", partial(sequential_mb_per_s, request_bytes=2**17)
        )
        figure = partial(random_reads_per_s, count=count, seed=2)
        self._warm_row("warm, random 4 KiB", figure, unit="reads/s")
        plain_mapped, mapped = self._warm_row("warm, mmap sequential", mmap_mb_per_s)
        self._table.add(
            "warm, mmap against read(), through the view",
            mapped,
            "MB/s",
            control=through,
            goal=ratio_at_least(0.75),
        )
        self._table.add("the same of the backing file", plain_mapped, "MB/s", control=plain)
        turns = in_turns(
            lambda _: sequential_mb_per_s(self._data / "warm"),
            lambda _: sequential_mb_per_s(self._view / "warm"),
            turns=self._turns,
        )
        self._table.add("page cache, sequential 1 MiB", turns[1], "MB/s", control=turns[0])

    def _warm_row(
        self,
        what: str,
        figure: Callable[[Path], float],
        *,
        unit: str = "MB/s",
        goal: Goal | None = None,
    ) -> tuple[float, float]:
        def subject(turn: int) -> float:
            forget_pages(self._view / "warm")
            return figure(self._view / "warm")

        with self._mesh.counted_cpu() as used:
            plain, through = in_turns(
                lambda turn: figure(self._data / "warm"), subject, turns=self._turns
            )
        self._table.add(what, through, unit, control=plain, goal=goal)
        if unit == "MB/s":
            self._cpu_rows(what, used, read_bytes=self._bytes(turns=self._turns))
        return plain, through

    def _bytes(self, *, turns: int) -> int:
        return turns * (self._data / "warm").stat().st_size

    def _cpu_rows(self, what: str, used: dict[str, float], *, read_bytes: int) -> None:
        for name, cpu_s in used.items():
            self._table.add(f"{what}: CPU of {name}", cpu_s / (read_bytes / GB), "CPU-s/GB")


if __name__ == "__main__":
    main()
