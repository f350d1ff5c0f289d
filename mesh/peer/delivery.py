"""Having blocks brought to where they should be: small calls to their owners, many at once.

    page of files -> what is held -> for each block its targets -> a batch for each target
                                                                   -> WARM, again and again

First one copy of each block comes to its owner; only then, where more copies are wanted,
they are made of that one. So no two peers ask the under-store for the same.

A batch whose peer dies goes to the next owners. While the under-store is away a batch
waits, and keeps its place among the calls under way, so that all else waits too.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from mesh.blocks import MIB, BlockKey, FileVersion
from mesh.clock import Clock, monotonic_s
from mesh.errors import BlockCorrupt, MeshError, NotFound, PeerUnavailable, Stale, Unavailable
from mesh.peer import masks
from mesh.peer.crew import Crew
from mesh.peer.spool import PlannedFile, Spool
from mesh.peer.throttle import Throttle
from mesh.wire.basics import error_named
from mesh.wire.care import WARM, Job, Tally, WarmItem, WarmRequest

CALL_BYTES = 64 * MIB
CALL_FILES = 256
CALLS_FOR_EACH = 2
"""Calls under way for each target: while one ends, the next goes on."""

CALL_TIMEOUT_S = 90.0
"""More than a peer takes by itself before it reports what is late."""

RETRY_FOR_S = 600.0
"""So long the under-store may be away before what is missing is given up."""

PEER_AWAY_S = 60.0
"""So long a peer that was named, and for which no other can stand in, may be away."""

PAUSE_S = 0.2
PAUSE_MAX_S = 10.0
YIELD_EVERY = 256


@dataclass(slots=True)
class Patience:
    """When waiting for what is away has become pointless: arithmetic only."""

    clock: Clock
    for_s: float = RETRY_FOR_S
    last_good_s: float = field(init=False)

    def __post_init__(self) -> None:
        self.last_good_s = self.clock()

    def good(self) -> None:
        """Note that something came."""
        self.last_good_s = self.clock()

    def is_over(self, since_s: float) -> bool:
        """Whether who waits since then has waited long enough, or everybody has."""
        now_s = self.clock()
        return now_s - since_s > self.for_s or (
            now_s > since_s and now_s - self.last_good_s > self.for_s
        )


@dataclass(frozen=True, slots=True)
class Item:
    """Some blocks of one file, for one target."""

    target: str
    planned: PlannedFile
    file: FileVersion
    indexes: list[int]
    holder: str
    reason: MeshError | None = None

    def wire(self) -> WarmItem:
        return WarmItem(self.file, masks.mask_of(self.indexes), self.holder)

    @property
    def size_bytes(self) -> int:
        return sum(map(self.file.length_bytes, self.indexes))


@dataclass(slots=True)
class _Batch:
    items: dict[tuple[bytes, str], Item] = field(default_factory=dict)
    size_bytes: int = 0
    fresh_bytes: int = 0
    """Of them, those that only the under-store has."""


class Delivery:
    """Brings the blocks of plans to their targets."""

    def __init__(
        self,
        crew: Crew,
        job: Job,
        tally: Tally,
        patience: Patience,
        note: Callable[[PlannedFile, MeshError], None],
        *,
        is_first: bool,
        clock: Clock = monotonic_s,
    ) -> None:
        """Bring one copy of what nobody has if *is_first*, else all copies that are wanted.

        Count in *tally*; have *note* told of files that can't be brought, and why.
        """
        self._is_first = is_first
        self._is_bound = bool(job.peers) and not is_first
        self._crew = crew
        self._job = job
        self._tally = tally
        self._patience = patience
        self._note = note
        self._clock = clock
        self._throttle = Throttle(job.bytes_per_s) if job.bytes_per_s else None
        self._call_bytes = min(CALL_BYTES, job.bytes_per_s or CALL_BYTES)
        self._batches: dict[str, _Batch] = {}
        self._seen_changed: dict[bytes, None] = {}
        self._away_since_s: dict[str, float] = {}

    async def bring(self, plan: Spool[PlannedFile], changed: Spool[PlannedFile]) -> None:
        """Bring what is missing of *plan*; put the files that have changed into *changed*."""
        calls_at_once = min(CALLS_FOR_EACH * len(self._crew.live()), self._job.files_at_once)
        self._slots = asyncio.Semaphore(calls_at_once)
        self._parallel = max(1, self._job.files_at_once // calls_at_once)
        self._changed = changed
        self._patience.good()
        async with asyncio.TaskGroup() as self._calls:
            async for page in plan.frames():
                await self._page(page)
            for target in list(self._batches):
                await self._send(target)

    async def _page(self, page: Sequence[PlannedFile]) -> None:
        files = [planned.version() for planned in page]
        job = self._job
        held = await self._crew.holdings(files, copies=job.replicas, named=job.peers)
        sure = {peer: reply.sure for peer, reply in held.items()}
        for number, (planned, file) in enumerate(zip(page, files, strict=True)):
            kept = {peer: _bits(file, reply.masks[number]) for peer, reply in held.items()}
            good = {peer: _bits(file, found[number]) for peer, found in sure.items()}
            await self._file(planned, file, kept, good)

    async def _file(
        self,
        planned: PlannedFile,
        file: FileVersion,
        kept: Mapping[str, bytes],
        good: Mapping[str, bytes],
    ) -> None:
        live = self._crew.live()
        for index in range(file.block_count):
            if index % YIELD_EVERY == 0:
                await asyncio.sleep(0)
            byte, bit = index >> 3, 1 << (index & 7)
            sure = [peer for peer, bits in good.items() if bits[byte] & bit]
            holders = sure or [peer for peer, bits in kept.items() if bits[byte] & bit]
            # One copy anywhere is enough to make those from that people name a peer for.
            is_enough = sure and self._is_first and self._job.peers
            for target in self._targets(file.key(index), live):
                if target in sure or is_enough:
                    self._tally.seen_to_bytes += file.length_bytes(index)
                else:
                    holder = next((peer for peer in holders if peer != target), "")
                    await self._add(target, planned, file, index, holder)

    def _targets(self, key: BlockKey, live: Sequence[str]) -> Sequence[str]:
        if self._is_bound:
            return self._job.peers
        copies = 1 if self._is_first else self._job.replicas
        return self._crew.owners(key, copies=copies, live=live)

    async def _add(
        self, target: str, planned: PlannedFile, file: FileVersion, index: int, holder: str
    ) -> None:
        batch = self._batches.setdefault(target, _Batch())
        item = batch.items.get((planned.path, holder))
        if item is None:
            item = Item(target, planned, file, [], holder)
            batch.items[planned.path, holder] = item
        item.indexes.append(index)
        length_bytes = file.length_bytes(index)
        batch.size_bytes += length_bytes
        batch.fresh_bytes += 0 if holder else length_bytes
        if batch.size_bytes >= self._call_bytes or len(batch.items) >= CALL_FILES:
            await self._send(target)

    async def _send(self, target: str) -> None:
        batch = self._batches.pop(target)
        await self._slots.acquire()
        self._calls.create_task(self._deliver(batch), name=f"warm {target}")

    async def _deliver(self, batch: _Batch) -> None:
        try:
            if self._throttle is not None and batch.fresh_bytes:
                await asyncio.sleep(self._throttle.wait_s(batch.fresh_bytes, self._clock()))
            await self._until_done(list(batch.items.values()))
        finally:
            self._slots.release()

    async def _until_done(self, items: list[Item]) -> None:
        """Have items brought, wherever that is still possible; note what failed for good."""
        since_s = self._clock()
        pause_s = PAUSE_S
        calls = {items[0].target: items}
        while True:
            again: list[Item] = []
            for target, some in calls.items():
                again += await self._call(target, some)
            waiting = [item for item in again if not self._is_hopeless(item, since_s)]
            for item in again:
                if item not in waiting and item.reason is not None:
                    self._note(item.planned, item.reason)
            if not waiting:
                return
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, PAUSE_MAX_S)
            calls = self._regrouped(waiting)

    def _is_hopeless(self, item: Item, since_s: float) -> bool:
        if self._is_bound and isinstance(item.reason, PeerUnavailable):
            since_s = self._away_since_s.get(item.target, since_s)
            return self._clock() - since_s > PEER_AWAY_S
        return self._patience.is_over(since_s)

    async def _call(self, target: str, items: list[Item]) -> list[Item]:
        """Have one peer bring items; return what should be tried again."""
        request = WarmRequest(tuple(item.wire() for item in items), self._parallel)
        try:
            reply = await self._crew.ask(target, WARM, request, timeout_s=CALL_TIMEOUT_S)
        except MeshError as failed:
            self._away_since_s.setdefault(target, self._clock())
            return [replace(item, reason=failed) for item in items]
        self._away_since_s.pop(target, None)
        self._tally.peer_bytes += reply.peer_bytes
        self._tally.under_store_bytes += reply.under_store_bytes
        came_bytes = reply.local_bytes + reply.peer_bytes + reply.under_store_bytes
        self._tally.seen_to_bytes += came_bytes
        if came_bytes:
            self._patience.good()
        again: list[Item] = []
        for failure in reply.failures:
            error = error_named(target, failure.words)
            item = items[failure.number]
            if isinstance(error, Stale | NotFound):
                await self._note_changed(item.planned)
            elif isinstance(error, Unavailable | BlockCorrupt):
                left = list(masks.indexes(failure.mask))
                again.append(replace(item, indexes=left, reason=error))
            else:
                self._note(item.planned, error)
        return again

    def _regrouped(self, items: list[Item]) -> dict[str, list[Item]]:
        """Return the items by who should be asked now."""
        live = self._crew.live()
        calls: dict[str, list[Item]] = {}
        for item in items:
            if self._is_bound or item.target in live:
                calls.setdefault(item.target, []).append(item)
                continue
            by_target: dict[str, list[int]] = {}
            for index in item.indexes:
                for target in self._targets(item.file.key(index), live):
                    by_target.setdefault(target, []).append(index)
            for target, indexes in by_target.items():
                moved = replace(item, target=target, indexes=indexes)
                calls.setdefault(target, []).append(moved)
        return calls

    async def _note_changed(self, planned: PlannedFile) -> None:
        if planned.path in self._seen_changed:
            return
        self._seen_changed[planned.path] = None
        while len(self._seen_changed) > 10 * CALL_FILES:
            del self._seen_changed[next(iter(self._seen_changed))]
        await self._changed.append([planned])


def _bits(file: FileVersion, mask: int) -> bytes:
    """Return a mask as bytes, one bit for each block of the file."""
    return mask.to_bytes(-(-file.block_count // 8), "little")
