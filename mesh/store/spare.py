"""Room that is kept for the tables of a peer whose disk others have filled.

    spare   some MiB of nothing; not there while they are needed

LMDB writes new pages before it frees old ones, so that without a free page not even a block can
be forgotten. What fills the disk is not always ours: then this file goes, the tables can be
written, eviction makes room, and the file is made again.
"""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path

import lmdb

from mesh.blocks import MIB

SPARE_BYTES = 16 * MIB
TAKEN_FROM_BYTES = 8 * SPARE_BYTES
"""With less than that free, others need it more."""


def is_disk_full(error: Exception) -> bool:
    """Whether LMDB could not commit for want of room, which it calls an I/O error as well when
    a write came to an end in its middle."""
    words = ("No space left", "Input/output error", "quota")
    return isinstance(error, lmdb.DiskError) or (
        isinstance(error, lmdb.Error) and any(word in str(error) for word in words)
    )


class Spare:
    """The room that one store keeps; all of it is called in threads."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / "spare"

    def give(self) -> bool:
        """Give the room back to the disk; False when it was given already."""
        try:
            self._path.unlink()
        except OSError:
            return False
        return True

    def take(self) -> None:
        """Take the room, if there is enough and it is not taken."""
        if self._path.exists():
            return
        if shutil.disk_usage(self._path.parent).free < TAKEN_FROM_BYTES:
            return
        with suppress(OSError):
            fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.posix_fallocate(fd, 0, SPARE_BYTES)
            except OSError:
                self._path.unlink()
            finally:
                os.close(fd)
