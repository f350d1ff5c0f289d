"""Look up every name of a tree from one host; one process of `bench.meta`."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from dataclasses import replace
from pathlib import Path

from mesh.cli.rooms import client_settings
from mesh.cli.settings import load_settings
from mesh.client.client import MeshClient, open_client

AT_ONCE = 64
ROUNDS_FROM_LMDB = 5


def paths_of(data: Path) -> list[str]:
    return sorted(str(path.relative_to(data)) for path in data.glob("*/*"))


async def look_up(client: MeshClient, paths: list[str]) -> int:
    waiting = iter(paths)

    async def work() -> None:
        for path in waiting:
            await client.stat(path)

    await asyncio.gather(*(work() for _ in range(AT_ONCE)))
    return len(paths)


async def run(kind: str, data: Path, config: Path) -> dict[str, float]:
    settings = client_settings(load_settings(config))
    paths = paths_of(data)
    if kind != "known here, from LMDB":
        # Without the tables of the peer: each look-up is a call to it.
        settings = replace(settings, store_directory=settings.store_directory / "nowhere")
    else:
        paths *= ROUNDS_FROM_LMDB
    async with open_client(settings) as client:
        started_s = time.perf_counter()
        count = await look_up(client, paths)
        return {"lookups": count, "seconds": time.perf_counter() - started_s}


def main() -> None:
    kind, data, config = sys.argv[1:]
    print(json.dumps(asyncio.run(run(kind, Path(data), Path(config)))))


if __name__ == "__main__":
    main()
