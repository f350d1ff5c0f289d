"""The servicers: decode, call, encode. No decision is made here.

Three servers speak the same messages: gRPC on the peer's address for neighbors,
gRPC on a Unix socket for the command line of this host, and frames on another
Unix socket for its mounts, which alone may ask it to bring blocks here.
"""

from __future__ import annotations

import asyncio
import socket as sockets
from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import Any, TypeVar

import grpc
import structlog
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from mesh.blocks import Span
from mesh.clock import monotonic_s
from mesh.errors import MeshError
from mesh.peer.care import Handler
from mesh.peer.catalog import Catalog
from mesh.peer.flight import HEARTBEAT
from mesh.peer.gather import Gatherer
from mesh.peer.reader import BlockReader
from mesh.peer.report import Reporter
from mesh.wire.basics import Method, status_of
from mesh.wire.bulk_server import BulkServer, PushHandler
from mesh.wire.catalog import INVALIDATE, KEEP, LIST, LOOKUP, REFRESH, STAT, WATCH
from mesh.wire.channels import HEARTBEAT_S, SERVER_OPTIONS
from mesh.wire.codec import (
    BULK,
    DESCRIBE,
    FETCH,
    GATHER,
    HELD,
    HELLO,
    INVENTORY,
    LOCATE,
    MEMBERS,
    OVERVIEW,
    PEEK,
    REPORT,
    SERVE,
    SERVE_SMALL,
)
from mesh.wire.local import Handler as LocalHandler
from mesh.wire.local import LocalServer, mount_socket, nobody_elses
from mesh.wire.messages import (
    BlockRequest,
    BulkReply,
    Description,
    FetchReply,
    FetchRequest,
    GatherReply,
    GatherRequest,
    HeldReply,
    HeldRequest,
    HelloReply,
    InvalidateRequest,
    InventoryReply,
    InventoryRequest,
    KeepRequest,
    ListReply,
    ListRequest,
    LocateRequest,
    Location,
    LookupReply,
    LookupRequest,
    MembersReply,
    MountReport,
    Nothing,
    Overview,
    Piece,
    RefreshReply,
    RefreshRequest,
    SmallReply,
    SmallRequest,
    StatReply,
    StatRequest,
    WatchReply,
    WatchRequest,
)
from mesh.wire.passport import EPOCH, Passport, words_of

log = structlog.get_logger()

SENDS_MAX = 32
"""Blocks being sent at once. A slow reader holds the pieces of its block in memory,
so this bounds what neighbors can make us hold: 128 MiB with blocks of 4 MiB."""

STOP_GRACE_S = 2.0
REFUSED_AGAIN_S = 60.0
REFUSED_KEPT_MAX = 1024
Q = TypeVar("Q")
A = TypeVar("A")


StreamHandler = tuple[Method[Any, Any], Callable[[Any], AsyncGenerator[Any, None]]]


