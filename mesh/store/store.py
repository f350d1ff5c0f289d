"""The blocks kept on this node: get, put, lease, drop.

    put    bytes into the extent file, then the record      (never the other way)
    get    record, bytes, CRC of the piece                  (a bad one is dropped)
    drop   the record, then the bytes                       (see `index` for why)

Everything here runs on the peer's event loop but for the disk, which has threads
of its own. What must not overlap is kept apart by version: a drop takes no block
that is being written, and a write waits for a drop that has begun, because the
drop ends with a hole where the write would have put its bytes.
"""

from __future__ import annotations

import asyncio
import shutil
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import count, islice
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID

import structlog
from crc32c import crc32c

from mesh.blocks import BlockKey, FileVersion, piece_range
from mesh.clock import Clock, monotonic_s
from mesh.errors import BlockCorrupt, NotFound, StoreFull
from mesh.metrics import Metrics
from mesh.store.block_writer import BlockWriter
from mesh.store.entries import Entries
from mesh.store.entry_store import EntryStore
from mesh.store.eviction import Candidate, Room, victims
from mesh.store.extents import Extents
from mesh.store.index import BlockRecord, FileRecord, Index, Writer, grain_crcs, open_tables
from mesh.store.journal import Claim, claim
from mesh.store.notes import Notes
from mesh.store.spare import Spare

log = structlog.get_logger()

