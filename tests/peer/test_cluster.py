"""Three peers and their hosts: the right bytes, each once, whoever is down."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path
from random import Random

import grpc
import pytest

from mesh.blocks import MIB, FileVersion
from mesh.client.client import MeshClient
from mesh.client.file import MeshFile
from mesh.errors import NotFound, PeerUnavailable, Stale, UnderStoreUnavailable, Unusable
from mesh.membership.open import StaticSettings
from mesh.membership.view import Member, State
from mesh.metrics import PEER, UNDER_STORE, by_label, total
from mesh.peer.health import Hedging
from mesh.peer.peer import Peer, PeerSettings, running_peer
from mesh.peer.server import SENDS_MAX
from mesh.store.store import StoreSettings
from mesh.testing.cluster import Cluster, running_cluster
from mesh.testing.memory import SOURCE, MemoryUnderStore
from mesh.testing.servers import free_port
from mesh.understore.understore import UnderStoreSettings
from mesh.wire.channels import Channels
from mesh.wire.codec import BULK, DESCRIBE, HELD, LOCATE, OVERVIEW, SERVE
from mesh.wire.messages import (
    BlockRequest,
    BulkReply,
    HeldRequest,
    LocateRequest,
    Nothing,
    Piece,
)

NAMES = ("a", "b", "c")
PATH = "models/weights.bin"
BLOCK_COUNT = 13
DATA = Random(11).randbytes(12 * MIB + 5)


@asynccontextmanager
async def cluster_of(
    root: Path, under_store: MemoryUnderStore, *, max_age_s: float = 60.0
) -> AsyncIterator[Cluster]:
    async with running_cluster(root, NAMES, under_store, max_age_s=max_age_s) as cluster:
        yield cluster


@contextmanager
def opened(client: MeshClient, file: FileVersion, path: str = PATH) -> Iterator[MeshFile]:
    handle = client.open_version(path, file)
    try:
        yield handle
    finally:
        handle.close()


async def read(handle: MeshFile, offset_bytes: int, size_bytes: int) -> bytes:
    """Read as the FUSE frontend does."""
    target = memoryview(bytearray(size_bytes))
    got_bytes = handle.read_now(offset_bytes, target)
    if got_bytes is None:
        got_bytes = await handle.read(offset_bytes, target)
    return bytes(target[:got_bytes])


async def read_all(handle: MeshFile, *, step_bytes: int = MIB) -> bytes:
    parts = []
    while part := await read(handle, sum(map(len, parts)), step_bytes):
        parts.append(part)
    return b"".join(parts)


async def read_path(client: MeshClient, path: str = PATH) -> bytes:
    handle = await client.open(path)
    try:
        return await read_all(handle)
    finally:
        handle.close()


def origin(data: bytes = DATA) -> MemoryUnderStore:
    return MemoryUnderStore({PATH: data})


def version(under_store: MemoryUnderStore) -> FileVersion:
    return under_store.version(PATH, block_bytes=MIB)


def fills(cluster: Cluster) -> int:
    return sum(total(peer.metrics.fills) for peer in cluster.peers.values())


def primaries(peer: Peer, file: FileVersion) -> list[str]:
    """Return the first owner of each block."""
    ring = peer.neighbors.ring
    return [ring.owners(file.key(index), copies=1)[0] for index in range(file.block_count)]


async def until(condition: Callable[[], bool], *, within_s: float = 10.0) -> None:
    async with asyncio.timeout(within_s):
        while not condition():  # what is waited for has no event
            await asyncio.sleep(0.01)


# Everybody is well


async def test_each_block_leaves_the_under_store_once(tmp_path: Path) -> None:
    """All hosts start the same job and load the same model at the same moment."""
    under_store = origin()
    async with cluster_of(tmp_path, under_store) as cluster:
        async with cluster.client("a") as a, cluster.client("b") as b, cluster.client("c") as c:
            got = await asyncio.gather(*(read_path(client) for client in (a, b, c)))
        assert all(data == DATA for data in got)
        assert under_store.reads == {(PATH, index * MIB): 1 for index in range(BLOCK_COUNT)}
        assert fills(cluster) == BLOCK_COUNT


async def test_many_readers_on_one_host_are_one(tmp_path: Path) -> None:
    under_store = origin()
    async with cluster_of(tmp_path, under_store) as cluster, cluster.client("a") as client:
        got = await asyncio.gather(*(read_path(client) for _ in range(5)))
        assert all(data == DATA for data in got)
        assert set(under_store.reads.values()) == {1}
        for source, blocks in by_label(cluster.peers["a"].metrics.read_blocks, "source").items():
            assert source in (PEER, UNDER_STORE)
            assert blocks <= BLOCK_COUNT


async def test_any_range_is_those_bytes_of_the_file(tmp_path: Path) -> None:
    random = Random(5)
    async with cluster_of(tmp_path, origin()) as cluster:
        for name in ("a", "b"):
            async with cluster.client(name) as client:
                with opened(client, (await client.open(PATH)).file) as handle:
                    for _ in range(150):
                        offset = random.choice([random.randrange(len(DATA)), len(DATA) - 3, MIB])
                        size = random.choice([1, 4096, 128 * 1024, random.randrange(3 * MIB)])
                        assert await read(handle, offset, size) == DATA[offset : offset + size]


async def test_readers_of_one_handle_do_not_mix(tmp_path: Path) -> None:
    offsets = [Random(n).randrange(len(DATA)) for n in range(64)]
    async with cluster_of(tmp_path, origin()) as cluster, cluster.client("c") as client:
        with opened(client, (await client.open(PATH)).file) as handle:
            got = await asyncio.gather(*(read(handle, offset, 70_000) for offset in offsets))
        assert got == [DATA[offset : offset + 70_000] for offset in offsets]


@pytest.mark.parametrize("size_bytes", [0, 1, MIB - 1, MIB, MIB + 1])
async def test_files_of_odd_sizes(tmp_path: Path, size_bytes: int) -> None:
    data = DATA[:size_bytes]
    async with cluster_of(tmp_path, origin(data)) as cluster:
        for name in NAMES:
            async with cluster.client(name) as client:
                assert await read_path(client) == data
                with opened(client, (await client.open(PATH)).file) as handle:
                    assert await read(handle, size_bytes, 10) == b""
                    assert await read(handle, size_bytes + MIB, 10) == b""
        assert fills(cluster) == -(-size_bytes // MIB)


# Somebody is down


async def test_the_own_peer_is_down(tmp_path: Path) -> None:
    under_store = origin()
    async with cluster_of(tmp_path, under_store) as cluster:
        await cluster.stop("a")
        async with cluster.client("a") as client:
            assert await read_path(client) == DATA
            sources = by_label(client.metrics.read_blocks, "source")
            assert sources == {"local": 0, PEER: BLOCK_COUNT}
        assert set(under_store.reads.values()) == {1}


async def test_the_own_peer_stops_under_an_open_handle(tmp_path: Path) -> None:
    """A mount outlives its peer, whatever it had read before."""
    async with cluster_of(tmp_path, origin()) as cluster, cluster.client("a") as client:
        # The store is closed with the peer: in one process, they share it.
        client.here.close()
        with opened(client, (await client.open(PATH)).file) as handle:
            assert await read(handle, 0, 10) == DATA[:10]
            await cluster.stop("a")
            assert await read_all(handle) == DATA


async def test_an_owner_is_down(tmp_path: Path) -> None:
    under_store = origin()
    async with cluster_of(tmp_path, under_store) as cluster:
        assert "b" in primaries(cluster.peers["a"], version(under_store))
        await cluster.stop("b")
        for name in ("a", "c"):  # as ones that run late: nobody is asked in its stead too soon
            cluster.peers[name].neighbors.hedging = Hedging(lambda: 1.0)
        async with cluster.client("a") as a, cluster.client("c") as c:
            assert await asyncio.gather(read_path(a), read_path(c)) == [DATA, DATA]
        # By then the others may have agreed that it is gone, and nobody asked it.
        neighbors = cluster.peers["a"].neighbors
        b = neighbors.view.find("b")
        assert neighbors.is_broken("b") or b is None or b.state is not State.ACTIVE
        # The successor fills in its place: still nothing leaves the under-store twice.
        assert set(under_store.reads.values()) == {1}


async def test_an_owner_stops_while_it_is_read_from(tmp_path: Path) -> None:
    under_store = origin()
    async with cluster_of(tmp_path, under_store) as cluster, cluster.client("a") as client:
        under_store.gate.clear()
        reading = asyncio.create_task(read_path(client))
        await until(lambda: bool(under_store.reads))
        stopping = asyncio.create_task(cluster.stop("b"))
        await asyncio.sleep(0.05)
        under_store.gate.set()
        assert await reading == DATA
        await stopping


async def test_all_peers_are_down(tmp_path: Path) -> None:
    under_store = origin()
    async with cluster_of(tmp_path, under_store) as cluster:
        for name in NAMES:
            await cluster.stop(name)
        async with cluster.client("a") as client:
            assert await read_path(client) == DATA
            assert total(client.metrics.read_blocks, source=UNDER_STORE) == BLOCK_COUNT
            entries = [e.name async for page in client.scan("models") for e in page.entries]
            assert entries == ["weights.bin"]
            with pytest.raises(NotFound):
                await client.open("models/nothing")
        assert set(under_store.reads.values()) == {1}


async def test_all_are_down_and_the_under_store_too(tmp_path: Path) -> None:
    """The one case where a reader gets an error; and it gets one, it does not hang."""
    under_store = origin()
    async with cluster_of(tmp_path, under_store) as cluster:
        for name in NAMES:
            await cluster.stop(name)
        under_store.go_away()
        async with cluster.client("a") as client, asyncio.timeout(30):
            with pytest.raises(UnderStoreUnavailable):
                await client.open(PATH)
            with opened(client, version(under_store)) as handle:
                with pytest.raises(UnderStoreUnavailable):
                    await read(handle, 0, 10)
                under_store.come_back()
                assert await read(handle, 0, 10) == DATA[:10]


async def test_a_peer_that_came_back_serves_what_it_had(tmp_path: Path) -> None:
    under_store = origin()
    async with cluster_of(tmp_path, under_store) as cluster:
        file = version(under_store)
        owned = [i for i, name in enumerate(primaries(cluster.peers["c"], file)) if name == "b"]
        assert owned
        async with cluster.client("a") as client:
            assert await read_path(client) == DATA
        await cluster.stop("b")
        neighbors = cluster.peers["c"].neighbors
        assert not (await neighbors.describe("b")).is_up
        assert neighbors.is_broken("b")
        await cluster.start("b")
        await until(lambda: not neighbors.is_broken("b"))
        async with cluster.client("c") as client:
            assert await read_path(client) == DATA
        assert set(under_store.reads.values()) == {1}
        b = cluster.peers["b"].metrics
        assert total(b.fills) == 0
        await until(lambda: total(b.served_blocks) == len(owned))


async def test_blocks_of_a_dead_owner_come_from_who_has_a_copy(tmp_path: Path) -> None:
    """An owner dies right after a model was loaded, and the next host loads it."""
    under_store = origin()
    async with cluster_of(tmp_path, under_store) as cluster:
        async with cluster.client("a") as client:
            assert await read_path(client) == DATA
        await cluster.stop("b")
        async with cluster.client("c") as client:
            assert await read_path(client) == DATA
        assert set(under_store.reads.values()) == {1}


async def test_the_under_store_is_away_and_all_is_cached(tmp_path: Path) -> None:
    under_store = origin()
    async with cluster_of(tmp_path, under_store, max_age_s=0.0) as cluster:
        async with cluster.client("a") as client:
            assert await read_path(client) == DATA
        async with cluster.client("b") as client:
            await client.stat(PATH)
            under_store.go_away()
            assert (await client.stat(PATH)).is_stale
            assert await read_path(client) == DATA
            with pytest.raises(UnderStoreUnavailable):
                await client.stat("models/other")


# Files that change


async def test_a_changed_file_is_stale_until_it_is_opened_again(tmp_path: Path) -> None:
    under_store = origin()
    async with cluster_of(tmp_path, under_store) as cluster, cluster.client("a") as client:
        old = await client.open(PATH)
        assert await read(old, 0, 10) == DATA[:10]
        new_data = DATA[::-1]
        under_store.write(PATH, new_data)
        with pytest.raises(Stale):
            await read(old, 6 * MIB, 10)
        assert await read(old, 20, 10) == DATA[20:30]  # what was read is still of one version
        old.close()
        assert await read_path(client) == new_data


async def test_a_removed_file_is_stale_and_then_gone(tmp_path: Path) -> None:
    under_store = origin()
    async with cluster_of(tmp_path, under_store) as cluster, cluster.client("a") as client:
        with opened(client, (await client.open(PATH)).file) as handle:
            under_store.remove(PATH)
            with pytest.raises(Stale):
                await read(handle, 0, 10)
        with pytest.raises(NotFound):
            await client.open(PATH)


async def test_other_hosts_see_the_new_version_once_max_age_is_over(tmp_path: Path) -> None:
    under_store = origin()
    async with (
        cluster_of(tmp_path, under_store, max_age_s=0.0) as cluster,
        cluster.client("a") as a,
        cluster.client("b") as b,
    ):
        assert await asyncio.gather(read_path(a), read_path(b)) == [DATA, DATA]
        under_store.write(PATH, DATA[::-1])
        got = await asyncio.gather(read_path(a), read_path(b))
        assert got == [DATA[::-1], DATA[::-1]]


# What peers say of themselves


async def test_a_peer_says_what_it_holds_and_where_blocks_are(tmp_path: Path) -> None:
    under_store = origin()
    async with cluster_of(tmp_path, under_store) as cluster:
        file = version(under_store)
        async with cluster.client("a") as client:
            assert await read_path(client) == DATA
        everything = frozenset(range(BLOCK_COUNT))
        await until(lambda: cluster.peers["a"].store.block_count == BLOCK_COUNT)
        owners = primaries(cluster.peers["a"], file)
        channels = Channels()
        held = {}
        for member in cluster.view.members:
            reply = await channels.call(member.address, HELD, HeldRequest(file))
            held[member.name] = reply.indexes
        location = await channels.call(f"unix:{tmp_path / 'a.sock'}", LOCATE, LocateRequest(PATH))
        await channels.aclose()
        assert held["a"] == everything
        for name in ("b", "c"):
            assert held[name] == {index for index, owner in enumerate(owners) if owner == name}
        assert location.found.file == file
        assert [owners[0] for owners in location.owners] == owners
        assert (location.held, location.unreachable) == (held, ())


async def test_the_overview_knows_who_is_down(tmp_path: Path) -> None:
    async with cluster_of(tmp_path, origin()) as cluster:
        async with cluster.client("a") as client:
            assert await read_path(client) == DATA
        await cluster.stop("c")
        channels = Channels()
        here = f"unix:{tmp_path / 'a.sock'}"
        overview = await channels.call(here, OVERVIEW, Nothing())
        location = await channels.call(here, LOCATE, LocateRequest(PATH))
        one = await channels.call(cluster.view.member("b").address, DESCRIBE, Nothing())
        with pytest.raises(PeerUnavailable):
            await channels.call(cluster.view.member("c").address, DESCRIBE, Nothing())
        await channels.aclose()
        assert overview.cluster == "test"
        assert {peer.name: peer.is_up for peer in overview.peers} == {
            "a": True,
            "b": True,
            "c": False,
        }
        a, b, c = overview.peers
        assert (one.name, one.fills, one.capacity_bytes) == ("b", b.fills, b.capacity_bytes)
        assert a.block_count == BLOCK_COUNT
        assert a.used_bytes == len(DATA)
        assert sum(a.read_blocks.values()) == BLOCK_COUNT
        assert 0 < a.ring_share < 1
        assert c.fills == c.used_bytes == 0
        assert location.unreachable == ("c",)


async def test_nobody_fetches_over_the_network(tmp_path: Path) -> None:
    """Only this host's own processes may have a peer bring blocks to it."""
    async with cluster_of(tmp_path, origin()) as cluster:
        channels = Channels()
        with pytest.raises(PeerUnavailable, match="unimplemented"):
            await channels.call(cluster.view.member("a").address, LOCATE, LocateRequest(PATH))
        await channels.aclose()


