"""Abrupt ends of peers and mounts inside one process, at any step of what they do.

    Life     one run of a peer, or of a mount: all tasks that began in it
    Plan     what is watched: the steps of one host, and at which of them which lives end
    step     where an end may come; `crash_steps` puts it before and after all that shows

A life that has ended runs no further: its tasks are never resumed, as after SIGKILL, so that
no `finally` tidies up. What the kernel would do is done by `reap`: connections are lost, locks
are let go. Only when the test is over `bury` lets the tasks be cancelled, and by then nothing
that they do reaches a disk or a neighbor.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Generator
from contextlib import AbstractAsyncContextManager, suppress
from contextvars import Context, ContextVar, copy_context
from pathlib import Path
from typing import Any, TypeVar
from weakref import WeakSet

from mesh.client.client import MeshClient
from mesh.peer.peer import Peer
from mesh.store.journal import Claim
from mesh.wire.bulk_server import BulkServer
from mesh.wire.connection import Connection
from mesh.wire.local import LocalServer

T = TypeVar("T")

THREADS_EVERY_S = 0.001
BURIED_WITHIN_S = 5.0
IDLE_WITHIN_S = 10.0
RESTLESS: list[Life] = []
"""Those that could not be buried."""

DIRECTORIES: dict[str, Life] = {}
"""The peer that runs on a data directory: its threads do not say whose they are."""


class Killed(BaseException):
    """Ends what a thread does for a life that is over; nobody catches it."""


class Plan:
    """What happens to a cluster: at a step of the host that is watched some lives end."""

    def __init__(self, watched: str, target: str = "") -> None:
        """End them at the step named *target*, like "record staged#2"; "" only counts."""
        self.watched = watched
        self.target = target
        self.is_on = False
        self.steps: list[str] = []
        self.doomed: Callable[[], list[Life]] = list
        self.crashed = asyncio.Event()
        self.new_token: Callable[[], str] | None = None
        self._counts: Counter[str] = Counter()
        self._loop = asyncio.get_running_loop()

    def begin(self) -> None:
        """Count from here on."""
        self.is_on = True

    def reach(self, name: str) -> None:
        """Note a step, which is the last one of some if it is the one that was asked for."""
        if not self.is_on:
            return
        self._counts[name] += 1
        label = f"{name}#{self._counts[name]}"
        self.steps.append(label)
        if label == self.target:
            self.is_on = False
            for life in self.doomed():
                life.is_over = True
            self._loop.call_soon_threadsafe(self.crashed.set)


class Life:
    """One run of a peer or of a mount."""

    def __init__(self, plan: Plan, name: str, directory: Path) -> None:
        """Belong to the host *name*, whose peer keeps its things in *directory*."""
        self.plan = plan
        self.name = name
        self.directory = directory
        self.is_over = False
        self.threads: set[object] = set()
        """Calls in threads that are under way."""

        self.calls: WeakSet[Any] = WeakSet()
        self.tasks: WeakSet[asyncio.Task[Any]] = WeakSet()
        self.servers: list[Any] = []
        self.locals: list[LocalServer] = []
        self.bulks: list[BulkServer] = []
        self.connections: WeakSet[Connection] = WeakSet()
        self.claims: list[Claim] = []
        self.fds: list[tuple[int, int]] = []
        """Descriptors of drafts, with their inodes: their locks end with the life."""

        self.is_buried = False
        self._leaving = asyncio.Event()
        self._living: asyncio.Task[None] | None = None
        self._stopping: list[asyncio.Task[None]] = []

    @property
    def is_frozen(self) -> bool:
        return self.is_over and not self.is_buried

    def begin(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Have something done in this life."""
        context: Context = copy_context()
        context.run(LIFE.set, self)
        return asyncio.get_running_loop().create_task(work, context=context)

    async def enter(self, manager: AbstractAsyncContextManager[T]) -> T:
        """Return what *manager* lends, until the life is over."""
        ready: asyncio.Future[T] = asyncio.get_running_loop().create_future()

        async def live() -> None:
            try:
                async with manager as lent:
                    ready.set_result(lent)
                    await self._leaving.wait()
            except BaseException as error:
                if ready.done():
                    raise
                ready.set_exception(error)

        self._living = self.begin(live())
        return await ready

    async def leave(self) -> None:
        """End as one that is told to stop."""
        self._leaving.set()
        if self._living is not None:
            await self._living

    # An abrupt end

    async def reap_peer(self, peer: Peer) -> None:
        """Do for a peer that is over what the kernel would do: its directory is free then."""
        self.is_over = True
        for local in self.locals:
            if local._server is not None:
                local._server.close()
            for side in local._sides:
                side.abort()
        self._hang_up()
        await self._threads_end()
        store = peer.store
        if store.entries._flush_due is not None:
            store.entries._flush_due.cancel()
        await asyncio.to_thread(store._threads.shutdown)
        await asyncio.to_thread(store._writer.close)
        store.index.env.close()
        for claim in self.claims:
            claim.env.close()
            _let_go(claim.lock_fd)
        self._unlock()
        DIRECTORIES.pop(str(self.directory), None)

    @staticmethod
    async def let_go_of_store(client: MeshClient) -> None:
        """Have a client that goes on read the store of its peer no more: that is to be closed."""
        client.here.close()
        count: int = client.threads._max_workers
        idle = threading.Barrier(count + 1)
        for _ in range(count):
            client.threads.submit(idle.wait, IDLE_WITHIN_S)
        await asyncio.to_thread(idle.wait, IDLE_WITHIN_S)

    async def reap_mount(self, client: MeshClient) -> None:
        """Do for a mount that is over what the kernel would do."""
        self.is_over = True
        if client._own._side is not None:
            client._own._side.abort()
        self._hang_up()
        await self._threads_end()
        await asyncio.to_thread(client.threads.shutdown)
        client.here.close()
        self._unlock()

    def _hang_up(self) -> None:
        loop = asyncio.get_running_loop()
        # Calls of theirs fail at once; that this ends has to wait for the burial.
        self._stopping += [loop.create_task(server.stop(None)) for server in self.servers]
        for call in list(self.calls):
            call.cancel()
        for bulk in self.bulks:
            bulk.stop_listening()
        for connection in list(self.connections):
            connection.close()

    async def _threads_end(self) -> None:
        while self.threads:  # noqa: ASYNC110  # threads set no event
            await asyncio.sleep(THREADS_EVERY_S)

    def _unlock(self) -> None:
        for fd, inode in self.fds:
            with suppress(OSError):
                if os.fstat(fd).st_ino == inode:
                    _let_go(fd)

    async def bury(self) -> None:
        """Let the tasks of a life that is over end; call it when nothing counts any more."""
        self.is_over = self.is_buried = True
        tasks = [task for task in self.tasks if not task.done()]
        for task in tasks:
            task.cancel()
        if left := [*tasks, *self._stopping]:
            _, restless = await asyncio.wait(left, timeout=BURIED_WITHIN_S)
            # A server of gRPC that is collected before it has stopped ends the process.
            RESTLESS.extend([self] if restless else [])
        for task in [*self.tasks, *self._stopping]:
            if task.done() and not task.cancelled():
                task.exception()  # seen, so that asyncio does not complain


