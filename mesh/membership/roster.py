"""From signs of life to snapshots: decisions only, no clock and no sockets.

Whatever finds out who lives (gossip, etcd, probes of a static list, a simulation)
tells it here, and everybody gets the same rules:

* of two runs of one identity the later counts: a peer that was restarted is back,
  whatever is still said of the run before, and has the place that it had
* of two identities with one name the one that is here counts, of two that are the one
  that has a place: a newcomer never takes it away; and of two that have the one with
  the smaller id, so that all choose alike whatever they heard first
  (ids that begin with the time when they were made let the older one be chosen)
* who is dead or has left keeps its place for the grace, and is forgotten
  `FORGET_S` later; who never had a place gets none by dying
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
    """When it came, or went."""

    has_place: bool
    """Whether it was ever ready, unless its grace ended since."""


class Roster:
    """Everybody that was ever heard of, and what was heard last."""

    def __init__(self, *, grace_s: float = GRACE_S, forget_s: float = FORGET_S) -> None:
        self._grace_s = grace_s
        self._forget_s = forget_s
        self._known: dict[str, _Known] = {}
        self._view = view_of(())

    def hear(self, member: Member, now_s: float) -> None:
        """Note what was heard of a peer; of an earlier run only that it had a place counts."""
        is_ready = member.state is not State.JOINING
        known = self._known.get(member.id)
        if known is None:
            self._known[member.id] = _Known(member, now_s, is_ready)
            return
        last = known.member
        if member.run < last.run:
            known.has_place = known.has_place or is_ready
            return
        is_later = member.run > last.run
        if not is_later and member.address != last.address and last.is_here:
            return  # two claim to be the same run: a copied data directory
        if self._is_over(known, now_s):
            known.has_place = False
        if is_later or member.is_here != last.is_here:
            known.since_s = now_s
        if member.is_here or is_later:
            known.has_place = known.has_place or is_ready
        known.member = member

    def reinstate(self, member: Member, now_s: float) -> None:
        """Go back to an earlier run of a peer, the later one having been a copy of it."""
        known = self._known.get(member.id)
        if known is None or known.member.is_here:
            self.hear(member, now_s)
        else:
            known.member, known.since_s = member, now_s

    def mark(self, member_id: str, run: int, state: State, now_s: float) -> None:
        """Note the state of a run of a peer, without news of anything else of it."""
        known = self._known.get(member_id)
        if known is not None and known.member.run == run:
            self.hear(replace(known.member, state=state), now_s)

    def known(self, member_id: str) -> Member | None:
        found = self._known.get(member_id)
        return None if found is None else found.member

    def homonyms(self, now_s: float) -> list[tuple[Member, Member]]:
        """Return the pairs of peers here that claim one name: who has it, who does not."""
        chosen = self._chosen(now_s)
        return [
            (chosen[known.member.name].member, known.member)
            for known in self._known.values()
            if known.member.is_here and chosen[known.member.name] is not known
        ]

    def view(self, now_s: float) -> View:
        """Return who is in the mesh now."""
        for member_id, known in list(self._known.items()):
            if not known.member.is_here and now_s >= self._forgotten_s(known):
                del self._known[member_id]
        members = [self._placed(known, now_s) for known in self._chosen(now_s).values()]
        members.sort(key=lambda member: member.name)
        # It is asked for every second, and is nearly always the one before: its digest is dear.
        if tuple(members) != self._view.members:
            self._view = view_of(members)
        return self._view

    def next_change_s(self, now_s: float) -> float | None:
        """Return when the view changes by time alone, or None."""
        ends_s = [
            end_s
            for known in self._known.values()
            if not known.member.is_here
            for end_s in (known.since_s + self._grace_s, self._forgotten_s(known))
        ]
        return min((end_s for end_s in ends_s if end_s > now_s), default=None)

    def _placed(self, known: _Known, now_s: float) -> Member:
        is_placed = self._has_place(known, now_s)
        member = known.member
        return member if member.is_placed is is_placed else replace(member, is_placed=is_placed)

    def _has_place(self, known: _Known, now_s: float) -> bool:
        return known.has_place and not self._is_over(known, now_s)

    def _is_over(self, known: _Known, now_s: float) -> bool:
        """Whether it is gone and its grace has ended."""
        return not known.member.is_here and now_s >= known.since_s + self._grace_s

    def _forgotten_s(self, known: _Known) -> float:
        return known.since_s + self._grace_s + self._forget_s

    def _chosen(self, now_s: float) -> dict[str, _Known]:
        """Return who has each name: who is here, then who has a place, then the smaller id."""

        def rank(known: _Known) -> tuple[bool, bool, str]:
            member = known.member
            return not member.is_here, not self._has_place(known, now_s), member.id

        chosen: dict[str, _Known] = {}
        for known in sorted(self._known.values(), key=rank):
            chosen.setdefault(known.member.name, known)
        return chosen
