"""Calls to other peers: channels that live long, deadlines on everything.

A stream of grpc.aio that is cancelled leaks memory (grpc issue 43360), so nothing
here cancels one: a stream that stalls is left to its own deadline, and the caller
goes on elsewhere at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import grpc

from mesh.blocks import MIB, PIECE_BYTES
from mesh.errors import PeerUnavailable
from mesh.wire.basics import STALL_S, Method, error_of
from mesh.wire.bulk import Lanes
from mesh.wire.codec import BULK
from mesh.wire.messages import BlockRequest, BulkReply, Nothing, Piece
from mesh.wire.passport import Passport, words_of
from mesh.wire.swarm import TakeRequest

Q = TypeVar("Q")
A = TypeVar("A")

CALL_TIMEOUT_S = 5.0
STREAM_TIMEOUT_S = 60.0
PUSH_TIMEOUT_S = 600.0
HEARTBEAT_S = 0.1
BULK_TIMEOUT_S = 2.0
"""Who does not say by then where its bulk channel is sends over gRPC."""

NOT_CONNECTED = "failed to connect"
"""What gRPC says of a channel that nothing can be under way on."""

RETIRED_AFTER_S = 15.0

KEEPALIVE_MS = 20_000
"""Of each connection, idle or not, a timer of gRPC ends so often and wakes its four threads for
some time: every 2 s with 31 neighbors that was 4 % of two cores. What is sent and not
acknowledged for 1 s closes a connection all the same (TCP_USER_TIMEOUT)."""

OPTIONS = [
    ("grpc.max_receive_message_length", 2 * PIECE_BYTES),
    ("grpc.max_send_message_length", 2 * PIECE_BYTES),
    ("grpc.http2.lookahead_bytes", 16 * MIB),
    ("grpc.http2.max_frame_size", 4 * MIB),
    ("grpc.keepalive_time_ms", KEEPALIVE_MS),
    ("grpc.keepalive_timeout_ms", 1000),
    ("grpc.keepalive_permit_without_calls", 0),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.min_reconnect_backoff_ms", 500),
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 500),
    ("grpc.use_local_subchannel_pool", 1),
]
SERVER_OPTIONS = [
    *OPTIONS,
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 1000),
    ("grpc.http2.max_ping_strikes", 0),
    ("grpc.so_reuseport", 0),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsSettings:
    """PEM files; every peer shows its certificate to every other one."""

    ca: Path
    certificate: Path
    key: Path

    def channel_credentials(self) -> grpc.ChannelCredentials:
        return grpc.ssl_channel_credentials(*self._read())

    def server_credentials(self) -> grpc.ServerCredentials:
        ca, key, certificate = self._read()
        return grpc.ssl_server_credentials(
            [(key, certificate)], root_certificates=ca, require_client_auth=True
        )

    def _read(self) -> tuple[bytes, bytes, bytes]:
        return self.ca.read_bytes(), self.key.read_bytes(), self.certificate.read_bytes()


class Channels:
    """One channel for each address, made when it is first used."""

    def __init__(
        self,
        tls: TlsSettings | None = None,
        *,
        passport: Passport | None = None,
        on_other_epoch: Callable[[str, int], None] = lambda address, epoch: None,
        control: Channels | None = None,
        is_bulk: bool = False,
        bulk_of: Callable[[str], BulkReply | None] = lambda address: None,
    ) -> None:
        """Show *passport* in every call; have *on_other_epoch* told of the address of who
        answered under another epoch, and of that epoch. Small things go over *control*: on
        connections of its own, they need not queue behind the megabytes that are under way.
        With *is_bulk* use the bulk channels of those who have one; never where there is *tls*.
        *bulk_of* knows where that is at an address without being asked, or does not."""
        self._tls = tls
        self._control = control or self
        self._lanes: Lanes | None = None
        if is_bulk and tls is None:
            self._lanes = Lanes(self._control.ask_bulk, self._note_epoch, known=bulk_of)
        self._passport = passport
        self._on_other_epoch = on_other_epoch
        self._channels: dict[str, grpc.aio.Channel] = {}
        self._retired: list[grpc.aio.Channel] = []
        self._retiring: asyncio.Future[None] | None = None
        self._abandoned: set[asyncio.Future[Any]] = set()

    async def call(
        self, address: str, method: Method[Q, A], request: Q, *, timeout_s: float = CALL_TIMEOUT_S
    ) -> A:
        """Return the answer; raises what the peer raised, or `PeerUnavailable`."""
        channel = self._channel(address)
        call = channel.unary_unary(
            method.path,
            request_serializer=method.encode_request,
            response_deserializer=method.decode_reply,
        )
        asked = call(request, timeout=timeout_s, metadata=self._words())
        try:
            answer: A = await asked
        except grpc.aio.AioRpcError as failure:
            self._drop_unconnected(address, channel, failure)
            raise error_of(address, failure) from failure
        await self._compare(address, asked)
        return answer

    def pieces(self, address: str, method: Method[Q, Piece], request: Q) -> AsyncIterator[Piece]:
        """Yield the pieces of a block, and heartbeats, which have no data, while there is none.

        Raises `PeerUnavailable` once the sender falls silent.
        """
        streamed = partial(self._streamed, address, method, request)
        if self._lanes is None or not isinstance(request, BlockRequest | TakeRequest):
            return streamed()
        return self._lanes.pieces(address, method, request, streamed)

    async def _streamed(
        self, address: str, method: Method[Q, Piece], request: Q
    ) -> AsyncGenerator[Piece, None]:
        channel = self._channel(address)
        stream = channel.unary_stream(
            method.path,
            request_serializer=method.encode_request,
            response_deserializer=method.decode_reply,
        )(request, timeout=STREAM_TIMEOUT_S, metadata=self._words())
        while True:
            reading = asyncio.ensure_future(stream.read())
            done, _ = await asyncio.wait({reading}, timeout=STALL_S)
            if not done:
                self._abandon(reading)
                raise PeerUnavailable(address, f"silent for {STALL_S} s")
            try:
                piece = reading.result()
            except grpc.aio.AioRpcError as failure:
                self._drop_unconnected(address, channel, failure)
                raise error_of(address, failure) from failure
            if piece is grpc.aio.EOF:
                await self._compare(address, stream)
                return
            yield piece

    async def push(self, address: str, method: Method[Q, A], values: AsyncIterator[Q]) -> None:
        """Send what *values* yields, until it ends; raises what the peer raised, or
        `PeerUnavailable`."""
        if self._lanes is not None and await self._lanes.push(address, method, values):
            return
        await self._control.stream(address, method, values)

    async def stream(self, address: str, method: Method[Q, A], values: AsyncIterator[Q]) -> None:
        """Do so over gRPC."""
        channel = self._channel(address)
        call = channel.stream_unary(
            method.path,
            request_serializer=method.encode_request,
            response_deserializer=method.decode_reply,
        )(timeout=PUSH_TIMEOUT_S, metadata=self._words())
        try:
            async for value in values:
                await call.write(value)
            await call.done_writing()
            await call
        except grpc.aio.AioRpcError as failure:
            self._drop_unconnected(address, channel, failure)
            raise error_of(address, failure) from failure
        except asyncio.InvalidStateError as error:  # it ended while we wrote
            raise PeerUnavailable(address, "the stream has ended") from error

    async def _retire(self) -> None:
        """Close what was dropped, later: closing cancels the callers of other calls on it."""
        while self._retired:
            count = len(self._retired)
            await asyncio.sleep(RETIRED_AFTER_S)
            closing, self._retired = self._retired[:count], self._retired[count:]
            for channel in closing:
                await channel.close()
        self._retiring = None

    async def aclose(self) -> None:
        if self._lanes is not None:
            await self._lanes.aclose()
        if self._retiring is not None:
            self._retiring.cancel()
        for channel in [*self._channels.values(), *self._retired]:
            await channel.close()
        if self._abandoned:
            await asyncio.wait(self._abandoned)

    def _drop_unconnected(
        self, address: str, channel: grpc.aio.Channel, failure: grpc.aio.AioRpcError
    ) -> None:
        """Have the next call connect at once; this channel would first wait for a while.

        Who may ask how often is for the callers to decide: they know who is away.
        """
        if NOT_CONNECTED in (failure.details() or "") and self._channels.get(address) is channel:
            self._retired.append(self._channels.pop(address))
            self._retiring = self._retiring or asyncio.ensure_future(self._retire())

    def _words(self) -> tuple[tuple[str, str], ...]:
        return () if self._passport is None else self._passport.words()

    async def _compare(self, address: str, ended: Any) -> None:
        """Look at what a call that ended said of the epoch of who answered."""
        if self._passport is None:
            return
        named = self._passport.other_epoch(words_of(await ended.trailing_metadata()))
        if named is not None:
            self._on_other_epoch(address, named)

    async def ask_bulk(self, address: str) -> BulkReply:
        """Return where a peer's bulk channel is; raises what `call` does."""
        return await self.call(address, BULK, Nothing(), timeout_s=BULK_TIMEOUT_S)

    def _note_epoch(self, address: str, epoch: int) -> None:
        if self._passport is not None and epoch != self._passport.epoch():
            self._on_other_epoch(address, epoch)

    def _channel(self, address: str) -> grpc.aio.Channel:
        channel = self._channels.get(address)
        if channel is None:
            if self._tls is None or address.startswith("unix:"):
                channel = grpc.aio.insecure_channel(address, options=OPTIONS)
            else:
                credentials = self._tls.channel_credentials()
                channel = grpc.aio.secure_channel(address, credentials, options=OPTIONS)
            self._channels[address] = channel
        return channel

    def _abandon(self, reading: asyncio.Future[Any]) -> None:
        def forget(done: asyncio.Future[Any]) -> None:
            self._abandoned.discard(done)
            if not done.cancelled():
                done.exception()  # seen, so that asyncio does not complain

        self._abandoned.add(reading)
        reading.add_done_callback(forget)
