"""Who owns what, as one peer sees it."""

from __future__ import annotations

from mesh.blocks import BlockKey
from mesh.errors import PeerUnavailable
from mesh.membership.view import Member, view_of
from mesh.peer.neighbors import RingNeighbors
from mesh.testing.clock import ManualClock
from mesh.wire.channels import Channels

NAMES = ("a", "b", "c")
MEMBERS = [Member(name, f"127.0.0.1:{at}", id=name) for at, name in enumerate(NAMES, 1)]
CLOCK = ManualClock()


def neighbors(me: str) -> RingNeighbors:
    return RingNeighbors(view_of(MEMBERS), me, Channels(), clock=CLOCK)


def key_of(first: str) -> BlockKey:
    """Return a block whose primary is that one."""
    ring = neighbors(first).ring
    keys = (BlockKey(bytes(16), index) for index in range(1000))
    return next(key for key in keys if ring.owners(key, copies=1) == [first])


def test_a_block_is_filled_by_the_first_of_its_owners_that_answers() -> None:
    key = key_of("a")
    second = neighbors("a").ring.owners(key, copies=2)[1]
    assert neighbors("a").is_filler(key)
    at_second = neighbors(second)
    assert not at_second.is_filler(key)
    at_second.health.overtaken("a", CLOCK())
    assert at_second.owners(key)[0] == second, "who is silent for a moment is asked last"
    assert not at_second.is_filler(key), "and still fills: or both would"
    at_second.note_failure("a", PeerUnavailable("a", "refused"))
    assert at_second.is_filler(key)
