"""A network for peers in one loop: it delays, loses, cuts, garbles and repeats.

Each peer gets a `SimChannels`, which has the surface of `mesh.wire.channels.Channels`
and hands each request to the `Servicers` of the peer that listens on that address.
As over TCP, what is lost is silence until the caller's own patience ends; only an
address at which nobody listens, and a peer that dies, say so at once.

All that is drawn comes from one `Random`, and nothing here walks through a set: the
same seed gives the same run.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from contextlib import aclosing, suppress
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any, TypeVar

import structlog

from mesh.errors import MeshError, PeerUnavailable
from mesh.testing.membership import SimWorld
from mesh.wire.basics import STALL_S, Method
from mesh.wire.channels import CALL_TIMEOUT_S, STREAM_TIMEOUT_S
from mesh.wire.messages import Piece

log = structlog.get_logger()

Q = TypeVar("Q")
A = TypeVar("A")

BYTES_PER_S = 1e9
RETRANSMIT_S = 0.2
"""TCP tries again for minutes: once a cut is mended, what waited gets through."""

INVERTED = bytes(255 - value for value in range(256))
"""Garbles every byte, so that whatever is read of it is wrong."""

SENT_AHEAD = 4
"""Messages that may be under way on a stream before its sender waits."""


class SimTasks:
    """A group of tasks that ends them in the order of their beginning.

    asyncio's own ends them in the order of their addresses in memory.
    """

    def __init__(self) -> None:
        self._tasks: dict[asyncio.Task[Any], None] = {}
        self.failures: list[BaseException] = []

    def __len__(self) -> int:
        return len(self._tasks)

    def names(self) -> list[str]:
        return [task.get_name() for task in self._tasks]

    def create_task(
        self, work: Coroutine[Any, Any, A], *, name: str | None = None
    ) -> asyncio.Task[A]:
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks[task] = None
        task.add_done_callback(self._end)
        return task

    def _end(self, task: asyncio.Task[Any]) -> None:
        self._tasks.pop(task, None)
        if not task.cancelled() and (failure := task.exception()) is not None:
            self.failures.append(failure)

    async def cancel(self) -> None:
        """End all of them, and wait until they have."""
        while self._tasks:
            tasks = list(self._tasks)
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            await asyncio.sleep(0)  # or those that were done already stay in the list


@dataclass(slots=True)
class _Host:
    """Who listens on an address."""

    name: str
    servicers: Any
    epoch: Callable[[], int]
    tasks: SimTasks = field(default_factory=SimTasks)
    is_up: bool = True
    streams: dict[_Stream, None] = field(default_factory=dict)


@dataclass(slots=True, kw_only=True)
class Weather:
    """How the network is just now."""

    delay_s: tuple[float, float] = (0.0002, 0.001)
    loss: float = 0.0
    """Part of the messages after which a stream or call is silent for ever."""

    repeats: float = 0.0
    """Part of the requests that are handled twice."""

    garbles: float = 0.0
    """Part of the pieces that arrive as something else."""

    slow: dict[str, float] = field(default_factory=dict)
    """By peer: seconds that each of its messages takes on top."""


class SimNetwork:
    """Carries messages between the peers of a `SimWorld`."""

    def __init__(self, world: SimWorld, random: Random) -> None:
        self.weather = Weather()
        self._world = world
        self._random = random
        self._hosts: dict[str, _Host] = {}
        """By address."""

        self.tasks = SimTasks()
        """What the network does that no host does."""

    def listen(self, address: str, name: str, servicers: Any, epoch: Callable[[], int]) -> None:
        self._hosts[address] = _Host(name, servicers, epoch)

    async def hang_up(self, address: str) -> None:
        """End a host: what it was sending breaks off, and nobody listens there any more."""
        host = self._hosts.pop(address)
        host.is_up = False
        for stream in list(host.streams):
            stream.reset()
        await host.tasks.cancel()

    def host(self, address: str) -> _Host | None:
        return self._hosts.get(address)

    @property
    def busy(self) -> list[str]:
        """Return what is being handled, for whoever says that nothing should be."""
        handled = [name for host in self._hosts.values() for name in host.tasks.names()]
        return handled + self.tasks.names()

    @property
    def failures(self) -> list[BaseException]:
        """Return what went wrong in handlers and was none of mesh's errors."""
        return [e for host in self._hosts.values() for e in host.tasks.failures]

    def channels(
        self,
        name: str,
        epoch: Callable[[], int],
        on_other_epoch: Callable[[str, int], None] = lambda address, epoch: None,
    ) -> SimChannels:
        """Return the channels of the peer *name*, whose view has *epoch*."""
        return SimChannels(self, name, epoch, on_other_epoch)

    async def carry(self, source: str, target: str, size_bytes: int = 0) -> None:
        """Wait until a message arrives; for ever when it never does."""
        weather = self.weather
        delay_s = self._random.uniform(*weather.delay_s) + size_bytes / BYTES_PER_S
        delay_s += weather.slow.get(source, 0.0)
        is_lost = weather.loss > 0 and self._random.random() < weather.loss
        await asyncio.sleep(delay_s)
        if is_lost:
            await asyncio.Event().wait()
        while not self._passes(source, target):  # noqa: ASYNC110
            await asyncio.sleep(RETRANSMIT_S)

    def _passes(self, source: str, target: str) -> bool:
        world = self._world
        return (
            world.carries(source, target)
            and not world.is_stopped(source)
            and not world.is_stopped(target)
        )

    def is_repeated(self) -> bool:
        return self.weather.repeats > 0 and self._random.random() < self.weather.repeats

    def garbled(self, piece: Piece) -> Piece:
        if piece.data and self.weather.garbles and self._random.random() < self.weather.garbles:
            return replace(piece, data=bytes(piece.data).translate(INVERTED))
        return piece


