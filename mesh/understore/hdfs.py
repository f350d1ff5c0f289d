"""HDFS by hdfs-native, which is Rust: no JVM on a GPU host.

The NameNode names no versions; length and the last change in milliseconds do. A
call may hang for minutes while the NameNode is away, which is what the deadlines
and the spare threads of `PooledStore` are for.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

from mesh.blocks import Attributes, DirectoryEntry
from mesh.errors import (
    Exists,
    IsADirectory,
    MeshError,
    NotADirectory,
    NotEmpty,
    NotFound,
    Refused,
    Stale,
)
from mesh.metrics import Metrics
from mesh.understore.keys import why_no_path
from mesh.understore.pool import CheckedStore, SlowDown, first_line, needed, paged, split_url
from mesh.understore.understore import UnderStoreSettings
from mesh.understore.uploads import Sink
from mesh.understore.writable import NEW_FILE_MODE, PERMISSIONS, is_upload, upload_name

OPEN_FILES_MAX = 256
_OWN_MODE = 0o600
_AS_IT_IS = 2**64 - 1
"""Java's -1, as a time of access: the NameNode leaves it alone."""

# By the Java class that the NameNode names; first match wins.
_WORDS: list[tuple[str, type[MeshError]]] = [
    ("AccessControlException", Refused),
    ("AuthorizationException", Refused),
    ("SaslException", Refused),
    ("FileNotFoundException", NotFound),
    ("InvalidPathException", NotFound),
    ("ParentNotDirectoryException", NotFound),
    ("UnresolvedPathException", NotFound),
    ("ServerTooBusyException", SlowDown),
    ("RetriableException", SlowDown),
]


class HdfsStore(CheckedStore):
    """A directory of an HDFS."""

    def __init__(self, settings: UnderStoreSettings, metrics: Metrics) -> None:
        super().__init__(settings, metrics)
        with needed("hdfs-native", "hdfs"):
            import hdfs_native  # noqa: F401
        _, self._name_node, root = split_url(settings.url)
        self._root = f"/{root}".rstrip("/")
        # Opening asks for the places of the blocks; a file that is being filled is opened once.
        self._open_files: OrderedDict[tuple[str, str], Any] = OrderedDict()
        self._opening = threading.Lock()

    def _make(self) -> Any:
        from hdfs_native import Client

        hdfs = self._settings.hdfs
        return Client(
            f"hdfs://{self._name_node}",
            dict(hdfs.options) or None,
            hdfs.config_dir or None,
            kerberos_principal=hdfs.kerberos_principal or None,
            kerberos_keytab=hdfs.kerberos_keytab or None,
        )

    def _path(self, path: str) -> str:
        if reason := why_no_path(path):
            raise NotFound(f"{self._settings.url}: {path}: {reason}")
        return f"{self._root}/{path}" if path else self._root or "/"

    def _stat(self, path: str) -> Attributes:
        return _attributes(self._client().get_file_info(self._path(path)))

    def _pages(self, path: str) -> Iterator[list[DirectoryEntry]]:
        if not self._stat(path).is_directory:
            raise NotADirectory(f"{self._settings.url}: {path} is a file")
        found = self._client().list_status(self._path(path))
        named = ((each.path.rpartition("/")[2], each) for each in found)
        yield from paged(
            DirectoryEntry(name, _attributes(each)) for name, each in named if not is_upload(name)
        )

    def _read_range(
        self, path: str, about: Attributes, offset_bytes: int, size_bytes: int
    ) -> bytes:
        known = (path, about.tag)
        with self._opening:
            file = self._open_files.get(known)
        if file is None:
            file = self._client().read(self._path(path))
        if len(file) < offset_bytes + size_bytes:
            raise Stale(f"{self._settings.url}: {path} is shorter than it was")
        try:
            data: bytes = file.read_range(offset_bytes, size_bytes)
        except Exception:
            with self._opening:
                self._open_files.pop(known, None)  # its blocks may be elsewhere by now
            raise
        with self._opening:
            self._open_files[known] = file
            while len(self._open_files) > OPEN_FILES_MAX:
                self._open_files.popitem(last=False)
        return data

    def _sink(self, path: str, mode: int | None) -> Sink:
        self._path(path)  # says so if there can be no such path
        return _HdfsSink(self, path, mode)

    def _remove(self, path: str, only: str | None) -> None:
        self.check_replaced(path, only)
        if self._stat(path).is_directory:
            raise IsADirectory(f"{self._settings.url}: {path} is a directory")
        self._client().delete(self._path(path), recursive=False)

    def _make_directory(self, path: str, mode: int | None = None) -> None:
        is_new = mode is not None and self._found(path) is None
        try:
            self._client().mkdirs(self._path(path), create_parent=True)
        except FileExistsError as error:
            raise NotADirectory(f"{self._settings.url}: {path} is a file") from error
        if mode is not None and is_new:
            self._client().set_permission(self._path(path), mode & PERMISSIONS)

    def _remove_directory(self, path: str) -> None:
        if not self._stat(path).is_directory:
            raise NotADirectory(f"{self._settings.url}: {path} is a file")
        try:
            self._client().delete(self._path(path), recursive=False)
        except Exception as error:
            if "PathIsNotEmptyDirectoryException" in str(error) or "is non empty" in str(error):
                raise NotEmpty(f"{self._settings.url}: {path} is not empty") from error
            raise

    def _move(self, path: str, target: str, over: str | None) -> Attributes:
        moved, found = self.check_moved(path, target, over)
        self._make_directory(target.rpartition("/")[0])
        here, there = self._path(path), self._path(target)
        if found and (moved.size_bytes, moved.tag) == (found.size_bytes, found.tag):
            # Both were written in one millisecond: two contents must not have one name.
            mtime_ms = moved.mtime_ns // 10**6 + 1
            self._client().set_times(here, mtime_ms, _AS_IT_IS)
        try:
            self._client().rename(here, there, overwrite=not moved.is_directory and over != "")
        except FileExistsError as error:
            kind = Exists if moved.is_directory else Stale
            raise kind(f"{self._settings.url}: {target} exists") from error
        return self._stat(target)

    def _set_mode(self, path: str, mode: int) -> bool:
        real = self._path(path)
        others = self._client().get_file_info(real).permission & ~PERMISSIONS
        self._client().set_permission(real, others | mode & PERMISSIONS)
        return True

    def _translated(self, error: Exception, where: str) -> MeshError:
        """hdfs-native passes on what the NameNode says as text."""
        text = str(error)
        for word, ours in _WORDS:
            if word in text and not isinstance(error, FileNotFoundError | PermissionError):
                return ours(f"{where}: {first_line(error)[:200]}")
        return super()._translated(error, where)


