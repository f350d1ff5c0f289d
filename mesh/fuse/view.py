"""What the file system looks like; knows no FUSE binding.

A frontend translates: numbers, names and flags of its kernel protocol on one side,
these verbs and `MeshError`s on the other.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from itertools import count

from mesh.blocks import DirectoryEntry, holders_of, is_staged
from mesh.client.client import ListedPage, MeshClient
from mesh.client.draft import Draft
from mesh.client.file import MeshFile
from mesh.clock import Clock, monotonic_s
from mesh.errors import Exists, IsADirectory, NotFound, Stale
from mesh.fuse.edits import Edits, KeptAttributes
from mesh.fuse.nodes import Node, Nodes
from mesh.store.entries import is_same
from mesh.wire.messages import Change

NAME_BYTES_MAX = 255

VERSION, CACHED, STALE, AGE, REFRESH, PERSISTED, COPIES, QUEUED_SINCE = (
    f"user.mesh.{name}"
    for name in (
        *("version", "cached", "stale", "age", "refresh"),
        *("persisted", "copies", "queued_since"),
    )
)
XATTRS = (VERSION, CACHED, STALE, AGE, PERSISTED, COPIES, QUEUED_SINCE)
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
    writes: bool
    file: MeshFile | None = None

    def close(self) -> None:
        if self.file is not None:
            self.file.close()
            self.file = None


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
        self.kept = KeptAttributes()
        self.edits = Edits(client, self.nodes, self.kept, clock)
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
        known = self.nodes.at(path)
        if known is not None and known.draft is not None:
            return known
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
        told: list[tuple[int, str]] = []
        for name in names:
            where = f"{path}/{name}".lstrip("/")
            node = self.nodes.at(where)
            if node is not None:
                node.fresh_s = 0.0
            told.append((directory.number, name))
        return told

    async def is_known_to_kernel(self, parent: int, name: str) -> bool:
        """Whether a change is one that this mount has made, and still how things are."""
        path = self._below(parent, name)
        if not self.edits.is_own(path):
            return False
        await self.edits.done(path)
        node = self.nodes.at(path)
        if node is not None and node.draft is not None:
            return True
        try:
            reply = await self._client.stat(path)
        except NotFound:
            return node is None
        return node is not None and is_same(node.attributes, reply.attributes)

    async def open(
        self, number: int, *, refresh: bool = False, writes: bool = False, is_cut: bool = False
    ) -> int:
        """Open a node at its version; `Stale` when its path has another one by now.

        With *refresh* the under-store says whether it has. One that *writes* writes to a
        draft, an empty one if what was there *is_cut*.
        """
        node = self.nodes.node(number)
        if writes:
            self.edits.check_writable(node.path)
        if node.draft is None:
            try:
                await self._check_version(node, refresh=refresh)
            except Stale:
                if not is_cut or not self.nodes.take_over(node):
                    raise  # or else nothing of what it had is left
        handle = next(self._numbers)
        self._handles.files[handle] = _OpenFile(node, writes)
        node.opens += 1
        node.writers += writes
        try:
            if is_cut:
                await self.edits.truncate(node, 0)
        except BaseException:
            await self.release(handle)
            raise
        return handle

    async def _check_version(self, node: Node, *, refresh: bool) -> None:
        """Raise `Stale` if the path of a node has another version by now."""
        is_known = node.file is not None and (node.opens or node.is_fresh(self._clock()))
        if refresh or not is_known or self._client.is_suspect(node.path):
            now = await self._noted(node.path, refresh=refresh)
            if now is not node:
                raise Stale(f"{node.path}: has another version now")
        if node.file is None:
            raise IsADirectory(f"{node.path}: is a directory")

    def file(self, handle: int) -> MeshFile | Draft:
        """Return what a handle reads: what is being written here, or the version of its node."""
        opened = self._handles.files[handle]
        node = opened.node
        if node.draft is not None:
            return node.draft
        assert node.file is not None, "it was opened, or published"
        if opened.file is None or opened.file.file.id != node.file.id:
            opened.close()
            opened.file = self._client.open_version(node.path, node.file)
        return opened.file

    async def release(self, handle: int) -> None:
        """Close a handle; what was written and could not be shown is lost with the last one."""
        opened = self._handles.files.pop(handle)
        node = opened.node
        opened.close()
        node.opens -= 1
        node.writers -= opened.writes
        if not node.opens:
            await self.edits.end(node)
        elif opened.writes and not node.writers:
            await self.edits.publish_or_log(node)

    # Writing

    async def create(
        self, parent: int, name: str, *, mode: int, is_exclusive: bool, is_cut: bool
    ) -> tuple[Node, int]:
        """Make a file and open it for writing, or open the one that is there.

        Returns its node, with a reference, and the handle. Nobody else sees it yet.
        """
        path = self._below(parent, name)
        self.edits.check_writable(path)
        try:
            node = await self._noted(path)
        except NotFound:
            node = await self.edits.begin(path, mode=mode, is_exclusive=is_exclusive)
        else:
            if is_exclusive:
                raise Exists(f"{path}: exists")
        handle = await self.open(node.number, writes=True, is_cut=is_cut)
        node.lookups += 1
        return node, handle

    async def write(self, handle: int, offset_bytes: int, data: bytes) -> None:
        await self.edits.write(self._handles.files[handle].node, offset_bytes, data)

    async def flush(self, handle: int) -> None:
        """Show what was written to everybody; raises what close(2) and fsync(2) are to say."""
        opened = self._handles.files[handle]
        if opened.writes:
            await self.edits.publish(opened.node)

    async def make_directory(self, parent: int, name: str, *, mode: int) -> Node:
        """Make a directory; return its node, with a reference."""
        path = self._below(parent, name)
        reply = await self.edits.make_directory(path, mode)
        node = self.nodes.note(
            path, reply.attributes, None, fresh_s=reply.fresh_s, now_s=self._clock()
        )
        node.lookups += 1
        return node

    async def remove(self, parent: int, name: str) -> None:
        await self.edits.remove(self._below(parent, name))

    async def remove_directory(self, parent: int, name: str) -> None:
        await self.edits.remove_directory(self._below(parent, name))

    async def rename(
        self, parent: int, name: str, other: int, target: str, *, is_exclusive: bool
    ) -> None:
        """Give a name another one, in place of what has that unless *is_exclusive*."""
        path, target = self._below(parent, name), self._below(other, target)
        await self.edits.rename(path, target, is_exclusive=is_exclusive)

    def _below(self, parent: int, name: str) -> str:
        return f"{self.nodes.node(parent).path}/{name}".lstrip("/")

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
                end = directory.page_start + len(directory.page)
                for number, node in enumerate(self._unseen(directory), start=end):
                    if number >= start:
                        name = node.path.rpartition("/")[2]
                        yield number, DirectoryEntry(name, node.attributes), node.path
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

    def _unseen(self, directory: OpenDirectory) -> list[Node]:
        """Return what is being made in a directory, which only this mount sees."""
        return [n for n in self.nodes.drafts_in(directory.node.path) if n.is_begun]

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
        if name in (PERSISTED, COPIES, QUEUED_SINCE) and not node.attributes.is_directory:
            return await self._written(node, name)
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

    async def _written(self, node: Node, name: str) -> str:
        """Say whether the under-store has a file, on how many disks it is while it has not,
        and since when it waits."""
        about = node.attributes
        if node.draft is None:
            about = (await self._client.stat(node.path)).attributes
        is_waiting = is_staged(about.tag)
        if name == PERSISTED:
            return "0" if is_waiting else "1"
        if name == COPIES:
            return str(len(holders_of(about.tag)))
        return f"{about.mtime_ns / 1e9:.3f}" if is_waiting else ""

    # Rights

    def rights(self, node: Node) -> tuple[int | None, int | None, int]:
        """Return owner, group and mode of a node as the mount table has them; None where it
        says nothing."""
        about = node.attributes
        mount = self._client.mount_of(node.path)
        if mount is None:
            return None, None, about.mode or 0o555
        default = mount.directory_mode if about.is_directory else mount.file_mode
        kept = self.kept.of(node)
        uid = mount.uid if kept.uid is None else kept.uid
        gid = mount.gid if kept.gid is None else kept.gid
        mode = (about.mode or default) if kept.mode is None else kept.mode
        return uid, gid, mode & ~mount.umask & 0o777
