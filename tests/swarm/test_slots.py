"""Who is served, who waits, who is sent elsewhere."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from heapq import heappop, heappush
from itertools import count
from random import Random

import pytest

from mesh.swarm.slots import QUEUED_MAX, SENT_OFTEN, SENT_OFTEN_S, Busy, SlotRules, Slots, Ticket

RULES = SlotRules(sends=2, urgent_sends=1, queue=2)


def ticket(number: int, *, version: bytes = b"v", index: int = 0, urgent: bool = False) -> Ticket:
    return Ticket(f"peer-{number}", version, index, urgent)


def test_so_many_are_sent_some_wait_and_the_rest_go_elsewhere() -> None:
    slots = Slots(RULES)
    tickets = [ticket(n, index=n) for n in range(5)]
    answers = [slots.ask(0.0, t) for t in tickets]
    assert answers[:4] == [True, True, False, False]
    assert isinstance(answers[4], Busy)
    assert slots.free == 0
    assert slots.done(1.0, tickets[0]) == [tickets[2]]
    assert slots.done(1.0, tickets[3]) == [], "it waited, and is gone"
    assert slots.done(1.0, tickets[1]) == []
    assert slots.done(1.0, tickets[2]) == []
    assert slots.free == 2


def test_a_reserve_is_for_those_who_are_blocked() -> None:
    slots = Slots(RULES)
    for number in range(2):
        assert slots.ask(0.0, ticket(number, index=number)) is True
    assert slots.ask(0.0, ticket(7, index=7)) is False
    assert slots.ask(0.0, ticket(8, index=8, urgent=True)) is True
    assert slots.ask(0.0, ticket(9, index=9, urgent=True)) is False


def test_who_is_blocked_is_first_in_the_queue() -> None:
    slots = Slots(RULES)
    first = ticket(0, index=0)
    assert slots.ask(0.0, first) is True
    assert slots.ask(0.0, ticket(1, index=1)) is True
    assert slots.ask(0.0, ticket(2, index=2, urgent=True)) is True  # the reserve
    patient, urgent = ticket(3, index=3), ticket(4, index=4, urgent=True)
    assert slots.ask(0.0, patient) is slots.ask(0.0, urgent) is False
    assert slots.done(1.0, first) == [urgent], "the reserve is for who waits as well"
    assert slots.done(1.0, ticket(1, index=1)) == [], "nobody of that name: tickets are things"


def test_versions_take_turns() -> None:
    slots = Slots(SlotRules(sends=2, queue=4))
    big = [ticket(n, index=n, version=b"big") for n in range(4)]
    for each in big:
        slots.ask(0.0, each)
    other = ticket(9, version=b"other")
    assert slots.ask(0.0, other) is False
    assert slots.done(1.0, big[0]) == [other], "though it came last"


def shares(
    readers: dict[bytes, int], *, urgent: float = 0.0, for_s: float = 200.0
) -> dict[bytes, float]:
    """Return which part of what is sent each version gets, when so many readers of it ask
    for one block after the other, that part of them blocks that they are blocked on. A
    block takes a second."""
    slots, draw = Slots(), Random(1)
    events: list[tuple[float, int, Ticket, bool]] = []
    numbers, sent = count(), Counter[bytes]()

    def ask(now_s: float, asker: Ticket) -> None:
        wish = replace(asker, index=next(numbers), is_urgent=draw.random() < urgent)
        answer = slots.ask(now_s, wish)
        if isinstance(answer, Busy):
            again_s = now_s + answer.retry_s * draw.uniform(0.8, 1.2)
            heappush(events, (again_s, next(numbers), wish, False))
        elif answer:
            heappush(events, (now_s + 1.0, next(numbers), wish, True))

    for version, many in readers.items():
        for number in range(many):
            wish = ticket(number, version=version)
            heappush(events, (draw.random(), next(numbers), wish, False))
    while events[0][0] < for_s:
        now_s, _, wish, is_sent = heappop(events)
        if is_sent:
            sent[wish.version] += 1
            for granted in slots.done(now_s, wish):
                heappush(events, (now_s + 1.0, next(numbers), granted, True))
        ask(now_s, wish)
    return {version: sent[version] / sent.total() for version in readers}


@pytest.mark.parametrize("urgent", [0.0, 0.5, 1.0])
def test_a_file_with_few_readers_gets_its_share_beside_one_with_many(urgent: float) -> None:
    """Turns are taken in the queue: it must have room for each version."""
    two = shares({b"big": 120, b"small": 20}, urgent=urgent)
    assert two[b"small"] == pytest.approx(0.5, abs=0.1)
    three = shares({b"big": 120, b"small": 20, b"other": 20}, urgent=urgent)
    assert all(share == pytest.approx(1 / 3, abs=0.1) for share in three.values())


def test_a_file_that_is_asked_for_less_than_its_share_has_that() -> None:
    assert shares({b"big": 60, b"one": 1})[b"one"] == pytest.approx(1 / 6, abs=0.06)


def test_so_many_versions_wait_and_no_more() -> None:
    slots = Slots(SlotRules(sends=1, urgent_sends=0, queue=1))
    assert slots.ask(0.0, ticket(0)) is True
    waits = [slots.ask(0.0, ticket(n, version=b"%d" % n)) for n in range(2 * QUEUED_MAX)]
    assert waits[:QUEUED_MAX] == [False] * QUEUED_MAX
    assert all(isinstance(answer, Busy) for answer in waits[QUEUED_MAX:])


def test_what_was_sent_often_is_had_from_those_it_was_sent_to() -> None:
    slots = Slots(SlotRules(sends=1, urgent_sends=0, queue=4))
    for number in range(SENT_OFTEN):
        one = ticket(number)
        assert slots.ask(0.0, one) is True
        slots.done(0.5, one)
    assert slots.ask(0.6, ticket(20)) is True, "while there is nothing else to do"
    busy = slots.ask(0.6, ticket(21))
    assert isinstance(busy, Busy)
    assert set(busy.others) <= {f"peer-{n}" for n in range(SENT_OFTEN)}
    assert len(busy.others) == 3
    assert slots.ask(0.6, ticket(22, index=5)) is False, "another block waits as ever"
    later_s = 0.5 + SENT_OFTEN_S
    assert slots.ask(later_s, ticket(23)) is False, "by then nobody knows"


def test_nobody_is_told_of_himself_nor_of_who_did_not_get_it() -> None:
    slots = Slots(SlotRules(sends=1, urgent_sends=0, queue=0))
    failed, sent = ticket(1), ticket(2)
    assert slots.ask(0.0, failed) is True
    slots.done(0.1, failed, is_sent=False)
    assert slots.ask(0.2, sent) is True
    slots.done(0.3, sent)
    assert slots.ask(0.4, ticket(3, index=9)) is True
    told = slots.ask(0.5, ticket(4))
    assert isinstance(told, Busy)
    assert told.others == ("peer-2",)
    again = slots.ask(0.5, ticket(2))
    assert isinstance(again, Busy)
    assert again.others == ()


def test_who_is_blocked_is_told_of_those_who_are_still_receiving() -> None:
    slots = Slots(SlotRules(sends=1, urgent_sends=0, queue=0))
    assert slots.ask(0.0, ticket(1)) is True
    busy = slots.ask(0.1, ticket(2, urgent=True))
    assert isinstance(busy, Busy)
    assert busy.others == ("peer-1",)
    patient = slots.ask(0.1, ticket(3))
    assert isinstance(patient, Busy)
    assert patient.others == ()


@pytest.mark.parametrize(("took_s", "retry_s"), [(0.001, 0.02), (0.3, 0.3), (9.0, 1.0)])
def test_one_is_asked_again_after_about_as_long_as_a_block_takes(
    took_s: float, retry_s: float
) -> None:
    slots = Slots(SlotRules(sends=1, urgent_sends=0, queue=0))
    first = ticket(0)
    slots.ask(0.0, first)
    slots.done(took_s, first)
    slots.ask(10.0, ticket(1))
    busy = slots.ask(10.0, ticket(2, index=4))
    assert isinstance(busy, Busy)
    assert busy.retry_s == pytest.approx(retry_s)


def test_a_slow_link_sends_one_after_the_other() -> None:
    """So that the first copies of what only it has come soon."""
    slots = Slots()
    slots.usual_s = 0.4
    tickets = [ticket(n, index=n) for n in range(4)]
    assert all(slots.ask(0.0, one) is True for one in tickets)
    for at_s, one in enumerate(tickets, start=1):
        slots.done(float(at_s), one)
    assert slots.free == 1
    assert slots.ask(5.0, ticket(9, index=9)) is True
    assert slots.ask(5.0, ticket(10, index=10)) is False


def test_a_link_like_any_other_sends_as_many_as_it_may() -> None:
    slots = Slots()
    slots.usual_s = 0.4
    tickets = [ticket(n, index=n) for n in range(SlotRules().sends)]
    assert all(slots.ask(0.0, one) is True for one in tickets)
    for one in tickets:
        slots.done(0.4, one)
    assert slots.free == SlotRules().sends