DISK_THREADS = 8
DROPPED_TOGETHER = 256
TOUCHED_MAX = 4096
LOOK_EVERY_S = 1.0
PINS_IN_THE_WAY_S = 1.0
"""So long nothing more is evicted after pins left too little to evict."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreSettings:
    """Where blocks live on this node, and how many of them."""

    directory: Path
    """On the NVMe; created if missing."""

    capacity_bytes: int
    """Eviction keeps the sum of all blocks below this."""

    free_space_ratio: float = 0.1
    """Eviction also keeps this part of the disk free for everyone else."""


class BlockStore:
    """The blocks kept on this node; made by `open_store`."""

    def __init__(
        self,
        settings: StoreSettings,
        taken: Claim,
        index: Index,
        threads: ThreadPoolExecutor,
        metrics: Metrics,
        clock: Clock,
    ) -> None:
        self.index = index
        self.peer_id = taken.identity.peer
        self.run = taken.boot.number
        """How often this directory was opened, this time included."""

        self.extents = Extents(settings.directory / "data")
        self.block_count, self.used_bytes = index.usage()
        self._settings = settings
        self.spare = Spare(taken.directory)
        self._writer = Writer(index.env, make_room=self.spare.give)
        self.entries = EntryStore(Entries(index.env, writable=True), self._writer, clock)
        notes = partial(Notes, taken.env, threads=threads, make_room=self.spare.give)
        self.jobs, self.pins = notes(b"jobs"), notes(b"pins")
        self.staged, self.staged_names = notes(b"staged"), notes(b"staged_names")
        self.ended = notes(b"ended")
        self.is_pinned: Callable[[FileRecord], bool] = lambda record: False
        """Asked in a thread; what it says yes to is not evicted."""

        self.held: set[bytes] = set()
        """Versions whose bytes are promised to somebody: none of their blocks is dropped."""

        self._met_pinned = self._told_pinned = False
        self._pins_until_s = 0.0
        self._threads = threads
        self._metrics = metrics
        self._clock = clock
        self._stamps = count(taken.boot.number << 40)
        self._reserved_bytes = 0
        self._writing: Counter[bytes] = Counter()  # versions, by blocks being written
        self._turns: dict[bytes, asyncio.Lock] = {}
        self._dropping: dict[bytes, asyncio.Event] = {}
        self._leases: dict[BlockKey, float] = {}
        self._used: dict[bytes, int] = {}  # versions read since this was last written down
        self._crowded = asyncio.Event()
        self._evicting = asyncio.Lock()
        self._unended: set[asyncio.Task[Any]] = set()
        metrics.store_capacity_bytes.set(settings.capacity_bytes)
        metrics.store_used_bytes.set(self.used_bytes)

    # Reading

    async def holds(self, file: FileVersion, index: int) -> bool:
        """Whether the block is here and may be believed; checks it first if it must."""
        key = file.key(index)
        if self.index.trusted_block(key) is not None:
            return True
        record = self.index.block(key)
        if record is None:
            return False
        return await self._unhindered(self._verify(file, index, record))

    async def read(self, file: FileVersion, index: int, piece: int) -> tuple[bytes, int]:
        """Return the bytes of a piece and their CRC-32C, checked.

        Raises `NotFound` when the block is not here, and `BlockCorrupt` when its
        bytes have rotted: then it was dropped, and another holder can help.
        """
        record = self.index.trusted_block(file.key(index))
        if record is None:
            raise NotFound(f"block {file.key(index)} is not here")
        data = await self._in_thread(self._read_piece, file, index, piece, record)
        if crc32c(data) != record.crcs[piece]:
            await self._unhindered(self._drop_corrupt(file.key(index)))
            raise BlockCorrupt(f"piece {piece} of block {file.key(index)}")
        return data, record.crcs[piece]

    def _read_piece(self, file: FileVersion, index: int, piece: int, record: BlockRecord) -> bytes:
        if file.is_inline:
            return self.index.inline(file.id) or b""
        start_bytes, size_bytes = piece_range(piece, length_bytes=record.length_bytes)
        offset_bytes = index * file.block_bytes + start_bytes
        return self.extents.read(file.id, offset_bytes, size_bytes, inode=record.inode)

    async def recheck(self, file: FileVersion, index: int) -> None:
        """Check all bytes of a block that is here, and drop it if one is wrong."""
        record = self.index.block(file.key(index))
        if record is not None:
            await self._unhindered(self._verify(file, index, record))

    async def _verify(self, file: FileVersion, index: int, record: BlockRecord) -> bool:
        """Check a block that is not believed; stamp it anew or drop it."""
        key = file.key(index)
        good = await self._in_thread(self._is_whole, file, index, record)
        if not good:
            await self._drop_corrupt(key)
            return False
        stamped = replace(record, stamp=next(self._stamps))
        return await self._write(lambda txn: self.index.stamp_block(txn, key, stamped))

    def _is_whole(self, file: FileVersion, index: int, record: BlockRecord) -> bool:
        # The CRCs of grains too: a mount would suspect the block of a wrong one for ever.
        grains = b""
        try:
            if record.length_bytes != file.length_bytes(index):
                return False
            for piece, crc in enumerate(record.crcs):
                data = self._read_piece(file, index, piece, record)
                if crc32c(data) != crc:
                    return False
                if record.grains:
                    grains += grain_crcs(data)
        except (NotFound, OSError):
            return False
        return grains == record.grains

    async def _drop_corrupt(self, key: BlockKey) -> None:
        """Forget a block at once, also while others of its version are being written.

        Its bytes may stay until then: nobody reads them without the record.
        """
        self._metrics.corrupt_blocks.inc()
        log.warning("block dropped", block=str(key), reason="checksum")
        is_kept = self._leases.get(key, 0.0) > self._clock()
        is_used = key.version in self._writing or key.version in self._dropping
        if is_kept or is_used or key.version in self.held:
            await self._forget(key.version, [key])
        else:
            await self.drop([key])

    def touch(self, version: bytes) -> None:
        """Note that a version was read, for the order of eviction."""
        self._used[version] = int(time.time())
        if len(self._used) >= TOUCHED_MAX:
            self.write_down_use()

    def write_down_use(self) -> None:
        """Put what was touched into the index."""
        used, self._used = self._used, {}
        if used:
            self._writer.submit(partial(self._touch_all, used=used))

    def _touch_all(self, txn: object, used: dict[bytes, int]) -> None:
        for version, used_s in used.items():
            self.index.touch_file(txn, version, used_s)

    def lease(self, key: BlockKey, *, for_s: float) -> bool:
        """Keep a block from being dropped for a while.

        False while a drop of its version is under way, which may have taken it already:
        wait for `settled`, and look again.
        """
        if key.version in self._dropping:
            return False
        self._leases[key] = max(self._leases.get(key, 0.0), self._clock() + for_s)
        return True

    async def settled(self, version: bytes) -> None:
        """Wait until no drop of a version is under way."""
        while (dropping := self._dropping.get(version)) is not None:
            await dropping.wait()

    # Writing

    @asynccontextmanager
    async def writing(self, file: FileVersion, index: int) -> AsyncIterator[BlockWriter]:
        """Write one block: pieces in any order, then `commit`; without it nothing is kept.

        Raises `StoreFull` when there is no room even after eviction.
        """
        await self.settled(file.id)
        length_bytes = file.length_bytes(index)
        # Both before the first await: from here on no drop touches this version's blocks.
        self._writing[file.id] += 1
        self._turns.setdefault(file.id, asyncio.Lock())
        self._reserved_bytes += length_bytes
        try:
            if self.room().is_full(0):
                await self.evict()
                if self.room().is_full(0):
                    raise StoreFull(f"no room for block {file.key(index)}")
            yield BlockWriter(self, file, index)
        finally:
            self._reserved_bytes -= length_bytes
            self._writing[file.id] -= 1
            if not self._writing[file.id]:
                del self._writing[file.id], self._turns[file.id]

    async def write_extent(
        self, file: FileVersion, index: int, piece: int, data: bytes | memoryview
    ) -> tuple[int, bytes]:
        """Put a piece; return its inode and the CRCs of its grains. For `BlockWriter`."""
        start_bytes, _ = piece_range(piece, length_bytes=file.length_bytes(index))
        offset_bytes = index * file.block_bytes + start_bytes

        def write() -> tuple[int, bytes]:
            grains = grain_crcs(data)  # in the thread, too: the loop has better to do
            written = self.extents.write(file.id, offset_bytes, data, size_bytes=file.size_bytes)
            return written, grains

        try:
            # One at a time for each file: its inode lets only one write at once, and
            # threads that wait for it spin (measured: 6.4 CPU-s for a GB, not 2.5).
            async with self._turns[file.id]:
                return await self._in_thread(write)
        except OSError as error:
            raise StoreFull(f"store.directory: {error.strerror}") from error

    async def put_record(
        self, file: FileVersion, index: int, record: BlockRecord, inline: bytes | None
    ) -> None:
        """Say that a block is here. For `BlockWriter`."""
        key = file.key(index)
        about = FileRecord(
            file.size_bytes, file.block_bytes, int(time.time()), file.source, file.path, file.tag
        )

        def put(txn: object) -> bool:
            if inline is not None:
                self.index.put_inline(txn, file.id, inline)
            return self.index.put_block(txn, key, record, about)

        if await self._write(put):
            self.block_count += 1
            self.used_bytes += record.length_bytes
            self._metrics.store_used_bytes.set(self.used_bytes)
        if self.room().excess_bytes():
            self._crowded.set()

    def new_stamp(self) -> int:
        return next(self._stamps)

    # Making room

    def room(self) -> Room:
        """Say how full this node is, blocks on their way included."""
        disk = shutil.disk_usage(self._settings.directory)
        return Room(
            used_bytes=self.used_bytes + self._reserved_bytes,
            capacity_bytes=self._settings.capacity_bytes,
            disk_free_bytes=disk.free,
            disk_total_bytes=disk.total,
            free_space_ratio=self._settings.free_space_ratio,
        )

    async def keep_room(self) -> None:
        """Evict whenever a watermark is crossed, for as long as the peer runs."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_EVERY_S):  # others fill the disk as well
                    await self._crowded.wait()
            self._crowded.clear()
            if not self.room().excess_bytes():
                continue
            try:
                await self.evict()
                await self._in_thread(self.spare.take)
            except (StoreFull, OSError) as error:
                log.warning("not evicted", reason=str(error))
                await asyncio.sleep(LOOK_EVERY_S)

    async def evict(self) -> None:
        """Drop blocks until the lower watermark is reached or none can go."""
        async with self._evicting:
            await self._evict()

    async def _evict(self) -> None:
        self.write_down_use()
        now_s = self._clock()
        self._leases = {key: until for key, until in self._leases.items() if until > now_s}
        excess_bytes = self.room().excess_bytes()
        if not excess_bytes or now_s < self._pins_until_s:
            return
        self._met_pinned = False
        leased = self._leases.keys()
        chosen = victims(self._oldest_first, excess_bytes, leased=leased)
        while batch := await self._in_thread(lambda: list(islice(chosen, DROPPED_TOGETHER))):
            dropped_bytes = await self.drop([candidate.key for candidate in batch])
            self._metrics.evicted_blocks.inc(len(batch))
            self._metrics.evicted_bytes.inc(dropped_bytes)
            log.info("evicted", blocks=len(batch), size_bytes=dropped_bytes)
            excess_bytes -= dropped_bytes
        if excess_bytes > 0 and self._met_pinned:
            self._note_pins_in_the_way()

    def _note_pins_in_the_way(self) -> None:
        self._pins_until_s = self._clock() + PINS_IN_THE_WAY_S
        if not self._told_pinned:
            self._told_pinned = True
            log.warning("pins leave too little to evict", mend="unpin, or more store.capacity")

    def _oldest_first(self) -> Iterator[Candidate]:
        for version, about in sorted(self.index.files(), key=lambda item: item[1].used_s):
            if version in self._writing or version in self.held:
                continue
            if self.is_pinned(about):
                self._met_pinned = True
                continue
            for index, record in self.index.blocks(version):
                yield Candidate(BlockKey(version, index), record.length_bytes, record.rank)

    async def drop(self, keys: list[BlockKey]) -> int:
        """Forget blocks and give their space back; return how many bytes they had.

        Blocks of a version that is being written stay, and leased ones: a victim of
        eviction may have been leased since it was chosen.
        """
        dropped_bytes = 0
        versions = {key.version for key in keys}
        for version in versions - self._writing.keys() - self._dropping.keys() - self.held:
            now_s = self._clock()
            mine = [k for k in keys if k.version == version and self._leases.get(k, 0.0) <= now_s]
            # Marked before the next await: from here on `lease` says no.
            done = self._dropping[version] = asyncio.Event()
            try:
                dropped_bytes += await self._drop(version, mine)
            finally:
                del self._dropping[version]
                done.set()
        self._metrics.store_used_bytes.set(self.used_bytes)
        return dropped_bytes

    async def _drop(self, version: bytes, keys: list[BlockKey]) -> int:
        about = self.index.file(version)
        sizes, is_empty = await self._forget(version, keys)
        if is_empty:
            await self._in_thread(self.extents.unlink, version)
        elif about is not None:
            for key, size in zip(keys, sizes, strict=True):
                if size:
                    offset_bytes = key.index * about.block_bytes
                    await self._in_thread(self.extents.punch, version, offset_bytes, size)
        return sum(sizes)

    async def _forget(self, version: bytes, keys: list[BlockKey]) -> tuple[list[int], bool]:
        """Delete records; return how many bytes each had, and whether none is left."""

        def forget(txn: object) -> tuple[list[int], bool]:
            sizes = [self.index.delete_block(txn, key) for key in keys]
            return sizes, self.index.delete_file_if_empty(txn, version)

        sizes, is_empty = await self._write(forget)
        self.used_bytes -= sum(sizes)
        self.block_count -= sum(size > 0 for size in sizes)
        return sizes, is_empty

    async def aclose(self) -> None:
        """Write down what is still in memory and end the writer."""
        if self._unended:
            await asyncio.wait(self._unended)
        self.write_down_use()
        self.entries.flush()
        await asyncio.get_running_loop().run_in_executor(None, self._writer.close)
        self.index.env.close()

    async def _unhindered(self, work: Coroutine[object, object, T]) -> T:
        """Let work end although its caller is cancelled, as a neighbor's call may be: half
        of it would leave the count of bytes wrong, or a hole nobody knows of."""
        task = asyncio.get_running_loop().create_task(work)
        self._unended.add(task)
        task.add_done_callback(self._unended.discard)
        return await asyncio.shield(task)

    async def _write(self, op: Callable[[object], T]) -> T:
        return await asyncio.wrap_future(self._writer.submit(op))

    async def _in_thread(self, call: Callable[..., T], *args: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, partial(call, *args))


