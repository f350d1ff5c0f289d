"""The sparse files that hold the bytes of blocks, each block at its natural offset.

    data/ab/cd/abcd…  one file for each version; block i starts at i x block size

A hole reads as zeros, silently. So these functions never decide what is here:
the index does, and it names the inode that it means, because a file that was
unlinked and made anew has the old name and none of the old bytes.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mesh.errors import NotFound

_KEEP_SIZE, _PUNCH_HOLE = 1, 2
_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]


class Extents:
    """The extent files of one node. Every method blocks: call them in a thread."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def path(self, version: bytes) -> Path:
        name = version.hex()
        return self._directory / name[:2] / name[2:4] / name

    def write(
        self, version: bytes, offset_bytes: int, data: bytes | memoryview, *, size_bytes: int
    ) -> int:
        """Write *data*, making the file of *size_bytes* if need be; return its inode."""
        path = self.path(version)
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            fd = os.open(path, flags, 0o600)
        except FileNotFoundError:
            for parent in (path.parent.parent, path.parent):
                parent.mkdir(mode=0o700, exist_ok=True)
            fd = os.open(path, flags, 0o600)
        try:
            found = os.fstat(fd)
            if found.st_size != size_bytes:
                os.ftruncate(fd, size_bytes)
            write_all(fd, data, offset_bytes)
            return found.st_ino
        finally:
            os.close(fd)

    def read(self, version: bytes, offset_bytes: int, size_bytes: int, *, inode: int) -> bytes:
        """Return the bytes; NotFound when the file is gone or is not that inode."""
        with self.open(version, inode=inode) as fd:
            return os.pread(fd, size_bytes, offset_bytes)

    @contextmanager
    def open(self, version: bytes, *, inode: int) -> Iterator[int]:
        """Lend a descriptor for reading; NotFound when it is not that inode."""
        fd = open_extent(self.path(version))
        try:
            if os.fstat(fd).st_ino != inode:
                raise NotFound(f"extent file of {version.hex()} was made anew")
            yield fd
        finally:
            os.close(fd)

    def punch(self, version: bytes, offset_bytes: int, size_bytes: int) -> None:
        """Give the disk space of a range back; the range reads as zeros from then on.

        Not of a file that has another name: it is a draft that somebody writes on, or is
        staged, or is another version that was published from the same draft.
        """
        try:
            fd = os.open(self.path(version), os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            return
        try:
            if os.fstat(fd).st_nlink > 1:
                return
            mode = _KEEP_SIZE | _PUNCH_HOLE
            if _libc.fallocate(fd, mode, offset_bytes, size_bytes) != 0:
                code = ctypes.get_errno()
                if code != errno.EOPNOTSUPP:
                    raise OSError(code, os.strerror(code), str(self.path(version)))
        finally:
            os.close(fd)

    def unlink(self, version: bytes) -> None:
        """Remove a file; whoever has it open keeps its bytes."""
        self.path(version).unlink(missing_ok=True)

    def versions(self) -> Iterator[bytes]:
        """Yield the version of every extent file on disk."""
        for path in self._directory.glob("??/??/*"):
            yield bytes.fromhex(path.name)


def open_extent(path: Path) -> int:
    """Open an extent file for reading; NotFound when there is none."""
    try:
        return os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise NotFound(f"no extent file {path.name}") from error


def write_all(fd: int, data: bytes | memoryview, offset_bytes: int) -> None:
    """pwrite until all of *data* is written: a full disk can take a part of it."""
    view = memoryview(data)
    while view:
        written_bytes = os.pwrite(fd, view, offset_bytes)
        view = view[written_bytes:]
        offset_bytes += written_bytes
