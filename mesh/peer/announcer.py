"""What the mesh itself has done to names: said to the owners of their directories.

An owner notes it as it notes what the under-store says, tells all who have heard otherwise,
and says yes when they know. So whoever looks after that, anywhere, sees it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace

from mesh.clock import Clock, monotonic_s
from mesh.errors import Unavailable
from mesh.paths import Spot, spot_of
from mesh.peer.catalog import Catalog
from mesh.peer.once import quietly
from mesh.peer.shards import Shards
from mesh.store.entry_store import Changes, EntryStore
from mesh.understore.table import MountTable, plain
from mesh.wire.messages import Change, Kept, Nothing
from mesh.wire.writes import AnnounceRequest


class Announcer:
    """Makes known what this peer has changed in an under-store."""

    def __init__(
        self,
        catalog: Catalog,
        entries: EntryStore,
        shards: Shards,
        table: MountTable,
        *,
        clock: Clock = monotonic_s,
    ) -> None:
        self._catalog = catalog
        self._entries = entries
        self._shards = shards
        self._table = table
        self._clock = clock

    async def announce(self, *done: Kept) -> None:
        """Have all know what was done to these names; those who can't be told find out when
        what they know is too old."""
        by_directory: dict[bytes, list[Kept]] = {}
        for one in done:
            spot = spot_of(self._table, one.path)
            by_directory.setdefault(spot.directory, []).append(one)
        await asyncio.gather(
            *(self._announce(directory, kept) for directory, kept in by_directory.items())
        )

    async def _announce(self, directory: bytes, kept: Sequence[Kept]) -> None:
        request = AnnounceRequest(self._shards.me, tuple(kept))
        nearer = self._shards.nearer(directory)
        if nearer:
            with suppress(Unavailable):
                await self._shards.in_order(nearer, lambda p: self._shards.announce(p, request))
                # The mounts of this host read our own tables.
                for one in kept:
                    spot = spot_of(self._table, one.path)
                    self._catalog.note(spot.source, spot.parent, self._note(spot, one))
                await self._entries.flushed()
                return
        await self.take(request)

    async def take(self, request: AnnounceRequest) -> Nothing:
        """Note, as an owner, what was done; return when all have heard who knew otherwise."""
        spots = [spot_of(self._table, plain(one.path)) for one in request.kept]
        changes = [self._note(s, one) for s, one in zip(spots, request.kept, strict=True)]
        tell = self._catalog.note if request.is_copy else self._catalog.tell
        for spot, change in zip(spots, changes, strict=True):
            tell(spot.source, spot.parent, change)
        await self._entries.flushed()
        if not request.is_copy:
            for directory in {spot.directory: None for spot in spots}:
                await self._catalog.all_heard(directory)
            # After the word that what they knew is old.
            await self._give_copies(request, spots)
        return Nothing()

    async def _give_copies(self, request: AnnounceRequest, spots: Iterable[Spot]) -> None:
        """Have the other owners know the same, as far as they answer."""
        peers = {peer for spot in spots for peer in self._shards.owners(spot.directory)}
        copy = replace(request, is_copy=True)
        calls = [
            quietly(self._shards.announce(peer, copy))
            for peer in peers
            if peer != self._shards.me and not self._shards.is_broken(peer)
        ]
        await asyncio.gather(*calls)

    async def announce_tree(self, *paths: str) -> None:
        """Have all doubt what they know of directories and of all that is below them."""
        for path in paths:
            place = self._table.place(path)
            tree = Change(place.settings.url, place.path, is_tree=True)
            await self._catalog.doubt_tree(tree)
            await self._catalog.tell_all(tree)

    def _note(self, spot: Spot, one: Kept) -> Changes:
        """Keep what was done, and return what that changes: nobody else may know the name."""
        old, _ = self._entries.look(spot.directory, spot.name)
        self._entries.note(spot.source, spot.parent, spot.name, one.attributes, self._clock())
        was_there = old is not None and old.attributes is not None
        is_listing = old is None or was_there is not (one.attributes is not None)
        return Changes([spot.name], is_listing=is_listing)
