"""The blocks that are on this host, read from their files without asking anybody.

The peer on this host writes the index and the extent files; a mount only reads
them. A record is looked at before and after the bytes are: see `store.index`.
"""

from __future__ import annotations

import os
from math import inf
from pathlib import Path

import lmdb

from mesh.blocks import Attributes, BlockKey, FileVersion
from mesh.clock import monotonic_s
from mesh.errors import NotFound
from mesh.store.entries import Entries, EntryRecord
from mesh.store.extents import Extents, open_extent
from mesh.store.index import BlockRecord, Index, read_index

LOOK_EVERY_S = 0.05
"""Much less than a peer needs to start, make a new index and fill a first block."""


class BlocksHere:
    """The store of the peer on this host, for reading."""

    def __init__(self, directory: Path) -> None:
        """Take the store under *directory*; it need not exist yet."""
        self.extents = Extents(directory / "data")
        self._directory = directory
        self._table = str(directory / "index" / "data.mdb")
        self._index: Index | None = None
        self._entries: Entries | None = None
        self._is_ours = True
        self._inode = 0
        self._look_again_s = 0.0

    def record(self, key: BlockKey) -> BlockRecord | None:
        """Return the record of a block that may be believed, or None."""
        index = self._opened()
        return None if index is None else index.trusted_block(key)

    def inline(self, version: bytes) -> bytes | None:
        index = self._opened()
        return None if index is None else index.inline(version)

    def entry(self, directory: bytes, name: str) -> tuple[EntryRecord | None, float]:
        """Return what the peer knows of a name, and since when (`store.entries`)."""
        return (None, -inf) if self._opened() is None else self._tables().entry(directory, name)

    def listing(
        self, directory: bytes, after: str, count: int
    ) -> tuple[float | None, list[tuple[str, Attributes]], bool]:
        """Return since when the whole listing is known here, so many entries of it, and
        whether they are the last."""
        if self._opened() is None:
            return None, [], False
        tables = self._tables()
        listed_s = tables.listed_s(directory)
        if listed_s is None:
            return None, [], False
        return listed_s, *tables.after(directory, after, count)

    def _tables(self) -> Entries:
        assert self._entries is not None, "opened with the index"
        return self._entries

    def count(self, version: bytes) -> int:
        """Return how many blocks of a version are here."""
        index = self._opened()
        return 0 if index is None else len(index.blocks(version))

    def _opened(self) -> Index | None:
        if self._is_ours and monotonic_s() >= self._look_again_s:
            self._follow_remade()
        if self._index is None:
            try:
                index = read_index(self._directory / "index")
                self._index, self._entries = index, Entries(index.env, writable=False)
            except lmdb.Error:
                return None  # the peer has not made it yet
        return self._index

    def _follow_remade(self) -> None:
        """Let an index go that the peer has set aside because it was broken.

        Its records speak of inodes whose numbers other files may have by now.
        """
        self._look_again_s = monotonic_s() + LOOK_EVERY_S
        try:
            inode = os.stat(self._table).st_ino  # noqa: PTH116
        except OSError:
            inode = 0
        if inode != self._inode:
            self.close()
        self._inode = inode

    def share(self, index: Index, extents: Extents) -> None:
        """Read through an index that this process has open: LMDB allows one a process."""
        self.close()
        self._index, self._is_ours = index, False
        self._entries = Entries(index.env, writable=False)
        self.extents = extents

    def close(self) -> None:
        if self._index is not None and self._is_ours:
            self._index.env.close()
        self._index = self._entries = None


class Descriptor:
    """The extent file of one open version, as this host sees it.

    Threads read through it at once. So a descriptor that was replaced stays open
    until the handle is closed: its number must not come to mean another file.
    """

    def __init__(self) -> None:
        self._current = (-1, 0)  # descriptor, inode
        self._opened: list[int] = []

    def at(self, extents: Extents, file: FileVersion, inode: int) -> int | None:
        """Return a descriptor of exactly that inode; None when there is none such.

        While it is open its inode number can't be given to another file, so equal
        numbers mean the same file.
        """
        fd, known = self._current
        if known == inode:
            return fd
        try:
            fd = open_extent(extents.path(file.id))
        except NotFound:
            return None
        self._opened.append(fd)
        self._current = (fd, os.fstat(fd).st_ino)
        return fd if self._current[1] == inode else None

    def close(self) -> None:
        self._current = (-1, 0)
        for fd in self._opened:
            os.close(fd)
        self._opened.clear()
