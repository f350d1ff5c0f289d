"""One TCP connection of the bulk channel: a socket, and how to read of it all that is expected.

    head, request     →  a small buffer, that may hold several of them
    bytes of a piece  →  straight to where they are wanted

The loop is told of a socket once, not for each wait, and one timer serves for all of them:
with 32 hosts on two cores that was a fifth of what a peer did (`docs/decisions/0012`).
"""

from __future__ import annotations

import asyncio
import socket as sockets
from collections.abc import Callable
from typing import cast

from mesh.blocks import KIB
from mesh.clock import monotonic_s
from mesh.wire.basics import STALL_S

WAKE_BYTES = 256 * KIB
"""A socket is looked at again once so much has come, or all that is expected."""

UNSENT_BYTES = 512 * KIB
"""What the kernel may keep of a stream that can't be sent yet: who does not want the rest
any more hangs up, and the less of it is under way the better."""

LOST_S = 10.0
"""A connection on which nothing is acknowledged for so long is closed by the kernel."""

SEND_TIMEOUT_S = 60.0
"""Of one piece; a link of 1 MB/s that ten streams share takes 10 s."""

SMALL_BYTES = 8 * KIB
"""More than a head and the bytes of a request or news."""

LAST_LOOK_S = 0.05
"""Before silence is one: what has come is too little to wake up for, or this process was late."""

_NOTSENT_LOWAT = 25
"""TCP_NOTSENT_LOWAT of tcp(7); the socket module names it from Python 3.12 on."""


def prepared(socket: sockets.socket) -> sockets.socket:
    """Return a connected socket as both ends want it."""
    socket.settimeout(0)
    socket.setsockopt(sockets.IPPROTO_TCP, sockets.TCP_NODELAY, 1)
    socket.setsockopt(sockets.IPPROTO_TCP, _NOTSENT_LOWAT, UNSENT_BYTES)
    socket.setsockopt(sockets.IPPROTO_TCP, sockets.TCP_USER_TIMEOUT, int(LOST_S * 1000))
    return socket


