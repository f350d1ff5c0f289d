"""Real daemons for a benchmark: started, waited for, measured, and gone at the end.

    with workplace() as place, Cluster(place / "mesh", UnderStore(url), peers=2) as mesh:
        read(mesh.view(0) / "file")        # through the mount beside peer-1
        mesh.metric(1, "mesh_read_bytes_total", source="peer")
        mesh.cpu_s()                       # {"peer-1": 0.31, "mount-1": 0.1, ...}

`Daemon` and `Mount` run any program, so rivals are started, counted and cleaned
up by the same lines. Whatever fails, the processes are killed, the mounts are
taken away and only then is the directory deleted.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from prometheus_client.parser import text_string_to_metric_families

from bench import cpu
from mesh.testing.servers import free_ports

START_DEADLINE_S = 60.0
STOP_PATIENCE_S = 15.0
# Who reads from a mount that hangs can't be reached by any signal but SIGKILL, so
# the benchmark could neither notice nor clean up: something else must end the mount.
MOUNT_LIFE_S = 1800
ROOT = Path(__file__).resolve().parent.parent


def mesh_command() -> list[str]:
    """Return how to call mesh; $BENCH_MESH names another one, say of another checkout."""
    other = os.environ.get("BENCH_MESH")
    return shlex.split(other) if other else [sys.executable, "-m", "mesh.cli.main"]


@contextmanager
def workplace(parent: Path | None = None) -> Iterator[Path]:
    """Give an empty directory; delete it at the end, never reaching into a live mount."""
    place = Path(tempfile.mkdtemp(prefix="mesh-bench-", dir=parent))
    try:
        yield place
    finally:
        for point in reversed(_mounted_below(place)):
            _take_away(point)
        if _mounted_below(place):
            print(f"warning: {place} stays: something is still mounted in it", file=sys.stderr)
        else:
            shutil.rmtree(place, ignore_errors=True)


class Daemon:
    """A program that runs until it is told to stop."""

    def __init__(
        self, name: str, command: list[str], *, log: Path, ready: Callable[[], bool]
    ) -> None:
        """Run *command* within `with`; it is up once *ready* says so."""
        self.name = name
        self.log = log
        self._command = command
        self._ready = ready
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None, f"{self.name} is not running"
        return self._process.pid

    def cpu_s(self) -> float:
        """Return the CPU-seconds used so far, children included."""
        return cpu.cpu_s(self.pid)

    def rss_bytes(self) -> int:
        """Return the resident memory, children included."""
        return cpu.rss_bytes(self.pid)

    def __enter__(self) -> Self:
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=_environment(),
                cwd=self.log.parent,
                start_new_session=True,  # so that the whole family can be killed
            )
        try:
            self._wait_until_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """End the program and its children: SIGTERM first, SIGKILL in the end."""
        if self._process is None:
            return
        self._process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(STOP_PATIENCE_S)
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._process = None

    def _wait_until_ready(self) -> None:
        deadline_s = time.monotonic() + START_DEADLINE_S
        while not self._ready():
            assert self._process is not None
            if self._process.poll() is not None:
                raise RuntimeError(f"{self.name} ended with {self._process.returncode}: {self}")
            if time.monotonic() > deadline_s:
                raise TimeoutError(f"{self.name} is not ready after {START_DEADLINE_S} s: {self}")
            time.sleep(0.02)

    def __str__(self) -> str:
        lines = self.log.read_text(errors="replace").splitlines()[-20:]
        return "\n".join([shlex.join(self._command), *lines])


class Mount(Daemon):
    """A FUSE daemon and the file system that it shows; killed when it outlives its time."""

    def __init__(
        self,
        name: str,
        command: list[str],
        *,
        point: Path,
        log: Path,
        life_s: int = MOUNT_LIFE_S,
    ) -> None:
        """Run *command*, which mounts *point*, for *life_s* at most; `pid` is its parent's."""
        self.point = point
        bounded = ["timeout", "--signal=KILL", str(life_s), *command]
        super().__init__(name, bounded, log=log, ready=lambda: _is_mounted(point))

    def __enter__(self) -> Self:
        self.point.mkdir(parents=True, exist_ok=True)
        super().__enter__()
        try:
            self._wait_until_it_answers()
        except BaseException:
            self.stop()
            raise
        return self

    def _wait_until_it_answers(self) -> None:
        # By a child, which can be killed if the mount never does.
        try:
            subprocess.run(
                ["ls", str(self.point)], capture_output=True, timeout=START_DEADLINE_S, check=True
            )
        except subprocess.SubprocessError as error:
            raise RuntimeError(f"{self.name} is mounted but does not answer: {self}") from error

    def stop(self) -> None:
        super().stop()
        _take_away(self.point)


@dataclass(frozen=True, slots=True)
class UnderStore:
    """Where the truth lies, as the mount table has it."""

    url: str
    s3: Mapping[str, str] = field(default_factory=dict)
    """endpoint, region, access_key, secret_key; empty for a directory."""

    durability: str = "through"


