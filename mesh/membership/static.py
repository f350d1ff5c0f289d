"""Membership by a list in the config: nobody else joins, and each peer asks the others.

For a handful of peers, and for networks that let nothing but gRPC through. Every
peer asks every other one each half second how it is, so the work grows with the
square of their number: above some 16 of them, use gossip.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import replace

from mesh.clock import Clock, monotonic_s
from mesh.membership.detector import Detector, Patience
from mesh.membership.membership import Watched, as_left
from mesh.membership.roster import GRACE_S, Roster
from mesh.membership.view import Member, State, View

PROBE_EVERY_S = 0.5
PROBE_TIMEOUT_S = 0.5

Probe = Callable[[Member], Awaitable[Member | None]]
"""Asks a member how it is; None when it does not answer in time."""


class StaticList:
    """A `Membership` of those that a config names; the work begins with `start`."""

    def __init__(
        self,
        listed: Iterable[Member],
        me: Member,
        probe: Probe,
        *,
        grace_s: float = GRACE_S,
        patience: Patience | None = None,
        clock: Clock = monotonic_s,
    ) -> None:
        """Take *listed* for those who are in the mesh, alive until they turn out not to be."""
        self._watched = Watched(me, roster=Roster(grace_s=grace_s), clock=clock)
        self._listed = [member for member in listed if member.id != me.id]
        self._probe = probe
        self._detector = Detector(patience or Patience())
        self._tasks: list[asyncio.Task[None]] = []
        for member in self._listed:
            self._detector.heard(member.id, clock())
            self._watched.hear("", member)

    @property
    def view(self) -> View:
        return self._watched.view

    @property
    def twin(self) -> Member | None:
        return None

    async def changed(self, epoch: int) -> View:
        return await self._watched.changed(epoch)

    async def announce(self, me: Member) -> None:
        """The others see it in the answers to their probes."""
        self._watched.mine(me)
        await self._watched.renew()

    async def leave(self) -> None:
        await self.announce(as_left(self._watched.me))

    async def start(self) -> None:
        await self._watched.renew()
        self._tasks = [
            asyncio.create_task(self._ask_for_ever(member), name=f"probe {member.name}")
            for member in self._listed
        ]
        self._tasks.append(asyncio.create_task(self._watched.renew_by_time(), name="graces"))

    async def aclose(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _ask_for_ever(self, member: Member) -> None:
        # Probes of many peers at one moment would be a burst: spread by name.
        await asyncio.sleep(PROBE_EVERY_S * (hash(member.name) % 8) / 8)
        while True:
            await self._ask(member)
            await asyncio.sleep(PROBE_EVERY_S)

    async def _ask(self, member: Member) -> None:
        said = await self._probe(member)
        now_s = self._watched.clock()
        if said is not None and said.is_here:
            self._detector.heard(member.id, now_s)
            self._watched.hear("", replace(said, id=member.id, address=member.address))
        else:
            known = self._watched.roster.known(member.id) or member
            verdict = State.LEFT if said else self._detector.verdict(member.id, now_s)
            was_leaving = known.state in (State.DRAINING, State.LEFT)
            if verdict is State.DEAD and was_leaving:
                verdict = State.LEFT
            if verdict is State.SUSPECT and was_leaving:
                verdict = known.state
            if verdict is not State.ACTIVE:
                self._watched.roster.mark(member.id, known.run, verdict, now_s)
        await self._watched.renew()
