"""Where a run happens: one folder, one prefix for every name, and nothing left of either.

    /tmp/chaos-<pid>/       configs, stores, sockets, mounts, logs, disks
    chaos-<pid>-<host>      network namespaces

The pid in each name says whose it is. `sweep` takes away what runs left behind
that could not clean up after themselves, and nothing of runs that are alive.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

ROOT = Path(__file__).resolve().parent.parent
PREFIX = "chaos-"
TEMPORARY = Path("/tmp")  # not $TMPDIR: a Unix socket's path has at most 107 bytes
CONNECTIONS = Path("/sys/fs/fuse/connections")
NAMESPACES = Path("/run/netns")
PROGRAMS = ("ip", "tc", "nft", "nsenter", "prlimit", "strace", "mkfs.ext4", "umount")


class Refused(Exception):
    """This machine or this call will not do; the text is one line for people."""


def check_machine() -> None:
    """Raise `Refused` when chaos cannot run here."""
    if os.geteuid():
        raise Refused("chaos makes network namespaces and mounts: run it as root")
    if not Path("/dev/fuse").exists():
        raise Refused("there is no /dev/fuse here; chaos needs real mounts")
    if missing := [name for name in PROGRAMS if shutil.which(name) is None]:
        packages = "iproute2 nftables strace e2fsprogs util-linux"
        raise Refused(f"not installed: {', '.join(missing)}; apt-get install {packages}")


def run(*words: str, timeout_s: float = 20.0, text: str | None = None) -> str:
    """Run a program to its end; return what it prints. Raises `RuntimeError` when it fails."""
    done = subprocess.run(
        words, input=text, capture_output=True, text=True, timeout=timeout_s, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)}: {done.stderr.strip() or done.returncode}")
    return done.stdout


def until(
    condition: Callable[[], bool], what: str, *, within_s: float, every_s: float = 0.05
) -> float:
    """Wait for a condition; return how long it took. Raises `TimeoutError`."""
    start_s = time.monotonic()
    while not condition():
        if time.monotonic() - start_s > within_s:
            raise TimeoutError(f"not within {within_s:g} s: {what}")
        time.sleep(every_s)
    return time.monotonic() - start_s


@contextmanager
def workplace() -> Iterator[Path]:
    """Give an empty folder; take away what is mounted in it, and it, at the end."""
    sweep()
    _show_fuse_connections()
    place = TEMPORARY / f"{PREFIX}{os.getpid()}"
    place.mkdir(mode=0o700)
    try:
        yield place
    finally:
        _remove(place)


_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Make SIGTERM and SIGHUP leave by the same way as Ctrl-C."""

    def leave(number: int, _: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = {number: signal.getsignal(number) for number in _ENDING}
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, leave)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def ignore_signals() -> None:
    """Take things down without being broken off half-way; `ended_by_signals` undoes it."""
    for number in _ENDING:
        signal.signal(number, signal.SIG_IGN)


# Mounts


def mount_table() -> Iterator[tuple[str, Path, str]]:
    """Yield (device number, mountpoint, type) of each mount, asking no file system."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields = line.split()
        kind = fields[fields.index("-", 6) + 1]
        yield fields[2], Path(fields[4].encode().decode("unicode_escape")), kind


def is_mounted(point: Path) -> bool:
    return any(mounted == point for _, mounted, _ in mount_table())


def take_away(point: Path) -> None:
    """Detach what is mounted on *point*, and end the waiting of all who read from it."""
    for device, mounted, kind in list(mount_table()):
        if mounted != point:
            continue
        with suppress(subprocess.TimeoutExpired, RuntimeError):
            run("umount", "-l", str(point), timeout_s=10)
        if kind.startswith("fuse"):
            with suppress(OSError):
                (CONNECTIONS / device.partition(":")[2] / "abort").write_text("1")


def _show_fuse_connections() -> None:
    if not any(point == CONNECTIONS for _, point, _ in mount_table()):
        run("mount", "-t", "fusectl", "none", str(CONNECTIONS))


def _remove(place: Path) -> None:
    below = [point for _, point, _ in mount_table() if point.is_relative_to(place)]
    for point in reversed(below):
        take_away(point)
    if any(point.is_relative_to(place) for _, point, _ in mount_table()):
        print(f"warning: {place} stays: something is still mounted in it", file=sys.stderr)
        return
    shutil.rmtree(place, ignore_errors=True)


# What dead runs left behind


def sweep() -> None:
    """Take away the namespaces, processes, mounts and folders of runs that are dead."""
    names = [path.name for path in NAMESPACES.glob(f"{PREFIX}*")]
    for name in names:
        if _is_abandoned(name):
            _kill_all_in(name)
            with suppress(RuntimeError):
                run("ip", "netns", "del", name)
    for place in TEMPORARY.glob(f"{PREFIX}*"):
        if _is_abandoned(place.name):
            _remove(place)


def _is_abandoned(name: str) -> bool:
    pid = name.removeprefix(PREFIX).partition("-")[0]
    return pid.isdigit() and not Path(f"/proc/{pid}").exists()


def _kill_all_in(namespace: str) -> None:
    """Kill what runs in a namespace; only a run of chaos put it there."""
    with suppress(RuntimeError):
        kill(int(pid) for pid in run("ip", "netns", "pids", namespace).split())


def kill(pids: Iterator[int] | Sequence[int]) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
