"""The blocks of a node, in memory: keeps the contract of `mesh.store.store.BlockStore`.

As there, bytes land in an extent first, where readers of this host may have them at
once, and the record that makes them a block comes last. A crash leaves the bytes, and
no trust in them. It can be made to rot (`tests/contracts/test_blocks.py`).
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from itertools import count

from crc32c import crc32c

from mesh.blocks import BlockKey, FileVersion, Span, piece_count, piece_range
from mesh.clock import Clock, monotonic_s
from mesh.errors import BlockCorrupt, NotFound, StoreFull
from mesh.store.eviction import Candidate, Rank, Room, victims
from mesh.store.index import BlockRecord, FileRecord


@dataclass(slots=True)
class _Extent:
    inode: int
    pieces: dict[tuple[int, int], bytes] = field(default_factory=dict)
    """By block and piece; what is not there is a hole."""


class MemoryIndex:
    """What this node has; reads as `mesh.store.index.Index` does."""

    def __init__(self) -> None:
        self.trusted_since = 0
        self._files: dict[bytes, FileRecord] = {}
        self._blocks: dict[bytes, dict[int, BlockRecord]] = {}
        self._inline: dict[bytes, bytes] = {}

    def block(self, key: BlockKey) -> BlockRecord | None:
        return self._blocks.get(key.version, {}).get(key.index)

    def trusted_block(self, key: BlockKey) -> BlockRecord | None:
        record = self.block(key)
        return record if record is not None and record.stamp >= self.trusted_since else None

    def inline(self, version: bytes) -> bytes | None:
        return self._inline.get(version)

    def file(self, version: bytes) -> FileRecord | None:
        return self._files.get(version)

    def files(self) -> list[tuple[bytes, FileRecord]]:
        return sorted(self._files.items(), key=lambda item: item[0])

    def files_after(self, version: bytes, count: int) -> list[tuple[bytes, FileRecord]]:
        return [(key, record) for key, record in self.files() if key > version][:count]

    def blocks(self, version: bytes) -> list[tuple[int, BlockRecord]]:
        return sorted(self._blocks.get(version, {}).items(), key=lambda item: item[0])

    def put(self, key: BlockKey, record: BlockRecord, file: FileRecord) -> None:
        self._blocks.setdefault(key.version, {})[key.index] = record
        self._files[key.version] = file

    def put_inline(self, version: bytes, data: bytes) -> None:
        self._inline[version] = data

    def touch(self, version: bytes, used_s: int) -> None:
        if version in self._files:
            self._files[version] = replace(self._files[version], used_s=used_s)

    def delete(self, key: BlockKey) -> int:
        """Forget a block; return how many bytes it had."""
        record = self._blocks.get(key.version, {}).pop(key.index, None)
        if key.index == 0:
            self._inline.pop(key.version, None)
        if not self._blocks.get(key.version):
            self._blocks.pop(key.version, None)
            self._files.pop(key.version, None)
        return 0 if record is None else record.length_bytes


class MemoryBlocks:
    """The blocks kept on one node; they outlive `crash`, as a disk does."""

    def __init__(self, capacity_bytes: int, *, clock: Clock = monotonic_s) -> None:
        self.index = MemoryIndex()
        self.used_bytes = 0
        self.block_count = 0
        self.evicted: list[BlockKey] = []
        self.corrupt_blocks = 0
        self._capacity_bytes = capacity_bytes
        self._clock = clock
        self._stamps = count(1)
        self._inodes = count(1)
        self._extents: dict[bytes, _Extent] = {}
        self._leases: dict[BlockKey, float] = {}
        self._writing: Counter[bytes] = Counter()
        self._reserved_bytes = 0
        self._crowded = asyncio.Event()

    # Reading

    async def holds(self, file: FileVersion, index: int) -> bool:
        key = file.key(index)
        if self.index.trusted_block(key) is not None:
            return True
        record = self.index.block(key)
        return record is not None and await self._verify(file, index, record)

    async def read(self, file: FileVersion, index: int, piece: int) -> tuple[bytes, int]:
        key = file.key(index)
        record = self.index.trusted_block(key)
        if record is None:
            raise NotFound(f"block {key} is not here")
        data = self._piece(file, index, piece)
        await asyncio.sleep(0)
        if data is None:
            raise NotFound(f"block {key} is not here any more")
        if crc32c(data) != record.crcs[piece]:
            self._drop_corrupt(key)
            raise BlockCorrupt(f"piece {piece} of block {key}")
        return data, record.crcs[piece]

    async def recheck(self, file: FileVersion, index: int) -> None:
        record = self.index.block(file.key(index))
        if record is not None:
            await self._verify(file, index, record)

    async def _verify(self, file: FileVersion, index: int, record: BlockRecord) -> bool:
        await asyncio.sleep(0)
        key = file.key(index)
        found = [self._piece(file, index, number) for number in range(len(record.crcs))]
        pairs = zip(found, record.crcs, strict=True)
        if not all(data is not None and crc32c(data) == crc for data, crc in pairs):
            self._drop_corrupt(key)
            return False
        if self.index.block(key) is None:
            return False
        about = self.index.file(key.version)
        assert about is not None, "a block has a file"
        self.index.put(key, replace(record, stamp=next(self._stamps)), about)
        return True

    def bytes_at(self, inode: int, file: FileVersion, span: Span) -> bytes | None:
        """Return what a mount reads from the extent of that inode; None when it is gone."""
        if file.is_inline:
            data = self.index.inline(file.id)
            return None if data is None else data[span.start_bytes : span.stop_bytes]
        extent = self._extents.get(file.id)
        if extent is None or extent.inode != inode:
            return None
        numbers = range(piece_count(file.length_bytes(span.block_index)))
        pieces = [extent.pieces.get((span.block_index, number)) for number in numbers]
        found = b""
        for number, piece in enumerate(pieces):
            start_bytes, size_bytes = piece_range(
                number, length_bytes=file.length_bytes(span.block_index)
            )
            data = bytes(size_bytes) if piece is None else piece  # a hole reads as zeros
            found += data[
                max(0, span.start_bytes - start_bytes) : max(0, span.stop_bytes - start_bytes)
            ]
        return found

    def touch(self, version: bytes) -> None:
        self.index.touch(version, int(self._clock()))

    def lease(self, key: BlockKey, *, for_s: float) -> bool:
        self._leases[key] = max(self._leases.get(key, 0.0), self._clock() + for_s)
        return True

    async def settled(self, version: bytes) -> None:
        """Return at once: a drop takes no time here."""

    # Writing

    @asynccontextmanager
    async def writing(self, file: FileVersion, index: int) -> AsyncIterator[MemoryWriter]:
        length_bytes = file.length_bytes(index)
        self._writing[file.id] += 1
        self._reserved_bytes += length_bytes
        try:
            if self.room().is_full(0):
                await self.evict()
                if self.room().is_full(0):
                    raise StoreFull(f"no room for block {file.key(index)}")
            yield MemoryWriter(self, file, index)
        finally:
            self._reserved_bytes -= length_bytes
            self._writing[file.id] -= 1
            if not self._writing[file.id]:
                del self._writing[file.id]

    def write_piece(self, file: FileVersion, index: int, piece: int, data: bytes) -> int:
        """Put bytes into the extent; return its inode. For `MemoryWriter`."""
        extent = self._extents.get(file.id)
        if extent is None:
            extent = self._extents[file.id] = _Extent(next(self._inodes))
        extent.pieces[index, piece] = data
        return extent.inode

    def put_record(
        self, file: FileVersion, index: int, record: BlockRecord, inline: bytes | None
    ) -> None:
        """Say that a block is here. For `MemoryWriter`."""
        key = file.key(index)
        if self.index.block(key) is None:
            self.block_count += 1
            self.used_bytes += record.length_bytes
        used_s = int(self._clock())
        about = FileRecord(
            file.size_bytes, file.block_bytes, used_s, file.source, file.path, file.tag
        )
        self.index.put(key, replace(record, stamp=next(self._stamps)), about)
        if inline is not None:
            self.index.put_inline(file.id, inline)
        if self.room().excess_bytes():
            self._crowded.set()

    # Making room

    def room(self) -> Room:
        return Room(
            used_bytes=self.used_bytes + self._reserved_bytes,
            capacity_bytes=self._capacity_bytes,
            disk_free_bytes=1,
            disk_total_bytes=1,
            free_space_ratio=0.0,
        )

    async def keep_room(self) -> None:
        """Evict whenever a watermark is crossed, for as long as the peer runs."""
        while True:
            await self._crowded.wait()
            self._crowded.clear()
            await self.evict()

    async def evict(self) -> None:
        """Drop blocks until the lower watermark is reached or none can go."""
        now_s = self._clock()
        self._leases = {key: until for key, until in self._leases.items() if until > now_s}
        excess_bytes = self.room().excess_bytes()
        if excess_bytes:
            for victim in victims(self._oldest_first, excess_bytes, leased=self._leases.keys()):
                self.evicted.append(victim.key)
                self._drop(victim.key)
        await asyncio.sleep(0)

    def _oldest_first(self) -> Iterator[Candidate]:
        for version, _ in sorted(self.index.files(), key=lambda item: item[1].used_s):
            if version not in self._writing:
                for index, record in self.index.blocks(version):
                    yield Candidate(BlockKey(version, index), record.length_bytes, record.rank)

    async def drop(self, keys: list[BlockKey]) -> int:
        """Forget blocks but for those that are leased or being written."""
        now_s = self._clock()
        return sum(
            self._drop(key)
            for key in keys
            if key.version not in self._writing and self._leases.get(key, 0.0) <= now_s
        )

    def _drop(self, key: BlockKey) -> int:
        size_bytes = self.index.delete(key)
        self.used_bytes -= size_bytes
        self.block_count -= size_bytes > 0
        extent = self._extents.get(key.version)
        if extent is not None:
            for place in [place for place in extent.pieces if place[0] == key.index]:
                del extent.pieces[place]
            if not self.index.blocks(key.version):
                del self._extents[key.version]
        return size_bytes

    def _drop_corrupt(self, key: BlockKey) -> None:
        """Forget a block at once; its bytes stay while somebody may read or write there."""
        self.corrupt_blocks += 1
        is_kept = self._leases.get(key, 0.0) > self._clock()
        if is_kept or key.version in self._writing:
            size_bytes = self.index.delete(key)
            self.used_bytes -= size_bytes
            self.block_count -= size_bytes > 0
        else:
            self._drop(key)

    def _piece(self, file: FileVersion, index: int, piece: int) -> bytes | None:
        if file.is_inline:
            return self.index.inline(file.id)
        extent = self._extents.get(file.id)
        return None if extent is None else extent.pieces.get((index, piece))

    # Accidents

    def crash(self) -> None:
        """Lose what is in memory, and the trust in what is not; nobody may be writing."""
        assert not self._writing
        self._leases.clear()
        self.index.trusted_since = next(self._stamps)

    def rot(self, file: FileVersion, index: int) -> bool:
        """Change the first piece of a block that is here; False when there is none."""
        if self.index.block(file.key(index)) is None:
            return False
        data = self._piece(file, index, 0)
        if data is None:
            return False
        rotten = bytes(255 - value for value in data[:1]) * len(data)
        if file.is_inline:
            self.index.put_inline(file.id, rotten)
        else:
            self._extents[file.id].pieces[index, 0] = rotten
        return True


class MemoryWriter:
    """One block on its way into a `MemoryBlocks`."""

    def __init__(self, store: MemoryBlocks, file: FileVersion, index: int) -> None:
        self._store = store
        self._file = file
        self._index = index
        self._crcs: dict[int, int] = {}
        self._inline = b""
        self.inode = 0

    async def write(self, piece: int, data: bytes | memoryview, crc: int) -> None:
        self._crcs[piece] = crc
        await asyncio.sleep(0)
        if self._file.is_inline:
            self._inline = bytes(data)
        else:
            self.inode = self._store.write_piece(self._file, self._index, piece, bytes(data))

    async def commit(self, *, rank: Rank) -> None:
        length_bytes = self._file.length_bytes(self._index)
        assert len(self._crcs) == piece_count(length_bytes)
        await asyncio.sleep(0)
        record = BlockRecord(
            length_bytes=length_bytes,
            flags=rank,
            stamp=0,
            inode=self.inode,
            crcs=tuple(crc for _, crc in sorted(self._crcs.items())),
        )
        inline = self._inline if self._file.is_inline else None
        self._store.put_record(self._file, self._index, record, inline)
