"""An independent count of the bytes that leave a server.

    client  ->  RequestLog (counts, delays, fails)  ->  any HTTP server

It believes neither the client's metrics nor the server's: it is a proxy that
writes down each request as it passes.
"""

from __future__ import annotations

import http.client
import re
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BufferedIOBase
from types import TracebackType
from typing import Any, ClassVar, Self

HOST = "127.0.0.1"
PIECE_BYTES = 1024 * 1024


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
