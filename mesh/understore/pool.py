"""What all under-stores share: threads, turns, deadlines, repetition and errors.

The client libraries block, so each call runs in a thread. A `Gate` bounds the calls
under way, closer while the under-store says SlowDown; each has a deadline, and what
may work a moment later is repeated within it. A call that outlives its deadline
keeps its thread until it ends, as there is no way to stop it: there are
THREADS_FOR_EACH times as many threads as calls, to make up for those.
"""

from __future__ import annotations

import asyncio
import random
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import islice
from typing import Any, TypeVar
from urllib.parse import unquote

import structlog

from mesh.blocks import Attributes, DirectoryEntry
from mesh.errors import (
    IsADirectory,
    MeshError,
    NotADirectory,
    NotFound,
    Refused,
    Stale,
    UnderStoreUnavailable,
    Unusable,
)
from mesh.metrics import Metrics
from mesh.understore.throttle import Gate, Window, pauses_s
from mesh.understore.understore import PAGE_ENTRIES, UnderStoreSettings
from mesh.understore.uploads import Sink, SinkUpload
from mesh.understore.writable import Upload, check_moved, check_replaced

ATTEMPTS = 3
CANNOT_WRITE = "this kind of under-store can't be written yet"
THREADS_FOR_EACH = 4
HIDDEN_LOGGED_MAX = 1000

DIRECTORY = Attributes(is_directory=True, size_bytes=0, mtime_ns=0)
"""One of an under-store that tells nothing of directories."""

log = structlog.get_logger()
T = TypeVar("T")


class SlowDown(UnderStoreUnavailable):
    """The under-store gets more requests than it wants."""