class Servicers:
    """What each RPC does."""

    def __init__(
        self, reader: BlockReader, gatherer: Gatherer, catalog: Catalog, reporter: Reporter
    ) -> None:
        self._reader = reader
        self._gatherer = gatherer
        self._catalog = catalog
        self._reporter = reporter
        self._sends = asyncio.Semaphore(SENDS_MAX)

    async def serve(self, request: BlockRequest) -> AsyncGenerator[Piece, None]:
        verb = self._reader.serve_relayed if request.is_relayed else self._reader.serve
        async with aclosing(self._send(verb, request)) as pieces:
            async for piece in pieces:
                yield piece

    async def peek(self, request: BlockRequest) -> AsyncGenerator[Piece, None]:
        async with aclosing(self._send(self._reader.peek, request)) as pieces:
            async for piece in pieces:
                yield piece

    async def _send(
        self, verb: Callable[..., AsyncGenerator[Piece, None]], request: BlockRequest
    ) -> AsyncGenerator[Piece, None]:
        waited = False
        while not waited:
            if self._sends.locked():
                yield HEARTBEAT  # busy, but alive
            try:
                async with asyncio.timeout(HEARTBEAT_S):
                    waited = await self._sends.acquire()
            except TimeoutError:
                continue
        try:
            sent = verb(request.file, request.index, request.first_piece)
            async with aclosing(sent) as pieces:
                async for piece in pieces:
                    yield piece
        finally:
            self._sends.release()

    async def held(self, request: HeldRequest) -> HeldReply:
        version = request.file.id
        return HeldReply(self._reporter.held(version) | self._reader.filling(version))

    async def inventory(self, request: InventoryRequest) -> InventoryReply:
        return await self._reporter.inventory(request.after)

    async def stat(self, request: StatRequest) -> StatReply:
        return await self._catalog.stat(request.path, refresh=request.refresh)

    async def list_directory(self, request: ListRequest) -> ListReply:
        return await self._catalog.list_directory(request)

    async def lookup(self, request: LookupRequest) -> LookupReply:
        return await self._catalog.lookup(request)

    async def invalidate(self, request: InvalidateRequest) -> Nothing:
        await self._catalog.invalidate(request)
        return Nothing()

    async def keep(self, request: KeepRequest) -> Nothing:
        await self._catalog.keep(request)
        return Nothing()

    async def refresh(self, request: RefreshRequest) -> RefreshReply:
        path, is_recursive = request.path, request.is_recursive
        return RefreshReply(await self._catalog.refresh(path, is_recursive=is_recursive))

    async def watch(self, request: WatchRequest) -> WatchReply:
        return await self._catalog.watch(request.since)

    async def fetch(self, request: FetchRequest) -> FetchReply:
        if request.is_ahead:
            await self._reader.read_ahead(request.file, request.index)
            return FetchReply(0, 0.0, "")
        if request.is_suspect:
            await self._reader.recheck(request.file, request.index)
        span = Span(request.index, request.start_bytes, request.size_bytes)
        return await self._reader.read(request.file, span)

    async def gather(self, request: GatherRequest) -> GatherReply:
        return await self._gatherer.gather(request)

    async def serve_small(self, request: SmallRequest) -> SmallReply:
        return await self._gatherer.serve_small(request)

    async def report(self, request: MountReport) -> MembersReply:
        self._reporter.take(request)
        return self._reporter.members(unless_epoch=request.epoch)

    async def hello(self, request: Nothing) -> HelloReply:
        return self._reporter.hello()

    async def members(self, request: Nothing) -> MembersReply:
        return self._reporter.members()

    async def describe(self, request: Nothing) -> Description:
        return self._reporter.describe()

    async def overview(self, request: Nothing) -> Overview:
        return await self._reporter.overview()

    async def locate(self, request: LocateRequest) -> Location:
        return await self._reporter.locate(await self._catalog.stat(request.path))


