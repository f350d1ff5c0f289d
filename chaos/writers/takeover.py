"""How long it takes until somebody else uploads what a dead peer has promised."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from random import Random
from typing import Any

from chaos.cluster import Cluster, Node
from chaos.daemons import environment, mesh_command
from chaos.place import run, until
from chaos.writers.faults import Away

NAME = "takeover"
SIZE_BYTES = 5_000_000
WITHIN_S = 60.0
LIST = "import os, sys; os.listdir(sys.argv[1])"
COPY = "import shutil, sys; shutil.copyfile(sys.argv[2], f'{sys.argv[1]}/takeover')"


def mesh(node: Node, *words: str, timeout_s: float = 60.0) -> subprocess.CompletedProcess[str]:
    """Run a command of mesh beside a node's peer."""
    return subprocess.run(
        mesh_command(*words, "-c", str(node.config)),
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
        env=environment(),
        cwd=node.config.parent,
    )


def waiting(node: Node) -> list[dict[str, Any]]:
    """Return what waits for the under-store, as `mesh uploads` says it."""
    done = mesh(node, "uploads", "--json")
    if done.returncode:
        raise RuntimeError(f"mesh uploads: {done.stderr.strip()}")
    found: list[dict[str, Any]] = json.loads(done.stdout)["uploads"]
    return found


def measure(cluster: Cluster, data: Path, *, seed: int) -> float:
    """Return the seconds from the death of a writer's peer to its file in the under-store.

    The under-store is away while the file is written, and is back when the peer is dead.
    """
    dice = Random(f"{seed}/takeover")
    victim = dice.choice(cluster.nodes)
    other = dice.choice(cluster.others(victim))
    content = dice.randbytes(SIZE_BYTES)
    source = cluster.place / "takeover-source"
    source.write_bytes(content)
    run(sys.executable, "-c", LIST, str(victim.view))  # then it is known what is not there
    away = Away(data)
    away.inject()
    try:
        run(sys.executable, "-c", COPY, str(victim.view), str(source), timeout_s=WITHIN_S)
        staged = [one for one in waiting(other) if one["path"] == NAME]
        if not staged or staged[0]["holders"][0] != victim.name:
            raise RuntimeError(f"{NAME} does not wait at {victim.name}: {staged}")
        killed_s = time.monotonic()
        victim.peer.kill()
    finally:
        away.heal()
    target = data / NAME
    until(target.exists, "somebody else has uploaded it", within_s=WITHIN_S, every_s=0.02)
    took_s = time.monotonic() - killed_s
    if target.read_bytes() != content:
        raise RuntimeError("what was taken over is not what was written")
    victim.start_peer()
    return took_s
