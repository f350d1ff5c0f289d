"""Cold reads: everything comes from the under-store, against its client library alone.

Subject and control ask for the same: 16 threads, 4 MiB a request, in order. Each
turn reads a file that nobody has read before, with its pages dropped where the
under-store is a directory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyarrow import fs

from bench import flags
from bench.cluster import Cluster, UnderStore, workplace
from bench.data import make_file
from bench.measure import (
    GB,
    MIB,
    checksum,
    forget_pages,
    in_turns,
    parallel_mb_per_s,
    sequential_mb_per_s,
    take_pieces,
)
from bench.table import Table, ratio_at_least
from mesh.testing.servers import SeaweedS3

THREADS = 16
REQUEST_BYTES = 4 * MIB
COMPARED = f"control: bare pyarrow, {THREADS} threads x read_at of 4 MiB, by turns, medians"


@dataclass(frozen=True, slots=True)
class Origin:
    """An under-store under test, and pyarrow's own way to it."""

    name: str
    under_store: UnderStore
    filesystem: Any
    prefix: str
    forget: Callable[[str], None]
    """Make the under-store cold for the file of this name, as far as that can be done."""


def main() -> None:
    parser = flags.parser(__doc__, size="512MiB", quick_size="128MiB")
    parser.add_argument("--only", choices=("directory", "s3"), help="one under-store")
    given = flags.settled(parser)
    table = Table("under_store", compared=COMPARED)
    table.settings = {"size_bytes": given.size, "turns": given.turns, "threads": THREADS}
    with workplace(given.directory) as place:
        for turn in range(2 * given.turns):
            make_file(place / "data" / str(turn), given.size, seed=turn)
        if given.only != "s3":
            bench(table, directory_origin(place / "data"), place, turns=given.turns)
        if given.only != "directory":
            with s3_origin(place, data=place / "data") as origin:
                bench(table, origin, place, turns=given.turns)
    table.finish()


def directory_origin(data: Path) -> Origin:
    """Return the directory *data* as an under-store."""
    return Origin(
        name="directory",
        under_store=UnderStore(f"file://{data}"),
        filesystem=fs.LocalFileSystem(),
        prefix=str(data),
        forget=lambda name: forget_pages(data / name),
    )


@contextmanager
def s3_origin(place: Path, *, data: Path) -> Iterator[Origin]:
    """Run a SeaweedFS that has the files of *data* in a bucket."""
    with SeaweedS3(place / "weed") as server:
        server.make_bucket("bench")
        filesystem = server.filesystem()
        fs.copy_files(str(data), "bench", destination_filesystem=filesystem)
        keys = {
            "endpoint": server.endpoint,
            "region": server.region,
            "access_key": server.access_key,
            "secret_key": server.secret_key,
        }
        yield Origin(
            name="SeaweedFS S3",
            under_store=UnderStore("s3://bench", keys),
            filesystem=filesystem,
            prefix="bench",
            forget=lambda name: None,
        )


def bench(table: Table, origin: Origin, place: Path, *, turns: int) -> None:
    """Add the rows of *origin*: the same concurrency, and one plain sequential reader."""
    with Cluster(place / f"mesh-{origin.under_store.url[:2]}", origin.under_store) as mesh:

        def control(turn: int) -> float:
            origin.forget(str(turn))
            return bare_mb_per_s(origin, str(turn))

        def parallel(turn: int) -> float:
            origin.forget(str(turn))
            path = mesh.view() / str(turn)
            return parallel_mb_per_s(path, threads=THREADS, request_bytes=REQUEST_BYTES)

        def sequential(turn: int) -> float:
            origin.forget(str(turns + turn))
            return sequential_mb_per_s(mesh.view() / str(turns + turn))

        with mesh.counted_cpu() as used:
            bare, through = in_turns(control, parallel, turns=turns)
        title = f"{origin.name}: cold, {THREADS} threads x 4 MiB"
        table.add(title, through, "MB/s", control=bare, goal=ratio_at_least(0.8))
        read_bytes = turns * (place / "data" / "0").stat().st_size
        for name, cpu_s in used.items():
            table.add(f"{title}: CPU of {name}", cpu_s / (read_bytes / GB), "CPU-s/GB")
        bare, through = in_turns(control, sequential, turns=turns)
        table.add(f"{origin.name}: cold, one sequential reader", through, "MB/s", control=bare)
        if checksum(mesh.view() / "0") != checksum(place / "data" / "0"):
            raise RuntimeError(f"{origin.name}: the mount showed wrong bytes")


def bare_mb_per_s(origin: Origin, name: str) -> float:
    """Read the file *name* of *origin* with pyarrow and nothing else."""
    with origin.filesystem.open_input_file(f"{origin.prefix}/{name}") as file:
        return take_pieces(
            lambda offset, _: file.read_at(REQUEST_BYTES, offset),
            size_bytes=file.size(),
            threads=THREADS,
            request_bytes=REQUEST_BYTES,
        )


if __name__ == "__main__":
    main()
