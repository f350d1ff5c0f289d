"""An event loop in which nothing takes time but waiting, and waiting takes none.

    ready callbacks … nothing ready → jump to the next timer → ready callbacks …

There are no sockets and no threads: what would run in a thread runs at once, in its
turn. Whatever happens thus hangs on the program and its random numbers alone, and
an hour of a cluster's life takes as long as its callbacks do.
"""

from __future__ import annotations

import asyncio
import gc
from asyncio import base_events
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from random import Random
from typing import Any, TypeVar, TypeVarTuple

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

TURNS_MAX = 200_000
"""Turns of the loop without any time going by: somebody waits for something in a circle."""


class Stuck(AssertionError):
    """Nothing will ever happen again, or the same for ever."""


class SimLoop(base_events.BaseEventLoop):
    """Time that jumps. It begins at 1000.0: zero is a special moment to careless code."""

    def __init__(self, *, limit_s: float = 3600.0) -> None:
        super().__init__()
        self._now_s = 1000.0
        self._end_s = self._now_s + limit_s
        self._turns = 0
        self._selector = self  # what BaseEventLoop asks for events; here time itself

    def time(self) -> float:
        return self._now_s

    def select(self, timeout_s: float | None) -> list[Any]:
        """Let time pass until the next timer."""
        if timeout_s is None:
            raise Stuck("everybody waits, and no timer is set")
        self._turns += 1
        if timeout_s > 0:
            self._now_s += timeout_s
            self._turns = 0
        if self._turns > TURNS_MAX:
            self._turns = 0  # what is left still has to be cancelled
            raise Stuck(f"{TURNS_MAX} turns at {self._now_s:.3f} s")
        if self._now_s > self._end_s:
            self._end_s = float("inf")
            raise Stuck("this takes too long")
        return []

    def run_in_executor(
        self, executor: Executor | None, func: Callable[[*Ts], T], *args: *Ts
    ) -> asyncio.Future[T]:
        """Run *func* in its turn, in this thread."""
        done: asyncio.Future[T] = self.create_future()
        self.call_soon(_run, done, func, *args)
        return done

    def _process_events(self, event_list: list[Any]) -> None:
        return

    def _write_to_self(self) -> None:
        return


def _run(done: asyncio.Future[T], func: Callable[[*Ts], T], *args: *Ts) -> None:
    if done.cancelled():
        return
    try:
        done.set_result(func(*args))
    except Exception as error:
        done.set_exception(error)


def simulate(main: Callable[[Random], Coroutine[Any, Any, T]], seed: int) -> T:
    """Run *main* with random numbers from *seed*, in a loop of its own."""
    with _no_collections(), asyncio.Runner(loop_factory=SimLoop) as runner:
        return runner.run(main(Random(seed)))  # noqa: S311 (the same seed, the same run)


@contextmanager
def _no_collections() -> Iterator[None]:
    """Garbage is collected at random moments, and its finalizers run in the loop."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
