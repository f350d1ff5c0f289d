"""What the file system looks like; knows no FUSE binding.

A frontend translates: numbers, names and flags of its kernel protocol on one side,
these verbs and `MeshError`s on the other.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from itertools import count

from mesh.blocks import DirectoryEntry
from mesh.client.client import ListedPage, MeshClient
from mesh.client.file import MeshFile
from mesh.clock import Clock, monotonic_s
from mesh.errors import IsADirectory, NotFound, Stale
from mesh.fuse.nodes import Node, Nodes
from mesh.wire.messages import Change

NAME_BYTES_MAX = 255

VERSION, CACHED, STALE, AGE, REFRESH = (
    f"user.mesh.{name}" for name in ("version", "cached", "stale", "age", "refresh")
)
XATTRS = (VERSION, CACHED, STALE, AGE)
"""Those that are listed: REFRESH is only for who asks for it, because it asks the under-store."""


@dataclass(slots=True)
class OpenDirectory:
    """A directory being read: a stream that can begin again."""

    node: Node
    pages: AsyncIterator[ListedPage] | None = None
    page: tuple[DirectoryEntry, ...] = ()
    fresh_s: float = 0.0
    """For so long the attributes in `page` may be believed."""

    page_start: int = 0
    """The number of the first entry of `page`, counted from the beginning."""

    is_over: bool = False


@dataclass(slots=True)
class _OpenFile:
    node: Node
    file: MeshFile


@dataclass(slots=True)
class _Handles:
    files: dict[int, _OpenFile] = field(default_factory=dict)
    directories: dict[int, OpenDirectory] = field(default_factory=dict)


class View:
    """The tree of one mount."""

    def __init__(self, client: MeshClient, *, clock: Clock = monotonic_s) -> None:
        self._client = client
        self._clock = clock
        self.nodes = Nodes()
        self._handles = _Handles()
        self._numbers = count(1)

    # Names

    async def lookup(self, parent: int, name: str) -> Node:
        """Return the node of a name; `NotFound` if there is none. Counts a reference."""
        if name == ".":
            node = self.nodes.node(parent)
        elif name == "..":
            path = self.nodes.node(parent).path.rpartition("/")[0]
            node = await self._noted(path)
        else:
            node = await self._noted(f"{self.nodes.node(parent).path}/{name}".lstrip("/"))
        node.lookups += 1
        return node

    async def attributes(self, number: int) -> Node:
        """Return a node with its attributes as they are now.

        `Stale` when its path has another version by now: the kernel then looks the
        path up again. A node that is open keeps the attributes of its version.
        """
        node = self.nodes.node(number)
        if node.opens:
            return node
        now = await self._noted(node.path)
        if now is not node:
            raise Stale(f"{node.path}: has another version now")
        return node

    async def _noted(self, path: str, *, refresh: bool = False) -> Node:
        try:
            reply = await self._client.stat(path, refresh=refresh)
        except NotFound:
            if (gone := self.nodes.at(path)) is not None:
                self.nodes.leave(gone)
            raise
        return self.nodes.note(
            path,
            reply.attributes,
            reply.file,
            fresh_s=reply.fresh_s,
            now_s=self._clock(),
        )

    def forget(self, number: int, lookups: int) -> None:
        self.nodes.forget(number, lookups)

    # Files

    def take_back(self, path: str, change: Change) -> list[tuple[int, str]]:
        """Believe no more what has changed in a directory.

        Returns what the kernel is to forget: numbers of directories, and names in them.
        """
        directory = self.nodes.at(path)
        if directory is None:
            return []
        names = list(change.names)
        if change.is_all:
            names = [node.path.rpartition("/")[2] for node in self.nodes.below(path)]
        for name in names:
            node = self.nodes.at(f"{path}/{name}".lstrip("/"))
            if node is not None:
                node.fresh_s = 0.0
        return [(directory.number, name) for name in names]

    async def open(self, number: int, *, refresh: bool = False) -> int:
        """Open a node at its version; `Stale` when its path has another one by now.

        With *refresh* the under-store says whether it has.
        """
        node = self.nodes.node(number)
        is_known = node.file is not None and (node.opens or node.is_fresh(self._clock()))
        if refresh or not is_known or self._client.is_suspect(node.path):
            now = await self._noted(node.path, refresh=refresh)
            if now is not node:
                raise Stale(f"{node.path}: has another version now")
        file = node.file
        if file is None:
            raise IsADirectory(f"{node.path}: is a directory")
        handle = next(self._numbers)
        self._handles.files[handle] = _OpenFile(node, self._client.open_version(node.path, file))
        node.opens += 1
        return handle

    def file(self, handle: int) -> MeshFile:
        return self._handles.files[handle].file

    def release(self, handle: int) -> None:
        opened = self._handles.files.pop(handle)
        opened.node.opens -= 1
        opened.file.close()

    # Directories

    def open_directory(self, number: int) -> int:
        handle = next(self._numbers)
        self._handles.directories[handle] = OpenDirectory(self.nodes.node(number))
        return handle

    async def entries(
        self, handle: int, start: int
    ) -> AsyncIterator[tuple[int, DirectoryEntry, str]]:
        """Yield entries from number *start*, each with its number and its path.

        Only one page is in memory at a time. Going back begins the stream anew.
        """
        directory = self._handles.directories[handle]
        if directory.pages is None or start < directory.page_start:
            directory.pages = self._client.scan(directory.node.path)
            directory.page, directory.page_start, directory.is_over = (), 0, False
        below = f"{directory.node.path}/" if directory.node.path else ""
        while True:
            while start < directory.page_start + len(directory.page):
                entry = directory.page[start - directory.page_start]
                yield start, entry, below + entry.name
                start += 1
            if directory.is_over:
                return
            directory.page_start += len(directory.page)
            directory.page = ()
            try:
                page = await anext(directory.pages)
                directory.page, directory.fresh_s = page.entries, page.fresh_s
            except StopAsyncIteration:
                directory.is_over = True
            except BaseException:
                directory.pages = None  # begin anew, or the rest would seem to be none
                raise

    def listed_for_s(self, handle: int) -> float:
        """Return for how long the attributes of the last entry may be believed."""
        return self._handles.directories[handle].fresh_s

    def note_listed(self, entry: DirectoryEntry, path: str, *, fresh_s: float = 0.0) -> Node:
        """Return the node of an entry of a listing. Counts no reference."""
        node = self.nodes.at(path)
        if node is not None and node.opens and not entry.attributes.is_directory:
            return node
        return self.nodes.note(path, entry.attributes, None, fresh_s=fresh_s, now_s=self._clock())

    def release_directory(self, handle: int) -> None:
        del self._handles.directories[handle]

    # Extended attributes

    async def xattr(self, number: int, name: str) -> str | None:
        """Return the value of one of XATTRS or REFRESH, or None when the node has none such."""
        node = self.nodes.node(number)
        if name not in (*XATTRS, REFRESH):
            return None
        reply = await self._client.stat(node.path, refresh=name == REFRESH)
        if name == STALE:
            return "1" if reply.is_stale else "0"
        if name == AGE:
            return f"{reply.age_s:.3f}"
        if reply.file is None:
            return None
        if name in (VERSION, REFRESH):
            return reply.file.id.hex()
        return f"{self._client.here.count(reply.file.id)}/{reply.file.block_count}"

    # Rights

    def rights(self, node: Node) -> tuple[int | None, int | None, int]:
        """Return owner, group and mode of a node as the mount table has them; None where it
        says nothing."""
        about = node.attributes
        mount = self._client.mount_of(node.path)
        if mount is None:
            return None, None, about.mode or 0o555
        default = mount.directory_mode if about.is_directory else mount.file_mode
        return mount.uid, mount.gid, (about.mode or default) & ~mount.umask & 0o777
