"""Disks of a run's own, so that they can be small or full: an ext4 in a file, which can also
lose power, or memory."""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from pathlib import Path

from chaos.place import is_mounted, run

EXT4_IOC_SHUTDOWN = 0x8004587D
NO_LOG_FLUSH = 2
"""What was not synced is gone, as after a power cut."""
MIB = 1024 * 1024


class Disk:
    """One disk, mounted while it is not out of power."""

    def __init__(self, image: Path, point: Path, *, size_bytes: int) -> None:
        self._image, self.point = image, point
        with image.open("wb") as file:
            file.truncate(size_bytes)
        run("mkfs.ext4", "-q", "-m", "0", "-F", str(image))
        point.mkdir(parents=True)
        self.attach()

    def attach(self) -> None:
        run("mount", "-o", "loop", str(self._image), str(self.point))

    def lose_power(self) -> None:
        """Fail everything from now on, and forget what was not synced."""
        fd = os.open(self.point, os.O_RDONLY)
        try:
            fcntl.ioctl(fd, EXT4_IOC_SHUTDOWN, NO_LOG_FLUSH.to_bytes(4, "little"))
        finally:
            os.close(fd)

    def detach(self) -> None:
        """Unmount it; raises `RuntimeError` while a process has it open."""
        run("umount", str(self.point))

    def take_away(self) -> None:
        """Unmount it at the end of a run; its loop device goes with the last user."""
        with suppress(RuntimeError):
            if is_mounted(self.point):
                run("umount", str(self.point))
        if is_mounted(self.point):
            with suppress(RuntimeError):
                run("umount", "-l", str(self.point))

    def free_bytes(self) -> int:
        found = os.statvfs(self.point)
        return found.f_bavail * found.f_frsize

    def fill(self) -> Path:
        """Put a file on it that takes all that is free; return the file."""
        filler = self.point / "filler"
        fd = os.open(filler, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            for size_bytes in (16 * MIB, MIB, 64 * 1024, 4096):
                with suppress(OSError):
                    while os.write(fd, os.urandom(4096) * (size_bytes // 4096)):
                        pass
        finally:
            os.close(fd)
        return filler


class MemoryDisk(Disk):
    """A disk that is quick, and not to be used up by anything else: a tmpfs."""

    def __init__(self, point: Path, *, size_bytes: int) -> None:
        self.point, self._size_bytes = point, size_bytes
        point.mkdir(parents=True)
        self.attach()

    def attach(self) -> None:
        run("mount", "-t", "tmpfs", "-o", f"size={self._size_bytes}", "chaos", str(self.point))

    def fill(self) -> Path:
        """Put a file on it, or make it longer, that takes all that is free; return the file."""
        filler = self.point / "filler"
        fd = os.open(filler, os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            while free_bytes := self.free_bytes():
                with suppress(OSError):  # somebody else was quicker
                    os.posix_fallocate(fd, os.fstat(fd).st_size, free_bytes)
        finally:
            os.close(fd)
        return filler
