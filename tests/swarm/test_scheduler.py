"""One reader's decisions."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from random import Random

import pytest

from mesh.swarm.bits import mask_of, span
from mesh.swarm.cursors import GUESSED_S, IDLE_S, LEAD_BLOCKS_MAX, WINDOW_BLOCKS, Cursors
from mesh.swarm.events import (
    Action,
    Announce,
    Arrived,
    Drop,
    Event,
    Failed,
    Fetch,
    Has,
    Lost,
    Met,
    Missed,
    Reads,
    Tick,
    Wants,
)
from mesh.swarm.scheduler import CROWD, SILENT_S, Rules, Scheduler
from mesh.swarm.sources import AWAY_S

BLOCKS = 256
ALL = span(0, BLOCKS)
ME = "me"


def owners(index: int) -> Sequence[str]:
    """Every fourth block is ours."""
    return (ME, "owner-1") if index % 4 == 0 else (f"owner-{index % 4}", ME)


class Reader:
    """A scheduler, and what it has said."""

    def __init__(self, *, mine: int = 0, rules: Rules | None = None, seed: int = 7) -> None:
        self.scheduler = Scheduler(
            BLOCKS, ME, owners, Random(seed), mine=mine, rules=rules or Rules()
        )
        self.now_s = 100.0
        self.flying: dict[int, Fetch] = {}

    def step(self, event: Event, *, after_s: float = 0.0) -> list[Action]:
        self.now_s += after_s
        actions = self.scheduler.step(self.now_s, event)
        for action in actions:
            if isinstance(action, Fetch):
                self.flying[action.index] = action
        return actions

    def fetches(self, event: Event, *, after_s: float = 0.0) -> list[Fetch]:
        return [a for a in self.step(event, after_s=after_s) if isinstance(a, Fetch)]

    def arrive(self, index: int, *, took_s: float = 0.1) -> list[Action]:
        fetch = self.flying.pop(index)
        return self.step(Arrived(index, fetch.source, took_s), after_s=took_s)


def test_nothing_is_fetched_until_somebody_reads() -> None:
    reader = Reader()
    assert reader.fetches(Met("a")) == []
    assert reader.fetches(Has("a", ALL, 4)) == []
    assert reader.fetches(Reads(0)) != []


def test_own_blocks_are_filled_and_those_that_others_have_are_taken_from_them() -> None:
    reader = Reader()
    reader.step(Met("a"))
    reader.step(Met("b"))
    reader.step(Has("a", mask_of([1, 2, 3]), 4))
    reader.step(Has("b", mask_of([5, 6]), 4))
    reader.step(Met("c"))
    reader.step(Has("c", mask_of([7, 9]), 4))
    fetches = reader.fetches(Reads(0))
    own = {f.index for f in fetches if f.source == ME}
    assert own == {0, 4}
    others = {fetch.index: fetch.source for fetch in fetches if not fetch.is_owner}
    had_by = {"a": (1, 2, 3), "b": (5, 6), "c": (7, 9)}
    assert all(index in had_by[source] for index, source in others.items())
    assert len(fetches) - len(own) == Rules().at_once


def test_what_nobody_has_is_asked_of_its_owner_one_at_a_time() -> None:
    reader = Reader()
    fetches = [f for f in reader.fetches(Reads(0)) if f.source != ME]
    assert len(fetches) == 1
    assert fetches[0].is_owner
    assert fetches[0].source == owners(fetches[0].index)[0]


def test_no_source_is_asked_for_more_than_two_at_once() -> None:
    reader = Reader()
    reader.step(Met("a"))
    reader.step(Has("a", ALL, 4))
    fetches = reader.fetches(Reads(0))
    assert sum(f.source == "a" for f in fetches) == Rules().a_source


def test_who_is_blocked_comes_first_and_over_the_bound() -> None:
    reader = Reader()
    for name in "abcd":
        reader.step(Met(name))
        reader.step(Has(name, span(1, BLOCKS), 4))
    reader.step(Reads(1))
    assert reader.scheduler.flying >= Rules().at_once
    wanted = next(i for i in range(1, BLOCKS) if i not in reader.flying and i % 4)
    (fetch,) = reader.fetches(Wants(wanted))
    assert (fetch.index, fetch.is_urgent) == (wanted, True)
    assert fetch.source in "abcd"


def test_of_what_is_needed_the_window_decides_and_chance() -> None:
    drawn: set[int] = set()
    for seed in range(40):
        scheduler = Scheduler(BLOCKS, "else", lambda index: (), Random(seed))
        for at in range(0, 100, 10):
            scheduler.step(0.0, Reads(at))
        for name in "ab":
            scheduler.step(0.0, Met(name))
            actions = scheduler.step(0.0, Has(name, ALL, 4))
            drawn |= {action.index for action in actions if isinstance(action, Fetch)}
    assert min(drawn) >= 90
    assert max(drawn) < 90 + WINDOW_BLOCKS
    assert len(drawn) > 50


@pytest.mark.parametrize("seed", range(20))
def test_what_only_one_neighbor_has_comes_before_what_would_outlive_it(seed: int) -> None:
    reader = Reader(rules=Rules(at_once=2), seed=seed)
    for peer, blocks in (("a", [1, 2, 3, 5, 6, 7]), ("b", [2, 5, 6, 7]), ("c", [1, 2, 6, 9])):
        reader.step(Met(peer))
        reader.step(Has(peer, mask_of(blocks), 4))
    taken = [fetch for fetch in reader.fetches(Reads(0)) if fetch.source != ME]
    assert {(fetch.index, fetch.source) for fetch in taken} == {(3, "a"), (9, "c")}


def test_news_are_told_together_and_soon() -> None:
    reader = Reader()
    reader.step(Met("a"))
    reader.step(Has("a", ALL, 4))
    reader.step(Reads(1))
    index = next(i for i, f in reader.flying.items() if f.source == "a")
    told = [a for a in reader.arrive(index) if isinstance(a, Announce)]
    assert told == []
    due_s = reader.scheduler.due_s()
    assert due_s - reader.now_s <= 0.3
    actions = reader.step(Tick(), after_s=due_s - reader.now_s)
    # It has all of it: what comes here is no news to it.
    assert [a for a in actions if isinstance(a, Announce)] == []
    reader.step(Met("b"))
    index = next(iter(reader.flying))
    reader.arrive(index)
    actions = reader.step(Tick(), after_s=0.5)
    assert [a for a in actions if isinstance(a, Announce)] == [Announce(("b",), 1 << index)]


def test_who_has_announced_a_block_is_not_told_of_it() -> None:
    """It asks nobody for it."""
    reader = Reader()
    reader.step(Reads(1))
    for peer, blocks in (("a", mask_of([1])), ("b", mask_of([2])), ("c", 0)):
        reader.step(Met(peer))
        reader.step(Has(peer, blocks, 4))
    assert reader.flying[1].source == "a"
    reader.arrive(1)
    told = [a for a in reader.step(Tick(), after_s=0.5) if isinstance(a, Announce)]
    assert told == [Announce(("b", "c"), mask_of([1]))]


def test_a_neighbor_is_told_all_when_it_is_met() -> None:
    reader = Reader(mine=mask_of([3, 9]))
    assert reader.step(Met("a")) == [Announce(("a",), mask_of([3, 9]))]
    assert reader.step(Met("a")) == []


def test_who_is_busy_is_left_alone_for_a_while_and_others_are_asked() -> None:
    reader = Reader()
    for name in "ab":
        reader.step(Met(name))
        reader.step(Has(name, mask_of([1]), 4))
    reader.step(Reads(1))
    first = reader.flying[1].source
    (again,) = [
        f for f in reader.fetches(Missed(1, first, is_busy=True, retry_s=0.2)) if f.index == 1
    ]
    assert {first, again.source} == {"a", "b"}
    reader.step(Missed(1, again.source, is_busy=True, retry_s=0.2))
    reader.flying.pop(1)
    assert 1 not in {f.index for f in reader.fetches(Tick(), after_s=0.1)}
    assert 1 in {f.index for f in reader.fetches(Tick(), after_s=0.15)}


def test_who_waits_for_a_first_block_in_a_crowd_has_what_follows_it_brought_meanwhile() -> None:
    """A mount says that it reads on once it has the first bytes, and all who begin together
    wait for these at one owner: their links would be idle until then."""
    reader = Reader()
    for number in range(CROWD - 1):
        reader.step(Met(f"peer-{number}"))
    reader.step(Has("peer-0", span(1, 9), 4))
    assert [fetch.index for fetch in reader.fetches(Wants(1))] == [1], "few: it may be a look"
    after = reader.fetches(Met("one more"))
    assert {fetch.index for fetch in after} <= set(range(2, 2 + 2 * CROWD))
    assert after
    reader.arrive(1)
    reader.step(Tick(), after_s=GUESSED_S)
    assert reader.scheduler.cursors.is_idle, "and nobody reads on"


def test_who_does_not_answer_is_left_alone_for_long() -> None:
    reader = Reader()
    reader.step(Met("a"))
    reader.step(Has("a", ALL, 4))
    reader.step(Reads(1))
    index = next(i for i, f in reader.flying.items() if f.source == "a")
    reader.step(Missed(index, "a", is_away=True))
    for _ in range(3):
        assert all(f.source != "a" for f in reader.fetches(Tick(), after_s=5.0))
        reader.step(Reads(2))
    reader.now_s += AWAY_S
    reader.step(Tick())
    reader.step(Reads(3))
    assert any(f.source == "a" for f in reader.flying.values())


def test_who_was_silent_is_asked_nothing_for_a_moment() -> None:
    reader = Reader()
    reader.step(Met("a"))
    reader.step(Has("a", mask_of([1, 2, 3]), 4))
    assert [f.source for f in reader.fetches(Wants(1))] == ["a"]
    assert [f.source for f in reader.fetches(Missed(1, "a", is_silent=True))] == ["owner-1"]
    assert [f.source for f in reader.fetches(Wants(2))] == ["owner-2"]
    reader.step(Tick(), after_s=SILENT_S)
    assert [f.source for f in reader.fetches(Wants(3))] == ["a"]


def test_who_hears_nobody_asks_nobody_and_fills_its_own() -> None:
    reader = Reader()
    reader.step(Met("a"))
    reader.step(Has("a", mask_of([1, 2, 3]), 4))
    reader.scheduler.hush(reader.now_s + 1.0)
    assert reader.fetches(Wants(1)) == []
    assert {f.source for f in reader.fetches(Reads(0))} == {ME}
    reader.scheduler.hush(0.0)
    sources = {f.index: f.source for f in reader.fetches(Has("a", mask_of([1]), 4))}
    assert sources[1] == "a"


def test_who_hears_nobody_tries_again_later() -> None:
    reader = Reader()
    reader.step(Met("a"))
    reader.step(Has("a", mask_of([1, 2]), 4))
    reader.step(Wants(1))
    reader.scheduler.hush(reader.now_s + 1.0)
    reader.step(Missed(1, "a", is_silent=True))
    assert reader.scheduler.due_s() <= reader.now_s + SILENT_S
    reader.step(Has("a", mask_of([1]), 4))
    assert [f.source for f in reader.fetches(Tick(), after_s=SILENT_S)] == ["a"]


def test_what_a_source_does_not_have_after_all_is_asked_elsewhere() -> None:
    reader = Reader()
    for name in "ab":
        reader.step(Met(name))
        reader.step(Has(name, mask_of([1]), 4))
    reader.step(Reads(1))
    first = reader.flying[1].source
    (fetch,) = [f for f in reader.fetches(Missed(1, first)) if f.index == 1]
    assert fetch.source != first


def test_what_could_not_be_had_rests_longer_each_time_unless_somebody_waits_for_it() -> None:
    reader = Reader(mine=ALL & ~mask_of([4]))
    assert reader.fetches(Reads(4)) == [Fetch(4, ME, is_owner=True)]
    for rest_s in (1.0, 2.0, 4.0):
        assert not reader.fetches(Failed(4))
        assert not reader.scheduler.is_coming(4)
        assert reader.scheduler.due_s() == reader.now_s + rest_s
        assert not reader.fetches(Tick(), after_s=0.9 * rest_s)
        assert reader.fetches(Tick(), after_s=0.2 * rest_s)
    reader.step(Failed(4))
    assert reader.fetches(Wants(4)), "somebody waits"
    reader.arrive(4)
    assert reader.scheduler.is_whole


def test_a_neighbor_that_is_lost_is_asked_nothing() -> None:
    reader = Reader()
    reader.step(Met("a"))
    reader.step(Has("a", ALL, 4))
    reader.step(Lost("a"))
    assert all(f.source != "a" for f in reader.fetches(Reads(1)))


def test_what_takes_too_long_is_asked_of_another_and_the_loser_is_dropped() -> None:
    reader = Reader()
    for name in "ab":
        reader.step(Met(name))
        reader.step(Has(name, ALL, 4))
    reader.step(Reads(1))
    slow = next(i for i, f in reader.flying.items() if f.source in "ab")
    loser = reader.flying[slow].source
    for _ in range(20):
        index = next(i for i, f in reader.flying.items() if i != slow and f.source != ME)
        reader.arrive(index, took_s=0.05)
        reader.step(Reads(1))
    hedges = [f for f in reader.fetches(Tick(), after_s=0.1) if f.index == slow]
    if not hedges:  # it was asked for as soon as that was due
        assert reader.scheduler.hedges
    winner = reader.flying[slow].source
    assert winner != loser
    actions = reader.step(Arrived(slow, winner, 0.3))
    assert Drop(slow, loser) in actions


def test_slow_sources_are_asked_last() -> None:
    reader = Reader()
    for name in ("fast", "slow"):
        reader.step(Met(name))
    for index in range(1, 41):
        name = "slow" if index % 4 == 0 else "fast"
        reader.scheduler.step(reader.now_s, Arrived(index, name, 2.0 if name == "slow" else 0.1))
    for name in ("fast", "slow"):
        reader.step(Has(name, span(41, BLOCKS), 4))
    drawn = [reader.scheduler._source(i, reader.now_s) for i in range(41, BLOCKS)]
    assert drawn.count("slow") < len(drawn) / 50


def test_what_is_not_here_after_all_is_fetched_again() -> None:
    reader = Reader(mine=mask_of([1]))
    reader.step(Met("a"))
    reader.step(Has("a", mask_of([1]), 4))
    assert reader.fetches(Wants(1)) == []
    reader.scheduler.forget(1)
    (fetch,) = reader.fetches(Wants(1))
    assert fetch.source == "a"


# Cursors


def test_the_window_grows_as_a_stream_goes_on() -> None:
    cursors = Cursors(BLOCKS)
    assert cursors.window(0) == 0
    cursors.note(10, 0.0)
    narrow = cursors.window(0).bit_count()
    for at in range(11, 60):
        cursors.note(at, 0.0)
    assert narrow < cursors.window(0).bit_count() == WINDOW_BLOCKS
    assert cursors.window(0) & span(0, 59) == 0


def test_a_reader_that_is_gone_is_noticed_although_nothing_happens() -> None:
    """Its session would have kept one of the places of those who read for ever."""
    reader = Reader(mine=ALL ^ 1)
    reader.step(Reads(1))
    assert reader.scheduler.due_s() == reader.now_s + IDLE_S
    reader.step(Tick(), after_s=IDLE_S)
    assert reader.scheduler.cursors.is_idle
    assert reader.scheduler.due_s() == inf


def test_a_supposed_stream_is_one_once_it_goes_on() -> None:
    cursors = Cursors(BLOCKS)
    cursors.guess(0, 0.0)
    cursors.note(1, 1.0)
    assert not cursors.expire(GUESSED_S)
    assert cursors.due_s() == 1.0 + IDLE_S


def test_the_window_is_wide_at_once_where_many_read() -> None:
    """With 16 blocks about and 32 readers of them, half of the links would have nothing to send."""
    cursors = Cursors(BLOCKS)
    cursors.note(0, 0.0)
    assert cursors.window(0, helpers=3) == cursors.window(0)
    assert cursors.window(0, helpers=20).bit_count() == 40
    assert cursors.window(0, helpers=200).bit_count() == WINDOW_BLOCKS


def test_streams_share_the_window() -> None:
    cursors = Cursors(4096)
    for start in range(0, 4096, 512):
        for at in range(40):
            cursors.note(start + at, 0.0)
    assert cursors.window(0).bit_count() == WINDOW_BLOCKS
    assert all(cursors.window(0) & span(s, s + 512) for s in range(0, 4096, 512))


@pytest.mark.parametrize("is_all", [False, True])
def test_no_more_is_fetched_than_a_reader_may_get_to(is_all: bool) -> None:
    cursors = Cursors(4096)
    cursors.wants_all = is_all
    for at in range(40):
        cursors.note(at, 0.0)
    near = span(0, 39 + LEAD_BLOCKS_MAX)
    assert bool(cursors.window(near)) is is_all


def test_a_stream_that_stands_still_is_forgotten() -> None:
    cursors = Cursors(BLOCKS)
    cursors.note(1, 0.0)
    assert cursors.due_s() == IDLE_S
    assert not cursors.expire(IDLE_S / 2)
    assert cursors.expire(IDLE_S + 1)
    assert cursors.is_idle
