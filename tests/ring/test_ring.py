"""Properties every placement must keep, whatever the members are."""

from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.blocks import BlockKey
from mesh.ring.ring import Ring, RingMember


def make_ring(weights: dict[str, float], zones: dict[str, str] | None = None) -> Ring:
    """Few points, to keep the tests quick."""
    zones = zones or {}
    members = [RingMember(p, zones.get(p, ""), w) for p, w in weights.items()]
    return Ring(members, points_per_peer=8)


names = st.from_regex(r"\Anode-[0-9]{1,4}\Z")
members = st.dictionaries(
    keys=names, values=st.sampled_from([0.25, 1, 1.5, 4]), min_size=2, max_size=12
)
keys = st.builds(BlockKey, version=st.binary(min_size=16, max_size=16), index=st.integers(0, 9))


@given(weights=members, key=keys, copies=st.integers(1, 5))
def test_owners_are_distinct_members(weights: dict[str, float], key: BlockKey, copies: int) -> None:
    owners = make_ring(weights).owners(key, copies=copies)

    assert len(owners) == min(copies, len(weights))
    assert len(set(owners)) == len(owners)
    assert set(owners) <= set(weights)


@settings(max_examples=50)
@given(weights=members, key=keys, data=st.data())
def test_a_death_moves_only_what_the_dead_peer_owned(
    weights: dict[str, float], key: BlockKey, data: st.DataObject
) -> None:
    """The survivors keep their order; the next one in line takes the free place."""
    dead = data.draw(st.sampled_from(sorted(weights)))
    before = make_ring(weights).owners(key, copies=len(weights))
    after = make_ring({p: w for p, w in weights.items() if p != dead}).owners(
        key, copies=len(weights) - 1
    )

    assert after == [peer for peer in before if peer != dead]


@given(weights=members, key=keys, order=st.randoms())
def test_equal_members_build_equal_rings(
    weights: dict[str, float], key: BlockKey, order: Random
) -> None:
    shuffled = list(weights.items())
    order.shuffle(shuffled)

    assert make_ring(weights).owners(key, copies=3) == make_ring(dict(shuffled)).owners(
        key, copies=3
    )


@given(weights=members, key=keys, copies=st.integers(1, 5), data=st.data())
def test_owners_stand_in_distinct_zones_while_zones_last(
    weights: dict[str, float], key: BlockKey, copies: int, data: st.DataObject
) -> None:
    zones = {p: data.draw(st.sampled_from(["a", "b", "c"]), label=p) for p in sorted(weights)}
    owners = make_ring(weights, zones).owners(key, copies=copies)

    first = owners[: len(set(zones.values()))]
    assert len({zones[peer] for peer in first}) == len(first)
    assert len(set(owners)) == min(copies, len(weights))


@given(weights=members, key=keys, zoned=st.booleans())
def test_the_primary_does_not_depend_on_zones(
    weights: dict[str, float], key: BlockKey, zoned: bool
) -> None:
    zones = {p: p[-1] for p in weights} if zoned else {}
    assert make_ring(weights, zones).owners(key, copies=1) == make_ring(weights).owners(
        key, copies=1
    )


@settings(max_examples=30)
@given(weights=members)
def test_shares_add_up(weights: dict[str, float]) -> None:
    assert abs(sum(make_ring(weights).shares().values()) - 1) < 1e-9


def test_a_join_moves_its_part_and_nothing_between_the_others() -> None:
    """20,000 keys, 16 peers: at most 1.25 / 17 of them move, all to the newcomer."""
    old = Ring(RingMember(f"node-{n}") for n in range(16))
    new = Ring(RingMember(f"node-{n}") for n in range(17))
    keys = [BlockKey(n.to_bytes(16, "big"), 0) for n in range(20_000)]
    moved = [(old.owners(k, copies=1)[0], new.owners(k, copies=1)[0]) for k in keys]
    moved = [(a, b) for a, b in moved if a != b]

    assert {b for _, b in moved} == {"node-16"}
    assert len(moved) <= 1.25 * len(keys) / 17


def test_shares_follow_weights_and_are_even_among_equals() -> None:
    ring = Ring([RingMember(f"node-{n}") for n in range(8)] + [RingMember("big", weight=4)])
    shares = ring.shares()
    equal = [share for peer, share in shares.items() if peer != "big"]

    assert max(equal) / (sum(equal) / 8) < 1.25  # about 1.09 with 256 points
    assert 0.8 < shares["big"] / (4 / 12) < 1.2


def test_an_empty_ring_owns_nothing() -> None:
    assert Ring([]).owners(b"key", copies=2) == []
