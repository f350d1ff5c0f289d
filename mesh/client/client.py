"""A mesh, from the side of one host: paths to attributes, listings and open files.

look-ups   own peer, else any other peer, else the under-store
bytes      extent file, else own peer brings them there, else `direct`
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import structlog

from mesh.blocks import DIRECTORY, MIB, Attributes, DirectoryEntry, FileVersion
from mesh.client.direct import DirectReader
from mesh.client.file import MeshFile
from mesh.client.here import BlocksHere
from mesh.client.samples import SMALL_BYTES_MAX, Samples
from mesh.client.writes import Writes
from mesh.clock import Clock, monotonic_s
from mesh.errors import (
    IsADirectory,
    MeshError,
    NotFound,
    PeerUnavailable,
    Unavailable,
)
from mesh.membership.view import View, view_from_json
from mesh.metrics import Metrics, by_label
from mesh.paths import spot_of
from mesh.store.entries import directory_key
from mesh.store.entry_store import age_s
from mesh.understore.open import open_under_store
from mesh.understore.table import MountTable, Place, name_bytes, plain
from mesh.understore.understore import UnderStore, UnderStoreSettings
from mesh.wire.basics import Method
from mesh.wire.catalog import LIST, STAT, WATCH
from mesh.wire.channels import Channels, TlsSettings
from mesh.wire.codec import FETCH, GATHER, MEMBERS, REPORT
from mesh.wire.local import SILENT, LocalChannel, mount_socket
from mesh.wire.messages import (
    Change,
    FetchReply,
    FetchRequest,
    GatherRequest,
    ListRequest,
    MountReport,
    Nothing,
    StatReply,
    StatRequest,
    WatchRequest,
)
from mesh.wire.pages import entries_of
from mesh.wire.passport import Passport

log = structlog.get_logger()

Q = TypeVar("Q")
A = TypeVar("A")

STAT_TIMEOUT_S = 40.0
"""More than one request to the under-store may take; a peer that is gone shows much
sooner, by its connection."""

FETCH_TIMEOUT_S = 120.0
OTHER_PEERS_ASKED = 2
READ_THREADS = 8
PAGE_ENTRIES = 500
WATCH_TIMEOUT_S = 30.0
PEER_AWAY_S = 0.5
"""For so long the own peer is not asked again after it refused: asking costs nothing."""

PEER_SILENT_S = 5.0
"""Likewise after it fell silent, unless a report finds it well before: each read that asks
it would wait in vain for `wire.local.SILENT_S`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientSettings:
    """What a host must know to read the mesh, its peer alive or not."""

    cluster: str
    name: str
    """Of the peer on this host."""

    view: View
    """As far as is known before any peer was asked."""

    socket: Path
    store_directory: Path
    mounts: Mapping[str, UnderStoreSettings]
    key_fingerprint: str = ""
    """Of the cluster's key (`wire.passport`)."""

    memory_bytes: int = 64 * MIB
    """For blocks that are read while the own peer is away."""

    tls: TlsSettings | None = None
    under_stores: Mapping[str, UnderStore] = field(default_factory=dict)
    """By URL: used instead of opening them, by tests."""


@dataclass(frozen=True, slots=True)
class ListedPage:
    """A part of a listing."""

    entries: tuple[DirectoryEntry, ...]
    fresh_s: float = 0.0
    """For so long its attributes may be believed."""


