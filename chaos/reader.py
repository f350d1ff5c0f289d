"""A reader: a process that reads through one mount and checks every byte.

    python -m chaos.reader --view DIR --source DIR --record FILE --slots FILE --files a,b ...

It serves no mount and imports nothing of mesh: what it sees is what any program
sees. Each read is one `RECORD`, appended in one write, so a reader that is killed
leaves whole records behind. What a thread is waiting for now stands in its slot of
a shared map, so a read that never ends is seen as well.

SIGTERM: finish the read at hand, then end.
"""

from __future__ import annotations

import argparse
import mmap
import os
import random
import signal
import struct
import threading
import time
from pathlib import Path

RECORD = struct.Struct("<ddQIIHH")
"""start_s, end_s, offset_bytes, size_bytes, wrong_bytes, errno, file."""
SLOT = struct.Struct("<d")
"""When the read at hand began; 0 when there is none."""
READ_BYTES = 1024 * 1024
RANDOM_BYTES = 256 * 1024
AFTER_ERROR_S = 0.05


class Halt:
    """Set by SIGTERM."""

    def __init__(self) -> None:
        self.is_set = False

    def set(self, *_: object) -> None:
        self.is_set = True


class Source:
    """What the files should hold, mapped from a copy kept outside the mesh."""

    def __init__(self, directory: Path, names: list[str]) -> None:
        self.names = names
        self.maps = [self._map(directory / name) for name in names]

    def _map(self, path: Path) -> mmap.mmap:
        with path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def wrong_bytes(self, file: int, offset_bytes: int, data: bytes, wanted_bytes: int) -> int:
        """Return how many bytes differ or are missing."""
        expected = self.maps[file][offset_bytes : offset_bytes + wanted_bytes]
        if data == expected:
            return 0
        differ = sum(a != b for a, b in zip(data, expected, strict=False))
        return differ + abs(len(expected) - len(data))


class Thread(threading.Thread):
    """Reads, checks, records; one slot, one pace."""

    def __init__(self, number: int, told: argparse.Namespace, source: Source, halt: Halt) -> None:
        super().__init__(name=f"reader-{number}")
        self._told, self._source, self._halt = told, source, halt
        self._dice = random.Random(f"{told.seed}/{number}")
        self._is_random = told.pattern == "random" or (told.pattern == "mixed" and number % 2)
        self._record_fd = os.open(told.record, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        self._slots, self._slot_at = told.slot_map, number * SLOT.size
        self._fds: dict[int, int] = {}
        self._due_s = 0.0

    def run(self) -> None:
        time.sleep(max(0.0, self._told.start_at - time.monotonic()))
        turn_s = READ_BYTES / self._told.pace if self._told.pace else 0.0
        self._due_s = time.monotonic() + self._dice.random() * turn_s
        passes = 0
        while not self._halt.is_set and (not self._told.passes or passes < self._told.passes):
            if self._is_random:
                self._read_somewhere()
            else:
                self._read_all()
                passes += 1

    def _read_all(self) -> None:
        order = list(range(len(self._source.names)))
        if not self._told.in_order:
            self._dice.shuffle(order)
        for file in order:
            self._drop_from_kernel(file, 0, 0)
            size_bytes = len(self._source.maps[file])
            for offset_bytes in range(0, size_bytes, READ_BYTES):
                if self._halt.is_set:
                    return
                self._read(file, offset_bytes, min(READ_BYTES, size_bytes - offset_bytes))

    def _read_somewhere(self) -> None:
        file = self._dice.randrange(len(self._source.names))
        pieces = -(-len(self._source.maps[file]) // RANDOM_BYTES)
        offset_bytes = self._dice.randrange(pieces) * RANDOM_BYTES
        self._drop_from_kernel(file, offset_bytes, RANDOM_BYTES)
        wanted_bytes = min(RANDOM_BYTES, len(self._source.maps[file]) - offset_bytes)
        self._read(file, offset_bytes, wanted_bytes)

    def _drop_from_kernel(self, file: int, offset_bytes: int, size_bytes: int) -> None:
        if file in self._fds:
            os.posix_fadvise(self._fds[file], offset_bytes, size_bytes, os.POSIX_FADV_DONTNEED)

    def _open(self, file: int) -> int:
        if file not in self._fds:
            fd = os.open(Path(self._told.view) / self._source.names[file], os.O_RDONLY)
            if self._is_random:
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
            else:
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            self._fds[file] = fd
        return self._fds[file]

    def _read(self, file: int, offset_bytes: int, wanted_bytes: int) -> None:
        self._keep_pace(wanted_bytes)
        data, errno, start_s = b"", 0, time.monotonic()
        SLOT.pack_into(self._slots, self._slot_at, start_s)
        try:
            data = os.pread(self._open(file), wanted_bytes, offset_bytes)
        except OSError as error:
            errno = error.errno or 5
        end_s = time.monotonic()
        SLOT.pack_into(self._slots, self._slot_at, 0.0)
        wrong = 0 if errno else self._source.wrong_bytes(file, offset_bytes, data, wanted_bytes)
        record = (start_s, end_s, offset_bytes, len(data), wrong, errno, file)
        os.write(self._record_fd, RECORD.pack(*record))
        if errno:
            self._open_anew(file)

    def _open_anew(self, file: int) -> None:
        """A handle that failed once may fail for ever (ESTALE); take a new one."""
        if (fd := self._fds.pop(file, None)) is not None:
            os.close(fd)
        time.sleep(AFTER_ERROR_S)

    def _keep_pace(self, wanted_bytes: int) -> None:
        """Wait for this read's turn. What a stall delayed is not caught up later."""
        if not self._told.pace:
            return
        now_s = time.monotonic()
        time.sleep(max(0.0, self._due_s - now_s))
        self._due_s = max(self._due_s, now_s) + wanted_bytes / self._told.pace


def told_by_the_command_line() -> argparse.Namespace:
    words = argparse.ArgumentParser(description="read through a mount and check every byte")
    for name in ("--view", "--source", "--record", "--slots", "--files"):
        words.add_argument(name, required=True)
    words.add_argument("--threads", type=int, default=2)
    words.add_argument("--pattern", choices=("sequential", "random", "mixed"), default="mixed")
    words.add_argument("--pace", type=float, default=0.0, help="bytes/s of each thread; 0: all")
    words.add_argument("--passes", type=int, default=0, help="0: until told to end")
    words.add_argument("--in-order", action="store_true", help="files in the order given")
    words.add_argument("--seed", type=int, default=0)
    words.add_argument("--start-at", type=float, default=0.0, help="on the monotonic clock")
    return words.parse_args()


def main() -> None:
    told = told_by_the_command_line()
    halt = Halt()
    signal.signal(signal.SIGTERM, halt.set)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the one who started us
    with Path(told.slots).open("wb+") as slots:
        slots.truncate(told.threads * SLOT.size)
        told.slot_map = mmap.mmap(slots.fileno(), told.threads * SLOT.size)
    source = Source(Path(told.source), told.files.split(","))
    threads = [Thread(number, told, source, halt) for number in range(told.threads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        while thread.is_alive():  # a join without end would keep the signal waiting
            thread.join(0.2)


if __name__ == "__main__":
    main()
