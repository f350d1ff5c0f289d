"""Whether a process of this host is stopped, or only waits for a CPU."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path


def cpu_s(pid: int) -> float | None:
    """Return for how long the threads of a process have run, or were ready to run and had to
    wait for a CPU, all of them together (Documentation/scheduler/sched-stats.rst of Linux).

    None when nobody can say: the process is gone, in another namespace, or the kernel does
    not count.
    """
    try:
        threads = list(Path(f"/proc/{pid}/task").iterdir()) if pid > 0 else []
    except OSError:
        return None
    counts_ns: list[int] = []
    for thread in threads:
        with suppress(OSError, ValueError):  # a thread that has just ended
            ran_ns, waited_ns, _ = (thread / "schedstat").read_text().split()
            counts_ns.append(int(ran_ns) + int(waited_ns))
    return sum(counts_ns) / 1e9 if counts_ns else None
