"""One load for each block at a time, however many wait for it.

A load runs in a task of its own, so a caller that is cancelled (its FUSE request
was interrupted) harms neither the load nor the others. Every caller waits on a
future of its own: shielding one shared task would leave a callback behind for
each cancelled caller, and a popular model file has thousands.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable

import structlog

from mesh.blocks import BlockKey, FileVersion, piece_count, piece_order
from mesh.errors import MeshError, Unavailable
from mesh.wire.messages import Piece

log = structlog.get_logger()

HEARTBEAT = Piece(0, 0, b"")


class Landing:
    """A block on its way: which pieces have landed, and who waits for more."""

    def __init__(self, file: FileVersion, index: int, first_piece: int) -> None:
        self.file = file
        self.index = index
        self.first_piece = first_piece
        self.origin = ""
        """Where the bytes come from (`metrics.SOURCES`), once that is known."""

        self.inode = 0
        """Of the extent file that has what landed; 0 while or if it is not kept."""

        self.is_relaying = False
        """Whether it waits for another peer to fill the block."""

        self.is_new = False
        """Whether no other peer is known to have the block, so that none is asked."""

        self.is_done = False
        self.error: Exception | None = None
        self._pieces: dict[int, Piece] = {}
        self._waiting: list[tuple[set[int], asyncio.Future[None]]] = []
        self._ending: list[asyncio.Future[None]] = []

    @property
    def missing(self) -> list[int]:
        """The pieces that have not landed, the wanted one first."""
        count = piece_count(self.file.length_bytes(self.index))
        order = piece_order(count, first=self.first_piece % count)
        return [number for number in order if number not in self._pieces]

    def landed(self) -> list[Piece]:
        """Return the pieces that are here."""
        return list(self._pieces.values())

    def land(self, piece: Piece, inode: int) -> None:
        """Note that a piece is here and can be read."""
        self._pieces[piece.number] = piece
        self.inode = inode
        still: list[tuple[set[int], asyncio.Future[None]]] = []
        for wanted, waiter in self._waiting:
            wanted.discard(piece.number)
            if wanted:
                still.append((wanted, waiter))
            elif not waiter.done():
                waiter.set_result(None)
        self._waiting = still

    def end(self, error: Exception | None) -> None:
        """Note that no more pieces come, because all are here or because of *error*."""
        self.is_done = error is None
        self.error = error
        for waiter in [*(waiter for _, waiter in self._waiting), *self._ending]:
            if waiter.done():
                continue
            if error is None:
                waiter.set_result(None)
            else:
                waiter.set_exception(error)
        self._waiting, self._ending = [], []

    async def wait(self, numbers: Iterable[int]) -> None:
        """Wait until these pieces have landed; raises what ended the load before."""
        wanted = {number for number in numbers if number not in self._pieces}
        if wanted and not self.is_done:
            if self.error is not None:
                raise self.error
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append((wanted, waiter))
            await waiter

    async def wait_end(self) -> None:
        """Wait until the block is whole and recorded; raises what prevented it."""
        if self.error is not None:
            raise self.error
        if not self.is_done:
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._ending.append(waiter)
            await waiter

    async def pieces(self, first_piece: int, *, beat_s: float) -> AsyncIterator[Piece]:
        """Yield all pieces, *first_piece* first, and a heartbeat while there is none."""
        count = piece_count(self.file.length_bytes(self.index))
        for number in piece_order(count, first=first_piece % count):
            while number not in self._pieces:
                try:
                    async with asyncio.timeout(beat_s):
                        await self.wait((number,))
                except TimeoutError:
                    yield HEARTBEAT
            yield self._pieces[number]


class Flights:
    """The loads under way of one kind; their tasks belong to *tasks*."""

    def __init__(
        self, tasks: asyncio.TaskGroup, ended: Callable[[Landing], None] = lambda landing: None
    ) -> None:
        """Have *ended* told of every load that has ended, whole or not."""
        self._tasks = tasks
        self._ended = ended
        self._landings: dict[BlockKey, Landing] = {}

    def __len__(self) -> int:
        return len(self._landings)

    def under_way(self, key: BlockKey) -> Landing | None:
        """Return the load of a block that is under way, or None."""
        return self._landings.get(key)

    def all(self) -> Iterable[Landing]:
        """Return the loads that are under way."""
        return self._landings.values()

    def board(
        self,
        file: FileVersion,
        index: int,
        load: Callable[[Landing], Awaitable[None]],
        *,
        first_piece: int = 0,
    ) -> Landing:
        """Return the load of that block that is under way, or begin one.

        `Unavailable` while this peer stops.
        """
        key = file.key(index)
        landing = self._landings.get(key)
        if landing is None:
            landing = Landing(file, index, first_piece)
            flight = self._fly(key, landing, load)
            try:
                self._tasks.create_task(flight, name=f"load {key}")
            except RuntimeError as error:  # the tasks are being ended
                flight.close()
                raise Unavailable(f"no load of {key} begins: the peer stops") from error
            self._landings[key] = landing
        return landing

    async def _fly(
        self, key: BlockKey, landing: Landing, load: Callable[[Landing], Awaitable[None]]
    ) -> None:
        error: Exception | None = Unavailable(f"load of {key} was ended: the peer stops")
        try:
            await load(landing)
            error = None
        except Exception as failure:  # every waiter gets it; a bug of ours ends no peer
            if not isinstance(failure, MeshError):
                log.exception("load failed", block=str(key))
            error = failure
        finally:
            del self._landings[key]
            landing.end(error)
            self._ended(landing)
