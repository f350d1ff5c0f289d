"""The bulk channel, over real sockets: every block comes, whatever becomes of the channel."""

from __future__ import annotations

import asyncio
import os
import socket as sockets
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager, suppress

import pytest
from crc32c import crc32c

from mesh.blocks import MIB, PIECE_BYTES, FileVersion, version_of
from mesh.clock import monotonic_s
from mesh.errors import Busy, NotFound, PeerUnavailable
from mesh.testing.servers import free_port
from mesh.wire.bulk import ASKED, END, FAILED, MAGIC, METHODS, PIECE, REQUEST_BYTES_MAX, SENT, Lanes
from mesh.wire.bulk_server import BulkServer, bound
from mesh.wire.codec import PEEK, SERVE
from mesh.wire.connection import Connection
from mesh.wire.hedged import Hedged, Signs, Strays
from mesh.wire.messages import BlockRequest, BulkReply, Piece
from mesh.wire.swarm import NEWS, TAKE, NewsRequest, TakeRequest

EPOCH = 7
PIECES = 3
FILE: FileVersion = version_of(
    source="s", path="model", size_bytes=PIECES * PIECE_BYTES, tag="t", block_bytes=4 * MIB
)
DATA = os.urandom(PIECES * PIECE_BYTES)
ASKED_FOR = BlockRequest(FILE, 0, 0, is_relayed=False)
HEARTBEAT = Piece(0, 0, b"")
EPOCH_BYTES = 8


def piece(number: int) -> Piece:
    data = DATA[number * PIECE_BYTES : (number + 1) * PIECE_BYTES]
    return Piece(number, crc32c(data), data)


class Sender:
    """What a peer sends, and what it has seen."""

    def __init__(self) -> None:
        self.what: list[Piece | Exception | asyncio.Event] = [HEARTBEAT, *map(piece, range(PIECES))]
        self.sent = 0
        self.hung_up = asyncio.Event()
        self.news: list[str] = []
        self.requests: list[BlockRequest | TakeRequest] = []

    async def serve(self, request: BlockRequest) -> AsyncGenerator[Piece, None]:
        self.requests.append(request)
        try:
            for each in self.what:
                if isinstance(each, Exception):
                    raise each
                if isinstance(each, asyncio.Event):
                    while not each.is_set():
                        yield HEARTBEAT
                        await asyncio.sleep(0.01)
                    continue
                yield each
                self.sent += 1
        finally:
            self.hung_up.set()

    async def take(self, request: TakeRequest) -> AsyncGenerator[Piece, None]:
        async with aclosing(self.serve(ASKED_FOR)) as pieces:
            async for each in pieces:
                yield each

    def hear(self, news: NewsRequest) -> None:
        self.news.append(news.asker)


class Channel:
    """One peer with a bulk channel, and who asks it."""

    def __init__(self, sender: Sender, server: BulkServer, address: str) -> None:
        self.sender = sender
        self.server = server
        self.address = address
        self.asked = 0
        self.epochs: list[int] = []
        self.over_grpc = 0
        self.reply: Callable[[], Awaitable[BulkReply]] = self._reply
        self.lanes = Lanes(self._ask, lambda address, epoch: self.epochs.append(epoch))

    async def _reply(self) -> BulkReply:
        return self.server.reply

    async def _ask(self, address: str) -> BulkReply:
        assert address == self.address
        self.asked += 1
        return await self.reply()

    async def _grpc(self) -> AsyncGenerator[Piece, None]:
        self.over_grpc += 1
        for number in range(PIECES):
            yield piece(number)

    def pieces(self) -> AsyncIterator[Piece]:
        return self.lanes.pieces(self.address, SERVE, ASKED_FOR, self._grpc)

    async def read(self) -> bytes:
        found = [one async for one in self.pieces() if one.data]
        assert all(crc32c(one.data) == one.crc for one in found)
        return b"".join(bytes(one.data) for one in sorted(found, key=lambda one: one.number))


@asynccontextmanager
async def channel(*, port: int = 0) -> AsyncIterator[Channel]:
    sender = Sender()
    server = serving(sender)
    await server.listen(bound("127.0.0.1", port))
    used = Channel(sender, server, f"127.0.0.1:{free_port()}")
    try:
        yield used
    finally:
        await used.lanes.aclose()
        await server.aclose(grace_s=0.0)