@asynccontextmanager
async def open_store(
    settings: StoreSettings,
    *,
    cluster: str,
    peer_id: UUID | None = None,
    metrics: Metrics | None = None,
    clock: Clock = monotonic_s,
) -> AsyncIterator[BlockStore]:
    """Open the store of this peer; `Unusable` when its directory can't be had.

    Without *peer_id*, `BlockStore.peer_id` says whose blocks the directory has. Left
    without an exception, it marks the stop as clean. After any other end each block is
    checked before its first use.
    """
    threads = ThreadPoolExecutor(DISK_THREADS, thread_name_prefix="disk")
    loop = asyncio.get_running_loop()
    taken = await loop.run_in_executor(
        threads, partial(claim, settings.directory, cluster=cluster, peer_id=peer_id)
    )
    try:
        index = await loop.run_in_executor(threads, open_tables, taken.directory, taken.boot)
        store = BlockStore(settings, taken, index, threads, metrics or Metrics(), clock)
        await loop.run_in_executor(threads, store.spare.take)
        if not taken.boot.clean:
            await loop.run_in_executor(threads, _sweep, store)
        try:
            yield store
        finally:
            await store.aclose()
    except BaseException:
        threads.shutdown()
        taken.abandon()
        raise
    threads.shutdown()
    taken.release()


def _sweep(store: BlockStore) -> None:
    """After an unclean stop: remove extent files that no record speaks of."""
    for version in list(store.extents.versions()):
        if store.index.file(version) is None:
            with suppress(OSError):
                store.extents.unlink(version)
