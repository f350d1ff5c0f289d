"""What a disk has after a power cut: what was synced, and nothing else.

The content of a file is what it was at its last fsync; the names in a directory, and what they
mean, are those of its own last fsync. What was removed since then is there again. The tables of
LMDB are left as they are: it takes care of itself, and `journal` syncs every commit.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

WATCHED = ("staged", "drafts", "data")
really_fsync = os.fsync
"""As it is before `crash_steps` puts a step before it."""


class Disk:
    """The data directory of one peer."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._contents: dict[int, bytes] = {}
        self._names: dict[Path, dict[str, int]] = {}
        self._fds: list[int] = []
        """One for each inode that is known: so no other file is given its number."""

    def fsync(self, fd: int) -> None:
        """Sync a file or a directory, and remember what of it is safe."""
        really_fsync(fd)
        path = Path(f"/proc/self/fd/{fd}").readlink()
        about = os.fstat(fd)
        if stat.S_ISDIR(about.st_mode):
            self._names[path] = {each.name: each.stat().st_ino for each in path.iterdir()}
            return
        if about.st_ino not in self._contents:
            self._fds.append(os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC))
        self._contents[about.st_ino] = os.pread(fd, about.st_size, 0)

    def cut_power(self) -> None:
        """Have the directory as it is after a power cut at this moment."""
        for name in WATCHED:
            for parent, _, names in os.walk(self._directory / name):
                self._rewind(Path(parent), set(names))

    def _rewind(self, directory: Path, names: set[str]) -> None:
        safe = self._names.get(directory, {})
        for name in names:
            path = directory / name
            inode = path.stat().st_ino
            if safe.get(name) != inode:
                path.unlink()
            elif path.read_bytes() != self._contents.get(inode, b""):
                path.write_bytes(self._contents.get(inode, b""))
        for name, inode in safe.items():
            path = directory / name
            if not path.exists():
                path.write_bytes(self._contents.get(inode, b""))

    def close(self) -> None:
        for fd in self._fds:
            os.close(fd)
        self._fds.clear()
