"""The socket between a mount and the peer of its host: who is stopped, and who only starved."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from mesh.errors import PeerUnavailable
from mesh.wire.catalog import WATCH
from mesh.wire.codec import REPORT
from mesh.wire.effort import cpu_s
from mesh.wire.local import _HEAD, PING, PONG, SILENT, SILENT_S, LocalChannel
from mesh.wire.messages import MountReport, WatchRequest

_PEER = """
import asyncio, sys, time
from mesh.wire.catalog import WATCH
from mesh.wire.codec import REPORT
from mesh.wire.local import LocalServer
from mesh.wire.messages import MembersReply

async def answer(request):
    asyncio.get_running_loop().call_soon(held_up)
    await asyncio.sleep(0.05)
    return MembersReply(b"")

def held_up():
    until_s = time.monotonic() + float(sys.argv[3])
    while sys.argv[2] == "busy" and time.monotonic() < until_s:
        pass
    time.sleep(max(0.0, until_s - time.monotonic()))

async def main():
    server = LocalServer([(REPORT, answer), (WATCH, lambda request: asyncio.Event().wait())])
    await server.listen(sys.argv[1])
    print("listens", flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""
REQUEST = MountReport("/mnt", 1)


@pytest.fixture
def peer(tmp_path: Path) -> Iterator[Callable[[str, float], subprocess.Popen[str]]]:
    """Begin a process that answers a question, and is held up after it came."""
    begun: list[subprocess.Popen[str]] = []

    def begin(how: str, for_s: float) -> subprocess.Popen[str]:
        words = [sys.executable, "-c", _PEER, str(tmp_path / "s"), how, str(for_s)]
        process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
        begun.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "listens\n"
        return process

    yield begin
    for process in begun:
        process.kill()
        process.communicate()


def _ask(socket: Path) -> float:
    """Return how long an answer took."""

    async def ask() -> float:
        channel = LocalChannel(str(socket))
        began_s = time.monotonic()
        try:
            await channel.call(REPORT, REQUEST, timeout_s=20.0)
        finally:
            await channel.aclose()
        return time.monotonic() - began_s

    return asyncio.run(ask())


Peers = Callable[[str, float], subprocess.Popen[str]]


def test_who_is_stopped_is_given_up_soon(peer: Peers, tmp_path: Path) -> None:
    process = peer("busy", 0.0)
    process.send_signal(signal.SIGSTOP)
    began_s = time.monotonic()
    with pytest.raises(PeerUnavailable, match=SILENT):
        _ask(tmp_path / "s")
    assert time.monotonic() - began_s >= SILENT_S


def test_who_is_held_up_is_given_up_soon(peer: Peers, tmp_path: Path) -> None:
    peer("asleep", 10.0)
    with pytest.raises(PeerUnavailable, match=SILENT):
        _ask(tmp_path / "s")


def test_who_runs_or_waits_for_the_cpu_is_waited_for(peer: Peers, tmp_path: Path) -> None:
    """Starved of CPU it answers late; to go round it would be more work for all."""
    peer("busy", 3 * SILENT_S)
    assert _ask(tmp_path / "s") >= 3 * SILENT_S


def test_not_for_ever(peer: Peers, tmp_path: Path) -> None:
    peer("busy", 15.0)
    with pytest.raises(PeerUnavailable, match=SILENT):
        _ask(tmp_path / "s")


@pytest.mark.parametrize(("is_blocked", "at_most"), [(False, 3), (True, 9)])
def test_who_waits_for_news_alone_pings_seldom(
    tmp_path: Path, *, is_blocked: bool, at_most: int
) -> None:
    """There is always a watch under way: in an idle mesh that is all that mounts do."""

    async def pings() -> int:
        count = 0

        async def pong(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal count
            with suppress(asyncio.IncompleteReadError):
                while True:
                    size_bytes, number, code = _HEAD.unpack(await reader.readexactly(_HEAD.size))
                    await reader.readexactly(size_bytes)
                    if code == PING:
                        count += 1
                        writer.write(_HEAD.pack(0, number, PONG))
            writer.close()

        channel = LocalChannel(str(tmp_path / "s"))
        async with await asyncio.start_unix_server(pong, tmp_path / "s"):
            asks = [asyncio.create_task(channel.call(WATCH, WatchRequest(0), timeout_s=1.5))]
            if is_blocked:
                asks.append(asyncio.create_task(channel.call(REPORT, REQUEST, timeout_s=1.5)))
            found = await asyncio.gather(*asks, return_exceptions=True)
            assert all("no answer in 1.5 s" in str(each) for each in found)
            await channel.aclose()
            await asyncio.sleep(0.05)  # the other end hears of that
        return count

    count = asyncio.run(pings())
    assert 1 <= count <= at_most
    assert count > 3 or not is_blocked


def test_one_who_is_asked_after_a_long_idle_time_is_not_silent_since_then(
    peer: Peers, tmp_path: Path
) -> None:
    peer("asleep", 0.3)

    async def ask() -> None:
        channel = LocalChannel(str(tmp_path / "s"))
        watch = asyncio.create_task(channel.call(WATCH, WatchRequest(0), timeout_s=20.0))
        for _ in range(2):
            await asyncio.sleep(2 * SILENT_S)
            await channel.call(REPORT, REQUEST, timeout_s=20.0)
        watch.cancel()
        await asyncio.gather(watch, return_exceptions=True)
        await channel.aclose()

    asyncio.run(ask())


def test_effort() -> None:
    before_s = cpu_s(os.getpid())
    assert before_s is not None
    until_s = time.process_time() + 0.2
    while time.process_time() < until_s:
        pass
    after_s = cpu_s(os.getpid())
    assert after_s is not None
    assert after_s - before_s >= 0.19
    assert cpu_s(0) is None, "of another process namespace: nobody can say"
    assert cpu_s(2**22 + 1) is None, "no such process"
