"""`mesh info`: what a path is, and where its blocks are."""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from math import inf
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mesh.cli.ask import LOOK_UP_TIMEOUT_S, HostPeer, host_peer
from mesh.cli.exits import AsJson, ConfigPath, fail, one_line, settings_of
from mesh.cli.figures import NOTHING, size_shown, text_shown
from mesh.cli.pinned import pinned_after
from mesh.errors import MeshError, PeerUnavailable
from mesh.wire.catalog import STAT
from mesh.wire.codec import LOCATE
from mesh.wire.messages import LocateRequest, Location, StatReply, StatRequest

FILE_SYSTEM_TYPE = "fuse.mesh"
MOUNT_TABLE = Path("/proc/self/mountinfo")
ROWS_MAX = 40
WIDTH_WHEN_PIPED = 160


@dataclass(frozen=True, slots=True)
class Run:
    """Neighboring blocks with the same owners, at the same peers."""

    first: int
    last: int
    owners: tuple[str, ...]
    held_by: tuple[str, ...]

    @property
    def blocks(self) -> str:
        return str(self.first) if self.first == self.last else f"{self.first}-{self.last}"


def info(
    paths: Annotated[list[str], typer.Argument(metavar="PATH...")],
    config: ConfigPath,
    as_json: AsJson = False,
    blocks: Annotated[
        bool, typer.Option("--blocks", help=f"All blocks, not only {ROWS_MAX} rows.")
    ] = False,
) -> None:
    """Show what PATH is and where its blocks are; PATH is one in the mesh or below a mount."""
    settings = settings_of(config)
    rows_max = None if blocks else ROWS_MAX
    with one_line():
        failed = asyncio.run(_run(settings.peer.socket, paths, as_json=as_json, rows_max=rows_max))
    if failed:
        raise typer.Exit(1)


def mesh_mountpoints() -> list[Path]:
    """Return where a mesh is mounted on this host, without touching it."""
    found = []
    for entry in MOUNT_TABLE.read_text(errors="surrogateescape").splitlines():
        fields = entry.split(" ")
        if fields[fields.index("-") + 1] == FILE_SYSTEM_TYPE:
            escaped = re.compile(r"\\([0-7]{3})")
            found.append(Path(escaped.sub(lambda match: chr(int(match[1], 8)), fields[4])))
    return found


def path_in_mesh(written: str, mountpoints: list[Path]) -> str | None:
    """Return the path in the mesh that a person means; None when it is none."""
    # Links are followed last: looking at a path may hang when what is mounted there is dead.
    for spell in (os.path.abspath, os.path.realpath):
        path = Path(spell(written))
        above = [mountpoint for mountpoint in mountpoints if path.is_relative_to(mountpoint)]
        if above:
            below = path.relative_to(max(above, key=lambda mountpoint: len(mountpoint.parts)))
            return "/" + "/".join(below.parts)
    return os.path.normpath("/" + written.lstrip("/")) if written.startswith("/") else None


def runs(location: Location) -> Iterator[Run]:
    """Yield the blocks of a file in order, those that are alike as one."""
    run: Run | None = None
    for index, owners in enumerate(location.owners):
        held_by = tuple(sorted(p for p, indexes in location.held.items() if index in indexes))
        if run is not None and (run.owners, run.held_by) == (owners, held_by):
            run = Run(run.first, index, owners, held_by)
            continue
        if run is not None:
            yield run
        run = Run(index, index, owners, held_by)
    if run is not None:
        yield run


def as_line(path: str, found: StatReply, location: Location | None, pinned: str | None) -> str:
    """Return everything as one line of JSON; *pinned* is the path that pins it."""
    said: dict[str, Any] = {"path": path, "attributes": asdict(found.attributes)}
    said["pinned"] = pinned
    if location is not None and (file := location.found.file) is not None:
        said |= {
            "version": file.id.hex(),
            "tag": file.tag,
            "size_bytes": file.size_bytes,
            "block_bytes": file.block_bytes,
            "block_count": file.block_count,
            "source": file.source,
            "source_path": file.path,
            "is_stale": location.found.is_stale,
            "age_s": round(location.found.age_s, 3),
            "fresh_s": _finite(location.found.fresh_s),
            "held": {peer: sorted(indexes) for peer, indexes in sorted(location.held.items())},
            "unreachable": list(location.unreachable),
            "owners": [list(owners) for owners in location.owners],
        }
    return json.dumps(said)


