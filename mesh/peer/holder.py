"""Files that this node holds for writers elsewhere, from their first bytes on."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from crc32c import crc32c

from mesh.blocks import PIECE_BYTES
from mesh.clock import Clock
from mesh.errors import BlockCorrupt, NotFound, StoreFull, Unavailable
from mesh.membership.view import State
from mesh.peer.neighbors import RingNeighbors
from mesh.store.drafts import Digests, Drafts, make_draft
from mesh.store.extents import write_all
from mesh.store.store import BlockStore
from mesh.understore.table import MountTable
from mesh.wire.messages import Nothing
from mesh.wire.staged import PULL, HoldRequest, PullRequest, StagedFile

if TYPE_CHECKING:
    from mesh.peer.stager import Stager

T = TypeVar("T")

INCOMING_MAX = 256
INCOMING_IDLE_S = 600.0
"""What nobody has spoken of for so long is given up; if it is after all, it is pulled anew."""


@dataclass(slots=True)
class _Incoming:
    """A draft of another host on its way here."""

    fd: int
    draft: str
    asker: str
    digests: Digests
    heard_s: float
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    is_ending: bool = False
    """Whether it is here whole, and being kept."""


class Holder:
    """Drafts of other hosts on their way here."""

    def __init__(
        self,
        stager: Stager,
        store: BlockStore,
        drafts: Drafts,
        neighbors: RingNeighbors,
        table: MountTable,
        *,
        directory: Path,
        clock: Clock,
    ) -> None:
        """Give to *stager* what is here whole."""
        self._stager = stager
        self._store = store
        self._drafts = drafts
        self._neighbors = neighbors
        self._table = table
        self._directory = directory
        self._clock = clock
        self._incoming: dict[str, _Incoming] = {}
        self._beginning = asyncio.Lock()
        self._unended: set[asyncio.Task[Any]] = set()

    @property
    def incoming_bytes(self) -> int:
        return sum(each.digests.size_bytes for each in self._incoming.values())

    async def hold(self, request: HoldRequest) -> Nothing:
        """Bring so much of a draft of another peer here; all of it is durable on return.

        Raises `StoreFull` when there is no room for it.
        """
        incoming = self._incoming.get(request.draft)
        here_bytes = 0 if incoming is None else incoming.digests.size_bytes
        if not self._stager.has_room(max(0, request.stable_bytes - here_bytes)):
            raise StoreFull("no room for files of others")
        if incoming is None:
            incoming = await self._begun(request)
        incoming.heard_s = self._clock()
        try:
            async with incoming.turn:
                if self._incoming.get(request.draft) is not incoming or incoming.is_ending:
                    raise Unavailable(f"draft {request.draft} was given up meanwhile")
                if request.is_anew:
                    await asyncio.to_thread(os.ftruncate, incoming.fd, 0)
                    incoming.digests = self._digests(request)
                await self._pull(incoming, request)
                if request.is_final:
                    incoming.is_ending = True
                    await self._to_its_end(self._keep(incoming, request.file))
        except BaseException:
            if not incoming.is_ending:
                await self._drop_incoming(incoming)
            raise
        return Nothing()

    async def _keep(self, incoming: _Incoming, file: StagedFile) -> None:
        """Keep what is here whole: a file that is kept and not known would stay for ever."""
        try:
            path = self._drafts.path(incoming.draft)
            file = replace(file, digest=incoming.digests.summary())
            await self._stager.keep(file, path, incoming.digests)
            self._stager.note(file)
        finally:
            await self._drop_incoming(incoming)

    async def _begun(self, request: HoldRequest) -> _Incoming:
        """Begin, to the end although the asker gives up: a lock that nobody has stays."""
        return await self._to_its_end(self._begin(request))

    async def _to_its_end(self, work: Coroutine[Any, Any, T]) -> T:
        """Do something wholly, although who asked for it gives up meanwhile."""
        task = asyncio.get_running_loop().create_task(work)
        self._unended.add(task)
        task.add_done_callback(self._unended.discard)
        task.add_done_callback(lambda task: task.cancelled() or task.exception())
        return await asyncio.shield(task)

    async def _begin(self, request: HoldRequest) -> _Incoming:
        async with self._beginning:  # who asks twice at once would wait for its own lock
            incoming = self._incoming.get(request.draft)
            if incoming is not None:
                return incoming
            if len(self._incoming) >= INCOMING_MAX:
                raise StoreFull(f"{INCOMING_MAX} files are on their way here already")
            try:
                fd = await asyncio.to_thread(make_draft, self._directory, request.draft)
            except OSError as error:
                raise StoreFull(f"store.directory: {error.strerror}") from error
            digests = self._digests(request)
            incoming = _Incoming(fd, request.draft, request.asker, digests, self._clock())
            self._incoming[request.draft] = incoming
            return incoming

    async def give_up_idle(self) -> None:
        """Let go of what writers began to send and will not end: they died, or wait for ever."""
        now_s = self._clock()
        for incoming in list(self._incoming.values()):
            asker = self._neighbors.view.find(incoming.asker)
            is_gone = asker is None or asker.state not in (State.ACTIVE, State.SUSPECT)
            is_idle = now_s - incoming.heard_s > INCOMING_IDLE_S
            if (is_gone or is_idle) and not (incoming.turn.locked() or incoming.is_ending):
                await self._drop_incoming(incoming)

    def _digests(self, request: HoldRequest) -> Digests:
        return Digests(self._table.place(request.file.path).settings.block_bytes)

    async def _pull(self, incoming: _Incoming, request: HoldRequest) -> None:
        digests = incoming.digests
        if digests.size_bytes >= request.stable_bytes:
            return
        wanted = PullRequest(
            incoming.draft, digests.size_bytes // PIECE_BYTES, request.stable_bytes
        )
        async for piece in self._neighbors.pieces(request.asker, PULL, wanted):
            if not piece.data:
                continue
            if crc32c(piece.data) != piece.crc:
                raise BlockCorrupt(f"piece {piece.number} of draft {incoming.draft}")
            try:
                await asyncio.to_thread(_put, incoming, bytes(piece.data))
            except OSError as error:
                raise StoreFull(f"drafts: {error.strerror}") from error
        if digests.size_bytes != request.stable_bytes:
            raise Unavailable(f"draft {incoming.draft} ended too early")

    async def _drop_incoming(self, incoming: _Incoming) -> None:
        if self._incoming.get(incoming.draft) is incoming:
            del self._incoming[incoming.draft]
            os.close(incoming.fd)
            with suppress(NotFound):
                await self._drafts.remove(incoming.draft)


def _put(incoming: _Incoming, data: bytes) -> None:
    write_all(incoming.fd, data, incoming.digests.size_bytes)
    incoming.digests.add(data)
