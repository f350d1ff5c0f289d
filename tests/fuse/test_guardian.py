"""The connection of a mount that is dead but not gone is ended, and no other one."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mesh.fuse.guardian import guard

HALF_DEAD = """
import ctypes, threading, time
threading.Thread(target=time.sleep, args=(60,)).start()
print("ready", flush=True)
input()
ctypes.PyDLL(None).pthread_exit(None)
"""
"""Its first thread ends and another one stays, as one does that waits in the kernel."""

WHOLE = "print('ready', flush=True); input()"


@contextmanager
def process(code: str) -> Iterator[subprocess.Popen[str]]:
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=pipe, stdout=pipe, text=True
    ) as running:
        try:
            assert running.stdout is not None
            assert running.stdout.readline() == "ready\n"
            yield running
        finally:
            running.kill()


def end(running: subprocess.Popen[str]) -> None:
    assert running.stdin is not None
    running.stdin.write("\n")
    running.stdin.flush()


def test_of_a_mount_that_is_dead_and_not_gone(tmp_path: Path) -> None:
    (tmp_path / "abort").touch()
    with process(HALF_DEAD) as mount:
        guardian = guard(mount.pid, tmp_path)
        time.sleep(2)
        assert guardian.poll() is None
        assert (tmp_path / "abort").read_text() == ""
        end(mount)
        assert guardian.wait(20) == 0
        assert (tmp_path / "abort").read_text() == "1"


@pytest.mark.parametrize("how", ["ended", "killed"])
def test_of_a_mount_that_is_gone(tmp_path: Path, how: str) -> None:
    (tmp_path / "abort").touch()
    with process(WHOLE) as mount:
        guardian = guard(mount.pid, tmp_path)
        time.sleep(1)
        if how == "ended":
            end(mount)
        else:
            mount.kill()
        assert guardian.wait(20) == 0  # whether or not its parent has asked how it ended
        assert (tmp_path / "abort").read_text() == ""