# Peers that can't run like this


def settings_of(root: Path, name: str = "a") -> PeerSettings:
    address = f"127.0.0.1:{free_port()}"
    return PeerSettings(
        cluster="test",
        me=Member(name, address),
        membership=StaticSettings(cluster="test", listed=(Member(name, address),)),
        listen=address,
        socket=root / f"{name}.sock",
        store=StoreSettings(directory=root / name, capacity_bytes=MIB, free_space_ratio=0.0),
        mounts={"/": UnderStoreSettings(url=SOURCE)},
        under_stores={SOURCE: origin()},
    )


async def start_and_stop(settings: PeerSettings) -> None:
    async with running_peer(settings):
        pass


def snapshot(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes() if path.is_file() else b""
        for path in sorted(root.rglob("*"))
        if path.name not in ("lock", "lock.mdb") and not path.is_socket()
    }


async def test_an_address_in_use_is_unusable(tmp_path: Path) -> None:
    settings, taken = settings_of(tmp_path), settings_of(tmp_path, "taken")
    async with running_peer(taken):
        with pytest.raises(Unusable, match=rf"{taken.listen}.* in use"):
            await start_and_stop(replace(settings, listen=taken.listen))
    await start_and_stop(replace(settings, listen=taken.listen))


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="needs IPv6")
async def test_an_ipv6_address_is_as_good(tmp_path: Path) -> None:
    address = f"[::1]:{free_port()}"
    async with running_peer(replace(settings_of(tmp_path), listen=address)):
        channels = Channels()
        assert (await channels.call(address, DESCRIBE, Nothing())).is_up
        await channels.aclose()


