"""From signs of life to snapshots: decisions only, no clock and no sockets.

Whatever finds out who lives (gossip, etcd, probes of a static list, a simulation)
tells it here, and everybody gets the same rules:

* of two runs of one identity the later counts: a peer that was restarted is back,
  whatever is still said of the run before
* of two identities with one name the one that was there first counts, and of two
  that came together the one with the smaller id, so that all choose alike
* who is dead or has left keeps its place for the grace, and is forgotten
  `FORGET_S` later
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from mesh.membership.view import Member, State, View, view_of

GRACE_S = 60.0
"""A restart, a crash that an init system mends and a flapping link are all shorter:
within it nothing moves."""

FORGET_S = 600.0
"""For so long after the grace people still see a dead peer in `mesh status`."""

GONE = (State.DEAD, State.LEFT)


@dataclass(slots=True)
class _Known:
    member: Member
    since_s: float
    """When it got the state that it has."""

    first_s: float
    """When its identity was first seen."""


class Roster:
    """Everybody that was ever heard of, and what was heard last."""

    def __init__(self, *, grace_s: float = GRACE_S, forget_s: float = FORGET_S) -> None:
        self._grace_s = grace_s
        self._forget_s = forget_s
        self._known: dict[str, _Known] = {}

    def hear(self, member: Member, now_s: float) -> None:
        """Note what was heard of a peer; news of an earlier run of it are dropped."""
        known = self._known.get(member.id)
        if known is None:
            self._known[member.id] = _Known(member, now_s, now_s)
            return
        last = known.member
        if member.run < last.run:
            return
        if member.run == last.run and member.address != last.address and last.is_here:
            return  # two claim to be the same run: a copied data directory
        if member.state != last.state:
            if last.state in GONE and now_s - known.since_s > self._grace_s:
                known.first_s = now_s
            known.since_s = now_s
        known.member = member

    def mark(self, member_id: str, run: int, state: State, now_s: float) -> None:
        """Note the state of a run of a peer, without news of anything else of it."""
        known = self._known.get(member_id)
        if known is not None and known.member.run == run:
            self.hear(replace(known.member, state=state), now_s)

    def known(self, member_id: str) -> Member | None:
        found = self._known.get(member_id)
        return None if found is None else found.member

    def homonyms(self) -> list[tuple[Member, Member]]:
        """Return the pairs of peers here that claim one name: who has it, who does not."""
        chosen = self._chosen()
        return [
            (chosen[known.member.name].member, known.member)
            for known in self._known.values()
            if known.member.is_here and chosen[known.member.name] is not known
        ]

    def view(self, now_s: float) -> View:
        """Return who is in the mesh now."""
        for member_id, known in list(self._known.items()):
            gone_s = now_s - known.since_s
            if known.member.state in GONE and gone_s > self._grace_s + self._forget_s:
                del self._known[member_id]
        return view_of(self._placed(known, now_s) for known in self._chosen().values())

    def next_change_s(self, now_s: float) -> float | None:
        """Return when the view changes by time alone, or None."""
        ends = [
            known.since_s + after_s
            for known in self._known.values()
            if known.member.state in GONE
            for after_s in (self._grace_s, self._grace_s + self._forget_s)
        ]
        return min((end_s for end_s in ends if end_s >= now_s), default=None)

    def _placed(self, known: _Known, now_s: float) -> Member:
        member = known.member
        if member.state is State.JOINING:
            return replace(member, is_placed=False)
        in_grace = now_s - known.since_s <= self._grace_s
        return replace(member, is_placed=member.state not in GONE or in_grace)

    def _chosen(self) -> dict[str, _Known]:
        """Return who has each name: somebody here before somebody gone, then the first."""
        chosen: dict[str, _Known] = {}
        order = sorted(
            self._known.values(), key=lambda k: (not k.member.is_here, k.first_s, k.member.id)
        )
        for known in order:
            chosen.setdefault(known.member.name, known)
        return chosen
