"""`mesh mount` and `mesh umount`."""

from __future__ import annotations

import os
import select
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import structlog
import typer
import uvloop
from prometheus_client import start_http_server

from mesh.cli.exits import ConfigPath, fail, one_line, settings_of, tune_gc, tune_malloc
from mesh.cli.logs import set_up
from mesh.cli.rooms import absolute, client_settings
from mesh.cli.settings import Settings
from mesh.errors import Unusable
from mesh.metrics import Metrics

log = structlog.get_logger()

MOUNTED_WITHIN_S = 30.0
Mountpoint = Annotated[Path, typer.Argument(metavar="MOUNTPOINT")]


def mount(
    config: ConfigPath,
    mountpoint: Mountpoint,
    background: Annotated[
        bool, typer.Option("--background", "-d", help="Return once it is mounted.")
    ] = False,
    ready_fd: Annotated[int, typer.Option(hidden=True)] = -1,
) -> None:
    """Show the mount table as a tree under MOUNTPOINT, until it is unmounted."""
    settings = settings_of(config)
    where = absolute(mountpoint)
    with one_line():
        from mesh.fuse.mount import check_mountpoint

        check_mountpoint(where)
        if background:
            _spawn(config, where, settings.store.directory)
            return
        set_up(settings.log)
        tune_malloc()
        uvloop.run(_run(settings, where, ready_fd))


def umount(
    mountpoint: Mountpoint,
    force: Annotated[
        bool, typer.Option("--force", help="Also when it is busy, or its daemon is dead.")
    ] = False,
) -> None:
    """Unmount."""
    with one_line():
        from mesh.fuse.mount import umount as unmount

        unmount(absolute(mountpoint), force=force)


async def _run(settings: Settings, mountpoint: Path, ready_fd: int) -> None:
    from mesh.fuse.mount import MountSettings, run_mount
    from mesh.fuse.operations import KernelSettings

    fuse = settings.fuse
    metrics = Metrics()
    if fuse.metrics:
        host, _, port = fuse.metrics.rpartition(":")
        try:
            start_http_server(int(port), host.strip("[]"), metrics.registry())
        except OSError as error:
            raise Unusable(
                f"fuse.metrics {fuse.metrics}: {error.strerror}; stop who uses it or name another"
            ) from error
    told = MountSettings(
        mountpoint=mountpoint,
        client=client_settings(settings),
        kernel=KernelSettings(
            attr_cache_s=fuse.attr_cache,
            entry_cache_s=fuse.entry_cache,
            negative_entry_cache_s=fuse.negative_entry_cache,
            uid=os.getuid(),
            gid=os.getgid(),
            has_xattrs=fuse.xattr,
        ),
        allow_other=fuse.allow_other,
        read_ahead_bytes=fuse.read_ahead,
    )

    def mounted() -> None:
        tune_gc()
        log.info("mounted", mountpoint=str(mountpoint))
        if ready_fd >= 0:
            os.write(ready_fd, b"1")
            os.close(ready_fd)

    await run_mount(told, metrics, mounted=mounted)


def _spawn(config: Path, mountpoint: Path, directory: Path) -> None:
    """Start the mount in a session of its own, and wait until it can be read."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    log_path = directory / "mount.log"
    reading, writing = os.pipe()
    command = [sys.executable, "-m", "mesh.cli.main", "mount", "-c", str(config), str(mountpoint)]
    with log_path.open("ab") as out, os.fdopen(reading, "rb") as ready:
        began_bytes = out.tell()
        child = subprocess.Popen(
            [*command, "--ready-fd", str(writing)],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            start_new_session=True,
            pass_fds=[writing],
        )
        os.close(writing)
        # The other end closes when it is mounted, and when it has failed to be.
        if not select.select([ready], [], [], MOUNTED_WITHIN_S)[0]:
            child.terminate()
            raise fail(f"{mountpoint} was not mounted in {MOUNTED_WITHIN_S:g} s; see {log_path}")
        if ready.read(1):
            return
    child.wait()
    last = log_path.read_bytes()[began_bytes:].decode(errors="replace").strip().splitlines()[-1:]
    raise fail(last[0].removeprefix("mesh: ") if last else "the mount ended at once")
