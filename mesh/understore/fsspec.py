"""Anything that has an fsspec implementation: fsspec+sftp://host/path, fsspec+memory://.

What names a version is what the implementation tells of a file: an ETag or a
checksum, else the time of the last change, else `ukey`, its own word for it. A
listing is handed out whole, and has a tag only where it tells as much.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from mesh.blocks import Attributes, DirectoryEntry
from mesh.errors import IsADirectory, NotADirectory, NotEmpty, NotFound, UnderStoreUnavailable
from mesh.metrics import Metrics
from mesh.understore.keys import why_no_name, why_no_path
from mesh.understore.pool import DIRECTORY, CheckedStore, needed, paged
from mesh.understore.understore import UnderStoreSettings
from mesh.understore.uploads import Sink
from mesh.understore.writable import is_upload, upload_name

_TAGS = ("ETag", "etag", "e_tag", "checksum", "md5Hash", "content_md5", "generation")
_MTIMES = ("mtime", "LastModified", "last_modified", "updated", "modified", "modify")


class FsspecStore(CheckedStore):
    """A directory as some implementation of fsspec sees it."""

    def __init__(self, settings: UnderStoreSettings, metrics: Metrics) -> None:
        super().__init__(settings, metrics)
        protocol = settings.url.partition("://")[0].removeprefix("fsspec+")
        with needed("fsspec", "fsspec"):
            from fsspec import get_filesystem_class
        with needed(f"what fsspec needs for {protocol}", "fsspec"):
            get_filesystem_class(protocol)

    def _make(self) -> Any:
        from fsspec.core import url_to_fs

        # Listings kept by the implementation would hide every change from us.
        keep_none = {"use_listings_cache": False, "skip_instance_cache": True}
        url = self._settings.url.removeprefix("fsspec+")
        return url_to_fs(url, **keep_none, **dict(self._settings.fsspec.options))

    def _place(self, path: str) -> tuple[Any, str]:
        if reason := why_no_path(path):
            raise NotFound(f"{self._settings.url}: {path}: {reason}")
        filesystem, root = self._client()
        return filesystem, f"{root.rstrip('/')}/{path}" if path else root

    def _info(self, path: str) -> Mapping[str, Any]:
        filesystem, place = self._place(path)
        found: Mapping[str, Any] = filesystem.info(place)
        return found

    def _stat(self, path: str) -> Attributes:
        info = self._info(path)
        about = _attributes(info)
        if about.is_directory or about.tag:
            return about
        filesystem, place = self._place(path)
        try:
            mtime_ns = _time_ns(filesystem.modified(place))
        except NotImplementedError:
            mtime_ns = 0
        tag = str(mtime_ns) if mtime_ns else filesystem.ukey(place)
        return Attributes(
            is_directory=False, size_bytes=about.size_bytes, mtime_ns=mtime_ns, tag=tag
        )

    def _pages(self, path: str) -> Iterator[list[DirectoryEntry]]:
        if not _attributes(self._info(path)).is_directory:
            raise NotADirectory(f"{self._settings.url}: {path} is a file")
        filesystem, place = self._place(path)
        yield from paged(self._entries(filesystem.ls(place, detail=True), place))

    def _entries(self, found: list[Mapping[str, Any]], place: str) -> Iterator[DirectoryEntry]:
        for info in found:
            full = info["name"].rstrip("/")
            if full.strip("/") == place.strip("/"):
                continue  # the mark of this directory
            name = full.rpartition("/")[2]
            if is_upload(name):
                continue
            if reason := why_no_name(name):
                self._hide(full, reason)
            else:
                yield DirectoryEntry(name, _attributes(info))

    def _read_range(
        self, path: str, about: Attributes, offset_bytes: int, size_bytes: int
    ) -> bytes:
        filesystem, place = self._place(path)
        data: bytes = filesystem.cat_file(place, offset_bytes, offset_bytes + size_bytes)
        return data

    def _sink(self, path: str, mode: int | None) -> Sink:
        return _FsspecSink(self, path)

    def _remove(self, path: str, only: str | None) -> None:
        self.check_replaced(path, only)
        if self._stat(path).is_directory:
            raise IsADirectory(f"{self._settings.url}: {path} is a directory")
        filesystem, place = self._place(path)
        filesystem.rm_file(place)

    def _make_directory(self, path: str, mode: int | None = None) -> None:
        filesystem, place = self._place(path)
        with suppress(FileExistsError):  # not every implementation minds
            filesystem.makedirs(place, exist_ok=True)
        if filesystem.isfile(place):
            raise NotADirectory(f"{self._settings.url}: {path} is a file")

    def _remove_directory(self, path: str) -> None:
        if not self._stat(path).is_directory:
            raise NotADirectory(f"{self._settings.url}: {path} is a file")
        filesystem, place = self._place(path)
        if any(self._entries(filesystem.ls(place, detail=True), place)):
            raise NotEmpty(f"{self._settings.url}: {path} is not empty")
        filesystem.rmdir(place)

    def _move(self, path: str, target: str, over: str | None) -> Attributes:
        """One step where the implementation has one; else copies, and then what was copied goes."""
        moved, _ = self.check_moved(path, target, over)
        filesystem, here = self._place(path)
        there = self._place(target)[1]
        if parent := there.rpartition("/")[0]:
            filesystem.makedirs(parent, exist_ok=True)
        if moved.is_directory:
            _move_directory(filesystem, here, there)
        else:
            _move_file(filesystem, here, there)
        about = self._stat(target)
        # Not every implementation says when it did nothing, or but half of it.
        is_whole = (about.is_directory, about.size_bytes) == (moved.is_directory, moved.size_bytes)
        if not is_whole or self._found(path) is not None:
            raise UnderStoreUnavailable(f"{self._settings.url}: {path} was not moved to {target}")
        return about


class _FsspecSink:
    """A file that is moved when it is whole."""

    def __init__(self, store: FsspecStore, path: str) -> None:
        self._store = store
        self._path = path
        self._filesystem, self._target = store._place(path)
        parent = self._target.rpartition("/")[0]
        if parent:
            self._filesystem.makedirs(parent, exist_ok=True)
        self._own = f"{parent}/{upload_name()}"
        self._file = self._filesystem.open(self._own, "wb")
        self._is_done = False

    def append(self, data: bytes) -> None:
        self._file.write(data)

    def publish(self, over: str | None) -> Attributes:
        self._file.close()
        self._store.check_replaced(self._path, over)
        _move_file(self._filesystem, self._own, self._target)
        self._is_done = True
        return self._store._stat(self._path)

    def abort(self) -> None:
        if not self._is_done:
            self._is_done = True
            self._file.close()
            self._filesystem.rm_file(self._own)


def _can_move(filesystem: Any) -> bool:
    """Say whether it moves by itself: fsspec's own way takes names with [ or * for patterns."""
    from fsspec import AbstractFileSystem

    return type(filesystem).mv is not AbstractFileSystem.mv