class PooledStore(ABC):
    """An under-store whose library blocks."""

    def __init__(self, settings: UnderStoreSettings, metrics: Metrics) -> None:
        self._settings = settings
        self._metrics = metrics
        self._window = Window(settings.concurrency)
        self._gate = Gate(self._window)
        self._threads = ThreadPoolExecutor(
            THREADS_FOR_EACH * settings.concurrency, thread_name_prefix="under-store"
        )
        self._random = random.Random()  # noqa: S311
        self._making = threading.Lock()
        self._made: Any = None
        self._hidden: set[str] = set()

    async def prepare(self) -> None:
        await self._call("prepare", "", self._client)

    async def stat(self, path: str) -> Attributes:
        return await self._call("stat", path, self._stat, path)

    @abstractmethod
    def scan(self, path: str) -> AsyncIterator[list[DirectoryEntry]]: ...

    async def read(
        self, path: str, about: Attributes, offset_bytes: int, size_bytes: int
    ) -> AsyncIterator[bytes | memoryview]:
        end_bytes = offset_bytes + size_bytes
        while offset_bytes < end_bytes:
            wanted_bytes = min(self.request_bytes, end_bytes - offset_bytes)
            yield await self._call(
                "read", path, self._read, path, about, offset_bytes, wanted_bytes
            )
            offset_bytes += wanted_bytes

    async def upload(
        self, path: str, *, size_bytes: int | None = None, mode: int | None = None
    ) -> Upload:
        """Begin a file; see `Writable`."""
        sink = await self._call("upload", path, self._sink, path, mode, attempts=1)
        return SinkUpload(self._call, path, sink)

    async def remove(self, path: str, *, only: str | None = None) -> None:
        await self._call("remove", path, self._remove, path, only, attempts=1)

    async def make_directory(self, path: str, *, mode: int | None = None) -> None:
        await self._call("mkdir", path, self._make_directory, path, mode)

    async def remove_directory(self, path: str) -> None:
        await self._call("rmdir", path, self._remove_directory, path, attempts=1)

    async def move(self, path: str, target: str, *, over: str | None) -> Attributes:
        """See `Writable`; what is moved onto itself stays."""
        if path == target:
            return await self.stat(path)
        return await self._call("move", path, self._move, path, target, over, attempts=1)

    async def set_mode(self, path: str, mode: int) -> bool:
        return await self._call("chmod", path, self._set_mode, path, mode)

    async def aclose(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    @property
    def request_bytes(self) -> int:
        return self._settings.request_bytes

    # What the kinds do in a thread

    @abstractmethod
    def _make(self) -> Any:
        """Make the library's client, which may take long."""

    @abstractmethod
    def _stat(self, path: str) -> Attributes: ...

    @abstractmethod
    def _read(
        self, path: str, about: Attributes, offset_bytes: int, size_bytes: int
    ) -> bytes | memoryview: ...

    def _sink(self, path: str, mode: int | None) -> Sink:
        """Begin a file; like the next four, this is what a kind that can be written has."""
        raise Refused(f"{self._settings.url}: {path}: {CANNOT_WRITE}")

    def _remove(self, path: str, only: str | None) -> None:
        raise Refused(f"{self._settings.url}: {path}: {CANNOT_WRITE}")

    def _make_directory(self, path: str, mode: int | None = None) -> None:
        raise Refused(f"{self._settings.url}: {path}: {CANNOT_WRITE}")

    def _remove_directory(self, path: str) -> None:
        raise Refused(f"{self._settings.url}: {path}: {CANNOT_WRITE}")

    def _move(self, path: str, target: str, over: str | None) -> Attributes:
        raise Refused(f"{self._settings.url}: {path}: {CANNOT_WRITE}")

    def _set_mode(self, path: str, mode: int) -> bool:
        return False

    def check_replaced(self, path: str, over: str | None) -> None:
        """Raise `Stale` unless what is at *path* may be replaced, as `Upload.publish` has it."""
        if over is not None:
            check_replaced(f"{self._settings.url}: {path}", self._found(path), over)

    def check_moved(
        self, path: str, target: str, over: str | None
    ) -> tuple[Attributes, Attributes | None]:
        """Return what is at both; raise if the one may not take the place of the other."""
        moved, found = self._stat(path), self._found(target)
        check_moved(moved, f"{self._settings.url}: {target}", found, over)
        return moved, found

    def _found(self, path: str) -> Attributes | None:
        try:
            return self._stat(path)
        except (FileNotFoundError, NotFound):
            return None

    def _translated(self, error: Exception, where: str) -> MeshError:
        """Put the library's vocabulary into ours; most of them speak the system's."""
        text = first_line(error)
        for kind, ours in _OURS.items():
            if isinstance(error, kind):
                return ours(f"{where}: {text}")
        return UnderStoreUnavailable(f"{where}: {text}")

    def _client(self) -> Any:
        """Return the library's client, the same one for all threads."""
        with self._making:
            if self._made is None:
                self._made = self._make()
            return self._made

    def _hide(self, key: str, reason: str) -> None:
        """Say once that something is not shown."""
        if key not in self._hidden and len(self._hidden) < HIDDEN_LOGGED_MAX:
            self._hidden.add(key)
            log.warning("not shown", under_store=self._settings.url, key=key, reason=reason)

    async def _call(
        self, op: str, path: str, call: Callable[..., T], *args: Any, attempts: int = ATTEMPTS
    ) -> T:
        """Run a blocking call; what it raises comes out as a `MeshError`."""
        started_s = time.monotonic()
        where = f"{self._settings.url}: {op} {path}".rstrip()
        reason = ""
        try:
            async with asyncio.timeout(self._settings.timeout_s):
                for attempt, pause_s in enumerate(pauses_s(self._random), start=1):
                    try:
                        return await self._attempt(where, partial(call, *args))
                    except UnderStoreUnavailable as error:
                        # SlowDown is an answer of one that lives: it is worth the whole deadline.
                        has_tried_enough = attempt >= attempts and not isinstance(error, SlowDown)
                        if attempts == 1 or has_tried_enough:
                            raise
                        reason = f"; the last one: {error}"
                    await asyncio.sleep(pause_s)
            raise AssertionError("pauses have no end")
        except TimeoutError as error:
            timeout = f"no answer in {self._settings.timeout_s:g} s"
            raise UnderStoreUnavailable(f"{where}: {timeout}{reason}") from error
        finally:
            self._metrics.under_store_seconds.labels(op).observe(time.monotonic() - started_s)

    async def _attempt(self, where: str, call: Callable[[], T]) -> T:
        await self._gate.enter()
        ticket = self._window.ticket()
        try:
            loop = asyncio.get_running_loop()
            answer = await loop.run_in_executor(self._threads, self._in_thread, where, call)
        except SlowDown:
            self._window.slowed(ticket)
            raise
        else:
            self._window.answered()
            return answer
        finally:
            self._gate.leave()

    def _in_thread(self, where: str, call: Callable[[], T]) -> T:
        try:
            return call()
        except MeshError:
            raise
        except Exception as error:
            raise self._translated(error, where) from error
        except BaseException as error:
            # Rust's panics come as such, and would end the event loop.
            raise UnderStoreUnavailable(f"{where}: {error}") from error


class CheckedStore(PooledStore):
    """One whose library cannot read on the condition that a file is unchanged.

    A look after the bytes says the same: the tag was there before, and is still.
    """

    async def scan(self, path: str) -> AsyncIterator[list[DirectoryEntry]]:
        pages = await self._call("scan", path, self._pages, path)
        # An iterator that has failed is at its end: asked again, it would end the listing.
        while page := await self._call("scan", path, next, pages, None, attempts=1):
            yield page

    def _read(self, path: str, about: Attributes, offset_bytes: int, size_bytes: int) -> bytes:
        try:
            data = self._read_range(path, about, offset_bytes, size_bytes)
        except Exception:
            # Libraries lose the reason of some failures; a changed file is one of them.
            self._check_unchanged(path, about)
            raise
        self._check_unchanged(path, about)
        if len(data) != size_bytes:
            raise UnderStoreUnavailable(f"{self._settings.url}: read {path}: ended too early")
        return data

    @abstractmethod
    def _pages(self, path: str) -> Iterator[list[DirectoryEntry]]: ...

    @abstractmethod
    def _read_range(
        self, path: str, about: Attributes, offset_bytes: int, size_bytes: int
    ) -> bytes: ...

    def _check_unchanged(self, path: str, about: Attributes) -> None:
        try:
            now = self._stat(path)
        except (FileNotFoundError, NotFound):
            raise Stale(f"{self._settings.url}: {path} was removed") from None
        if (now.is_directory, now.size_bytes, now.tag) != (False, about.size_bytes, about.tag):
            raise Stale(f"{self._settings.url}: {path} was changed")


_OURS: dict[type[Exception], type[MeshError]] = {
    FileNotFoundError: NotFound,
    NotADirectoryError: NotADirectory,
    IsADirectoryError: IsADirectory,
    PermissionError: Refused,
}


@contextmanager
def needed(package: str, extra: str) -> Iterator[None]:
    """Say in one line what to install when an import of an optional package fails."""
    try:
        yield
    except ImportError as error:
        mend = f"pip install 'mesh-cache[{extra}]'"
        raise Unusable(f"{package} is not installed ({error}); {mend}") from error


def first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def split_url(url: str) -> tuple[str, str, str]:
    """Return scheme, place and path: of s3://bucket/a%20b that is s3, bucket and "a b"."""
    scheme, _, rest = url.partition("://")
    place, _, path = rest.partition("/")
    return scheme, place, unquote(path).strip("/")


def paged(entries: Iterator[DirectoryEntry]) -> Iterator[list[DirectoryEntry]]:
    while page := list(islice(entries, PAGE_ENTRIES)):
        yield page
