"""What is written and changed through one mount.

A node that is written to has a draft: every handle of this mount reads that, and no other
mount sees it before it is published. Whatever fails here leaves node and name as they were.
"""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace

import structlog

from mesh.blocks import WRITTEN, Attributes, identity_of, under_store_tag
from mesh.client.client import MeshClient
from mesh.client.draft import Draft
from mesh.clock import Clock
from mesh.errors import Exists, IsADirectory, MeshError, NotEmpty, NotFound, ReadOnly
from mesh.fuse.nodes import Node, Nodes
from mesh.wire.messages import StatReply
from mesh.wire.writes import AlterRequest, Verb

log = structlog.get_logger()

KEPT_MAX = 65_536
OWN_S = 5.0
"""More than the word of a change needs to come back here."""

OWN_MAX = 4096


@dataclass(slots=True)
class Kept:
    """What was set and the under-store does not keep; None where nothing was."""

    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    mtime_ns: int | None = None
    content: str = ""
    """Which content had that time."""


NOTHING_KEPT = Kept()


class KeptAttributes:
    """Attributes by path that this mount keeps for as long as it lives."""

    def __init__(self) -> None:
        self._by_path: OrderedDict[str, Kept] = OrderedDict()

    def of(self, node: Node) -> Kept:
        return self._by_path.get(node.path, NOTHING_KEPT)

    def mtime_ns(self, node: Node) -> int:
        """Return when a node was changed last, as far as this mount knows."""
        kept = self.of(node)
        if kept.mtime_ns is not None and kept.content == _content(node):
            return kept.mtime_ns
        return node.attributes.mtime_ns

    def make(self, path: str) -> Kept:
        kept = self._by_path.setdefault(path, Kept())
        self._by_path.move_to_end(path)
        while len(self._by_path) > KEPT_MAX:
            self._by_path.popitem(last=False)
        return kept

    def published(self, node: Node, before: str) -> None:
        """Have a time that was set while it was written stay with what was published."""
        kept = self._by_path.get(node.path)
        if kept is not None and kept.content == before:
            kept.content = _content(node)

    def changed(self, node: Node) -> None:
        """Note that the content has another time now than one that was set."""
        kept = self._by_path.get(node.path)
        if kept is not None:
            kept.mtime_ns = None

    def rename(self, path: str, target: str) -> None:
        for known in [k for k in self._by_path if k == path or k.startswith(f"{path}/")]:
            self._by_path[f"{target}{known[len(path) :]}"] = self._by_path.pop(known)

    def remove(self, path: str) -> None:
        self._by_path.pop(path, None)


