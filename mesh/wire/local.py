"""Calls between the processes of one host: the same messages without HTTP/2.

A gRPC call costs both sides about 0.6 ms of CPU in Python, and a mount makes one
for each look-up and each block. This carries the very same encoded messages in
frames over a Unix socket for about a tenth of it; `docs/decisions/0002` has the
figures.

    frame    size of the payload (u32) | number of the call (u32) | code (u8) | payload
    code     to the server: which method, or PING
             from the server: DONE, FAILED ("Kind: text") or PONG
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket as sockets
import struct
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, TypeVar, cast

import structlog

from mesh.blocks import MIB
from mesh.errors import MeshError, PeerUnavailable
from mesh.wire.basics import Method, error_named, named
from mesh.wire.catalog import LIST, STAT, WATCH
from mesh.wire.codec import FETCH, GATHER, REPORT
from mesh.wire.effort import cpu_s
from mesh.wire.writes import ALTER, GROW, PUBLISH, RETIRE

log = structlog.get_logger()

Q = TypeVar("Q")
A = TypeVar("A")
Handler = tuple[Method[Any, Any], Callable[[Any], Awaitable[Any]]]

METHODS: list[Method[Any, Any] | None] = [
    *(FETCH, STAT, None, REPORT, WATCH, GATHER, LIST),
    *(GROW, PUBLISH, RETIRE, ALTER),
]
"""By code. New ones go to the end; a code is never given again, so that a mount of an older
release is hung up on, and does not take an answer for an empty directory."""

_WATCH = METHODS.index(WATCH)
PING = 255
DONE, FAILED, PONG = 0, 1, 2
_HEAD = struct.Struct(">IIB")
FRAME_BYTES_MAX = 4 * MIB
CALLS_MAX = 4096
"""Under way at once on one connection; a mount has at most 64 requests of the
kernel and 16 blocks to read ahead for each open file."""

PING_EVERY_S = 0.2
SILENT_S = 0.4
"""A peer that is waited for and has not even answered a ping for so long is stopped."""

LOOK_EVERY_S = 0.1
"""At one that is silent already: to see whether it is starved takes two looks."""

IDLE_PING_EVERY_S = 1.0
IDLE_SILENT_S = 2.5
"""The same while nobody waits but for news of what has changed, that is nearly always."""

STARVED_PART = 0.5
STARVED_S_MAX = 3.0
"""Time in which the peer ran, or was ready to and had no CPU, for such a part of it, is no
silence, up to so much of it: who goes round a peer that is starved takes more CPU from it."""

SILENT = "silent"
"""The last word of the reason why it can't be asked then."""


def mount_socket(socket: str) -> str:
    """Return the socket for mounts that a peer has beside the one for people."""
    return f"{socket}.mount"


@contextlib.contextmanager
def nobody_elses() -> Iterator[None]:
    """Have sockets made that this user alone may use.

    The mask is that of the whole process: wait for nothing meanwhile.
    """
    mask = os.umask(0o177)
    try:
        yield
    finally:
        os.umask(mask)


