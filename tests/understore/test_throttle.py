"""Half as many requests at SlowDown, one more for a window of answers."""

from __future__ import annotations

import asyncio
from itertools import islice
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from mesh.understore.throttle import PAUSE_S_MAX, Gate, Window, pauses_s


def test_a_burst_of_slow_downs_halves_once() -> None:
    window = Window(16)
    tickets = [window.ticket() for _ in range(16)]
    for ticket in tickets:
        window.slowed(ticket)
    assert window.limit == 8
    window.slowed(window.ticket())
    assert window.limit == 4


def test_it_never_closes_and_never_opens_too_far() -> None:
    window = Window(3)
    for _ in range(10):
        window.slowed(window.ticket())
    assert window.limit == 1
    for _ in range(100):
        window.answered()
    assert window.limit == 3


def test_a_window_of_answers_is_one_more() -> None:
    window = Window(16)
    window.slowed(window.ticket())
    for _ in range(7):
        window.answered()
    assert window.limit == 8
    window.answered()
    assert window.limit == 9


@given(st.lists(st.booleans(), max_size=200))
def test_the_limit_stays_in_bounds(answers: list[bool]) -> None:
    window = Window(16)
    for is_answer in answers:
        if is_answer:
            window.answered()
        else:
            window.slowed(window.ticket())
        assert 1 <= window.limit <= 16


def test_pauses_grow_to_a_bound_and_differ() -> None:
    rounds = [list(islice(pauses_s(Random(seed)), 2000)) for seed in range(50)]
    assert all(0 <= pause_s <= PAUSE_S_MAX for pauses in rounds for pause_s in pauses)
    assert max(pauses[0] for pauses in rounds) < max(pauses[8] for pauses in rounds)
    assert len({pauses[8] for pauses in rounds}) == 50


async def test_a_gate_lets_as_many_in_as_its_window_says() -> None:
    window = Window(2)
    gate = Gate(window)
    inside: list[int] = []

    async def enter(number: int) -> None:
        await gate.enter()
        inside.append(number)

    async with asyncio.TaskGroup() as tasks:
        waiting = [tasks.create_task(enter(number)) for number in range(5)]
        await asyncio.sleep(0)
        assert inside == [0, 1]
        gate.leave()
        await asyncio.sleep(0)
        assert inside == [0, 1, 2]
        window.slowed(window.ticket())
        gate.leave()
        await asyncio.sleep(0)
        assert inside == [0, 1, 2]
        waiting[3].cancel()
        gate.leave()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert inside == [0, 1, 2, 4]


async def test_a_turn_that_comes_with_a_cancellation_is_passed_on() -> None:
    gate = Gate(Window(1))
    await gate.enter()
    first = asyncio.create_task(gate.enter())
    second = asyncio.create_task(gate.enter())
    await asyncio.sleep(0)
    gate.leave()
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    await second
    assert first.cancelled()
