"""What is written: drafts, staged files, names that change and what is announced of them, put
together."""

from __future__ import annotations

import asyncio
from pathlib import Path

from mesh.clock import monotonic_s
from mesh.membership.view import State
from mesh.metrics import Metrics
from mesh.peer.alterations import Alterations
from mesh.peer.announcer import Announcer
from mesh.peer.care import Handler
from mesh.peer.catalog import Catalog
from mesh.peer.neighbors import RingNeighbors
from mesh.peer.overlay import Overlay
from mesh.peer.reader import BlockReader
from mesh.peer.shards import Shards
from mesh.peer.stager import Stager
from mesh.peer.turns import Turns
from mesh.peer.uploads import Uploads
from mesh.peer.writer import Writer
from mesh.store.drafts import Drafts
from mesh.store.staging import Staging
from mesh.store.store import BlockStore
from mesh.understore.table import MountTable
from mesh.wire.local import Handler as LocalHandler
from mesh.wire.staged import ALL_UPLOADS, ASSERT, FLUSH, HAVE, HOLD, RECALL, RETARGET, UPLOADS
from mesh.wire.writes import ALTER, ANNOUNCE, GROW, PUBLISH, RETIRE, TURN


class Scribe:
    """What this peer changes for the mounts of its host, and keeps for other writers."""

    def __init__(
        self,
        store: BlockStore,
        neighbors: RingNeighbors,
        reader: BlockReader,
        table: MountTable,
        catalog: Catalog,
        shards: Shards,
        tasks: asyncio.TaskGroup,
        metrics: Metrics,
        *,
        directory: Path,
        staged_bytes_max: int,
        upload_bytes_per_s: float,
    ) -> None:
        """Find the drafts of the mounts below *directory*, stage at most so many bytes, and
        send so many each second; 0: as many as the under-store takes."""
        self._overlay = Overlay(
            *(table, store.staged_names, store.ended),
            is_up=lambda name: _is_up(neighbors, name),
            owns=shards.owns,
            clock=monotonic_s,
        )
        self._announcer = Announcer(catalog, store.entries, shards, table, self._overlay)
        self._turns = Turns(shards, table)
        drafts, staging = Drafts(store, directory), Staging(directory, store.staged)
        self.stager = Stager(
            store,
            staging,
            drafts,
            neighbors,
            table,
            self._announcer,
            self._turns,
            tasks,
            metrics,
            directory=directory,
            limit_bytes=staged_bytes_max,
        )
        self.writer = Writer(
            drafts,
            table,
            catalog,
            self._announcer,
            self.stager,
            self._turns,
            lambda file, index: neighbors.rank(file.key(index)),
            tasks,
            metrics,
            name=neighbors.me,
        )
        self.uploads = Uploads(
            self.stager,
            staging,
            self.writer,
            self._announcer,
            catalog,
            table,
            neighbors,
            tasks,
            metrics,
            bytes_per_s=upload_bytes_per_s,
        )
        self._alterations = Alterations(table, catalog, self._announcer, self.uploads, self._turns)
        catalog.known.staged = self._overlay.names
        reader.persisted = self.uploads.persisted

    async def load(self) -> None:
        """Take up what was staged before this peer was started."""
        await self._overlay.load()
        await self.stager.load()

    async def recall(self) -> None:
        """Learn what was staged, and what has ended, while this peer was away."""
        await self._announcer.recall()

    async def recall_all(self) -> None:
        """The same from those who did not answer then."""
        await self._announcer.recall_all()

    def handlers(self) -> list[Handler]:
        """Return what neighbors may ask, and what this host's people alone may."""
        return [
            (ANNOUNCE, self._announcer.take, False),
            (TURN, self._turns.take, False),
            (ASSERT, self._announcer.claimed, False),
            (RECALL, self._announcer.recalled, False),
            (HAVE, self.stager.have, False),
            (HOLD, self.stager.holder.hold, False),
            (RETARGET, self.uploads.retargeted, False),
            (UPLOADS, self.uploads.waiting, False),
            (ALL_UPLOADS, self.uploads.all_waiting, True),
            (FLUSH, self.uploads.flush, True),
        ]

    def for_mounts(self) -> list[LocalHandler]:
        """Return what the mounts of this host may ask."""
        return [
            (GROW, self.writer.grow),
            (PUBLISH, self.writer.publish),
            (RETIRE, self.writer.retire),
            (ALTER, self._alterations.alter),
        ]


def _is_up(neighbors: RingNeighbors, peer: str) -> bool:
    member = neighbors.view.find(peer)
    return member is not None and member.state in (State.ACTIVE, State.SUSPECT)
