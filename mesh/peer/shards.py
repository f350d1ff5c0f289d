"""Which peers own a directory, and what is asked of them.

Many names that are asked for at once go to their owner in one call. The next owner is asked
when one is away, or silent for as long as a block of it would be.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from itertools import takewhile
from typing import TypeVar

import structlog

from mesh.errors import MeshError, PeerUnavailable, Unavailable
from mesh.membership.view import Member
from mesh.metrics import Metrics
from mesh.peer.neighbors import OWNERS, RingNeighbors
from mesh.wire.catalog import INVALIDATE, KEEP, LIST, LOOKUP
from mesh.wire.messages import (
    Change,
    InvalidateRequest,
    KeepRequest,
    ListReply,
    ListRequest,
    LookupRequest,
    StatReply,
)
from mesh.wire.staged import ASSERT, RECALL, AssertReply, AssertRequest, RecallReply, RecallRequest
from mesh.wire.writes import ANNOUNCE, TURN, AnnounceRequest, TurnRequest

log = structlog.get_logger()

A = TypeVar("A")

ANSWER_TIMEOUT_S = 40.0
"""More than one request to the under-store may take."""

FEEL_EVERY_S = 0.5
"""Who is asked for longer than a block would take is asked so often whether he is there."""

FELLOWS_MAX = 8
NEWS_TIMEOUT_S = 1.0
NAMES_A_CALL = 256
CALLS_AT_ONCE = 2
"""To one owner for names; what comes meanwhile is asked together."""

WAITING_MAX = 16_384


class Shards:
    """The owners of directories, as this peer sees them."""

    def __init__(
        self, neighbors: RingNeighbors, tasks: asyncio.TaskGroup, metrics: Metrics
    ) -> None:
        self._neighbors = neighbors
        self._tasks = tasks
        self._metrics = metrics
        self._counters: dict[tuple[str, bool], _Counter] = {}
        self._felt: set[str] = set()

    @property
    def me(self) -> str:
        return self._neighbors.me

    def nearer(self, directory: bytes) -> list[str]:
        """Return the peers to ask before this one answers itself."""
        owners = self._neighbors.owners_of_names(directory)
        return list(takewhile(lambda peer: not self._neighbors.is_me(peer), owners))

    def farther(self, directory: bytes) -> list[str]:
        """Return the peers to ask when this one can't find out."""
        if not self._neighbors.may_ask_after_all():
            return []
        nearer = set(self.nearer(directory))
        owners = self._neighbors.owners_of_names(directory)
        return [p for p in owners if p not in nearer and not self._neighbors.is_me(p)]

    def owners(self, directory: bytes) -> list[str]:
        """Return who should have what is known of a directory."""
        return self._neighbors.ring.owners(directory, copies=OWNERS)

    def owns(self, directory: bytes) -> bool:
        return self._neighbors.owns(directory)

    def successor(self, directory: bytes) -> str | None:
        """Return who keeps the second copy of what this peer owns; None if it is no first owner."""
        owners = self.owners(directory)
        is_first = len(owners) == OWNERS and self._neighbors.is_me(owners[0])
        return owners[1] if is_first else None

    def others(self) -> list[Member]:
        """Return the other peers that may be told something."""
        members = self._neighbors.view.members
        return [m for m in members if m.name != self.me and m.is_asked]

    def is_broken(self, peer: str) -> bool:
        return self._neighbors.is_broken(peer)

    def former(self, directory: bytes) -> list[str]:
        """Return who may know a directory that this peer has come to own lately."""
        return self._neighbors.former_owners(directory)

    def fellows(self, directory: bytes) -> tuple[list[str], list[str]]:
        """Return who else should know of a directory, or did until a moment ago; and some of
        those for whom they may have answered."""
        here = [m.name for m in self.others() if not self.is_broken(m.name)]
        ring = self.owners(directory)
        known = dict.fromkeys([*ring, *self.former(directory)])
        owners = [peer for peer in known if peer in here]
        others = [peer for peer in here if peer not in known][:FELLOWS_MAX]
        is_whole = all(peer in here or peer == self.me for peer in ring)
        return (owners, others) if is_whole else ([], [*owners, *others])

    async def first(self, peers: Sequence[str], ask: Callable[[str], Awaitable[A]]) -> A:
        """Return what the first of *peers* says; raises what it raised.

        `PeerUnavailable` or `UnderStoreUnavailable` when none could answer.
        """
        failure: MeshError = PeerUnavailable("owner", "nobody to ask")
        waiting = deque(peers)
        asked: dict[asyncio.Task[A | MeshError], str] = {}
        patience_s = self._neighbors.hedging.after_s
        while waiting or asked:
            if waiting:
                peer = waiting.popleft()
                asked[self._tasks.create_task(_outcome(ask, peer), name=f"ask {peer}")] = peer
                patience_s = self._neighbors.hedging.after_s
            done, silent = await asyncio.wait(
                asked, timeout=patience_s, return_when=asyncio.FIRST_COMPLETED
            )
            if not done:
                # Who looks for long is waited for, who is not there at all is not.
                away = self._neighbors.health.away()
                for task in [task for task in silent if asked[task] in away]:
                    failure = PeerUnavailable(asked.pop(task), "does not answer")
                self._feel(asked.values())
                patience_s = max(patience_s, FEEL_EVERY_S)
            for task in done:
                answer = task.result()
                peer = asked.pop(task)
                if not isinstance(answer, Unavailable):
                    return _raised_if_error(answer)
                failure = answer
                self._neighbors.note_failure(peer, answer)
                self._metrics.failovers.labels(type(answer).__name__).inc()
        raise failure

    async def in_order(self, peers: Sequence[str], ask: Callable[[str], Awaitable[A]]) -> A:
        """Return what the first of *peers* says that is there; raises what it raised.

        Nobody is asked while another one may be at it: what two of them do is done twice.
        """
        failure: MeshError = PeerUnavailable("owner", "nobody to ask")
        for peer in peers:
            try:
                return await ask(peer)
            except Unavailable as error:
                failure = error
                self._neighbors.note_failure(peer, error)
        raise failure

    def _feel(self, peers: Iterable[str]) -> None:
        """See whether peers that do not answer are there at all."""
        for peer in peers:
            if peer not in self._felt:
                self._felt.add(peer)
                self._tasks.create_task(self._feel_one(peer), name=f"feel {peer}")

    async def _feel_one(self, peer: str) -> None:
        try:
            await self._neighbors.feel(peer)
        finally:
            self._felt.discard(peer)

    async def lookup(
        self, peer: str, path: str, *, refresh: bool = False, only_known: bool = False
    ) -> StatReply | None:
        """Return what an owner says of a path; None when it does not know it.

        Raises what the owner raised.
        """
        kind = (peer, only_known)
        if kind not in self._counters:
            self._counters[kind] = _Counter(self, peer, only_known=only_known)
        return await self._counters[kind].ask(path, refresh=refresh)

    async def page(self, peer: str, request: ListRequest) -> ListReply:
        """Return a page of a listing from an owner."""
        return await self._neighbors.ask(peer, LIST, request, timeout_s=ANSWER_TIMEOUT_S)

    async def tell(self, peer: str, changes: tuple[Change, ...]) -> None:
        """Tell a peer that what it knows is old."""
        request = InvalidateRequest(changes)
        await self._neighbors.ask(peer, INVALIDATE, request, timeout_s=NEWS_TIMEOUT_S)

    async def announce(self, peer: str, request: AnnounceRequest) -> None:
        """Have an owner know what was done to names; returns when it has told who must know."""
        await self._neighbors.ask(peer, ANNOUNCE, request, timeout_s=ANSWER_TIMEOUT_S)

    async def turn(self, peer: str, request: TurnRequest) -> None:
        """Have the turn at a path, or give it back."""
        await self._neighbors.ask(peer, TURN, request, timeout_s=ANSWER_TIMEOUT_S)

    async def claim(self, peer: str, request: AssertRequest) -> AssertReply:
        """Ask an owner whether a staged file is still wanted."""
        return await self._neighbors.ask(peer, ASSERT, request, timeout_s=ANSWER_TIMEOUT_S)

    async def recall(self, peer: str, *, is_heard: bool = False) -> RecallReply:
        """Ask what is staged in directories that this peer owns, and what has ended; or say
        that this was heard."""
        request = RecallRequest(self.me, is_heard)
        return await self._neighbors.ask(peer, RECALL, request, timeout_s=ANSWER_TIMEOUT_S)

    async def keep(self, peer: str, request: KeepRequest) -> None:
        """Have the second owner keep what this one has learned."""
        await self._neighbors.ask(peer, KEEP, request, timeout_s=NEWS_TIMEOUT_S)

    def start(self, work: Awaitable[None], name: str) -> None:
        self._tasks.create_task(_run(work), name=name)

    async def ask_names(self, peer: str, request: LookupRequest) -> Sequence[object]:
        self._metrics.catalog_calls.inc()
        reply = await self._neighbors.ask(peer, LOOKUP, request, timeout_s=ANSWER_TIMEOUT_S)
        return reply.answers


