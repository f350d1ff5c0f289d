"""Files to read: without holes, without repetition, quickly made."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np

_UNITS = {"": 1, "K": 1024, "M": 1024**2, "G": 1024**3}


def parse_size(text: str) -> int:
    """Return the bytes of a size such as "512MiB", "2g" or "4096"."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]?)(?:iB|B)?", text.strip(), re.IGNORECASE)
    if match is None:
        raise ValueError(f"not a size: {text!r}")
    return int(float(match[1]) * _UNITS[match[2].upper()])


def make_file(path: Path, size_bytes: int, *, seed: int) -> Path:
    """Write *size_bytes* pseudo-random bytes to *path*, synced; return *path*."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(seed)
    left_bytes = size_bytes
    with path.open("wb", buffering=0) as file:
        while left_bytes:
            piece = draw.bytes(min(left_bytes, 16 * 1024 * 1024))
            left_bytes -= file.write(piece)
        os.fsync(file.fileno())
    return path


def make_files(directory: Path, count: int, size_bytes: int, *, seed: int = 1) -> list[Path]:
    """Write *count* such files, 1,000 to a directory; return their paths."""
    return [
        make_file(directory / f"{index // 1000:03}" / f"{index:06}", size_bytes, seed=seed + index)
        for index in range(count)
    ]
