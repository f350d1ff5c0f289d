"""The flags that all benchmarks share."""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

from bench.data import parse_size


def parser(what: str, *, size: str, quick_size: str) -> argparse.ArgumentParser:
    """Return a parser with --size, --quick, --turns and --directory."""
    flags = argparse.ArgumentParser(description=what)
    flags.add_argument(
        "--size", type=parse_size, help=f"of the data (default {size}; quick: {quick_size})"
    )
    flags.add_argument("--quick", action="store_true", help="small and rough, within a minute")
    flags.add_argument("--turns", type=int, help="measure so many times, the median counts")
    flags.add_argument("--directory", type=Path, help="where to put data and stores")
    flags.set_defaults(full_size=parse_size(size), quick_size=parse_size(quick_size))
    return flags


def settled(flags: argparse.ArgumentParser) -> argparse.Namespace:
    """Parse the command line; fill in what --quick decides.

    From here on SIGTERM (of `timeout`, of a CI job) unwinds like an error, so that
    daemons and mounts do not outlive the benchmark.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    given = flags.parse_args()
    if given.size is None:
        given.size = given.quick_size if given.quick else given.full_size
    if given.turns is None:
        given.turns = 3 if given.quick else 5
    return given