class Cluster:
    """Peers and mounts of mesh, each a process of its own, on this machine."""

    def __init__(
        self,
        directory: Path,
        under_store: UnderStore,
        *,
        peers: int = 1,
        mounts: int = 1,
        capacity: str = "20GiB",
        settings: str = "",
        settle_s: float = 0.0,
    ) -> None:
        """Describe a cluster that keeps its stores, logs and mountpoints in *directory*.

        Mount i belongs to peer i. *settings* is TOML put at the head of each
        configuration. *settle_s* is given to the peers to hear of each other.
        """
        self._directory = directory
        self._under_store = under_store
        self._peer_count, self._mount_count = peers, mounts
        self._capacity, self._settings, self._settle_s = capacity, settings, settle_s
        ports = free_ports(2 * peers)
        self._ports, self._metrics_ports = ports[:peers], ports[peers:]
        self._stack = ExitStack()
        self.peers: list[Daemon] = []
        self.mounts: list[Mount] = []

    @property
    def daemons(self) -> list[Daemon]:
        """All processes of mesh: the peers, then the mounts."""
        return [*self.peers, *self.mounts]

    def view(self, index: int = 0) -> Path:
        """Return the mountpoint of mount *index*."""
        return self.mounts[index].point

    def cpu_s(self) -> dict[str, float]:
        """Return the CPU-seconds that each daemon has used so far."""
        return {daemon.name: daemon.cpu_s() for daemon in self.daemons}

    @contextmanager
    def counted_cpu(self) -> Iterator[dict[str, float]]:
        """Give a dict that holds, after the block, the CPU-seconds of each daemon in it."""
        used: dict[str, float] = {}
        before = self.cpu_s()
        yield used
        used.update({name: after - before[name] for name, after in self.cpu_s().items()})

    def metric(self, index: int, name: str, **labels: str) -> float:
        """Return the sum of the samples of peer *index* that are called *name*."""
        return sum(
            sample.value
            for family in text_string_to_metric_families(self._metrics_page(index))
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )

    def __enter__(self) -> Self:
        with ExitStack() as starting:
            for index in range(self._peer_count):
                self.peers.append(starting.enter_context(self._peer(index)))
            time.sleep(self._settle_s)
            for index in range(self._mount_count):
                self.mounts.append(starting.enter_context(self._mount(index)))
            self._stack = starting.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None:
            for daemon in self.daemons:
                print(f"--- {daemon}", file=sys.stderr)
        self._stack.close()
        self.peers, self.mounts = [], []

    def _peer(self, index: int) -> Daemon:
        config = self.config_path(index)
        config.parent.mkdir(parents=True, exist_ok=True)
        config.write_text(self.config(index))
        return Daemon(
            f"peer-{index + 1}",
            [*mesh_command(), "peer", "--config", str(config)],
            log=config.with_suffix(".log"),
            ready=lambda: self._answers(index),
        )

    def _mount(self, index: int) -> Mount:
        point = self._directory / f"view-{index + 1}"
        config = self._directory / f"peer-{index + 1}.toml"
        return Mount(
            f"mount-{index + 1}",
            [*mesh_command(), "mount", "--config", str(config), str(point)],
            point=point,
            log=self._directory / f"mount-{index + 1}.log",
        )

    def config_path(self, index: int) -> Path:
        return self._directory / f"peer-{index + 1}.toml"

    def config(self, index: int) -> str:
        """Return the configuration of peer *index*."""
        peers = "".join(
            f'[[cluster.peers]]\nname = "peer-{place + 1}"\naddress = "127.0.0.1:{port}"\n'
            for place, port in enumerate(self._ports)
        )
        text = f"""{self._settings}
[cluster]
name = "bench"
{peers}
[peer]
name = "peer-{index + 1}"
metrics = "127.0.0.1:{self._metrics_ports[index]}"
[store]
directory = "{self._directory / f"store-{index + 1}"}"
capacity = "{self._capacity}"
[mounts."/"]
url = "{self._under_store.url}"
durability = "{self._under_store.durability}"
"""
        if not self._under_store.s3:
            return text
        keys = "".join(f'{key} = "{value}"\n' for key, value in self._under_store.s3.items())
        return f'{text}[mounts."/".s3]\n{keys}'

    def _answers(self, index: int) -> bool:
        try:
            return bool(self._metrics_page(index))
        except OSError:
            return False

    def _metrics_page(self, index: int) -> str:
        url = f"http://127.0.0.1:{self._metrics_ports[index]}/metrics"
        with urllib.request.urlopen(url, timeout=5) as page:
            return str(page.read(), "utf-8")


def _environment() -> dict[str, str]:
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths)}


def _mount_table() -> Iterator[tuple[str, Path]]:
    """Yield (device number, mountpoint) of each mount, asking no file system."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields = line.split()
        yield fields[2], Path(fields[4].encode().decode("unicode_escape"))


def _is_mounted(point: Path) -> bool:
    return any(mounted == point for _, mounted in _mount_table())


def _mounted_below(place: Path) -> list[Path]:
    return [mounted for _, mounted in _mount_table() if mounted.is_relative_to(place)]


def _take_away(point: Path) -> None:
    """Unmount *point*; when its daemon hangs, break the connection and detach it."""
    if not _is_mounted(point):
        return
    with suppress(subprocess.TimeoutExpired):
        subprocess.run(["umount", str(point)], capture_output=True, timeout=5)
    for device, mounted in list(_mount_table()):
        if mounted == point:
            minor = device.partition(":")[2]
            with suppress(OSError):  # not there unless fusectl is mounted
                Path(f"/sys/fs/fuse/connections/{minor}/abort").write_text("1")
            subprocess.run(["umount", "-l", str(point)], capture_output=True, timeout=5)
