"""Faults of a node's disk: no power, no room, errors, slow syncs, flipped bytes."""

from __future__ import annotations

import mmap
import os
from pathlib import Path
from random import Random

from chaos.cluster import Node
from chaos.daemons import Daemon, end
from chaos.disks import MIB
from chaos.faults.base import Fault, until_busy
from chaos.place import take_away, until
from chaos.workload import Workload

SECTOR_BYTES = 4096


class PowerLoss(Fault):
    """The host goes dark: its disk forgets what was not synced, its processes are gone.

    The mount dies with the host, so no reader may be on it.
    """

    def __init__(self, node: Node, workload: Workload) -> None:
        self.label = f"power of {node.name} lost"
        self._node, self._workload = node, workload
        self._seen: str | None = None

    def inject(self) -> None:
        disk = self._node.disk
        assert disk is not None, "the scenario must say disk_bytes"
        self._seen = until_busy(self._node, self._workload)
        disk.lose_power()
        if self._takes_writes():
            self._seen = None
        self._node.peer.kill()
        self._node.mount.kill()
        take_away(self._node.view)
        disk.detach()

    def heal(self) -> None:
        assert self._node.disk is not None
        self._node.disk.attach()
        self._node.start_peer()
        self._node.start_mount()

    def evidence(self) -> str | None:
        return f"{self._seen}; its disk took no more writes" if self._seen else None

    def _takes_writes(self) -> bool:
        try:
            (self._node.store.parent / "probe").write_bytes(b"?")
        except OSError:
            return False
        return True


class FullDisk(Fault):
    """Somebody else's file takes all that is free on the disk of the store."""

    def __init__(self, node: Node) -> None:
        self.label = f"disk of {node.name} full"
        assert node.disk is not None, "the scenario must say disk_bytes"
        self._disk = node.disk
        self._filler: Path | None = None
        self._least_free = 1 << 62

    def inject(self) -> None:
        self.fill()

    def fill(self) -> None:
        """Take what is free now; call it again for what the mesh has given way since."""
        self._filler = self._disk.fill()
        self._least_free = min(self._least_free, self._disk.free_bytes())

    def heal(self) -> None:
        assert self._filler is not None
        self._filler.unlink()

    def evidence(self) -> str | None:
        return f"{self._least_free:,} bytes were free" if self._least_free < MIB else None


class _Traced(Fault):
    """System calls of the peer that strace makes fail or wait."""

    injected: str
    """strace's rule."""
    mark: str
    """What strace writes beside a call that it changed."""

    def __init__(self, node: Node, place: Path) -> None:
        self.label = f"{self.words} at {node.name}"
        self._node = node
        self._out = place / f"{type(self).__name__}-{node.name}.strace"
        calls = self.injected.partition(":")[0]
        command = ["strace", "-f", "-p", "", "-o", str(self._out)]
        command += ["-e", f"trace={calls}", "-e", f"inject={self.injected}"]
        self._command = command
        self._strace: Daemon | None = None

    words = "a fault"

    def inject(self) -> None:
        self._command[3] = str(self._node.peer.pid)
        log = self._out.with_suffix(".log")
        self._strace = Daemon("strace", None, self._command, log=log)
        self._strace.start()
        strace = self._strace
        strace.wait_until(lambda: "attached" in strace.said())

    def heal(self) -> None:
        if self._strace:
            end([self._strace])

    def evidence(self) -> str | None:
        if not self._out.exists():
            return None
        count = self._out.read_text(errors="replace").count(self.mark)
        return f"strace changed {count:,} calls ({self.injected})" if count else None


class DiskErrors(_Traced):
    """Every third read and write of the store fails with EIO."""

    injected = "pread64,pwrite64:error=EIO:when=2+3"
    mark = "(INJECTED)"
    words = "EIO"


class SlowSync(_Traced):
    """Every sync takes 300 ms more."""

    injected = "fsync,fdatasync,msync:delay_enter=300000"
    mark = "(DELAYED)"
    words = "slow fsync"


class FlippedBytes(Fault):
    """One byte of each MiB of what a node keeps is not what was written.

    Only on the disk, as when a disk does it: a page in memory has the right byte until
    it is dropped, and then the wrong one comes. A plain write would change the page.
    """

    def __init__(self, node: Node, dice: Random) -> None:
        self.label = f"flipped bytes at {node.name}"
        self._node, self._dice = node, dice
        self._flipped = 0
        self._before = 0.0

    def inject(self) -> None:
        self._before = self._node.metric("mesh_corrupt_blocks_total")
        until(lambda: self._flip_all() > 0, "there is something to flip", within_s=10)

    def heal(self) -> None:
        """Nothing to do: the mesh drops what is corrupt and brings it anew."""

    def evidence(self) -> str | None:
        found = self._node.metric("mesh_corrupt_blocks_total") - self._before
        if not found:
            return None
        return f"{self._flipped} bytes flipped, {found:.0f} corrupt blocks found"

    def _flip_all(self) -> int:
        for path in (self._node.store / "data").glob("??/??/*"):
            self._flip(path)
        return self._flipped

    def _flip(self, path: Path) -> None:
        fd = os.open(path, os.O_RDWR | os.O_DIRECT)
        try:
            os.fsync(fd)  # what is written back later would undo it
            size_bytes = os.fstat(fd).st_size // SECTOR_BYTES * SECTOR_BYTES
            for start in range(0, size_bytes, MIB):
                at = start + self._dice.randrange(min(MIB, size_bytes - start))
                self._flipped += _flip_byte(fd, at, 1 << self._dice.randrange(8))
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)  # so that the disk is read
        finally:
            os.close(fd)


def _flip_byte(fd: int, at: int, bits: int) -> bool:
    """Change bits of the byte there, past the page cache; False in a hole, which is to
    stay one."""
    try:
        if os.lseek(fd, at, os.SEEK_DATA) != at:
            return False
    except OSError:  # a hole to the end of the file
        return False
    start = at - at % SECTOR_BYTES
    with mmap.mmap(-1, SECTOR_BYTES) as sector:  # aligned, as O_DIRECT wants it
        os.preadv(fd, [sector], start)
        sector[at - start] ^= bits
        os.pwritev(fd, [sector], start)
    return True
