"""Asks every peer, again and again, how it sees the others; a process of its own.

    python -m chaos.watch --out FILE NAME=SOCKET ...

Asks what `mesh status --json` asks, each peer through its own socket, and writes a
line of JSON for each answer: [seconds, who said it, {peer: state}]. A command for each
question would cost a second of CPU each, on a machine that the mesh needs.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from pathlib import Path
from typing import Any, TextIO

from mesh.cli.ask import host_peer
from mesh.cli.status import as_line
from mesh.wire.codec import OVERVIEW
from mesh.wire.messages import Nothing

EVERY_S = 0.1
TIMEOUT_S = 3.0


def state_of(peer: dict[str, Any]) -> str:
    """Return the state of a peer as a status line has it; up or down before there were states."""
    state = peer.get("state") or ("active" if peer["is_up"] else "dead")
    return str(state).lower()


async def watch(name: str, socket: Path, out: TextIO) -> None:
    async with host_peer(socket) as peer:
        while True:
            try:
                overview = await peer.ask(OVERVIEW, Nothing(), timeout_s=TIMEOUT_S)
            except Exception as error:  # whatever it is, ask again
                line: list[Any] = [time.monotonic(), name, {}, f"{error}"]
            else:
                peers = json.loads(as_line(overview))["peers"]
                line = [time.monotonic(), name, {p["name"]: state_of(p) for p in peers}]
            out.write(json.dumps(line) + "\n")
            await asyncio.sleep(EVERY_S)


async def watch_all(peers: list[str], out: TextIO) -> None:
    async with asyncio.TaskGroup() as tasks:
        for peer in peers:
            name, _, socket = peer.partition("=")
            tasks.create_task(watch(name, Path(socket), out))


def main() -> None:
    words = argparse.ArgumentParser(description="ask every peer how it sees the others")
    words.add_argument("--out", required=True)
    words.add_argument("peers", nargs="+")
    told = words.parse_args()
    with Path(told.out).open("a", buffering=1) as out:
        asyncio.run(watch_all(told.peers, out))


if __name__ == "__main__":
    main()
