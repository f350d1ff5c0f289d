"""`mesh refresh`: look at the under-store now, and have everybody know."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Annotated

import typer

from mesh.cli.ask import host_peer
from mesh.cli.exits import AsJson, ConfigPath, fail, one_line, settings_of
from mesh.cli.figures import text_shown
from mesh.cli.info import mesh_mountpoints, path_in_mesh
from mesh.errors import MeshError, PeerUnavailable
from mesh.wire.catalog import REFRESH
from mesh.wire.messages import RefreshRequest

REFRESH_TIMEOUT_S = 3600.0
"""A tree of millions of names takes its time."""


def refresh(
    paths: Annotated[list[str], typer.Argument(metavar="PATH...")],
    config: ConfigPath,
    recursive: Annotated[
        bool, typer.Option("--recursive", "-r", help="With all that lies below.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Look at the under-store now: PATH, and the names in it if it is a directory.

    When this returns, every host sees what has changed.
    """
    settings = settings_of(config)
    with one_line():
        failed = asyncio.run(_run(settings.peer.socket, paths, recursive, as_json))
    if failed:
        raise typer.Exit(1)


async def _run(socket: Path, paths: list[str], recursive: bool, as_json: bool) -> bool:
    """Refresh each path; say whether one of them could not be."""
    failed = False
    mountpoints = mesh_mountpoints()
    async with host_peer(socket) as peer:
        for written in paths:
            path = path_in_mesh(written, mountpoints)
            if path is None:
                mend = "write a path from / on, or one below a mount of a mesh"
                fail(f"{text_shown(written)} is not in the mesh; {mend}")
                failed = True
                continue
            request = RefreshRequest(path, recursive)
            try:
                reply = await peer.ask(REFRESH, request, timeout_s=REFRESH_TIMEOUT_S)
            except PeerUnavailable:
                raise
            except MeshError as error:
                fail(f"{text_shown(path)}: {text_shown(str(error))}")
                failed = True
                continue
            if as_json:
                print(json.dumps({"path": path, "looked_at": reply.looked_at}))
            else:
                print(f"{text_shown(path)}: looked at {reply.looked_at:,} names")
    return failed
