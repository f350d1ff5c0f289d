"""What must hold after a run, as functions of what was seen. No I/O.

A broken check fails the run. Goals of timing are not here: those are rows of the
report, met or missed.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from chaos.stats import Read

EGRESS_RATIO_MAX = 1.02
EGRESS_HEDGED_RATIO_MAX = 1.25
"""Where a machine that stalls for a second has a second owner fill as well, by design."""
REPEATED_RATIO_MAX = 0.1


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that must hold."""

    what: str
    holds: bool
    seen: str
    is_final: bool = False
    """Whether a run that broke it is not repeated."""

    def __str__(self) -> str:
        return f"{self.what}: {self.seen}"


@dataclass(frozen=True, slots=True)
class Window:
    """A time in which readers may see errors, since no one could answer them."""

    from_s: float
    to_s: float

    def has(self, read: Read) -> bool:
        return self.from_s <= read.end_s and read.start_s <= self.to_s


def no_wrong_bytes(reads: Iterable[Read]) -> Check:
    wrong = [read for read in reads if read.wrong_bytes]
    seen = f"{sum(read.wrong_bytes for read in wrong)} wrong bytes in {len(wrong)} reads"
    if wrong:
        first = wrong[0]
        seen += f"; the first: file {first.file} at {first.offset_bytes} by {first.reader}"
    return Check("no wrong bytes", not wrong, seen, is_final=True)


def errors_outside(reads: Iterable[Read], excused: Sequence[Window] = ()) -> list[Read]:
    """Return the reads that failed although somebody could have answered."""
    return [read for read in reads if read.errno and not any(w.has(read) for w in excused)]


def no_errors(reads: Iterable[Read], excused: Sequence[Window] = ()) -> Check:
    failed = errors_outside(reads, excused)
    return Check("no read errors", not failed, in_words(failed))


def in_words(failed: Sequence[Read]) -> str:
    """Return `3 errors: EIO x 2, ENOTCONN x 1`."""
    if not failed:
        return "0 errors"
    names = Counter(_name(read.errno) for read in failed)
    listed = ", ".join(f"{name} x {count}" for name, count in names.most_common())
    return f"{len(failed)} errors: {listed}"


def _name(number: int) -> str:
    from errno import errorcode

    return errorcode.get(number, os.strerror(number))


def something_was_read(reads: Sequence[Read]) -> Check:
    size_bytes = sum(read.size_bytes for read in reads)
    return Check("readers read", size_bytes > 0, f"{len(reads)} reads, {size_bytes:,} bytes")


def no_hang(unfinished_s: Sequence[float], longest_s: float, *, deadline_s: float) -> Check:
    """No read takes longer than its deadline, ended or not."""
    stuck = sum(age_s > deadline_s for age_s in unfinished_s)
    holds = not stuck and longest_s <= deadline_s
    seen = f"longest {longest_s:.2f} s, {stuck} never ended"
    return Check(f"no read longer than {deadline_s:g} s", holds, seen)


def egress_at_most(ratio: float, *, most: float = EGRESS_RATIO_MAX) -> Check:
    seen = f"{ratio:.3f} x the data"
    return Check(f"under-store egress at most {most:g} x the data", ratio <= most, seen)


def nothing_fetched(egress_bytes: int, data_bytes: int) -> Check:
    """Say whether no more was fetched again than what one peer alone may have had.

    A block that nobody else had is away with its peer; who reads it then can't wait.
    """
    most = REPEATED_RATIO_MAX * data_bytes
    seen = f"{egress_bytes:,} bytes fetched again"
    return Check("hardly a fill repeated (10 % of the data)", egress_bytes <= most, seen)


def broken(checks: Iterable[Check]) -> Iterator[Check]:
    return (check for check in checks if not check.holds)
