"""Whom to leave alone, when to ask a second one: by tables, without a clock."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.blocks import MIB
from mesh.peer.health import (
    BARREN_FOR_S,
    HEDGE_AFTER_MAX_S,
    HEDGE_AFTER_MIN_S,
    HEDGE_BURST,
    HEDGE_SHARE,
    RECENT_S,
    SLOW_AFTER_MAX_S,
    SLOW_BLOCKS,
    SLOW_FOR_MAX_S,
    SLOW_FOR_S,
    Health,
    Hedging,
    Lag,
    Slow,
)


def test_one_that_failed_is_away_until_it_answers() -> None:
    health = Health(0.0)
    assert health.failed("a", 1.0)
    assert not health.failed("a", 2.0), "no news"
    assert health.is_away("a", 1e6)
    assert not health.is_away("b", 1.0)
    assert health.answered("a", 3.0)
    assert not health.answered("a", 4.0), "no news"
    assert not health.is_away("a", 4.0)


def test_a_change_is_recent_for_a_while() -> None:
    health = Health(0.0)
    assert health.is_recent(RECENT_S - 1)
    assert not health.is_recent(RECENT_S + 1)
    health.note_change(5000.0)
    assert health.is_recent(5000.0 + RECENT_S - 1)
    health.failed("a", 9000.0)
    assert health.is_recent(9000.0 + RECENT_S - 1)


def fast(health: Health, *peers: str) -> None:
    for peer in peers:
        for _ in range(SLOW_BLOCKS):
            assert not health.sent(peer, MIB, 0.01, 0.0)


def test_alive_but_slow_counts_as_broken_for_a_while() -> None:
    health = Health(0.0)
    fast(health, "a", "b")
    for _ in range(SLOW_BLOCKS - 1):
        assert not health.sent("c", MIB, 0.1, 0.0), "one slow block is no slow peer"
    assert health.sent("c", MIB, 0.1, 0.0)
    assert health.is_away("c", SLOW_FOR_S - 0.1)
    assert not health.is_away("c", SLOW_FOR_S + 0.1), "then it is tried once"
    assert health.sent("c", MIB, 0.1, 10.0)
    assert health.is_away("c", 10.0 + 2 * SLOW_FOR_S - 0.1), "and left alone for longer"
    for turn in range(10):
        health.sent("c", MIB, 0.1, 100.0 + turn)
    assert not health.is_away("c", 110.0 + SLOW_FOR_MAX_S)


def test_one_that_is_fast_again_is_asked_again() -> None:
    health = Health(0.0)
    fast(health, "a", "b")
    for _ in range(SLOW_BLOCKS):
        health.sent("c", MIB, 1.0, 0.0)
    for _ in range(SLOW_BLOCKS):
        health.sent("c", MIB, 0.01, 1.0)
    assert not health.is_away("c", 1.0)


def test_the_only_peer_is_never_slow() -> None:
    health = Health(0.0)
    assert not any(health.sent("a", MIB, 100.0, 0.0) for _ in range(20))


def test_two_that_cannot_reach_the_under_store_mean_that_it_is_away() -> None:
    health = Health(0.0)
    health.barren("a", 0.0)
    assert health.is_barren("a", 1.0)
    assert not health.is_under_store_away(1.0), "that may be one peer's cable"
    health.barren("me", 1.0)
    assert health.is_under_store_away(1.0)
    assert not health.is_under_store_away(BARREN_FOR_S + 0.5), "then it is tried again"
    health.barren("a", 10.0)
    health.barren("me", 10.0)
    health.fertile("me")
    assert not health.is_under_store_away(10.0)


@pytest.mark.parametrize(
    ("waits_s", "lag_s", "after_s"),
    [
        ([], 0.0, HEDGE_AFTER_MIN_S),
        ([0.001] * 64, 0.0, HEDGE_AFTER_MIN_S),
        ([0.1] * 64, 0.0, 0.3),
        ([0.001] * 60 + [0.7] * 4, 0.0, 0.7),
        ([0.001] * 64, 0.3, 1.2),
        ([9.0] * 64, 9.0, HEDGE_AFTER_MAX_S),
    ],
    ids=["nothing known", "fast", "slow", "slow now and then", "slow ourselves", "very slow"],
)
def test_when_a_second_peer_is_asked(waits_s: list[float], lag_s: float, after_s: float) -> None:
    hedging = Hedging(lambda: lag_s)
    for wait_s in waits_s:
        hedging.heard(wait_s)
    assert hedging.after_s == pytest.approx(after_s)
    assert hedging.lost_after_s >= 2 * hedging.after_s


@given(st.lists(st.booleans(), max_size=2000))
def test_hedges_never_exceed_their_share(asks: list[bool]) -> None:
    """Whatever the order of requests and wishes: 5 % of the requests, and a burst."""
    hedging = Hedging()
    requests = hedges = 0
    for is_request in asks:
        if is_request:
            hedging.began()
            requests += 1
        else:
            hedges += hedging.may()
        assert hedges <= HEDGE_BURST + HEDGE_SHARE * requests


def test_lag_is_forgotten_bit_by_bit() -> None:
    lag = Lag()
    lag.woke(1.0, 10.0)
    assert lag.worst_s(10.0) == 1.0
    lag.woke(0.01, 10.1)
    assert 0.9 < lag.worst_s(10.1) < 1.0, "a good moment does not undo a bad one"
    assert lag.worst_s(30.0) < 0.01


def test_a_slow_link_is_waited_for_longer_and_a_fast_one_no_less() -> None:
    hedging = Hedging()
    assert Slow(hedging, 0.0).after_s == HEDGE_AFTER_MIN_S
    assert Slow(hedging, 1.5).after_s == 1.5
    assert Slow(hedging, 1.5).lost_after_s == 3.0
    assert Slow(hedging, 60.0).after_s == SLOW_AFTER_MAX_S, "not for ever"
    for _ in range(int(HEDGE_BURST)):
        assert Slow(hedging, 1.5).may()
    assert not hedging.may(), "of the same budget"