def serving(sender: Sender) -> BulkServer:
    return BulkServer(
        [(SERVE, sender.serve), (TAKE, sender.take)], [(NEWS, sender.hear)], lambda: EPOCH
    )


async def raw(channel: Channel, greeting: bytes) -> sockets.socket:
    socket = sockets.create_connection(("127.0.0.1", channel.server.reply.port))
    socket.settimeout(0)
    await asyncio.get_running_loop().sock_sendall(socket, greeting)
    return socket


@asynccontextmanager
async def answering(send: Callable[[asyncio.StreamWriter], Awaitable[None]]) -> AsyncIterator[int]:
    """Give the port of one who answers everybody like this, and then waits for the end."""
    tasks: list[asyncio.Task[None] | None] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.append(asyncio.current_task())
        with suppress(ConnectionError):
            await send(writer)
            await reader.read()
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        yield int(server.sockets[0].getsockname()[1])
        await asyncio.wait_for(asyncio.gather(*filter(None, tasks)), 5.0)


async def received(socket: sockets.socket) -> bytes:
    """Return all that comes until the other end hangs up."""
    found = bytearray()
    async with asyncio.timeout(5.0):
        with suppress(ConnectionResetError):
            while data := await asyncio.get_running_loop().sock_recv(socket, MIB):
                found += data
    return bytes(found)


# What comes


async def test_a_block_comes_whole_with_its_checksums_and_the_epoch() -> None:
    async with channel() as used:
        assert await used.read() == DATA
        assert used.epochs == [EPOCH]
        assert used.over_grpc == 0
        assert used.sender.requests == [ASKED_FOR]


async def test_one_connection_serves_one_block_after_the_other() -> None:
    async with channel() as used:
        for _ in range(20):
            assert await used.read() == DATA
        assert used.asked == 1
        assert len(used.server._serving) == 1


async def test_blocks_at_once_are_not_mixed() -> None:
    async with channel() as used:
        assert await asyncio.gather(*(used.read() for _ in range(16))) == [DATA] * 16
        assert used.asked == 1


async def test_what_the_peer_raises_is_raised_here_and_the_connection_goes_on() -> None:
    async with channel() as used:
        before, used.sender.what = used.sender.what, [NotFound("block 0 is not here")]
        with pytest.raises(NotFound, match="not here"):
            await used.read()
        used.sender.what = [piece(0), Busy.of(0.25, ["c"])]
        with pytest.raises(Busy) as busy:
            await used.read()
        assert (busy.value.retry_s, busy.value.others) == (0.25, ["c"])
        used.sender.what = [ValueError("a bug of ours")]
        with pytest.raises(PeerUnavailable, match="a bug of ours"):
            await used.read()
        used.sender.what = before
        assert await used.read() == DATA
        assert len(used.server._serving) == 1
        assert used.over_grpc == 0


async def test_news_are_taken_in_order_and_not_answered() -> None:
    async with channel() as used:

        async def news() -> AsyncIterator[NewsRequest]:
            for number in range(50):
                yield NewsRequest(f"n{number}")

        assert await used.lanes.push(used.address, NEWS, news())
        assert await used.read() == DATA  # on the same connection, after them
        assert used.sender.news == [f"n{number}" for number in range(50)]
        assert len(used.server._serving) == 1


@pytest.mark.parametrize("part_bytes", [1, 7, 100, 5_000, 1_000_000])
async def test_what_is_asked_and_told_comes_in_any_parts(part_bytes: int) -> None:
    """News of all sizes that are allowed, and questions among them, in any packets."""
    told = [f"n{number}" for number in range(40)] + ["long" * 10_000]
    asks = ASKED.pack(METHODS.index(SERVE), len(SERVE.encode_request(ASKED_FOR)))
    asks += SERVE.encode_request(ASKED_FOR)
    said = b""
    for number, name in enumerate(told):
        news = NEWS.encode_request(NewsRequest(name))
        said += ASKED.pack(METHODS.index(NEWS), len(news)) + news
        said += asks if number in (0, 20) else b""
    async with channel() as used:
        used.sender.what = [HEARTBEAT]
        greeting = MAGIC + used.server.reply.token
        with await raw(used, greeting) as socket:
            loop = asyncio.get_running_loop()
            for at in range(0, len(said), part_bytes):
                await loop.sock_sendall(socket, said[at : at + part_bytes])
                if part_bytes < 1_000 and at < 20 * part_bytes:
                    await asyncio.sleep(0.001)  # so that it comes as it was sent
            socket.shutdown(sockets.SHUT_WR)
            found = await received(socket)
        assert used.sender.news == told
        assert len(used.sender.requests) == 2
        assert len(found) == 2 * (2 * SENT.size + EPOCH_BYTES)


