"""Files of this host that mounts write and nobody else sees yet.

    drafts/abcd…  one file for each; the name is the token of what it will be

A mount makes a draft, holds a lock on it while it has it open, and writes to it without
asking anybody. What was published of it becomes an extent file by a second link, so that
no byte is copied. A draft without a lock was left behind by a mount that died: nobody was
told that it is safe, and it is removed.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import re
import secrets
from array import array
from collections.abc import Callable, Iterator
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path

from crc32c import crc32c

from mesh.blocks import MIB, PIECE_BYTES, FileVersion, piece_count
from mesh.errors import NotFound
from mesh.store.eviction import Rank
from mesh.store.index import BlockRecord, grain_crcs
from mesh.store.store import BlockStore

DRAFTS = "drafts"
TOKEN_BYTES = 16
DIGEST_BYTES = 8 * MIB
PIECES_MAX = 65_536
"""64 GiB: of more the checksums would fill the memory, so that it is not kept as blocks."""

_TOKEN = re.compile(f"[0-9a-f]{{{2 * TOKEN_BYTES}}}")


def new_token() -> str:
    return secrets.token_hex(TOKEN_BYTES)


def make_draft(directory: Path, token: str) -> int:
    """Make an empty draft and lock it; return its descriptor. OSError when it can't be made."""
    path = directory / DRAFTS / token
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    while True:
        fd = os.open(path, flags, 0o600)
        fcntl.flock(fd, fcntl.LOCK_EX)
        if os.fstat(fd).st_nlink:
            return fd
        os.close(fd)  # the peer has swept it before it was locked


def check_token(token: str) -> str:
    """Return a token if it is one: names of files are made of it; else `NotFound`."""
    if not _TOKEN.fullmatch(token):
        raise NotFound(f"no draft {token}")
    return token


def read_part(path: Path, offset_bytes: int, size_bytes: int) -> bytes:
    """Return so many bytes of a file; `NotFound` when it is gone, or has not so many."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        raise NotFound(f"no file {path.name}") from None
    try:
        data = os.pread(fd, size_bytes, offset_bytes)
    finally:
        os.close(fd)
    if len(data) != size_bytes:
        raise NotFound(f"{path.name} ends before {offset_bytes + size_bytes}")
    return data


class Digests:
    """The checksums of a file, taken while it is read from its beginning."""

    def __init__(self, block_bytes: int = PIECE_BYTES) -> None:
        """Take the checksums that a version with blocks of so many bytes needs."""
        self._pieces: list[tuple[int, bytes]] = []
        self._piece_bytes = min(PIECE_BYTES, block_bytes)
        self.size_bytes = 0

    def add(self, data: bytes) -> None:
        """Take the next bytes: whole pieces, but for the last one."""
        self.size_bytes += len(data)
        view = memoryview(data)
        for start_bytes in range(0, len(view), self._piece_bytes):
            piece = view[start_bytes : start_bytes + self._piece_bytes]
            grains = grain_crcs(piece) if len(self._pieces) < PIECES_MAX else b""
            self._pieces.append((crc32c(piece), grains))

    @property
    def are_whole(self) -> bool:
        return len(self._pieces) <= PIECES_MAX

    def is_same(self, other: Digests) -> bool:
        """Whether two files have the same size and the same CRCs."""
        mine, theirs = ([crc for crc, _ in each._pieces] for each in (self, other))
        return self.size_bytes == other.size_bytes and mine == theirs

    def summary(self) -> bytes:
        """Return 16 bytes that name the size and all CRCs: equal for equal contents."""
        crcs = array("I", (crc for crc, _ in self._pieces)).tobytes()
        return blake2b(b"%d %b" % (self.size_bytes, crcs), digest_size=16).digest()

    def blocks(self, file: FileVersion) -> Iterator[tuple[tuple[int, ...], bytes]]:
        """Yield for each block the CRCs of its pieces, and those of its grains."""
        first = 0
        for index in range(file.block_count):
            last = first + piece_count(file.length_bytes(index))
            pieces = self._pieces[first:last]
            yield tuple(crc for crc, _ in pieces), b"".join(grains for _, grains in pieces)
            first = last


def digested_file(path: Path, size_bytes: int, block_bytes: int) -> Digests:
    """Return the checksums of a file; `NotFound` when it is not so long."""
    digests = Digests(block_bytes)
    while (rest_bytes := size_bytes - digests.size_bytes) > 0:
        digests.add(read_part(path, digests.size_bytes, min(DIGEST_BYTES, rest_bytes)))
    return digests


class Drafts:
    """The drafts of one node, for its peer."""

    def __init__(self, store: BlockStore, directory: Path) -> None:
        self._store = store
        self._directory = directory / DRAFTS

    def path(self, token: str) -> Path:
        """Return where a draft is; `NotFound` if there can't be one of that name."""
        return self._directory / check_token(token)

    async def read(self, token: str, offset_bytes: int, size_bytes: int) -> bytes:
        """Return bytes of a draft; `NotFound` when it has not so many."""

        return await asyncio.to_thread(read_part, self.path(token), offset_bytes, size_bytes)

    async def adopt(
        self,
        path: Path,
        file: FileVersion,
        digests: Digests,
        rank: Callable[[int], Rank],
        *,
        is_promised: bool = False,
    ) -> bool:
        """Keep what a file holds as the blocks of a version; False where there is no room.

        What is promised has its room already.
        """
        is_full = not is_promised and self._store.room().is_full(0)
        if is_full or not digests.are_whole:
            return False
        inline = None
        if file.is_inline:
            inline = await asyncio.to_thread(read_part, path, 0, file.size_bytes)
        inode = 0
        if inline is None:
            try:
                inode = await asyncio.to_thread(self._link, path, file)
            except OSError:
                return False  # a reader was faster, or the disk is full
        for index, (crcs, grains) in enumerate(digests.blocks(file)):
            record = BlockRecord(
                length_bytes=file.length_bytes(index),
                flags=rank(index),
                stamp=self._store.new_stamp(),
                inode=inode,
                crcs=crcs,
                grains=grains,
            )
            await self._store.put_record(file, index, record, inline)
        return True

    def _link(self, path: Path, file: FileVersion) -> int:
        target = self._store.extents.path(file.id)
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not target.exists() or not target.samefile(path):
            os.link(path, target)
        return target.stat().st_ino

    async def remove(self, token: str) -> None:
        """Remove a draft; whoever has it open keeps its bytes."""
        await asyncio.to_thread(lambda: self.path(token).unlink(missing_ok=True))

    async def sweep(self) -> list[str]:
        """Remove the drafts of mounts that are gone; return their tokens."""
        return await asyncio.to_thread(self._sweep)

    def _sweep(self) -> list[str]:
        removed = []
        for path in self._directory.iterdir():
            with suppress(OSError), path.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
                removed.append(path.name)
        return removed
