"""Memory that a virtual machine is lent page by page, and how to have it before time is taken.

Where a host takes free pages back within seconds (free page reporting), the first touch of
each is a fault of the host: on the machine that these benchmarks were written on 1.0 to 2.6
CPU-s for each GiB, where a page that is touched again costs 0.25. Machines that people train
on have their memory.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mesh.blocks import MIB

LEFT_BYTES = 512 * MIB


@contextmanager
def memory_had(place: Path) -> Iterator[None]:
    """Fill free memory with clean pages of an empty file in *place*; the kernel gives them to
    whoever needs memory meanwhile, without asking the host for more."""
    with tempfile.TemporaryFile(dir=place) as empty:
        os.ftruncate(empty.fileno(), _free_bytes())
        into = bytearray(MIB)
        at_bytes = 0
        while _free_bytes() > LEFT_BYTES and os.preadv(empty.fileno(), [into], at_bytes):
            at_bytes += MIB
        yield


def _free_bytes() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemFree:"):
            return int(line.split()[1]) * 1024
    return 0