async def test_news_that_can_not_be_taken_end_the_connection_and_nothing_else() -> None:
    async with channel() as used:
        greeting = MAGIC + used.server.reply.token
        told = ASKED.pack(METHODS.index(NEWS), 4) + b"\xff" * 4
        with await raw(used, greeting + told) as socket:
            assert await received(socket) == b""
        assert await used.read() == DATA


async def test_a_connection_that_is_given_up_before_it_is_made_is_closed() -> None:
    mine, other = sockets.socketpair()
    with pytest.raises(OSError, match=r"Operation not supported|Protocol not available"):
        await Connection.on(mine)  # no TCP
    assert mine.fileno() == -1
    other.close()
    with sockets.create_server(("127.0.0.1", 0)) as server:
        mine = sockets.create_connection(server.getsockname())
        making = asyncio.create_task(Connection.on(mine))
        await asyncio.sleep(0)
        making.cancel()
        with pytest.raises(asyncio.CancelledError):
            await making
        other, _ = server.accept()
        other.settimeout(0)
        with other:
            assert await received(other) == b""


async def test_who_reads_nothing_holds_up_its_sender_alone() -> None:
    """What is sent waits in the kernel, not in this process."""
    async with channel() as used:
        used.sender.what = [piece(0)] * 64
        request = SERVE.encode_request(ASKED_FOR)
        asked = ASKED.pack(METHODS.index(SERVE), len(request)) + request
        with await raw(used, MAGIC + used.server.reply.token + asked):
            await asyncio.sleep(0.5)  # nothing is to happen, so there is no event
            sent = used.sender.sent
            assert sent < 32
            used.sender.what = [piece(0)]
            assert len(await used.read()) == PIECE_BYTES


# Nobody wants the rest


async def test_who_is_not_wanted_any_more_is_hung_up_on() -> None:
    class Endless:
        after_s = lost_after_s = 10.0

        def may(self) -> bool:
            return False

    async with channel() as used:
        never = asyncio.Event()
        used.sender.what = [piece(0), never, piece(1), piece(2)]
        hedged = Hedged(["a"], lambda peer: used.pieces(), Endless(), Signs(), monotonic_s)
        async with aclosing(hedged.pieces()) as pieces:
            await anext(pieces)
        strays = Strays()
        strays.take(hedged)
        async with asyncio.timeout(5.0):
            await used.sender.hung_up.wait()
        assert used.sender.sent == 1
        await strays.aclose()


async def test_who_has_sent_all_is_not_hung_up_on() -> None:
    async with channel() as used:
        stream = used.lanes.pieces(used.address, SERVE, ASKED_FOR, used._grpc)
        assert not stream.is_worth_cutting
        for left in (3, 3, 2, 1):  # a heartbeat comes first
            await anext(stream)
            assert stream.is_worth_cutting == (left > 1)
        with pytest.raises(StopAsyncIteration):
            await anext(stream)
        assert await used.read() == DATA
        assert len(used.server._serving) == 1


async def test_each_part_of_a_piece_is_a_sign_of_life() -> None:
    async with channel() as used:
        signs: list[float] = []
        stream = used.lanes.pieces(used.address, SERVE, ASKED_FOR, used._grpc)
        stream.on_sign = lambda: signs.append(monotonic_s())
        pieces = [one async for one in stream]
        assert len(signs) > len(pieces) == PIECES + 1


# The channel can't be had


async def test_a_peer_without_a_channel_is_asked_over_grpc_and_for_it_once() -> None:
    async with channel() as used:

        async def nowhere() -> BulkReply:
            return BulkReply(0, b"")

        used.reply = nowhere
        assert [await used.read(), await used.read()] == [DATA, DATA]
        assert (used.over_grpc, used.asked) == (2, 1)


async def test_a_peer_that_does_not_say_is_asked_over_grpc() -> None:
    async with channel() as used:

        async def silent() -> BulkReply:
            raise PeerUnavailable("a", "unimplemented: of an older release")

        used.reply = silent
        assert await used.read() == DATA
        assert not await used.lanes.push(used.address, NEWS, nothing())
        assert (used.over_grpc, used.asked) == (1, 1)


