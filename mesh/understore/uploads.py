"""Files that go into an under-store one piece after the other, under a name of their own."""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from mesh.blocks import Attributes

Call = Callable[..., Awaitable[Any]]
"""`PooledStore._call`: (op, path, function, arguments..., attempts)."""


class Sink(Protocol):
    """A file under another name than it will have; all of it blocks."""

    def append(self, data: bytes) -> None: ...

    def publish(self, over: str | None) -> Attributes:
        """Give it its name, and make that last."""
        ...

    def abort(self) -> None:
        """Remove it, published or not begun."""
        ...


class SinkUpload:
    """An `Upload` whose work a `Sink` does in a thread.

    A call that outlives its deadline keeps its thread, so that the next one must wait for
    its turn: two at once would mix up the bytes.
    """

    def __init__(self, call: Call, path: str, sink: Sink) -> None:
        self._call = call
        self._path = path
        self._sink = sink
        self._turn = threading.Lock()

    async def add(self, data: bytes | memoryview) -> None:
        await self._do(self._sink.append, bytes(data) if isinstance(data, memoryview) else data)

    async def publish(self, *, over: str | None) -> Attributes:
        about: Attributes = await self._do(self._sink.publish, over)
        return about

    async def abort(self) -> None:
        await self._do(self._sink.abort)

    async def _do(self, work: Callable[..., Any], *args: Any) -> Any:
        def in_turn() -> Any:
            with self._turn:
                return work(*args)

        # Repeated, bytes would be there twice.
        return await self._call("upload", self._path, in_turn, attempts=1)
