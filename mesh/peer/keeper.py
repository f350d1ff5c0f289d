"""Warm-ups, jobs and pins of one peer, put together."""

from __future__ import annotations

import asyncio
from pathlib import Path

from mesh.errors import NotFound
from mesh.metrics import Metrics
from mesh.peer.care import Care, Handler
from mesh.peer.crew import Crew
from mesh.peer.jobs import Jobs
from mesh.peer.neighbors import RingNeighbors
from mesh.peer.pins import Pins
from mesh.peer.reader import BlockReader
from mesh.peer.walk import Tree
from mesh.peer.warmup import Warmup
from mesh.store.store import BlockStore
from mesh.understore.table import MountTable
from mesh.wire.care import (
    CANCEL_JOB,
    LIST_JOBS,
    SET_PINS,
    SHOW_JOB,
    START_JOB,
    Job,
    PinList,
    SetPinsRequest,
)

JOBS_DIRECTORY = "jobs"


class Keeper:
    """What this peer does with blocks that nobody reads yet."""

    def __init__(
        self,
        store: BlockStore,
        reader: BlockReader,
        neighbors: RingNeighbors,
        table: MountTable,
        tree: Tree,
        tasks: asyncio.TaskGroup,
        metrics: Metrics,
        *,
        directory: Path,
    ) -> None:
        """Keep files of a job in a directory below *directory*."""
        self.pins = Pins(store.pins, table, neighbors)
        self._store = store
        self._tree = tree
        self._table = table
        self._tasks = tasks
        self._directory = directory / JOBS_DIRECTORY
        self._care = Care(store, reader, self.pins)
        self._crew = Crew(neighbors, self._care)
        self.jobs = Jobs(
            store.jobs,
            tree,
            self._crew,
            self.pins,
            tasks,
            self._build,
            metrics,
            directory=self._directory,
        )

    def _build(self, job: Job) -> Warmup:
        return Warmup(job, self._tree, self._table, self._crew, spools=self._directory)

    async def load(self) -> None:
        """Take up what was kept, before anybody asks for it."""
        self._directory.mkdir(mode=0o700, exist_ok=True)
        await self.pins.load()
        self._store.is_pinned = self.pins.is_pinned
        await self.jobs.load()

    def start(self) -> None:
        """Go on with jobs, and exchange pins; this peer is in the mesh now."""
        self._tasks.create_task(self.pins.run(), name="exchange pins")
        self._tasks.create_task(self.jobs.resume(), name="resume jobs")

    def handlers(self) -> list[Handler]:
        """Return what the servers of this peer should answer."""
        return [
            *self._care.handlers(),
            (START_JOB, self.jobs.start, True),
            (LIST_JOBS, self.jobs.list, True),
            (SHOW_JOB, self.jobs.show, True),
            (CANCEL_JOB, self.jobs.cancel, True),
            (SET_PINS, self._set_pins, True),
        ]

    async def _set_pins(self, request: SetPinsRequest) -> PinList:
        """Pin or unpin paths; return all pins. With no path it only does the latter."""
        if request.is_pinned:
            for path in request.paths:
                try:
                    await self._tree.stat(path)
                except NotFound as error:
                    raise NotFound(f"{path}: no such file or directory in the mesh") from error
        if request.paths:
            await self.pins.set(request.paths, is_pinned=request.is_pinned)
        return self.pins.all()
