"""Drafts, names that change and what is announced of them, put together."""

from __future__ import annotations

import asyncio
from pathlib import Path

from mesh.metrics import Metrics
from mesh.peer.alterations import Alterations
from mesh.peer.announcer import Announcer
from mesh.peer.care import Handler
from mesh.peer.catalog import Catalog
from mesh.peer.neighbors import RingNeighbors
from mesh.peer.shards import Shards
from mesh.peer.turns import Turns
from mesh.peer.writer import Writer
from mesh.store.drafts import Drafts
from mesh.store.store import BlockStore
from mesh.understore.table import MountTable
from mesh.wire.local import Handler as LocalHandler
from mesh.wire.writes import ALTER, ANNOUNCE, GROW, PUBLISH, RETIRE, TURN


class Scribe:
    """What this peer changes for the mounts of its host."""

    def __init__(
        self,
        store: BlockStore,
        neighbors: RingNeighbors,
        table: MountTable,
        catalog: Catalog,
        shards: Shards,
        tasks: asyncio.TaskGroup,
        metrics: Metrics,
        *,
        directory: Path,
    ) -> None:
        """Find the drafts of the mounts below *directory*."""
        self._announcer = Announcer(catalog, store.entries, shards, table)
        self._turns = Turns(shards, table)
        self.writer = Writer(
            Drafts(store, directory),
            table,
            catalog,
            self._announcer,
            self._turns,
            lambda file, index: neighbors.rank(file.key(index)),
            tasks,
            metrics,
            name=neighbors.me,
        )
        self._alterations = Alterations(table, catalog, self._announcer, self._turns)

    def handlers(self) -> list[Handler]:
        """Return what neighbors may ask."""
        return [
            (ANNOUNCE, self._announcer.take, False),
            (TURN, self._turns.take, False),
        ]

    def for_mounts(self) -> list[LocalHandler]:
        """Return what the mounts of this host may ask."""
        return [
            (GROW, self.writer.grow),
            (PUBLISH, self.writer.publish),
            (RETIRE, self.writer.retire),
            (ALTER, self._alterations.alter),
        ]
