"""What peers do for each other's warm-ups, and the list of what may be asked of it.

Each call is small enough to end soon: a page of files, or a few blocks. Who wants more
calls again (`warmup`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from mesh.blocks import BlockKey
from mesh.clock import Clock, monotonic_s
from mesh.errors import MeshError, Unavailable
from mesh.metrics import LOCAL, PEER, UNDER_STORE
from mesh.peer import masks
from mesh.peer.pins import Pins
from mesh.peer.reader import BlockReader
from mesh.store.index import FileRecord
from mesh.store.store import BlockStore
from mesh.wire.basics import Method, named
from mesh.wire.care import (
    DROP,
    HOLDINGS,
    SHARE_PINS,
    WARM,
    DropReply,
    DropRequest,
    HoldingsReply,
    HoldingsRequest,
    PinList,
    WarmFailure,
    WarmItem,
    WarmReply,
    WarmRequest,
)

BROUGHT_AT_ONCE = 64
"""Blocks, for all who ask for some: what more would do is wait for memory."""

WARM_WITHIN_S = 60.0
"""What is not here by then is reported as late; it goes on, and can be asked for again."""

DROP_PAGE_FILES = 256
YIELD_EVERY = 64

Handler = tuple[Method[Any, Any], Callable[[Any], Awaitable[Any]], bool]
"""A method, what answers it, and whether only this peer's host may call it."""


@dataclass(slots=True)
class _Brought:
    """What became of the items of one request."""

    bytes_by_origin: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys((LOCAL, PEER, UNDER_STORE), 0)
    )
    failed: dict[int, tuple[int, str]] = field(default_factory=dict)
    """By number of the item: the blocks, and the first reason."""

    def fail(self, number: int, index: int, error: MeshError) -> None:
        mask, words = self.failed.get(number, (0, named(error)))
        self.failed[number] = (mask | 1 << index, words)

    def reply(self) -> WarmReply:
        sizes = self.bytes_by_origin
        failures = (WarmFailure(n, mask, why) for n, (mask, why) in self.failed.items())
        return WarmReply(sizes[LOCAL], sizes[PEER], sizes[UNDER_STORE], tuple(failures))


class Care:
    """Answers for the blocks of this peer."""

    def __init__(
        self,
        store: BlockStore,
        reader: BlockReader,
        pins: Pins,
        *,
        clock: Clock = monotonic_s,
    ) -> None:
        self._store = store
        self._reader = reader
        self._pins = pins
        self._clock = clock
        self._bringing = asyncio.Semaphore(BROUGHT_AT_ONCE)

    def handlers(self) -> list[Handler]:
        """Return what the servers of this peer should answer."""
        return [
            (HOLDINGS, self.holdings, False),
            (WARM, self.warm, False),
            (DROP, self.drop, False),
            (SHARE_PINS, self.share_pins, False),
        ]

    async def holdings(self, request: HoldingsRequest) -> HoldingsReply:
        """Say which blocks of some versions are recorded here."""
        index = self._store.index
        since = index.trusted_since() or 0
        found, doubtful = [], []
        for number, file in enumerate(request.files):
            if number % YIELD_EVERY == 0:
                await asyncio.sleep(0)
            blocks = index.blocks(file.id)
            doubts = (i for i, record in blocks if record.stamp < since)
            found.append(masks.mask_of(i for i, _ in blocks) & masks.whole(file))
            doubtful.append(masks.mask_of(doubts) & masks.whole(file))
        return HoldingsReply(tuple(found), tuple(doubtful))

    async def warm(self, request: WarmRequest) -> WarmReply:
        """Bring blocks here; say of each that is not kept why."""
        brought = _Brought()
        until_s = self._clock() + WARM_WITHIN_S
        blocks = _blocks_of(request.items)
        async with asyncio.TaskGroup() as workers:
            for _ in range(min(max(1, request.parallel), BROUGHT_AT_ONCE)):
                workers.create_task(self._bring(blocks, brought, until_s))
        return brought.reply()

    async def _bring(
        self, blocks: Iterator[tuple[int, WarmItem, int]], brought: _Brought, until_s: float
    ) -> None:
        for number, item, index in blocks:
            try:
                async with asyncio.timeout(max(0.0, until_s - self._clock())), self._bringing:
                    origin = await self._reader.bring(item.file, index, holder=item.holder)
            except MeshError as error:
                brought.fail(number, index, error)
            except TimeoutError:
                late = f"block {item.file.key(index)} did not come in {WARM_WITHIN_S:g} s"
                brought.fail(number, index, Unavailable(late))
            else:
                brought.bytes_by_origin[origin] += item.file.length_bytes(index)

    async def drop(self, request: DropRequest) -> DropReply:
        """Drop what is here of a path, but for what is pinned or in use: one page of it."""
        index = self._store.index
        page = await asyncio.to_thread(index.files_after, request.after, DROP_PAGE_FILES)
        files = blocks = size_bytes = pinned_files = busy_blocks = 0
        for version, about in page:
            if not _is_below(about, request):
                continue
            if self._pins.is_pinned(about):
                pinned_files += 1
                continue
            before = [number for number, _ in index.blocks(version)]
            size_bytes += await self._store.drop([BlockKey(version, n) for n in before])
            left = len(index.blocks(version))
            files += left == 0
            blocks += len(before) - left
            busy_blocks += left
        after = page[-1][0] if page else request.after
        is_last = len(page) < DROP_PAGE_FILES
        return DropReply(files, blocks, size_bytes, pinned_files, busy_blocks, after, is_last)

    async def share_pins(self, request: PinList) -> PinList:
        """Take these pins; return all."""
        await self._pins.merge(request.pins)
        return self._pins.all()


def _blocks_of(items: tuple[WarmItem, ...]) -> Iterator[tuple[int, WarmItem, int]]:
    for number, item in enumerate(items):
        for index in masks.indexes(item.mask & masks.whole(item.file)):
            yield number, item, index


def _is_below(about: FileRecord, request: DropRequest) -> bool:
    if about.source != request.source:
        return False
    path = request.path
    return not path or about.path == path or about.path.startswith(f"{path}/")
