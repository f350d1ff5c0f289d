"""`mesh uploads` and `mesh flush`: what waits for the under-store, and until nothing does."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from mesh.cli.ask import ask, host_peer
from mesh.cli.exits import AsJson, ConfigPath, fail, one_line, settings_of
from mesh.cli.figures import text_shown
from mesh.cli.info import mesh_mountpoints, path_in_mesh
from mesh.cli.quantities import parse_seconds
from mesh.wire.messages import Nothing
from mesh.wire.writes import ALL_UPLOADS, FLUSH, FlushRequest, Waiting

GRACE_S = 10.0


def uploads(config: ConfigPath, as_json: AsJson = False) -> None:
    """What peers have and the under-store does not have yet, oldest first."""
    waiting = ask(settings_of(config), ALL_UPLOADS, Nothing()).waiting
    if as_json:
        print(json.dumps({"uploads": [_plain(one) for one in waiting]}))
        return
    table = Table(box=None, pad_edge=False)
    for heading in ("path", "MiB", "waits", "on", "tries", "last error"):
        table.add_column(heading, justify="right" if heading in ("MiB", "tries") else "left")
    now_s = time.time()
    for one in waiting:
        table.add_row(
            text_shown(one.file.path),
            f"{one.file.size_bytes / (1 << 20):,.1f}",
            f"{max(0.0, now_s - one.file.queued_s):,.0f} s",
            ", ".join(one.file.holders),
            str(one.tries),
            text_shown(one.reason),
        )
    if waiting:
        Console().print(table)
    else:
        print("nothing waits")


def flush(
    config: ConfigPath,
    path: Annotated[str, typer.Argument(metavar="[PATH]")] = "/",
    timeout: Annotated[str, typer.Option(help="Wait at most so long, such as 90s.")] = "1h",
) -> None:
    """Wait until the under-store has all that was written at PATH and below it."""
    settings = settings_of(config)
    within = path_in_mesh(path, mesh_mountpoints())
    if within is None:
        fail(f"{text_shown(path)} is not in the mesh; write a path from / on, or one of a mount")
        raise typer.Exit(2)
    try:
        timeout_s = parse_seconds(timeout)
    except ValueError as error:
        fail(f"--timeout {text_shown(timeout)}: {error}; write such as 90s")
        raise typer.Exit(2) from None
    with one_line():
        left = asyncio.run(_flush(settings.peer.socket, within, timeout_s))
    if left:
        fail(f"{left} files still wait after {timeout_s:g} s; `mesh uploads` says why")
        raise typer.Exit(1)


async def _flush(socket: Path, path: str, timeout_s: float) -> int:
    async with host_peer(socket) as peer:
        request = FlushRequest(path, timeout_s)
        return (await peer.ask(FLUSH, request, timeout_s=timeout_s + GRACE_S)).waiting


def _plain(one: Waiting) -> dict[str, object]:
    return {
        "path": one.file.path,
        "size_bytes": one.file.size_bytes,
        "queued_s": one.file.queued_s,
        "holders": list(one.file.holders),
        "tries": one.tries,
        "error": one.reason,
    }