async def test_two_peers_cannot_have_one_data_directory(tmp_path: Path) -> None:
    settings = settings_of(tmp_path)
    async with running_peer(settings):
        second = replace(
            settings, listen=f"127.0.0.1:{free_port()}", socket=tmp_path / "other.sock"
        )
        before = snapshot(tmp_path)
        with pytest.raises(Unusable, match="in use by another peer"):
            await start_and_stop(second)
        assert snapshot(tmp_path) == before


@pytest.mark.parametrize("starts_before", [0, 1])
async def test_an_address_in_use_changes_nothing(tmp_path: Path, starts_before: int) -> None:
    settings, taken = settings_of(tmp_path), settings_of(tmp_path, "taken")
    for _ in range(starts_before):
        await start_and_stop(settings)
    async with running_peer(taken):
        before = snapshot(tmp_path)
        with pytest.raises(Unusable, match=rf"{taken.listen}.* in use"):
            await start_and_stop(replace(settings, listen=taken.listen))
        assert snapshot(tmp_path) == before


async def test_a_metrics_address_in_use_is_unusable(tmp_path: Path) -> None:
    address = f"127.0.0.1:{free_port()}"
    async with running_peer(replace(settings_of(tmp_path), metrics_address=address)):
        with pytest.raises(Unusable, match=rf"peer\.metrics {address}"):
            await start_and_stop(replace(settings_of(tmp_path, "b"), metrics_address=address))


