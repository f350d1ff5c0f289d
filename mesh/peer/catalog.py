"""Paths to attributes and versions, read through to the under-store.

What the under-store said is believed for the mount's `max_age`; that a path does
not exist, for 1 s; an error, never. While the under-store does not answer, what it
said last is served, marked as stale.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path

import structlog

from mesh.blocks import DIRECTORY, Attributes, DirectoryEntry
from mesh.clock import Clock, monotonic_s
from mesh.errors import ListingGone, MeshError, NotFound, Unavailable, UnderStoreUnavailable
from mesh.metrics import Metrics
from mesh.peer.listings import Listing
from mesh.understore.table import MountTable, Place
from mesh.wire.messages import ListReply, StatReply

log = structlog.get_logger()

ENTRIES_MAX = 32_768
NEGATIVE_S = 1.0
LISTINGS_MAX = 64
LISTING_FRESH_S = 1.0
"""A listing that began so long ago serves further readers from its beginning; older
ones go on only for readers that hold a page of them. Attributes have `max_age`, but
a name that was just made should be seen by the next `ls`."""


@dataclass(frozen=True, slots=True)
class _Known:
    """What the under-store said of a path, and when."""

    reply: StatReply | None
    """None: that it does not exist."""

    asked_s: float


class Catalog:
    """The look-ups of one peer."""

    def __init__(
        self,
        table: MountTable,
        tasks: asyncio.TaskGroup,
        metrics: Metrics,
        *,
        spool: Path,
        clock: Clock = monotonic_s,
    ) -> None:
        """Keep listings in files under *spool*."""
        self._table = table
        self._tasks = tasks
        self._metrics = metrics
        self._spool = spool
        self._clock = clock
        self._known: OrderedDict[str, _Known] = OrderedDict()
        self._asking: dict[str, list[asyncio.Future[StatReply]]] = {}
        self._listings: OrderedDict[int, tuple[str, float, Listing]] = OrderedDict()
        self._numbers = count(1)

    async def stat(self, path: str, *, refresh: bool = False) -> StatReply:
        """Say what *path* is; `NotFound` when it is nothing.

        With *refresh* the under-store is asked, whatever is known.
        """
        path = "/".join(part for part in path.split("/") if part)
        try:
            place = self._table.place(path)
        except NotFound:
            return self._between_mounts(path)
        known = self._known.get(path)
        if known is not None and not refresh and self._is_fresh(known, place):
            self._known.move_to_end(path)
            self._metrics.catalog_requests.labels("cached").inc()
            if known.reply is None:
                raise NotFound(f"{path}: no such file")
            age_s = self._clock() - known.asked_s
            return replace(known.reply, fresh_s=place.settings.max_age_s - age_s)
        return await self._ask_once(path, place)

    def _is_fresh(self, known: _Known, place: Place) -> bool:
        age_s = self._clock() - known.asked_s
        if known.reply is None:
            return age_s < min(NEGATIVE_S, place.settings.max_age_s)
        return age_s < place.settings.max_age_s

    def _between_mounts(self, path: str) -> StatReply:
        """Describe a directory that exists only because a mount lies below it."""
        if path and not self._table.names_below(path):
            raise NotFound(f"{path}: no such file")
        return StatReply(DIRECTORY, None)

    async def _ask_once(self, path: str, place: Place) -> StatReply:
        waiter: asyncio.Future[StatReply] = asyncio.get_running_loop().create_future()
        if path in self._asking:
            self._asking[path].append(waiter)
        else:
            self._asking[path] = [waiter]
            self._tasks.create_task(self._ask(path, place), name=f"stat {path}")
        return await waiter

    async def _ask(self, path: str, place: Place) -> None:
        error: Exception | None = None
        reply: StatReply | None = None
        try:
            reply = await self._asked(path, place)
        except Exception as failure:  # handed to every waiter, not swallowed
            error = failure
        finally:
            for waiter in self._asking.pop(path):
                if waiter.done():
                    continue
                if reply is not None:
                    waiter.set_result(reply)
                else:
                    waiter.set_exception(error or Unavailable("the peer stops"))

    async def _asked(self, path: str, place: Place) -> StatReply:
        self._metrics.catalog_requests.labels("asked").inc()
        asked_s = self._clock()
        try:
            reply = _reply(place, await place.store.stat(place.path))
        except NotFound:
            if self._table.names_below(path):
                return StatReply(DIRECTORY, None)
            self._remember(path, _Known(None, asked_s))
            raise
        except UnderStoreUnavailable as error:
            known = self._known.get(path)
            if known is None or known.reply is None:
                raise
            log.warning("stale answer", path=path, reason=str(error))
            self._metrics.catalog_requests.labels("stale").inc()
            return replace(known.reply, is_stale=True, fresh_s=0.0)
        self._remember(path, _Known(reply, asked_s))
        return reply

    def _remember(self, path: str, known: _Known) -> None:
        self._known[path] = known
        self._known.move_to_end(path)
        while len(self._known) > ENTRIES_MAX:
            self._known.popitem(last=False)

    # Listings

    async def page(self, path: str, listing: int, start: int) -> ListReply:
        """Return a page of a directory from entry *start* of a listing; 0 begins one.

        Raises `ListingGone` when that listing is no longer kept.
        """
        path = "/".join(part for part in path.split("/") if part)
        found = self._begun(path) if listing == 0 else self._kept(listing)
        try:
            entries, is_last = await found.page(start)
        except MeshError:
            self._forget(found.number)
            raise
        return ListReply(found.number, entries, is_last)

    def _kept(self, number: int) -> Listing:
        kept = self._listings.get(number)
        if kept is None:
            raise ListingGone(f"listing {number} is not kept any more")
        self._listings.move_to_end(number)
        return kept[2]

    def _begun(self, path: str) -> Listing:
        now_s = self._clock()
        for known_path, begun_s, listing in self._listings.values():
            if known_path == path and now_s - begun_s < LISTING_FRESH_S and listing.error is None:
                return listing
        listing = Listing(self._spool, next(self._numbers))
        self._listings[listing.number] = (path, now_s, listing)
        self._tasks.create_task(listing.fill(self._pages(path)), name=f"list {path}")
        while len(self._listings) > LISTINGS_MAX:
            self._listings.popitem(last=False)[1][2].retire()
        return listing

    def _forget(self, number: int) -> None:
        if number in self._listings:
            self._listings.pop(number)[2].retire()

    async def _pages(self, path: str) -> AsyncIterator[list[DirectoryEntry]]:
        below = self._table.names_below(path)
        try:
            place = self._table.place(path)
        except NotFound:
            if path and not below:
                raise
            yield [DirectoryEntry(name, DIRECTORY) for name in below]
            return
        mounts = set(below)
        try:
            async for page in place.store.scan(place.path):
                yield [entry for entry in page if entry.name not in mounts]
        except NotFound:
            if not below:
                raise
        if below:
            yield [DirectoryEntry(name, DIRECTORY) for name in below]

    def close(self) -> None:
        """Close the files of all listings."""
        for _, _, listing in self._listings.values():
            listing.retire()
        self._listings.clear()


def _reply(place: Place, about: Attributes) -> StatReply:
    file = None if about.is_directory else place.version(about)
    return StatReply(about, file, fresh_s=place.settings.max_age_s)
