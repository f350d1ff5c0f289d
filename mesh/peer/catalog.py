"""Paths to attributes and versions: the part of the catalog that this peer keeps or asks for.

    for this host     table (this node)  →  owners of the directory, in ring order  →  under-store
    for a neighbor    table (this node)  →  former owner, for a while after a change  →  under-store

What the under-store said is believed for the mount's `max_age`, that a path does not exist
for a moment, an error never. While the under-store does not answer, what it said last is
served, marked as stale. What it says otherwise than before is told to all who heard it.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import replace

import structlog

from mesh.blocks import DIRECTORY, Attributes, DirectoryEntry, FileVersion
from mesh.clock import Clock, monotonic_s
from mesh.errors import MeshError, NotFound, Unavailable, UnderStoreUnavailable
from mesh.metrics import Metrics
from mesh.paths import Spot, spot_of
from mesh.peer.changes import Audience, ChangeLog, Herald, change_of, heard
from mesh.peer.copies import Copies
from mesh.peer.known import Known
from mesh.peer.listings import Listings
from mesh.peer.once import Once, quietly
from mesh.peer.shards import NEWS_TIMEOUT_S, Shards
from mesh.store.entries import as_written, directory_key
from mesh.store.entry_store import Changes, EntryStore, age_s
from mesh.understore.table import MountTable, plain
from mesh.wire.messages import (
    Change,
    InvalidateRequest,
    KeepRequest,
    ListReply,
    ListRequest,
    LookupReply,
    LookupRequest,
    StatReply,
    WatchReply,
)
from mesh.wire.pages import entries_of

log = structlog.get_logger()

MISSES_BEFORE = 4
"""So many look-ups in one directory within WINDOW_S, and its listing is worth bringing."""

WINDOW_S = 1.0
LATER_S = 2.0
"""One name of many that are asked together is waited for so long; then for itself."""

ANSWER_S = 35.0
AWAY_S = 1.0
"""For so long an under-store that did not answer is not asked about what is known."""

PASS_ON_S = 0.8
"""Less than who tells us waits for our answer."""

RECALL_S = 5.0
"""For so long a peer that was just started is silent until it has asked the others."""

FELLOW_S = 1.0
"""For so long another owner is asked what it knows, while the under-store does not answer."""

UNHEARD = "not heard"

Ask = Callable[[Spot, bool], Awaitable[StatReply]]
"""How an answer is found out; the second word is whether the under-store must be asked."""


class Catalog:
    """The look-ups of one peer."""

    def __init__(
        self,
        table: MountTable,
        entries: EntryStore,
        shards: Shards,
        tasks: asyncio.TaskGroup,
        metrics: Metrics,
        *,
        clock: Clock = monotonic_s,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._table = table
        self._entries = entries
        self._shards = shards
        self._tasks = tasks
        self._metrics = metrics
        self._clock = clock
        self.changes = ChangeLog(first=int(wall_clock() * 1000) * 1000)
        self._audience = Audience(clock)
        self._herald = Herald(shards.tell, tasks, metrics)
        self._reads: Once[str, StatReply] = Once(tasks)
        self._fills: Once[str, StatReply] = Once(tasks)
        self._listings = Listings(self, table, entries, shards, tasks, metrics, clock)
        self._telling: dict[bytes, set[asyncio.Task[None]]] = {}
        self._away_until_s: dict[str, float] = {}
        self._misses: Counter[str] = Counter()
        self._window_s = 0.0
        self.known = Known(table, entries, shards.owns, metrics, clock)
        self.recalled = asyncio.Event()
        """Whether what happened while this peer was away has been asked for."""

        self.recalled.set()
        self._copies = Copies(shards, tasks, clock)

    # For this host

    async def stat(self, path: str, *, refresh: bool = False) -> StatReply:
        """Say what *path* is; `NotFound` when it is nothing.

        With *refresh* the under-store is asked, whatever is known, and who knew otherwise
        is told before this returns.
        """
        await self.is_up_to_date()
        path = plain(path)
        try:
            spot = spot_of(self._table, path)
        except NotFound:
            return self._between_mounts(path)
        if not refresh and (known := self.known.fresh(spot)) is not None:
            return known
        return await self._young(self._reads, self._find, spot, refresh=refresh)

    async def page(
        self, path: str, after: str = "", *, refresh: bool = False, waited_s: float = 0.0
    ) -> ListReply:
        """Return the entries of a directory after a name, in the order of their names.

        One that is pending is to be asked for again, saying for how long one has waited.
        """
        return await self._listings.page(plain(path), after, refresh=refresh, waited_s=waited_s)

    async def scan(
        self, path: str, *, refresh: bool = False
    ) -> AsyncIterator[tuple[DirectoryEntry, ...]]:
        """Yield all entries of a directory, ordered by name; whole, or an error."""
        after, began_s, waited_s = "", self._clock(), 0.0
        while True:
            anew = refresh and not after
            reply = await self.page(path, after, refresh=anew, waited_s=waited_s)
            if reply.is_pending:
                waited_s = self._clock() - began_s
            entries = entries_of(reply.page)
            if entries:
                yield entries
                after = entries[-1].name
            if reply.is_last:
                return

    def version(self, path: str, about: Attributes) -> FileVersion | None:
        """Return the version of a listed file; None where the listing named no tag."""
        if about.is_directory or not about.tag:
            return None
        return self._table.place(plain(path)).version(about)

    async def refresh(self, path: str, *, is_recursive: bool) -> int:
        """Look at the under-store again, and have all know; return at how many names."""
        found = await self.stat(path, refresh=True)
        looked_at = 1
        if not found.attributes.is_directory:
            return looked_at
        below: list[str] = []
        async for page in self.scan(path, refresh=True):
            looked_at += len(page)
            below += [entry.name for entry in page if entry.attributes.is_directory]
        for name in below if is_recursive else ():
            with suppress(NotFound):
                looked_at += await self.refresh(f"{path}/{name}", is_recursive=True)
        return looked_at

    async def is_up_to_date(self) -> None:
        """Wait, but not for long, until other owners have said what this one has missed."""
        if not self.recalled.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(RECALL_S):
                    await self.recalled.wait()

    # For neighbors and mounts

    async def list_directory(self, request: ListRequest) -> ListReply:
        """Answer a mount, a person, or the peer that asks this one as an owner."""
        await self.is_up_to_date()
        path = plain(request.path)
        if not request.asker:
            return await self._listings.page(
                path, request.after, refresh=request.refresh, waited_s=request.waited_s
            )
        return await self._listings.serve(path, request)

    async def lookup(self, request: LookupRequest) -> LookupReply:
        """Answer a peer that asks this one as an owner, about all its names."""
        await self.is_up_to_date()
        patience_s = LATER_S if len(request.paths) > 1 else ANSWER_S
        answers = await asyncio.gather(
            *(self._answer(plain(path), request, patience_s) for path in request.paths)
        )
        return LookupReply(tuple(answers))

    async def invalidate(self, request: InvalidateRequest) -> None:
        """Believe no more what an owner says has changed, and have the mounts here know.

        Another owner than the one that is asked first may say so; those who have heard of
        the directory from this one are told by this one.
        """
        self._metrics.invalidations.labels("heard").inc(len(request.changes))
        told: list[asyncio.Future[None]] = []
        for change in request.changes:
            if change.is_tree:
                await self.doubt_tree(change)
                continue
            directory = directory_key(change.source, change.path)
            changes = Changes(list(change.names), change.is_all, change.is_listing)
            self.changes.touch(directory)
            await self._entries.doubt(directory, changes)
            self.changes.add(change)
            if not change.is_passed_on:
                peers = self._audience.of(directory)
                told += self._herald.tell(peers, replace(change, is_passed_on=True))
        if told:
            await asyncio.wait(told, timeout=PASS_ON_S)

    async def doubt_tree(self, tree: Change) -> None:
        """Believe no more what is known of a directory and of all below it."""
        for path in await self._entries.below(tree.source, tree.path):
            directory = directory_key(tree.source, path)
            self.changes.touch(directory)
            await self._entries.doubt(directory, Changes(is_all=True, is_listing=True))
            self.changes.add(Change(tree.source, path, is_all=True, is_listing=True))

    async def keep(self, request: KeepRequest) -> None:
        """Keep a second copy of what the first owner has learned."""
        for kept in request.kept:
            with suppress(NotFound):
                spot = spot_of(self._table, plain(kept.path))
                # It may have been on its way for as long as its sender waits.
                asked_s = self._clock() - kept.age_s - NEWS_TIMEOUT_S
                self._copy(spot, kept.attributes, asked_s, is_sure=False)
        for path in request.directories:
            self._listings.copy_later(plain(path), request.asker)

    async def watch(self, since: int) -> WatchReply:
        """Return what changed after that number, as soon as something does."""
        return await self.changes.watch(since)

    async def _answer(
        self, path: str, request: LookupRequest, patience_s: float
    ) -> StatReply | MeshError | None:
        try:
            spot = spot_of(self._table, path)
        except NotFound as error:
            return error
        self._audience.note(spot.directory, request.asker, spot.place.settings.max_age_s)
        try:
            if request.only_known:
                return self.known.fresh(spot) or self.known.told(spot)
            async with asyncio.timeout(patience_s):
                return await self._served(spot, refresh=request.refresh)
        except TimeoutError:
            return None
        except MeshError as error:
            return error

    def heed(self, directory: bytes, peer: str, for_s: float) -> None:
        """Note that a peer may believe for so long what it hears of a directory now."""
        self._audience.note(directory, peer, for_s)

    # Finding out

    def _between_mounts(self, path: str) -> StatReply:
        """Describe a directory that exists only because a mount lies below it."""
        if path and not self._table.names_below(path):
            raise NotFound(f"{path}: no such file")
        return StatReply(DIRECTORY, None)

    async def _find(self, spot: Spot, refresh: bool) -> StatReply:  # noqa: FBT001
        """Ask the owners of the directory, and the under-store when none of them can say."""
        self._count_miss(spot)
        nearer = self._shards.nearer(spot.directory)
        began, began_s = self.changes.last, self._clock()
        if nearer:
            with suppress(Unavailable):
                reply = await self._ask(nearer, spot, refresh=refresh)
                return self._copied(spot, reply, began, began_s)
        try:
            return await self._served(spot, refresh=refresh)
        except UnderStoreUnavailable:
            farther = self._shards.farther(spot.directory)
            if not farther:
                raise
            return await self._ask(farther, spot, refresh=refresh)

    async def _ask(self, peers: list[str], spot: Spot, *, refresh: bool) -> StatReply:
        async def ask(peer: str) -> StatReply:
            reply = await self._shards.lookup(peer, spot.path, refresh=refresh)
            if reply is None:
                raise Unavailable(f"{peer} does not know {spot.path}")
            return reply

        self._metrics.catalog_requests.labels("peer").inc()
        return await self._shards.first(peers, ask)

    def _copied(self, spot: Spot, reply: StatReply, began: int, began_s: float) -> StatReply:
        """Keep what an owner said, unless it said meanwhile that something has changed.

        How long it took to come is its age as well: its sender may have been stopped.
        """
        took_s = self._clock() - began_s
        fresh_s, age_s = max(0.0, reply.fresh_s - took_s), reply.age_s + took_s
        if reply.is_stale or self.changes.is_touched(spot.directory, began):
            return replace(reply, fresh_s=0.0, age_s=age_s)
        self._copy(spot, reply.attributes, began_s - reply.age_s)
        return replace(reply, fresh_s=fresh_s, age_s=age_s)

    def _copy(
        self, spot: Spot, about: Attributes | None, asked_s: float, *, is_sure: bool = True
    ) -> None:
        changes = self._entries.note(
            spot.source, spot.parent, spot.name, about, asked_s, is_sure=is_sure
        )
        self.note(spot.source, spot.parent, changes)

    async def _served(self, spot: Spot, *, refresh: bool) -> StatReply:
        """Answer as an owner."""
        if not refresh and (known := self.known.fresh(spot)) is not None:
            return known
        return await self._young(self._fills, self._fill, spot, refresh=refresh)

    async def _young(
        self, once: Once[str, StatReply], ask: Ask, spot: Spot, *, refresh: bool
    ) -> StatReply:
        """Return an answer that is no older than the mount allows, although who joins a
        question that takes long gets what was true when it began."""
        max_age_s = spot.place.settings.max_age_s
        anew = refresh or not max_age_s
        reply = await once.do(spot.path, lambda: ask(spot, refresh), anew=anew)
        if reply.age_s > max_age_s > 0 and not reply.is_stale:
            reply = await once.do(spot.path, lambda: ask(spot, refresh), anew=True)
        return reply

    async def _fill(self, spot: Spot, refresh: bool) -> StatReply:  # noqa: FBT001
        staged = self.known.staged(spot.directory).get(spot.name)
        if staged is not None:
            self._entries.note(spot.source, spot.parent, spot.name, staged, self._clock())
            return spot.reply(staged, known_s=0.0, fresh_s=spot.place.settings.max_age_s)
        if not refresh:
            if (former := await self._from_former(spot)) is not None:
                return former
            is_away = self._clock() < self._away_until_s.get(spot.source, 0.0)
            if is_away and (last := await self._last(spot, "it did not answer just now")):
                return last
        began, asked_s = self.changes.last, self._clock()
        self._metrics.catalog_requests.labels("asked").inc()
        about: Attributes | None = None
        try:
            about = await spot.place.store.stat(spot.place.path)
            known, _ = self._entries.look(spot.directory, spot.name)
            about = as_written(None if known is None else known.attributes, about)
        except NotFound:
            if self._table.names_below(spot.path):
                return StatReply(DIRECTORY, None)
        except UnderStoreUnavailable as error:
            self._away_until_s[spot.source] = self._clock() + AWAY_S
            if (last := await self._last(spot, str(error))) is not None:
                return last
            raise
        # Another owner may have found out since that it has changed.
        is_sure = not self.changes.is_touched(spot.directory, began)
        changes = self._entries.note(
            spot.source, spot.parent, spot.name, about, asked_s, is_sure=is_sure
        )
        self.tell(spot.source, spot.parent, changes)
        self._copies.give(spot, about, asked_s)
        if refresh:  # then what was found before must have been heard as well
            await self.all_heard(spot.directory)
        if about is None:
            raise NotFound(f"{spot.path}: no such file")
        known_s = self._clock() - asked_s
        fresh_s = max(0.0, spot.place.settings.max_age_s - known_s) if is_sure else 0.0
        return spot.reply(about, known_s=known_s, fresh_s=fresh_s)

    async def _last(self, spot: Spot, reason: str) -> StatReply | None:
        """Return what was known last, marked as stale, here or at another owner.

        What this peer knew before it was started may have changed while it was away: whoever
        was there then knows later. `NotFound` if they know that it is nothing.
        """
        _, since_s = self._entries.look(spot.directory, spot.name)
        if since_s >= self.known.began_s:
            return self.known.last(spot, reason)
        owners, others = self._shards.fellows(spot.directory)
        said = await asyncio.gather(*(self._said_last(peer, spot) for peer in owners))
        if any(one is UNHEARD for one in said) or not owners:
            more = await asyncio.gather(*(self._said_last(peer, spot) for peer in others))
            said += [one for one in more if not isinstance(one, NotFound)]  # it may be older
        gone = next((one for one in said if isinstance(one, NotFound)), None)
        if gone is not None:
            raise gone
        known_s = age_s(since_s, self._clock())
        later = [one for one in said if isinstance(one, StatReply) and one.age_s < known_s]
        # Only without any: what is known here may be that it is nothing, and raise.
        return min(later, key=lambda one: one.age_s) if later else self.known.last(spot, reason)

    async def _said_last(self, peer: str, spot: Spot) -> StatReply | NotFound | str | None:
        """Return what a peer knew last; None if nothing, `UNHEARD` if it does not answer."""
        began, began_s = self.changes.last, self._clock()
        try:
            async with asyncio.timeout(FELLOW_S):
                reply = await self._shards.lookup(peer, spot.path, only_known=True)
        except NotFound as gone:
            return gone
        except (MeshError, TimeoutError):
            return UNHEARD
        return None if reply is None else self._copied(spot, reply, began, began_s)

    async def _from_former(self, spot: Spot) -> StatReply | None:
        """Return what the peer knows that owned the directory until a moment ago."""

        async def ask(peer: str) -> StatReply | None:
            return await self._shards.lookup(peer, spot.path, only_known=True)

        for peer in self._shards.former(spot.directory):
            began, began_s = self.changes.last, self._clock()
            with suppress(MeshError):
                reply = await self._shards.first([peer], ask)
                if reply is not None and not reply.is_stale:
                    return self._copied(spot, reply, began, began_s)
        return None

    # Telling others

    def note(self, source: str, path: str, changes: Changes) -> None:
        """Have the mounts of this host know what changed in a directory."""
        if changes:
            self._start_telling(source, path, changes, ())

    def tell(self, source: str, path: str, changes: Changes) -> asyncio.Future[None] | None:
        """Have everybody know who knows of the directory; the future is done when they do."""
        if not changes:
            return None
        directory = directory_key(source, path)
        peers = set(self._audience.of(directory)) | set(self._shards.owners(directory))
        return self._start_telling(source, path, changes, sorted(peers - {self._shards.me}))

    async def tell_all(self, change: Change) -> None:
        """Have every other peer know, and wait for that, but not for long."""
        peers = [member.name for member in self._shards.others()]
        await heard(self._herald.tell(peers, change))

    async def all_heard(self, directory: bytes) -> None:
        """Wait, but not for long, until all have heard what was found out of a directory."""
        await heard(self._telling.get(directory, ()))

    def _start_telling(
        self, source: str, path: str, changes: Changes, peers: Sequence[str]
    ) -> asyncio.Future[None]:
        directory = directory_key(source, path)
        self.changes.touch(directory)
        change = change_of(source, path, changes)
        work = quietly(self._tell(change, peers))
        task = self._tasks.create_task(work, name=f"tell of {path}")
        self._telling.setdefault(directory, set()).add(task)
        task.add_done_callback(lambda _: self._told(directory, task))
        return task

    def _told(self, directory: bytes, task: asyncio.Task[None]) -> None:
        self._telling[directory].discard(task)
        if not self._telling[directory]:
            del self._telling[directory]

    async def _tell(self, change: Change, peers: Sequence[str]) -> None:
        # A mount that hears of it looks into the tables at once: they must say it by then.
        await self._entries.flushed()
        self.changes.add(change)
        if told := self._herald.tell(peers, change):
            await asyncio.wait(told)

    # Look-ups that come one after the other

    def _count_miss(self, spot: Spot) -> None:
        """Begin to bring the listing of a directory in which name after name is looked up."""
        now_s = self._clock()
        if now_s - self._window_s > WINDOW_S:
            self._misses.clear()
            self._window_s = now_s
        directory = spot.path.rpartition("/")[0]
        self._misses[directory] += 1
        is_believed = spot.place.settings.max_age_s > 0 and bool(spot.name)
        if self._misses[directory] == MISSES_BEFORE and is_believed:
            self._listings.bring(directory)
