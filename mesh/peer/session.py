"""One version that this host reads with the help of others: the effects of its scheduler."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from math import inf
from random import Random
from typing import Protocol

from mesh.blocks import FileVersion, piece_count
from mesh.clock import Clock
from mesh.errors import Busy, PeerUnavailable
from mesh.peer.outbox import Outbox
from mesh.swarm.bits import mask_of
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
from mesh.swarm.scheduler import Rules, Scheduler
from mesh.wire.channels import HEARTBEAT_S
from mesh.wire.hedged import DEAF_FOR_S, Hedged

TICK_S_MIN = 0.005
PATIENCE_S_MIN = 1.0
PATIENCE_S_MAX = 5.0
PATIENCE_TIMES = 6.0
"""A reader waits so many times what a block takes for its turn in the swarm, and then asks
owners as if alone: over slow links earlier would be more work for those who are busy."""


PIECE_TIMES = 2.0
"""Times what a piece takes; who is overtaken for less sends what then nobody wants."""

FIRST_S = 0.45
"""Likewise while nothing has come yet: all begin at the same moment, connect to each other and
ask one owner, and who is taken to be silent then has a second owner fill as well."""

BEAT_PART = 0.25
BEAT_S_MAX = 0.5
BEATS = 2.5
"""Where a block takes a second, who waits for one is told four times that the sender lives, not
ten times, and misses two of them before it asks."""


def beat_s(usual_s: float) -> float:
    """Return how often a sign of life comes from a reader that has nothing to send yet, where a
    block usually takes so long."""
    return min(BEAT_S_MAX, max(HEARTBEAT_S, BEAT_PART * usual_s))


class Loads(Protocol):
    """Who brings blocks here."""

    def begin(self, session: Session, index: int, *, is_own: bool) -> bool:
        """Bring a block from the sources that the session names; an own one by a fill.

        False when that can't begin now: the block is being brought otherwise.
        """
        ...


class Session:
    """A swarm, seen from one of its readers."""

    def __init__(
        self,
        file: FileVersion,
        me: str,
        zone: str,
        held: Sequence[int],
        owners: Callable[[int], Sequence[str]],
        outbox: Outbox,
        loads: Loads,
        clock: Clock,
        random: Random,
        is_own: Callable[[int], bool],
        is_deaf: Callable[[], bool],
        rules: Rules = Rules(),  # noqa: B008 (frozen)
    ) -> None:
        """*owners* names whom to ask for a block that nobody has, *is_own* says whether this
        peer is to fill it, *is_deaf* whether it hears nobody at all."""
        self.file = file
        self.active_s = clock()
        """When somebody read of it, or was sent of it."""

        self.is_read_on = False
        """Whether anybody here has read past the block that the session began with."""

        self.gone: frozenset[str] = frozenset()
        """Members who don't answer: others fill what is theirs."""

        self.received_bytes: dict[str, int] = {}
        self.scheduler = Scheduler(
            file.block_count,
            me,
            owners,
            random,
            mine=mask_of(held),
            zone=zone,
            is_own=is_own,
            rules=rules,
        )
        self._me = me
        self._outbox = outbox
        self._loads = loads
        self._clock = clock
        self._assigned: dict[int, deque[Fetch]] = {}
        self._begun_s: dict[int, float] = {}
        self._fills_next: set[int] = set()
        """Blocks to be filled here as soon as what was begun before has ended."""

        self._hedged: dict[int, Hedged] = {}
        self._senders: dict[int, str] = {}
        self._greeted: set[str] = set()
        self._changed: dict[int, asyncio.Event] = {}
        self._is_deaf = is_deaf
        self._is_hushed = False
        self._tick: asyncio.TimerHandle | None = None
        self._tick_s = 0.0
        self.is_over = False

    @property
    def done(self) -> float:
        """The part of the file that is here."""
        return self.scheduler.mine.bit_count() / self.scheduler.block_count

    @property
    def is_idle(self) -> bool:
        """Whether nobody of this host reads of it any more."""
        return self.scheduler.is_whole or (
            self.scheduler.cursors.is_idle and not self.scheduler.flying
        )

    @property
    def is_deaf(self) -> bool:
        """Whether nobody who is asked is heard: others are of no help then."""
        return self._is_deaf()

    # What happens

    def step(self, event: Event) -> None:
        """Tell the scheduler what happened, and do what it says."""
        if self.is_over:
            return
        actions = self.scheduler.step(self._clock(), event)
        for action in actions:
            self._do(action)
        if actions or not isinstance(event, Has):  # news alone hang on no time
            self._set_tick()

    def reads(self, index: int) -> None:
        """Note that a stream of this host has come to a block."""
        self.active_s = self._clock()
        self.is_read_on = True
        self.step(Reads(index))

    @property
    def patience_s(self) -> float:
        """How long a reader waits until it asks owners as if alone."""
        times_s = PATIENCE_TIMES * self.scheduler.usual_s
        return min(PATIENCE_S_MAX, max(PATIENCE_S_MIN, times_s))

    @property
    def piece_s(self) -> float:
        """How long nothing may come from who sends, and be well: over gRPC pieces come whole."""
        usual_s = self.scheduler.usual_s
        a_piece_s = PIECE_TIMES * usual_s / piece_count(self.file.block_bytes)
        return max(a_piece_s, BEATS * beat_s(usual_s)) if usual_s else FIRST_S

    async def wants(self, index: int, is_coming: Callable[[], bool], *, until_s: float) -> None:
        """Return once a block that a reader is blocked on is on its way, at last *until_s*."""
        self.active_s = self._clock()
        self.scheduler.forget(index)
        self.step(Wants(index))
        while not (is_coming() or self.is_over or self.is_deaf):
            if (left_s := until_s - self._clock()) <= 0:
                break
            changed = self._changed.setdefault(index, asyncio.Event())
            try:
                async with asyncio.timeout(left_s):
                    await changed.wait()
            except TimeoutError:
                break
            changed.clear()
        self._changed.pop(index, None)

    def meet(self, peer: str, zone: str, *, is_greeting: bool) -> None:
        """Note a neighbor; it is greeted unless it was it that greeted."""
        if is_greeting:
            self._greeted.add(peer)
        self.step(Met(peer, zone))

    def heard(
        self, peer: str, zone: str, blocks: int, free_slots: int, *, is_greeting: bool
    ) -> None:
        """Note what a neighbor says that it has."""
        self._hears_again()
        is_new = peer not in self.scheduler.neighbors
        if is_new:
            self.meet(peer, zone, is_greeting=False)
        elif is_greeting:
            self._tell(peer, self.scheduler.mine)
        self.step(Has(peer, blocks, free_slots))

    def want_all(self) -> None:
        """Have the whole file brought here."""
        self.is_read_on = True
        self.scheduler.want_all()
        self.step(Tick())

    def note_gone(self, gone: frozenset[str]) -> None:
        """Note who does not answer now."""
        if gone != self.gone:
            self.gone = gone
            self.scheduler.own_changed()
        for peer in self.scheduler.neighbors:
            if peer in gone:
                self.lost(peer)

    def lost(self, peer: str) -> None:
        """Note that a neighbor is gone."""
        self.step(Lost(peer))

    # Loads

    def source(self, index: int) -> Fetch | None:
        """Return whom to ask for a block that is being brought; None when nobody is named."""
        assigned = self._assigned.get(index)
        return assigned.popleft() if assigned else None

    def asked(self, index: int, hedged: Hedged) -> None:
        """Note the question that is under way for a block."""
        self._hedged[index] = hedged

    def missed(self, index: int, hedged: Hedged) -> None:
        """Note that none of those who were asked gave a block."""
        self._hedged.pop(index, None)
        if self.is_deaf:
            self._hush()
        for source in hedged.sources:
            error = source.error
            self.step(
                Missed(
                    index,
                    source.peer,
                    is_away=isinstance(error, PeerUnavailable),
                    is_busy=isinstance(error, Busy),
                    retry_s=error.retry_s if isinstance(error, Busy) else 0.0,
                    is_silent=source.peer in hedged.silent,
                    others=error.others if isinstance(error, Busy) else (),
                )
            )

    def sent(self, index: int, hedged: Hedged) -> None:
        """Note who has sent a block that will be here in a moment."""
        self._hears_again()
        self._hedged.pop(index, None)
        for source in hedged.sources:
            if source.data_bytes:
                before_bytes = self.received_bytes.get(source.peer, 0)
                self.received_bytes[source.peer] = before_bytes + source.data_bytes
        best = max(hedged.sources, key=lambda source: source.data_bytes, default=None)
        if best is not None:
            self._senders[index] = best.peer

    def _hush(self) -> None:
        """Ask others nothing for a while, and let who waits for them go on alone."""
        self._is_hushed = True
        self.scheduler.hush(self._clock() + DEAF_FOR_S)
        for changed in self._changed.values():
            changed.set()

    def _hears_again(self) -> None:
        if self._is_hushed:
            self._is_hushed = False
            self.scheduler.hush(0.0)

    def landed(self, index: int) -> None:
        """Note that a block is here, however it came."""
        sender = self._senders.pop(index, self._me)
        began_s = self._begun_s.pop(index, None)
        took_s = 0.0 if began_s is None else self._clock() - began_s
        self._assigned.pop(index, None)
        self._fills_next.discard(index)
        self.step(Arrived(index, sender, took_s))

    def given_up(self, index: int, *, may_go_on: bool) -> None:
        """Note that a load has ended without the block: what was decided since it had nobody
        left to ask begins, unless nobody could have helped it."""
        self._begun_s.pop(index, None)
        self._hedged.pop(index, None)
        self._senders.pop(index, None)
        is_own = index in self._fills_next
        self._fills_next.discard(index)
        if not may_go_on:
            self._assigned.pop(index, None)
        if may_go_on and (is_own or self._assigned.get(index)):
            self._begin(index, is_own=is_own)
        elif self.scheduler.is_coming(index):
            self.step(Failed(index))

    def close(self) -> None:
        """Leave the swarm."""
        self.is_over = True
        if self._tick is not None:
            self._tick.cancel()
        for peer in self.scheduler.neighbors:
            self._tell(peer, 0, is_leaving=True)
        for changed in self._changed.values():
            changed.set()

    # What is to be done

    def _do(self, action: Action) -> None:
        match action:
            case Fetch():
                self._fetch(action)
            case Announce():
                for peer in action.peers:
                    greets = peer in self._greeted
                    self._greeted.discard(peer)
                    self._tell(peer, action.blocks, is_greeting=greets)
            case Drop():
                pass  # what it still sends is let end: `wire.hedged` says why

    def _fetch(self, fetch: Fetch) -> None:
        self._begun_s.setdefault(fetch.index, self._clock())
        if fetch.source != self._me:
            hedged = self._hedged.get(fetch.index)
            if hedged is not None:
                hedged.ask_also(fetch.source)
                return
            self._assigned.setdefault(fetch.index, deque()).append(fetch)
        self._begin(fetch.index, is_own=fetch.source == self._me)

    def _begin(self, index: int, *, is_own: bool) -> None:
        if not self._loads.begin(self, index, is_own=is_own) and is_own:
            self._fills_next.add(index)
        if (changed := self._changed.get(index)) is not None:
            changed.set()

    def _tell(
        self, peer: str, blocks: int, *, is_greeting: bool = False, is_leaving: bool = False
    ) -> None:
        self._outbox.tell(
            peer,
            self.file.id,
            blocks,
            self.file.block_count,
            is_greeting=is_greeting,
            is_leaving=is_leaving,
        )

    def _set_tick(self) -> None:
        """Have a tick come in time; one that comes too early sees that, and is set anew."""
        due_s = self.scheduler.due_s()
        if due_s == inf or self.is_over or (self._tick is not None and self._tick_s <= due_s):
            return
        if self._tick is not None:
            self._tick.cancel()
        self._tick_s = max(due_s, self._clock() + TICK_S_MIN)
        after_s = self._tick_s - self._clock()
        self._tick = asyncio.get_running_loop().call_later(after_s, self._ticked)

    def _ticked(self) -> None:
        self._tick = None
        if self.scheduler.due_s() <= self._clock():
            self.step(Tick())
        else:
            self._set_tick()
