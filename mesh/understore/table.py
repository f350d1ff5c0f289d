"""Which under-store appears under which path of the mesh."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mesh.blocks import DIRECTORY, Attributes, FileVersion, under_store_tag, version_of
from mesh.errors import NotFound
from mesh.understore.understore import Durability, UnderStore, UnderStoreSettings


@dataclass(frozen=True, slots=True)
class Place:
    """One path, seen from its under-store."""

    settings: UnderStoreSettings
    store: UnderStore
    path: str
    """Below the under-store's root, without a leading slash."""

    @property
    def durability(self) -> Durability:
        """What has a file here when its writer is told that it is safe."""
        found, length = self.settings.durability, -1
        for below, durability in self.settings.durabilities:
            if len(below) > length and f"{self.path}/".startswith(f"{below}/"):
                found, length = durability, len(below)
        return found

    def version(self, about: Attributes) -> FileVersion:
        """Name the content that the file has while the under-store says *about* of it."""
        return version_of(
            source=self.settings.url,
            path=self.path,
            size_bytes=about.size_bytes,
            tag=about.tag,
            block_bytes=self.settings.block_bytes,
        )


class MountTable:
    """The mount table; the deepest mount over a path has it."""

    def __init__(
        self, mounts: Mapping[str, UnderStoreSettings], stores: Mapping[str, UnderStore]
    ) -> None:
        """Take the mounts by path, and the open under-stores by URL."""
        self._mounts = {_parts(path): settings for path, settings in mounts.items()}
        self._stores = stores
        below = {"/".join(parts): settings for parts, settings in self._mounts.items()}
        self._deepest_first = sorted(below.items(), key=lambda each: -len(each[0]))

    def place(self, path: str) -> Place:
        """Return where *path* is; `NotFound` when no mount is over it."""
        path = plain(path)
        for mount, settings in self._deepest_first:
            if not mount:
                return Place(settings, self._stores[settings.url], path)
            if path.startswith(mount) and path[len(mount) : len(mount) + 1] in ("", "/"):
                return Place(settings, self._stores[settings.url], path[len(mount) + 1 :])
        raise NotFound(f"{path}: no mount is over it")

    def roots(self) -> list[str]:
        """Return the paths of all mounts."""
        return ["/".join(parts) for parts in self._mounts]

    def store_of(self, file: FileVersion) -> UnderStore:
        """Return the under-store that a version comes from; `NotFound` if it is not ours."""
        try:
            return self._stores[file.source]
        except KeyError:
            raise NotFound(f"{file.source} is not in this peer's mount table") from None

    def paths_of(self, source: str, path: str) -> list[str]:
        """Return where in the mesh a path of an under-store appears."""
        mounts = [parts for parts, settings in self._mounts.items() if settings.url == source]
        found = ["/".join((*parts, *_parts(path))) for parts in mounts]
        return [each for each in found if self.place(each).path == path]

    def with_mounts(
        self, path: str, page: Sequence[tuple[str, Attributes]], *, after: str, is_last: bool
    ) -> list[tuple[str, Attributes]]:
        """Return a page of the directory *path*, entries by name, with the mounts that lie in it.

        The page is what comes after the name *after*.
        """
        below = self.names_below(path)
        if not below:
            return list(page)
        hidden = set(below)
        end = page[-1][0] if page else after
        mounts = [(n, DIRECTORY) for n in below if name_bytes(n) > name_bytes(after)]
        here = [each for each in mounts if is_last or name_bytes(each[0]) <= name_bytes(end)]
        shown = [each for each in page if each[0] not in hidden]
        return sorted(shown + here, key=lambda each: name_bytes(each[0]))

    def names_below(self, path: str) -> list[str]:
        """Return the names in the directory *path* that lead to mounts further down."""
        parts = _parts(path)
        below = {
            mount[len(parts)] for mount in self._mounts if mount[: len(parts)] == parts != mount
        }
        return sorted(below)


def name_bytes(name: str) -> bytes:
    """Return what names are ordered by."""
    return name.encode("utf-8", "surrogateescape")


def plain(path: str) -> str:
    """Return a path without empty parts."""
    if path and (path[0] == "/" or path[-1] == "/" or "//" in path):
        return "/".join(_parts(path))
    return path


def attributes_of(file: FileVersion) -> Attributes:
    """Return what the under-store said when this version was named, as `read` needs it."""
    tag = under_store_tag(file.tag)
    return Attributes(is_directory=False, size_bytes=file.size_bytes, mtime_ns=0, tag=tag)


def _parts(path: str) -> tuple[str, ...]:
    return tuple(part for part in path.split("/") if part)
