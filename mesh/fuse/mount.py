"""A mount, from the mount(8) to the umount(8)."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pyfuse3
import pyfuse3.asyncio
import structlog

from mesh.blocks import KIB, MIB
from mesh.client.client import ClientSettings, open_client
from mesh.errors import Unusable
from mesh.fuse.guardian import guard
from mesh.fuse.operations import KernelSettings, MeshOperations
from mesh.fuse.view import View
from mesh.metrics import Metrics

log = structlog.get_logger()

FILE_SYSTEM = "mesh"
TASKS_MIN = 8
TASKS_MAX = 64
"""Each can hold a request of 1 MiB in libfuse, and one in `Buffers`."""

REPORT_ENDS_S = 2.0
STOP_GRACE_S = 5.0
DEAD_AFTER_S = 3.0
CONNECTIONS = Path("/sys/fs/fuse/connections")


@dataclass(frozen=True, slots=True, kw_only=True)
class MountSettings:
    """What one mount is told."""

    mountpoint: Path
    client: ClientSettings
    kernel: KernelSettings = field(default_factory=KernelSettings)
    allow_other: bool = False
    read_ahead_bytes: int = 4 * MIB
    """How far the kernel reads ahead. Its default of 128 KiB also is the largest
    request that it makes; 1 MiB and more cost a third of the CPU."""


def check_mountpoint(mountpoint: Path) -> None:
    """Make the directory if it is missing; `Unusable` when nothing can be mounted there."""
    if device_of(mountpoint) is not None:
        if not _answers(mountpoint):
            raise Unusable(
                f"mount point {mountpoint} is a dead mount; "
                f"`mesh umount --force {mountpoint}` first"
            )
        raise Unusable(
            f"mount point {mountpoint} is mounted already; `mesh umount {mountpoint}` first"
        )
    try:
        mountpoint.mkdir(parents=True, exist_ok=True)
        if any(mountpoint.iterdir()):
            raise Unusable(f"mount point {mountpoint} is not empty; name an empty or new directory")
    except (FileExistsError, NotADirectoryError):
        raise Unusable(f"mount point {mountpoint} is not a directory; name one") from None
    except OSError as error:
        raise Unusable(f"mount point {mountpoint}: {error.strerror}; mend its rights") from None


def _answers(mountpoint: Path) -> bool:
    """Whether what is mounted there answers, asked from a thread that may hang for ever."""
    answered = threading.Event()

    def ask() -> None:
        with suppress(OSError):
            mountpoint.stat()
            answered.set()

    threading.Thread(target=ask, daemon=True).start()
    return answered.wait(DEAD_AFTER_S)


async def run_mount(
    settings: MountSettings, metrics: Metrics, *, mounted: Callable[[], None]
) -> None:
    """Show the mesh under the mount point until it is unmounted or a signal comes.

    Calls *mounted* once it can be read. `Unusable` when it can't be mounted.
    """
    async with open_client(settings.client, metrics=metrics) as client:
        operations = MeshOperations(View(client), settings.kernel, metrics)
        pyfuse3.asyncio.enable()
        try:
            pyfuse3.init(operations, str(settings.mountpoint), _options(settings))
        except RuntimeError as error:
            raise Unusable(
                f"mount point {settings.mountpoint} can't be mounted: {error}; "
                "is /dev/fuse there, and may this user mount?"
            ) from error
        unmounted = False
        try:
            report = asyncio.create_task(
                client.report_each_second(str(settings.mountpoint), os.getpid()), name="report"
            )
            watch = asyncio.create_task(client.watch(operations.changed), name="watch")
            serving = asyncio.create_task(
                pyfuse3.main(min_tasks=TASKS_MIN, max_tasks=TASKS_MAX), name="serve"
            )
            loop = asyncio.get_running_loop()
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.add_signal_handler(number, _stop, serving)
            # Answered by this very loop, so from a thread; INIT is over then, and what
            # is written to read_ahead_kb before it would be overwritten by it.
            answered = asyncio.to_thread(os.statvfs, settings.mountpoint)
            asked = asyncio.create_task(answered, name="first request")
            await asyncio.wait({asked, serving}, return_when=asyncio.FIRST_COMPLETED)
            if asked.done():
                _raise_read_ahead(settings)
                if (connection := connection_of(settings.mountpoint)) is not None:
                    guard(os.getpid(), connection)
                mounted()
            with suppress(asyncio.CancelledError):
                await serving
            unmounted = device_of(settings.mountpoint) is None
            report.cancel()
            watch.cancel()
            await asyncio.wait({report, watch}, timeout=REPORT_ENDS_S)
        finally:
            pyfuse3.close(unmount=not unmounted)
    log.info("unmounted", mountpoint=str(settings.mountpoint))


def _stop(serving: asyncio.Task[None]) -> None:
    """Take no more requests; those under way may end, but not take for ever."""
    pyfuse3.terminate()
    asyncio.get_running_loop().call_later(STOP_GRACE_S, serving.cancel)


def _options(settings: MountSettings) -> set[str]:
    # With default_permissions the kernel checks modes and owners, so that with
    # allow_other not everybody may read everything.
    options = {*pyfuse3.default_options, "default_permissions"}
    if all(mount.read_only for mount in settings.client.mounts.values()):
        options.add("ro")
    options |= {f"fsname={FILE_SYSTEM}", f"subtype={FILE_SYSTEM}"}
    if settings.allow_other:
        options.add("allow_other")
    return options


def _raise_read_ahead(settings: MountSettings) -> None:
    """Let the kernel ask for more at a time; needs root and a writable /sys."""
    # From the kernel's table: asking the mount itself would wait for this process.
    path = Path(f"/sys/class/bdi/{device_of(settings.mountpoint)}/read_ahead_kb")
    try:
        path.write_text(str(settings.read_ahead_bytes // KIB))
    except OSError as error:
        log.warning("read-ahead not raised", path=str(path), reason=error.strerror)


def umount(mountpoint: Path, *, force: bool) -> None:
    """Unmount; `Unusable` says why not. With *force* also when it is busy or dead."""
    as_root = os.geteuid() == 0
    if as_root:
        command = ["umount", *(["-l"] if force else []), str(mountpoint)]
    else:
        command = ["fusermount3", "-u", *(["-z"] if force else []), str(mountpoint)]
    connection = connection_of(mountpoint) if force else None
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    if connection is not None and (connection / "abort").exists():
        (connection / "abort").write_text("1")
    if done.returncode != 0:
        reason = done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "failed"
        mend = "close what is open there, or use --force" if "busy" in reason else "is it mounted?"
        raise Unusable(f"{reason}; {mend}")


def device_of(mountpoint: Path) -> str | None:
    """Return "major:minor" of what is mounted there last, without touching it, or None."""
    found = None
    name = str(mountpoint).replace("\\", "\\134").replace(" ", "\\040")
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields = line.split()
        if fields[4] == name:
            found = fields[2]
    return found


def connection_of(mountpoint: Path) -> Path | None:
    """Return the control directory of the FUSE connection that serves a mount point."""
    device = device_of(mountpoint)
    if device is None:
        return None
    if os.geteuid() == 0 and CONNECTIONS.is_dir() and not any(CONNECTIONS.iterdir()):
        subprocess.run(["mount", "-t", "fusectl", "none", str(CONNECTIONS)], check=False)
    return CONNECTIONS / device.partition(":")[2]