class _Frames(asyncio.Protocol):
    """Cuts the stream into frames."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass of it

    def data_received(self, data: bytes) -> None:
        buffer = self._buffer
        buffer += data
        position = 0
        while len(buffer) - position >= _HEAD.size:
            size, number, code = _HEAD.unpack_from(buffer, position)
            if size > FRAME_BYTES_MAX:
                self.abort()
                return
            start = position + _HEAD.size
            if len(buffer) < start + size:
                break
            self.frame(number, code, bytes(buffer[start : start + size]))
            position = start + size
        del buffer[:position]

    def frame(self, number: int, code: int, payload: bytes) -> None:
        raise AssertionError("each side has its own")

    def send(self, number: int, code: int, payload: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(_HEAD.pack(len(payload), number, code) + payload)

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()


class _ServerSide(_Frames):
    def __init__(self, handlers: dict[int, Handler], tasks: set[asyncio.Task[None]]) -> None:
        super().__init__()
        self._handlers = handlers
        self._tasks = tasks
        self._under_way = 0

    def frame(self, number: int, code: int, payload: bytes) -> None:
        if code == PING:
            self.send(number, PONG, b"")
        elif code not in self._handlers or self._under_way >= CALLS_MAX:
            self.abort()
        else:
            self._under_way += 1
            task = asyncio.get_running_loop().create_task(self._answer(number, code, payload))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _answer(self, number: int, code: int, payload: bytes) -> None:
        method, call = self._handlers[code]
        try:
            answer = method.encode_reply(await call(method.decode_request(payload)))
        except MeshError as error:
            self.send(number, FAILED, named(error).encode())
        except Exception as error:
            log.exception("call failed", method=method.name)
            self.send(number, FAILED, repr(error).encode("utf-8", "backslashreplace"))
        else:
            self.send(number, DONE, answer)
        finally:
            self._under_way -= 1


class LocalServer:
    """Answers the mounts of this host; what it runs for them ends with it."""

    def __init__(self, handlers: list[Handler]) -> None:
        by_path = {method.path: (method, call) for method, call in handlers}
        self._handlers = {
            code: by_path[method.path]
            for code, method in enumerate(METHODS)
            if method is not None and method.path in by_path
        }
        self._tasks: set[asyncio.Task[None]] = set()
        self._sides: list[_ServerSide] = []
        self._server: asyncio.AbstractServer | None = None

    async def listen(self, socket: str) -> None:
        side = sockets.socket(sockets.AF_UNIX, sockets.SOCK_STREAM)
        with nobody_elses():
            side.bind(socket)
        self._server = await asyncio.get_running_loop().create_unix_server(self._side, sock=side)

    def _side(self) -> _ServerSide:
        self._sides = [side for side in self._sides if not _is_closed(side)]
        self._sides.append(_ServerSide(self._handlers, self._tasks))
        return self._sides[-1]

    async def aclose(self, *, grace_s: float) -> None:
        """Take no more calls, let those under way end for a while, and close."""
        if self._server is not None:
            self._server.close()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=grace_s)
        for task in list(self._tasks):
            task.cancel()
        for side in self._sides:
            side.abort()


def _is_closed(side: _ServerSide) -> bool:
    return side._transport is not None and side._transport.is_closing()


class _ClientSide(_Frames):
    def __init__(self, peer: str) -> None:
        super().__init__()
        self._peer = peer
        self._waiting: dict[int, asyncio.Future[bytes]] = {}
        self._blocked: set[int] = set()
        """Those of them that somebody is blocked on: a `WATCH` may be answered in an hour."""

        self._last_number = 0
        self._heard_s = 0.0
        self._watch: asyncio.TimerHandle | None = None
        self._due_s = 0.0
        self._effort: tuple[float, float] | None = None
        """When we looked last how much CPU the peer had had or waited for, and how much."""

        self._excused_s = 0.0

    def frame(self, number: int, code: int, payload: bytes) -> None:
        self._heard_s = asyncio.get_running_loop().time()
        self._effort, self._excused_s = None, 0.0
        waiter = self._waiting.pop(number, None)
        self._blocked.discard(number)
        if waiter is None or waiter.done():
            return
        if code == DONE:
            waiter.set_result(payload)
        else:
            waiter.set_exception(error_named(self._peer, payload.decode(errors="replace")))

    def connection_lost(self, exc: Exception | None) -> None:
        if self._watch is not None:
            self._watch.cancel()
        self._end_all("connection lost")
        self._transport = None

    def is_open(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    def begin(self, code: int, payload: bytes) -> tuple[int, asyncio.Future[bytes]]:
        loop = asyncio.get_running_loop()
        is_blocked = code != _WATCH
        if not self._waiting or (is_blocked and not self._blocked):
            self._heard_s = loop.time()
            self._effort, self._excused_s = None, 0.0
            if self._watch is not None and is_blocked:
                self._watch.cancel()
                self._watch = None
        self._last_number = (self._last_number + 1) % (1 << 32)
        waiter: asyncio.Future[bytes] = loop.create_future()
        self._waiting[self._last_number] = waiter
        if is_blocked:
            self._blocked.add(self._last_number)
        self.send(self._last_number, code, payload)
        if self._watch is None:
            self._look_again(loop)
        return self._last_number, waiter

    def give_up(self, number: int) -> None:
        self._waiting.pop(number, None)
        self._blocked.discard(number)

    def _look_again(self, loop: asyncio.AbstractEventLoop) -> None:
        now_s = loop.time()
        every_s = PING_EVERY_S if self._blocked else IDLE_PING_EVERY_S
        is_silent = now_s - self._heard_s > LOOK_EVERY_S
        self._due_s = now_s + (LOOK_EVERY_S if self._blocked and is_silent else every_s)
        self._watch = loop.call_at(self._due_s, self._look)

    def _look(self) -> None:
        """While somebody waits: ask for a sign of life, and hang up when none comes."""
        self._watch = None
        if not self._waiting:
            return
        loop = asyncio.get_running_loop()
        # Time in which we did not run ourselves is no silence of the peer's.
        self._heard_s += max(0.0, loop.time() - self._due_s)
        if loop.time() - self._heard_s > LOOK_EVERY_S:
            self._excuse(loop.time())
        if loop.time() - self._heard_s > (SILENT_S if self._blocked else IDLE_SILENT_S):
            self._end_all(SILENT)
            self.abort()
            return
        self.send(0, PING, b"")
        self._look_again(loop)

    def _end_all(self, reason: str) -> None:
        waiting, self._waiting = self._waiting, {}
        self._blocked.clear()
        for waiter in waiting.values():
            if not waiter.done():
                waiter.set_exception(PeerUnavailable(self._peer, reason))

    def _excuse(self, now_s: float) -> None:
        """Take no time for silence in which the peer did what it could."""
        effort_s = None if self._transport is None else cpu_s(_pid_of(self._transport))
        before, self._effort = self._effort, None if effort_s is None else (now_s, effort_s)
        if before is None or effort_s is None or self._excused_s > STARVED_S_MAX:
            return
        since_s = now_s - before[0]
        if effort_s - before[1] >= STARVED_PART * since_s:
            self._heard_s += since_s
            self._excused_s += since_s


def _pid_of(transport: asyncio.Transport) -> int:
    """Return the process at the other end of a Unix socket; 0 if it can't be seen from here."""
    socket = transport.get_extra_info("socket")
    kind = struct.Struct("3i")  # struct ucred: process, user, group
    pid, _, _ = kind.unpack(socket.getsockopt(sockets.SOL_SOCKET, sockets.SO_PEERCRED, kind.size))
    return int(pid)


