"""The other peers: who owns what, who answers, and the calls to them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from typing import TypeVar

import structlog

from mesh.blocks import BlockKey, FileVersion
from mesh.clock import Clock, monotonic_s
from mesh.errors import MeshError, PeerUnavailable, Refused, Stale, UnderStoreUnavailable
from mesh.membership.view import Member, State, View, member_from_json
from mesh.metrics import Metrics
from mesh.peer.asks import Asks
from mesh.peer.calls import Wire
from mesh.peer.health import PROBE_EVERY_S, Health, Hedging, Lag, Slow
from mesh.peer.holdings import Holdings
from mesh.peer.rings import placement, ring_of
from mesh.ring.ring import Ring
from mesh.store.eviction import Rank
from mesh.wire.basics import Method
from mesh.wire.codec import DESCRIBE, HELD, HELLO, MEMBERS, PEEK, SERVE
from mesh.wire.hedged import Hedged, Patience, Signs, Source, Strays
from mesh.wire.messages import (
    BlockRequest,
    Description,
    HeldRequest,
    Nothing,
    Piece,
)
from mesh.wire.pulse import Pulses
from mesh.wire.swarm import TAKE, TakeRequest

log = structlog.get_logger()

Q = TypeVar("Q")
A = TypeVar("A")

OWNERS = 2
"""The primary, and the successor that fills while the primary is away."""

LAG_EVERY_S = 0.1
PROBE_TIMEOUT_S = 1.0
HELD_TIMEOUT_S = 0.3
"""A peer that was just stopped is asked too: what a read then waits for it is this, once."""

DOUBTED_PART = 0.8
"""Of the patience with a reader who has just been silent, with the next one."""

HOLDERS_ASKED = 16
FORMER_RINGS = 4
RINGS_IN_THREAD = 64
"""Members from which on a ring is built in a thread: 40 ms of hashing."""


class RingNeighbors:
    """The neighbors that a view names, in the order that its ring says.

    The view and its ring are swapped together by `update`; what is under way goes on
    with those that it began with.
    """

    def __init__(
        self,
        view: View,
        me: str,
        wire: Wire,
        *,
        metrics: Metrics | None = None,
        clock: Clock = monotonic_s,
        control: Wire | None = None,
    ) -> None:
        """Ask small things over *control*: there they need not queue behind megabytes."""
        self.view = view
        self.ring = ring_of(view)
        self.me = me
        self.health = Health(clock())
        self.lag = Lag()
        self.hedging = Hedging(lambda: self.lag.worst_s(clock()))
        self._wire = wire
        self._metrics = metrics or Metrics()
        self._clock = clock
        self.signs = Signs()
        self._strays = Strays()
        self._control = control or wire
        self._pulses = Pulses(self._feel, self.signs, clock)
        self._former: list[Ring] = []
        self._broke = asyncio.Event()
        self._holdings = Holdings(self._held_now, clock)
        self._asks = Asks()

    async def aclose(self) -> None:
        await self._pulses.aclose()
        await self._strays.aclose()

    # Who is there

    async def update(self, view: View) -> bool:
        """Go by *view* from now on; return whether blocks have other owners now."""
        before = self.view
        moved = placement(view) != placement(before)
        if not moved:
            ring = self.ring
        elif len(view.members) < RINGS_IN_THREAD:
            ring = ring_of(view)
        else:
            ring = await asyncio.to_thread(ring_of, view)
        if moved:
            self._former = [self.ring, *self._former][:FORMER_RINGS]
        self.view, self.ring = view, ring
        self._note_changes(before, view)
        return moved

    def _note_changes(self, before: View, after: View) -> None:
        now_s = self._clock()
        if before.epoch != after.epoch:
            self.health.note_change(now_s)
            self._holdings.clear()
        for member in after.members:
            last = before.find(member.name)
            if last is None or last.run != member.run or last.address != member.address:
                self.health.forget(member.name)
                self.signs.forget(member.name)
            elif member.state is State.ACTIVE and last.state is not State.ACTIVE:
                self.health.answered(member.name, now_s)
            elif not member.is_here and last.is_here:
                self._asks.died(member.name)
        for name in {m.name for m in before.members} - {m.name for m in after.members}:
            self.health.forget(name)
            self._asks.died(name)

    def owners(self, key: BlockKey | bytes) -> list[str]:
        """Return who should be asked, nearest first; who can't help is last, or left out."""
        now_s = self._clock()
        found = self._in_order(key, now_s, self._is_doubtful)
        if self.signs.is_deaf(now_s):
            found = [self.me, *(name for name in found if name != self.me)]
        return found[:1] if self.health.is_under_store_away(now_s) else found

    def owners_of_names(self, directory: bytes) -> list[str]:
        """Return who should be asked about a directory, nearest first.

        Owners know names although nobody reaches the under-store, and who is no owner answers
        only when they don't.
        """
        now_s = self._clock()
        is_away = self.health.is_under_store_away(now_s)
        found = self._in_order(
            directory, now_s, self.health.is_quiet if is_away else self._is_doubtful
        )
        if self.me in found and not self.owns(directory):
            found.remove(self.me)
            found.append(self.me)
        return found

    def _in_order(
        self, key: BlockKey | bytes, now_s: float, is_last: Callable[[str, float], bool]
    ) -> list[str]:
        """Return a few peers in the order of the ring, those that are doubted last."""
        wanted = OWNERS + 1
        spare = sum(not self._is_well(m, now_s) for m in self.view.placed)
        best: list[str] = []
        worse: list[str] = []
        for name in self.ring.owners(key, copies=wanted + spare):
            member = self.view.find(name)
            if name == self.me:
                best.append(name)
            elif member is None or not member.is_asked or self.health.is_away(name, now_s):
                continue
            elif member.state is State.SUSPECT or is_last(name, now_s):
                worse.append(name)
            else:
                best.append(name)
        return (best + worse)[:wanted]

    def _is_well(self, member: Member, now_s: float) -> bool:
        is_well = member.state is State.ACTIVE and not self.health.is_away(member.name, now_s)
        return is_well or member.name == self.me

    def _is_doubtful(self, name: str, now_s: float) -> bool:
        return self.health.is_barren(name, now_s) or self.health.is_quiet(name, now_s)

    def is_me(self, peer: str) -> bool:
        return peer == self.me

    def owns(self, key: BlockKey | bytes) -> bool:
        return self.me in self.ring.owners(key, copies=OWNERS)

    def is_primary(self, key: BlockKey) -> bool:
        return self.ring.owners(key, copies=1) == [self.me]

    def is_filler(self, key: BlockKey) -> bool:
        """Whether this peer is to fill a block: it is the first of its owners that answers.

        Who is silent for a moment still fills what it owns, or both would.
        """
        names = self.ring.owners(key, copies=OWNERS + 1)
        return next((n for n in names if n == self.me or self._answers(n)), "") == self.me

    def rank(self, key: BlockKey) -> Rank:
        owners = self.ring.owners(key, copies=OWNERS)
        if self.me not in owners:
            return Rank.COPY
        return Rank.OWNED if owners[0] == self.me else Rank.SPARE

    def is_broken(self, peer: str) -> bool:
        return self.health.is_away(peer, self._clock())

    def _answers(self, peer: str) -> bool:
        member = self.view.find(peer)
        return member is not None and member.is_asked and not self.is_broken(peer)

    def may_bypass(self) -> bool:
        """Whether the under-store may be asked after others have asked it in vain.

        Once it does not answer this peer either, not for a while. Before, what others say
        may be old, or true of them alone: a read must not fail for that.
        """
        now_s = self._clock()
        return not (
            self.health.is_under_store_away(now_s) and self.health.is_barren(self.me, now_s)
        )

    def may_ask_after_all(self) -> bool:
        """Whether others may reach the under-store although this peer can't."""
        return not self.health.is_under_store_away(self._clock())

    def note_under_store(self, *, answers: bool) -> None:
        if answers:
            self.health.fertile(self.me)
        else:
            self.health.barren(self.me, self._clock())

    # Blocks

    def serve(
        self, peers: Sequence[str], file: FileVersion, index: int, missing: Sequence[int]
    ) -> Hedged:
        """Return the pieces of a block from the first of *peers* that can give them."""
        return self._hedged(SERVE, peers, file, index, missing)

    def relay(self, file: FileVersion, index: int, missing: Sequence[int]) -> Hedged | None:
        """Return the pieces of a block from the peer that should fill it instead of this one.

        None when that is this one, or can't be asked. Of a block that a reader could not
        get from its primary, that may be all that is wrong: the way between these two.
        """
        # While this peer joins, nobody may have a place in the ring yet.
        primary = next(iter(self.ring.owners(file.key(index), copies=1)), self.me)
        member = self.view.find(primary)
        now_s = self._clock()
        is_asked = member is not None and self._is_well(member, now_s)
        is_vain = self.signs.is_deaf(now_s) or self.health.is_quiet(primary, now_s)
        if primary == self.me or not is_asked or is_vain:
            return None
        return self._hedged(SERVE, [primary], file, index, missing, is_relayed=True)

    def peek(
        self, peers: Sequence[str], file: FileVersion, index: int, missing: Sequence[int]
    ) -> Hedged:
        """Return the pieces of a block from those of *peers* that have it."""
        return self._hedged(PEEK, peers, file, index, missing)

    def _hedged(
        self,
        method: Method[BlockRequest, Piece],
        peers: Sequence[str],
        file: FileVersion,
        index: int,
        missing: Sequence[int],
        *,
        is_relayed: bool = False,
    ) -> Hedged:
        request = BlockRequest(file, index, missing[0] if missing else 0, is_relayed)

        def ask(peer: str) -> AsyncIterator[Piece]:
            return self._wire.pieces(self._address(peer), method, request)

        return self._raced(peers, ask, gives_up=is_relayed or method is PEEK)

    def _raced(
        self,
        peers: Sequence[str],
        ask: Callable[[str], AsyncIterator[Piece]],
        *,
        gives_up: bool,
        is_told: bool = False,
        patience: Patience | None = None,
    ) -> Hedged:
        self.hedging.began()
        return Hedged(
            peers, ask, patience or self.hedging, self.signs, self._clock,
            answers=(Stale, Refused), gives_up=gives_up, is_told=is_told, pulse=self._pulses.feel,
        )  # fmt: skip

    async def _feel(self, peer: str) -> None:
        within_s = max(PROBE_TIMEOUT_S, self.hedging.lost_after_s)
        await self._control.call(self._address(peer), HELLO, Nothing(), timeout_s=within_s)
        self.health.heard(peer)

    def settle(self, hedged: Hedged) -> None:
        """Learn from what became of a block's sources, and let those left over end."""
        now_s = self._clock()
        self._metrics.hedges.inc(hedged.hedges)
        for source in hedged.sources:
            if hedged.is_lost(source):
                self._note_failure(source.peer, f"silent for {hedged.silent_s(source):.2f} s")
                self.signs.forget(source.peer)
                continue
            if not source.is_over and hedged.are_silent([source]):
                self.health.overtaken(source.peer, now_s)
            self._learn(source, now_s)
        self._strays.take(hedged)

    def _learn(self, source: Source, now_s: float) -> None:
        peer = source.peer
        if source.first_s:
            self.health.heard(peer)
            self.hedging.heard(source.first_s - source.began_s)
        if isinstance(source.error, PeerUnavailable):
            self._note_failure(peer, str(source.error))
        elif isinstance(source.error, UnderStoreUnavailable):
            self.health.barren(peer, now_s)
        elif source.data_bytes:
            self.health.fertile(peer)
            took_s = source.last_s - source.first_data_s
            is_measured = not source.beats and took_s > 0
            if is_measured and self.health.sent(peer, source.data_bytes, took_s, now_s):
                log.warning("peer slow", peer=peer)

    async def other_holders(self, file: FileVersion, index: int, *, wide: bool) -> list[str]:
        """Return peers that have the block, or fill it at this moment.

        In a mesh where nothing changes nobody but its primary fills a block, and nobody
        is asked unless *wide*. One answer about a version serves for all its blocks.
        """
        now_s = self._clock()
        key = file.key(index)
        is_alone = self.is_primary(key) and not self.health.is_recent(now_s)
        if not wide and (is_alone or self.signs.is_deaf(now_s)):
            return []
        asked = [name for name in self._possible_holders(key, wide=wide) if name != self.me]
        asking = (self._holdings.of(peer, file, is_fresh=wide) for peer in asked)
        held = await asyncio.gather(*asking)
        return [peer for peer, indexes in zip(asked, held, strict=True) if index in indexes]

    def _possible_holders(self, key: BlockKey, *, wide: bool) -> list[str]:
        now_s = self._clock()
        is_whole = all(self._is_well(member, now_s) for member in self.view.placed)
        copies = HOLDERS_ASKED if wide or not is_whole else OWNERS + 2
        names = dict.fromkeys(self.ring.owners(key, copies=copies))
        for ring in self._former:
            names.update(dict.fromkeys(ring.owners(key, copies=OWNERS)))
        found = [self.view.find(name) for name in names]
        return [
            member.name
            for member in found
            if member is not None
            and member.state in (State.ACTIVE, State.SUSPECT, State.DRAINING)
            and not self.health.is_away(member.name, now_s)
            and not self.health.is_quiet(member.name, now_s)
        ]

    async def _held_now(self, peer: str, file: FileVersion) -> frozenset[int]:
        return await self.held(peer, file, timeout_s=max(HELD_TIMEOUT_S, self.hedging.after_s))

    async def held(
        self, peer: str, file: FileVersion, *, timeout_s: float = HELD_TIMEOUT_S
    ) -> frozenset[int]:
        """Return which blocks of a version *peer* has, or brings from the under-store now."""
        reply = await self._control.call(
            self._address(peer), HELD, HeldRequest(file), timeout_s=timeout_s
        )
        return reply.indexes

    # Directories

    async def ask(self, peer: str, method: Method[Q, A], request: Q, *, timeout_s: float) -> A:
        """Return what *peer* answers; raises what it raised, or `PeerUnavailable` when it does
        not answer in time, or the members say meanwhile that it is dead."""
        call = self._control.call(self._address(peer), method, request, timeout_s=timeout_s)
        return await self._asks.answer(peer, call)

    def pieces(self, peer: str, method: Method[Q, Piece], request: Q) -> AsyncIterator[Piece]:
        """Yield what *peer* sends; raises what it raised, or `PeerUnavailable`."""
        return self._wire.pieces(self._address(peer), method, request)

    async def push(self, peer: str, method: Method[Q, A], values: AsyncIterator[Q]) -> None:
        """Send *peer* what *values* yields; raises what it raised, or `PeerUnavailable`."""
        await self._wire.push(self._address(peer), method, values)

    def take(self, request: TakeRequest, peer: str, *, patience_s: float = 0.0) -> Hedged:
        """Return the pieces of a block from a reader of the same version, who may be silent
        for *patience_s* at least."""

        def ask(name: str) -> AsyncIterator[Piece]:
            return self._wire.pieces(self._address(name), TAKE, request)

        part = DOUBTED_PART if self.signs.is_doubted() else 1.0
        slow = Slow(self.hedging, part * patience_s)
        return self._raced([peer], ask, gives_up=True, is_told=True, patience=slow)

    def note_failure(self, peer: str, error: MeshError) -> None:
        """Learn from what a peer could not answer."""
        if isinstance(error, PeerUnavailable):
            self._note_failure(peer, str(error))

    async def feel(self, peer: str) -> None:
        """See whether a peer answers at all; leave it alone if not."""
        try:
            await self._feel(peer)
        except MeshError as error:
            self._note_failure(peer, str(error))

    def former_owners(self, directory: bytes) -> list[str]:
        """Return who owned a directory before the ring changed; nobody if that is long ago."""
        if not self.health.is_recent(self._clock()):
            return []
        names = dict.fromkeys(
            name for ring in self._former for name in ring.owners(directory, copies=OWNERS)
        )
        names.update(dict.fromkeys(self.ring.owners(directory, copies=OWNERS)))
        return [name for name in names if name != self.me and self._answers(name)]

    async def describe(self, peer: str) -> Description:
        """Return how *peer* is; one that does not answer is described as down."""
        member = self.view.member(peer)
        if member.is_here:
            if (answer := await self.description(member)) is not None:
                self._note_answer(peer)
                return answer
            self._note_failure(peer, "does not say how it is")
        return Description(
            name=peer, address=member.address, zone=member.zone, weight=member.weight, is_up=False
        )

    async def description(self, member: Member) -> Description | None:
        """Return how the peer at a member's address is; None when it does not answer."""
        asked = self._control.call(member.address, DESCRIBE, Nothing(), timeout_s=PROBE_TIMEOUT_S)
        with suppress(MeshError):
            return await asked
        return None

    async def hello(self, member: Member) -> Member | None:
        """Return what the peer at a member's address says of itself; None if nothing."""
        try:
            reply = await self._control.call(
                member.address, HELLO, Nothing(), timeout_s=PROBE_TIMEOUT_S
            )
        except MeshError as error:
            log.debug("no hello", peer=member.name, reason=str(error))
            return None
        return member_from_json(reply.member)

    async def view_at(self, address: str) -> bytes:
        """Return the view of the peer at an address, as JSON."""
        reply = await self._control.call(address, MEMBERS, Nothing(), timeout_s=PROBE_TIMEOUT_S)
        return reply.view

    async def probe(self) -> None:
        """Ask the peers that don't answer, until they do, for as long as this peer runs."""
        while True:
            await self._broke.wait()
            await asyncio.sleep(PROBE_EVERY_S)
            away = [member for name in self.health.away() if (member := self.view.find(name))]
            if not away:
                self._broke.clear()
            said = await asyncio.gather(*(self.hello(member) for member in away))
            for member, answer in zip(away, said, strict=True):
                if answer is not None:
                    self._note_answer(member.name)

    async def watch_lag(self) -> None:
        """Note how late this process runs, for as long as it does."""
        while True:
            due_s = self._clock() + LAG_EVERY_S
            await asyncio.sleep(LAG_EVERY_S)
            now_s = self._clock()
            self.lag.woke(now_s - due_s, now_s)

    def _address(self, peer: str) -> str:
        member = self.view.find(peer)
        if member is None:
            raise PeerUnavailable(peer, "is not in the mesh any more")
        return member.address

    def _note_failure(self, peer: str, reason: str) -> None:
        if self.health.failed(peer, self._clock()):
            # What others hold was asked while that one filled: ask anew.
            self._holdings.clear()
            log.warning("peer away", peer=peer, reason=reason)
            self._broke.set()

    def _note_answer(self, peer: str) -> None:
        if self.health.answered(peer, self._clock()):
            self._holdings.clear()
            log.info("peer back", peer=peer)
