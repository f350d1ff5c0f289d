"""Watermarks and the order of eviction, in tables."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.blocks import BlockKey
from mesh.store.eviction import Candidate, Rank, Room, victims


def room(used: int, capacity: int = 1000, free: int = 500, total: int = 1000) -> Room:
    return Room(used, capacity, free, total, free_space_ratio=0.1)


@pytest.mark.parametrize(
    ("state", "excess"),
    [
        (room(0), 0),
        (room(900), 0),
        (room(901), 51),  # down to 85 %
        (room(1000), 150),
        (room(500, free=100), 0),
        (room(500, free=99), 51),  # up to 15 % free
        (room(20, free=0), 20),  # never more than there is
        (room(950, free=0), 150),  # the larger of the two
    ],
)
def test_watermarks(state: Room, excess: int) -> None:
    assert state.excess_bytes() == excess


def test_full_means_that_it_does_not_fit() -> None:
    assert not room(999).is_full(1)
    assert room(1000).is_full(1)
    assert room(0, free=5).is_full(6)


candidates = st.lists(
    st.builds(
        Candidate,
        key=st.builds(BlockKey, st.just(b"v" * 16), st.integers(0, 10**6)),
        length_bytes=st.integers(1, 100),
        rank=st.sampled_from(Rank),
    ),
    unique_by=lambda c: c.key,
    max_size=30,
)


@given(blocks=candidates, excess=st.integers(0, 2000), data=st.data())
def test_victims(blocks: list[Candidate], excess: int, data: st.DataObject) -> None:
    leased = {c.key for c in blocks if data.draw(st.booleans())}
    gone = list(victims(lambda: blocks, excess, leased=leased))

    assert not leased & {c.key for c in gone}
    assert len({c.key for c in gone}) == len(gone)
    # Copies before owned blocks, and each kind oldest first.
    order_of = [Rank.COPY, Rank.SPARE, Rank.OWNED]
    assert gone == sorted(gone, key=lambda c: order_of.index(c.rank))
    order = {c.key: n for n, c in enumerate(blocks)}
    for rank in Rank:
        places = [order[c.key] for c in gone if c.rank is rank]
        assert places == sorted(places)
    # Enough, and not one more than needed; or all that may go.
    freed = sum(c.length_bytes for c in gone)
    if freed < excess:
        assert len(gone) == len(blocks) - len(leased & {c.key for c in blocks})
    elif gone:
        assert freed - gone[-1].length_bytes < excess
