"""A directory of this machine, or of a network file system mounted on it, by pyarrow."""

from __future__ import annotations

import errno
import os
import stat as modes
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from mesh.blocks import MIB, Attributes, DirectoryEntry
from mesh.errors import (
    Elsewhere,
    Exists,
    MeshError,
    NotADirectory,
    NotEmpty,
    NotFound,
    Refused,
    Stale,
    UnderStoreUnavailable,
)
from mesh.metrics import Metrics
from mesh.understore.pool import CheckedStore, paged, split_url
from mesh.understore.understore import UnderStoreSettings
from mesh.understore.uploads import Sink
from mesh.understore.writable import NEW_FILE_MODE, PERMISSIONS, is_upload, upload_name

LOCAL_REQUEST_BYTES = MIB

_NOT_EMPTY = (errno.ENOTEMPTY, errno.EEXIST)


class LocalStore(CheckedStore):
    """A directory; links are followed as far as they stay in it."""

    def __init__(self, settings: UnderStoreSettings, metrics: Metrics) -> None:
        super().__init__(settings, metrics)
        self._root = Path("/" + split_url(settings.url)[2])
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

    def _check_root(self) -> None:
        """Raise if the root is away: of a network file system that is not mounted no file is
        gone."""
        if not os.path.isdir(self._real_root):  # noqa: PTH112
            raise UnderStoreUnavailable(f"{self._settings.url}: the directory does not exist")

    def _translated(self, error: Exception, where: str) -> MeshError:
        if isinstance(error, FileNotFoundError):
            self._check_root()
        return super()._translated(error, where)

    def _stat(self, path: str) -> Attributes:
        try:
            return _attributes(os.stat(self._path(path)))  # noqa: PTH116
        except FileNotFoundError:
            self._check_root()  # before anybody takes it for removed
            raise

    def _pages(self, path: str) -> Iterator[list[DirectoryEntry]]:
        # pyarrow hands out a listing only whole; scandir's is a stream.
        with os.scandir(self._path(path)) as entries:
            found = (self._entry(path, entry) for entry in entries)
            yield from paged(entry for entry in found if entry is not None)

    def _entry(self, path: str, entry: os.DirEntry[str]) -> DirectoryEntry | None:
        """Describe one entry; None for what cannot be read: a dangling link, a device."""
        if is_upload(entry.name):
            return None
        try:
            if entry.is_symlink():
                return DirectoryEntry(entry.name, self._stat(f"{path}/{entry.name}".lstrip("/")))
            found = entry.stat(follow_symlinks=False)
        except (OSError, NotFound):
            return None
        if not (modes.S_ISREG(found.st_mode) or modes.S_ISDIR(found.st_mode)):
            return None
        return DirectoryEntry(entry.name, _attributes(found))

    def _read_range(
        self, path: str, about: Attributes, offset_bytes: int, size_bytes: int
    ) -> bytes:
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
                with self._client().open_input_file(f"/proc/self/fd/{fd}") as file:
                    yield file
            finally:
                os.close(fd)
        else:
            with self._client().open_input_file(real) as file:
                yield file

    def _sink(self, path: str, mode: int | None) -> Sink:
        real = self._path(path)
        self._make_directory(path.rpartition("/")[0])
        return _LocalSink(real, mode, partial(self.check_replaced, path))

    def _remove(self, path: str, only: str | None) -> None:
        self.check_replaced(path, only)
        real = self._link(path)
        os.unlink(real)  # noqa: PTH108
        _sync_directory(os.path.dirname(real))  # noqa: PTH120

    def _make_directory(self, path: str, mode: int | None = None) -> None:
        self._check_root()
        real = self._path(path)
        try:
            os.makedirs(os.path.dirname(real), exist_ok=True)  # noqa: PTH103, PTH120
            os.mkdir(real)  # noqa: PTH102
        except FileExistsError as error:
            if not os.path.isdir(real):  # noqa: PTH112
                raise NotADirectory(f"{self._settings.url}: {path} is a file") from error
        else:
            if mode is not None:
                os.chmod(real, mode & PERMISSIONS)  # noqa: PTH101

    def _remove_directory(self, path: str) -> None:
        try:
            os.rmdir(self._link(path))  # noqa: PTH106
        except OSError as error:
            if error.errno in _NOT_EMPTY:
                raise NotEmpty(f"{self._settings.url}: {path} is not empty") from error
            raise

    def _move(self, path: str, target: str, over: str | None) -> Attributes:
        moved, found = self.check_moved(path, target, over)
        self._make_directory(target.rpartition("/")[0])
        here, there = self._link(path), self._link(target)
        _check_link(here, there)
        if found and (moved.size_bytes, moved.tag) == (found.size_bytes, found.tag):
            # As of files out of one archive: two contents must not have one name.
            mtime_ns = moved.mtime_ns + 1
            os.utime(here, ns=(mtime_ns, mtime_ns))
        try:
            _rename(here, there, is_new=not moved.is_directory and over == "")
        except OSError as error:
            if error.errno == errno.EXDEV:
                raise Elsewhere(f"{path} and {target} are on different file systems") from error
            if moved.is_directory and error.errno in (*_NOT_EMPTY, errno.ENOTDIR):
                raise Exists(f"{self._settings.url}: {target} exists") from error
            if error.errno == errno.EEXIST:
                raise Stale(f"{self._settings.url}: {target} exists") from error
            raise
        return self._stat(target)

    def _set_mode(self, path: str, mode: int) -> bool:
        real = self._path(path)
        others = modes.S_IMODE(os.stat(real).st_mode) & ~PERMISSIONS  # noqa: PTH116
        os.chmod(real, others | mode & PERMISSIONS)  # noqa: PTH101
        return True

    def _link(self, path: str) -> str:
        """Return where the name itself is, be it that of a link."""
        parent, _, name = path.rpartition("/")
        return f"{self._path(parent)}/{name}"

    def _make(self) -> Any:
        from pyarrow.fs import LocalFileSystem

        return LocalFileSystem()