class PeerServer:
    """The gRPC servers of one peer."""

    def __init__(
        self,
        servicers: Servicers,
        passport: Passport,
        more: Sequence[Handler] = (),
        for_mounts: Sequence[LocalHandler] = (),
        streams: Sequence[StreamHandler] = (),
        pushes: Sequence[PushHandler] = (),
        *,
        bulk_token: bytes = b"",
    ) -> None:
        """Serve what *servicers* does, *more*, *streams* and *pushes*, where a caller sends
        many requests; to the mounts of this host *for_mounts*. *bulk_token* opens the bulk
        channel."""
        self._border = Border(passport)
        self._bulk = BulkServer(
            [(SERVE, servicers.serve), (PEEK, servicers.peek), *streams],
            pushes,
            passport.epoch,
            bulk_token,
        )
        self._stops = asyncio.Event()
        self._health = health.aio.HealthServicer()
        neighbors: list[tuple[Method[Any, Any], Any]] = [
            _stream(self._border, SERVE, servicers.serve),
            _stream(self._border, PEEK, servicers.peek),
            _unary(self._border, HELD, servicers.held),
            _unary(self._border, SERVE_SMALL, servicers.serve_small),
            _unary(self._border, INVENTORY, servicers.inventory),
            _unary(self._border, HELLO, servicers.hello),
            _unary(self._border, MEMBERS, servicers.members),
            _unary(self._border, STAT, servicers.stat),
            _unary(self._border, LIST, servicers.list_directory),
            _unary(self._border, LOOKUP, servicers.lookup),
            _unary(self._border, INVALIDATE, servicers.invalidate),
            _unary(self._border, KEEP, servicers.keep),
            _unary(self._border, DESCRIBE, servicers.describe),
            _unary(self._border, BULK, self._where_bulk),
            *(_stream(self._border, method, call) for method, call in streams),
            *(_pushed(self._border, method, call, self._stops) for method, call in pushes),
        ]
        self._neighbor_methods = neighbors
        self._host_methods = [
            *neighbors,
            _unary(self._border, OVERVIEW, servicers.overview),
            _unary(self._border, LOCATE, servicers.locate),
            _unary(self._border, REFRESH, servicers.refresh),
        ]
        for method, call, is_for_host_only in more:
            handler = _unary(self._border, method, call)
            self._host_methods.append(handler)
            if not is_for_host_only:
                self._neighbor_methods.append(handler)
        self._servers: list[grpc.aio.Server] = []
        self._local = LocalServer(
            [
                (FETCH, servicers.fetch),
                (STAT, servicers.stat),
                (LIST, servicers.list_directory),
                (REPORT, servicers.report),
                (WATCH, servicers.watch),
                (GATHER, servicers.gather),
                *for_mounts,
            ]
        )

    async def listen(self, address: str, credentials: grpc.ServerCredentials | None) -> int:
        """Serve neighbors on host:port; return the port. OSError when it is taken."""
        server = self._server(self._neighbor_methods)
        try:
            if credentials is None:
                port = server.add_insecure_port(address)
            else:
                port = server.add_secure_port(address, credentials)
        except RuntimeError as error:
            raise OSError(f"{address} can't be listened on") from error
        await server.start()
        return int(port)

    async def listen_bulk(self, listener: sockets.socket) -> None:
        """Send blocks to neighbors without gRPC as well, to who comes to a bound socket; OSError
        when somebody else listens there by now."""
        await self._bulk.listen(listener)

    async def _where_bulk(self, request: Nothing) -> BulkReply:
        return self._bulk.reply

    async def listen_here(self, socket: str) -> None:
        """Serve this host's people on a Unix socket, and its mounts on another beside it."""
        server = self._server(self._host_methods)
        with nobody_elses():
            server.add_insecure_port(f"unix:{socket}")
        await server.start()
        await self._local.listen(mount_socket(socket))

    async def ready(self) -> None:
        """Say to whoever asks for our health that we serve."""
        for service in ("", SERVE.service, STAT.service):
            await self._health.set(service, health_pb2.HealthCheckResponse.SERVING)

    async def drain(self) -> None:
        """Say to whoever asks for our health that we stop soon."""
        await self._health.enter_graceful_shutdown()

    async def aclose(self) -> None:
        """Say that we leave, let what is under way end, and stop."""
        await self.drain()
        self._stops.set()  # who pushes would do so for ever
        await asyncio.gather(
            self._local.aclose(grace_s=STOP_GRACE_S),
            self._bulk.aclose(grace_s=STOP_GRACE_S),
            *(server.stop(STOP_GRACE_S) for server in self._servers),
        )

    def _server(self, methods: list[tuple[Method[Any, Any], Any]]) -> grpc.aio.Server:
        server = grpc.aio.server(options=SERVER_OPTIONS)
        for service in {method.service for method, _ in methods}:
            handlers = {m.name: handler for m, handler in methods if m.service == service}
            server.add_generic_rpc_handlers(
                (grpc.method_handlers_generic_handler(service, handlers),)
            )
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        self._servers.append(server)
        return server


