"""Google Cloud Storage and Azure Blob Storage, by pyarrow.

pyarrow hands out a listing whole, and without ETags: entries have no tag there,
and a stat tells it. It cannot read on a condition, so that a range takes an opening,
a read and a look whether the object is still the same.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any

from mesh.blocks import Attributes, DirectoryEntry
from mesh.errors import MeshError, NotADirectory, NotFound, Refused
from mesh.metrics import Metrics
from mesh.understore.keys import Hidden, Level, why_no_path
from mesh.understore.pool import (
    DIRECTORY,
    CheckedStore,
    SlowDown,
    first_line,
    paged,
    split_url,
)
from mesh.understore.understore import UnderStoreSettings

# pyarrow has one error for nearly all that a server answers, and puts the answer into its text.
_ANSWER = re.compile(r"google::cloud::Status\((\w+)|Azure Error: \[\w*\] (\d{3})")
_OURS: dict[str, type[MeshError]] = {
    "NOT_FOUND": NotFound,
    "PERMISSION_DENIED": Refused,
    "UNAUTHENTICATED": Refused,
    "RESOURCE_EXHAUSTED": SlowDown,
    "401": Refused,
    "403": Refused,
    "404": NotFound,
    "429": SlowDown,
    "503": SlowDown,
}


class ArrowStore(CheckedStore):
    """A bucket or container, or what lies under a prefix of it."""

    def __init__(self, settings: UnderStoreSettings, metrics: Metrics) -> None:
        super().__init__(settings, metrics)
        _, place, prefix = split_url(settings.url)
        self._root = "/".join(filter(None, (place.partition("@")[0], prefix)))

    lists_recursively = False
    """Whether a directory can be listed only with all that is below it."""

    @abstractmethod
    def _make(self) -> Any: ...

    def _key(self, path: str) -> str:
        if reason := why_no_path(path):
            raise NotFound(f"{self._settings.url}: {path}: {reason}")
        return f"{self._root}/{path}" if path else self._root

    def _stat(self, path: str) -> Attributes:
        from pyarrow.fs import FileType

        if path:
            try:
                # The only way to the ETag: a FileInfo has none.
                with self._client().open_input_file(self._key(path)) as file:
                    return _attributes_of(file)
            except OSError as error:
                if not self._is_no_file(error):
                    raise
        info = self._client().get_file_info(self._key(path))
        if info.type == FileType.NotFound:
            raise NotFound(f"{self._settings.url}: no {path or 'such place'}")
        return _attributes(info)

    def _is_no_file(self, error: OSError) -> bool:
        """Whether opening failed because there is no object, but maybe a directory."""
        is_directory = "not a regular file" in str(error).lower() or isinstance(
            error, IsADirectoryError
        )
        return is_directory or isinstance(self._translated(error, ""), NotFound)

    def _pages(self, path: str) -> Iterator[list[DirectoryEntry]]:
        from pyarrow.fs import FileSelector, FileType

        key = self._key(path)
        if path and not self._stat(path).is_directory:
            raise NotADirectory(f"{self._settings.url}: {path} is a file")
        found = self._client().get_file_info(FileSelector(key, recursive=self.lists_recursively))
        files: dict[str, Any] = {}
        folders = set()
        for info in found:
            name, is_deeper, _ = info.path.removeprefix(f"{key}/").partition("/")
            if is_deeper or info.type == FileType.Directory:
                folders.add(f"{key}/{name}/")
            else:
                files[info.path] = info
        level = Level[Any](f"{key}/")
        yield from paged(self._entries(level, sorted(files.items()), sorted(folders)))

    def _entries(
        self, level: Level[Any], files: list[tuple[str, Any]], folders: list[str]
    ) -> Iterator[DirectoryEntry]:
        for entry in level.entries(files, folders):
            if isinstance(entry, Hidden):
                self._hide(entry.key, entry.reason)
            else:
                about = _attributes(entry.content) if entry.content else DIRECTORY
                yield DirectoryEntry(entry.name, about)

    def _read_range(
        self, path: str, about: Attributes, offset_bytes: int, size_bytes: int
    ) -> bytes:
        # Closed by hand, here and in `_stat`: pyarrow's own clean-up may wait for the
        # server, and would hold the GIL meanwhile.
        with self._client().open_input_file(self._key(path)) as file:
            data: bytes = file.read_at(size_bytes, offset_bytes)
        return data

    def _translated(self, error: Exception, where: str) -> MeshError:
        answer = _ANSWER.search(str(error))
        ours = _OURS.get(answer[1] or answer[2]) if answer else None
        if ours is not None:
            return ours(f"{where}: {first_line(error)}")
        return super()._translated(error, where)


class GcsStore(ArrowStore):
    """A bucket of Google Cloud Storage."""

    # Otherwise pyarrow leaves out the directories that have no object as their mark,
    # which is nearly all of them: https://github.com/apache/arrow/issues/35993
    lists_recursively = True

    def _make(self) -> Any:
        from pyarrow.fs import GcsFileSystem

        gcs = self._settings.gcs
        scheme, _, authority = gcs.endpoint.rstrip("/").rpartition("://")
        return GcsFileSystem(
            anonymous=gcs.anonymous,
            target_service_account=gcs.target_service_account or None,
            project_id=gcs.project or None,
            scheme=scheme or None,
            endpoint_override=authority or None,
            # It repeats by itself, and knows whole seconds alone.
            retry_time_limit=timedelta(seconds=max(1, round(self._settings.timeout_s / 2))),
        )


class AzureStore(ArrowStore):
    """A container of Azure Blob Storage."""

    def _make(self) -> Any:
        from pyarrow.fs import AzureFileSystem

        azure = self._settings.azure
        _, place, _ = split_url(self._settings.url)
        host = place.partition("@")[2]
        scheme, _, authority = azure.endpoint.rstrip("/").rpartition("://")
        return AzureFileSystem(
            azure.account or host.partition(".")[0],
            account_key=azure.account_key or None,
            sas_token=azure.sas_token or None,
            tenant_id=azure.tenant_id or None,
            client_id=azure.client_id or None,
            client_secret=azure.client_secret or None,
            blob_storage_scheme=scheme or None,
            blob_storage_authority=authority or None,
            dfs_storage_scheme=scheme or None,
            dfs_storage_authority=authority or None,
        )


def _attributes_of(file: Any) -> Attributes:
    """Describe an object that was opened."""
    about = {key.lower(): value.decode() for key, value in (file.metadata() or {}).items()}
    mtime_ns = _mtime_ns(about.get("last-modified", "") or about.get("updated", ""))
    tag = about.get("generation") or about.get("etag", "").strip('"') or f"mtime-{mtime_ns}"
    return Attributes(is_directory=False, size_bytes=file.size(), mtime_ns=mtime_ns, tag=tag)


def _attributes(info: Any) -> Attributes:
    """Describe what a listing has, which names no tag."""
    from pyarrow.fs import FileType

    is_directory = info.type == FileType.Directory
    return Attributes(is_directory, 0 if is_directory else info.size, info.mtime_ns or 0)


def _mtime_ns(text: str) -> int:
    """Read what pyarrow says of the last change; 0 when that is nothing."""
    for parse in (datetime.fromisoformat, parsedate_to_datetime):
        with suppress(ValueError):
            return int(parse(text).timestamp()) * 10**9
    return 0
