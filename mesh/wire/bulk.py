"""Blocks between hosts without HTTP/2: the same messages, and bytes straight from a socket.

gRPC takes what trickles in over a busy link in pieces of some KB, each with a thread to be
woken: a fifth of a busy machine's CPU (`docs/decisions/0012`). It stays what peers talk with:
it says where this channel is, and carries blocks where it can't be had.

    asks     MAGIC | token, once; then for each block: method (u8) | size (u32) | request
    tells    the same, for news: they are not answered
    sends    kind (u8) | number (u32) | crc32c (u32) | size (u32) | data
    kind     PIECE, which without data is a heartbeat; END, epoch (u64); FAILED, "Kind: text"

The port comes with membership, and the token stands for the passport that gRPC would be shown
(`wire/passport`). Who does not know the port asks over gRPC. Where peers have TLS there is no
such channel.
"""

from __future__ import annotations

import asyncio
import socket as sockets
import struct
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, TypeVar

import structlog

from mesh.blocks import KIB, PIECE_BYTES, piece_count
from mesh.clock import monotonic_s
from mesh.errors import MeshError, PeerUnavailable
from mesh.wire.basics import STALL_S, Method, error_named
from mesh.wire.codec import PEEK, SERVE
from mesh.wire.connection import Connection
from mesh.wire.hedged import Cuttable
from mesh.wire.messages import BlockRequest, BulkReply, Piece
from mesh.wire.swarm import NEWS, TAKE, TakeRequest

log = structlog.get_logger()

Q = TypeVar("Q")

METHODS: list[Method[Any, Any]] = [SERVE, PEEK, TAKE, NEWS]
"""By code. New ones go to the end; a code is never given again."""

MAGIC = b"mesh-bulk-1\n"
PIECE, END, FAILED = 0, 1, 2
ASKED = struct.Struct(">BI")
SENT = struct.Struct(">BIII")
EPOCH = struct.Struct(">Q")
REQUEST_BYTES_MAX = 64 * KIB

CONNECT_TIMEOUT_S = 1.0
IDLE_MAX = 8
"""Connections kept for each peer; a reader has two blocks under way from one."""

IDLE_S = 15.0
ASKED_AGAIN_S = 10.0
"""When a peer that has no such channel, or one that could not be reached, is asked again: it
may have begun anew, and be of the next release."""


def asked(code: int, request: bytes) -> bytes:
    """Return a question as it is sent."""
    return ASKED.pack(code, len(request)) + request


@dataclass(slots=True)
class _Idle:
    connection: Connection
    since_s: float


class Lane:
    """The bulk channel to one peer, and the connections that wait to be used again."""

    def __init__(self, address: str, reply: BulkReply) -> None:
        """*address* is the one that gRPC uses: the channel is at another port of that host."""
        self.address = address
        self._host = address.rpartition(":")[0].strip("[]")
        self._reply = reply
        self._idle: deque[_Idle] = deque()
        self.is_closed = False

    async def connection(self) -> Connection:
        """Return one that nobody uses; OSError or TimeoutError when there is none to be had."""
        while self._idle:
            connection = self._idle.pop().connection
            if connection.is_usable():
                return connection
            connection.close()
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            connection = await self._connected()
        try:
            await connection.write(MAGIC + self._reply.token)
        except BaseException:
            connection.close()
            raise
        return connection

    async def _connected(self) -> Connection:
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(self._host, self._reply.port, type=sockets.SOCK_STREAM)
        family, kind, protocol, _, where = found[0]
        socket = sockets.socket(family, kind, protocol)
        socket.settimeout(0)
        try:
            await loop.sock_connect(socket, where)
        except BaseException:
            socket.close()
            raise
        return await Connection.on(socket)

    def keep(self, connection: Connection) -> None:
        """Take a connection back on which nothing more is to come."""
        if self.is_closed or len(self._idle) >= IDLE_MAX:
            connection.close()
        else:
            self._idle.append(_Idle(connection, monotonic_s()))

    def sweep(self) -> None:
        """Close what has not been used for a while."""
        before_s = monotonic_s() - IDLE_S
        while self._idle and self._idle[0].since_s < before_s:
            self._idle.popleft().connection.end()

    def close(self) -> None:
        self.is_closed = True
        while self._idle:
            self._idle.pop().connection.end()