async def _outcome(ask: Callable[[str], Awaitable[A]], peer: str) -> A | MeshError:
    """Return what came of it: a task of the peer's group must not raise."""
    try:
        return await ask(peer)
    except MeshError as error:
        return error
    except Exception as error:  # a bug of ours is no reason to end the peer
        log.exception("question failed", peer=peer)
        return Unavailable(f"{type(error).__name__}: {error}")


def _raised_if_error(answer: A | MeshError) -> A:
    if isinstance(answer, MeshError):
        raise answer
    return answer


async def _run(work: Awaitable[None]) -> None:
    await work


_Question = tuple[str, bool, "asyncio.Future[StatReply | None]"]
"""A path, whether to look anew, and who waits."""


class _Counter:
    """Where questions to one peer queue up: the first goes at once, the others together."""

    def __init__(self, shards: Shards, peer: str, *, only_known: bool) -> None:
        self._shards = shards
        self._peer = peer
        self._only_known = only_known
        self._waiting: deque[_Question] = deque()
        self._calls = 0

    async def ask(self, path: str, *, refresh: bool) -> StatReply | None:
        if len(self._waiting) >= WAITING_MAX:
            raise PeerUnavailable(self._peer, "too many names to ask")
        waiter: asyncio.Future[StatReply | None] = asyncio.get_running_loop().create_future()
        self._waiting.append((path, refresh, waiter))
        if self._calls < CALLS_AT_ONCE:
            self._calls += 1
            self._shards.start(self._call(), f"names to {self._peer}")
        return await waiter

    async def _call(self) -> None:
        try:
            while self._waiting:
                refresh = self._waiting[0][1]
                batch: list[_Question] = []
                while self._waiting and len(batch) < NAMES_A_CALL:
                    if self._waiting[0][1] != refresh:
                        break
                    batch.append(self._waiting.popleft())
                await self._ask_all(batch, refresh=refresh)
        finally:
            self._calls -= 1

    async def _ask_all(self, batch: list[_Question], *, refresh: bool) -> None:
        paths = tuple(path for path, _, _ in batch)
        request = LookupRequest(paths, self._shards.me, refresh, self._only_known)
        answers: Sequence[object]
        try:
            answers = await self._shards.ask_names(self._peer, request)
        except Exception as error:  # handed to every waiter, not swallowed
            answers = [error] * len(batch)
        for at, (path, _, waiter) in enumerate(batch):
            answer = answers[at] if at < len(answers) else None
            if waiter.done():
                continue
            if isinstance(answer, Exception):
                waiter.set_exception(answer)
            elif isinstance(answer, StatReply):
                waiter.set_result(answer)
            elif self._only_known:
                waiter.set_result(None)
            else:
                # It is at it, but others of the batch need not wait for that.
                self._waiting.append((path, refresh, waiter))
