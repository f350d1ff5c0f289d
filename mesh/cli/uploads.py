"""`mesh uploads` and `mesh flush`: what waits for the under-store, and until nothing does."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console, JustifyMethod
from rich.table import Table

from mesh.cli.ask import ask, host_peer
from mesh.cli.exits import AsJson, ConfigPath, fail, one_line, settings_of
from mesh.cli.figures import NOTHING, duration_shown, percent_shown, size_shown, text_shown
from mesh.cli.info import mesh_mountpoints, path_in_mesh
from mesh.cli.quantities import parse_seconds
from mesh.wire.messages import Nothing
from mesh.wire.staged import ALL_UPLOADS, FLUSH, FlushRequest, Waiting

GRACE_S = 10.0

_COLUMNS: list[tuple[str, JustifyMethod]] = [
    ("path", "left"),
    ("size", "right"),
    ("waits", "right"),
    ("sent", "right"),
    ("rate", "right"),
    ("on", "left"),
    ("tries", "right"),
    ("last error", "left"),
]


def uploads(config: ConfigPath, as_json: AsJson = False) -> None:
    """What peers have and the under-store does not have yet, oldest first."""
    waiting = ask(settings_of(config), ALL_UPLOADS, Nothing()).waiting
    if as_json:
        print(json.dumps({"uploads": [_plain(one) for one in waiting]}))
        return
    table = Table(box=None, pad_edge=False)
    for heading, justify in _COLUMNS:
        table.add_column(heading, justify=justify)
    now_s = time.time()
    for one in waiting:
        table.add_row(
            text_shown(one.file.path),
            size_shown(one.file.size_bytes),
            duration_shown(max(0.0, now_s - one.file.queued_s)),
            percent_shown(one.sent_bytes / max(1, one.file.size_bytes)),
            f"{size_shown(int(one.bytes_per_s))}/s" if one.bytes_per_s else NOTHING,
            ", ".join(one.file.holders),
            str(one.tries),
            text_shown(one.reason),
        )
    if waiting:
        total_bytes = sum(one.file.size_bytes for one in waiting)
        print(f"{len(waiting)} files, {size_shown(total_bytes)}")
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
        "peer": one.peer,
        "sent_bytes": one.sent_bytes,
        "bytes_per_s": one.bytes_per_s,
        "tries": one.tries,
        "error": one.reason,
    }
