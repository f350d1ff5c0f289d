"""Faults of a peer's process: killed, stopped, out of files, in the wrong year."""

from __future__ import annotations

import signal
import time
from email.utils import parsedate_to_datetime
from pathlib import Path

from chaos.cluster import Node
from chaos.faults.base import Fault, until_busy
from chaos.place import Refused, run
from chaos.workload import Workload

FAKETIME = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1")


class Kill(Fault):
    """SIGKILL while it is being read from; healed by a start with the store as it is."""

    def __init__(self, node: Node, workload: Workload) -> None:
        self.label = f"kill {node.name}"
        self._node, self._workload = node, workload
        self._seen: str | None = None

    def inject(self) -> None:
        self._seen = until_busy(self._node, self._workload)
        self._node.peer.kill()

    def heal(self) -> None:
        self._node.start_peer()

    def evidence(self) -> str | None:
        return f"{self._seen}; exit code {self._node.peer.exit_code}" if self._seen else None


class KillAll(Fault):
    """SIGKILL of all peers at the same time."""

    label = "kill all peers"

    def __init__(self, nodes: list[Node], workload: Workload) -> None:
        self._nodes, self._workload = nodes, workload
        self._seen: str | None = None

    def inject(self) -> None:
        self._seen = until_busy(self._nodes[0], self._workload)
        for node in self._nodes:
            node.peer.signal(signal.SIGKILL)
        for node in self._nodes:
            node.peer.kill()

    def heal(self) -> None:
        for node in self._nodes:
            node.peer.start()
        for node in self._nodes:
            node.peer.wait_until(lambda node=node: node.serves)  # type: ignore[misc]

    def evidence(self) -> str | None:
        dead = sum(not node.peer.is_running for node in self._nodes)
        return f"{self._seen}; {dead} of {len(self._nodes)} peers are dead" if dead else None


class Stop(Fault):
    """SIGSTOP: its connections stay, and nothing comes back."""

    def __init__(self, node: Node, workload: Workload) -> None:
        self.label = f"stop {node.name}"
        self._node, self._workload = node, workload
        self._seen = ""

    def inject(self) -> None:
        self._seen = until_busy(self._node, self._workload)
        self._node.peer.signal(signal.SIGSTOP)

    def heal(self) -> None:
        self._node.peer.signal(signal.SIGCONT)

    def evidence(self) -> str | None:
        state = _state(self._node.peer.pid)
        return f"{self._seen}; process state {state}" if state == "T" else None


class FreezeMount(Fault):
    """SIGSTOP of a mount: to the peers it is a reader that takes nothing any more."""

    def __init__(self, node: Node, workload: Workload) -> None:
        self.label = f"freeze {node.mount.name}"
        self._node, self._workload = node, workload
        self._most = 0

    def inject(self) -> None:
        self._node.mount.signal(signal.SIGSTOP)

    def heal(self) -> None:
        self._node.mount.signal(signal.SIGCONT)

    def evidence(self) -> str | None:
        here = [r for r in self._workload.readers if r.name.endswith(self._node.view.name)]
        stuck = sum(age_s > 0.5 for reader in here for age_s in reader.waiting_s())
        self._most = max(self._most, stuck)
        state = _state(self._node.mount.pid)
        if state != "T" or not self._most:
            return None
        return f"process state T; {self._most} reads waited in it for more than 0.5 s"


class Restart(Fault):
    """SIGTERM, and a start a little later: what an upgrade does."""

    def __init__(self, node: Node, workload: Workload, *, label: str = "restart") -> None:
        self.label = f"{label} {node.name}"
        self._node, self._workload = node, workload
        self._seen = ""
        self._code: int | None = None

    def inject(self) -> None:
        self._seen = until_busy(self._node, self._workload)
        start_s = time.monotonic()
        self._code = self._node.peer.terminate()
        self._seen += f"; ended in {time.monotonic() - start_s:.1f} s"

    def heal(self) -> None:
        self._node.start_peer()

    def evidence(self) -> str | None:
        return f"{self._seen}; exit code 0" if self._code == 0 else None


class Join(Fault):
    """A peer that was not there starts."""

    def __init__(self, node: Node) -> None:
        self.label = f"{node.name} joins"
        self._node = node
        self.took_s = 0.0

    def inject(self) -> None:
        self.took_s = self._node.start_peer()

    def heal(self) -> None:
        """Nothing to do: it stays."""

    def evidence(self) -> str | None:
        # What it owns now it brings from the others; readers have no need to ask it, for they
        # feed each other.
        kept_bytes = self._node.metric("mesh_store_used_bytes")
        sent_bytes = self._node.metric("mesh_served_bytes_total")
        if not kept_bytes:
            return None
        return f"it keeps {kept_bytes:,.0f} bytes, and has sent {sent_bytes:,.0f} to others"


class FewFiles(Fault):
    """The limit of open files falls to what the peer has open now."""

    def __init__(self, node: Node) -> None:
        self.label = f"no more files for {node.name}"
        self._node = node
        self._before = ""
        self._limit = 0

    def inject(self) -> None:
        self._before = self._limits()
        self._limit = self._open_files()
        self._set(f"{self._limit}:{self._before.partition(':')[2]}")

    def heal(self) -> None:
        self._set(self._before)

    def evidence(self) -> str | None:
        lines = [line for line in self._node.peer.said().splitlines() if "Too many open" in line]
        if lines:
            return f"limit {self._limit}; its log has {len(lines)} x 'Too many open files'"
        used = self._open_files()
        return f"{used} files open with a limit of {self._limit}" if used >= self._limit else None

    def _open_files(self) -> int:
        return sum(1 for _ in Path(f"/proc/{self._node.peer.pid}/fd").iterdir())

    def _limits(self) -> str:
        shown = run("prlimit", "--pid", str(self._node.peer.pid), "--nofile", "--noheadings",
                    "--output", "SOFT,HARD")  # fmt: skip
        return ":".join(shown.split())

    def _set(self, limits: str) -> None:
        run("prlimit", "--pid", str(self._node.peer.pid), f"--nofile={limits}")


class ClockJump(Fault):
    """The wall clock of one peer jumps; its monotonic clock does not."""

    def __init__(self, node: Node, jump_s: int) -> None:
        self.label = f"clock of {node.name} {jump_s / 3600:+g} h"
        self._node, self._jump_s = node, jump_s

    @staticmethod
    def prepare(node: Node) -> None:
        """Have the next start of the peer believe a file; raises `Refused` without libfaketime."""
        if not FAKETIME.exists():
            raise Refused("not installed: libfaketime; apt-get install libfaketime")
        _clock_file(node).write_text("+0\n")
        node.peer.more = {
            "LD_PRELOAD": str(FAKETIME),
            "FAKETIME_TIMESTAMP_FILE": str(_clock_file(node)),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }

    def inject(self) -> None:
        _clock_file(self._node).write_text(f"{self._jump_s:+d}\n")

    def heal(self) -> None:
        _clock_file(self._node).write_text("+0\n")

    def evidence(self) -> str | None:
        headers, _ = self._node.metrics_page()
        ahead_s = parsedate_to_datetime(headers["date"]).timestamp() - time.time()
        if abs(ahead_s - self._jump_s) > 60:
            return None
        return f"it dates its answers {ahead_s:+,.0f} s from now"


def _clock_file(node: Node) -> Path:
    return node.place.directory / "clock"


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
