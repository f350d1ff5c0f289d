"""Many small files at once: a directory of samples should not cost a call for each.

    mount  →  own peer: these files, please  →  their owners, one call for many  →  here

What can't be had like this is left out, and read alone when its turn comes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from contextlib import suppress

import structlog
from crc32c import crc32c

from mesh.blocks import KIB, MIB, FileVersion
from mesh.errors import MeshError
from mesh.metrics import PEER, Metrics
from mesh.peer.neighbors import RingNeighbors
from mesh.peer.once import Once
from mesh.peer.reader import BlockReader
from mesh.store.store import BlockStore
from mesh.wire.codec import SERVE_SMALL
from mesh.wire.messages import GatherReply, GatherRequest, SmallReply, SmallRequest

log = structlog.get_logger()

SMALL_BYTES_MAX = 128 * KIB
FILES_A_CALL = 64
BYTES_A_CALL = 2 * MIB
CALL_TIMEOUT_S = 10.0
FILE_TIMEOUT_S = 5.0
FILES_MAX = 1024


class Gatherer:
    """Brings small files here, and gives them to neighbors."""

    def __init__(
        self,
        store: BlockStore,
        neighbors: RingNeighbors,
        reader: BlockReader,
        tasks: asyncio.TaskGroup,
        metrics: Metrics,
    ) -> None:
        self._store = store
        self._neighbors = neighbors
        self._reader = reader
        self._metrics = metrics
        self._once: Once[bytes, None] = Once(tasks)

    async def gather(self, request: GatherRequest) -> GatherReply:
        """Bring small files to this host; return how many of them are here then."""
        files = [file for file in request.files[:FILES_MAX] if is_small(file)]
        missing = [file for file in files if not self._is_here(file)]
        by_owner: dict[str, list[FileVersion]] = {}
        for file in missing:
            owners = self._neighbors.owners(file.key(0))
            by_owner.setdefault(owners[0] if owners else self._neighbors.me, []).append(file)
        await asyncio.gather(*(self._from(peer, mine) for peer, mine in by_owner.items()))
        return GatherReply(sum(self._is_here(file) for file in files))

    async def serve_small(self, request: SmallRequest) -> SmallReply:
        """Return many small files to a neighbor, those that can be had soon."""
        files = request.files[:FILES_A_CALL]
        return SmallReply(tuple(await asyncio.gather(*(self._content(file) for file in files))))

    async def _content(self, file: FileVersion) -> tuple[int, bytes]:
        if not is_small(file):
            return 0, b""
        with suppress(MeshError, TimeoutError):
            async with asyncio.timeout(FILE_TIMEOUT_S):
                async for piece in self._reader.serve(file, 0, 0):
                    if piece.data:
                        return piece.crc, bytes(piece.data)
        return 0, b""

    async def _from(self, peer: str, files: Sequence[FileVersion]) -> None:
        if self._neighbors.is_me(peer):
            await asyncio.gather(*(self._fill(file) for file in files))
            return
        for batch in _batches(files):
            request = SmallRequest(tuple(batch))
            try:
                reply = await self._neighbors.ask(
                    peer, SERVE_SMALL, request, timeout_s=CALL_TIMEOUT_S
                )
            except MeshError as error:
                log.debug("no small files", peer=peer, reason=str(error))
                self._neighbors.note_failure(peer, error)
                return
            pairs = zip(batch, reply.files, strict=False)
            await asyncio.gather(*(self._keep(peer, file, *given) for file, given in pairs))

    async def _fill(self, file: FileVersion) -> None:
        with suppress(MeshError):
            await self._reader.bring(file, 0)

    async def _keep(self, peer: str, file: FileVersion, crc: int, data: bytes) -> None:
        if len(data) != file.size_bytes or crc32c(data) != crc:
            return
        with suppress(MeshError):
            await self._once.do(file.id, lambda: self._write(peer, file, crc, data))

    async def _write(self, peer: str, file: FileVersion, crc: int, data: bytes) -> None:
        if self._is_here(file):
            return
        async with self._store.writing(file, 0) as writer:
            await writer.write(0, data, crc)
            await writer.commit(rank=self._neighbors.rank(file.key(0)))
        self._metrics.peer_bytes.labels(peer).inc(len(data))
        self._metrics.read_bytes.labels(PEER).inc(len(data))
        self._metrics.read_blocks.labels(PEER).inc()

    def _is_here(self, file: FileVersion) -> bool:
        return self._store.index.trusted_block(file.key(0)) is not None


def is_small(file: FileVersion) -> bool:
    """Whether a file goes with many others in one call."""
    return 0 < file.size_bytes <= SMALL_BYTES_MAX and file.block_count == 1


def _batches(files: Iterable[FileVersion]) -> list[list[FileVersion]]:
    batches: list[list[FileVersion]] = []
    left_bytes = 0
    for file in files:
        if not batches or len(batches[-1]) == FILES_A_CALL or file.size_bytes > left_bytes:
            batches.append([])
            left_bytes = BYTES_A_CALL
        batches[-1].append(file)
        left_bytes -= file.size_bytes
    return batches
