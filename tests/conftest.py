"""What all tests share: no leaks, and a reason for whatever is skipped."""

from __future__ import annotations

import gc
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("mesh", deadline=None, database=None, print_blob=True)
settings.load_profile("mesh")


@pytest.fixture(autouse=True)
def _no_leaks() -> Iterator[None]:
    """Collect garbage, so that an unclosed socket or file fails the test that left it."""
    yield
    gc.collect()


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(("MESH_", "AWS_"))]:
        monkeypatch.delenv(name)


def pytest_collection_finish() -> None:
    """Leave what was imported out of all later collections: they take half of the time."""
    gc.collect()
    gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    reasons = {}
    if os.geteuid() != 0:
        reasons["root"] = "needs root"
    if not Path("/dev/fuse").exists():
        reasons["fuse"] = "needs /dev/fuse"
    elif os.geteuid() != 0:
        reasons["fuse"] = "needs root to mount"
    for item in items:
        for marker, reason in reasons.items():
            if item.get_closest_marker(marker) is not None:
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture
def noise() -> random.Random:
    """Bytes that differ everywhere, the same in every run."""
    return random.Random(20261122)