async def nothing() -> AsyncIterator[NewsRequest]:
    raise AssertionError("nothing is taken where there is no lane")
    yield


async def test_behind_a_firewall_blocks_come_over_grpc() -> None:
    async with channel() as used:

        async def closed() -> BulkReply:
            return BulkReply(free_port(), bytes(16))

        used.reply = closed
        assert [await used.read(), await used.read()] == [DATA, DATA]
        assert (used.over_grpc, used.asked) == (2, 1)


async def test_a_peer_that_began_anew_is_asked_again_in_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("mesh.wire.bulk.ASKED_AGAIN_S", 0.0)
    async with channel() as used:
        assert await used.read() == DATA
        await used.server.aclose(grace_s=0.0)
        used.server = serving(used.sender)
        await used.server.listen(bound("127.0.0.1", 0))
        assert await used.read() == DATA  # finds the door shut, and asks over gRPC
        assert await used.read() == DATA
        assert (used.over_grpc, used.asked) == (1, 2)
        await used.server.aclose(grace_s=0.0)


async def test_who_knows_where_a_bulk_channel_is_does_not_ask() -> None:
    async with channel() as used:
        used.lanes = Lanes(used.lanes._ask, lambda *_: None, known=lambda _: used.server.reply)
        assert [await used.read(), await used.read()] == [DATA, DATA]
        assert (used.over_grpc, used.asked) == (0, 0)
        await used.lanes.aclose()


async def test_no_two_have_the_same_port_before_they_listen() -> None:
    with bound("127.0.0.1", 0) as one:
        with pytest.raises(OSError, match="in use"):
            bound("127.0.0.1", one.getsockname()[1])
        one.listen()
    port = free_port()
    with bound("127.0.0.1", port) as one, bound("127.0.0.1", port) as other:
        one.listen()
        server = serving(Sender())
        with pytest.raises(OSError, match="in use"):
            await server.listen(other)
        assert server.reply.port == 0
        await server.aclose(grace_s=0.0)


async def test_what_is_known_of_an_earlier_run_opens_nothing() -> None:
    async with channel() as used:
        earlier = BulkReply(used.server.reply.port, bytes(16))
        used.lanes = Lanes(used.lanes._ask, lambda *_: None, known=lambda _: earlier)
        assert await used.read() == DATA
        assert (used.over_grpc, used.asked, used.sender.requests) == (1, 0, [])
        await used.lanes.aclose()


async def test_a_peer_that_dies_on_the_way_is_unavailable() -> None:
    async with channel() as used:
        used.sender.what = [piece(0), asyncio.Event()]
        stream = used.pieces()
        assert (await anext(stream)).number == 0
        await used.server.aclose(grace_s=0.0)
        with pytest.raises(PeerUnavailable, match="bulk channel"):
            while True:
                await anext(stream)
        assert used.over_grpc == 0


async def test_a_peer_that_is_stopped_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mesh.wire.connection.STALL_S", 0.1)

    async def deaf() -> BulkReply:
        return BulkReply(listener.getsockname()[1], bytes(16))

    async with channel() as used:
        with sockets.create_server(("127.0.0.1", 0)) as listener:  # nobody accepts
            used.reply = deaf
            with pytest.raises(PeerUnavailable, match="silent"):
                await used.read()
        assert used.over_grpc == 0


async def test_news_to_a_peer_that_died_raise() -> None:
    async with channel() as used:
        told = asyncio.Event()

        async def news() -> AsyncIterator[NewsRequest]:
            yield NewsRequest("first")
            await told.wait()
            for _ in range(100):
                yield NewsRequest("later")
                await asyncio.sleep(0.01)

        pushing = asyncio.create_task(used.lanes.push(used.address, NEWS, news()))
        while not used.sender.news:
            await asyncio.sleep(0.01)
        await used.server.aclose(grace_s=0.0)
        told.set()
        with pytest.raises(PeerUnavailable):
            await pushing


# Who may ask