class SimChannels:
    """Calls of one peer to the others."""

    def __init__(
        self,
        network: SimNetwork,
        name: str,
        epoch: Callable[[], int],
        on_other_epoch: Callable[[str, int], None],
    ) -> None:
        self._network = network
        self._name = name
        self._epoch = epoch
        self._on_other_epoch = on_other_epoch

    async def call(
        self, address: str, method: Method[Q, A], request: Q, *, timeout_s: float = CALL_TIMEOUT_S
    ) -> A:
        stream = self._open(address, method, request, _answered_once)
        try:
            async with asyncio.timeout(timeout_s):
                answer: A = await stream.take()
        except TimeoutError as error:
            raise PeerUnavailable(address, f"no answer in {timeout_s:g} s") from error
        finally:
            stream.close()
        self._compare(address, stream)
        return answer

    async def pieces(
        self, address: str, method: Method[Q, Piece], request: Q
    ) -> AsyncIterator[Piece]:
        stream = self._open(address, method, request, _answered)
        try:
            while True:
                try:
                    async with asyncio.timeout(STALL_S):
                        piece = await stream.take()
                except TimeoutError as error:
                    raise PeerUnavailable(address, f"silent for {STALL_S} s") from error
                except _Ended:
                    break
                yield piece
        finally:
            stream.close()
        self._compare(address, stream)

    async def push(self, address: str, method: Method[Q, A], values: AsyncIterator[Q]) -> None:
        async for value in values:
            await self.call(address, method, value)

    def _open(self, address: str, method: Method[Q, Any], request: Q, how: _How) -> _Stream:
        return _Stream(self._network, self._name, address, method.name, request, how)

    def _compare(self, address: str, stream: _Stream) -> None:
        if stream.epoch is not None and stream.epoch != self._epoch():
            self._on_other_epoch(address, stream.epoch)


_How = Callable[[Any, Any], AsyncGenerator[Any, None]]


async def _answered(handler: Any, request: Any) -> AsyncGenerator[Any, None]:
    async with aclosing(handler(request)) as replies:
        async for reply in replies:
            yield reply


