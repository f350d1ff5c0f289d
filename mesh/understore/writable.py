"""What mesh needs of an under-store to change it.

Every implementation that can be written passes `tests/contracts/test_writable.py`. A
file comes in order, and nobody sees it before all of it is there: it takes the place of
what was at its path in one step, and only of what the writer has seen there.
"""

from __future__ import annotations

import secrets
from typing import Protocol

from mesh.blocks import GIB, MIB, Attributes

UPLOAD_PREFIX = ".mesh-upload-"
"""Begins the name of a file that is on its way, where an under-store needs one."""

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

    async def upload(self, path: str, *, size_bytes: int | None = None) -> Upload:
        """Begin a file; directories above it are made. *size_bytes*, if known, is a promise."""
        ...

    async def remove(self, path: str, *, only: str | None = None) -> None:
        """Remove a file, *only* if that is its tag, or else `Stale`; `NotFound` without one."""
        ...

    async def make_directory(self, path: str) -> None:
        """Make a directory, and those above it; `NotADirectory` when a file is there."""
        ...

    async def remove_directory(self, path: str) -> None:
        """Remove an empty directory; `NotEmpty` if it is not."""
        ...


def upload_name() -> str:
    """Return a name for a file that is on its way."""
    return f"{UPLOAD_PREFIX}{secrets.token_hex(8)}"


def is_upload(name: str) -> bool:
    return name.startswith(UPLOAD_PREFIX)


def part_bytes(number: int, size_bytes: int | None) -> int:
    """Return the size of part *number*, from 0, of a file of *size_bytes*, None if not known.

    All parts of a file of known size are alike, as some servers want them to be.
    """
    if size_bytes is None:
        return min(PART_BYTES_MIN << number // PARTS_BEFORE_GROWTH, PART_BYTES_MAX)
    whole_mib = -(-size_bytes // (PARTS_MAX * MIB))
    return max(PART_BYTES_MIN, whole_mib * MIB)
