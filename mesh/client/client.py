"""A mesh, from the side of one host: paths to attributes, listings and open files.

look-ups   own peer, else any other peer, else the under-store
bytes      extent file, else own peer brings them there, else `direct`
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import structlog

from mesh.blocks import DIRECTORY, MIB, Attributes, DirectoryEntry, FileVersion
from mesh.client.direct import DirectReader
from mesh.client.file import MeshFile
from mesh.client.here import BlocksHere
from mesh.client.names import ListedNames
from mesh.clock import Clock, monotonic_s
from mesh.errors import (
    IsADirectory,
    ListingGone,
    MeshError,
    NotFound,
    PeerUnavailable,
    Unavailable,
)
from mesh.membership.view import View, view_from_json
from mesh.metrics import Metrics, by_label
from mesh.understore.arrow import open_under_store
from mesh.understore.table import MountTable, Place
from mesh.understore.understore import UnderStore, UnderStoreSettings
from mesh.wire.basics import Method
from mesh.wire.channels import Channels, TlsSettings
from mesh.wire.codec import FETCH, LIST, MEMBERS, REPORT, STAT
from mesh.wire.local import SILENT, LocalChannel, mount_socket
from mesh.wire.messages import (
    FetchReply,
    FetchRequest,
    ListRequest,
    MountReport,
    Nothing,
    StatReply,
    StatRequest,
)
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
LISTING_AGE_S = 1.0
"""So old a listing may be when a peer hands it out."""

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
        self._table = table
        self._clock = clock
        self._own_away_until_s = 0.0
        self._suspects: set[str] = set()
        self._ask_of = ""
        """Address of a peer whose view is another than ours."""

        self._names = ListedNames(self.scan, self.listed, clock=clock)
        self._used: set[bytes] = set()

    # Paths

    async def stat(self, path: str, *, refresh: bool = False) -> StatReply:
        """Say what *path* is; `NotFound` when it is nothing."""
        path = path.strip("/")
        if refresh or self.is_suspect(path):
            self._names.forget(path)
        elif (listed := self._names.look(path)) is not None:
            return listed
        request = StatRequest(path, refresh or path in self._suspects)
        for peer in self._peers():
            try:
                reply = await self._call(peer, STAT, request)
            except PeerUnavailable as error:
                self._note_away(peer, error)
                continue
            self._suspects.discard(path)
            return reply
        return await self._stat_directly(path)

    async def scan(self, path: str) -> AsyncIterator[tuple[DirectoryEntry, ...]]:
        """Yield the entries of a directory, a page at a time."""
        sent = 0
        for peer in self._peers():
            try:
                async for page in self._pages(peer, path, sent):
                    sent += len(page)
                    yield page
                return
            except PeerUnavailable as error:
                self._note_away(peer, error)
        skipped = 0
        async for page in self._scan_directly(path):
            rest = page[max(0, sent - skipped) :]
            skipped += len(page)
            if rest:
                yield rest

    async def _pages(
        self, peer: str, path: str, start: int
    ) -> AsyncIterator[tuple[DirectoryEntry, ...]]:
        listing = 0
        while True:
            request = ListRequest(path, listing, start)
            try:
                reply = await self._call(peer, LIST, request)
            except ListingGone:
                if listing == 0:
                    raise
                listing = 0  # begin another one, and go on in it where we were
                continue
            listing = reply.listing
            start += len(reply.entries)
            if reply.entries:
                yield reply.entries
            if reply.is_last:
                return

    async def open(self, path: str) -> MeshFile:
        """Open a file for reading, at the version that it has now."""
        reply = await self.stat(path)
        if reply.file is None:
            raise IsADirectory(f"{path}: is a directory")
        return self.open_version(path, reply.file)

    def open_version(self, path: str, file: FileVersion) -> MeshFile:
        """Open a version that a look-up has named."""
        return MeshFile(self, path, file)

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

    def listed(self, path: str, attributes: Attributes) -> tuple[FileVersion | None, float]:
        """Return the version of a listed file, where its under-store names tags in
        listings, and for how long the entry may be believed."""
        try:
            place = self._table.place(path)
        except NotFound:
            return None, 0.0
        fresh_s = max(0.0, place.settings.max_age_s - LISTING_AGE_S)
        if attributes.is_directory or not attributes.tag:
            return None, fresh_s
        return place.version(attributes), fresh_s

    def note_use(self, version: bytes) -> None:
        """Note that a version was read here, for the order of eviction."""
        self._used.add(version)

    # Without the own peer

    async def aclose(self) -> None:
        await self._names.aclose()
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

    async def _scan_directly(self, path: str) -> AsyncIterator[tuple[DirectoryEntry, ...]]:
        place = self._table.place(path)
        async for page in place.store.scan(place.path):
            yield tuple(page)


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