async def _answered_once(handler: Any, request: Any) -> AsyncGenerator[Any, None]:
    yield await handler(request)


class _Ended(Exception):
    """All answers have come."""


class _Stream:
    """One request and its answers."""

    def __init__(
        self, network: SimNetwork, source: str, address: str, method: str, request: Any, how: _How
    ) -> None:
        self.epoch: int | None = None
        self._network = network
        self._source = source
        self._address = address
        self._host = network.host(address)
        self._came: deque[Any] = deque()
        self._error: Exception | None = None
        self._wakes: list[asyncio.Future[None]] = []
        self._is_over = False
        name = HANDLERS[method]
        work = self._refused() if self._host is None else self._handled(name, request, how)
        tasks = network.tasks if self._host is None else self._host.tasks
        self._task = tasks.create_task(work, name=f"{method} for {source}")
        if self._host is not None:
            self._host.streams[self] = None

    # The caller's side

    async def take(self) -> Any:
        """Return the next answer; raises what ended the stream."""
        while not self._came:
            if self._error is not None:
                raise self._error
            await self._wait()
        self._wake()
        return self._came.popleft()

    def close(self) -> None:
        """Have no interest any more; the other side stops when it hears of it."""
        self._is_over = True
        if self._host is not None:
            self._host.streams.pop(self, None)
        self._task.cancel()

    def reset(self) -> None:
        """The host has died: the kernel there says so, if it can be heard."""
        if not self._is_over and self._host is not None:
            self._network.tasks.create_task(self._say_reset(self._host.name), name="reset")

    async def _say_reset(self, host: str) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(STREAM_TIMEOUT_S):
                await self._network.carry(host, self._source)
                self._end(PeerUnavailable(self._address, "connection reset"))

    # The host's side

    async def _refused(self) -> None:
        await asyncio.sleep(0.001)
        self._end(PeerUnavailable(self._address, "connection refused"))

    async def _handled(self, name: str, request: Any, how: _How) -> None:
        assert self._host is not None, "somebody listens"
        await self._network.carry(self._source, self._host.name)
        handler = getattr(self._host.servicers, name)
        if self._network.is_repeated():
            self._host.tasks.create_task(_ignored(how(handler, request)), name="repeated")
        try:
            async with aclosing(how(handler, request)) as replies:
                async for reply in replies:
                    await self._send(reply)
            await self._send_end(_Ended())
        except MeshError as error:
            await self._send_end(error)
        except Exception as error:
            log.exception("call failed", method=name)
            self._host.tasks.failures.append(error)
            await self._send_end(PeerUnavailable(self._address, f"internal: {error!r}"))

    async def _send(self, reply: Any) -> None:
        assert self._host is not None
        size_bytes = len(reply.data) if isinstance(reply, Piece) else 0
        await self._network.carry(self._host.name, self._source, size_bytes)
        while len(self._came) >= SENT_AHEAD:
            await self._wait()
        self._came.append(self._network.garbled(reply) if isinstance(reply, Piece) else reply)
        self.epoch = self._host.epoch()
        self._wake()

    async def _send_end(self, error: Exception) -> None:
        assert self._host is not None
        await self._network.carry(self._host.name, self._source)
        self._end(error)

    def _end(self, error: Exception) -> None:
        self._error = self._error or error
        self._wake()

    # Both

    async def _wait(self) -> None:
        wake: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._wakes.append(wake)
        await wake

    def _wake(self) -> None:
        wakes, self._wakes = self._wakes, []
        for wake in wakes:
            if not wake.done():
                wake.set_result(None)


async def _ignored(replies: AsyncGenerator[Any, None]) -> None:
    with suppress(MeshError):
        async with aclosing(replies):
            async for _ in replies:
                pass


HANDLERS = {
    "Serve": "serve",
    "Peek": "peek",
    "Held": "held",
    "Inventory": "inventory",
    "Hello": "hello",
    "Members": "members",
    "Describe": "describe",
}