class _HdfsSink:
    """A file that is renamed when it is whole."""

    def __init__(self, store: HdfsStore, path: str, mode: int | None) -> None:
        from hdfs_native import WriteOptions

        self._store = store
        self._path = path
        self._mode = mode
        parent, _, _ = path.rpartition("/")
        self._own = store._path(f"{parent}/{upload_name()}".lstrip("/"))
        self._client = store._client()
        options = WriteOptions(create_parent=True, permission=_OWN_MODE)
        self._file = self._client.create(self._own, options)
        self._is_closed = self._is_done = False

    def append(self, data: bytes) -> None:
        self._file.write(data)

    def publish(self, over: str | None) -> Attributes:
        self._close()
        self._store.check_replaced(self._path, over)
        self._client.set_permission(self._own, self._final_mode())
        target = self._store._path(self._path)
        try:
            self._client.rename(self._own, target, overwrite=over != "")
        except FileExistsError as error:
            raise Stale(f"{target} exists") from error
        self._is_done = True
        return self._store._stat(self._path)

    def _final_mode(self) -> int:
        if self._mode is not None:
            return self._mode & PERMISSIONS
        found = self._store._found(self._path)
        return found.mode if found and not found.is_directory else NEW_FILE_MODE

    def abort(self) -> None:
        if not self._is_done:
            self._is_done = True
            try:
                self._close()
            finally:
                self._client.delete(self._own)

    def _close(self) -> None:
        if not self._is_closed:
            self._file.close()
            self._is_closed = True


def _attributes(found: Any) -> Attributes:
    mtime_ns = found.modification_time * 10**6
    return Attributes(
        is_directory=found.isdir,
        size_bytes=0 if found.isdir else found.length,
        mtime_ns=mtime_ns,
        tag="" if found.isdir else str(mtime_ns),
        mode=found.permission & 0o777,
    )
