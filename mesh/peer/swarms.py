"""The swarms of one peer: versions that are read here, and the graphs of others' readers.

a mount reads on (reader)  →  session: whom to ask (swarm/)  →  TAKE from neighbors
                                                             →  a fill of one's own
a neighbor asks (TAKE)     →  slots: now, later, elsewhere    →  store, or what is landing
a reader says it is there (JOIN, every 2 s)                   →  graph of its file
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing, suppress
from random import Random
from typing import Protocol

import structlog

from mesh.blocks import FileVersion
from mesh.clock import Clock
from mesh.errors import Busy, MeshError, NotFound, PeerUnavailable, Unavailable
from mesh.peer.care import Handler
from mesh.peer.neighbors import RingNeighbors
from mesh.peer.once import quietly
from mesh.peer.outbox import Outbox
from mesh.peer.session import Loads, Session, beat_s
from mesh.store.entries import directory_key, split
from mesh.swarm.bits import of_bytes
from mesh.swarm.graph import INTERVAL_S, Graph
from mesh.swarm.slots import Busy as Refusal
from mesh.swarm.slots import SlotRules, Slots, Ticket
from mesh.wire.channels import HEARTBEAT_S
from mesh.wire.messages import Nothing, Piece
from mesh.wire.swarm import (
    JOIN,
    NEWS,
    SHOW,
    WANT,
    JoinReply,
    JoinRequest,
    NewsRequest,
    Reader,
    ShowReply,
    ShowRequest,
    Source,
    TakeRequest,
    WantRequest,
)

log = structlog.get_logger()

BLOCKS_MIN = 16
"""A file of fewer blocks is read from owners: there is no time to help each other."""

SESSIONS_MAX = 64
GRAPHS_MAX = 1024
LINGER_S = 60.0
"""For so long after the last read a version is still given to others."""

LINGER_HEAD_S = 3.0
"""Likewise where nobody read on after the first block: who looks at the heads of thousands of
files must not take the places of those who read."""

JOIN_TIMEOUT_S = 1.0
HOLDERS_TOLD = 4
"""Who has a block, to an owner that would fill it: more would only be asked in vain."""

BROUGHT_AT_ONCE = 4
HEARTBEAT = Piece(0, 0, b"")


class Blocks(Loads, Protocol):
    """What the peer has of blocks, and brings."""

    def serve(
        self, file: FileVersion, index: int, first_piece: int
    ) -> AsyncGenerator[Piece, None]: ...

    async def bring(self, file: FileVersion, index: int) -> str: ...

    def pass_on(
        self, file: FileVersion, index: int, first_piece: int, *, beat_s: float
    ) -> AsyncGenerator[Piece, None]: ...


class Swarms:
    """All that one peer reads with others, and gives them."""

    def __init__(
        self,
        neighbors: RingNeighbors,
        blocks: Blocks,
        tasks: asyncio.TaskGroup,
        *,
        held: Callable[[bytes], frozenset[int]],
        clock: Clock,
        random: Random,
        egress_bytes_per_s: float = 0.0,
        is_reading: bool = True,
        slots: SlotRules = SlotRules(),  # noqa: B008 (frozen)
    ) -> None:
        """*held* says which blocks of a version are here; *egress_bytes_per_s* is what may be
        sent to neighbors in swarms, 0 for no limit. Without *is_reading* this host helps
        others, and reads from owners alone."""
        self._is_reading = is_reading
        self._neighbors = neighbors
        self._blocks = blocks
        self._tasks = tasks
        self._held = held
        self._clock = clock
        self._random = random
        self._sessions: dict[bytes, Session] = {}
        self._graphs: dict[bytes, Graph] = {}
        self._slots = Slots(slots)
        self._waiting: dict[Ticket, asyncio.Future[None]] = {}
        self._pace = Pace(egress_bytes_per_s, clock)
        self._outbox = Outbox(
            neighbors.me,
            lambda: self._zone(neighbors.me),
            self._push,
            lambda: self._slots.free,
            self._lost,
            tasks,
        )

    def handlers(self) -> list[Handler]:
        """Return the RPCs, what each does, and whether it is for people of this host alone."""
        return [(JOIN, self.join, False), (SHOW, self.show, False), (WANT, self.want, False)]

    # What this host reads

    def session(self, version: bytes) -> Session | None:
        """Return the session of a version that is read with others, if any."""
        return self._sessions.get(version)

    def joined(self, file: FileVersion, index: int) -> Session | None:
        """Return the session of a version for who waits for a block of it.

        Who waits for the first one will read on, and so will all who begin together: it is
        sent by turns already. Who waits for any other may want nothing else.
        """
        session = self._sessions.get(file.id)
        return self._begin(file) if session is None and not index else session

    def reads(self, file: FileVersion, index: int) -> bool:
        """Note that a stream has come to a block; False if it is not read with others."""
        session = self._sessions.get(file.id) or self._begin(file)
        if session is None:
            return False
        session.reads(index)
        return True

    def ring_changed(self) -> None:
        """Note that blocks have other owners than before."""
        for session in self._sessions.values():
            session.scheduler.own_changed()

    def announced(self, file: FileVersion, index: int) -> Sequence[str]:
        """Return other readers who have said that they have a block, and may be asked."""
        session = self._sessions.get(file.id)
        if session is None or session.is_deaf:
            return ()
        return session.scheduler.holders(index)[:HOLDERS_TOLD]

    def landed(self, file: FileVersion, index: int) -> None:
        """Note that a block is here now."""
        if (session := self._sessions.get(file.id)) is not None:
            session.landed(index)

    def given_up(self, file: FileVersion, index: int, *, may_go_on: bool) -> None:
        """Note that a read of a block has ended without it, and whether others may be asked."""
        if (session := self._sessions.get(file.id)) is not None:
            session.given_up(index, may_go_on=may_go_on)

    def _begin(self, file: FileVersion) -> Session | None:
        is_worth_it = self._is_reading and file.block_count >= BLOCKS_MIN
        if not is_worth_it or len(self._sessions) >= SESSIONS_MAX:
            return None
        if len(self._neighbors.view.members) < 2:
            return None
        session = Session(
            file,
            self._neighbors.me,
            self._zone(self._neighbors.me),
            sorted(self._held(file.id)),
            lambda index: self._neighbors.owners(file.key(index)),
            self._outbox,
            self._blocks,
            self._clock,
            Random(self._random.random()),  # noqa: S311
            lambda index: self._neighbors.is_filler(file.key(index)),
            lambda: self._neighbors.signs.is_deaf(self._clock()),
        )
        self._sessions[file.id] = session
        log.debug("swarm joined", path=file.path)
        self._tasks.create_task(self._take_part(session), name=f"swarm of {file.path}")
        return session

    async def _take_part(self, session: Session) -> None:
        """Say again and again that this peer is there, and meet who else is."""
        try:
            while not self._is_over(session):
                try:
                    await self._join(session)
                except MeshError as error:
                    log.debug("no neighbors", path=session.file.path, reason=str(error))
                except Exception:
                    log.exception("swarm", path=session.file.path)
                await asyncio.sleep(INTERVAL_S)
        finally:
            del self._sessions[session.file.id]
            session.close()
        with suppress(MeshError):
            await self._ask(self._request(session, is_leaving=True))

    def _is_over(self, session: Session) -> bool:
        linger_s = LINGER_S if session.is_read_on else LINGER_HEAD_S
        return session.is_idle and self._clock() - session.active_s > linger_s

    async def _join(self, session: Session) -> None:
        members = self._neighbors.view.members
        session.note_gone(frozenset(m.name for m in members if self._neighbors.is_broken(m.name)))
        reply = await self._ask(self._request(session))
        for peer in reply.neighbors:
            if peer not in session.scheduler.neighbors and peer not in session.gone:
                session.meet(peer, self._zone(peer), is_greeting=True)

    def _request(self, session: Session, *, is_leaving: bool = False) -> JoinRequest:
        me = self._neighbors.me
        return JoinRequest(
            session.file,
            me,
            self._zone(me),
            session.done,
            tuple(session.scheduler.neighbors),
            tuple(session.gone),
            is_leaving,
        )

    async def _ask(self, request: JoinRequest) -> JoinReply:
        """Ask the owners of the file's directory, one after the other."""
        directory = directory_key(request.file.source, split(request.file.path)[0])
        failure: MeshError = PeerUnavailable("owner", "nobody to ask")
        # Where there is no CPU to be had, all are late, and nobody is away.
        within_s = max(JOIN_TIMEOUT_S, self._neighbors.hedging.lost_after_s)
        for peer in self._neighbors.owners_of_names(directory):
            if self._neighbors.is_me(peer):
                return await self.join(request)
            try:
                return await self._neighbors.ask(peer, JOIN, request, timeout_s=within_s)
            except Unavailable as error:
                failure = error
                await self._neighbors.feel(peer)
        raise failure

    def _zone(self, peer: str) -> str:
        member = self._neighbors.view.find(peer)
        return "" if member is None else member.zone

    # What others read

    async def join(self, request: JoinRequest) -> JoinReply:
        """Note a reader of a file, and name its neighbors."""
        version, now_s = request.file.id, self._clock()
        for known, other in list(self._graphs.items()):
            other.expire(now_s)
            if not other:
                del self._graphs[known]
        graph = self._graphs.get(version)
        if graph is None:
            if len(self._graphs) >= GRAPHS_MAX:
                raise NotFound("too many files are read at once")
            graph = self._graphs[version] = Graph(Random(self._random.random()))  # noqa: S311
        if request.is_leaving:
            graph.leave(request.asker)
            return JoinReply(())
        return JoinReply(
            tuple(
                graph.join(
                    now_s,
                    request.asker,
                    zone=request.zone,
                    done=request.done,
                    known=request.known,
                    gone=request.gone,
                )
            )
        )

    def news(self, request: NewsRequest) -> None:
        """Note what a neighbor says that it has."""
        self._neighbors.signs.heard_of(self._clock())
        for have in request.have:
            session = self._sessions.get(have.version)
            if session is None:
                continue
            if have.is_leaving:
                session.lost(request.asker)
                continue
            session.heard(
                request.asker,
                request.zone,
                of_bytes(have.bitmap, session.file.block_count),
                request.free_slots,
                is_greeting=have.is_greeting,
            )

    async def take(self, request: TakeRequest) -> AsyncGenerator[Piece, None]:
        """Yield the pieces of a block for a neighbor once it is its turn; raises `Busy`."""
        every_s = HEARTBEAT_S
        if (session := self._sessions.get(request.file.id)) is not None:
            self._slots.usual_s = session.scheduler.usual_s
            every_s = beat_s(session.scheduler.usual_s)
        ticket = Ticket(request.asker, request.file.id, request.index, request.is_urgent)
        answer = self._slots.ask(self._clock(), ticket)
        if isinstance(answer, Refusal):
            raise Busy.of(answer.retry_s, answer.others)
        is_sent = False
        try:
            if not answer:
                async for beat in self._turn(ticket, every_s):
                    yield beat
            yield HEARTBEAT
            asked = request.file, request.index, request.first_piece
            if request.is_owner:
                sent = self._blocks.serve(*asked)
            else:
                sent = self._blocks.pass_on(*asked, beat_s=every_s)
            async with aclosing(sent) as pieces:
                async for piece in pieces:
                    await self._pace.take(len(piece.data))
                    yield piece
            is_sent = True
        finally:
            self._waiting.pop(ticket, None)
            for granted in self._slots.done(self._clock(), ticket, is_sent=is_sent):
                if (waiter := self._waiting.pop(granted, None)) is not None and not waiter.done():
                    waiter.set_result(None)
        if (session := self._sessions.get(request.file.id)) is not None:
            session.active_s = self._clock()

    async def _turn(self, ticket: Ticket, every_s: float) -> AsyncIterator[Piece]:
        waiter = self._waiting[ticket] = asyncio.get_running_loop().create_future()
        while not waiter.done():
            yield HEARTBEAT
            await asyncio.wait([waiter], timeout=every_s)

    async def want(self, request: WantRequest) -> Nothing:
        """Have whole files brought here; large ones with the help of others."""
        alone: list[FileVersion] = []
        for file in request.files:
            session = self._sessions.get(file.id) or self._begin(file)
            if session is None:
                alone.append(file)
            else:
                session.active_s = self._clock()
                session.want_all()
        if alone:
            self._tasks.create_task(quietly(self._bring(alone)), name="files that are wanted")
        return Nothing()

    async def _bring(self, files: Sequence[FileVersion]) -> None:
        """Bring files here from their owners, a few blocks at once."""
        blocks = iter([(file, index) for file in files for index in range(file.block_count)])

        async def work() -> None:
            for file, index in blocks:
                with suppress(MeshError):  # what is missing in the end is seen there
                    await self._blocks.bring(file, index)

        await asyncio.gather(*(work() for _ in range(BROUGHT_AT_ONCE)))

    async def show(self, request: ShowRequest) -> ShowReply:
        """Say what is known of the readers of files, and of this one."""
        readers: list[Reader] = []
        received_bytes: Counter[str] = Counter()
        rates: Counter[str] = Counter()
        held_bytes, is_reading = 0, False
        for file in request.files:
            held_bytes += sum(map(file.length_bytes, self._held(file.id)))
            if (graph := self._graphs.get(file.id)) is not None:
                readers += [Reader(*one) for one in graph.readers]
            if (session := self._sessions.get(file.id)) is not None:
                is_reading |= not session.is_idle
                received_bytes.update(session.received_bytes)
                for peer in session.received_bytes:
                    rates[peer] += int(session.scheduler.rate(peer) * file.block_bytes)
        sources = tuple(Source(p, count, rates[p]) for p, count in received_bytes.most_common())
        return ShowReply(tuple(readers), held_bytes, is_reading, sources)

    # News

    async def _push(self, peer: str, messages: AsyncIterator[NewsRequest]) -> None:
        await self._neighbors.push(peer, NEWS, messages)

    def _lost(self, peer: str) -> None:
        for session in list(self._sessions.values()):
            session.lost(peer)


class Pace:
    """So many bytes a second, in small bursts."""

    BURST_S = 0.1

    def __init__(self, bytes_per_s: float, clock: Clock) -> None:
        self._bytes_per_s = bytes_per_s
        self._clock = clock
        self._free_s = 0.0

    async def take(self, size_bytes: int) -> None:
        """Wait until so many bytes may be sent."""
        if not self._bytes_per_s:
            return
        now_s = self._clock()
        self._free_s = max(self._free_s, now_s - self.BURST_S) + size_bytes / self._bytes_per_s
        if (wait_s := self._free_s - now_s) > 0:
            await asyncio.sleep(wait_s)
