"""The end of the bulk channel that sends (`bulk` says what is spoken)."""

from __future__ import annotations

import asyncio
import hmac
import resource
import secrets
import socket as sockets
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing, suppress
from typing import Any

import structlog

from mesh.errors import MeshError
from mesh.wire.basics import Method, named
from mesh.wire.bulk import (
    ASKED,
    END,
    EPOCH,
    FAILED,
    IDLE_S,
    MAGIC,
    METHODS,
    PIECE,
    REQUEST_BYTES_MAX,
    SENT,
)
from mesh.wire.connection import Connection
from mesh.wire.messages import BulkReply, Piece
from mesh.wire.passport import TOKEN_BYTES

log = structlog.get_logger()

Handler = tuple[Method[Any, Piece], Callable[[Any], AsyncGenerator[Piece, None]]]
PushHandler = tuple[Method[Any, Any], Callable[[Any], None]]

CONNECTIONS_MAX = 1024
"""Who comes then is hung up on, and asks over gRPC."""

GREETING_S = 2.0
IDLE_MAX_S = 4 * IDLE_S
"""Callers close what they don't use, sooner than this."""

BACKLOG = 128
NO_PLACE_S = 0.1
"""Pause when a connection can't be taken, for want of descriptors."""


def bound(host: str, port: int) -> sockets.socket:
    """Return a socket that has a port of *host*, any free one for 0; OSError when it is taken.

    Who names a port may have it although connections of an earlier run linger there. Any free one
    is nobody else's: Linux gives one that may be used again to two, until one of them listens.
    """
    socket = sockets.socket(sockets.AF_INET6 if ":" in host else sockets.AF_INET)
    try:
        socket.setsockopt(sockets.SOL_SOCKET, sockets.SO_REUSEADDR, int(port > 0))
        socket.settimeout(0)
        socket.bind((host, port))
    except BaseException:
        socket.close()
        raise
    return socket


