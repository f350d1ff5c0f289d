"""The six calls of etcd that membership needs, as JSON over HTTP.

etcd 3.4 and later answer JSON on their client port beside gRPC (docs/decisions/0006
says why we take it). Its integers come as strings, its bytes as base64, and what is
zero or empty is left out. A call goes to each endpoint in turn until one answers.
"""

from __future__ import annotations

import asyncio
import ssl
from base64 import b64decode, b64encode
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
import msgspec

from mesh.errors import MeshError, Unavailable, Unusable

UNAUTHENTICATED = 16
NOT_FOUND = 5
DENIED = (3, 7, UNAUTHENTICATED)
"""gRPC codes: invalid argument (that is what a wrong password is), permission denied,
and a token that etcd does not know (any more)."""

T = TypeVar("T")


class Away(Unavailable):
    """etcd does not answer, or answers that it can't just now."""


class Denied(MeshError):
    """etcd does not let us in, or not there."""


class Forgotten(MeshError):
    """etcd can't tell what happened since then, or is another one: read all again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EtcdAccess:
    """Where etcd is, and how it lets us in."""

    endpoints: Sequence[str]
    """host:port or URLs of its client ports."""

    user: str = ""
    password: str = field(default="", repr=False)
    ca: Path | None = None
    """PEM files; the certificate and its key only where etcd wants to see one."""

    certificate: Path | None = None
    key: Path | None = None

    def urls(self) -> list[str]:
        scheme = "https" if self.ca or self.certificate else "http"
        found = [e if "://" in e else f"{scheme}://{e}" for e in self.endpoints]
        return [url.rstrip("/") for url in found]

    def tls(self) -> ssl.SSLContext | None:
        """Raises `Unusable` when the files can't be used."""
        if not (self.ca or self.certificate):
            return None
        try:
            context = ssl.create_default_context(cafile=self.ca)
            if self.certificate is not None:
                context.load_cert_chain(self.certificate, self.key)
        except OSError as error:
            raise Unusable(f"cluster.etcd: its PEM files can't be used: {error}") from error
        return context


class _Header(msgspec.Struct):
    revision: int = 0
    cluster_id: int = 0


class _Pair(msgspec.Struct):
    key: str = ""
    value: str = ""
    mod_revision: int = 0


class _Range(msgspec.Struct):
    header: _Header
    kvs: list[_Pair] = []


class _Lease(msgspec.Struct):
    id: int = msgspec.field(default=0, name="ID")
    ttl: int = msgspec.field(default=0, name="TTL")


class _Kept(msgspec.Struct):
    result: _Lease


class _Error(msgspec.Struct):
    message: str = ""
    error: str = ""
    code: int = 0
    grpc_code: int = 0


class _Event(msgspec.Struct):
    kv: _Pair
    type: str = "PUT"


class _Watched(msgspec.Struct):
    header: _Header
    created: bool = False
    canceled: bool = False
    compact_revision: int = 0
    events: list[_Event] = []


class _Streamed(msgspec.Struct):
    result: _Watched | None = None
    error: _Error | None = None


class _Done(msgspec.Struct):
    """What is answered does not matter."""


class _Token(msgspec.Struct):
    token: str = ""


@dataclass(frozen=True, slots=True)
class Moment:
    """How far one has followed the history of one etcd."""

    cluster_id: int
    revision: int


@dataclass(frozen=True, slots=True)
class Change:
    """One key was put, or deleted: then it has no value."""

    revision: int
    key: str
    value: bytes | None


