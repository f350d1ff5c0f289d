"""A mounted view, through which a process reaches files only while it is really mounted.

A mount that was killed leaves an empty directory behind, and what is written to that is
nowhere. So every step opens the root anew, and goes on from there.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def opened(view: Path, *, is_plain: bool = False) -> Iterator[int]:
    """Give a descriptor of the root; raises ENOTCONN when nothing is mounted there."""
    fd = os.open(view, os.O_RDONLY | os.O_DIRECTORY)
    try:
        if not is_plain and os.fstat(fd).st_dev == view.parent.stat().st_dev:
            raise OSError(errno.ENOTCONN, "not mounted")
        yield fd
    finally:
        os.close(fd)


def name_of(error: OSError) -> str:
    """Return the name of an errno."""
    number = error.errno or errno.EIO
    return errno.errorcode.get(number, str(number))