class BulkServer:
    """Sends blocks to the peers that know its token."""

    def __init__(
        self,
        handlers: Sequence[Handler],
        pushes: Sequence[PushHandler],
        epoch: Callable[[], int],
        token: bytes = b"",
    ) -> None:
        """Send what *handlers* yield to who shows *token*, or one that is drawn; take what is
        pushed, and say under which epoch."""
        paths = [method.path for method in METHODS]
        self._handlers = {paths.index(m.path): (m, c) for m, c in handlers if m.path in paths}
        self._pushes = {paths.index(m.path): (m, c) for m, c in pushes if m.path in paths}
        self._epoch = epoch
        files_max = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self._connections_max = min(CONNECTIONS_MAX, files_max // 4)
        self._token = token or secrets.token_bytes(TOKEN_BYTES)
        self._listener: sockets.socket | None = None
        self._pause: asyncio.TimerHandle | None = None
        self._accepted: set[sockets.socket] = set()
        """Whose task has not begun."""

        self._serving: set[asyncio.Task[None]] = set()
        self._sending: set[asyncio.Task[None]] = set()

    @property
    def reply(self) -> BulkReply:
        """Where it is, and the word that opens it; port 0 while it is nowhere."""
        if self._listener is None:
            return BulkReply(0, b"")
        return BulkReply(self._listener.getsockname()[1], self._token)

    async def listen(self, listener: sockets.socket) -> None:
        """Take connections on a socket that `bound` gave, which is closed with this server.

        OSError when somebody else listens on its port by now.
        """
        listener.listen(BACKLOG)
        self._listener = listener
        asyncio.get_running_loop().add_reader(listener, self._accept, listener)

    def stop_listening(self) -> None:
        """Take no more connections."""
        if self._pause is not None:
            self._pause.cancel()
        if self._listener is not None:
            asyncio.get_running_loop().remove_reader(self._listener)
            self._listener.close()
            self._listener = None

    async def aclose(self, *, grace_s: float) -> None:
        """Take no more connections, let what is being sent end for a while, and close."""
        self.stop_listening()
        if self._sending:
            await asyncio.wait(self._sending, timeout=grace_s)
        for task in self._serving:
            task.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)

    def _accept(self, listener: sockets.socket) -> None:
        # No task waits for the next one: a task that is cancelled just then loses it.
        loop = asyncio.get_running_loop()
        try:
            socket, _ = listener.accept()
        except BlockingIOError:
            return
        except OSError as error:
            log.warning("bulk channel", reason=error.strerror)
            loop.remove_reader(listener)
            self._pause = loop.call_later(
                NO_PLACE_S, loop.add_reader, listener, self._accept, listener
            )
            return
        if len(self._serving) >= self._connections_max:
            socket.close()
            return
        self._accepted.add(socket)
        task = loop.create_task(self._serve(socket))
        self._serving.add(task)
        task.add_done_callback(lambda task: self._over(task, socket))

    def _over(self, task: asyncio.Task[None], socket: sockets.socket) -> None:
        self._serving.discard(task)
        if socket in self._accepted:  # a task that is cancelled before it begins does nothing
            self._accepted.discard(socket)
            socket.close()

    async def _serve(self, socket: sockets.socket) -> None:
        """Answer one caller, one block after the other, until it hangs up."""
        self._accepted.discard(socket)
        with suppress(OSError, EOFError):  # a TimeoutError is an OSError
            connection = await Connection.on(socket)
            try:
                await self._converse(connection)
            finally:
                connection.close()

    async def _converse(self, connection: Connection) -> None:
        greeting = await connection.read(len(MAGIC) + TOKEN_BYTES, within_s=GREETING_S)
        if not hmac.compare_digest(greeting, MAGIC + self._token):
            return
        while True:
            head = await connection.read(ASKED.size, within_s=IDLE_MAX_S, take=self._taken)
            code, size_bytes = ASKED.unpack(head)
            if size_bytes > REQUEST_BYTES_MAX:
                return
            request = await connection.read(size_bytes)
            if code in self._handlers:
                await self._answer(connection, code, bytes(request))
            elif not self._take(code, request):
                return

    def _taken(self, data: memoryview) -> int:
        """Take the whole pushes that *data* begins with; return how many bytes they are.

        Nobody is woken for them: there are dozens for each block.
        """
        taken_bytes = 0
        while len(data) - taken_bytes >= ASKED.size:
            code, size_bytes = ASKED.unpack_from(data, taken_bytes)
            end = taken_bytes + ASKED.size + size_bytes
            if code not in self._pushes or end > len(data):
                break
            if not self._take(code, data[end - size_bytes : end]):
                break  # it is looked at once more by who waits, who hangs up
            taken_bytes = end
        return taken_bytes

    def _take(self, code: int, request: memoryview) -> bool:
        """Take what was pushed; False when that can't be done."""
        if code not in self._pushes:
            return False
        method, call = self._pushes[code]
        try:
            call(method.decode_request(bytes(request)))
        except Exception:
            log.exception("call failed", method=method.name)
            return False
        return True

    async def _answer(self, connection: Connection, code: int, request: bytes) -> None:
        method, call = self._handlers[code]
        try:
            asked = method.decode_request(request)
        except Exception as error:
            return await _send(connection, FAILED, 0, 0, repr(error).encode())
        task = asyncio.current_task()
        assert task is not None
        self._sending.add(task)
        try:
            async with aclosing(call(asked)) as pieces:
                while (piece := await self._next(method, pieces)) is not None:
                    if isinstance(piece, bytes):
                        return await _send(connection, FAILED, 0, 0, piece)
                    await _send(connection, PIECE, piece.number, piece.crc, piece.data)
            await _send(connection, END, 0, 0, EPOCH.pack(self._epoch()))
        finally:
            self._sending.discard(task)

    @staticmethod
    async def _next(
        method: Method[Any, Piece], pieces: AsyncGenerator[Piece, None]
    ) -> Piece | bytes | None:
        """Return the next piece, what ended them in words, or None after the last one."""
        try:
            return await anext(pieces, None)
        except MeshError as error:
            return named(error).encode()
        except Exception as error:
            log.exception("call failed", method=method.name)
            return repr(error).encode("utf-8", "backslashreplace")


async def _send(
    connection: Connection, kind: int, number: int, crc: int, data: bytes | memoryview
) -> None:
    """Send a frame, as few packets as that takes."""
    head = SENT.pack(kind, number, crc, len(data))
    await (connection.write(head, data) if data else connection.write(head))
