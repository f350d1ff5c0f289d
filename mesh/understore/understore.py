"""Where the truth lives: what mesh needs of an under-store, and no more.

Every implementation passes `tests/contracts/test_understore.py`. Paths are below
the root of the under-store, "" is the root itself, and there is no leading slash.

All methods raise `UnderStoreUnavailable` when there was no answer within the
deadline, and `Refused` when the answer was that we may not.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Protocol

from mesh.blocks import MIB, Attributes, DirectoryEntry

PAGE_ENTRIES = 1000


class UnderStore(Protocol):
    """A tree of files that the mesh caches."""

    async def prepare(self) -> None:
        """Load what is slow to load, so that no reader waits for it."""
        ...

    async def stat(self, path: str) -> Attributes:
        """Say what *path* is now; `NotFound` when it is nothing."""
        ...

    def scan(self, path: str) -> AsyncIterator[list[DirectoryEntry]]:
        """Yield the entries of a directory in pages of at most PAGE_ENTRIES.

        Raises `NotFound` or `NotADirectory`; an error in the middle means that
        what was yielded is no listing.
        """
        ...

    def read(
        self, path: str, about: Attributes, offset_bytes: int, size_bytes: int
    ) -> AsyncIterator[bytes]:
        """Yield the range in order, in runs of at most `request_bytes`.

        All bytes are those of the content that *about* names: `Stale` is raised
        instead of a run when the file has changed or has gone.
        """
        ...

    async def aclose(self) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class S3Settings:
    """How to reach an S3 server."""

    endpoint: str = ""
    """URL; "" is AWS's own for the region."""

    region: str = "us-east-1"
    path_style: bool = True
    anonymous: bool = False
    access_key: str = ""
    secret_key: str = field(default="", repr=False)
    session_token: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class UnderStoreSettings:
    """One line of the mount table."""

    url: str
    """file:///path or s3://bucket/prefix."""

    block_bytes: int = 4 * MIB
    max_age_s: float = 60.0
    """How long a path's attributes may be believed; inf: for ever, 0: never."""

    concurrency: int = 16
    """Requests under way at once."""

    request_bytes: int = 4 * MIB
    """The most that one request asks for."""

    timeout_s: float = 30.0
    """Deadline of one request: pyarrow has none of its own on Linux."""

    s3: S3Settings = field(default_factory=S3Settings)
