"""The readers of a run: started together, watched while they read, gathered at the end."""

from __future__ import annotations

import itertools
import mmap
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from chaos.daemons import Daemon, end
from chaos.place import until
from chaos.reader import RECORD, SLOT
from chaos.stats import Read

START_IN_S = 0.6
"""What a reader takes from its start to its first read, so that all begin at once."""
_numbers = itertools.count(1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """How one reader reads."""

    files: tuple[str, ...]
    threads: int = 2
    pattern: str = "mixed"
    pace_bytes_s: float = 0.0
    """Of each thread; 0 for as fast as it can."""
    passes: int = 0
    """0: until it is told to end."""


class Reader:
    """One reader process, and what it has written down."""

    def __init__(
        self, view: Path, source: Path, place: Path, load: Load, *, seed: int, start_at_s: float
    ) -> None:
        number = next(_numbers)
        self.name = f"reader-{number} at {view.name}"
        self._record = place / f"reader-{number}.reads"
        self._slots = place / f"reader-{number}.slots"
        self._threads = load.threads
        words = {
            "--view": view,
            "--source": source,
            "--record": self._record,
            "--slots": self._slots,
            "--files": ",".join(load.files),
            "--threads": load.threads,
            "--pattern": load.pattern,
            "--pace": load.pace_bytes_s,
            "--passes": load.passes,
            "--seed": f"{seed + number}",
            "--start-at": start_at_s,
        }
        command = [sys.executable, "-m", "chaos.reader"]
        command += [str(word) for pair in words.items() for word in pair]
        self.process = Daemon(self.name, None, command, log=place / f"reader-{number}.log")
        self.process.start()

    def reads(self) -> list[Read]:
        """Return all reads that have ended."""
        if not self._record.exists():
            return []
        data = self._record.read_bytes()
        whole = len(data) - len(data) % RECORD.size
        return [
            Read(self.name, file, start_s, end_s, offset, size, wrong, errno)
            for start_s, end_s, offset, size, wrong, errno, file in RECORD.iter_unpack(data[:whole])
        ]

    @property
    def count(self) -> int:
        return self._record.stat().st_size // RECORD.size if self._record.exists() else 0

    def waiting_s(self) -> list[float]:
        """Return for how long each read at hand has been waiting."""
        if not self._slots.exists() or not self._slots.stat().st_size:
            return []
        with (
            self._slots.open("rb") as file,
            mmap.mmap(file.fileno(), self._threads * SLOT.size, access=mmap.ACCESS_READ) as slots,
        ):
            starts = [start_s for (start_s,) in SLOT.iter_unpack(slots[:])]
        now_s = time.monotonic()
        return [now_s - start_s for start_s in starts if start_s]


class Workload:
    """Some readers that belong together."""

    def __init__(self, source: Path, place: Path, *, seed: int) -> None:
        """Let readers compare with the files in *source* and write into *place*."""
        self._source, self._place, self._seed = source, place, seed
        self.readers: list[Reader] = []
        self.aside: list[Workload] = []
        """Others that end with this one, but are judged apart."""
        self.stuck_s: list[float] = []
        """How old the reads were that did not end when the readers were told to."""

    def start(self, views: Iterable[Path], load: Load) -> list[Reader]:
        """Start a reader at each view; they begin at the same moment."""
        views = list(views)
        start_at_s = time.monotonic() + START_IN_S + 0.1 * len(views)
        started = [
            Reader(view, self._source, self._place, load, seed=self._seed, start_at_s=start_at_s)
            for view in views
        ]
        self.readers += started
        return started

    def wait(self, readers: Sequence[Reader], *, within_s: float) -> float:
        """Wait until readers with a number of passes are done; return how long it took."""
        return until(
            lambda: not any(reader.process.is_running for reader in readers),
            "all readers are done",
            within_s=within_s,
        )

    def stop(self, readers: Sequence[Reader] | None = None, *, within_s: float = 20.0) -> None:
        """Let readers end the reads at hand; those that cannot are noted, and killed."""
        chosen = [r for r in (self.readers if readers is None else readers) if r.process.is_running]
        for reader in chosen:
            reader.process.signal(15)
        deadline_s = time.monotonic() + within_s
        while any(r.process.is_running for r in chosen) and time.monotonic() < deadline_s:
            time.sleep(0.05)
        left = [reader for reader in chosen if reader.process.is_running]
        self.stuck_s += [age_s for reader in left for age_s in reader.waiting_s()]

    def abandon(self) -> None:
        """End all readers at once; call it when no mount can hold them any more."""
        everyone = [*self.readers, *(reader for each in self.aside for reader in each.readers)]
        end([reader.process for reader in everyone], patience_s=2.0)

    def reads(self) -> list[Read]:
        return [read for reader in self.readers for read in reader.reads()]

    def broken(self) -> list[str]:
        """Return what readers said that ended by themselves with an error."""
        return [
            f"{reader.name} ended with {reader.process.exit_code}: {reader.process.said()[-400:]}"
            for reader in self.readers
            if reader.process.exit_code not in (0, None, -9)
        ]

    def is_reading(self) -> bool:
        """Say whether somebody is waiting for a read at this moment."""
        return any(reader.waiting_s() for reader in self.readers if reader.process.is_running)
