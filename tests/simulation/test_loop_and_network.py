"""What simulations stand on: time that jumps, and a network that fails as told."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from random import Random
from typing import Any

import pytest

from mesh.errors import NotFound, PeerUnavailable
from mesh.testing.loop import Stuck, simulate
from mesh.testing.membership import SimWorld
from mesh.testing.network import SimChannels, SimNetwork
from mesh.wire.basics import STALL_S
from mesh.wire.codec import HELD, SERVE
from mesh.wire.messages import HeldReply, Piece


def test_a_day_takes_no_time() -> None:
    async def main(random: Random) -> float:
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        await asyncio.gather(*(asyncio.sleep(number) for number in range(0, 3600, 60)))
        assert await asyncio.to_thread(lambda: 7) == 7
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.Event().wait(), 2.0)
        return loop.time() - began_s

    began_s = time.monotonic()
    assert simulate(main, 1) == pytest.approx(3542)
    assert time.monotonic() - began_s < 5


def test_who_waits_for_nothing_is_told() -> None:
    async def nothing(random: Random) -> None:
        await asyncio.Event().wait()

    async def circle(random: Random) -> None:
        while True:
            await asyncio.sleep(0)

    for main in (nothing, circle):
        with pytest.raises(Stuck):
            simulate(main, 1)


class Server:
    """Answers with three pieces, and counts how often it is asked."""

    def __init__(self) -> None:
        self.asked = 0

    async def serve(self, request: Any) -> AsyncGenerator[Piece, None]:
        self.asked += 1
        for number in range(3):
            yield Piece(number, 0, b"x" * 100)
            await asyncio.sleep(0.3)

    async def held(self, request: Any) -> HeldReply:
        self.asked += 1
        if request == "nothing":
            raise NotFound("nothing")
        return HeldReply(frozenset({request}))


class Setting:
    """Peers a and b; b listens."""

    def __init__(self, random: Random) -> None:
        self.world = SimWorld(random)
        self.network = SimNetwork(self.world, random)
        self.server = Server()
        self.network.listen("b:1", "b", self.server, lambda: 2)
        self.others: list[tuple[str, int]] = []
        self.channels: SimChannels = self.network.channels(
            "a", lambda: 1, lambda *other: self.others.append(other)
        )

    async def call(self, request: Any, *, address: str = "b:1") -> Any:
        return await self.channels.call(address, HELD, request, timeout_s=0.5)

    async def pieces(self) -> list[Piece]:
        request: Any = None
        return [piece async for piece in self.channels.pieces("b:1", SERVE, request)]

    async def fails(self, work: Awaitable[Any], words: str) -> float:
        """Return after how long *work* failed."""
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        with pytest.raises(PeerUnavailable, match=words):
            await work
        return loop.time() - began_s


def set_up(story: Callable[[Setting], Awaitable[None]]) -> None:
    async def main(random: Random) -> None:
        setting = Setting(random)
        async with asyncio.timeout(100):
            await story(setting)
        assert setting.network.failures == []

    simulate(main, 5)


def test_what_is_asked_is_answered() -> None:
    async def story(s: Setting) -> None:
        assert await s.call(7) == HeldReply(frozenset({7}))
        with pytest.raises(NotFound):
            await s.call("nothing")
        assert [piece.number for piece in await s.pieces()] == [0, 1, 2]
        # Whoever answered has another view than we.
        assert s.others == [("b:1", 2)] * 2

    set_up(story)


def test_nobody_listens() -> None:
    async def story(s: Setting) -> None:
        assert await s.fails(s.call(1, address="b:2"), "refused") < 0.01

    set_up(story)


@pytest.mark.parametrize("how", ["there", "back", "stop", "loss"])
def test_what_is_lost_is_silence(how: str) -> None:
    async def story(s: Setting) -> None:
        if how == "there":
            s.world.cut("a", "b")
        elif how == "back":
            s.world.cut("b", "a")
        elif how == "stop":
            s.world.stop("b")
        else:
            s.network.weather.loss = 1.0
        assert await s.fails(s.call(1), "no answer") == pytest.approx(0.5)
        assert await s.fails(s.pieces(), "silent") == pytest.approx(STALL_S)
        assert s.server.asked == (2 if how == "back" else 0)

    set_up(story)


def test_who_dies_breaks_off_what_it_sends() -> None:
    async def story(s: Setting) -> None:
        reading = asyncio.create_task(s.pieces())
        await asyncio.sleep(0.4)
        await s.network.hang_up("b:1")
        assert await s.fails(reading, "reset") < 0.01
        assert s.network.busy == []

    set_up(story)


def test_who_hangs_for_a_moment_goes_on() -> None:
    async def story(s: Setting) -> None:
        reading = asyncio.create_task(s.pieces())
        await asyncio.sleep(0.2)
        s.world.stop("b")
        await asyncio.sleep(0.5)
        s.world.go_on("b")
        assert len(await reading) == 3

    set_up(story)


def test_what_is_repeated_is_handled_twice_and_answered_once() -> None:
    async def story(s: Setting) -> None:
        s.network.weather.repeats = 1.0
        assert len(await s.pieces()) == 3
        assert s.server.asked == 2

    set_up(story)


def test_what_is_garbled_is_as_long_as_before() -> None:
    async def story(s: Setting) -> None:
        s.network.weather.garbles = 1.0
        pieces = await s.pieces()
        assert {len(piece.data) for piece in pieces} == {100}
        assert b"x" not in b"".join(piece.data for piece in pieces)

    set_up(story)
