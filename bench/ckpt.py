"""Checkpoints: one stream that is written and closed, and read by another host at once.

The controls write the same bytes by turns with mesh: `dd conv=fsync` to the same disk, and
pyarrow's own upload to the same S3 server. A mesh of two peers with a mount each, in each
durability: `through` (close waits for the under-store), `copies` (for two disks), `local`.
What is staged is flushed after each turn, and that is not counted.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from bench import flags
from bench.cluster import Cluster, mesh_command, workplace
from bench.data import make_file
from bench.measure import GB, MIB, Median, checksum, in_turns, sequential_mb_per_s, stopwatch
from bench.table import Table, ratio_at_least
from bench.under_store import Origin, directory_origin, s3_origin

WRITE_BYTES = 4 * MIB
COMPARED = (
    "controls by turns, medians: dd bs=4M conv=fsync to the same disk; pyarrow's upload to the "
    "same S3 server; for reads the source file, in memory"
)


def main() -> None:
    given = flags.settled(flags.parser(__doc__, size="4GiB", quick_size="512MiB"))
    table = Table("ckpt", compared=COMPARED)
    table.settings = {"size_bytes": given.size, "turns": given.turns}
    with workplace(given.directory) as place:
        source = make_file(place / "source", given.size, seed=1)
        disk = place / "dd"
        (place / "data").mkdir()

        def dd(turn: int) -> float:
            return dd_mb_per_s(source, disk)

        def upload(turn: int, origin: Origin) -> float:
            return upload_mb_per_s(source, origin, f"bare-{turn}")

        origin = directory_origin(place / "data")
        for durability in ("through", "copies", "local"):
            bench(table, origin, place, dd, turns=given.turns, durability=durability)
        (place / "empty").mkdir()
        with s3_origin(place, data=place / "empty") as origin:
            bench(
                table,
                origin,
                place,
                lambda turn: upload(turn, origin),
                turns=given.turns,
                durability="through",
            )
    table.finish()


def bench(
    table: Table,
    origin: Origin,
    place: Path,
    control: Callable[[int], float],
    *,
    turns: int,
    durability: str,
) -> None:
    """Add the rows of one under-store, in one durability."""
    source = place / "source"
    size_bytes = source.stat().st_size
    under_store = replace(origin.under_store, durability=durability)
    directory = place / f"mesh-{under_store.url[:2]}-{durability}"
    title = f"{origin.name}, {durability}"
    closes_s: list[float] = []
    reads: list[float] = []
    plain: list[float] = []
    with Cluster(directory, under_store, peers=2, mounts=2, capacity="40GiB") as mesh:

        def write(turn: int) -> float:
            path = mesh.view(0) / f"ckpt-{turn}"
            took_s, close_s = written(source, path)
            closes_s.append(close_s)
            reads.append(sequential_mb_per_s(mesh.view(1) / path.name))
            plain.append(sequential_mb_per_s(source))
            if checksum(mesh.view(1) / path.name) != checksum(source):
                raise RuntimeError(f"{origin.name}: another host has read wrong bytes")
            flush(mesh)
            path.unlink()
            return size_bytes / took_s / 1e6

        with mesh.counted_cpu() as used:
            bare, through = in_turns(control, write, turns=turns)
    name = f"{title}: write and close"
    table.add(name, through, "MB/s", control=bare, goal=ratio_at_least(0.9))
    table.add(f"{title}: close alone", Median(closes_s), "s")
    read = f"{title}: read by another host right after close"
    table.add(read, Median(reads), "MB/s", control=Median(plain))
    for daemon, cpu_s in used.items():
        what = f"{title}: CPU of {daemon}, reads and uploads included"
        table.add(what, cpu_s / (turns * size_bytes / GB), "CPU-s/GB")


def flush(mesh: Cluster) -> None:
    """Wait until the under-store has all that is staged."""
    command = [*mesh_command(), "flush", "-c", str(mesh.config_path(0))]
    subprocess.run(command, check=True, capture_output=True, timeout=600)


def written(source: Path, target: Path) -> tuple[float, float]:
    """Copy a file by writes of 4 MiB; return the seconds of it all, and those of close(2)."""
    buffer = memoryview(bytearray(WRITE_BYTES))
    with source.open("rb", buffering=0) as data, stopwatch() as elapsed_s:
        file = target.open("wb", buffering=0)
        while got_bytes := data.readinto(buffer):
            file.write(buffer[:got_bytes])
        written_s = elapsed_s()
        file.close()
        return elapsed_s(), elapsed_s() - written_s


def dd_mb_per_s(source: Path, target: Path) -> float:
    command = ["dd", f"if={source}", f"of={target}", "bs=4M", "conv=fsync"]
    with stopwatch() as elapsed_s:
        subprocess.run(command, check=True, capture_output=True, timeout=600)
    took_s = elapsed_s()
    target.unlink()
    return source.stat().st_size / took_s / 1e6


def upload_mb_per_s(source: Path, origin: Origin, name: str) -> float:
    buffer = memoryview(bytearray(WRITE_BYTES))
    path = f"{origin.prefix}/{name}"
    with source.open("rb", buffering=0) as data, stopwatch() as elapsed_s:
        with origin.filesystem.open_output_stream(path) as stream:
            while got_bytes := data.readinto(buffer):
                stream.write(bytes(buffer[:got_bytes]))
        took_s = elapsed_s()
    origin.filesystem.delete_file(path)
    return source.stat().st_size / took_s / 1e6


if __name__ == "__main__":
    main()
