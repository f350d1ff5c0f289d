"""Trees to mount."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

MIB = 1024 * 1024
BLOCK = MIB


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of awkward sizes and names, for blocks of 1 MiB."""
    root = tmp_path_factory.mktemp("tree")
    noise = random.Random(1)
    for size in (0, 1, 4096, 65536, 65537, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 17):
        (root / f"size-{size}").write_bytes(noise.randbytes(size))
    names = root / "names"
    names.mkdir()
    for name in ("with space", "ünïcödé", "n" * 255, "tab\there", "-dash", "a'b\"c", "ends."):
        (names / name).write_bytes(name.encode() * 100)
    (names / b"not-utf8-\xe9".decode("utf-8", "surrogateescape")).write_bytes(b"latin")
    deep = root / "/".join(["deep"] + [f"level-{n}" for n in range(30)])
    deep.mkdir(parents=True)
    (deep / "leaf").write_bytes(b"leaf")
    (root / "empty-directory").mkdir()
    return root