LIFE: ContextVar[Life | None] = ContextVar("LIFE", default=None)


def _let_go(fd: int) -> None:
    """Close what a descriptor means, and leave its number to who thinks that it has it."""
    nothing = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    os.dup2(nothing, fd, inheritable=False)
    os.close(nothing)


# Steps


def life_at(path: str) -> Life | None:
    """Return the life of the peer that keeps *path*; None for what is nobody's."""
    for directory, life in DIRECTORIES.items():
        if path.startswith(f"{directory}/"):
            return life
    return None


def reach(life: Life | None, name: str) -> None:
    """Reach a step in a thread; raises `Killed` when the life ends there, or has ended."""
    if life is None:
        return
    if not life.is_over and life.name == life.plan.watched:
        life.plan.reach(name)
    if life.is_over:
        raise Killed(name)


async def step(name: str, life: Life | None = None) -> None:
    """Reach a step on the loop; does not return when the life ends there, or has ended."""
    life = life or LIFE.get()
    try:
        reach(life, name)
    except Killed:
        if life is None or life.is_buried:
            raise
        await asyncio.get_running_loop().create_future()


# Tasks that can be stopped for ever


class _Mortal(Coroutine[Any, Any, T]):
    """A coroutine that is not resumed once its life is over."""

    def __init__(self, work: Coroutine[Any, Any, T], life: Life) -> None:
        self._work = work
        self._life = life
        self.__qualname__ = getattr(work, "__qualname__", type(work).__name__)

    def send(self, value: Any) -> Any:
        return _nothing() if self._life.is_frozen else self._work.send(value)

    def throw(self, *error: Any) -> Any:
        return _nothing() if self._life.is_frozen else self._work.throw(*error)

    def close(self) -> None:
        self._work.close()

    def __await__(self) -> Generator[Any, Any, T]:
        raise AssertionError("only a task runs it")


def _nothing() -> asyncio.Future[None]:
    """Return a future to wait for, which is never done."""
    never: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    never._asyncio_future_blocking = True
    return never


SERVERS_OWN = ("_server_main_loop", "_request_call", "_request_registered_call")


def mortal_tasks(
    loop: asyncio.AbstractEventLoop,
    work: Coroutine[Any, Any, T],
    context: Context | None = None,
) -> asyncio.Task[T]:
    """Make a task; the factory of a loop on which lives end."""
    life = LIFE.get() if context is None else context.get(LIFE)
    # A server of gRPC can't be stopped unless it is told so in its own tasks.
    name = getattr(work, "__qualname__", "")
    if life is None or any(each in name for each in SERVERS_OWN):
        return asyncio.Task(work, loop=loop, context=context)
    task: asyncio.Task[T] = asyncio.Task(_Mortal(work, life), loop=loop, context=context)
    life.tasks.add(task)
    return task


async def in_thread(
    to_thread: Callable[..., Awaitable[T]], call: Callable[..., T], *args: Any, **named: Any
) -> T:
    """Do for a life what `asyncio.to_thread` does, but not once it is over."""
    life = LIFE.get()
    if life is None:
        return await to_thread(call, *args, **named)
    if life.is_over:
        raise Killed("thread")
    under_way = object()
    life.threads.add(under_way)

    def run() -> T:
        try:
            return call(*args, **named)
        finally:
            life.threads.discard(under_way)

    return await to_thread(run)
