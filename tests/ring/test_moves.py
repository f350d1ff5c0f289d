"""What moves when the ring changes: as little as can be, and nothing between the others."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.ring.moves import collateral_share, moved_share, moves
from mesh.ring.ring import Ring, RingMember

KEYS = [f"key-{number}".encode() for number in range(20_000)]


def peers(count: int) -> list[RingMember]:
    return [RingMember(f"peer-{n}", zone=f"z{n % 3}") for n in range(count)]


def primaries(ring: Ring) -> list[str]:
    return [ring.owners(key, copies=1)[0] for key in KEYS]


@pytest.mark.parametrize("count", [2, 8, 32])
def test_a_join_moves_a_little_more_than_its_share_and_all_to_the_newcomer(count: int) -> None:
    before, after = Ring(peers(count)), Ring(peers(count + 1))
    newcomer = f"peer-{count}"
    moved = [(a, b) for a, b in zip(primaries(before), primaries(after), strict=True) if a != b]
    assert {taker for _, taker in moved} == {newcomer}
    assert len(moved) / len(KEYS) <= 1.25 / (count + 1)
    assert moved_share(before, after) == pytest.approx(len(moved) / len(KEYS), abs=0.01)
    assert collateral_share(before, after) == 0


@pytest.mark.parametrize("count", [3, 8, 32])
def test_what_a_leaver_had_is_spread_over_all(count: int) -> None:
    before, after = Ring(peers(count)), Ring(peers(count)[:-1])
    found = moves(before, after)
    assert {move.giver for move in found} == {f"peer-{count - 1}"}
    assert {move.taker for move in found} == {f"peer-{n}" for n in range(count - 1)}
    assert moved_share(before, after) <= 1.25 / count
    assert collateral_share(before, after) == 0


@given(st.integers(2, 12), st.sampled_from([0.25, 0.5, 0.75]))
@settings(max_examples=20)
def test_a_newcomer_that_warms_up_only_ever_takes(count: int, portion: float) -> None:
    rings = [Ring([*peers(count), RingMember("new", weight=weight)]) for weight in (portion, 1.0)]
    assert {move.taker for move in moves(*rings)} <= {"new"}
    assert collateral_share(*rings) == 0


def test_the_same_identity_at_another_name_moves_nothing() -> None:
    before = [replace(p, identity=f"id-{p.peer}") for p in peers(5)]
    after = [replace(before[0], peer="renamed"), *before[1:]]
    old, new = Ring(before), Ring(after)
    assert new.shares()["renamed"] == old.shares()["peer-0"]
    assert Counter((m.giver, m.taker) for m in moves(old, new)) == {("peer-0", "renamed"): 1}


def test_rings_of_nobody() -> None:
    assert moves(Ring([]), Ring(peers(2))) == []
    assert moves(Ring(peers(2)), Ring(peers(2))) == []