async def _run(socket: Path, paths: list[str], *, as_json: bool, rows_max: int | None) -> bool:
    """Show each path; say whether one of them could not be shown."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=WIDTH_WHEN_PIPED)
    mountpoints = mesh_mountpoints()
    failed = False
    async with host_peer(socket) as peer:
        pins = await pinned_after(peer, is_pinned=True)
        for written in paths:
            path = path_in_mesh(written, mountpoints)
            if path is None:
                mend = "write a path from / on, or one below a mount of a mesh"
                fail(f"{text_shown(written)} is not in the mesh; {mend}")
                failed = True
                continue
            try:
                found, location = await _look_up(peer, path)
            except PeerUnavailable:
                raise
            except MeshError as error:
                fail(f"{text_shown(path)}: {text_shown(str(error))}")
                failed = True
                continue
            if as_json:
                print(as_line(path, found, location, pins.over(path)))
            else:
                _show(console, path, found, location, pins.over(path), rows_max=rows_max)
    return failed


async def _look_up(peer: HostPeer, path: str) -> tuple[StatReply, Location | None]:
    found = await peer.ask(STAT, StatRequest(path), timeout_s=LOOK_UP_TIMEOUT_S)
    if found.file is None:
        return found, None
    return found, await peer.ask(LOCATE, LocateRequest(path), timeout_s=LOOK_UP_TIMEOUT_S)


def _show(
    console: Console,
    path: str,
    found: StatReply,
    location: Location | None,
    pinned: str | None,
    *,
    rows_max: int | None,
) -> None:
    told = Table.grid(padding=(0, 2))
    told.add_column(style="bold", no_wrap=True)
    told.add_column(overflow="fold")
    for name, value in _facts(found, location):
        told.add_row(name, Text(value))
    if pinned is not None:
        told.add_row("pinned", Text(f"by {text_shown(pinned)}"))
    console.print(Text(text_shown(path), style="bold"))
    console.print(told)
    if location is not None and location.owners:
        _show_blocks(console, location, rows_max)


def _facts(found: StatReply, location: Location | None) -> Iterator[tuple[str, str]]:
    attributes = found.attributes
    file = None if location is None else location.found.file
    if location is None or file is None:
        yield "kind", "directory"
        yield "mode", f"{attributes.mode & 0o7777:04o}"
        if attributes.mtime_ns:
            yield "changed", _moment(attributes.mtime_ns)
        return
    yield "version", file.id.hex()
    yield "tag", text_shown(file.tag)
    yield "size", f"{size_shown(file.size_bytes)} ({file.size_bytes:,} bytes)"
    yield "changed", _moment(attributes.mtime_ns)
    yield "blocks", f"{file.block_count} of {size_shown(file.block_bytes)}"
    yield "source", text_shown(f"{file.source.rstrip('/')}/{file.path}")
    if location.found.is_stale:
        yield "stale", "yes: the under-store does not answer, this is what it said last"
    else:
        yield "stale", "no"
    yield "looked at", f"{location.found.age_s:.1f} s ago"
    yield "believed", _for_so_long(location.found.fresh_s)
    for peer, indexes in sorted(location.held.items()):
        yield f"held by {peer}", f"{len(indexes)} of {file.block_count}"
    for peer in location.unreachable:
        yield f"held by {peer}", "unknown: it does not answer"


def _finite(seconds: float) -> float | None:
    """Return what JSON can say; None is for ever."""
    return None if seconds == inf else round(seconds, 3)


def _for_so_long(fresh_s: float) -> str:
    if fresh_s == inf:
        return "for ever: this mount is immutable"
    return f"for {fresh_s:.1f} s more" if fresh_s > 0 else "no more: the next open looks again"


def _show_blocks(console: Console, location: Location, rows_max: int | None) -> None:
    rows = list(runs(location))
    table = Table(box=SIMPLE_HEAD, header_style="bold", padding=(0, 1, 0, 0))
    table.add_column("blocks", justify="right", no_wrap=True)
    table.add_column("owners, nearest first")
    table.add_column("held by")
    for run in rows[:rows_max]:
        table.add_row(run.blocks, ", ".join(run.owners), ", ".join(run.held_by) or NOTHING)
    console.print(table)
    if rows_max is not None and len(rows) > rows_max:
        console.print(f"{len(rows) - rows_max} rows more; --blocks shows them")


def _moment(mtime_ns: int) -> str:
    try:
        return datetime.fromtimestamp(mtime_ns / 1e9, UTC).isoformat(" ", "seconds")
    except (OverflowError, ValueError, OSError):
        return f"{mtime_ns} ns"
