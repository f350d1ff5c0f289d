"""What readers saw, in figures: arithmetic only, no clock and no files.

All times are seconds on one monotonic clock, which the processes of a machine
share, so the reads of all readers can be laid on one line.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True, slots=True)
class Read:
    """One pread of one reader, or an open that failed (then `size_bytes` is 0)."""

    reader: str
    file: int
    start_s: float
    end_s: float
    offset_bytes: int
    size_bytes: int
    """Bytes that came; 0 for an error."""
    wrong_bytes: int
    """Bytes that were not as expected, or did not come though the file has them."""
    errno: int
    """0 when the read was answered."""

    @property
    def took_s(self) -> float:
        return self.end_s - self.start_s


@dataclass(frozen=True, slots=True)
class Dip:
    """How throughput fell at a fault and came back; times count from the fault."""

    before_bytes_s: float
    depth: float
    """Lowest throughput after the fault / throughput before it."""
    most_back_s: float | None
    """Until what the survivors owe was there again and stayed; None: not in this run."""
    full_back_s: float | None
    """The same for all of it."""


def percentile(values: Iterable[float], share: float) -> float:
    """Return the value that *share* of all do not exceed; 0 of none at all."""
    ranked = sorted(values)
    if not ranked:
        return 0.0
    return ranked[max(0, math.ceil(share * len(ranked)) - 1)]


def longest_gap_s(ends_s: Iterable[float], *, from_s: float, to_s: float) -> float:
    """Return the longest time in which no read was answered, the edges included."""
    inside = sorted(at_s for at_s in ends_s if from_s <= at_s <= to_s)
    return max((b - a for a, b in pairwise([from_s, *inside, to_s])), default=0.0)


def rates(reads: Iterable[Read], *, from_s: float, to_s: float, step_s: float = 0.1) -> list[float]:
    """Return bytes/s in each whole step; the bytes of a read are spread over its time."""
    count = max(1, math.floor(round((to_s - from_s) / step_s, 6)))
    sums = [0.0] * count
    for read in reads:
        for index, share in _shares(read, from_s, step_s, count):
            sums[index] += share * read.size_bytes
    return [total / step_s for total in sums]


def _shares(read: Read, from_s: float, step_s: float, count: int) -> Iterable[tuple[int, float]]:
    """Yield which part of a read falls into which step."""
    took_s = max(read.took_s, 1e-6)
    first = math.floor((read.start_s - from_s) / step_s)
    last = math.floor((read.start_s + took_s - from_s) / step_s)
    for index in range(max(first, 0), min(last, count - 1) + 1):
        low_s = max(read.start_s, from_s + index * step_s)
        high_s = min(read.start_s + took_s, from_s + (index + 1) * step_s)
        if high_s > low_s:
            yield index, (high_s - low_s) / took_s


def smoothed(values: Sequence[float], width: int) -> list[float]:
    """Return the mean of *width* values around each; fewer at the edges."""
    half = width // 2
    return [
        sum(near) / len(near)
        for near in (values[max(0, i - half) : i + half + 1] for i in range(len(values)))
    ]


def back_s(
    values: Sequence[float], *, level: float, step_s: float, stays_s: float = 1.0
) -> float | None:
    """Return when *values* are at *level* again for *stays_s*; 0 if they never fell below."""
    below = next((i for i, value in enumerate(values) if value < level), None)
    if below is None:
        return 0.0
    steps = max(1, round(stays_s / step_s))
    for start in range(below + 1, len(values) - steps + 1):
        if all(value >= level for value in values[start : start + steps]):
            return round(start * step_s, 6)
    return None


def dip(
    before: Sequence[float],
    after: Sequence[float],
    *,
    step_s: float,
    most: float,
    full: float = 0.93,
    width: int = 11,
) -> Dip:
    """Compare the throughput *after* a fault with that *before* it.

    *most* is the share of it that the survivors owe soon; *full* counts as all,
    for the noise of a steady load alone is 5 %. *width* steps are taken together: a
    reader of 1 MiB at a time at 4 MiB/s is done with one every quarter of a second.
    """
    mean = sum(before) / len(before) if before else 0.0
    if not mean:
        return Dip(0.0, 0.0, None, None)
    flat = smoothed(after, width)
    return Dip(
        before_bytes_s=mean,
        depth=min(flat, default=0.0) / mean,
        most_back_s=back_s(flat, level=most * mean, step_s=step_s),
        full_back_s=back_s(flat, level=full * mean, step_s=step_s),
    )
