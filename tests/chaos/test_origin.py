"""The proxy before the under-store: what it counts, and what it says of a path."""

from __future__ import annotations

import asyncio
import io
import json

import pytest

from chaos.origin import Origin, is_object_path
from chaos.requests import egress_rates

BODY = b"x" * 300_000


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/truth/part-1", True),
        ("/truth/a/b", True),
        ("/truth/a?x-id=GetObject", True),
        ("/truth?list-type=2&prefix=a/b", False),
        ("/truth/?list-type=2", False),
        ("/", False),
    ],
)
def test_what_an_object_is(path: str, expected: bool) -> None:
    assert is_object_path(path) is expected


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while await reader.readuntil(b"\r\n\r\n"):
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(BODY) + BODY)


async def ask(port: int) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /truth/a HTTP/1.1\r\nHost: s3\r\nConnection: close\r\n\r\n")
    head = await reader.readuntil(b"\r\n\r\n")
    size_bytes = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
    body = await reader.readexactly(size_bytes)
    writer.close()
    return head.split(b" ")[1] + b" " + body


async def test_it_passes_counts_fails_and_refuses() -> None:
    log = io.StringIO()
    above = await asyncio.start_server(answer, "127.0.0.1", 0)
    origin = Origin(above.sockets[0].getsockname()[:2], log, seed=1)
    server = await asyncio.start_server(origin.serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]

    assert await ask(port) == b"200 " + BODY
    assert origin.counts.object_bytes == len(BODY)
    origin.obey({"mode": "fail", "share": 1.0})
    assert (await ask(port)).startswith(b"503 ")
    origin.obey({"mode": "down"})
    with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
        await ask(port)
    assert (origin.counts.failed, origin.counts.refused) == (1, 1)
    assert origin.counts.object_bytes == len(BODY)
    lines = [json.loads(line) for line in log.getvalue().splitlines()]
    assert [(line[2], line[5], line[6]) for line in lines] == [
        ("GET", 200, len(BODY)),
        ("GET", 503, 0),
    ]
    at_s = lines[0][0]
    rates = egress_rates(log.getvalue().splitlines(), from_s=at_s - 1, to_s=at_s + 9, step_s=1.0)
    assert sum(rates) == pytest.approx(len(BODY))
    above.close()
    server.close()
