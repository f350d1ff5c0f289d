"""Who owns what, as one peer sees it."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from mesh.blocks import BlockKey
from mesh.errors import PeerUnavailable
from mesh.membership.view import Member, State, view_of
from mesh.peer.neighbors import RingNeighbors
from mesh.testing.clock import ManualClock
from mesh.wire.channels import Channels
from mesh.wire.codec import HELLO
from mesh.wire.messages import Nothing

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


async def test_a_question_ends_when_the_members_say_that_who_was_asked_is_dead() -> None:
    """A process that is stopped accepts connections, and answers nothing."""
    async with listening() as address:
        members = [Member("a", "127.0.0.1:1", id="a"), Member("b", address, id="b")]
        channels = Channels()
        asker = RingNeighbors(view_of(members), "a", channels)
        asked = asyncio.create_task(asker.ask("b", HELLO, Nothing(), timeout_s=60.0))
        await asyncio.sleep(0.1)
        await asker.update(view_of([members[0], replace(members[1], state=State.SUSPECT)]))
        await asyncio.sleep(0.1)
        assert not asked.done(), "who is silent for a moment may still answer"
        await asker.update(view_of([members[0], replace(members[1], state=State.DEAD)]))
        async with asyncio.timeout(5.0):
            with pytest.raises(PeerUnavailable, match="died"):
                await asked
        await asker.aclose()
        await channels.aclose()


@asynccontextmanager
async def listening() -> AsyncIterator[str]:
    """Accept connections as the kernel does for a stopped process: nobody reads of them."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        host, port = server.getsockname()
        yield f"{host}:{port}"
