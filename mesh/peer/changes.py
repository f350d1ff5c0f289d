"""Who knows of a directory, and is told when it changes.

An owner notes which peers asked about a directory and for how long they may believe what
they heard. When a look at the under-store finds something else there, those are told, and
each tells the mounts of its host, which take back what the kernel remembers. Who can't be
told asks again when its time is up.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Iterable

import structlog

from mesh.clock import Clock
from mesh.errors import MeshError
from mesh.metrics import Metrics
from mesh.store.entry_store import Changes
from mesh.wire.messages import Change, WatchReply

log = structlog.get_logger()

DIRECTORIES_MAX = 65_536
LOGGED_MAX = 10_000
WATCH_S = 15.0
SENT_TOGETHER = 1000
OUTBOX_MAX = 10_000
TRIES = 3
TELL_TIMEOUT_S = 3.0
"""How long who has looked at the under-store on purpose waits for the others to know."""

Send = Callable[[str, tuple[Change, ...]], Awaitable[object]]


def change_of(source: str, path: str, changes: Changes) -> Change:
    """Return what the others are told of a directory."""
    return Change(source, path, tuple(changes.names), changes.is_all, changes.is_listing)


class ChangeLog:
    """What changed, numbered, for the mounts of this host."""

    def __init__(self, *, first: int) -> None:
        """Number from *first* on: more than any peer of this host had given before."""
        self.last = self._first = first
        self._kept: deque[tuple[int, Change]] = deque(maxlen=LOGGED_MAX)
        self._touched: OrderedDict[bytes, int] = OrderedDict()
        self._first_touched = first
        self._news = asyncio.Event()

    def touch(self, directory: bytes) -> None:
        """Have what is on its way here about a directory not be kept."""
        self.last += 1
        self._touched[directory] = self.last
        self._touched.move_to_end(directory)
        while len(self._touched) > LOGGED_MAX:
            self._first_touched = self._touched.popitem(last=False)[1]

    def add(self, change: Change) -> None:
        """Have the mounts know, now that the tables which they read say it too."""
        self.last += 1
        self._kept.append((self.last, change))
        self._news.set()
        self._news = asyncio.Event()

    def is_touched(self, directory: bytes, since: int) -> bool:
        """Whether a directory may have changed after that number."""
        return self._touched.get(directory, self._first_touched) > since

    async def watch(self, since: int) -> WatchReply:
        """Return what came after that number, at once or within WATCH_S.

        A number that this log has not given, or not kept, is answered with the last one:
        what was missed then is found by its age.
        """
        is_cut = len(self._kept) == LOGGED_MAX
        kept_from = self._kept[0][0] - 1 if is_cut else self._first
        if since > self.last or since < kept_from:
            return WatchReply(self.last)
        if not self._kept or since >= self._kept[-1][0]:
            news = self._news
            try:
                async with asyncio.timeout(WATCH_S):
                    await news.wait()
            except TimeoutError:
                return WatchReply(self.last)
        return WatchReply(self.last, tuple(c for number, c in self._kept if number > since))


class Audience:
    """Which peers have heard of which directory, and until when they believe it."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._until_s: OrderedDict[bytes, dict[str, float]] = OrderedDict()

    def note(self, directory: bytes, peer: str, for_s: float) -> None:
        """Note that *peer* may believe for so long what it hears now."""
        known = self._until_s.setdefault(directory, {})
        known[peer] = max(known.get(peer, 0.0), self._clock() + for_s)
        self._until_s.move_to_end(directory)
        while len(self._until_s) > DIRECTORIES_MAX:
            self._until_s.popitem(last=False)

    def of(self, directory: bytes) -> list[str]:
        """Return who may still believe something of a directory."""
        now_s = self._clock()
        return [p for p, until_s in self._until_s.get(directory, {}).items() if until_s > now_s]


class Herald:
    """Tells other peers what changed, those that are slow to hear it later."""

    def __init__(self, send: Send, tasks: asyncio.TaskGroup, metrics: Metrics) -> None:
        self._send = send
        self._tasks = tasks
        self._metrics = metrics
        self._outboxes: dict[str, deque[tuple[Change, asyncio.Future[None]]]] = {}

    def tell(self, peers: Iterable[str], change: Change) -> list[asyncio.Future[None]]:
        """Tell each of *peers*; the futures are done when they have heard, or can't."""
        told: list[asyncio.Future[None]] = []
        loop = asyncio.get_running_loop()
        for peer in peers:
            if peer not in self._outboxes:
                self._outboxes[peer] = deque()
                self._tasks.create_task(self._empty(peer), name=f"tell {peer}")
            outbox = self._outboxes[peer]
            if len(outbox) >= OUTBOX_MAX:
                outbox.popleft()[1].set_result(None)  # it will find out by the age of it
            told.append(loop.create_future())
            outbox.append((change, told[-1]))
        return told

    async def _empty(self, peer: str) -> None:
        outbox = self._outboxes[peer]
        try:
            await asyncio.sleep(0)
            while outbox:
                batch = [outbox.popleft() for _ in range(min(len(outbox), SENT_TOGETHER))]
                try:
                    await self._deliver(peer, tuple(change for change, _ in batch))
                finally:
                    for _, told in batch:
                        if not told.done():
                            told.set_result(None)
        finally:
            del self._outboxes[peer]

    async def _deliver(self, peer: str, changes: tuple[Change, ...]) -> None:
        for _ in range(TRIES):
            try:
                await self._send(peer, changes)
                self._metrics.invalidations.labels("sent").inc(len(changes))
                return
            except MeshError as error:
                log.debug("not told", peer=peer, reason=str(error))
            except Exception:  # a bug of ours is no reason to end the peer
                log.exception("not told", peer=peer)
        self._metrics.invalidations.labels("unheard").inc(len(changes))


async def heard(told: Iterable[asyncio.Future[None]]) -> None:
    """Wait until all have heard, but not for long."""
    if waiting := list(told):
        await asyncio.wait(waiting, timeout=TELL_TIMEOUT_S)
