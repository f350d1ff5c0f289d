"""What one reader of a version does of what its scheduler says, with nobody at the other end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from random import Random

import pytest

from mesh.blocks import MIB, version_of
from mesh.errors import NotFound
from mesh.peer.health import Hedging
from mesh.peer.outbox import Outbox
from mesh.peer.session import Session
from mesh.swarm.bits import span
from mesh.swarm.events import Tick
from mesh.testing.clock import ManualClock
from mesh.testing.memory import SOURCE
from mesh.wire.hedged import Hedged, Signs
from mesh.wire.messages import Piece
from mesh.wire.swarm import NewsRequest

BLOCKS = 32
FILE = version_of(
    source=SOURCE, path="one.bin", size_bytes=BLOCKS * MIB, tag="tag", block_bytes=MIB
)
ALL = span(0, BLOCKS)


class Loads:
    """What was begun; nothing of it comes."""

    def __init__(self) -> None:
        self.begun: list[tuple[int, bool]] = []
        self.is_busy = False

    def begin(self, session: Session, index: int, *, is_own: bool) -> bool:
        self.begun.append((index, is_own))
        return not self.is_busy


async def _push(peer: str, messages: AsyncIterator[NewsRequest]) -> None:
    async for _ in messages:
        pass


async def _silence(peer: str) -> AsyncIterator[Piece]:
    await asyncio.Event().wait()
    yield Piece(0, 0, b"")


class Reading:
    """A session, what it has had begun, and time that a test lets go by."""

    def __init__(self, tasks: asyncio.TaskGroup, *, owner: str) -> None:
        self.clock = ManualClock()
        self.loads = Loads()
        outbox = Outbox("me", lambda: "", _push, lambda: 4, lambda peer: None, tasks)
        self.session = Session(
            FILE,
            "me",
            "",
            (),
            lambda index: (owner,),
            outbox,
            self.loads,
            self.clock,
            Random(1),
            lambda index: owner == "me",
            lambda: False,
        )

    def wants(self, index: int) -> asyncio.Task[None]:
        until_s = self.clock() + 1.0
        return asyncio.ensure_future(
            self.session.wants(index, lambda: bool(self.loads.begun), until_s=until_s)
        )


async def test_of_two_who_were_asked_neither_is_waited_for_once_both_were_given_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("mesh.peer.outbox.IDLE_S", 0.01)
    async with asyncio.TaskGroup() as tasks:
        reading = Reading(tasks, owner="owner")
        session = reading.session
        for peer in "ab":
            session.heard(peer, "", ALL, 4, is_greeting=False)
        await reading.wants(1)
        assert reading.loads.begun == [(1, False)]
        first = session.source(1)
        assert first is not None
        hedged = Hedged([first.source], _silence, Hedging(), Signs(), reading.clock)
        pieces = asyncio.ensure_future(anext(hedged.pieces()))
        session.asked(1, hedged)
        await asyncio.sleep(0)
        reading.clock.advance(2.0)
        session.step(Tick())
        assert {source.peer for source in hedged.sources} == {"a", "b"}, "the other is asked too"

        hedged.sources[1].error = NotFound("b has it not")
        session.missed(1, hedged)
        last = session.source(1)
        assert last is not None, "nobody is asked any more, and the block is waited for"
        assert last.source == "owner"
        for task in [pieces, *(source.next for source in hedged.sources)]:
            task.cancel()
        session.close()


@pytest.mark.parametrize("may_go_on", [False, True])
@pytest.mark.parametrize("owner", ["me", "owner"])
async def test_what_is_decided_while_a_load_ends_begins_after_it(
    owner: str, may_go_on: bool
) -> None:
    async with asyncio.TaskGroup() as tasks:
        reading = Reading(tasks, owner=owner)
        session, loads = reading.session, reading.loads
        is_own = owner == "me"
        loads.is_busy = is_own
        await reading.wants(1)
        assert loads.begun == [(1, is_own)]
        loads.is_busy = False
        session.given_up(1, may_go_on=may_go_on)
        assert loads.begun == [(1, is_own)] * (2 if may_go_on else 1)
        assert session.scheduler.is_coming(1) == may_go_on, "what failed is not on its way"
        assert (session.source(1) is not None) == (may_go_on and not is_own)
        session.given_up(1, may_go_on=True)
        assert not session.scheduler.is_coming(1)
        session.close()
