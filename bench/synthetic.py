"""A directory of millions of names that nobody had to make; one process of `bench.meta`."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

from bench import cpu
from mesh.blocks import Attributes, DirectoryEntry
from mesh.clock import monotonic_s
from mesh.membership.view import Member, view_of
from mesh.metrics import Metrics
from mesh.peer.catalog import Catalog
from mesh.peer.neighbors import RingNeighbors
from mesh.peer.shards import Shards
from mesh.store.entries import Entries
from mesh.store.entry_store import EntryStore
from mesh.store.index import Writer, open_index, read_index
from mesh.testing.memory import MemoryUnderStore
from mesh.understore.table import MountTable
from mesh.understore.understore import PAGE_ENTRIES, UnderStoreSettings
from mesh.wire.channels import Channels

SOURCE = "memory://wide"
WATCH_EVERY_S = 0.2


class WideUnderStore(MemoryUnderStore):
    """One directory with *count* names of 30 bytes, made as they are asked for."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self._count = count

    async def scan(self, path: str) -> AsyncIterator[list[DirectoryEntry]]:
        for start in range(0, self._count, PAGE_ENTRIES):
            stop = min(self._count, start + PAGE_ENTRIES)
            yield [DirectoryEntry(f"{n:030}", _about(n)) for n in range(start, stop)]


def _about(number: int) -> Attributes:
    return Attributes(
        is_directory=False,
        size_bytes=number,
        mtime_ns=1_700_000_000 * 10**9,
        tag=f"{number:032x}",
    )


async def scan(directory: Path, count: int) -> dict[str, float]:
    """Have a peer list it and page through it; return times and the highest memory."""
    index = open_index(directory)
    writer = Writer(index.env)
    entries = EntryStore(Entries(index.env, writable=True), writer, monotonic_s)
    table = MountTable(
        {"/": UnderStoreSettings(url=SOURCE, max_age_s=1e9)}, {SOURCE: WideUnderStore(count)}
    )
    me = Member("one", "127.0.0.1:1", id="one")
    metrics, channels = Metrics(), Channels()
    told: dict[str, float] = {}
    async with asyncio.TaskGroup() as tasks:
        shards = Shards(RingNeighbors(view_of([me]), "one", channels), tasks, metrics)
        catalog = Catalog(table, entries, shards, tasks, metrics)
        before = cpu.anonymous_bytes(os.getpid())
        watching = tasks.create_task(_highest(before, told))
        started_s = time.perf_counter()
        while (await catalog.page("")).is_pending:
            pass
        told["scan_s"] = time.perf_counter() - started_s
        started_s = time.perf_counter()
        seen = 0
        async for page in catalog.scan(""):
            seen += len(page)
        told["list_s"] = time.perf_counter() - started_s
        assert seen == count, f"{seen} of {count}"
        watching.cancel()
    told["entries"], told["bytes"] = entries.tables.usage()
    writer.close()
    index.env.close()
    await channels.aclose()
    return told


async def _highest(before: int, told: dict[str, float]) -> None:
    told["grown_bytes"] = 0
    while True:
        grown = cpu.anonymous_bytes(os.getpid()) - before
        told["grown_bytes"] = max(told["grown_bytes"], grown)
        await asyncio.sleep(WATCH_EVERY_S)


def usage(store: Path) -> dict[str, float]:
    index = read_index(store / "index")
    entries, size_bytes = Entries(index.env, writable=False).usage()
    return {"entries": entries, "bytes": size_bytes}


def main() -> None:
    if sys.argv[1] == "usage":
        print(json.dumps(usage(Path(sys.argv[2]))))
    else:
        Path(sys.argv[2]).mkdir(parents=True)
        print(json.dumps(asyncio.run(scan(Path(sys.argv[2]), int(sys.argv[3])))))


if __name__ == "__main__":
    main()
