"""One reader of one version: which block is fetched next, and from whom.

    blocked on a block     whoever has it, else its owner, at once
    own blocks             filled here: so every peer brings others what they lack
    in the window          a random one that a neighbor has, from a random one who has it;
                           first what only one neighbor has, and might die with it
    nobody announced       a random one, from its owner, who fills it
    else                   wait for news

Random within a window (and not in order, not the rarest) is what keeps thousands of
readers that begin together from wanting the same block of the same owner; figures and
simulations are in docs/decisions/0011. All state is here, no I/O: `step` is told the time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random

from mesh.swarm.bits import any_of, indexes_of, lowest
from mesh.swarm.cursors import Cursors
from mesh.swarm.events import (
    Action,
    Announce,
    Arrived,
    Drop,
    Event,
    Failed,
    Fetch,
    Has,
    Lost,
    Met,
    Missed,
    Reads,
    Tick,
    Wants,
)
from mesh.swarm.rests import Rests
from mesh.swarm.sources import AWAY_S, Neighbor, Sources

HEDGE_AFTER = 3.0
"""Times the median: a block that takes longer is asked for elsewhere as well."""

HEDGE_AFTER_S_MIN = 0.2
HEDGED_PART_MAX = 0.05
HEDGES_FREE = 2
ANNOUNCED_TOGETHER = 8
ANNOUNCE_S_MIN = 0.02
ANNOUNCE_S_MAX = 0.6
ANNOUNCE_BLOCK_TIMES = 2.0
"""News wait for others to come along for about so many block times: 4 would cost 5 % of
the time of the last reader, 16 a fifth (fanout.md 3)."""

HINTS_MAX = 8

CROWD = 8
"""Where so many others read as well, who waits for a first block is taken to read on: a mount
says so once it has that, and one sender gives it to seven at a time (`SlotRules`)."""

SILENT_S = 1.0
"""Who was silent is left alone for so long: by then it has been heard, or found away."""


@dataclass(frozen=True, slots=True)
class Rules:
    """What may be under way."""

    at_once: int = 5
    urgent_at_once: int = 2
    """Over *at_once*."""

    a_source: int = 2
    """From one source at once."""

    fills_at_once: int = 2
    """Own blocks that come from the under-store."""

    asks_at_once: int = 1
    """Blocks that nobody has announced, from their owners."""


@dataclass(slots=True)
class _Flight:
    index: int
    began_s: float
    sources: list[str] = field(default_factory=list)
    is_urgent: bool = False
    was_hedged: bool = False
    is_asked: bool = False
    """Whether it comes from its owner, because nobody had announced it."""


class Scheduler:
    """The decisions of one peer about one version."""

    def __init__(
        self,
        block_count: int,
        me: str,
        owners: Callable[[int], Sequence[str]],
        random: Random,
        *,
        mine: int = 0,
        zone: str = "",
        is_own: Callable[[int], bool] | None = None,
        rules: Rules = Rules(),
    ) -> None:
        """*mine* is the set of blocks that are here; *owners* names those of a block, *is_own*
        says which ones are filled here (None: those with this peer as the first owner)."""
        self.block_count = block_count
        self.mine = mine
        self.cursors = Cursors(block_count)
        self.hedges = 0
        self.fetches = 0
        self._me = me
        self._owners = owners
        self._is_own = is_own or (lambda index: next(iter(owners(index)), "") == me)
        self._random = random
        self._rules = rules
        self._all = (1 << block_count) - 1
        self._own = 0
        self._looked_up = 0
        """Blocks whose owner was asked for: those of them that are own are in `_own`."""

        self._sources = Sources(zone, random, rules.a_source)

        self._flights: dict[int, _Flight] = {}
        self._flying = 0
        self._filling = 0
        self._wanted: dict[int, None] = {}
        self._hints: dict[int, list[str]] = {}
        self._rests = Rests()
        self._hushed_until_s = 0.0
        self._asks_from_s = 0.0
        """Owners are busy: others will announce what they have been sent before then."""

        self._window: int | None = None
        self._news = 0
        self._news_due_s = 0.0
        self._last_arrival_s = 0.0
        self._between_s = ANNOUNCE_S_MIN

    # What the peer asks

    @property
    def is_whole(self) -> bool:
        return self.mine == self._all

    @property
    def neighbors(self) -> Sequence[str]:
        return list(self._sources.neighbors)

    @property
    def flying(self) -> int:
        """How many blocks are on their way."""
        return len(self._flights)

    def is_coming(self, index: int) -> bool:
        """Whether a block is on its way."""
        return bool(self._flying >> index & 1)

    def has(self, peer: str) -> int:
        """Return the set of blocks that a neighbor is known to have."""
        neighbor = self._sources.neighbors.get(peer)
        return 0 if neighbor is None else neighbor.has

    def holders(self, index: int) -> list[str]:
        """Return neighbors that have a block, those that are better left alone last."""
        return self._sources.all_with(index)

    def rate(self, peer: str) -> float:
        """Return how many blocks a second a neighbor has sent, one at a time."""
        neighbor = self._sources.neighbors.get(peer)
        return 0.0 if neighbor is None else neighbor.rate

    @property
    def usual_s(self) -> float:
        """What a block takes, from whomever; 0 while nobody can say."""
        return self._sources.median_s

    def due_s(self) -> float:
        """Return when a `Tick` should come; inf when nothing hangs on time."""
        due_s = self._news_due_s if self._news else float("inf")
        alone = [f.began_s for f in self._flights.values() if not f.was_hedged]
        if alone:
            due_s = min(due_s, min(alone) + self._hedge_after_s)
        if self._wanted or self._missing_window():
            due_s = min(due_s, self._sources.quiet_until_s())
        if self._asks_from_s and self._missing_window():
            due_s = min(due_s, self._asks_from_s)
        return min(due_s, self._rests.due_s(), self.cursors.due_s())

    # What happens

    def step(self, now_s: float, event: Event) -> list[Action]:
        """Note what happened; return what is to be done now."""
        actions: list[Action] = []
        match event:
            case Has():
                self._note_has(event)
                if not self._may_begin():  # most of the news come while all is under way
                    return actions
            case Arrived():
                actions += self._note_arrived(now_s, event)
            case Missed():
                self._note_missed(now_s, event)
            case Failed():
                self._note_failed(now_s, event)
            case Wants():
                self._rests.wake(event.index)
                self._wanted.setdefault(event.index)
            case Reads():
                self.cursors.note(event.index, now_s)
                self._window = None
            case Met():
                actions += self._meet(event)
            case Lost():
                self._sources.neighbors.pop(event.peer, None)
                self._window = None
            case Tick():
                if self.cursors.expire(now_s):
                    self._window = None
                self._sources.expire(now_s)
                self._rests.expire(now_s)
                if self._asks_from_s <= now_s:
                    self._asks_from_s = 0.0
        if self._wanted and self.cursors.is_idle and len(self._sources.neighbors) >= CROWD:
            # They all wait for one sender, and this link has nothing to do meanwhile.
            self.cursors.guess(next(iter(self._wanted)), now_s)
            self._window = None
        actions += self._urgent(now_s)
        actions += self._fetches(now_s)
        if isinstance(event, Tick):
            actions += self._hedged(now_s)
        if self._news and (
            now_s >= self._news_due_s or self._news.bit_count() >= ANNOUNCED_TOGETHER
        ):
            actions += self._announced()
        return actions

    def _may_begin(self) -> bool:
        """Whether news could have a block fetched now."""
        return len(self._flights) - self._filling < self._rules.at_once or any(
            not self._flying >> index & 1 for index in self._wanted
        )

    def own_changed(self) -> None:
        """Note that the ring has changed: other blocks may be ours to fill."""
        self._own = self._looked_up = 0

    def forget(self, index: int) -> None:
        """Note that a block is not here after all."""
        if not self._flying >> index & 1:
            self.mine &= ~(1 << index)
            self._window = None

    def hush(self, until_s: float) -> None:
        """Ask nobody until then: nobody is heard. 0 when somebody is again."""
        self._hushed_until_s = until_s

    def want_all(self) -> None:
        """Have the whole file brought here."""
        self.cursors.wants_all = True
        self._window = None

    def _note_has(self, event: Has) -> None:
        neighbor = self._sources.neighbors.get(event.peer)
        if neighbor is not None:
            neighbor.has |= event.blocks
            neighbor.free_slots = event.free_slots

    def _meet(self, event: Met) -> list[Action]:
        neighbors = self._sources.neighbors
        if event.peer == self._me or event.peer in neighbors:
            return []
        neighbors[event.peer] = Neighbor(event.zone)
        self._window = None
        return [Announce((event.peer,), self.mine)]

    def _note_arrived(self, now_s: float, event: Arrived) -> list[Action]:
        bit = 1 << event.index
        flight = self._forget(event.index)
        self._hints.pop(event.index, None)
        self._wanted.pop(event.index, None)
        self._rests.forget(event.index)
        if event.source != self._me and event.took_s > 0:
            self._sources.sent(event.source, event.took_s, now_s)
        if self.mine & bit:
            return []
        self.mine |= bit
        self._window = None
        if self._last_arrival_s:
            since_s = now_s - self._last_arrival_s
            self._between_s += 0.2 * (since_s - self._between_s)
        self._last_arrival_s = now_s
        if not self._news:
            patience_s = ANNOUNCE_BLOCK_TIMES * self._between_s
            self._news_due_s = now_s + min(ANNOUNCE_S_MAX, max(ANNOUNCE_S_MIN, patience_s))
        self._news |= bit
        if flight is None:
            return []
        return [Drop(event.index, source) for source in flight.sources if source != event.source]

    def _note_missed(self, now_s: float, event: Missed) -> None:
        flight = self._flights.get(event.index)
        if flight is not None and event.source in flight.sources:
            flight.sources.remove(event.source)
            self._landed(event.source)
            if flight.is_asked and event.is_busy:
                self._asks_from_s = now_s + event.retry_s
            if not flight.sources:
                del self._flights[event.index]
                self._flying &= ~(1 << event.index)
        hints = self._hints.setdefault(event.index, [])
        hints += [p for p in event.others if p not in hints and p != self._me]
        del hints[HINTS_MAX:]
        neighbor = self._sources.neighbors.get(event.source)
        if event.is_away or event.is_busy:
            until_s = now_s + (AWAY_S if event.is_away else event.retry_s)
            self._sources.leave_alone(event.source, until_s)
        elif neighbor is not None:
            neighbor.has &= ~(1 << event.index)
        if event.is_silent:
            self._sources.leave_alone(event.source, now_s + SILENT_S)
        if event.source in hints:
            hints.remove(event.source)

    def _note_failed(self, now_s: float, event: Failed) -> None:
        self._forget(event.index)
        self._wanted.pop(event.index, None)  # who waits is told, and says so if he goes on
        self._rests.failed(event.index, now_s)

    def _forget(self, index: int) -> _Flight | None:
        flight = self._flights.pop(index, None)
        if flight is not None:
            self._flying &= ~(1 << index)
            for source in flight.sources:
                self._landed(source)
        return flight

    def _landed(self, source: str) -> None:
        if source == self._me:
            self._filling -= 1
        else:
            self._sources.landed(source)

    # Which block

    def _missing_window(self) -> int:
        if self._window is None:
            self._window = self.cursors.window(self.mine, helpers=len(self._sources.neighbors))
        return self._rests.without(self._window & ~self.mine)

    def _urgent(self, now_s: float) -> list[Action]:
        """Fetch what a reader is blocked on, whatever else is under way."""
        actions: list[Action] = []
        at_most = self._rules.at_once + self._rules.urgent_at_once
        for index in [i for i in self._wanted if not self._flying >> i & 1]:
            if len(self._flights) - self._filling >= at_most:
                break
            if self.mine >> index & 1:
                del self._wanted[index]
                continue
            source = self._source(index, now_s, is_urgent=True)
            if source is not None:
                actions.append(self._fly(index, source, now_s, is_urgent=True))
        return actions

    def _fetches(self, now_s: float) -> list[Action]:
        actions: list[Action] = []
        room = self._rules.at_once - (len(self._flights) - self._filling)
        if room <= 0 and self._filling >= self._rules.fills_at_once:
            return actions
        wanted = self._missing_window() & ~self._flying
        if not wanted or (room <= 0 and not wanted & self._owned(wanted)):
            return actions
        self._owned(wanted)
        announced = known = twice = 0
        for neighbor in self._sources.usable(now_s):
            announced |= neighbor.has
        for neighbor in self._sources.neighbors.values():
            twice |= known & neighbor.has
            known |= neighbor.has
        while wanted:
            chosen = self._chosen(wanted, announced, known, twice, now_s)
            if chosen is None:
                break
            index, source = chosen
            wanted &= ~(1 << index)
            if source is not None:
                actions.append(self._fly(index, source, now_s))
        return actions

    def _chosen(
        self, wanted: int, announced: int, known: int, twice: int, now_s: float
    ) -> tuple[int, str | None] | None:
        """Return the block to fetch next, and from whom, if from anybody just now.

        Neighbors who can be asked have *announced*, all together *known*, two or more *twice*.
        """
        own = wanted & self._own & ~known
        if own and self._filling < self._rules.fills_at_once:
            return lowest(own), self._me
        is_full = len(self._flights) - self._filling >= self._rules.at_once
        if is_full or now_s < self._hushed_until_s:
            return None
        if wanted & announced:
            found = wanted & announced
            index = any_of(found & ~twice or found, self._random)
        elif wanted & ~known & ~self._own and self._asks() < self._rules.asks_at_once:
            index = any_of(wanted & ~known & ~self._own, self._random)
        else:
            return None
        return index, self._source(index, now_s)

    def _asks(self) -> int:
        if self._asks_from_s:
            return self._rules.asks_at_once
        return sum(flight.is_asked for flight in self._flights.values())

    def _owned(self, wanted: int) -> int:
        """Return which of these blocks are ours to fill."""
        for index in indexes_of(wanted & ~self._looked_up):
            if self._is_own(index):
                self._own |= 1 << index
        self._looked_up |= wanted
        return self._own & wanted

    # From whom

    def _source(self, index: int, now_s: float, *, is_urgent: bool = False) -> str | None:
        """Return who is to be asked for a block; None when nobody can be, just now."""
        if now_s < self._hushed_until_s:
            return None
        peer = self._sources.one_with(index, now_s, more=1 if is_urgent else 0)
        if peer is not None:
            return peer
        for peer in self._hints.get(index, ()) if is_urgent else ():
            if not self._sources.is_quiet(peer):
                return peer
        owner = next((o for o in self._owners(index) if not self._sources.is_away(o, now_s)), None)
        if owner == self._me:
            return None if self._filling >= self._rules.fills_at_once + is_urgent else owner
        return None if owner is None or self._sources.is_quiet(owner) else owner

    def _fly(self, index: int, source: str, now_s: float, *, is_urgent: bool = False) -> Fetch:
        flight = self._flights.get(index)
        if flight is None:
            flight = self._flights[index] = _Flight(index, now_s, is_urgent=is_urgent)
        flight.sources.append(source)
        self._flying |= 1 << index
        self.fetches += 1
        neighbor = self._sources.neighbors.get(source)
        if source == self._me:
            self._filling += 1
        else:
            self._sources.flew(source)
        has_it = neighbor is not None and neighbor.has >> index & 1
        is_owner = not has_it and source in self._owners(index)
        flight.is_asked |= is_owner and not is_urgent and source != self._me
        return Fetch(index, source, is_owner, is_urgent)

    # What takes too long

    @property
    def _hedge_after_s(self) -> float:
        return max(HEDGE_AFTER_S_MIN, HEDGE_AFTER * self.usual_s) if self.usual_s else 1.0

    def _hedged(self, now_s: float) -> list[Action]:
        """Ask a second source for what takes too long, and at the end for all that is left."""
        actions: list[Action] = []
        after_s = self._hedge_after_s
        is_end = not self._missing_window() & ~self._flying
        for flight in list(self._flights.values()):
            limit_s = self._sources.median_s if is_end and self._sources.median_s else after_s
            if flight.was_hedged or now_s - flight.began_s < limit_s:
                continue
            may = self.hedges < HEDGES_FREE + HEDGED_PART_MAX * self.fetches
            for one in flight.sources:
                self._sources.dragged(one, now_s - flight.began_s, now_s)
            # Never a second owner, who might fill it.
            other = self._sources.one_with(flight.index, now_s, more=1, others_than=flight.sources)
            source = other if may and now_s >= self._hushed_until_s else None
            if source is None:
                flight.began_s = max(flight.began_s, now_s - limit_s / 2)  # look again later
                continue
            flight.was_hedged = True
            self.hedges += 1
            actions.append(self._fly(flight.index, source, now_s, is_urgent=flight.is_urgent))
        return actions

    # Telling others

    def _announced(self) -> list[Action]:
        news, self._news = self._news, 0
        neighbors = self._sources.neighbors
        # Who has them too has said so, and asks nobody for them.
        peers = [peer for peer, neighbor in neighbors.items() if news & ~neighbor.has]
        return [Announce(tuple(peers), news)] if peers else []