class Edits:
    """The drafts of one mount, and what it does to names."""

    def __init__(
        self, client: MeshClient, nodes: Nodes, kept: KeptAttributes, clock: Clock
    ) -> None:
        self._client = client
        self._nodes = nodes
        self._kept = kept
        self._clock = clock
        self._own: OrderedDict[str, float] = OrderedDict()
        self._busy: Counter[str] = Counter()
        self._done = asyncio.Event()

    def is_own(self, path: str) -> bool:
        """Whether this mount has changed a name itself a moment ago."""
        return self._own.get(path, 0.0) > self._clock()

    @contextmanager
    def _doing(self, *paths: str) -> Iterator[None]:
        """Have what is told of these names meanwhile, and for a while after, be ours."""
        self._note_own(*paths)
        self._busy.update(paths)
        try:
            yield
        finally:
            self._busy.subtract(paths)
            for path in paths:
                if not self._busy[path]:
                    del self._busy[path]
            self._note_own(*paths)
            self._done.set()
            self._done = asyncio.Event()

    async def done(self, path: str) -> None:
        """Wait until nothing is under way that changes a name."""
        while path in self._busy:
            await self._done.wait()  # each one has a deadline of its own

    def _note_own(self, *paths: str) -> None:
        for path in paths:
            self._own[path] = self._clock() + OWN_S
            self._own.move_to_end(path)
        while len(self._own) > OWN_MAX:
            self._own.popitem(last=False)

    def check_writable(self, path: str) -> None:
        """Raise `ReadOnly` where nothing can be written."""
        mount = self._client.mount_of(path)
        if mount is None or mount.read_only:
            raise ReadOnly(f"{path}: can't be written")

    # Files

    async def begin(self, path: str, *, mode: int, is_exclusive: bool) -> Node:
        """Make a file that only this mount sees until it is published."""
        draft = await self._client.writes.draft(path, mode=mode, is_exclusive=is_exclusive)
        about = Attributes(
            is_directory=False,
            size_bytes=0,
            mtime_ns=draft.mtime_ns,
            tag=f"{WRITTEN}{draft.token}",
            mode=mode,
        )
        node = self._nodes.note(path, about, None, fresh_s=0.0, now_s=self._clock())
        node.draft = draft
        return node

    async def write(self, node: Node, offset_bytes: int, data: bytes) -> None:
        draft = node.draft or await self._draft(node)
        await draft.write(offset_bytes, data)
        self._note_written(node, draft)

    async def truncate(self, node: Node, size_bytes: int) -> None:
        """Cut a file, or have it end with zeros; who has not opened it has it shown at once."""
        self.check_writable(node.path)
        draft = node.draft or await self._draft(node, is_cut=not size_bytes)
        try:
            await draft.truncate(size_bytes)
            self._note_written(node, draft)
        finally:
            if not node.writers:
                await self.publish(node)
            if not node.opens:
                await self.end(node)

    async def _draft(self, node: Node, *, is_cut: bool = False) -> Draft:
        base = None
        if node.file is not None and node.file.size_bytes and not is_cut:
            base = self._client.open_version(node.path, node.file)
        draft = await self._client.writes.draft(
            node.path, over=node.attributes.tag, base=base, mode=node.attributes.mode
        )
        if node.draft is not None:  # two began at the same time
            await draft.close()
            return node.draft
        node.draft = draft
        return draft

    def _note_written(self, node: Node, draft: Draft) -> None:
        node.attributes = replace(
            node.attributes, size_bytes=draft.size_bytes, mtime_ns=draft.mtime_ns
        )
        node.fresh_s = 0.0
        self._kept.changed(node)

    async def publish(self, node: Node) -> None:
        """Show what was written to everybody; raises what its writer is to hear."""
        draft = node.draft
        if draft is None:
            return
        before = _content(node)
        with self._doing(node.path):
            reply = await draft.publish()
            if reply is not None:
                mode = node.attributes.mode
                node.attributes = replace(reply.attributes, mode=reply.attributes.mode or mode)
                node.file = reply.file
                node.fresh_s, node.noted_s = reply.fresh_s, self._clock()
                self._kept.published(node, before)

    async def publish_or_log(self, node: Node) -> None:
        """Show what was written; its writer has been told already if that can't be."""
        try:
            await self.publish(node)
        except MeshError as error:
            log.error("write lost", path=node.path, reason=str(error))

    async def end(self, node: Node) -> None:
        """Let the draft of a node go that nobody has open any more."""
        draft = node.draft
        if draft is None:
            return
        await self.publish_or_log(node)
        if node.opens or node.draft is None:
            return  # somebody has opened it meanwhile, or ended it
        node.draft = None
        if draft.is_unseen:
            self._nodes.leave(node)  # its pages hold what nobody else has seen
        await draft.close()

    # Names

    async def make_directory(self, path: str, mode: int) -> StatReply:
        self.check_writable(path)
        request = AlterRequest(Verb.MAKE_DIRECTORY, path, mode=mode)
        with self._doing(path):
            reply = await self._client.writes.alter(request)
        assert reply.found is not None, "what was made is there"
        return reply.found

    async def remove(self, path: str) -> None:
        self.check_writable(path)
        with self._doing(path):
            async with self._begun(path) as begun:
                if begun is not None:
                    self._gone(path)  # nobody else has seen it
                    return
            await self._save(path)
            await self._client.writes.alter(AlterRequest(Verb.REMOVE, path))
            self._gone(path)

    @asynccontextmanager
    async def _begun(self, path: str) -> AsyncIterator[Draft | None]:
        """Give what is written at a path if only this mount sees it, and have nobody publish
        it meanwhile."""
        node = self._nodes.at(path)
        if node is None or node.draft is None:
            yield None
            return
        async with node.draft.turn:
            yield node.draft if node.is_begun else None

    async def _save(self, path: str) -> None:
        """Bring all of a file here that somebody has open and that is about to go."""
        node = self._nodes.at(path)
        if node is not None and node.opens and node.file is not None:
            draft = node.draft or await self._draft(node)
            await draft.settle()

    async def remove_directory(self, path: str) -> None:
        self.check_writable(path)
        if self._nodes.drafts_below(path):
            raise NotEmpty(f"{path}: something is being written in it")
        with self._doing(path):
            await self._client.writes.alter(AlterRequest(Verb.REMOVE_DIRECTORY, path))
            self._gone(path)

    def _gone(self, path: str) -> None:
        node = self._nodes.at(path)
        if node is not None:
            if node.draft is not None:
                node.draft.is_removed = True
            self._nodes.leave(node)
        self._kept.remove(path)

    async def rename(self, path: str, target: str, *, is_exclusive: bool) -> None:
        self.check_writable(path)
        self.check_writable(target)
        if path == target:
            return
        with self._doing(path, target):
            async with self._begun(path) as begun:
                if begun is not None:
                    # Nobody else has seen it: it is shown under the new name alone.
                    begun.over = await self._tag_of(target, is_exclusive=is_exclusive)
                    self._moved(path, target)
                    return
            await self._rename(path, target, is_exclusive=is_exclusive)
            self._moved(path, target)
            await self._follow(target)

    def _moved(self, path: str, target: str) -> None:
        self._gone(target)
        self._nodes.rename(path, target)
        self._kept.rename(path, target)

    async def _follow(self, path: str) -> None:
        """Have what is open below a directory that has moved be read and written there."""
        for node in self._nodes.open_below(path):
            try:
                reply = await self._client.stat(node.path)
            except MeshError:
                continue  # who reads it on meets that himself
            now, before = reply.attributes, node.attributes
            is_same = identity_of(now.tag) == identity_of(before.tag) or (
                under_store_tag(now.tag) == under_store_tag(before.tag) != ""
            )
            if node.draft is not None and not node.is_begun:
                node.draft.over = now.tag
            elif is_same and now.size_bytes == before.size_bytes and reply.file is not None:
                node.file, node.attributes = reply.file, now

    async def _rename(self, path: str, target: str, *, is_exclusive: bool) -> None:
        node = self._nodes.at(path)
        draft = None if node is None else node.draft
        if node is not None:
            await self.publish(node)
        if not is_exclusive:
            await self._save(target)
        request = AlterRequest(Verb.RENAME, path, target, is_exclusive)
        if node is not None:
            about = node.attributes
            request = replace(request, size_bytes=about.size_bytes, tag=about.tag)
        reply = await self._client.writes.alter(request)
        if node is not None and reply.found is not None:
            about = reply.found.attributes
            node.file = reply.found.file
            node.attributes = replace(about, mode=about.mode or node.attributes.mode)
            if draft is not None:
                draft.over = about.tag

    async def _tag_of(self, path: str, *, is_exclusive: bool) -> str:
        """Return the tag of what is at a path; "" when there is nothing."""
        at = self._nodes.at(path)
        if at is not None and at.is_begun:
            return ""
        try:
            found = await self._client.stat(path)
        except NotFound:
            return ""
        if is_exclusive:
            raise Exists(f"{path}: exists")
        if found.attributes.is_directory:
            raise IsADirectory(f"{path}: is a directory")
        return found.attributes.tag

    async def set_mode(self, node: Node, mode: int) -> None:
        """Keep permission bits in the under-store, or as long as this mount lives."""
        self._kept.make(node.path).mode = mode
        node.attributes = replace(node.attributes, mode=mode)
        if node.draft is not None:
            node.draft.mode = mode
        if not node.is_begun:
            self.check_writable(node.path)
            with self._doing(node.path):
                await self._client.writes.alter(AlterRequest(Verb.SET_MODE, node.path, mode=mode))

    def set_owner(self, node: Node, uid: int | None, gid: int | None) -> None:
        self.check_writable(node.path)
        kept = self._kept.make(node.path)
        kept.uid = kept.uid if uid is None else uid
        kept.gid = kept.gid if gid is None else gid

    def set_mtime(self, node: Node, mtime_ns: int) -> None:
        self.check_writable(node.path)
        kept = self._kept.make(node.path)
        kept.mtime_ns, kept.content = mtime_ns, _content(node)


def _content(node: Node) -> str:
    return identity_of(node.attributes.tag)
