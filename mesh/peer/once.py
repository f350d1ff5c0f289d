"""One answer for all who ask the same thing at the same time.

Work runs in a task of its own and each asker waits on a future of its own, so that one who
is cancelled harms nobody. Who needs an answer that was not begun before he asked, because
a file may have changed since, waits for the next one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

import structlog

from mesh.errors import MeshError, Unavailable

log = structlog.get_logger()

K = TypeVar("K")
A = TypeVar("A")


async def quietly(work: Awaitable[object]) -> None:
    """Await work whose failure nobody waits for: a task of the peer's group must not raise."""
    try:
        await work
    except MeshError as error:
        log.debug("not done", reason=str(error))
    except Exception:
        log.exception("not done")


class _Run(Generic[A]):
    """One piece of work, and who waits for it."""

    def __init__(self, work: Callable[[], Awaitable[A]]) -> None:
        self.work = work
        self.waiting: list[asyncio.Future[A]] = []

    async def wait(self) -> A:
        waiter: asyncio.Future[A] = asyncio.get_running_loop().create_future()
        self.waiting.append(waiter)
        return await waiter

    async def go(self) -> None:
        error: Exception = Unavailable("the peer stops")
        result: list[A] = []
        try:
            result.append(await self.work())
        except Exception as failure:  # handed to every waiter, not swallowed
            error = failure
        finally:
            for waiter in self.waiting:
                if waiter.done():
                    continue
                if result:
                    waiter.set_result(result[0])
                else:
                    waiter.set_exception(error)


class Once(Generic[K, A]):
    """What is under way, by what is asked; the tasks belong to *tasks*."""

    def __init__(self, tasks: asyncio.TaskGroup) -> None:
        self._tasks = tasks
        self._running: dict[K, _Run[A]] = {}
        self._queued: dict[K, _Run[A]] = {}

    def __len__(self) -> int:
        return len(self._running)

    def is_running(self, key: K) -> bool:
        return key in self._running

    async def do(self, key: K, work: Callable[[], Awaitable[A]], *, anew: bool = False) -> A:
        """Return the answer of the work under way for *key*, or begin it.

        With *anew* it is one that has not begun yet.
        """
        run = self._running.get(key)
        if run is None:
            run = self._running[key] = _Run(work)
            self._tasks.create_task(self._go(key, run), name=f"once {key}")
        elif anew:
            run = self._queued.setdefault(key, _Run(work))
        return await run.wait()

    async def _go(self, key: K, run: _Run[A]) -> None:
        try:
            await run.go()
        finally:
            following = self._queued.pop(key, None)
            if following is None:
                del self._running[key]
            else:
                self._running[key] = following
                self._tasks.create_task(self._go(key, following), name=f"once {key}")