class Received(Cuttable):
    """The pieces of one block as they come over a lane; over gRPC if it can't be had."""

    def __init__(
        self,
        lanes: Lanes,
        address: str,
        method: Method[Any, Piece],
        request: BlockRequest | TakeRequest,
        otherwise: Callable[[], AsyncGenerator[Piece, None]],
    ) -> None:
        self._lanes = lanes
        self._address = address
        self._asked = method.encode_request(request)
        self._code = METHODS.index(method)
        self._otherwise = otherwise
        self._left = piece_count(request.file.length_bytes(request.index))
        self._is_on_lane = False
        self._pieces = self._received()
        self.on_sign: Callable[[], None] | None = None
        """Told of each part of a piece that comes: over a slow link a piece takes a while."""

    def __aiter__(self) -> AsyncIterator[Piece]:
        return self

    async def __anext__(self) -> Piece:
        return await anext(self._pieces)

    @property
    def is_worth_cutting(self) -> bool:
        """Whether hanging up saves who sends some work; gRPC leaks when that is done to it."""
        return self._is_on_lane and self._left > 0

    async def aclose(self) -> None:
        """Hang up. Nobody may be waiting for a piece."""
        await self._pieces.aclose()

    async def _received(self) -> AsyncGenerator[Piece, None]:
        lane = await self._lanes.find(self._address)
        begun = None if lane is None else await self._begun(lane)
        pieces = self._otherwise() if begun is None else self._frames(*begun)
        async with aclosing(pieces):
            async for piece in pieces:
                yield piece

    async def _begun(self, lane: Lane) -> tuple[Lane, Connection, memoryview] | None:
        """Ask, and return the head of what is answered; None where the lane can't be had."""
        connection = None
        try:
            connection = await lane.connection()
            connection.on_sign = self.on_sign
            self._is_on_lane = True
            await connection.write(asked(self._code, self._asked))
            return lane, connection, await connection.read(SENT.size)
        except BaseException as error:
            if connection is not None:
                connection.close()
            if isinstance(error, TimeoutError) and self._is_on_lane:
                raise PeerUnavailable(self._address, f"silent for {STALL_S} s") from error
            if not isinstance(error, OSError | EOFError):
                raise
            self._is_on_lane = False
            self._lanes.failed(lane, error)
            return None

    async def _frames(
        self, lane: Lane, connection: Connection, head: memoryview
    ) -> AsyncGenerator[Piece, None]:
        """Yield pieces until the end; the connection is kept only if that is reached."""
        is_over = False
        try:
            while True:
                kind, number, crc, size_bytes = SENT.unpack(head)
                if size_bytes > PIECE_BYTES:
                    raise PeerUnavailable(self._address, f"sends a piece of {size_bytes} bytes")
                data = await connection.read(size_bytes)
                if kind != PIECE:
                    is_over = True
                    break
                self._left -= size_bytes > 0
                yield Piece(number, crc, data)
                head = await connection.read(SENT.size)
        except TimeoutError as error:
            raise PeerUnavailable(self._address, f"silent for {STALL_S} s") from error
        except (OSError, EOFError) as error:
            raise PeerUnavailable(self._address, f"bulk channel: {error}") from error
        finally:
            connection.on_sign = None
            if is_over:
                lane.keep(connection)
            else:
                connection.close()
        if kind == FAILED:
            raise error_named(self._address, str(data, "utf-8", "replace"))
        if len(data) == EPOCH.size:
            self._lanes.note_epoch(self._address, *EPOCH.unpack(data))