class Border:
    """Looks at the passports of callers."""

    def __init__(self, passport: Passport) -> None:
        self._passport = passport
        self._refused: OrderedDict[str, float] = OrderedDict()

    async def check(self, context: Any) -> None:
        """Refuse a caller of another mesh; tell one that has another epoch."""
        words = words_of(context.invocation_metadata())
        if objection := self._passport.objection(words):
            self._say(context.peer(), objection)
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, f"refused: {objection}")
        if self._passport.other_epoch(words) is not None:
            context.set_trailing_metadata(((EPOCH, f"{self._passport.epoch():016x}"),))

    def _say(self, caller: str, objection: str) -> None:
        """Log who was refused, each host once a minute."""
        host = caller.rpartition(":")[0]
        now_s = monotonic_s()
        if now_s - self._refused.get(host, -REFUSED_AGAIN_S) >= REFUSED_AGAIN_S:
            self._refused[host] = now_s
            log.warning("caller refused", caller=caller, reason=objection)
        while len(self._refused) > REFUSED_KEPT_MAX:
            self._refused.popitem(last=False)


def _unary(
    border: Border, method: Method[Q, A], call: Callable[[Q], Awaitable[A]]
) -> tuple[Method[Q, A], Any]:
    async def answer(request: Q, context: Any) -> A:
        await border.check(context)
        try:
            return await call(request)
        except Exception as error:
            await context.abort(*_status(method, error))
            raise AssertionError("abort raises") from error

    handler = grpc.unary_unary_rpc_method_handler(
        answer,
        request_deserializer=method.decode_request,
        response_serializer=method.encode_reply,
    )
    return method, handler


def _stream(
    border: Border, method: Method[Q, A], call: Callable[[Q], AsyncGenerator[A, None]]
) -> tuple[Method[Q, A], Any]:
    async def answer(request: Q, context: Any) -> None:
        await border.check(context)
        try:
            # Closed here and now when the caller hangs up: it holds a place among the sends.
            async with aclosing(call(request)) as replies:
                async for reply in replies:
                    await context.write(reply)
        except Exception as error:
            await context.abort(*_status(method, error))

    handler = grpc.unary_stream_rpc_method_handler(
        answer,
        request_deserializer=method.decode_request,
        response_serializer=method.encode_reply,
    )
    return method, handler


def _pushed(
    border: Border,
    method: Method[Q, A],
    call: Callable[[Q], None],
    stops: asyncio.Event,
) -> tuple[Method[Q, A], Any]:
    """Take requests until their sender ends, or this server does."""

    async def answer(requests: AsyncIterator[Q], context: Any) -> A:
        await border.check(context)
        stopping = asyncio.ensure_future(stops.wait())
        try:
            while True:
                coming = asyncio.ensure_future(_next(requests))
                await asyncio.wait({coming, stopping}, return_when=asyncio.FIRST_COMPLETED)
                if not coming.done():
                    coming.cancel()
                    break
                if (request := coming.result()) is None:
                    break
                call(request)
        except Exception as error:
            await context.abort(*_status(method, error))
        finally:
            stopping.cancel()
        return method.decode_reply(b"")

    handler = grpc.stream_unary_rpc_method_handler(
        answer,
        request_deserializer=method.decode_request,
        response_serializer=method.encode_reply,
    )
    return method, handler


async def _next(requests: AsyncIterator[Q]) -> Q | None:
    return await anext(requests, None)


def _status(method: Method[Any, Any], error: Exception) -> tuple[grpc.StatusCode, str]:
    if isinstance(error, MeshError):
        return status_of(error)
    log.error("call failed", method=method.name, exc_info=error)
    return grpc.StatusCode.INTERNAL, f"{type(error).__name__}: {error}"
