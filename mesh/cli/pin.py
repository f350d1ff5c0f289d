"""`mesh pin`, `mesh unpin`: what is never evicted."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from mesh.cli.ask import host_peer
from mesh.cli.exits import AsJson, ConfigPath, one_line, settings_of
from mesh.cli.figures import text_shown
from mesh.cli.pinned import Pinned, pinned_after
from mesh.cli.warmup import resolved


def pin(
    config: ConfigPath,
    paths: Annotated[list[str] | None, typer.Argument(metavar="PATH...")] = None,
    as_json: AsJson = False,
) -> None:
    """Never evict the blocks of what PATH is, or has below it; without PATH, list the pins."""
    pinned = _said(config, paths or [], is_pinned=True)
    if as_json:
        pins = [{"path": each.path, "stamp_s": each.stamp_s} for each in pinned.pins]
        print(json.dumps(pins))
        return
    if paths:
        return
    for each in pinned.pins:
        moment = datetime.fromtimestamp(each.stamp_s, UTC).isoformat(" ", "seconds")
        print(f"{text_shown(each.path)}  since {moment}")


def unpin(
    config: ConfigPath, paths: Annotated[list[str], typer.Argument(metavar="PATH...")]
) -> None:
    """Let the blocks of pinned PATHs be evicted like all others."""
    _said(config, paths, is_pinned=False)


def _said(config: Path, written: Sequence[str], *, is_pinned: bool) -> Pinned:
    settings = settings_of(config)
    paths = resolved(written)

    async def say() -> Pinned:
        async with host_peer(settings.peer.socket) as peer:
            return await pinned_after(peer, paths, is_pinned=is_pinned)

    with one_line():
        return asyncio.run(say())
