"""The figures of a run, from reads that are made up."""

from __future__ import annotations

import pytest

from chaos.stats import Read, back_s, dip, longest_gap_s, percentile, rates, smoothed


def read(start_s: float, end_s: float, size_bytes: int = 100) -> Read:
    return Read("r", 0, start_s, end_s, 0, size_bytes, 0, 0)


@pytest.mark.parametrize(
    ("values", "share", "expected"),
    [
        ([], 0.5, 0.0),
        ([7.0], 0.99, 7.0),
        ([3.0, 1.0, 2.0], 0.5, 2.0),
        (list(range(1, 101)), 0.99, 99),
        (list(range(1, 101)), 1.0, 100),
    ],
)
def test_percentile(values: list[float], share: float, expected: float) -> None:
    assert percentile(values, share) == expected


def test_a_gap_may_lie_at_either_edge() -> None:
    assert longest_gap_s([5.0, 6.0], from_s=0.0, to_s=7.0) == 5.0
    assert longest_gap_s([1.0, 2.0], from_s=0.0, to_s=9.0) == 7.0
    assert longest_gap_s([], from_s=2.0, to_s=5.0) == 3.0
    assert longest_gap_s([1.0, 99.0], from_s=0.0, to_s=3.0) == 2.0


def test_the_bytes_of_a_read_are_spread_over_its_time() -> None:
    assert rates([read(0.0, 2.0)], from_s=0.0, to_s=4.0, step_s=1.0) == [50, 50, 0, 0]
    assert rates([read(0.5, 1.5)], from_s=1.0, to_s=3.0, step_s=1.0) == [50, 0]


def test_all_bytes_are_counted_once() -> None:
    reads = [read(0.03 * n, 0.03 * n + 0.17, 1000 + n) for n in range(50)]
    found = rates(reads, from_s=0.0, to_s=3.0, step_s=0.1)
    assert sum(found) * 0.1 == pytest.approx(sum(r.size_bytes for r in reads))


def test_a_step_that_is_not_over_is_left_out() -> None:
    assert len(rates([], from_s=0.0, to_s=0.35, step_s=0.1)) == 3


def test_smoothed_keeps_the_length_and_a_constant() -> None:
    assert smoothed([4.0] * 7, 5) == [4.0] * 7
    assert smoothed([0.0, 3.0, 0.0], 3) == [1.5, 1.0, 1.5]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([10, 10, 10, 10], 0.0),
        ([10, 2, 2, 10, 10, 10], 3.0),
        ([2, 10, 2, 10, 10, 10], 3.0),
        ([10, 2, 2, 2], None),
        ([10, 2, 2, 10], None),
    ],
)
def test_back_means_back_to_stay(values: list[float], expected: float | None) -> None:
    assert back_s(values, level=9, step_s=1.0, stays_s=2.0) == expected


def test_a_dip() -> None:
    after = [100.0] * 5 + [20.0] * 10 + [80.0] * 20 + [100.0] * 30
    found = dip([100.0] * 30, after, step_s=0.1, most=0.75, full=0.95, width=1)
    assert found.before_bytes_s == pytest.approx(100.0)
    assert found.depth == pytest.approx(0.2)
    assert found.most_back_s == pytest.approx(1.5)
    assert found.full_back_s == pytest.approx(3.5)


def test_nothing_before_is_no_dip() -> None:
    assert dip([], [1.0], step_s=0.1, most=0.5).full_back_s is None
