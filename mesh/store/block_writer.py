"""One block on its way into the store."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mesh.blocks import FileVersion, piece_count
from mesh.store.eviction import Rank
from mesh.store.index import BlockRecord

if TYPE_CHECKING:
    from mesh.store.store import BlockStore


class BlockWriter:
    """One block on its way into the store; lent by `BlockStore.writing`."""

    def __init__(self, store: BlockStore, file: FileVersion, index: int) -> None:
        self._store = store
        self._file = file
        self._index = index
        self._crcs: dict[int, int] = {}
        self._grains: dict[int, bytes] = {}
        self._inline = b""
        self.inode = 0
        """Of the extent file, known once a piece is written; 0 for an inline version."""

    async def write(self, piece: int, data: bytes | memoryview, crc: int) -> None:
        """Put a piece whose CRC-32C the caller has checked or computed."""
        self._crcs[piece] = crc
        if self._file.is_inline:
            self._inline = bytes(data)
        else:
            self.inode, self._grains[piece] = await self._store.write_extent(
                self._file, self._index, piece, data
            )

    async def commit(self, *, rank: Rank) -> None:
        """Say that the block is here, whole; every piece must have been written."""
        length_bytes = self._file.length_bytes(self._index)
        assert len(self._crcs) == piece_count(length_bytes)
        record = BlockRecord(
            length_bytes=length_bytes,
            flags=rank,
            stamp=self._store.new_stamp(),
            inode=self.inode,
            crcs=tuple(crc for _, crc in sorted(self._crcs.items())),
            grains=b"".join(crcs for _, crcs in sorted(self._grains.items())),
        )
        inline = self._inline if self._file.is_inline else None
        await self._store.put_record(self._file, self._index, record, inline)