class Lanes:
    """The bulk channels of other peers, by address."""

    def __init__(
        self,
        ask: Callable[[str], Awaitable[BulkReply]],
        note_epoch: Callable[[str, int], None],
        *,
        known: Callable[[str], BulkReply | None] = lambda address: None,
    ) -> None:
        """*ask* asks a peer for its channel, unless *known* says where it is; *note_epoch* is told
        under which it answered."""
        self._ask = ask
        self._known = known
        self.note_epoch = note_epoch
        self._lanes: dict[str, Lane] = {}
        self._not_before_s: dict[str, float] = {}
        self._asking: dict[str, asyncio.Task[Lane | None]] = {}
        self._sweeping: asyncio.TimerHandle | None = None

    async def find(self, address: str) -> Lane | None:
        """Return the lane to a peer; None if it has none, or does not say."""
        lane = self._lanes.get(address)
        if lane is not None or monotonic_s() < self._not_before_s.get(address, 0.0):
            return lane
        if (known := self._known(address)) is not None:
            return self._made(address, known)
        asking = self._asking.get(address)
        if asking is None:
            asking = asyncio.get_running_loop().create_task(self._look(address))
            self._asking[address] = asking
        return await asyncio.shield(asking)  # others wait for it too

    async def _look(self, address: str) -> Lane | None:
        try:
            reply = await self._ask(address)
        except MeshError:  # it is away, or of a release that has no such channel
            reply = BulkReply(0, b"")
        finally:
            del self._asking[address]
        if not reply.port:
            self._not_before_s[address] = monotonic_s() + ASKED_AGAIN_S
            return None
        return self._made(address, reply)

    def _made(self, address: str, reply: BulkReply) -> Lane:
        lane = self._lanes[address] = Lane(address, reply)
        self._sweep_later()
        return lane

    def pieces(
        self,
        address: str,
        method: Method[Any, Piece],
        request: BlockRequest | TakeRequest,
        otherwise: Callable[[], AsyncGenerator[Piece, None]],
    ) -> Received:
        """Return the pieces of a block over a lane, or as *otherwise* says."""
        return Received(self, address, method, request, otherwise)

    async def push(self, address: str, method: Method[Q, Any], values: AsyncIterator[Q]) -> bool:
        """Send what *values* yields, until it ends; False, before anything was taken of it, where
        there is no lane. Raises `PeerUnavailable`."""
        lane = await self.find(address)
        if lane is None:
            return False
        try:
            connection = await lane.connection()
        except OSError as error:  # a TimeoutError is one
            self.failed(lane, error)
            return False
        is_over, code = False, METHODS.index(method)
        try:
            async for value in values:
                if not connection.is_usable():
                    raise PeerUnavailable(address, "bulk channel: hung up")
                await connection.write(asked(code, method.encode_request(value)))
            is_over = True
        except OSError as error:
            raise PeerUnavailable(address, f"bulk channel: {error}") from error
        finally:
            if is_over:
                lane.keep(connection)
            else:
                connection.close()
        return True

    def failed(self, lane: Lane, failure: Exception) -> None:
        """Note that a lane could not be used: the peer has begun anew, is away, or a firewall
        stands before it. gRPC will say which."""
        if self._lanes.get(lane.address) is lane:
            del self._lanes[lane.address]
            lane.close()
            self._not_before_s[lane.address] = monotonic_s() + ASKED_AGAIN_S
            log.info("no bulk channel", peer=lane.address, reason=str(failure) or "no answer")

    def _sweep_later(self) -> None:
        if self._sweeping is None and self._lanes:
            loop = asyncio.get_running_loop()
            self._sweeping = loop.call_later(IDLE_S / 3, self._sweep)

    def _sweep(self) -> None:
        self._sweeping = None
        for lane in self._lanes.values():
            lane.sweep()
        self._sweep_later()

    async def aclose(self) -> None:
        if self._sweeping is not None:
            self._sweeping.cancel()
        for task in list(self._asking.values()):
            task.cancel()
        await asyncio.gather(*self._asking.values(), return_exceptions=True)
        for lane in self._lanes.values():
            lane.close()
        self._lanes.clear()