class EtcdApi:
    """A session with etcd; use it inside one event loop and close it."""

    def __init__(self, access: EtcdAccess, *, timeout_s: float) -> None:
        """Wait *timeout_s* for each answer."""
        self._access = access
        self._urls = access.urls()
        self._tls = access.tls()
        self._timeout_s = timeout_s
        self._token = ""
        self._session: aiohttp.ClientSession | None = None

    async def aclose(self) -> None:
        if self._session is not None:
            await self._session.close()

    # The six

    async def read(self, prefix: str) -> tuple[Moment, dict[str, bytes]]:
        """Return all keys below *prefix*, and since when they are like this."""
        found = await self._call("kv/range", _span(prefix), _Range)
        values = {_text(pair.key): b64decode(pair.value) for pair in found.kvs}
        return Moment(found.header.cluster_id, found.header.revision), values

    async def grant(self, ttl_s: int) -> int:
        """Return a new lease, which ends unless it is kept."""
        return (await self._call("lease/grant", {"TTL": ttl_s}, _Lease)).id

    async def keep(self, lease: int) -> bool:
        """Let a lease begin anew; False when it has ended."""
        try:
            kept = await self._call("lease/keepalive", {"ID": str(lease)}, _Kept)
        except Forgotten:
            return False
        return kept.result.ttl > 0

    async def revoke(self, lease: int) -> None:
        """End a lease, and delete its keys."""
        await self._call("lease/revoke", {"ID": str(lease)}, _Done)

    async def put(self, key: str, value: bytes, lease: int) -> bool:
        """Write a key that goes when the lease ends; False when it has ended already."""
        request = {"key": _base64(key), "value": b64encode(value).decode(), "lease": str(lease)}
        try:
            await self._call("kv/put", request, _Done)
        except Forgotten:
            return False
        return True

    async def watch(self, prefix: str, since: Moment) -> AsyncGenerator[list[Change], None]:
        """Yield what changes below *prefix* after *since*, and an empty list at first.

        Raises `Forgotten` when etcd does not know the changes since then any more.
        """
        request = {"create_request": _span(prefix) | {"start_revision": str(since.revision + 1)}}
        async for line in self._lines("watch", request):
            streamed = _decoded(line, _Streamed)
            if streamed.error is not None:
                raise _error_of(streamed.error)
            said = streamed.result
            if said is None:
                continue
            is_other = said.header.cluster_id != since.cluster_id
            if said.canceled or said.compact_revision or is_other:
                raise Forgotten("the changes since then are gone")
            if said.created and said.header.revision < since.revision:
                raise Forgotten("etcd has lost what it had")
            yield [_change_of(event) for event in said.events]

    # HTTP

    async def _call(self, path: str, request: dict[str, Any], kind: type[T]) -> T:
        failure: MeshError = Away("cluster.etcd names no endpoint")
        for _ in self._urls:
            try:
                if self._access.user and not self._token:
                    self._token = (await self._post(*self._login(), _Token)).token
                return await self._post(path, request, kind)
            except Denied:
                if not self._token:
                    raise
                self._token = ""  # it has aged: the next try begins with another one
                failure = Away("etcd wants us to log in again")
            except Away as error:
                failure = error
                self._next_endpoint()
        raise failure

    def _login(self) -> tuple[str, dict[str, Any]]:
        who = {"name": self._access.user, "password": self._access.password}
        return "auth/authenticate", who

    async def _post(self, path: str, request: dict[str, Any], kind: type[T]) -> T:
        limit = aiohttp.ClientTimeout(total=self._timeout_s)
        try:
            async with self._sent(path, request, limit) as response:
                body = await response.read()
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise Away(f"{self._urls[0]}: {_reason(error)}") from error
        if response.status != 200:
            raise _refusal(response.status, body)
        return _decoded(body, kind)

    async def _lines(self, path: str, request: dict[str, Any]) -> AsyncIterator[bytes]:
        limit = aiohttp.ClientTimeout(total=None, sock_connect=self._timeout_s)
        try:
            async with self._sent(path, request, limit) as response:
                if response.status != 200:
                    raise _refusal(response.status, await response.read())
                rest = b""
                async for part in response.content.iter_any():
                    *lines, rest = (rest + part).split(b"\n")
                    for line in lines:
                        yield line
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            self._next_endpoint()
            raise Away(f"watch: {_reason(error)}") from error
        raise Away("watch: etcd hung up")

    def _sent(self, path: str, request: dict[str, Any], limit: aiohttp.ClientTimeout) -> Any:
        if self._session is None:
            self._session = aiohttp.ClientSession()
        return self._session.post(
            f"{self._urls[0]}/v3/{path}",
            data=msgspec.json.encode(request),
            headers={"Authorization": self._token} if self._token else {},
            ssl=self._tls if self._tls is not None else True,
            timeout=limit,
        )

    def _next_endpoint(self) -> None:
        self._urls.append(self._urls.pop(0))


def _reason(error: Exception) -> str:
    if isinstance(error, TimeoutError | asyncio.TimeoutError):
        return "no answer in time"
    return str(error) or type(error).__name__


def _decoded(body: bytes, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(body, type=kind, strict=False)
    except msgspec.DecodeError as error:
        raise Away(f"its answer is not what etcd says: {error}") from error


def _refusal(status: int, body: bytes) -> MeshError:
    try:
        return _error_of(_decoded(body, _Error))
    except Away:
        return Away(f"HTTP status {status}")


def _error_of(said: _Error) -> MeshError:
    code = said.code or said.grpc_code
    message = said.message or said.error
    if code in DENIED:
        return Denied(message)
    return Forgotten(message) if code == NOT_FOUND else Away(message)


def _change_of(event: _Event) -> Change:
    value = None if event.type == "DELETE" else b64decode(event.kv.value)
    return Change(event.kv.mod_revision, _text(event.kv.key), value)


def _span(prefix: str) -> dict[str, Any]:
    """Return the range of all keys that begin with *prefix*."""
    end = prefix.encode()[:-1] + bytes([prefix.encode()[-1] + 1])
    return {"key": _base64(prefix), "range_end": b64encode(end).decode()}


def _base64(text: str) -> str:
    return b64encode(text.encode()).decode()


def _text(encoded: str) -> str:
    return b64decode(encoded).decode("utf-8", "replace")
