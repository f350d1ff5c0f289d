"""A seed is a plan, and no plan takes more away than the mesh can lose."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chaos.plan import KINDS, at_once, draw, soak

seeds = st.integers(0, 2**32)
sizes = st.integers(3, 64)


@given(seeds, sizes)
def test_equal_seeds_draw_equal_plans(seed: int, peers: int) -> None:
    assert draw(seed, peers=peers) == draw(seed, peers=peers)


@given(seeds, sizes)
def test_each_fault_has_a_victim_and_a_kind_of_its_own(seed: int, peers: int) -> None:
    plan = draw(seed, peers=peers)
    assert 2 <= len(plan) <= 4
    assert len({planned.victim for planned in plan}) == len(plan)
    assert len({planned.kind for planned in plan}) == len(plan)
    assert all(0 <= planned.victim < peers and planned.kind in KINDS for planned in plan)


@given(seeds, sizes)
def test_only_a_minority_is_ill_at_a_time(seed: int, peers: int) -> None:
    plan = draw(seed, peers=peers)
    most = max(at_once(plan, planned.at_s) for planned in plan)
    assert most <= max(1, (peers - 1) // 2)


@given(seeds, sizes)
def test_plans_are_in_order_and_begin_under_load(seed: int, peers: int) -> None:
    plan = draw(seed, peers=peers)
    assert plan == sorted(plan)
    assert plan[0].at_s >= 1.0


def test_seeds_differ() -> None:
    plans = {str(draw(seed, peers=8)) for seed in range(50)}
    assert len(plans) > 45
    assert soak(3, rounds=5) == soak(3, rounds=5)
    assert len(set(soak(3, rounds=50))) > 45


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_drawn_some_day(kind: str) -> None:
    assert any(kind == planned.kind for seed in range(200) for planned in draw(seed, peers=8))
