"""Real daemons and real mounts for one test, gone when it ends, however it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from mesh.fuse.mount import connection_of, device_of
from mesh.testing.servers import free_ports

MESH = [sys.executable, "-m", "mesh.cli.main"]
READY_WITHIN_S = 60.0


def until(condition: Callable[[], bool], what: str, *, within_s: float = READY_WITHIN_S) -> None:
    """Wait until a condition holds; fail with *what* after the deadline."""
    deadline_s = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline_s, f"not in {within_s} s: {what}"
        time.sleep(0.05)


def mesh(*words: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a command of mesh to its end."""
    return subprocess.run(
        [*MESH, *words], capture_output=True, text=True, timeout=60, check=False, **options
    )


class Hosts:
    """Some peers on loopback, each with its own config, store and mounts."""

    def __init__(
        self,
        root: Path,
        names: Sequence[str],
        mounts: str,
        *,
        more: str = "",
        store: str = 'capacity = "40GiB"',
        peer: str = "",
        cluster: str = "",
    ) -> None:
        """Have each peer show the mount table that *mounts* is the TOML of.

        They know each other by a list; with *cluster*, more keys of that section, they
        meet by gossip.
        """
        self.root = root
        self._more = (mounts, more, store, peer, cluster)
        self.names = list(names)
        self.daemons: dict[str, subprocess.Popen[bytes]] = {}
        self.views: dict[Path, subprocess.Popen[bytes]] = {}
        self._numbers = iter(range(1000))
        ports = free_ports(3 * len(names))
        count = len(names)
        self.addresses = {n: f"127.0.0.1:{p}" for n, p in zip(names, ports, strict=False)}
        self.metrics = dict(zip(names, ports[count:], strict=False))
        self.gossip = {n: f"127.0.0.1:{p}" for n, p in zip(names, ports[2 * count :], strict=True)}
        for name in names:
            self.write(name)

    def write(self, name: str, *, cluster: str = "", peer: str = "") -> None:
        """Write the config of a peer, with these changes to what all have."""
        mounts, more, store, peer_of_all, cluster_of_all = self._more
        self.config(name).write_text(
            f"[cluster]\n{self._cluster(cluster or cluster_of_all)}"
            f'[peer]\nname = "{name}"\nmetrics = "127.0.0.1:{self.metrics[name]}"\n'
            f"{self._own(name) if cluster_of_all else ''}{peer_of_all}\n{peer}\n"
            f'[store]\ndirectory = "{self.store(name)}"\nfree_space_ratio = 0.01\n{store}\n'
            f"{mounts}\n{more}\n"
        )

    def _cluster(self, cluster: str) -> str:
        if cluster:
            seeds = list(self.gossip.values())[:2]
            given = "" if "seeds" in cluster else f"seeds = {seeds!r}\n"
            named = "" if "name =" in cluster else 'name = "test"\n'
            return f"{named}{given}{cluster}\n"
        listed = "".join(
            f'[[cluster.peers]]\nname = "{name}"\naddress = "{address}"\n'
            for name, address in self.addresses.items()
        )
        return f'name = "test"\n{listed}'

    def _own(self, name: str) -> str:
        return f'listen = "{self.addresses[name]}"\ngossip = "{self.gossip[name]}"\n'

    def config(self, name: str) -> Path:
        return self.root / f"{name}.toml"

    def store(self, name: str) -> Path:
        return self.root / f"store-{name}"

    def log(self, name: str) -> str:
        return (self.root / f"{name}.log").read_text(errors="replace")

    def __enter__(self) -> Hosts:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._tell(self.views.values())
        for view, process in self.views.items():
            self._end(process)
            if device_of(view) is not None:
                connection = connection_of(view)
                subprocess.run(["umount", "-l", str(view)], check=False, timeout=20)
                if connection is not None and (connection / "abort").exists():
                    (connection / "abort").write_text("1")
        self._tell(self.daemons.values())
        for process in self.daemons.values():
            self._end(process)

    def _tell(self, processes: Iterable[subprocess.Popen[bytes]]) -> None:
        """Have all begin to end before one is waited for."""
        for process in processes:
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.terminate()

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        """Wait for the end of one that was told to."""
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    # Peers

    def start(self, *names: str) -> None:
        """Start peers, all if none is named, and wait until they serve."""
        wanted = names or tuple(self.names)
        marks = {}
        for name in wanted:
            path = self.root / f"{name}.log"
            marks[name] = path.stat().st_size if path.exists() else 0
            with path.open("ab") as out:
                self.daemons[name] = subprocess.Popen(
                    [*MESH, "peer", "-c", str(self.config(name))], stdout=out, stderr=out
                )
        for name in wanted:

            def serves(name: str = name) -> bool:
                log = self.log(name)[marks[name] :]
                assert self.daemons[name].poll() is None, log
                return "peer serves" in log

            until(serves, f"peer {name} serves")

    def kill(self, name: str) -> None:
        self.daemons[name].kill()
        self.daemons[name].wait()

    def stop(self, name: str) -> int:
        """End a peer as an operator would; return its exit code."""
        self.daemons[name].terminate()
        return self.daemons[name].wait(30)

    def peers(self, by: str) -> dict[str, dict[str, Any]]:
        """Return what `mesh status --json` says of each peer."""
        done = mesh("status", "--json", "-c", str(self.config(by)))
        assert done.returncode == 0, done.stderr
        return {peer["name"]: peer for peer in json.loads(done.stdout)["peers"]}

    # Mounts

    def mount(self, name: str) -> Path:
        """Mount through a peer that runs or not; return where."""
        view = self.root / f"view-{next(self._numbers)}-{name}"
        path = self.root / f"{view.name}.log"
        with path.open("ab") as out:
            process = subprocess.Popen(
                [*MESH, "mount", "-c", str(self.config(name)), str(view)], stdout=out, stderr=out
            )
        self.views[view] = process

        def is_mounted() -> bool:
            log = path.read_text(errors="replace")
            assert process.poll() is None, log
            return '"mounted"' in log

        until(is_mounted, f"{view} is mounted")
        return view

    def unmount(self, view: Path) -> int:
        """End a mount with SIGTERM; return its exit code."""
        self.views[view].terminate()
        return self.views[view].wait(30)


def directory(path: Path, **keys: str) -> str:
    """Return the TOML of a mount table of one directory."""
    lines = "".join(f"{key} = {value}\n" for key, value in keys.items())
    return f'[mounts."/"]\nurl = "{path.as_uri()}"\n{lines}'


def s3(url: str, server: Any, endpoint: str, **keys: str) -> str:
    """Return the TOML of a mount table of one bucket."""
    lines = "".join(f"{key} = {value}\n" for key, value in keys.items())
    return (
        f'[mounts."/"]\nurl = "{url}"\n{lines}[mounts."/".s3]\nendpoint = "{endpoint}"\n'
        f'access_key = "{server.access_key}"\nsecret_key = "{server.secret_key}"\n'
    )


def fills(peers: Mapping[str, Mapping[str, Any]]) -> tuple[int, int]:
    """Return how many blocks, and how many bytes, have left the under-store."""
    return sum(p["fills"] for p in peers.values()), sum(p["fill_bytes"] for p in peers.values())


def rss_bytes(pid: int, field: str = "VmRSS") -> int:
    """Return what a process has in memory; of it RssAnon is what no file backs."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise AssertionError(f"no {field} of {pid}")


def run_python(code: str, *words: str, timeout_s: float = 100) -> str:
    """Run code in a process of its own; return what it prints."""
    done = subprocess.run(
        [sys.executable, "-c", code, *words],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
        env=dict(os.environ),
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