class MeshClient:
    """One host's use of the mesh; made by `open_client`."""

    def __init__(
        self,
        settings: ClientSettings,
        here: BlocksHere,
        table: MountTable,
        threads: ThreadPoolExecutor,
        metrics: Metrics,
        clock: Clock = monotonic_s,
    ) -> None:
        self.here = here
        self.threads = threads
        self.metrics = metrics
        self.view = settings.view
        passport = Passport(settings.cluster, settings.key_fingerprint, lambda: self.view.epoch)
        self._channels = Channels(settings.tls, passport=passport, on_other_epoch=self._note_epoch)
        self._control = Channels(settings.tls, passport=passport)
        self.direct = DirectReader(
            settings.view,
            self._channels,
            self._control,
            table,
            metrics,
            memory_bytes=settings.memory_bytes,
        )
        self._settings = settings
        self._own = LocalChannel(mount_socket(str(settings.socket)))
        self.writes = Writes(self._own, settings.store_directory, threads, clock)
        self._table = table
        self._clock = clock
        self._own_away_until_s = 0.0
        self._suspects: set[str] = set()
        self._ask_of = ""
        """Address of a peer whose view is another than ours."""

        self._used: set[bytes] = set()
        self._samples = Samples(self._following, self._gather, clock)

    # Paths

    async def stat(self, path: str, *, refresh: bool = False) -> StatReply:
        """Say what *path* is; `NotFound` when it is nothing.

        What the peer of this host has in its tables costs no call.
        """
        path = plain(path)
        refresh = refresh or path in self._suspects
        if not refresh and (known := self._known(path)) is not None:
            return known
        request = StatRequest(path, refresh)
        for peer in self._peers():
            began_s = self._clock()
            try:
                reply = await self._call(peer, STAT, request)
            except PeerUnavailable as error:
                self._note_away(peer, error)
                continue
            self._suspects.discard(path)
            # It may have been stopped while it answered: that is age as well.
            return replace(reply, fresh_s=max(0.0, reply.fresh_s - (self._clock() - began_s)))
        return await self._stat_directly(path)

    def _known(self, path: str) -> StatReply | None:
        """Return what may be believed of a path by the tables of this host's peer."""
        try:
            spot = spot_of(self._table, path)
        except NotFound:
            return None
        record, since_s = self.here.entry(spot.directory, spot.name)
        if record is None or (about := record.attributes) is None:
            return None  # that there is no such name is the peer's to say
        now_s = self._clock()
        fresh_s = spot.fresh_s(about, since_s, now_s)
        if not fresh_s or not (about.is_directory or about.tag):
            return None
        return spot.reply(about, known_s=age_s(since_s, now_s), fresh_s=fresh_s)

    async def scan(self, path: str) -> AsyncIterator[ListedPage]:
        """Yield the entries of a directory, a page at a time, ordered by name.

        Whoever answers goes on after the last name that somebody else has said.
        """
        path = plain(path)
        after, is_last = "", False
        while not is_last:
            known = self._known_page(path, after)
            if known is None:
                try:
                    known = await self._page(path, after)
                except PeerUnavailable:
                    async for page in self._scan_directly(path, after):
                        yield page
                    return
            page, is_last = known
            if page.entries:
                yield page
                after = page.entries[-1].name

    def _known_page(self, path: str, after: str) -> tuple[ListedPage, bool] | None:
        """Return a page from the tables of this host's peer, if it has the whole listing."""
        try:
            place = self._table.place(path)
        except NotFound:
            return None
        directory = directory_key(place.settings.url, place.path)
        listed_s, page, is_last = self.here.listing(directory, after, PAGE_ENTRIES)
        fresh_s = place.settings.max_age_s - age_s(listed_s, self._clock())
        if listed_s is None or not (after or fresh_s > 0):
            return None
        page = self._table.with_mounts(path, page, after=after, is_last=is_last)
        entries = tuple(DirectoryEntry(name, about) for name, about in page)
        return ListedPage(entries, max(0.0, fresh_s)), is_last

    async def _page(self, path: str, after: str) -> tuple[ListedPage, bool]:
        """Return a page from the first peer that answers; `PeerUnavailable` if none does."""
        failure = PeerUnavailable(self._settings.name, "away")
        for peer in self._peers():
            try:
                began_s = self._clock()
                reply = await self._call(peer, LIST, ListRequest(path, after))
                while reply.is_pending:
                    again = ListRequest(path, after, waited_s=self._clock() - began_s)
                    reply = await self._call(peer, LIST, again)
            except PeerUnavailable as error:
                self._note_away(peer, error)
                failure = error
                continue
            return ListedPage(entries_of(reply.page), reply.fresh_s), reply.is_last
        raise failure

    async def open(self, path: str) -> MeshFile:
        """Open a file for reading, at the version that it has now."""
        reply = await self.stat(path)
        if reply.file is None:
            raise IsADirectory(f"{path}: is a directory")
        return self.open_version(path, reply.file)

    def open_version(self, path: str, file: FileVersion) -> MeshFile:
        """Open a version that a look-up has named."""
        if file.block_count == 1:
            is_here = self.here.record(file.key(0)) is not None
            self._samples.opened(plain(path), file, is_here=is_here)
        return MeshFile(self, path, file)

    def _following(self, path: str, count: int) -> list[tuple[str, FileVersion]]:
        """Return the small files after *path* in its directory that are not here, as far as
        its listing is."""
        spot = spot_of(self._table, path)
        listed_s, page, _ = self.here.listing(spot.directory, spot.name, count)
        if age_s(listed_s, self._clock()) >= spot.place.settings.max_age_s:
            return []
        found = []
        for name, about in page:
            if about.tag and 0 < about.size_bytes <= SMALL_BYTES_MAX:
                file = self._table.place(f"{path.rpartition('/')[0]}/{name}").version(about)
                if self.here.record(file.key(0)) is None:
                    found.append((name, file))
        return found

    async def _gather(self, files: tuple[FileVersion, ...]) -> None:
        await self._own.call(GATHER, GatherRequest(files), timeout_s=FETCH_TIMEOUT_S)

    def is_suspect(self, path: str) -> bool:
        """Whether the next look-up of a path will ask the under-store."""
        return path.strip("/") in self._suspects

    def suspect(self, path: str) -> None:
        """Have the next look-up of a path ask the under-store: its version is gone."""
        self._suspects.add(path.strip("/"))

    # Blocks, for MeshFile

    async def fetch(self, request: FetchRequest) -> FetchReply:
        """Have the own peer bring a span here; `Unavailable` while it can't be asked."""
        if self._clock() < self._own_away_until_s:
            raise Unavailable("the own peer is away")
        try:
            return await self._own.call(FETCH, request, timeout_s=FETCH_TIMEOUT_S)
        except PeerUnavailable as error:
            self._note_away(self._settings.name, error)
            raise

    # Reports to the own peer

    async def report_each_second(self, mountpoint: str, pid: int) -> None:
        """Tell the own peer what was read here, for as long as this is awaited."""
        while True:
            await asyncio.sleep(1.0)
            used, self._used = self._used, set()
            report = MountReport(
                mountpoint,
                pid,
                by_label(self.metrics.read_bytes, "source"),
                by_label(self.metrics.read_blocks, "source"),
                tuple(used)[:1024],
                self.view.epoch,
            )
            try:
                reply = await self._own.call(REPORT, report, timeout_s=1.0)
                self._own_away_until_s = 0.0
                self._take_view(reply.view)
            except MeshError as error:
                log.debug("no report", reason=str(error))
                await self._ask_who_is_here()

    def _take_view(self, written: bytes) -> None:
        """Go by the view that a peer has sent, if it has sent one."""
        with suppress(ValueError):
            if written:
                self.view = view_from_json(written)
                self.direct.update(self.view)

    def _note_epoch(self, address: str, epoch: int) -> None:
        """Ask, when there is a moment, the peer that answered under another epoch."""
        self._ask_of = address

    async def _ask_who_is_here(self) -> None:
        """Without the own peer: believe the last one that answered under another epoch."""
        address, self._ask_of = self._ask_of, ""
        if address:
            with suppress(MeshError):
                reply = await self._channels.call(address, MEMBERS, Nothing(), timeout_s=1.0)
                self._take_view(reply.view)

    def mount_of(self, path: str) -> UnderStoreSettings | None:
        """Return the line of the mount table that a path is under; None when it is under none."""
        try:
            return self._table.place(path).settings
        except NotFound:
            return None

    async def watch(self, changed: Callable[[str, Change], None]) -> None:
        """Say what changes in directories of the mesh, by path, for as long as it is awaited."""
        since = 0
        while True:
            try:
                reply = await self._own.call(WATCH, WatchRequest(since), timeout_s=WATCH_TIMEOUT_S)
            except MeshError as error:
                log.debug("no word of changes", reason=str(error))
                await asyncio.sleep(PEER_AWAY_S)
                continue
            since = reply.last
            for change in reply.changes:
                for path in self._table.paths_of(change.source, change.path):
                    changed(path, change)

    def note_use(self, version: bytes) -> None:
        """Note that a version was read here, for the order of eviction."""
        self._used.add(version)

    # Without the own peer

    async def aclose(self) -> None:
        await self._samples.aclose()
        await self._own.aclose()
        await self.direct.aclose()
        await self._channels.aclose()
        await self._control.aclose()

    async def _call(self, peer: str, method: Method[Q, A], request: Q) -> A:
        if peer == self._settings.name:
            return await self._own.call(method, request, timeout_s=STAT_TIMEOUT_S)
        address = self.view.member(peer).address
        return await self._channels.call(address, method, request, timeout_s=STAT_TIMEOUT_S)

    def _peers(self) -> list[str]:
        """Return whom to ask: the own peer, then others that seem well."""
        own = self._settings.name
        found = [own] if self._clock() >= self._own_away_until_s else []
        others = [member.name for member in self.view.members if member.name != own]
        return found + self.direct.peers(others)[:OTHER_PEERS_ASKED]

    def _note_away(self, peer: str, error: MeshError) -> None:
        if peer == self._settings.name:
            if self._clock() >= self._own_away_until_s:
                log.info("own peer away", reason=str(error))
            is_silent = str(error).endswith(SILENT)
            self._own_away_until_s = self._clock() + (PEER_SILENT_S if is_silent else PEER_AWAY_S)
        else:
            self.direct.note_failure(peer, error)
        self.metrics.failovers.labels("PeerUnavailable").inc()

    async def _stat_directly(self, path: str) -> StatReply:
        try:
            place = self._table.place(path)
            return _reply(place, await place.store.stat(place.path))
        except NotFound:
            if self._table.names_below(path):
                return StatReply(DIRECTORY, None)
            raise

    async def _scan_directly(self, path: str, after: str) -> AsyncIterator[ListedPage]:
        """Yield what comes after a name, in whatever order the under-store has it."""
        hidden = set(self._table.names_below(path))
        try:
            place = self._table.place(path)
            async for page in place.store.scan(place.path):
                later = (e for e in page if name_bytes(e.name) > name_bytes(after))
                yield ListedPage(tuple(entry for entry in later if entry.name not in hidden))
        except NotFound:
            if not hidden:
                raise
        mounts = self._table.with_mounts(path, [], after=after, is_last=True)
        yield ListedPage(tuple(DirectoryEntry(name, about) for name, about in mounts))


def _reply(place: Place, about: Attributes) -> StatReply:
    file = None if about.is_directory else place.version(about)
    return StatReply(about, file, fresh_s=place.settings.max_age_s)


@asynccontextmanager
async def open_client(
    settings: ClientSettings, *, metrics: Metrics | None = None
) -> AsyncIterator[MeshClient]:
    """Open the mesh for reading; works with the own peer down, and without any peer."""
    metrics = metrics or Metrics()
    async with AsyncExitStack() as stack:
        stores = dict(settings.under_stores)
        for mount in settings.mounts.values():
            if mount.url not in stores:
                stores[mount.url] = open_under_store(mount, metrics)
                stack.push_async_callback(stores[mount.url].aclose)
        here = BlocksHere(settings.store_directory)
        stack.callback(here.close)
        threads = ThreadPoolExecutor(READ_THREADS, thread_name_prefix="read")
        stack.callback(threads.shutdown)
        table = MountTable(settings.mounts, stores)
        client = MeshClient(settings, here, table, threads, metrics)
        stack.push_async_callback(client.aclose)
        yield client
