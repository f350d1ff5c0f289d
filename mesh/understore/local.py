"""A directory of this machine, or of a network file system mounted on it, by pyarrow."""

from __future__ import annotations

import os
import stat as modes
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mesh.blocks import MIB, Attributes, DirectoryEntry
from mesh.errors import NotFound, Stale
from mesh.metrics import Metrics
from mesh.understore.pool import CheckedStore, paged, split_url
from mesh.understore.understore import UnderStoreSettings

LOCAL_REQUEST_BYTES = MIB


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

    def _stat(self, path: str) -> Attributes:
        return _attributes(os.stat(self._path(path)))  # noqa: PTH116

    def _pages(self, path: str) -> Iterator[list[DirectoryEntry]]:
        # pyarrow hands out a listing only whole; scandir's is a stream.
        with os.scandir(self._path(path)) as entries:
            found = (self._entry(path, entry) for entry in entries)
            yield from paged(entry for entry in found if entry is not None)

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

    def _make(self) -> Any:
        from pyarrow.fs import LocalFileSystem

        return LocalFileSystem()


def _attributes(found: os.stat_result) -> Attributes:
    is_directory = modes.S_ISDIR(found.st_mode)
    return Attributes(
        is_directory=is_directory,
        size_bytes=0 if is_directory else found.st_size,
        mtime_ns=found.st_mtime_ns,
        tag="" if is_directory else str(found.st_mtime_ns),
        mode=modes.S_IMODE(found.st_mode) & 0o777,
    )