async def test_a_bulk_port_in_use_is_unusable_and_changes_nothing(tmp_path: Path) -> None:
    port = free_port()
    async with running_peer(replace(settings_of(tmp_path), bulk_port=port)):
        before = snapshot(tmp_path)
        with pytest.raises(Unusable, match=rf"peer\.bulk 127\.0\.0\.1:{port}"):
            await start_and_stop(replace(settings_of(tmp_path, "b"), bulk_port=port))
        assert snapshot(tmp_path) == before


async def test_members_say_where_their_bulk_channels_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With 32 hosts that begin to read at once a thousand questions were a part of what hurt."""
    over_grpc: list[str] = []

    async def streamed(self: Channels, address: str, *_: object) -> AsyncIterator[Piece]:
        over_grpc.append(address)
        yield Piece(0, 0, b"")

    async def asked(self: Channels, address: str) -> BulkReply:
        over_grpc.append(address)
        raise PeerUnavailable(address, "was asked")

    monkeypatch.setattr(Channels, "_streamed", streamed)
    monkeypatch.setattr(Channels, "ask_bulk", asked)
    under_store = origin()
    async with running_cluster(tmp_path, ["a", "b"], under_store) as cluster:
        for name, other in ("ab", "ba"):
            neighbors = cluster.peers[name].neighbors
            await until(lambda: neighbors.view.member(other).bulk_port > 0)  # noqa: B023 (at once)
            async with cluster.client(name) as client:
                assert await read_path(client) == DATA
        assert set(primaries(cluster.peers["a"], version(under_store))) == {"a", "b"}
    assert not over_grpc


async def test_who_has_no_bulk_channel_says_so(tmp_path: Path) -> None:
    for port in (0, None):
        settings = replace(settings_of(tmp_path), bulk_port=port)
        async with running_peer(settings):
            channels = Channels()
            reply = await channels.call(settings.listen, BULK, Nothing())
            await channels.aclose()
        assert bool(reply.port) == bool(reply.token) == (port is not None)


@pytest.mark.parametrize(
    ("name", "words"), [("missing", "does not exist"), ("file", "is a file; name a directory")]
)
async def test_an_under_store_that_is_no_directory_is_unusable(
    tmp_path: Path, name: str, words: str
) -> None:
    (tmp_path / "file").write_bytes(b"")
    before = snapshot(tmp_path)
    mounts = {"/": UnderStoreSettings(url=(tmp_path / name).as_uri())}
    with pytest.raises(Unusable, match=words):
        await start_and_stop(replace(settings_of(tmp_path), mounts=mounts, under_stores={}))
    assert snapshot(tmp_path) == before


async def test_an_under_store_that_is_away_stops_only_those_who_check(tmp_path: Path) -> None:
    under_store = origin()
    under_store.go_away()
    settings = replace(settings_of(tmp_path), under_stores={SOURCE: under_store})
    with pytest.raises(Unusable, match="can't be used"):
        await start_and_stop(settings)
    await start_and_stop(replace(settings, check_under_stores=False))


async def test_readers_that_hang_up_leave_no_place_taken(tmp_path: Path) -> None:
    """More of them than may be sent to at once; the next reader still gets its block."""
    under_store = origin()
    async with running_cluster(tmp_path, ["a"], under_store) as cluster:
        address = cluster.view.member("a").address
        file = under_store.version(next(iter(under_store.files)), block_bytes=MIB)
        under_store.gate.clear()
        async with grpc.aio.insecure_channel(address) as channel:
            serve = channel.unary_stream(SERVE.path, request_serializer=SERVE.encode_request)
            calls = [serve(BlockRequest(file, 0)) for _ in range(SENDS_MAX + 8)]
            for call in calls[:SENDS_MAX]:
                await call.read()  # a heartbeat: it has its place
            for call in calls:
                call.cancel()
        under_store.gate.set()
        channels = Channels()
        async with asyncio.timeout(10):
            pieces = [p async for p in channels.pieces(address, SERVE, BlockRequest(file, 0))]
        await channels.aclose()
        assert sum(len(piece.data) for piece in pieces) == MIB


async def test_its_sockets_are_its_users_alone_and_files_have_the_mask_of_the_process(
    tmp_path: Path,
) -> None:
    made: list[int] = []

    async def make_files() -> None:
        """A mask that is changed while something is waited for is everybody's."""
        while True:
            path = tmp_path / f"file-{len(made)}"
            path.touch()
            made.append(path.stat().st_mode & 0o777)
            await asyncio.sleep(0)

    making = asyncio.create_task(make_files(), name="make files")
    async with running_cluster(tmp_path, ["a"], MemoryUnderStore()):
        for name in ("a.sock", "a.sock.mount"):
            assert (tmp_path / name).stat().st_mode & 0o777 == 0o600
    making.cancel()
    assert len(made) > 1
    assert set(made) == {made[0]}
    assert made[0] != 0o600
