"""Processes on hosts: started, waited for, and certainly gone at the end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from chaos.network import Host
from chaos.place import ROOT, until

READY_WITHIN_S = 60.0
PATIENCE_S = 8.0


def mesh_tree() -> Path:
    """Return the folder whose `mesh` the daemons run: $CHAOS_TREE, or this checkout."""
    return Path(os.environ.get("CHAOS_TREE", ROOT)).resolve()


def mesh_command(*words: str) -> list[str]:
    return [sys.executable, "-m", "mesh.cli.main", *words]


def environment(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return what daemons get: the tree under test, and no MESH_ setting of ours."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MESH_")}
    return kept | {"PYTHONPATH": f"{mesh_tree()}:{ROOT}"} | dict(more or {})


class Daemon:
    """A program on a host, which may be started again after its end."""

    def __init__(self, name: str, host: Host | None, command: Sequence[str], *, log: Path) -> None:
        """Say what to run; nothing runs until `start`. Without a host: on this machine."""
        self.name = name
        self.log = log
        self.more: dict[str, str] = {}
        """Further environment for the next start."""
        self._command = host.command(*command) if host else list(command)
        self._process: subprocess.Popen[bytes] | None = None
        self._log_from = 0

    @property
    def pid(self) -> int:
        assert self._process is not None, f"{self.name} was never started"
        return self._process.pid

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def exit_code(self) -> int | None:
        return None if self._process is None else self._process.poll()

    def start(self) -> None:
        assert not self.is_running, f"{self.name} runs already"
        self._log_from = self.log.stat().st_size if self.log.exists() else 0
        with self.log.open("ab") as out:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env=environment(self.more),
                cwd=self.log.parent,
                start_new_session=True,  # or Ctrl-C would reach it before us
            )

    def said(self) -> str:
        """Return what it has logged since its last start."""
        if not self.log.exists():
            return ""
        with self.log.open("rb") as file:
            file.seek(self._log_from)
            return file.read().decode(errors="replace")

    def wait_until(self, is_ready: Callable[[], bool]) -> float:
        """Wait until it is ready; return how long it took. Raises when it ends instead."""

        def ready_or_dead() -> bool:
            if not self.is_running:
                tail = "\n".join(self.said().splitlines()[-15:])
                raise RuntimeError(f"{self.name} ended with {self.exit_code}:\n{tail}")
            return is_ready()

        return until(ready_or_dead, f"{self.name} is ready", within_s=READY_WITHIN_S)

    def signal(self, number: int) -> None:
        if self.is_running:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """End it as a power cut would, and wait until it is gone."""
        self.signal(signal.SIGKILL)
        assert self._process is not None
        self._process.wait()

    def terminate(self, *, within_s: float = 30.0) -> int:
        """End it as an operator would; return its exit code. Raises `TimeoutExpired`."""
        self.signal(signal.SIGTERM)
        assert self._process is not None
        return self._process.wait(within_s)


def end(daemons: Iterable[Daemon], *, patience_s: float = PATIENCE_S) -> None:
    """End all at the same time: SIGCONT and SIGTERM, and SIGKILL when that takes too long."""
    running = [daemon for daemon in daemons if daemon.is_running]
    for number in (signal.SIGCONT, signal.SIGTERM):
        for daemon in running:
            with suppress(ProcessLookupError):
                daemon.signal(number)
    deadline_s = time.monotonic() + patience_s
    while any(daemon.is_running for daemon in running) and time.monotonic() < deadline_s:
        time.sleep(0.02)
    for daemon in running:
        if daemon.is_running:
            daemon.kill()
