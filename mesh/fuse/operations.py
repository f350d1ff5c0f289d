"""The pyfuse3 frontend: translates between libfuse and `View`, and does no more.

pyfuse3 ends the mount at an exception that is not FUSEError, so every handler has
one door, `errno_only`.
"""

from __future__ import annotations

import asyncio
import errno
import os
import stat as modes
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import pyfuse3
import structlog
from pyfuse3 import (
    EntryAttributes,
    FileHandleT,
    FileInfo,
    FUSEError,
    InodeT,
    ReaddirToken,
    RequestContext,
    StatvfsData,
)

from mesh.blocks import MIB
from mesh.errors import MeshError
from mesh.fuse.errnos import errno_for
from mesh.fuse.nodes import Node
from mesh.fuse.view import NAME_BYTES_MAX, XATTRS, View
from mesh.metrics import Metrics
from mesh.wire.messages import Change

log = structlog.get_logger()

REQUEST_BYTES_MAX = MIB
CAPACITY_BYTES = 1 << 50
"""What statfs says: the size of an under-store is nobody's to know. JuiceFS says 1 PiB too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelSettings:
    """What the kernel may remember, and who may look."""

    attr_cache_s: float = 60.0
    entry_cache_s: float = 60.0
    negative_entry_cache_s: float = 0.5
    uid: int = 0
    gid: int = 0
    has_xattrs: bool = True
    """Without them the kernel stops asking for any, which `ls -l` does for each name."""


class Buffers:
    """Buffers for reads, used again and again: a fresh megabyte costs its page faults.

    pyfuse3 sends what a handler returns before anything else runs on the loop, so a
    buffer is given back as the handler returns it.
    """

    def __init__(self) -> None:
        self._free: list[bytearray] = []

    def take(self) -> bytearray:
        return self._free.pop() if self._free else bytearray(REQUEST_BYTES_MAX)

    def give_back(self, buffer: bytearray) -> None:
        self._free.append(buffer)


class MeshOperations(pyfuse3.Operations):
    """Handlers of one mount."""

    supports_dot_lookup = True
    enable_writeback_cache = False

    def __init__(self, view: View, settings: KernelSettings, metrics: Metrics) -> None:
        super().__init__()
        self._view = view
        self._settings = settings
        self._metrics = metrics
        self._buffers = Buffers()
        self._forgetting: set[asyncio.Task[None]] = set()
        self._seconds = {
            op: metrics.fuse_seconds.labels(op)
            for op in (
                *("lookup", "getattr", "open", "read", "readdir", "getxattr"),
                *("create", "write", "flush", "fsync", "release", "setattr"),
                *("mkdir", "unlink", "rmdir", "rename"),
            )
        }

    @contextmanager
    def _errno_only(self, op: str) -> Iterator[None]:
        """Let nothing but FUSEError out of a handler, and count how long it took."""
        started_s = time.perf_counter()
        try:
            yield
        except FUSEError:
            raise
        except MeshError as error:
            code = errno_for(error)
            if code == errno.EIO:
                self._metrics.errors.labels(type(error).__name__).inc()
                log.error("request failed", op=op, reason=str(error))
            raise FUSEError(code) from error
        except Exception as error:
            log.exception("handler failed", op=op)
            raise FUSEError(errno.EIO) from error
        finally:
            self._seconds[op].observe(time.perf_counter() - started_s)

    # Names

    async def lookup(
        self, parent_inode: InodeT, name: bytes, ctx: RequestContext
    ) -> EntryAttributes:
        if len(name) > NAME_BYTES_MAX:
            raise FUSEError(errno.ENAMETOOLONG)
        with self._errno_only("lookup"):
            try:
                return self._entry(await self._view.lookup(parent_inode, os.fsdecode(name)))
            except MeshError as error:
                if errno_for(error) != errno.ENOENT or not self._settings.negative_entry_cache_s:
                    raise
            # An entry without a number: the kernel remembers that there is none.
            absent = EntryAttributes()
            absent.st_ino = InodeT(0)
            absent.entry_timeout = self._settings.negative_entry_cache_s
            return absent

    def changed(self, path: str, change: Change) -> None:
        """Have the kernel forget what has changed in a directory."""
        for parent, name in self._view.take_back(path, change):
            if not self._view.edits.is_own(f"{path}/{name}".lstrip("/")):
                self._forget(parent, name)
                continue
            task = asyncio.get_running_loop().create_task(self._forget_others(parent, name))
            self._forgetting.add(task)
            task.add_done_callback(self._forgetting.discard)

    async def _forget_others(self, parent: int, name: str) -> None:
        """Have the kernel forget a name, unless it was changed here alone: a directory that
        is forgotten is no place to be in any more."""
        try:
            is_known = await self._view.is_known_to_kernel(parent, name)
        except (MeshError, KeyError):
            is_known = False
        if not is_known:
            self._forget(parent, name)

    def _forget(self, parent: int, name: str) -> None:
        pyfuse3.invalidate_entry_async(InodeT(parent), os.fsencode(name), ignore_enoent=True)

    async def getattr(self, inode: InodeT, ctx: RequestContext) -> EntryAttributes:
        with self._errno_only("getattr"):
            return self._entry(await self._view.attributes(inode))

    async def forget(self, inode_list: Sequence[tuple[InodeT, int]]) -> None:
        for inode, lookups in inode_list:
            self._view.forget(inode, lookups)

    # Files

    async def open(self, inode: InodeT, flags: int, ctx: RequestContext) -> FileInfo:
        with self._errno_only("open"):
            handle = await self._view.open(
                inode,
                refresh=bool(flags & os.O_DIRECT),
                writes=flags & os.O_ACCMODE != os.O_RDONLY,
                is_cut=bool(flags & os.O_TRUNC),
            )
        # A node is one version, and what is written to it here passes through its pages: they
        # may stay in the kernel's cache.
        return FileInfo(fh=FileHandleT(handle), keep_cache=True)

    async def read(  # type: ignore[override]  # any buffer will do for pyfuse3
        self, fh: FileHandleT, off: int, size: int
    ) -> memoryview:
        buffer = self._buffers.take() if size <= REQUEST_BYTES_MAX else bytearray(size)
        target = memoryview(buffer)[:size]
        with self._errno_only("read"):
            file = self._view.file(fh)
            got_bytes = file.read_now(off, target)
            if got_bytes is None:
                got_bytes = await file.read(off, target)
        # Not after an error: a thread may still be writing into it.
        if size <= REQUEST_BYTES_MAX:
            self._buffers.give_back(buffer)
        return target[:got_bytes]

    async def create(
        self, parent_inode: InodeT, name: bytes, mode: int, flags: int, ctx: RequestContext
    ) -> tuple[FileInfo, EntryAttributes]:
        with self._errno_only("create"):
            node, handle = await self._view.create(
                parent_inode,
                _name(name),
                mode=modes.S_IMODE(mode),
                is_exclusive=bool(flags & os.O_EXCL),
                is_cut=bool(flags & os.O_TRUNC),
            )
            self._note_owner(node, ctx)
            return FileInfo(fh=FileHandleT(handle), keep_cache=True), self._entry(node)

    async def write(self, fh: FileHandleT, off: int, buf: bytes) -> int:
        with self._errno_only("write"):
            await self._view.write(fh, off, buf)
        return len(buf)

    async def flush(self, fh: FileHandleT) -> None:
        with self._errno_only("flush"):
            await self._view.flush(fh)

    async def fsync(self, fh: FileHandleT, datasync: bool) -> None:  # noqa: FBT001 (pyfuse3's)
        with self._errno_only("fsync"):
            await self._view.flush(fh)

    async def release(self, fh: FileHandleT) -> None:
        with self._errno_only("release"):
            await self._view.release(fh)

    async def setattr(
        self,
        inode: InodeT,
        attr: EntryAttributes,
        fields: pyfuse3.SetattrFields,
        fh: FileHandleT | None,
        ctx: RequestContext,
    ) -> EntryAttributes:
        edits = self._view.edits
        with self._errno_only("setattr"):
            node = await self._view.attributes(inode)
            if fields.update_size:
                await edits.truncate(node, attr.st_size)
            if fields.update_mode:
                await edits.set_mode(node, modes.S_IMODE(attr.st_mode))
            if fields.update_uid or fields.update_gid:
                uid = attr.st_uid if fields.update_uid else None
                edits.set_owner(node, uid, attr.st_gid if fields.update_gid else None)
            if fields.update_mtime:
                edits.set_mtime(node, attr.st_mtime_ns)
            return self._entry(node)

    # Names that come and go

    async def mkdir(
        self, parent_inode: InodeT, name: bytes, mode: int, ctx: RequestContext
    ) -> EntryAttributes:
        with self._errno_only("mkdir"):
            found = await self._view.make_directory(
                parent_inode, _name(name), mode=modes.S_IMODE(mode)
            )
            self._note_owner(found, ctx)
            return self._entry(found)

    async def unlink(self, parent_inode: InodeT, name: bytes, ctx: RequestContext) -> None:
        with self._errno_only("unlink"):
            await self._view.remove(parent_inode, _name(name))

    async def rmdir(self, parent_inode: InodeT, name: bytes, ctx: RequestContext) -> None:
        with self._errno_only("rmdir"):
            await self._view.remove_directory(parent_inode, _name(name))

    async def rename(
        self,
        parent_inode_old: InodeT,
        name_old: bytes,
        parent_inode_new: InodeT,
        name_new: bytes,
        flags: int,
        ctx: RequestContext,
    ) -> None:
        if flags & ~pyfuse3.RENAME_NOREPLACE:
            raise FUSEError(errno.EINVAL)
        with self._errno_only("rename"):
            await self._view.rename(
                parent_inode_old,
                _name(name_old),
                parent_inode_new,
                _name(name_new),
                is_exclusive=bool(flags & pyfuse3.RENAME_NOREPLACE),
            )

    async def link(
        self, inode: InodeT, new_parent_inode: InodeT, new_name: bytes, ctx: RequestContext
    ) -> EntryAttributes:
        raise FUSEError(errno.EPERM)  # as link(2) and the next two say of such file systems

    async def symlink(
        self, parent_inode: InodeT, name: bytes, target: bytes, ctx: RequestContext
    ) -> EntryAttributes:
        raise FUSEError(errno.EPERM)

    async def mknod(
        self, parent_inode: InodeT, name: bytes, mode: int, rdev: int, ctx: RequestContext
    ) -> EntryAttributes:
        raise FUSEError(errno.EPERM)

    def _note_owner(self, node: Node, ctx: RequestContext) -> None:
        """Have what was made belong to who made it."""
        if (ctx.uid, ctx.gid) != (self._settings.uid, self._settings.gid):
            self._view.edits.set_owner(node, ctx.uid, ctx.gid)

    # Directories

    async def opendir(self, inode: InodeT, ctx: RequestContext) -> FileHandleT:
        return FileHandleT(self._view.open_directory(inode))

    async def readdir(self, fh: FileHandleT, start_id: int, token: ReaddirToken) -> None:
        with self._errno_only("readdir"):
            async for number, entry, path in self._view.entries(fh, start_id):
                fresh_s = self._view.listed_for_s(fh)
                node = self._view.note_listed(entry, path, fresh_s=fresh_s)
                name = os.fsencode(entry.name)
                if not pyfuse3.readdir_reply(token, name, self._entry(node), number + 1):
                    self._view.forget(node.number, 0)  # the kernel did not take it
                    return
                node.lookups += 1

    async def releasedir(self, fh: FileHandleT) -> None:
        self._view.release_directory(fh)

    # The rest

    async def statfs(self, ctx: RequestContext) -> StatvfsData:
        answer = StatvfsData()
        answer.f_bsize = answer.f_frsize = MIB
        answer.f_blocks = answer.f_bfree = answer.f_bavail = CAPACITY_BYTES // MIB
        answer.f_files = answer.f_ffree = answer.f_favail = 1 << 40
        answer.f_namemax = NAME_BYTES_MAX
        return answer

    async def getxattr(self, inode: InodeT, name: bytes, ctx: RequestContext) -> bytes:
        self._check_xattrs()
        with self._errno_only("getxattr"):
            value = await self._view.xattr(inode, os.fsdecode(name))
        if value is None:
            raise FUSEError(pyfuse3.ENOATTR)
        return value.encode()

    async def listxattr(self, inode: InodeT, ctx: RequestContext) -> list[bytes]:
        self._check_xattrs()
        is_directory = self._view.nodes.node(inode).attributes.is_directory
        return [] if is_directory else [name.encode() for name in XATTRS]

    def _check_xattrs(self) -> None:
        if not self._settings.has_xattrs:
            raise FUSEError(errno.ENOSYS)  # the kernel says EOPNOTSUPP from then on, unasked

    def _entry(self, node: Node) -> EntryAttributes:
        about = node.attributes
        entry = EntryAttributes()
        entry.st_ino = InodeT(node.number)
        entry.generation = 0
        entry.entry_timeout = min(self._settings.entry_cache_s, max(0.0, node.fresh_s))
        entry.attr_timeout = min(self._settings.attr_cache_s, max(0.0, node.fresh_s))
        uid, gid, mode = self._view.rights(node)
        entry.st_mode = (modes.S_IFDIR if about.is_directory else modes.S_IFREG) | mode
        entry.st_nlink = 2 if about.is_directory else 1
        entry.st_uid = self._settings.uid if uid is None else uid
        entry.st_gid = self._settings.gid if gid is None else gid
        entry.st_size = about.size_bytes
        entry.st_blksize = MIB
        entry.st_blocks = -(-about.size_bytes // 512)
        mtime_ns = self._view.kept.mtime_ns(node)
        entry.st_atime_ns = entry.st_mtime_ns = entry.st_ctime_ns = mtime_ns
        return entry


def _name(name: bytes) -> str:
    if len(name) > NAME_BYTES_MAX:
        raise FUSEError(errno.ENAMETOOLONG)
    return os.fsdecode(name)
