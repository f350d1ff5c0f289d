"""Bytes rot on the disk of a host; who reads there through a mount gets the right ones."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.system.hosts import Hosts, directory

pytestmark = pytest.mark.fuse
KIB = 1024
MIB = 1024 * KIB
SIZE = 32 * MIB + 54_321


@pytest.fixture
def data(tmp_path: Path) -> bytes:
    (tmp_path / "data").mkdir()
    content = random.Random(3).randbytes(SIZE)
    (tmp_path / "data" / "model").write_bytes(content)
    return content


@pytest.fixture
def hosts(tmp_path: Path, data: bytes) -> Iterator[Hosts]:
    mounts = directory(tmp_path / "data", block='"4MiB"')
    with Hosts(tmp_path, ["one", "two"], mounts) as running:
        running.start()
        yield running


def rot(store: Path, dice: random.Random) -> None:
    """Change a byte of each MiB that is kept, so that the disk is asked for it next."""
    for path in (store / "data").glob("??/??/*"):
        fd = os.open(path, os.O_RDWR)
        try:
            for start in range(0, os.fstat(fd).st_size, MIB):
                at = start + dice.randrange(min(MIB, os.fstat(fd).st_size - start))
                os.pwrite(fd, bytes([os.pread(fd, 1, at)[0] ^ 4]), at)
            os.fsync(fd)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(fd)


@pytest.mark.slow
@pytest.mark.parametrize("size_bytes", [4 * KIB, 256 * KIB])
def test_random_reads_of_a_rotten_disk_are_right(
    hosts: Hosts, data: bytes, size_bytes: int
) -> None:
    """Through handles that have read the same bytes before, while they were right."""
    path = hosts.mount("one") / "model"
    dice = random.Random(size_bytes)
    with path.open("rb", buffering=0) as file, ThreadPoolExecutor(4) as threads:

        def read(at: int) -> bool:
            return os.pread(file.fileno(), size_bytes, at) == data[at : at + size_bytes]

        for _ in range(3):
            assert path.read_bytes() == data
            rot(hosts.store("one"), dice)
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)  # the kernel's copy
            places = [dice.randrange(SIZE) for _ in range(1000)]
            assert all(threads.map(read, places))
    assert hosts.peers("one")["one"]["corrupt_blocks"] > 0