def _move_file(filesystem: Any, here: str, there: str) -> None:
    if _can_move(filesystem):
        filesystem.mv(here, there)
    else:
        filesystem.cp_file(here, there)
        filesystem.rm_file(here)


def _move_directory(filesystem: Any, here: str, there: str) -> None:
    if _can_move(filesystem):
        takes = inspect.signature(filesystem.mv).parameters
        filesystem.mv(here, there, **({"recursive": True} if "recursive" in takes else {}))
        return
    found = filesystem.find(here, withdirs=True, detail=True)
    kinds = {
        info["name"].strip("/").removeprefix(here.strip("/")): info["type"]
        for info in found.values()
    }
    directories = sorted({"", *(below for below, kind in kinds.items() if kind == "directory")})
    files = [below for below, kind in kinds.items() if kind != "directory"]
    for below in directories:
        filesystem.makedirs(there + below, exist_ok=True)
    for below in files:
        filesystem.cp_file(here + below, there + below)
    for below in files:
        filesystem.rm_file(here + below)
    for below in reversed(directories):
        with suppress(OSError):  # where it is there only as long as something is in it
            filesystem.rmdir(here + below)


def _attributes(info: Mapping[str, Any]) -> Attributes:
    """Describe what an implementation tells; the tag is "" where that names no version."""
    if info["type"] == "directory":
        return DIRECTORY
    times = (_time_ns(info.get(key)) for key in _MTIMES)
    mtime_ns = next(filter(None, times), 0)
    tags = (str(info[key]).strip('"') for key in _TAGS if info.get(key))
    tag = next(tags, "") or (str(mtime_ns) if mtime_ns else "")
    return Attributes(is_directory=False, size_bytes=info["size"] or 0, mtime_ns=mtime_ns, tag=tag)


def _time_ns(told: Any) -> int:
    """Read a time as implementations tell it; 0 when that is nothing known."""
    if isinstance(told, str):
        try:
            told = datetime.fromisoformat(told)
        except ValueError:
            return 0
    if isinstance(told, datetime):
        at = told if told.tzinfo else told.replace(tzinfo=UTC)
        return int(at.timestamp()) * 10**9 + at.microsecond * 1000
    return int(told * 10**9) if isinstance(told, int | float) else 0
