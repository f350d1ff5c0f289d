"""Listings of directories: made by an owner, copied by those who ask for them.

A listing is the entries of its directory in the tables (`store.entries`), so it is never a
list in memory, and it can be gone on with at any peer that has it, after any name. It
shows nothing before it is whole, and nothing of a scan that failed.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Protocol

import structlog

from mesh.blocks import DIRECTORY, Attributes
from mesh.clock import Clock
from mesh.errors import (
    MeshError,
    NotADirectory,
    NotFound,
    Unavailable,
    UnderStoreUnavailable,
)
from mesh.metrics import Metrics
from mesh.peer.changes import ChangeLog, heard
from mesh.peer.known import Known
from mesh.peer.once import Once, quietly
from mesh.peer.shards import Shards
from mesh.store.entries import directory_key
from mesh.store.entry_store import Changes, EntryStore, Scan, age_s
from mesh.understore.table import MountTable, Place, name_bytes
from mesh.wire.messages import KeepRequest, ListReply, ListRequest
from mesh.wire.pages import EMPTY, packed, unpacked

log = structlog.get_logger()

PAGE_ENTRIES = 1000
PENDING_S = 5.0
"""A listing that takes longer to make is answered with "ask again": every wait has an end."""

COPIED_MAX = 65_536
"""Longer listings are passed on page by page, and not kept by who does not own them."""

SCANS_MAX = 3
COPY_TRIES = 5
COPY_AGAIN_S = 1.0
TICK_S = 0.001
"""Times in the tables are whole milliseconds."""

DOUBTED_AGE_S = 1e9
"""What an owner says is so old when somebody has said since that it has changed."""

BROUGHT_MAX = 16_384
"""A listing that nobody asked for is given up when it is longer."""


PENDING = ListReply(EMPTY, is_last=False, is_pending=True)


class Crier(Protocol):
    """Who tells others what has changed."""

    changes: ChangeLog
    known: Known

    def note(self, source: str, path: str, changes: Changes) -> None: ...

    def tell(self, source: str, path: str, changes: Changes) -> asyncio.Future[None] | None: ...

    async def all_heard(self, directory: bytes) -> None: ...

    def heed(self, directory: bytes, peer: str, for_s: float) -> None: ...


@dataclass(frozen=True, slots=True)
class _Wish:
    """Which page is asked for, and how new it must be."""

    after: str = ""
    refresh: bool = False
    waited_s: float = 0.0
    """For so long the asker was told to ask again: what began since is new enough."""

    is_ahead: bool = False
    """Nobody waits for it."""

    is_copy: bool = False
    """What the owner has will do, however old; it is not to list anew for this."""


@dataclass(frozen=True, slots=True)
class _Said:
    """A page of an owner, and what is needed to keep it."""

    reply: ListReply
    began: int
    """The last change that was known here when it was asked for."""

    asked_s: float
    """When the owner asked, at the earliest."""

    took_s: float
    """So much later at the latest: how long the page was on its way."""


class _Watch:
    """Whether somebody has said that a directory changed since something began."""

    def __init__(self, changes: ChangeLog, directory: bytes, began: int) -> None:
        self._changes = changes
        self._directory = directory
        self._began = began
        self._is_doubted = False

    def is_sure(self) -> bool:
        self._is_doubted |= self._changes.is_touched(self._directory, self._began)
        return not self._is_doubted

    @contextmanager
    def own_words(self) -> Iterator[None]:
        """Say oneself what has changed: that is no reason for doubt."""
        self.is_sure()
        yield
        self._began = self._changes.last


class _TooLong(Exception):
    """A listing that nobody asked for is not worth it."""


class Listings:
    """The listings of one peer."""

    def __init__(
        self,
        crier: Crier,
        table: MountTable,
        entries: EntryStore,
        shards: Shards,
        tasks: asyncio.TaskGroup,
        metrics: Metrics,
        clock: Clock,
    ) -> None:
        self._crier = crier
        self._table = table
        self._entries = entries
        self._shards = shards
        self._tasks = tasks
        self._metrics = metrics
        self._clock = clock
        self._scans: Once[bytes, None] = Once(tasks)
        self._copies: Once[bytes, None] = Once(tasks)
        self._bringing: set[str] = set()
        self._scan_began_s: dict[bytes, float] = {}

    async def page(
        self, path: str, after: str, *, refresh: bool = False, waited_s: float = 0.0
    ) -> ListReply:
        """Return a page for this host; one that is pending is to be asked for again."""
        try:
            place = self._table.place(path)
        except NotFound:
            return self._between_mounts(path, after)
        wish = _Wish(after, refresh, waited_s)
        return self._with_mounts(path, after, await self._find(path, place, wish))

    async def serve(self, path: str, request: ListRequest) -> ListReply:
        """Return a page to a peer that asks this one as an owner."""
        place = self._table.place(path)
        directory = _key(place)
        self._crier.heed(directory, request.asker, place.settings.max_age_s)
        if request.is_ahead and not self._is_fresh(place, ""):
            self.bring(path)
            return PENDING
        if request.is_copy:
            is_listed = self._entries.listed_s(directory) is not None
            return await self._kept(place, request.after) if is_listed else PENDING
        wish = _Wish(request.after, request.refresh, request.waited_s)
        return await self._served(path, place, wish)

    def bring(self, path: str) -> None:
        """Begin to make or copy a listing that nobody waits for."""
        if path not in self._bringing:
            self._bringing.add(path)
            self._tasks.create_task(quietly(self._bring(path)), name=f"bring {path}")

    def copy_later(self, path: str, peer: str) -> None:
        """Begin to copy a listing from its first owner, however long it is."""
        with suppress(NotFound):
            place = self._table.place(path)
            work = quietly(self._copy_from(path, place, peer))
            self._tasks.create_task(work, name=f"copy {path}")

    # What is here

    def _is_fresh(self, place: Place, after: str) -> bool:
        """Whether the listing here may be shown: for long enough if it is gone on with."""
        listed_s = self._entries.listed_s(_key(place))
        if after:
            return listed_s is not None
        return age_s(listed_s, self._clock()) < place.settings.max_age_s

    async def _kept(self, place: Place, after: str, *, is_stale: bool = False) -> ListReply:
        """Return a page of the whole listing that is here."""
        directory = _key(place)
        tables = self._entries.tables
        # Before the page: a scan that ends while that is read does not make it any newer.
        listed_s = tables.listed_s(directory)
        found, is_last = await asyncio.to_thread(tables.after, directory, after, PAGE_ENTRIES)
        if staged := self._crier.known.staged(directory):
            found = _with_staged(found, staged, after=after, is_last=is_last)
        about = tables.directory(directory)
        known_s = age_s(listed_s, self._clock())
        return ListReply(
            packed(found),
            is_last,
            entry_count=0 if about is None else about.entry_count,
            fresh_s=0.0 if is_stale else max(0.0, place.settings.max_age_s - known_s),
            age_s=min(known_s, DOUBTED_AGE_S),
            is_stale=is_stale,
        )

    def _between_mounts(self, path: str, after: str) -> ListReply:
        below = self._table.names_below(path)
        if path and not below:
            raise NotFound(f"{path}: no such directory")
        names = sorted(name for name in below if name > after)
        return ListReply(packed((name, DIRECTORY) for name in names), is_last=True)

    def _with_mounts(self, path: str, after: str, reply: ListReply) -> ListReply:
        if reply.is_pending or not self._table.names_below(path):
            return reply
        page = self._table.with_mounts(
            path, unpacked(reply.page), after=after, is_last=reply.is_last
        )
        return ListReply(
            packed(page),
            reply.is_last,
            reply.entry_count,
            reply.fresh_s,
            reply.age_s,
            reply.is_stale,
        )

    # For this host: from the owners

    async def _find(self, path: str, place: Place, wish: _Wish) -> ListReply:
        if not wish.refresh and self._is_fresh(place, wish.after):
            return await self._kept(place, wish.after)
        nearer = self._shards.nearer(_key(place))
        if nearer:
            with suppress(Unavailable):
                return await self._from_owner(nearer, path, place, wish)
        try:
            return await self._served(path, place, wish)
        except UnderStoreUnavailable:
            farther = self._shards.farther(_key(place))
            if not farther:
                raise
            return await self._ask(farther, path, wish)

    async def _ask(self, peers: Sequence[str], path: str, wish: _Wish) -> ListReply:
        request = ListRequest(
            path,
            wish.after,
            self._shards.me,
            wish.refresh,
            wish.is_ahead,
            wish.waited_s,
            wish.is_copy,
        )
        return await self._shards.first(peers, lambda peer: self._shards.page(peer, request))

    async def _from_owner(
        self, peers: Sequence[str], path: str, place: Place, wish: _Wish
    ) -> ListReply:
        directory, after = _key(place), wish.after
        if after and self._copies.is_running(directory):
            with suppress(MeshError):
                await self._copies.do(directory, _nothing)
            if self._is_fresh(place, after):
                return await self._kept(place, after)
        first = await self._said(peers, path, wish)
        reply = first.reply
        is_worth_it = not (after or reply.is_pending or reply.is_stale) and reply.fresh_s > 0
        if is_worth_it and reply.entry_count <= COPIED_MAX:
            copy = self._copies.do(directory, lambda: self._copy(path, place, peers, first))
            if reply.is_last:
                with suppress(MeshError):
                    await copy
            else:
                self._tasks.create_task(quietly(copy), name=f"copy {path}")
        return reply

    async def _said(self, peers: Sequence[str], path: str, wish: _Wish) -> _Said:
        """Return a page of an owner. How long it took to come is its age as well."""
        began, began_s = self._crier.changes.last, self._clock()
        reply = await self._ask(peers, path, wish)
        took_s = self._clock() - began_s
        aged = replace(reply, fresh_s=max(0.0, reply.fresh_s - took_s), age_s=reply.age_s + took_s)
        return _Said(aged, began, began_s - reply.age_s, took_s)

    async def _copy(self, path: str, place: Place, peers: Sequence[str], first: _Said) -> None:
        """Keep what the owners list, from its first page on."""
        scan = await self._entries.begin_scan(
            place.settings.url, place.path, first.asked_s, give_s=first.took_s
        )
        if scan is None:
            return
        said = first
        watch = _Watch(self._crier.changes, scan.directory, first.began)
        while True:
            page = unpacked(said.reply.page)
            changes = await self._entries.add_page(scan, page, is_sure=watch.is_sure())
            with watch.own_words():
                self._crier.note(place.settings.url, place.path, changes)
            if said.reply.is_last:
                break
            said = await self._said(peers, path, _Wish(page[-1][0], is_copy=True))
            if said.reply.is_pending or said.asked_s + said.took_s < first.asked_s:
                return  # an owner goes on that has none any more, or an older one
        if watch.is_sure():
            changes = await self._entries.end_scan(scan)
            self._crier.note(place.settings.url, place.path, changes)

    async def _copy_from(self, path: str, place: Place, peer: str) -> None:
        for _ in range(COPY_TRIES):
            with suppress(Unavailable):
                first = await self._said([peer], path, _Wish(is_copy=True))
                if not first.reply.is_pending and first.reply.age_s < DOUBTED_AGE_S:
                    await self._copies.do(
                        _key(place),
                        lambda: self._copy(path, place, [peer], first),  # noqa: B023
                    )
                    listed_s = self._entries.listed_s(_key(place))
                    if listed_s is not None and listed_s >= first.asked_s - TICK_S:
                        return
            await asyncio.sleep(COPY_AGAIN_S)

    # As an owner: from the under-store

    async def _served(self, path: str, place: Place, wish: _Wish) -> ListReply:
        directory, after = _key(place), wish.after
        since_s = self._clock() - wish.waited_s - TICK_S
        anew = wish.refresh or not place.settings.max_age_s
        listed_s = self._entries.listed_s(directory)
        is_new_enough = wish.waited_s > 0 and listed_s is not None and listed_s >= since_s
        if is_new_enough or (not wish.refresh and self._is_fresh(place, after)):
            return await self._kept(place, after)
        if wish.waited_s > 0 and self._scan_began_s.get(directory, 0.0) >= since_s:
            anew = False  # it is the one that this asker waits for
        try:
            async with asyncio.timeout(PENDING_S):
                await self._scans.do(directory, lambda: self._scan(path, place), anew=anew)
                # Who joins a scan that takes long gets what was true when it began.
                is_since = (self._entries.listed_s(directory) or 0.0) >= since_s
                if not is_since and not self._is_fresh(place, after):
                    await self._scans.do(directory, lambda: self._scan(path, place), anew=True)
        except TimeoutError:
            return PENDING
        except UnderStoreUnavailable as error:
            if self._entries.listed_s(directory) is None:
                raise
            log.warning("stale listing", path=path, reason=str(error))
            self._metrics.catalog_requests.labels("stale").inc()
            return await self._kept(place, after, is_stale=True)
        if wish.refresh:
            await self._crier.all_heard(directory)
        return await self._kept(place, after)

    async def _scan(self, path: str, place: Place, *, entries_max: int | None = None) -> None:
        """Make the listing anew; its first owner has the second one copy it.

        Once more if somebody says meanwhile that something has changed there.
        """
        source, directory = place.settings.url, _key(place)
        told = None
        self._scan_began_s[directory] = self._clock()
        try:
            for _ in range(SCANS_MAX):
                began = self._crier.changes.last
                scan = await self._entries.begin_scan(source, place.path, self._clock())
                if scan is None:
                    continue  # a copy of a listing that was made this very moment
                watch = _Watch(self._crier.changes, directory, began)
                await self._fill(path, place, scan, watch, entries_max)
                gone = await self._entries.end_scan(scan)
                is_sure = watch.is_sure()
                told = self._crier.tell(source, place.path, gone)
                if is_sure:
                    break
        finally:
            self._scan_began_s.pop(directory, None)
        if (peer := self._shards.successor(directory)) is not None:
            work = self._give_copy(path, peer, told)
            self._tasks.create_task(quietly(work), name=f"second copy of {path}")

    async def _fill(
        self, path: str, place: Place, scan: Scan, watch: _Watch, entries_max: int | None
    ) -> None:
        self._metrics.catalog_requests.labels("listed").inc()
        count = 0
        try:
            async for page in self._pages(path, place):
                changes = await self._entries.add_page(scan, page, is_sure=watch.is_sure())
                # At once: who refreshes one of these names finds nothing to tell any more.
                with watch.own_words():
                    self._crier.tell(place.settings.url, place.path, changes)
                count += len(page)
                if entries_max is not None and count > entries_max:
                    raise _TooLong
        except (NotFound, NotADirectory):
            if self._entries.listed_s(scan.directory) is not None:
                await self._entries.forget(scan.directory)
                changes = Changes(is_all=True, is_listing=True)
                self._crier.tell(place.settings.url, place.path, changes)
            raise

    async def _give_copy(self, path: str, peer: str, told: asyncio.Future[None] | None) -> None:
        await heard([told] if told else [])  # or what is copied would be doubted at once
        for _ in range(COPY_TRIES):
            with suppress(Unavailable):
                await self._shards.keep(peer, KeepRequest(self._shards.me, directories=(path,)))
                return
            await asyncio.sleep(COPY_AGAIN_S)

    async def _pages(self, path: str, place: Place) -> AsyncIterator[list[tuple[str, Attributes]]]:
        staged = dict(self._crier.known.staged(_key(place)))
        try:
            async for page in place.store.scan(place.path):
                yield [(e.name, staged.pop(e.name, e.attributes)) for e in page]
        except NotFound:
            if not staged and not self._table.names_below(path):
                raise
        if staged:
            yield list(staged.items())

    async def _bring(self, path: str) -> None:
        try:
            place = self._table.place(path)
            if self._is_fresh(place, "") or self._scans.is_running(_key(place)):
                return
            nearer = self._shards.nearer(_key(place))
            if not nearer:
                await self._scan(path, place, entries_max=BROUGHT_MAX)
                return
            first = await self._said(nearer, path, _Wish(is_ahead=True))
            reply = first.reply
            if not reply.is_pending and reply.fresh_s > 0 and reply.entry_count <= COPIED_MAX:
                await self._copies.do(_key(place), lambda: self._copy(path, place, nearer, first))
        except _TooLong:
            log.debug("listing not brought: it is too long", path=path)
        finally:
            self._bringing.discard(path)


def _key(place: Place) -> bytes:
    return directory_key(place.settings.url, place.path)


async def _nothing() -> None:
    return


def _with_staged(
    page: Sequence[tuple[str, Attributes]],
    staged: Mapping[str, Attributes],
    *,
    after: str,
    is_last: bool,
) -> list[tuple[str, Attributes]]:
    """Return a page of a directory with what is staged there, which it may not show."""
    end = name_bytes(page[-1][0]) if page else b""
    here = {
        name: about
        for name, about in staged.items()
        if name_bytes(name) > name_bytes(after) and (is_last or name_bytes(name) <= end)
    }
    names = dict(page) | here
    return sorted(names.items(), key=lambda each: name_bytes(each[0]))
