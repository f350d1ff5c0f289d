"""Membership without sockets: one world says who runs and who reaches whom.

Every peer looks at all others twice a second, by the clock of the event loop, and
sees those that it reaches: directly, or as SWIM does through a third one. News
thus take as long as a look is away, and a death as long as patience lasts; all delays
come from the random numbers that the world was given.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from random import Random

from mesh.membership.detector import Detector, Patience
from mesh.membership.membership import PROTOCOL, Watched, Watching, as_left
from mesh.membership.roster import GRACE_S, Roster
from mesh.membership.view import Member, State

LOOK_EVERY_S = (0.3, 0.5)
"""The shortest and the longest time between two looks."""


class SimWorld:
    """Who runs, and who reaches whom."""

    def __init__(self, random: Random) -> None:
        self.random = random
        self.runs: dict[str, SimMembership] = {}
        """By tag, in the order of their start."""

        self._cuts: set[tuple[str, str]] = set()
        self._stopped: set[str] = set()

    def cut(self, source: str, target: str) -> None:
        """Lose all that the peer *source* sends to *target*; names of peers."""
        self._cuts.add((source, target))

    def mend(self, source: str, target: str) -> None:
        self._cuts.discard((source, target))

    def stop(self, name: str) -> None:
        """Let a peer hang, as SIGSTOP does, until it goes on."""
        self._stopped.add(name)

    def go_on(self, name: str) -> None:
        self._stopped.discard(name)

    def is_stopped(self, name: str) -> bool:
        return name in self._stopped

    def carries(self, source: str, target: str) -> bool:
        """Whether what *source* sends arrives at *target*."""
        return (source, target) not in self._cuts

    def reaches(self, asker: SimMembership, other: SimMembership) -> bool:
        """Whether *asker* hears of *other*, from it or from a third one."""
        if other.name in self._stopped:
            return False
        return self._is_linked(asker.name, other.name) or any(
            self._is_linked(asker.name, third.name) and self._is_linked(third.name, other.name)
            for third in self.runs.values()
            if third.name not in self._stopped
        )

    def _is_linked(self, one: str, other: str) -> bool:
        return self.carries(one, other) and self.carries(other, one)

    def look_every_s(self) -> float:
        return self.random.uniform(*LOOK_EVERY_S)


class SimMembership(Watching):
    """A `Membership` in a `SimWorld`; it begins with `start`."""

    def __init__(
        self,
        world: SimWorld,
        me: Member,
        *,
        grace_s: float = GRACE_S,
        patience: Patience | None = None,
        protocol: int = PROTOCOL,
    ) -> None:
        loop = asyncio.get_running_loop()
        self.name = me.name
        self.protocol = protocol
        self._world = world
        self._clock = loop.time
        self._watched = Watched(me, roster=Roster(grace_s=grace_s), clock=self._clock)
        self._detector = Detector(patience or Patience())
        self._seen: dict[str, tuple[Member, State]] = {}
        """By tag: what was heard last, and what was made of it."""

        self._tasks: list[asyncio.Task[None]] = []

    @property
    def me(self) -> Member:
        """How this peer says that it is."""
        return self._watched.me

    async def announce(self, me: Member) -> None:
        """The others see it at their next look."""
        self._watched.mine(me)
        self._watched.renew()

    async def meet(self, members: Sequence[Member]) -> None:
        """Whoever is in reach is seen anyway."""

    async def leave(self) -> None:
        """Wait until everybody in reach has looked."""
        await self.announce(as_left(self.me))
        await asyncio.sleep(LOOK_EVERY_S[1])

    async def start(self) -> None:
        """Enter the world; whoever is in reach is seen at once."""
        self._world.runs[self._watched.tag] = self
        self._look()
        self._tasks = [
            asyncio.create_task(self._look_for_ever(), name=f"{self.name} looks"),
            asyncio.create_task(self._watched.renew_by_time(), name=f"graces of {self.name}"),
        ]

    async def aclose(self) -> None:
        self._world.runs.pop(self._watched.tag, None)
        for task in self._tasks:
            task.cancel()
        for task in self._tasks:
            with suppress(asyncio.CancelledError):
                await task

    async def _look_for_ever(self) -> None:
        while True:
            await asyncio.sleep(self._world.look_every_s())
            if not self._world.is_stopped(self.name):
                self._look()

    def _look(self) -> None:
        now_s = self._clock()
        for tag, other in self._world.runs.items():
            if other is self or other.protocol != self.protocol:
                continue
            if self._world.reaches(self, other):
                self._detector.heard(tag, now_s)
                self._note(tag, other.me, other.me.state)
        for tag, (member, _) in list(self._seen.items()):
            verdict = self._detector.verdict(tag, now_s)
            if verdict is State.DEAD and member.is_here:
                self._note(tag, member, State.DEAD)
            elif verdict is State.SUSPECT and member.state is State.ACTIVE:
                self._note(tag, member, State.SUSPECT)

    def _note(self, tag: str, member: Member, state: State) -> None:
        last = self._seen.get(tag)
        if last is not None and last[0] is member and last[1] is state:
            return
        self._seen[tag] = (member, state)
        if state is State.DEAD:
            self._watched.lose(tag)
        else:
            self._watched.hear(tag, replace(member, state=state))
        self._watched.renew()