class LocalChannel:
    """Calls to the peer of this host."""

    def __init__(self, socket: str) -> None:
        self._socket = socket
        self._side: _ClientSide | None = None
        self._connecting = asyncio.Lock()

    async def call(self, method: Method[Q, A], request: Q, *, timeout_s: float) -> A:
        """Return the answer; raises what the peer raised, or `PeerUnavailable`."""
        side = self._side
        if side is None or not side.is_open():
            side = await self._connect()
        number, waiter = side.begin(METHODS.index(method), method.encode_request(request))
        try:
            async with asyncio.timeout(timeout_s):
                return method.decode_reply(await waiter)
        except TimeoutError as error:
            raise PeerUnavailable(self._socket, f"no answer in {timeout_s:g} s") from error
        finally:
            side.give_up(number)

    async def _connect(self) -> _ClientSide:
        async with self._connecting:
            if self._side is not None and self._side.is_open():
                return self._side
            loop = asyncio.get_running_loop()
            try:
                _, self._side = await loop.create_unix_connection(
                    lambda: _ClientSide(self._socket), self._socket
                )
            except OSError as error:
                reason = error.strerror or str(error)
                raise PeerUnavailable(self._socket, reason) from error
            return self._side

    async def aclose(self) -> None:
        if self._side is not None:
            self._side.abort()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(0)
