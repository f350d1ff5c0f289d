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
from mesh.errors import MeshError, NotADirectory, NotFound, Refused, Stale
from mesh.metrics import Metrics
from mesh.understore.keys import why_no_path
from mesh.understore.pool import CheckedStore, SlowDown, first_line, needed, paged, split_url
from mesh.understore.understore import UnderStoreSettings

OPEN_FILES_MAX = 256

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
        yield from paged(
            DirectoryEntry(each.path.rpartition("/")[2], _attributes(each)) for each in found
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

    def _translated(self, error: Exception, where: str) -> MeshError:
        """hdfs-native passes on what the NameNode says as text."""
        text = str(error)
        for word, ours in _WORDS:
            if word in text and not isinstance(error, FileNotFoundError | PermissionError):
                return ours(f"{where}: {first_line(error)[:200]}")
        return super()._translated(error, where)


def _attributes(found: Any) -> Attributes:
    mtime_ns = found.modification_time * 10**6
    return Attributes(
        is_directory=found.isdir,
        size_bytes=0 if found.isdir else found.length,
        mtime_ns=mtime_ns,
        tag="" if found.isdir else str(mtime_ns),
        mode=found.permission & 0o777,
    )
