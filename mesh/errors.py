"""Every error a caller of mesh can meet.

* MeshError
  - NotFound               the path or block does not exist where it was looked for
  - Refused                the under-store says that we may not
  - NotADirectory, IsADirectory, NotEmpty, Exists
  - ReadOnly               nothing can be written there
  - Elsewhere              two paths lie in different under-stores
  - Stale                  the file changed in the under-store: open it again
  - ListingGone            a page was asked of a listing that is no longer kept
  - BlockCorrupt           bytes do not match their checksum; the copy was dropped
  - Unavailable            try again, here or elsewhere
    + PeerUnavailable      one neighbor did not answer; another owner may
    + Busy                 one neighbor sends as much as it may; it names others
    + UnderStoreUnavailable   the under-store did not answer; nobody else can help
  - StoreFull              no block could be evicted to make room
  - Unusable               this node can't start like this; says what to mend

The tree answers one question, "what may the caller do now?", not "which module
raised it?". `wire.codec` maps it to gRPC status codes and `fuse.errnos` to
errno, each in one table; no other module knows either vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self


class MeshError(Exception):
    """Base of all errors raised on purpose by mesh."""


class NotFound(MeshError):
    """The path or block does not exist where it was looked for."""


class Refused(MeshError):
    """The under-store says that we may not; asking another peer won't help."""


class NotADirectory(MeshError):
    """A listing was asked of a file."""


class IsADirectory(MeshError):
    """Bytes were asked of a directory."""


class NotEmpty(MeshError):
    """A directory can't be removed while there is something in it."""


class Exists(MeshError):
    """There is something of that name already."""


class ReadOnly(MeshError):
    """Nothing can be written there, whoever asks."""


class Elsewhere(MeshError):
    """Two paths lie in different under-stores: what is to be moved must be copied."""


class Stale(MeshError):
    """The file changed in the under-store since it was opened."""


class ListingGone(MeshError):
    """A page was asked of a listing that is no longer kept; list again."""


class BlockCorrupt(MeshError):
    """The bytes of a block do not match their checksum; the copy was dropped."""


class Unavailable(MeshError):
    """Something that may work again soon did not answer."""


class PeerUnavailable(Unavailable):
    """One neighbor did not answer in time; another owner may."""

    def __init__(self, peer: str, reason: str) -> None:
        super().__init__(f"peer {peer}: {reason}")
        self.peer = peer


class Busy(Unavailable):
    """One neighbor sends as much as it may: ask again after a while, or others now."""

    def __init__(self, words: str) -> None:
        """*words* are the seconds to wait, and the names of others, apart by blanks."""
        super().__init__(words)

    @classmethod
    def of(cls, retry_s: float, others: Sequence[str]) -> Self:
        return cls(" ".join((f"{retry_s:.3f}", *others)))

    @property
    def retry_s(self) -> float:
        try:
            return float(str(self).partition(" ")[0])
        except ValueError:
            return 0.0

    @property
    def others(self) -> list[str]:
        return str(self).split()[1:]


class UnderStoreUnavailable(Unavailable):
    """The under-store did not answer in time."""


class StoreFull(MeshError):
    """No block could be evicted to make room."""


class Unusable(MeshError):
    """This node can't start as it is; the message names what, the rule and the mend."""
