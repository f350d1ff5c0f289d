"""Flights and budgets: waiting has an end, and nobody harms anybody."""

from __future__ import annotations

import asyncio

import pytest
from crc32c import crc32c
from prometheus_client import Gauge

from mesh.blocks import MIB, version_of
from mesh.budget import Budget
from mesh.errors import NotFound, Unavailable
from mesh.peer.flight import Flights, Landing
from mesh.wire.messages import Piece

FILE = version_of(source="m", path="p", size_bytes=3 * MIB, tag="t", block_bytes=4 * MIB)


def piece(number: int) -> Piece:
    data = bytes([number]) * MIB
    return Piece(number, crc32c(data), data)


async def test_pieces_come_in_the_order_that_the_reader_wants() -> None:
    async def load(landing: Landing) -> None:
        for number in (0, 1, 2):
            landing.land(piece(number), 9)
            await asyncio.sleep(0)

    async with asyncio.TaskGroup() as tasks:
        flights = Flights(tasks)
        landing = flights.board(FILE, 0, load)
        got = [p.number async for p in landing.pieces(2, beat_s=1)]
        assert got == [2, 0, 1]
        await landing.wait_end()
        assert len(flights) == 0


async def test_a_slow_load_shows_signs_of_life() -> None:
    gate = asyncio.Event()

    async def load(landing: Landing) -> None:
        await gate.wait()
        for number in range(3):
            landing.land(piece(number), 9)

    async with asyncio.TaskGroup() as tasks:
        landing = Flights(tasks).board(FILE, 0, load)
        seen = []
        async for p in landing.pieces(0, beat_s=0.01):
            seen.append(len(p.data))
            if len(seen) == 3:
                gate.set()
        assert seen[:3] == [0, 0, 0]
        assert [size for size in seen if size] == [MIB] * 3


async def test_everyone_who_waits_gets_the_error() -> None:
    async def load(landing: Landing) -> None:
        landing.land(piece(0), 9)
        await asyncio.sleep(0)
        raise NotFound("gone")

    async with asyncio.TaskGroup() as tasks:
        landing = Flights(tasks).board(FILE, 0, load)
        waits = [landing.wait([1]), landing.wait([0, 2]), landing.wait_end()]
        answers = await asyncio.gather(*waits, return_exceptions=True)
        assert [type(a) for a in answers] == [NotFound] * 3
        await landing.wait([0])  # that one has landed
        with pytest.raises(NotFound):
            await landing.wait([1])


async def test_a_load_that_is_cut_off_does_not_leave_its_readers_waiting() -> None:
    async def load(landing: Landing) -> None:
        await asyncio.Event().wait()

    landing = None
    with pytest.raises(ExceptionGroup):
        async with asyncio.TaskGroup() as tasks:
            landing = Flights(tasks).board(FILE, 0, load)
            waiting = asyncio.ensure_future(landing.wait([0]))
            await asyncio.sleep(0)
            raise RuntimeError("the peer stops")
    with pytest.raises(Unavailable):
        await waiting


async def test_a_bug_in_a_load_reaches_its_readers_and_nobody_else() -> None:
    async def load(landing: Landing) -> None:
        raise ZeroDivisionError

    async with asyncio.TaskGroup() as tasks:
        flights = Flights(tasks)
        with pytest.raises(ZeroDivisionError):
            await flights.board(FILE, 0, load).wait([0])


def gauge() -> Gauge:
    return Gauge("g", "g", registry=None)


async def test_a_budget_is_lent_first_come_first_served() -> None:
    budget = Budget(10, gauge())
    order: list[str] = []

    async def use(name: str, size_bytes: int) -> None:
        async with budget.lend(size_bytes):
            order.append(name)
            assert budget.taken_bytes <= 10
            await asyncio.sleep(0)

    await asyncio.gather(use("a", 6), use("big", 10), use("small", 1))
    assert order == ["a", "big", "small"]
    assert budget.taken_bytes == 0


async def test_more_than_the_budget_is_lent_alone() -> None:
    budget = Budget(10, gauge())
    async with budget.lend(50):
        assert budget.taken_bytes == 10


async def test_who_gives_up_waiting_takes_nothing() -> None:
    budget = Budget(10, gauge())
    async with budget.lend(10):
        waiting = asyncio.ensure_future(enter(budget))
        await asyncio.sleep(0)
        assert budget.is_half_spent()
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
    assert budget.taken_bytes == 0
    async with asyncio.timeout(1), budget.lend(10):
        assert budget.taken_bytes == 10


async def enter(budget: Budget) -> None:
    async with budget.lend(5):
        pass
