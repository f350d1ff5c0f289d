"""Under-stores through pyarrow.fs: a local directory and S3.

pyarrow blocks, so each call runs in a pool of `concurrency` threads, which is
also what bounds the requests under way, and each has a deadline. A call that
outlives it keeps its thread until it ends: there is no way to stop it.
"""

from __future__ import annotations

import asyncio
import os
import stat as modes
import time
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

from mesh.blocks import MIB, Attributes, DirectoryEntry
from mesh.errors import (
    MeshError,
    NotADirectory,
    NotFound,
    Refused,
    Stale,
    UnderStoreUnavailable,
)
from mesh.metrics import Metrics
from mesh.understore.understore import PAGE_ENTRIES, UnderStoreSettings

OPEN_FILES_MAX = 256
LOCAL_REQUEST_BYTES = MIB
T = TypeVar("T")


def open_under_store(settings: UnderStoreSettings, metrics: Metrics) -> ArrowStore:
    """Make the under-store that a URL names; nothing is asked of it yet."""
    scheme = urlsplit(settings.url).scheme
    if scheme == "file":
        return LocalStore(settings, metrics)
    assert scheme == "s3", f"the config lets no other scheme pass: {settings.url}"
    return S3Store(settings, metrics)


class ArrowStore(ABC):
    """What both kinds share: threads, deadlines, errors, and open files."""

    def __init__(self, settings: UnderStoreSettings, metrics: Metrics) -> None:
        self._settings = settings
        self._metrics = metrics
        self._threads = ThreadPoolExecutor(settings.concurrency, thread_name_prefix="under-store")
        self._made: Any = None

    async def prepare(self) -> None:
        await self._call("prepare", "", self._filesystem)

    async def stat(self, path: str) -> Attributes:
        return await self._call("stat", path, self._stat, path)

    async def scan(self, path: str) -> AsyncIterator[list[DirectoryEntry]]:
        pages = await self._call("scan", path, self._pages, path)
        while page := await self._call("scan", path, next, pages, None):
            yield page

    async def read(
        self, path: str, about: Attributes, offset_bytes: int, size_bytes: int
    ) -> AsyncIterator[bytes]:
        end_bytes = offset_bytes + size_bytes
        while offset_bytes < end_bytes:
            wanted_bytes = min(self.request_bytes, end_bytes - offset_bytes)
            yield await self._call("read", path, self._run, path, about, offset_bytes, wanted_bytes)
            offset_bytes += wanted_bytes

    async def aclose(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    @property
    def request_bytes(self) -> int:
        return self._settings.request_bytes

    def _run(self, path: str, about: Attributes, offset_bytes: int, size_bytes: int) -> bytes:
        """Read a range, and look after it whether the file is still what it was."""
        try:
            data = self._read(path, about, offset_bytes, size_bytes)
        except OSError:
            # pyarrow loses the reason of some failures; a changed file is one of them.
            self._check_unchanged(path, about)
            raise
        self._check_unchanged(path, about)
        return data

    # What the kinds do in a thread

    @abstractmethod
    def _filesystem(self) -> Any: ...

    @abstractmethod
    def _stat(self, path: str) -> Attributes: ...

    @abstractmethod
    def _pages(self, path: str) -> Iterator[list[DirectoryEntry]]: ...

    @abstractmethod
    def _read(self, path: str, about: Attributes, offset_bytes: int, size_bytes: int) -> bytes: ...

    @abstractmethod
    def _check_unchanged(self, path: str, about: Attributes) -> None: ...

    async def _call(self, op: str, path: str, call: Callable[..., T], *args: Any) -> T:
        """Run a blocking call; what it raises comes out as a `MeshError`."""
        started_s = time.monotonic()
        running = asyncio.get_running_loop().run_in_executor(self._threads, partial(call, *args))
        try:
            async with asyncio.timeout(self._settings.timeout_s):
                return await running
        except MeshError:
            raise
        except TimeoutError as error:
            reason = f"no answer in {self._settings.timeout_s:g} s"
            raise UnderStoreUnavailable(f"{self._settings.url}: {op} {path}: {reason}") from error
        except Exception as error:
            raise _translated(error, f"{self._settings.url}: {op} {path}") from error
        finally:
            self._metrics.under_store_seconds.labels(op).observe(time.monotonic() - started_s)


def _translated(error: Exception, where: str) -> MeshError:
    """Put pyarrow's and the system's vocabulary into ours."""
    text = str(error).splitlines()[0]
    lowered = text.lower()
    if isinstance(error, FileNotFoundError):
        return NotFound(f"{where}: no such file")
    if isinstance(error, NotADirectoryError):
        return NotADirectory(f"{where}: not a directory")
    if isinstance(error, PermissionError) or "access_denied" in lowered or "forbidden" in lowered:
        return Refused(f"{where}: {text}")
    if "http status 404" in lowered or "no_such_key" in lowered or "no_such_bucket" in lowered:
        return NotFound(f"{where}: {text}")
    return UnderStoreUnavailable(f"{where}: {text}")


class LocalStore(ArrowStore):
    """A directory of this machine, or of a network file system mounted on it."""

    def __init__(self, settings: UnderStoreSettings, metrics: Metrics) -> None:
        super().__init__(settings, metrics)
        self._root = Path(unquote(urlsplit(settings.url).path))
        self._real_root = os.path.realpath(self._root)

    @property
    def request_bytes(self) -> int:
        # A local read costs no round trip, so bytes can land a piece at a time.
        return min(self._settings.request_bytes, LOCAL_REQUEST_BYTES)

    def _path(self, path: str) -> str:
        """Return where *path* is on disk; a link that leads outside leads nowhere."""
        real = os.path.realpath(self._root / path)
        if real != self._real_root and not real.startswith(self._real_root.rstrip("/") + "/"):
            raise NotFound(f"{self._settings.url}: {path}: leads outside of the under-store")
        return real

    def _stat(self, path: str) -> Attributes:
        return _local_stat(os.stat(self._path(path)))  # noqa: PTH116

    def _pages(self, path: str) -> Iterator[list[DirectoryEntry]]:
        # pyarrow hands out a listing only whole; scandir's is a stream.
        with os.scandir(self._path(path)) as entries:
            found = (self._entry(path, entry) for entry in entries)
            yield from _paged(entry for entry in found if entry is not None)

    def _entry(self, path: str, entry: os.DirEntry[str]) -> DirectoryEntry | None:
        """Describe one entry; None for what cannot be read: a dangling link, a device."""
        try:
            if entry.is_symlink():
                return DirectoryEntry(entry.name, self._stat(f"{path}/{entry.name}".lstrip("/")))
            found = entry.stat(follow_symlinks=False)
        except (OSError, NotFound):
            return None
        if not (modes.S_ISREG(found.st_mode) or modes.S_ISDIR(found.st_mode)):
            return None
        return DirectoryEntry(entry.name, _local_stat(found))

    def _read(self, path: str, about: Attributes, offset_bytes: int, size_bytes: int) -> bytes:
        with self._opened(self._path(path)) as file:
            data: bytes = file.read_at(size_bytes, offset_bytes)
        if len(data) != size_bytes:
            raise Stale(f"{self._settings.url}: {path} is shorter than it was")
        return data

    @contextmanager
    def _opened(self, real: str) -> Iterator[Any]:
        try:
            real.encode()
        except UnicodeEncodeError:
            # pyarrow takes UTF-8 alone; any name at all can be had through its descriptor.
            fd = os.open(real, os.O_RDONLY | os.O_CLOEXEC)
            try:
                with self._filesystem().open_input_file(f"/proc/self/fd/{fd}") as file:
                    yield file
            finally:
                os.close(fd)
        else:
            with self._filesystem().open_input_file(real) as file:
                yield file

    def _check_unchanged(self, path: str, about: Attributes) -> None:
        try:
            now = self._stat(path)
        except (FileNotFoundError, NotFound):
            raise Stale(f"{self._settings.url}: {path} was removed") from None
        if (now.size_bytes, now.tag) != (about.size_bytes, about.tag):
            raise Stale(f"{self._settings.url}: {path} was changed")

    def _filesystem(self) -> Any:
        if self._made is None:
            from pyarrow.fs import LocalFileSystem

            self._made = LocalFileSystem()
        return self._made


def _local_stat(found: os.stat_result) -> Attributes:
    is_directory = modes.S_ISDIR(found.st_mode)
    return Attributes(
        is_directory=is_directory,
        size_bytes=0 if is_directory else found.st_size,
        mtime_ns=found.st_mtime_ns,
        tag="" if is_directory else str(found.st_mtime_ns),
        mode=modes.S_IMODE(found.st_mode) & 0o777,
    )


class S3Store(ArrowStore):
    """A bucket, or what lies under a prefix of it."""

    def __init__(self, settings: UnderStoreSettings, metrics: Metrics) -> None:
        super().__init__(settings, metrics)
        parts = urlsplit(settings.url)
        self._root = f"{parts.netloc}/{unquote(parts.path).strip('/')}".rstrip("/")
        # Opening costs a HEAD; a file that is being filled is opened once.
        self._open_files: OrderedDict[tuple[str, str], Any] = OrderedDict()

    def _key(self, path: str) -> str:
        return f"{self._root}/{path}" if path else self._root

    def _stat(self, path: str) -> Attributes:
        from pyarrow.fs import FileType

        key = self._key(path)
        if path:
            try:
                # One HEAD, and the only way to the ETag: a FileInfo has none.
                return self._stat_of(self._filesystem().open_input_file(key))
            except FileNotFoundError:
                pass
            except OSError as error:
                if not isinstance(_translated(error, ""), NotFound):
                    raise
        info = self._filesystem().get_file_info(key)
        if info.type == FileType.NotFound:
            raise NotFound(f"{self._settings.url}: no {path or 'such bucket or prefix'}")
        return _s3_stat(info)

    def _stat_of(self, file: Any) -> Attributes:
        about = file.metadata()
        modified = about.get("Last-Modified", b"").decode()
        return Attributes(
            is_directory=False,
            size_bytes=file.size(),
            mtime_ns=_mtime_ns(modified),
            tag=about.get("ETag", modified.encode()).decode().strip('"'),
        )

    def _pages(self, path: str) -> Iterator[list[DirectoryEntry]]:
        from pyarrow.fs import FileSelector

        key = self._key(path)
        found = self._filesystem().get_file_info(FileSelector(key, recursive=False))
        yield from _paged(DirectoryEntry(info.base_name, _s3_stat(info)) for info in found)

    def _read(self, path: str, about: Attributes, offset_bytes: int, size_bytes: int) -> bytes:
        file = self._opened(path, about)
        data: bytes = file.read_at(size_bytes, offset_bytes)
        if len(data) != size_bytes:
            self._open_files.pop((path, about.tag), None)
            raise Stale(f"{self._settings.url}: {path} is shorter than it was")
        return data

    def _opened(self, path: str, about: Attributes) -> Any:
        file = self._open_files.get((path, about.tag))
        if file is None:
            file = self._filesystem().open_input_file(self._key(path))
            found = self._stat_of(file)
            if (found.size_bytes, found.tag) != (about.size_bytes, about.tag):
                raise Stale(f"{self._settings.url}: {path} was changed")
            self._open_files[(path, about.tag)] = file
            while len(self._open_files) > OPEN_FILES_MAX:
                self._open_files.popitem(last=False)
        return file

    def _check_unchanged(self, path: str, about: Attributes) -> None:
        # pyarrow cannot send If-Match. A HEAD after the GET says the same: the tag
        # was there before (`_opened`) and is there still.
        try:
            found = self._stat_of(self._filesystem().open_input_file(self._key(path)))
        except FileNotFoundError:
            raise Stale(f"{self._settings.url}: {path} was removed") from None
        if (found.size_bytes, found.tag) != (about.size_bytes, about.tag):
            self._open_files.pop((path, about.tag), None)
            raise Stale(f"{self._settings.url}: {path} was changed")

    def _filesystem(self) -> Any:
        if self._made is None:
            self._made = _s3_filesystem(self._settings)
        return self._made


def _s3_filesystem(settings: UnderStoreSettings) -> Any:
    # Servers other than AWS's reject the checksums that newer SDKs add.
    if settings.s3.endpoint:
        os.environ.setdefault("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required")
        os.environ.setdefault("AWS_RESPONSE_CHECKSUM_VALIDATION", "when_required")
        os.environ.setdefault("AWS_EC2_METADATA_DISABLED", "true")
    import pyarrow
    from pyarrow.fs import AwsStandardS3RetryStrategy, S3FileSystem

    # Before the client is made: it takes its number of connections from this.
    pyarrow.set_io_thread_count(max(pyarrow.io_thread_count(), settings.concurrency))
    endpoint = urlsplit(settings.s3.endpoint)
    return S3FileSystem(
        access_key=settings.s3.access_key or None,
        secret_key=settings.s3.secret_key or None,
        session_token=settings.s3.session_token or None,
        anonymous=settings.s3.anonymous,
        region=settings.s3.region,
        scheme=endpoint.scheme or "https",
        endpoint_override=endpoint.netloc or None,
        force_virtual_addressing=not settings.s3.path_style,
        connect_timeout=min(5.0, settings.timeout_s),
        retry_strategy=AwsStandardS3RetryStrategy(max_attempts=3),
    )


def _s3_stat(info: Any) -> Attributes:
    from pyarrow.fs import FileType

    is_directory = info.type == FileType.Directory
    size_bytes = 0 if is_directory else info.size
    return Attributes(is_directory, size_bytes, info.mtime_ns or 0, tag="")


def _mtime_ns(text: str) -> int:
    """Read pyarrow's rendering of Last-Modified; 0 when there is none."""
    from datetime import datetime

    try:
        return int(datetime.fromisoformat(text).timestamp()) * 10**9
    except ValueError:
        return 0


def _paged(entries: Iterator[DirectoryEntry]) -> Iterator[list[DirectoryEntry]]:
    while page := list(islice(entries, PAGE_ENTRIES)):
        yield page
