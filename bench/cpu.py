"""What processes have used, as the kernel counts it; no library needed."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def family(pid: int) -> list[int]:
    """Return *pid* and all living processes that descend from it."""
    parents = {}
    for each in Path("/proc").iterdir():
        if each.name.isdigit():
            with suppress(OSError):
                parents[int(each.name)] = int(_stat_fields(int(each.name))[1])
    found = [pid]
    for ancestor in found:  # grows while it is walked
        found += [child for child, parent in parents.items() if parent == ancestor]
    return found


def cpu_s(pid: int) -> float:
    """Return the CPU-seconds of *pid* and its descendants, the dead ones included."""
    total_ticks = 0
    for each in family(pid):
        with suppress(OSError):
            total_ticks += sum(map(int, _stat_fields(each)[11:15]))
    return total_ticks / TICKS_PER_S


def rss_bytes(pid: int) -> int:
    """Return the resident memory of *pid* and its descendants."""
    return _status_bytes(pid, "VmRSS")


def anonymous_bytes(pid: int) -> int:
    """Return the part of `rss_bytes` that no file backs: what the OOM killer is about."""
    return _status_bytes(pid, "RssAnon")


def stolen_s() -> float:
    """Return the seconds that the host took from this machine's CPUs so far."""
    total, *_ = Path("/proc/stat").read_text().splitlines()
    return int(total.split()[8]) / TICKS_PER_S


def _stat_fields(pid: int) -> list[str]:
    """Return /proc/PID/stat from its third field (state) on."""
    text = Path(f"/proc/{pid}/stat").read_text()
    return text[text.rindex(")") + 2 :].split()


def _status_bytes(pid: int, field: str) -> int:
    total_bytes = 0
    for each in family(pid):
        with suppress(OSError):
            for line in Path(f"/proc/{each}/status").read_text().splitlines():
                if line.startswith(field + ":"):
                    total_bytes += int(line.split()[1]) * 1024
    return total_bytes
