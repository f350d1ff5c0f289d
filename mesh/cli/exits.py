"""How commands begin and end: the config, and one clear line with exit code 1."""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated

import typer

from mesh.blocks import MIB
from mesh.cli.settings import ConfigErrors, Settings, load_settings
from mesh.errors import MeshError, PeerUnavailable

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8
"""Of mallopt(3)."""

GC_THRESHOLDS = (10_000, 20, 20)

ConfigPath = Annotated[
    Path,
    typer.Option("--config", "-c", metavar="PATH", envvar="MESH_CONFIG", help="The config file."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def fail(message: str) -> typer.Exit:
    """Print one line on stderr; the caller raises what is returned."""
    print(f"mesh: {message}", file=sys.stderr)
    return typer.Exit(1)


def settings_of(path: Path) -> Settings:
    """Load the config, or print each mistake as one line and exit."""
    try:
        return load_settings(path)
    except ConfigErrors as errors:
        for mistake in errors.mistakes:
            print(f"mesh: {mistake}", file=sys.stderr)
        raise typer.Exit(1) from None


def tune_malloc() -> None:
    """Have glibc keep what a daemon of many threads and megabyte buffers uses again.

    With a heap for each thread, memory that one has freed does not serve the others.
    And a buffer over 128 KiB would be mapped, faulted in page by page and unmapped again
    for every piece of a block.
    """
    with suppress(AttributeError, OSError):
        libc = ctypes.CDLL(None)
        libc.mallopt(M_ARENA_MAX, 2)
        libc.mallopt(M_MMAP_THRESHOLD, 32 * MIB)
        libc.mallopt(M_TRIM_THRESHOLD, 64 * MIB)


def tune_gc() -> None:
    """Have Python look for cycles among what a daemon makes, not in what it was loaded with.

    Call it once all is loaded. 2.5 % of a busy peer's CPU went there.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)


@contextmanager
def one_line() -> Iterator[None]:
    """Turn the errors of mesh into one line and exit code 1."""
    try:
        yield
    except PeerUnavailable as error:
        raise fail(f"no answer from {error}; is `mesh peer` running here?") from None
    except MeshError as error:
        raise fail(str(error)) from None
