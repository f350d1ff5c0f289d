"""Sets of blocks as integers."""

from __future__ import annotations

from random import Random

from hypothesis import given
from hypothesis import strategies as st

from mesh.swarm import bits

sets = st.frozensets(st.integers(0, 2000), max_size=200)


@given(sets)
def test_a_set_is_what_it_was_made_of(indexes: frozenset[int]) -> None:
    mask = bits.mask_of(indexes)
    assert list(bits.indexes_of(mask)) == sorted(indexes)
    assert bits.of_bytes(bits.to_bytes(mask, 2001), 2001) == mask


@given(sets, st.integers(1, 100))
def test_the_first_ones(indexes: frozenset[int], count: int) -> None:
    first = bits.first(bits.mask_of(indexes), count)
    assert list(bits.indexes_of(first)) == sorted(indexes)[:count]


@given(st.frozensets(st.integers(0, 300), min_size=1, max_size=40), st.integers(0, 2**32))
def test_any_of_a_set_is_in_it(indexes: frozenset[int], seed: int) -> None:
    assert bits.any_of(bits.mask_of(indexes), Random(seed)) in indexes


def test_any_is_as_likely_as_any_other() -> None:
    random, indexes = Random(3), (0, 1, 17, 64, 65, 199)
    mask = bits.mask_of(indexes)
    drawn = [bits.any_of(mask, random) for _ in range(6000)]
    assert all(800 < drawn.count(index) < 1200 for index in indexes)


def test_what_is_not_in_the_file_is_left_out() -> None:
    assert bits.of_bytes(b"\xff\xff", 10) == bits.span(0, 10)
    assert bits.span(5, 5) == bits.span(7, 5) == 0
