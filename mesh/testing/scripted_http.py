"""An HTTP server that says whatever a test wants: for answers that no real server gives on request.

with ScriptedHttp(lambda asked: Answer(503)) as server:
    ...  # a client of server.endpoint
    assert server.requests[0].method == "GET"
"""

from __future__ import annotations

import ssl
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

HOST = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class Asked:
    """One request."""

    method: str
    path: str
    """As it was sent, with the query."""

    headers: Mapping[str, str]
    """By name in lower case."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What is sent back, and then the connection ends."""

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    """Content-Length is that of the body unless it is here: then it may lie."""


class ScriptedHttp:
    """Answers each request as the script says; keeps what was asked."""

    def __init__(
        self, script: Callable[[Asked], Answer], *, tls: ssl.SSLContext | None = None
    ) -> None:
        self.script = script
        self.requests: list[Asked] = []
        self._server = _Server((HOST, 0), self._handler())
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        if tls:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        scheme = "https" if tls else "http"
        self.endpoint = f"{scheme}://{HOST}:{self._server.server_address[1]}"

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
        self._server.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        scripted = self

        class Handler(BaseHTTPRequestHandler):
            def answer(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                headers = {name.lower(): value for name, value in self.headers.items()}
                asked = Asked(self.command, self.requestline.split(" ")[1], headers)
                scripted.requests.append(asked)
                answer = scripted.script(asked)
                self.send_response_only(answer.status)
                length = {"Content-Length": str(len(answer.body))}
                for name, value in (length | dict(answer.headers)).items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(answer.body)

            do_GET = do_HEAD = do_PUT = do_POST = answer

            def log_message(self, format: str, *args: Any) -> None:
                """Print nothing."""

        return Handler


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of a client that hangs up; that is its right."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)