@pytest.mark.parametrize(
    "greeting",
    [
        MAGIC + bytes(16),
        b"GET / HTTP/1.1\r\nHost: somebody\r\n\r\n",
        b"mesh-bulk-0\n" + bytes(16),
    ],
)
async def test_who_does_not_know_the_token_gets_nothing(greeting: bytes) -> None:
    async with channel() as used:
        request = SERVE.encode_request(ASKED_FOR)
        asked = greeting + ASKED.pack(METHODS.index(SERVE), len(request)) + request
        with await raw(used, asked) as socket:
            assert await received(socket) == b""
        assert not used.sender.requests


@pytest.mark.parametrize(
    ("code", "size_bytes"),
    [(200, 4), (METHODS.index(PEEK), 4), (METHODS.index(SERVE), REQUEST_BYTES_MAX + 1)],
    ids=["no method", "not served here", "too large"],
)
async def test_who_asks_for_what_there_is_not_is_hung_up_on(code: int, size_bytes: int) -> None:
    async with channel() as used:
        greeting = MAGIC + used.server.reply.token
        with await raw(used, greeting + ASKED.pack(code, size_bytes) + b"1234") as socket:
            assert await received(socket) == b""
        assert await used.read() == DATA


async def test_a_request_that_is_none_is_refused_and_the_connection_goes_on() -> None:
    async with channel() as used:
        nonsense = ASKED.pack(METHODS.index(SERVE), 4) + b"\xff" * 4
        request = SERVE.encode_request(ASKED_FOR)
        asked = nonsense + ASKED.pack(METHODS.index(SERVE), len(request)) + request
        with await raw(used, MAGIC + used.server.reply.token + asked) as socket:
            socket.shutdown(sockets.SHUT_WR)
            found = await received(socket)
        assert found[0] == FAILED
        assert len(found) > len(DATA)


async def test_what_trickles_in_is_no_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mesh.wire.connection.STALL_S", 0.2)
    data = DATA[:PIECE_BYTES]

    async def trickle(writer: asyncio.StreamWriter) -> None:
        writer.write(SENT.pack(PIECE, 0, crc32c(data), len(data)))
        for at in range(0, len(data), len(data) // 8):  # less than a socket is woken for
            writer.write(data[at : at + len(data) // 8])
            await asyncio.sleep(0.1)
        writer.write(SENT.pack(END, 0, 0, 0))

    async with answering(trickle) as port, channel() as used:

        async def here() -> BulkReply:
            return BulkReply(port, bytes(16))

        used.reply = here
        signs: list[float] = []
        stream = used.lanes.pieces(used.address, SERVE, ASKED_FOR, used._grpc)
        stream.on_sign = lambda: signs.append(monotonic_s())
        assert b"".join([bytes(one.data) async for one in stream]) == data
        assert len(signs) >= 4


async def test_who_says_nothing_is_hung_up_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mesh.wire.bulk_server.GREETING_S", 0.05)
    async with channel() as used:
        with await raw(used, MAGIC) as socket:
            assert await received(socket) == b""


async def test_who_comes_when_all_places_are_taken_is_served_over_grpc() -> None:
    async with channel() as used:
        used.server._connections_max = 1
        assert await used.read() == DATA
        other = Channel(used.sender, used.server, used.address)
        assert await other.read() == DATA
        assert (used.over_grpc, other.over_grpc) == (0, 1)
        await other.lanes.aclose()


async def test_what_is_no_piece_of_ours_is_refused() -> None:
    async def send(writer: asyncio.StreamWriter) -> None:
        writer.write(SENT.pack(PIECE, 0, 0, 0) + SENT.pack(PIECE, 0, 0, 64 * MIB))

    async with answering(send) as port, channel() as used:

        async def liar() -> BulkReply:
            return BulkReply(port, bytes(16))

        used.reply = liar
        with pytest.raises(PeerUnavailable, match="a piece of"):
            await used.read()


async def test_all_that_is_sent_is_frames_to_the_end() -> None:
    async with channel() as used:
        request = SERVE.encode_request(ASKED_FOR)
        asked = ASKED.pack(METHODS.index(SERVE), len(request)) + request
        with await raw(used, MAGIC + used.server.reply.token + asked) as socket:
            socket.shutdown(sockets.SHUT_WR)
            found = await received(socket)
        kinds = []
        while found:
            kind, _, _, size_bytes = SENT.unpack_from(found)
            kinds.append(kind)
            found = found[SENT.size + size_bytes :]
        assert kinds == [PIECE] * (PIECES + 1) + [END]
