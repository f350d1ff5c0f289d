"""What stands before the under-store: a proxy that counts, slows, refuses and fails.

    peers ──> origin (10.77.0.x:9000) ──> the real S3 server (127.0.0.1)

A process of its own, on the under-store's host. It believes neither mesh's metrics
nor the server's: what it writes down is what left. Told what to do through a Unix
socket, one line of JSON each, `{"mode": "slow", "delay_s": 0.5}`; answers with its
counts. One line of JSON for each request goes to the log.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TextIO

PIECE_BYTES = 256 * 1024
HEAD_BYTES_MAX = 64 * 1024
UNAVAILABLE = b"<?xml version='1.0'?><Error><Code>SlowDown</Code></Error>"


@dataclass
class Orders:
    """What to do with the requests to come."""

    mode: str = "up"
    """up, down (connections refused or broken), or fail (some are answered 503)."""
    delay_s: float = 0.0
    share: float = 1.0
    """Which part of the requests to answer 503 in mode fail."""


@dataclass
class Counts:
    """What has passed since the start."""

    requests: int = 0
    object_gets: int = 0
    object_bytes: int = 0
    """Bytes of the bodies of object GETs that have left."""
    delayed: int = 0
    failed: int = 0
    refused: int = 0
    broken: int = 0
    """Connections broken off because the mode became down."""


@dataclass
class Head:
    """The first line and the headers of a request or an answer."""

    first: bytes
    raw: bytes
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def size_bytes(self) -> int | None:
        size = self.headers.get("content-length")
        return None if size is None else int(size)

    @property
    def is_chunked(self) -> bool:
        return "chunked" in self.headers.get("transfer-encoding", "").lower()


async def read_head(stream: asyncio.StreamReader) -> Head | None:
    """Return the next head; None when the other side has closed."""
    try:
        raw = await stream.readuntil(b"\r\n\r\n")
    except (asyncio.IncompleteReadError, ConnectionError):
        return None
    first, *lines = raw[:-4].split(b"\r\n")
    pairs = (line.decode("latin-1").partition(":") for line in lines)
    return Head(first, raw, {name.strip().lower(): value.strip() for name, _, value in pairs})


class Origin:
    """The proxy."""

    def __init__(self, upstream: tuple[str, int], log: TextIO, *, seed: int) -> None:
        self.orders = Orders()
        self.counts = Counts()
        self._upstream = upstream
        self._log = log
        self._dice = random.Random(seed)
        self._open: set[asyncio.StreamWriter] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Pass the requests of one connection on until either side closes."""
        if self.orders.mode == "down":
            self.counts.refused += 1
            writer.transport.abort()
            return
        self._open.add(writer)
        above: asyncio.StreamWriter | None = None
        try:
            answers, above = await asyncio.open_connection(*self._upstream, limit=HEAD_BYTES_MAX)
            while (head := await read_head(reader)) is not None:
                await self._pass(head, reader, writer, answers, above)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self._open.discard(writer)
            for stream in (writer, above):
                if stream is not None:
                    stream.close()

    def obey(self, told: dict[str, Any]) -> None:
        self.orders = Orders(**told)
        if self.orders.mode == "down":
            for writer in list(self._open):
                self.counts.broken += 1
                writer.transport.abort()

    async def _pass(
        self,
        head: Head,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        answers: asyncio.StreamReader,
        above: asyncio.StreamWriter,
    ) -> None:
        start_s, method, path = time.monotonic(), *head.first.decode("latin-1").split(" ")[:2]
        self.counts.requests += 1
        body = await reader.readexactly(head.size_bytes) if head.size_bytes else b""
        if self.orders.delay_s:
            self.counts.delayed += 1
            await asyncio.sleep(self.orders.delay_s)
        if self.orders.mode == "fail" and self._dice.random() < self.orders.share:
            self.counts.failed += 1
            await self._fail(writer, bare=method == "HEAD")
            self._note(start_s, method, path, 503, 0)
            return
        above.write(head.raw + body)
        await self._answer(method, path, head, answers, writer, start_s)

    async def _answer(
        self,
        method: str,
        path: str,
        asked: Head,
        answers: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        start_s: float,
    ) -> None:
        answer = await read_head(answers)
        if answer is None:
            raise ConnectionError("the server closed")
        status = int(answer.first.split(b" ")[1])
        writer.write(answer.raw)
        is_object = method == "GET" and is_object_path(path) and status in (200, 206)
        self.counts.object_gets += is_object
        sent_bytes = 0
        try:
            if method != "HEAD" and status not in (204, 304):
                async for piece in pieces(answer, answers):
                    sent_bytes += len(piece)
                    if is_object:
                        self.counts.object_bytes += len(piece)
                    writer.write(piece)
                    await writer.drain()
        finally:
            ranges = asked.headers.get("range", "")
            self._note(start_s, method, path, status, sent_bytes, ranges)

    async def _fail(self, writer: asyncio.StreamWriter, *, bare: bool) -> None:
        head = f"HTTP/1.1 503 Slow Down\r\nContent-Length: {len(UNAVAILABLE)}\r\n\r\n"
        writer.write(head.encode() + (b"" if bare else UNAVAILABLE))
        await writer.drain()

    def _note(
        self, at_s: float, method: str, path: str, status: int, sent_bytes: int, ranges: str = ""
    ) -> None:
        took_s = round(time.monotonic() - at_s, 4)
        line = [round(at_s, 4), took_s, method, path, ranges, status, sent_bytes]
        self._log.write(json.dumps(line) + "\n")


def is_object_path(path: str) -> bool:
    """Say whether a path names an object: /bucket/key, and no list of a bucket."""
    name, _, query = path.partition("?")
    return name.strip("/").count("/") >= 1 and "list-type" not in query


async def pieces(head: Head, stream: asyncio.StreamReader) -> Any:
    """Yield the body that belongs to a head, as it is on the wire."""
    if head.is_chunked:
        size_bytes = -1
        while size_bytes:
            line = await stream.readline()
            size_bytes = int(line.split(b";")[0], 16)
            yield line + await stream.readexactly(size_bytes + 2)
        return
    left_bytes = head.size_bytes or 0
    while left_bytes:
        piece = await stream.read(min(left_bytes, PIECE_BYTES))
        if not piece:
            raise ConnectionError("the server closed half-way")
        left_bytes -= len(piece)
        yield piece


async def take_orders(
    origin: Origin, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    """Obey and answer one connection's lines; an empty object only asks."""
    with suppress(ConnectionError):
        while line := await reader.readline():
            if told := json.loads(line):
                origin.obey(told)
            writer.write(json.dumps(asdict(origin.counts)).encode() + b"\n")
            await writer.drain()
    writer.close()


async def serve(origin: Origin, listen: str, control: str) -> None:
    host, port = listen.split(":")
    server = await asyncio.start_server(
        origin.serve, host, int(port), limit=HEAD_BYTES_MAX, backlog=1024
    )
    orders = await asyncio.start_unix_server(lambda r, w: take_orders(origin, r, w), control)
    async with server, orders:
        await server.serve_forever()


def main() -> None:
    words = argparse.ArgumentParser(description="count, slow, refuse and fail requests")
    for name in ("--listen", "--upstream", "--control", "--log"):
        words.add_argument(name, required=True)
    words.add_argument("--seed", type=int, default=0)
    told = words.parse_args()
    host, port = told.upstream.split(":")
    with Path(told.log).open("a", buffering=1) as log:
        origin = Origin((host, int(port)), log, seed=told.seed)
        asyncio.run(serve(origin, told.listen, told.control))


if __name__ == "__main__":
    main()