class _LocalSink:
    """A file that is renamed when it is whole and on the disk."""

    def __init__(self, target: str, mode: int | None, check: Callable[[str | None], None]) -> None:
        self._target = target
        self._mode = mode
        self._check = check
        self._directory = os.path.dirname(target)  # noqa: PTH120
        self._path = f"{self._directory}/{upload_name()}"
        self._fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)

    def append(self, data: bytes) -> None:
        left = memoryview(data)
        while left:
            left = left[os.write(self._fd, left) :]

    def publish(self, over: str | None) -> Attributes:
        # The clock of a file system ticks each 4 ms; two contents must not have one time.
        now_ns = time.time_ns()
        os.utime(self._fd, ns=(now_ns, now_ns))
        with suppress(OSError):  # file systems that keep no modes
            os.fchmod(self._fd, self._final_mode())
        os.fsync(self._fd)
        self._check(over)
        if over == "":
            try:
                os.link(self._path, self._target)  # never over what came since the look
            except FileExistsError as error:
                raise Stale(f"{self._target} exists") from error
            os.unlink(self._path)  # noqa: PTH108
        else:
            os.rename(self._path, self._target)  # noqa: PTH104
        _sync_directory(self._directory)
        about = _attributes(os.fstat(self._fd))
        os.close(self._fd)
        self._fd = -1
        return about

    def _final_mode(self) -> int:
        if self._mode is not None:
            return self._mode & PERMISSIONS
        try:
            return os.stat(self._target).st_mode & PERMISSIONS  # noqa: PTH116
        except FileNotFoundError:
            return NEW_FILE_MODE

    def abort(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
            with suppress(FileNotFoundError):
                os.unlink(self._path)  # noqa: PTH108


def _check_link(here: str, there: str) -> None:
    """Raise if a link would lead elsewhere from its new place."""
    if not os.path.islink(here) or os.path.isabs(os.readlink(here)):  # noqa: PTH114, PTH115, PTH117
        return
    if os.path.dirname(here) != os.path.dirname(there):  # noqa: PTH120
        raise Refused(f"{here} is a relative link: it can't leave its directory")


def _rename(here: str, there: str, *, is_new: bool) -> None:
    """Rename for good; with *is_new*, never over what came since the look."""
    if is_new:
        os.link(here, there)
        os.unlink(here)  # noqa: PTH108
    else:
        moved = os.lstat(here)
        os.rename(here, there)  # noqa: PTH104
        with suppress(FileNotFoundError):
            # Of two names of one file, such as a link that broke off leaves, both would stay.
            if os.path.samestat(moved, os.lstat(here)):
                os.unlink(here)  # noqa: PTH108
    for directory in dict.fromkeys(map(os.path.dirname, (there, here))):
        _sync_directory(directory)


def _sync_directory(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _attributes(found: os.stat_result) -> Attributes:
    is_directory = modes.S_ISDIR(found.st_mode)
    return Attributes(
        is_directory=is_directory,
        size_bytes=0 if is_directory else found.st_size,
        mtime_ns=found.st_mtime_ns,
        tag="" if is_directory else str(found.st_mtime_ns),
        mode=modes.S_IMODE(found.st_mode) & 0o777,
    )