class Connection(asyncio.BufferedProtocol):
    """One reads of it and one writes, each with a deadline."""

    def __init__(self, socket: sockets.socket) -> None:
        """Use `on`."""
        self.on_sign: Callable[[], None] | None = None
        """Told whenever something has come."""

        self._loop = asyncio.get_running_loop()
        self._socket = prepared(socket)
        self._transport: asyncio.Transport | None = None
        self._ended: Exception | None = None
        """Why no more will come."""

        self._is_lost = False
        self._small = bytearray(SMALL_BYTES)
        self._start = self._end = 0
        """What of it has come and was not read."""

        self._into = memoryview(b"")
        self._have_bytes = 0
        self._needed_bytes = 0
        self._waiter: asyncio.Future[None] | None = None
        self._take: Callable[[memoryview], int] | None = None
        self._writer: asyncio.Future[None] | None = None
        self._is_full = self._is_paused = self._is_last_look = False
        self._within_s = self._due_s = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._wake_bytes = 1

    @classmethod
    async def on(cls, socket: sockets.socket) -> Connection:
        """Return the connection over a socket, which is closed with it."""
        try:
            connection = cls(socket)
        except BaseException:
            socket.close()
            raise
        made = connection._loop.create_task(connection._made())
        try:
            await asyncio.shield(made)
        except asyncio.CancelledError:
            # From its first step on the socket is the transport's.
            made.add_done_callback(lambda _: connection.close())
            raise
        if connection._transport is None:
            raise connection._ended or ConnectionError("no connection")
        return connection

    async def _made(self) -> None:
        try:
            await self._loop.create_connection(lambda: self, sock=self._socket)
        except OSError as error:
            self._ended = error
            if self._transport is None:
                self._socket.close()

    # Reading

    async def read(
        self,
        size_bytes: int,
        *,
        within_s: float | None = None,
        take: Callable[[memoryview], int] | None = None,
    ) -> memoryview:
        """Return exactly so many bytes; `EOFError` when the other end has hung up,
        `TimeoutError` when for *within_s*, or STALL_S, nothing has come.

        *take* is shown first what comes meanwhile, and says how many bytes of it it has taken.
        """
        here_bytes = self._end - self._start
        if size_bytes <= SMALL_BYTES:
            if here_bytes < size_bytes:
                self._needed_bytes, self._take = size_bytes, take
                self._wake_at(1)
                await self._wait(within_s or STALL_S)
            data = bytes(memoryview(self._small)[self._start : self._start + size_bytes])
            self._drop(size_bytes)
            return memoryview(data)
        into = memoryview(bytearray(size_bytes))
        into[:here_bytes] = memoryview(self._small)[self._start : self._end]
        self._drop(here_bytes)
        self._into, self._have_bytes = into, here_bytes
        self._wake_at(min(size_bytes - here_bytes, WAKE_BYTES))
        try:
            await self._wait(within_s or STALL_S)
        finally:
            self._into = memoryview(b"")
        return into

    def _drop(self, size_bytes: int) -> None:
        self._start += size_bytes
        if self._start == self._end:
            self._start = self._end = 0
        if self._is_paused and self._transport is not None:
            self._is_paused = False
            self._transport.resume_reading()

    async def _wait(self, within_s: float) -> None:
        if self._ended is not None:
            raise self._ended
        self._waiter = self._loop.create_future()
        self._within_s, self._due_s = within_s, monotonic_s() + within_s
        self._is_last_look = False
        if self._timer is not None and self._timer.when() > self._loop.time() + within_s:
            self._timer.cancel()
            self._timer = None
        if self._timer is None:
            self._timer = self._loop.call_later(within_s, self._look)
        try:
            await self._waiter
        finally:
            self._waiter = None
            self._needed_bytes, self._take = 0, None

    def _look(self) -> None:
        """See whether who waits has waited for too long."""
        self._timer = None
        if self._waiter is None or self._waiter.done():
            return
        left_s = self._due_s - monotonic_s()
        if left_s <= 0 and self._is_last_look:
            self._waiter.set_exception(TimeoutError())
            return
        if left_s <= 0:
            self._is_last_look = True
            self._wake_at(1)
            left_s = LAST_LOOK_S
        self._timer = self._loop.call_later(left_s, self._look)

    def get_buffer(self, sizehint: int) -> memoryview:
        if self._into:
            return self._into[self._have_bytes :]
        if self._start and self._end == SMALL_BYTES:
            left = self._small[self._start : self._end]
            self._small[: len(left)] = left
            self._start, self._end = 0, len(left)
        return memoryview(self._small)[self._end :]

    def buffer_updated(self, nbytes: int) -> None:
        self._due_s = monotonic_s() + self._within_s
        self._is_last_look = False
        if self.on_sign is not None:
            self.on_sign()
        if self._into:
            self._have_bytes += nbytes
            left_bytes = len(self._into) - self._have_bytes
            if left_bytes:
                self._wake_at(min(left_bytes, WAKE_BYTES))
            else:
                self._into = memoryview(b"")
                self._woken()
            return
        self._end += nbytes
        if self._take is not None:
            self._drop(self._take(memoryview(self._small)[self._start : self._end]))
        if self._needed_bytes and self._end - self._start >= self._needed_bytes:
            self._woken()
        if self._end - self._start == SMALL_BYTES and self._transport is not None:
            self._is_paused = True
            self._transport.pause_reading()

    def _woken(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _wake_at(self, size_bytes: int) -> None:
        if size_bytes != self._wake_bytes and not self._is_lost:
            self._socket.setsockopt(sockets.SOL_SOCKET, sockets.SO_RCVLOWAT, size_bytes)
            self._wake_bytes = size_bytes

    # Writing

    async def write(self, *data: bytes | memoryview) -> None:
        """Send it all; `TimeoutError` when that takes longer than any link should."""
        if self._is_lost or self._transport is None:
            raise ConnectionResetError("hung up")
        for each in data:
            self._transport.write(each)
        if self._is_full:
            self._writer = self._loop.create_future()
            try:
                async with asyncio.timeout(SEND_TIMEOUT_S):
                    await self._writer
            finally:
                self._writer = None

    def pause_writing(self) -> None:
        self._is_full = True

    def resume_writing(self) -> None:
        self._is_full = False
        if self._writer is not None and not self._writer.done():
            self._writer.set_result(None)

    # Its life

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass of it
        self._transport.set_write_buffer_limits(high=SMALL_BYTES, low=0)

    def eof_received(self) -> bool:
        """Go on sending: who has asked for all it wants may say that it asks no more."""
        self._end_with(EOFError("hung up"))
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        self._is_lost = True
        self._end_with(exc if isinstance(exc, OSError) else EOFError("hung up"))
        if self._writer is not None and not self._writer.done():
            self._writer.set_exception(ConnectionResetError("hung up"))

    def _end_with(self, error: Exception) -> None:
        self._ended = error
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(error)

    def is_usable(self) -> bool:
        """Whether the other end neither has hung up nor says what nobody asked."""
        if self._ended is not None or self._transport is None or self._end > self._start:
            return False
        try:
            self._socket.recv(1, sockets.MSG_PEEK)
        except BlockingIOError:
            return not self._transport.is_closing()
        except OSError:
            return False
        return False

    def close(self) -> None:
        """Hang up, whatever is still to be sent."""
        if self._transport is not None:
            self._transport.abort()

    def end(self) -> None:
        """Hang up when all has been sent."""
        if self._transport is not None:
            self._transport.close()
