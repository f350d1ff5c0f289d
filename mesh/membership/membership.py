"""What the rest of mesh asks of membership, whoever finds out who lives.

Four implementations keep this contract (`tests/contracts/test_membership.py`):
`gossip` (SWIM), `etcd`, `static` (a list, and probes) and the simulated one of
`mesh.testing`.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

from mesh.clock import Clock, monotonic_s
from mesh.membership.roster import Roster
from mesh.membership.view import Member, State, View

PROTOCOL = 1
"""Of what peers say to each other. Peers of another one are not counted as members."""


RENEW_EVERY_S = 1.0
"""So exactly do graces end."""


class Membership(Protocol):
    """Who is in the mesh, and how this peer is known there."""

    @property
    def view(self) -> View:
        """The last snapshot; it names this peer too."""
        ...

    async def start(self) -> None:
        """Join, and begin to listen; `Unusable` when this can't work as it was told."""
        ...

    async def changed(self, epoch: int) -> View:
        """Wait until the view is another one than that of *epoch*; return it."""
        ...

    async def announce(self, me: Member) -> None:
        """Tell the others that this peer is now like this: its state, its portion."""
        ...

    async def meet(self, members: Sequence[Member]) -> None:
        """Get in touch with peers that somebody else knows to be here."""
        ...

    async def leave(self) -> None:
        """Tell the others that this peer has left; returns when some know, or after 2 s."""
        ...

    @property
    def twin(self) -> Member | None:
        """A peer that claims this one's identity (a copied data directory, or what is still
        said of this peer's own run before this one) or its name."""
        ...

    async def aclose(self) -> None:
        """End without a word, as a crash would, unless `leave` came before."""
        ...


class Watched:
    """A roster with a view that can be waited for; what every implementation is built on.

    Runs are told apart by tags: two that have one identity and one run number are a
    copied data directory, and have two tags all the same.
    """

    def __init__(
        self, me: Member, *, roster: Roster | None = None, clock: Clock = monotonic_s
    ) -> None:
        self.me = me
        self.roster = roster or Roster()
        self.clock = clock
        self.tag = f"{me.id}.{me.run:x}.{secrets.token_hex(3)}"
        self.heard: dict[str, Member] = {}
        """By tag, the runs that are here and are not this one."""

        self._changed = asyncio.Event()
        self.roster.hear(me, clock())
        self._view = self.roster.view(clock())

    @property
    def view(self) -> View:
        return self._view

    async def changed(self, epoch: int) -> View:
        while self._view.epoch == epoch:
            await self._changed.wait()
        return self._view

    @property
    def twin(self) -> Member | None:
        claims = (m for m in self.heard.values() if m.id == self.me.id or m.name == self.me.name)
        return next(claims, None)

    def mine(self, me: Member) -> None:
        """Note how this peer is now."""
        self.me = me
        self.roster.hear(me, self.clock())

    def hear(self, tag: str, member: Member) -> None:
        """Note what was heard of a run of a peer; what is said of this one is dropped."""
        if tag == self.tag:
            return
        if member.is_here:
            self.heard[tag] = member
        else:
            self.heard.pop(tag, None)
        if member.id != self.me.id:
            self.roster.hear(member, self.clock())
            if not member.is_here:
                self._hear_again(member.id)

    def lose(self, tag: str) -> None:
        """Note that a run that was here is gone, and did not say that it leaves."""
        if tag in self.heard:
            self.hear(tag, replace(self.heard[tag], state=State.DEAD))

    def _hear_again(self, member_id: str) -> None:
        """One of two copies of a data directory is gone: the other one is that peer now."""
        left = [member for member in self.heard.values() if member.id == member_id]
        if left:
            self.roster.reinstate(max(left, key=lambda member: member.run), self.clock())

    def renew(self) -> None:
        """Make the view of what the roster has heard; wake who waits for another one."""
        view = self.roster.view(self.clock())
        if view.epoch != self._view.epoch:
            self._view = view
            self._changed.set()
            self._changed = asyncio.Event()

    async def renew_by_time(self) -> None:
        """Let graces end, for as long as this is awaited."""
        while True:
            await asyncio.sleep(RENEW_EVERY_S)
            self.renew()


class Watching:
    """What of a `Membership` its roster answers, in whatever way that hears of others."""

    _watched: Watched

    @property
    def view(self) -> View:
        return self._watched.view

    @property
    def twin(self) -> Member | None:
        return self._watched.twin

    async def changed(self, epoch: int) -> View:
        return await self._watched.changed(epoch)


def as_left(me: Member) -> Member:
    """Return what the others should hear of a peer that has left."""
    return replace(me, state=State.LEFT)


def identity_of(tag: str) -> tuple[str, int] | None:
    """Return the id and the run that a tag stands for; None if it is none of ours."""
    parts = tag.split(".")
    if len(parts) != 3 or not all(parts):
        return None
    try:
        return parts[0], int(parts[1], 16)
    except ValueError:
        return None
