"""What mesh needs of an under-store to change it.

Every implementation that can be written passes `tests/contracts/test_writable.py`. A
file comes in order, and nobody sees it before all of it is there: it takes the place of
what was at its path in one step, and only of what the writer has seen there.
"""

from __future__ import annotations

import secrets
from typing import Protocol

from mesh.blocks import GIB, MIB, Attributes
from mesh.errors import Exists, IsADirectory, Stale

UPLOAD_PREFIX = ".mesh-upload-"
"""Begins the name of a file that is on its way, where an under-store needs one."""

NEW_FILE_MODE = 0o644
"""Of a file that took no other's place, where nobody says more."""

PERMISSIONS = 0o777
"""The mode bits that are kept; others stay as they are."""

PARTS_MAX = 10_000
PART_BYTES_MIN = 8 * MIB
PART_BYTES_MAX = 5 * GIB
"""The limits of S3's multipart uploads (AWS: "Amazon S3 multipart upload limits"), but for the
smallest part, which may be 5 MiB there: fewer requests."""

PARTS_BEFORE_GROWTH = 1000
"""Parts of one size, when nobody knows how many there will be: 8 MiB grow to 4 GiB, in all
8 TiB, which is more than the 5 TiB of an object."""


class Upload(Protocol):
    """One file on its way. One task at a time; ends with `publish` or `abort`."""

    async def add(self, data: bytes | memoryview) -> None:
        """Take the next bytes; *data* may change once this returns.

        Returns when there is room for more. An upload that raised can only be aborted.
        """
        ...

    async def publish(self, *, over: str | None) -> Attributes:
        """Show all that was added, at once; return what is there now.

        *over* is the tag of what may be replaced, "" when nothing may be there, None for
        whatever there is. Raises `Stale`, with the path as it was, when something else is
        there. After `Unavailable` it may be published or not: `stat` tells, and it may be
        called again.
        """
        ...

    async def abort(self) -> None:
        """Leave nothing behind, as far as the under-store answers."""
        ...


class Writable(Protocol):
    """The part of an under-store that changes it; one that can't be written raises `Refused`."""

    async def upload(
        self, path: str, *, size_bytes: int | None = None, mode: int | None = None
    ) -> Upload:
        """Begin a file; directories above it are made. *size_bytes*, if known, is a promise.

        *mode* are its permission bits where such are kept; None for those of the file whose
        place it takes, or else NEW_FILE_MODE.
        """
        ...

    async def remove(self, path: str, *, only: str | None = None) -> None:
        """Remove a file, *only* if that is its tag, or else `Stale`; `NotFound` without one."""
        ...

    async def make_directory(self, path: str, *, mode: int | None = None) -> None:
        """Make a directory, and those above it; `NotADirectory` when a file is there.

        *mode* is for the last one alone, and only if it was not there.
        """
        ...

    async def remove_directory(self, path: str) -> None:
        """Remove an empty directory; `NotEmpty` if it is not."""
        ...

    async def move(self, path: str, target: str, *, over: str | None) -> Attributes:
        """Give a file, or a directory with all below it, another path; return what is there now.

        What a file may replace is said by *over* as in `Upload.publish`, with the same `Stale`,
        and `IsADirectory` over a directory. Over nothing at all goes a directory: `Exists`.
        `NotFound` when nothing is at *path*. Directories above the target are made. A directory
        is not to be moved below itself. After `Unavailable` it may be moved or not, and on
        an object store partly so, with nothing lost.
        """
        ...

    async def set_mode(self, path: str, mode: int) -> bool:
        """Keep permission bits, False where such are not kept; the tag stays as it is."""
        ...


def upload_name() -> str:
    """Return a name for a file that is on its way."""
    return f"{UPLOAD_PREFIX}{secrets.token_hex(8)}"


def is_upload(name: str) -> bool:
    return name.startswith(UPLOAD_PREFIX)


def check_replaced(path: str, found: Attributes | None, over: str | None) -> None:
    """Raise `Stale` unless what was found at *path* may be replaced, as `Upload.publish` has it."""
    if found is None:
        if over:
            raise Stale(f"{path} was removed")
    elif found.is_directory:
        raise IsADirectory(f"{path} is a directory")
    elif over is not None and found.tag != over:
        raise Stale(f"{path} was changed" if over else f"{path} exists")


def check_moved(moved: Attributes, path: str, found: Attributes | None, over: str | None) -> None:
    """Raise unless *moved* may take the place of what was found at *path*."""
    if not moved.is_directory:
        check_replaced(path, found, over)
    elif found is not None:
        raise Exists(f"{path} exists")


def part_bytes(number: int, size_bytes: int | None) -> int:
    """Return the size of part *number*, from 0, of a file of *size_bytes*, None if not known.

    All parts of a file of known size are alike, as some servers want them to be.
    """
    if size_bytes is None:
        return min(PART_BYTES_MIN << number // PARTS_BEFORE_GROWTH, PART_BYTES_MAX)
    whole_mib = -(-size_bytes // (PARTS_MAX * MIB))
    return max(PART_BYTES_MIN, whole_mib * MIB)
