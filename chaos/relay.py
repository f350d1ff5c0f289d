"""A TCP relay that makes a link slow to answer: nftables cannot delay, so this does.

    others ──> eth0:7101 ──nft redirect──> relay (:7201) ──> the peer (:7101)

A process on the peer's host, there from the start with no delay, so that the
connections that it is to delay go through it. Each piece waits a base and a share
that a seed draws. Its order of arrival is kept.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import time
from contextlib import suppress
from dataclasses import asdict, dataclass

PIECE_BYTES = 64 * 1024
WAITING_MAX = 256
"""Pieces on their way; what a link of 16 MiB in flight would hold."""


@dataclass
class Delay:
    """How long a piece takes."""

    base_s: float = 0.0
    jitter_s: float = 0.0


@dataclass
class Counts:
    connections: int = 0
    delayed_bytes: int = 0


class Relay:
    """Both directions of all connections to one peer."""

    def __init__(self, target: tuple[str, int], *, seed: int) -> None:
        self.delay = Delay()
        self.counts = Counts()
        self._target = target
        self._dice = random.Random(seed)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.counts.connections += 1
        try:
            back, above = await asyncio.open_connection(*self._target)
        except OSError:
            writer.transport.abort()
            return
        await asyncio.gather(self._carry(reader, above), self._carry(back, writer))

    async def _carry(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        on_the_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(WAITING_MAX)
        await asyncio.gather(self._take(source, on_the_way), self._give(on_the_way, sink))

    async def _take(
        self, source: asyncio.StreamReader, on_the_way: asyncio.Queue[tuple[float, bytes]]
    ) -> None:
        piece = b"?"
        while piece:
            try:
                piece = await source.read(PIECE_BYTES)
            except ConnectionError:
                piece = b""
            wait_s = self.delay.base_s + self.delay.jitter_s * self._dice.random()
            if wait_s:
                self.counts.delayed_bytes += len(piece)
            await on_the_way.put((time.monotonic() + wait_s, piece))

    async def _give(
        self, on_the_way: asyncio.Queue[tuple[float, bytes]], sink: asyncio.StreamWriter
    ) -> None:
        piece = b"?"
        while piece:  # to the end even if the sink is gone, or `_take` would wait for room
            due_s, piece = await on_the_way.get()
            await asyncio.sleep(max(0.0, due_s - time.monotonic()))
            with suppress(ConnectionError):
                sink.write(piece)
                await sink.drain()
        sink.close()


async def take_orders(
    relay: Relay, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    with suppress(ConnectionError):
        while line := await reader.readline():
            if told := json.loads(line):
                relay.delay = Delay(**told)
            writer.write(json.dumps(asdict(relay.counts)).encode() + b"\n")
            await writer.drain()
    writer.close()


async def main() -> None:
    words = argparse.ArgumentParser(description="delay what passes")
    for name in ("--port", "--target", "--control"):
        words.add_argument(name, required=True)
    words.add_argument("--seed", type=int, default=0)
    told = words.parse_args()
    host, port = told.target.split(":")
    relay = Relay((host, int(port)), seed=told.seed)
    server = await asyncio.start_server(relay.serve, "0.0.0.0", int(told.port))
    control = await asyncio.start_unix_server(lambda r, w: take_orders(relay, r, w), told.control)
    async with server, control:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
