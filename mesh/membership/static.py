"""Membership by a list in the config: nobody else joins, and each peer asks the others.

For a handful of peers, and for networks that let nothing but gRPC through. Every
peer asks every other one each half second how it is, so the work grows with the
square of their number: above some 16 of them, use gossip.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace

from mesh.clock import Clock, monotonic_s
from mesh.membership.detector import Detector, Patience
from mesh.membership.membership import Watched, Watching, as_left
from mesh.membership.roster import GRACE_S, Roster
from mesh.membership.view import Member, State

PROBE_EVERY_S = 0.5
PROBE_TIMEOUT_S = 0.5
LATE_S = 0.2
"""A probe may come so much later than it should."""

NOTICE_S = PROBE_EVERY_S + LATE_S
"""By then all have asked once more."""

Probe = Callable[[Member], Awaitable[Member | None]]
"""Asks a member how it is; None when it does not answer in time."""


class StaticList(Watching):
    """A `Membership` of those that a config names; the work begins with `start`."""

    def __init__(
        self,
        listed: Iterable[Member],
        me: Member,
        probe: Probe,
        *,
        grace_s: float = GRACE_S,
        patience: Patience | None = None,
        notice_s: float = NOTICE_S,
        clock: Clock = monotonic_s,
    ) -> None:
        """Take *listed* for those who are in the mesh, alive until they turn out not to be."""
        self._watched = Watched(me, roster=Roster(grace_s=grace_s), clock=clock)
        self._listed = [member for member in listed if member.id != me.id]
        self._probe = probe
        self._notice_s = notice_s
        self._detector = Detector(patience or Patience())
        self._tasks: list[asyncio.Task[None]] = []
        for member in self._listed:
            self._detector.heard(member.id, clock())
            self._watched.hear(member.id, member)

    @property
    def twin(self) -> Member | None:
        return None

    async def announce(self, me: Member) -> None:
        """The others see it in the answers to their probes."""
        self._watched.mine(me)
        self._watched.renew()

    async def meet(self, members: Sequence[Member]) -> None:
        """Whoever is not in the list stays a stranger."""

    async def leave(self) -> None:
        """Say so to everybody's next probe: keep answering until this returns."""
        await self.announce(as_left(self._watched.me))
        if self._listed:
            await asyncio.sleep(self._notice_s)

    async def start(self) -> None:
        self._watched.renew()
        self._tasks = [
            asyncio.create_task(self._ask_for_ever(member, number), name=f"probe {member.name}")
            for number, member in enumerate(self._listed)
        ]
        self._tasks.append(asyncio.create_task(self._watched.renew_by_time(), name="graces"))

    async def aclose(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _ask_for_ever(self, member: Member, number: int) -> None:
        # Not all at one moment; and not at once: peers that are started together are
        # not all listening yet, and a connection that failed is not tried again at once.
        await asyncio.sleep(PROBE_EVERY_S * (1 + number / len(self._listed)))
        while True:
            await self._ask(member)
            await asyncio.sleep(PROBE_EVERY_S)

    async def _ask(self, member: Member) -> None:
        said = None
        with suppress(TimeoutError):
            async with asyncio.timeout(PROBE_TIMEOUT_S):
                said = await self._probe(member)
        now_s = self._watched.clock()
        if said is not None:
            self._detector.heard(member.id, now_s)
            said = replace(said, id=member.id, name=member.name, address=member.address)
            self._watched.hear(member.id, said)
        else:
            known = self._watched.roster.known(member.id) or member
            verdict = _silent(known.state, self._detector.verdict(member.id, now_s))
            self._watched.roster.mark(member.id, known.run, verdict, now_s)
        self._watched.renew()


def _silent(last: State, verdict: State) -> State:
    """Return what one that does not answer is now, by what it was when it last did."""
    if verdict is State.DEAD:
        return State.LEFT if last in (State.DRAINING, State.LEFT) else State.DEAD
    return verdict if last is State.ACTIVE else last
