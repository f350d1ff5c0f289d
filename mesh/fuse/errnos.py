"""The one place where mesh errors become errno, for the kernel's ears only."""

from __future__ import annotations

import errno

from mesh.errors import (
    Elsewhere,
    Exists,
    IsADirectory,
    MeshError,
    NotADirectory,
    NotEmpty,
    NotFound,
    ReadOnly,
    Refused,
    Stale,
    StoreFull,
)

_ERRNOS: list[tuple[type[MeshError], int]] = [
    (NotFound, errno.ENOENT),
    (Refused, errno.EACCES),
    (NotADirectory, errno.ENOTDIR),
    (IsADirectory, errno.EISDIR),
    (NotEmpty, errno.ENOTEMPTY),
    (Exists, errno.EEXIST),
    (ReadOnly, errno.EROFS),
    (Elsewhere, errno.EXDEV),
    (StoreFull, errno.ENOSPC),
    (Stale, errno.ESTALE),
]
"""Everything else is EIO; not EAGAIN, which readers of regular files do not expect."""


def errno_for(error: MeshError) -> int:
    """Return the errno that tells a POSIX caller what it may do about *error*."""
    return next((code for kind, code in _ERRNOS if isinstance(error, kind)), errno.EIO)
