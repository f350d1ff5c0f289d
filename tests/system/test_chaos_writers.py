"""A short seed of writers that verify, while peers die, disks fill, the under-store is away."""

from __future__ import annotations

import json
import os
import subprocess

import pytest

from chaos.report import OUT
from tests.system.hosts import MESH

SEED = 3

pytestmark = [
    pytest.mark.fuse,
    pytest.mark.slow,
    pytest.mark.timeout(200),
    pytest.mark.skipif(not os.environ.get("MESH_EXPLORE"), reason="by chance: make explore"),
    pytest.mark.skipif(os.geteuid() != 0, reason="makes network namespaces and mounts"),
]


def test_no_acknowledged_byte_is_lost() -> None:
    words = [MESH[0], "-m", "chaos", "writers", "--seeds", "1", "--short"]
    done = subprocess.run(
        [*words, "--first-seed", f"{SEED}"],
        capture_output=True,
        text=True,
        timeout=190,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    record = json.loads((OUT / "chaos-writers.json").read_text())
    assert record["passed"]
    rows = {row["what"]: row for row in record["rows"]}
    assert rows["acknowledged bytes lost"]["value"] == 0
    assert rows["steps acknowledged"]["value"] > 50
    assert rows["reads meanwhile"]["value"] > 50
    assert 0 < rows["time to takeover, longest"]["value"] < 60
    assert [row["what"] for row in record["rows"] if row["met"] is False] == []
    assert set(rows["conflicts"]) == {"what", "value", "unit", "control", "ratio", "goal", "met"}
