"""A running peer: what it is built from, and what is closed when."""

from __future__ import annotations

import asyncio
import socket as socketlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from random import Random
from uuid import UUID

import structlog
from prometheus_client import start_http_server

from mesh.blocks import GIB, MIB
from mesh.clock import monotonic_s
from mesh.errors import MeshError, NotFound, Unusable
from mesh.membership.membership import Membership
from mesh.membership.open import MembershipSettings, StaticSettings, membership_of
from mesh.membership.view import VIEW_FILE, Member, peer_id, view_of
from mesh.metrics import Metrics
from mesh.peer.catalog import Catalog
from mesh.peer.distribution import Distribution
from mesh.peer.gather import Gatherer
from mesh.peer.keeper import Keeper
from mesh.peer.neighbors import RingNeighbors
from mesh.peer.presence import Presence
from mesh.peer.reader import BlockReader
from mesh.peer.repair import Repair
from mesh.peer.report import Reporter
from mesh.peer.scribe import Scribe
from mesh.peer.server import PeerServer, Servicers
from mesh.peer.shards import Shards
from mesh.peer.swarms import Swarms
from mesh.peer.tidying import tidy
from mesh.store.store import BlockStore, StoreSettings, open_store
from mesh.understore.open import open_under_store
from mesh.understore.table import MountTable
from mesh.understore.understore import UnderStore, UnderStoreSettings
from mesh.wire.bulk_server import bound
from mesh.wire.channels import Channels, TlsSettings
from mesh.wire.local import mount_socket
from mesh.wire.messages import BulkReply
from mesh.wire.passport import Passport
from mesh.wire.staged import PULL
from mesh.wire.swarm import NEWS, TAKE

log = structlog.get_logger()

BEGUN_AGAIN_S = 1.0

CHECK_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerSettings:
    """What one peer is told."""

    cluster: str
    me: Member
    """How the others are to know this peer; its id and run come from its store."""

    membership: MembershipSettings
    listen: str
    """host:port."""

    socket: Path
    """For the mounts of this host."""

    store: StoreSettings
    mounts: Mapping[str, UnderStoreSettings]
    """By path in the mesh."""

    metrics_address: str = ""
    """host:port of /metrics; "" for none."""

    staged_bytes_max: int = 64 * GIB
    """What may wait here for the under-store; more is written through."""

    upload_bytes_per_s: float = 0.0
    """How fast what waits goes into the under-store; 0: as fast as that takes it."""

    is_swarming: bool = True
    """Whether large files are read with the help of other readers."""

    bulk_port: int | None = 0
    """Where neighbors get blocks without gRPC, 0 for any free port; None for nowhere. Where
    there is TLS, nowhere."""

    egress_bytes_per_s: float = 0.0
    """How fast this peer gives others what they read together; 0: as fast as it can."""

    memory_bytes: int = 512 * MIB
    """What the daemon may use; a quarter of it for blocks in flight."""

    check_under_stores: bool = True
    key_fingerprint: str = ""
    """Of the cluster's key (`wire.passport`)."""

    slow_start_s: float = 30.0
    flush_s: float = 10.0
    """For so long a peer that is told to stop uploads what it has staged."""

    drain_s: float = 0.5
    """Between the word that this peer leaves and the moment when it stops to serve; gossip
    brings news to 32 peers in so long (fanout.md 6.3)."""

    repair_bytes_per_s: int = 64 * MIB
    tls: TlsSettings | None = None
    under_stores: Mapping[str, UnderStore] = field(default_factory=dict)
    """By URL: used instead of opening them, by tests."""


@dataclass(frozen=True, slots=True)
class Peer:
    """The parts of a running peer that others may call."""

    reader: BlockReader
    catalog: Catalog
    store: BlockStore
    neighbors: RingNeighbors
    membership: Membership
    metrics: Metrics
    keeper: Keeper
    scribe: Scribe


@asynccontextmanager
async def running_peer(settings: PeerSettings) -> AsyncIterator[Peer]:
    """Run a peer for as long as the caller stays inside the block.

    Raises `Unusable`, before anything is changed, when it can't run like this.
    Leaving it unwinds in the reverse order of opening: servers first, then every
    task, then the store that they wrote to, and the mark of a clean stop last.
    """
    metrics = Metrics()
    async with AsyncExitStack() as stack:
        stores = dict(settings.under_stores)
        for mount in settings.mounts.values():
            if mount.url not in stores:
                stores[mount.url] = open_under_store(mount, metrics)
                stack.push_async_callback(stores[mount.url].aclose)
        for under_store in stores.values():
            with suppress(MeshError):
                await under_store.prepare()
        _check_free("peer.listen", settings.listen)
        _check_free("peer.metrics", settings.metrics_address)
        if settings.bulk_port:
            _check_free("peer.bulk", f"{settings.listen.rpartition(':')[0]}:{settings.bulk_port}")
        if settings.check_under_stores:
            await _check(settings.mounts, stores)
        store = await stack.enter_async_context(
            open_store(
                settings.store,
                cluster=settings.cluster,
                peer_id=_given_id(settings),
                metrics=metrics,
            )
        )
        yield await _running(settings, stores, store, metrics, stack)


async def _running(
    settings: PeerSettings,
    stores: Mapping[str, UnderStore],
    store: BlockStore,
    metrics: Metrics,
    stack: AsyncExitStack,
) -> Peer:
    """Build what works on the store, open the doors, and become a member of the mesh."""
    bulk = _bulk_socket(settings, stack)
    me = _me(settings, store, bulk)
    passport = Passport(settings.cluster, settings.key_fingerprint, lambda: neighbors.view.epoch)
    control = Channels(settings.tls, passport=passport)
    stack.push_async_callback(control.aclose)
    channels = Channels(
        settings.tls,
        passport=passport,
        on_other_epoch=lambda address, epoch: presence.note_epoch(address, epoch),
        control=control,
        is_bulk=settings.bulk_port is not None,
        bulk_of=lambda address: _bulk_of(neighbors.view.at(address), passport),
    )
    stack.push_async_callback(channels.aclose)
    tasks = await stack.enter_async_context(_tasks())
    neighbors = RingNeighbors(view_of([me]), me.name, channels, metrics=metrics, control=control)
    stack.push_async_callback(neighbors.aclose)
    table = MountTable(settings.mounts, stores)
    reader = BlockReader(
        store, neighbors, table, tasks, metrics, memory_bytes=settings.memory_bytes // 4
    )
    shards = Shards(neighbors, tasks, metrics)
    catalog = Catalog(table, store.entries, shards, tasks, metrics)
    directory = settings.store.directory
    scribe = Scribe(
        *(store, neighbors, reader, table, catalog, shards, tasks, metrics),
        directory=directory,
        staged_bytes_max=settings.staged_bytes_max,
        upload_bytes_per_s=settings.upload_bytes_per_s,
    )
    await scribe.load()
    repair = _repair(settings, store, neighbors, reader, metrics)
    reporter = Reporter(settings.cluster, store, neighbors, metrics)
    keeper = Keeper(store, reader, neighbors, table, catalog, tasks, metrics, directory=directory)
    await keeper.load()
    swarms = _swarms(settings, neighbors, reader, reporter, tasks)
    membership: Membership = membership_of(settings.membership, me, neighbors.hello)
    moved = (repair.due, swarms.ring_changed)
    presence = Presence(membership, neighbors, me, view_path=directory / VIEW_FILE, moved=moved)
    distribution = Distribution(catalog, neighbors, swarms)
    server = PeerServer(
        Servicers(reader, Gatherer(store, neighbors, reader, tasks, metrics), catalog, reporter),
        passport,
        [*keeper.handlers(), *scribe.handlers(), *swarms.handlers(), *distribution.handlers()],
        scribe.for_mounts(),
        [(PULL, scribe.stager.pull), (TAKE, swarms.take)],
        [(NEWS, swarms.news)],
        bulk_token=passport.bulk_token(me.id, me.run),
    )
    stack.push_async_callback(membership.aclose)
    stack.push_async_callback(server.aclose)
    await _listen(server, settings, bulk)
    _export(settings.metrics_address, metrics, stack)
    _begin_works(store, neighbors, repair, shards, scribe, tasks)
    stack.push_async_callback(membership.leave)
    await _enter(settings, membership, presence, store, tasks)
    stack.push_async_callback(presence.drain, for_s=settings.drain_s)
    stack.push_async_callback(scribe.uploads.drain, for_s=settings.flush_s)
    await scribe.recall()
    keeper.start()
    await server.ready()
    return Peer(reader, catalog, store, neighbors, membership, metrics, keeper, scribe)


def _repair(
    settings: PeerSettings,
    store: BlockStore,
    neighbors: RingNeighbors,
    reader: BlockReader,
    metrics: Metrics,
) -> Repair:
    return Repair(
        *(store, neighbors, reader, metrics),
        bytes_per_s=settings.repair_bytes_per_s,
        capacity_bytes=settings.store.capacity_bytes,
    )


def _swarms(
    settings: PeerSettings,
    neighbors: RingNeighbors,
    reader: BlockReader,
    reporter: Reporter,
    tasks: asyncio.TaskGroup,
) -> Swarms:
    reader.swarms = swarms = Swarms(
        *(neighbors, reader, tasks),
        held=reporter.held,
        clock=monotonic_s,
        random=Random(),  # noqa: S311 (whom to ask, no secret)
        egress_bytes_per_s=settings.egress_bytes_per_s,
        is_reading=settings.is_swarming,
    )
    return swarms


def _begin_works(
    store: BlockStore,
    neighbors: RingNeighbors,
    repair: Repair,
    shards: Shards,
    scribe: Scribe,
    tasks: asyncio.TaskGroup,
) -> None:
    """Begin what a peer does for as long as it runs."""
    works: dict[str, Callable[[], Awaitable[None]]] = {
        "keep room": store.keep_room,
        "probe": neighbors.probe,
        "watch lag": neighbors.watch_lag,
        "repair": repair.run,
        "tidy": partial(tidy, store.entries, shards),
        "sweep": scribe.writer.sweep,
        "uploads": scribe.uploads.run,
        "recall": scribe.recall_all,
        "doubts": scribe.uploads.doubts.run,
    }
    for name, work in works.items():
        tasks.create_task(_steadily(name, work), name=name)


async def _steadily(name: str, work: Callable[[], Awaitable[None]]) -> None:
    """Do what is done for ever, though a disk that is full ends it now and then."""
    while True:
        try:
            return await work()
        except (MeshError, OSError) as error:
            log.warning("begun again", work=name, reason=str(error))
        await asyncio.sleep(BEGUN_AGAIN_S)


async def _enter(
    settings: PeerSettings,
    membership: Membership,
    presence: Presence,
    store: BlockStore,
    tasks: asyncio.TaskGroup,
) -> None:
    """Become a member: nobody else's identity, nobody else's name, and not all at once."""
    await membership.start()
    await presence.check()
    is_new = store.block_count == 0 and store.run == 1
    slow_start_s = settings.slow_start_s
    if not (slow_start_s and is_new and await presence.is_newcomer()):
        slow_start_s = 0.0
    await presence.enter(slowly=slow_start_s > 0)
    await presence.look()
    tasks.create_task(presence.follow(), name="follow the view")
    tasks.create_task(presence.heal(), name="heal views")
    if slow_start_s > 0:
        tasks.create_task(presence.warm_up(slow_start_s), name="slow start")


def _given_id(settings: PeerSettings) -> UUID | None:
    """Return the identity that a list gives this peer; None where its store has it."""
    if isinstance(settings.membership, StaticSettings):
        return peer_id(settings.cluster, settings.me.name)
    return None


class _Over(Exception):
    """Ends the tasks that would run for ever."""


@asynccontextmanager
async def _tasks() -> AsyncIterator[asyncio.TaskGroup]:
    """Own the peer's tasks; when the peer stops, those still running are cancelled."""
    failure: Exception | None = None
    try:
        async with asyncio.TaskGroup() as group:
            try:
                yield group
            except Exception as error:  # raised below, without the group around it
                failure = error
            raise _Over
    except* _Over:
        pass
    if failure is not None:
        raise failure


def _check_free(key: str, address: str) -> None:
    """Say that an address can't be had while nothing has been changed yet."""
    if not address:
        return
    host, _, port = address.rpartition(":")
    family = socketlib.AF_INET6 if ":" in host else socketlib.AF_INET
    try:
        with socketlib.create_server((host.strip("[]"), int(port)), family=family):
            return
    except OSError as error:
        raise Unusable(
            f"{key} {address}: {error.strerror}; stop who uses it or name another"
        ) from error


async def _check(
    mounts: Mapping[str, UnderStoreSettings], stores: Mapping[str, UnderStore]
) -> None:
    for path, mount in mounts.items():
        where = f'mounts."{path}".url: {mount.url}'
        try:
            async with asyncio.timeout(CHECK_TIMEOUT_S):
                found = await stores[mount.url].stat("")
        except NotFound as error:
            raise Unusable(f"{where} does not exist; make it or mend the URL") from error
        except MeshError as error:
            raise Unusable(
                f"{where} can't be used: {error}; mend the URL, the endpoint or the credentials, "
                "or set peer.check_under_stores = false"
            ) from error
        except TimeoutError as error:
            raise Unusable(
                f"{where} did not answer in {CHECK_TIMEOUT_S:g} s; mend the URL or the network, "
                "or set peer.check_under_stores = false"
            ) from error
        if not found.is_directory:
            raise Unusable(f"{where} is a file; name a directory")


def _me(settings: PeerSettings, store: BlockStore, bulk: socketlib.socket | None) -> Member:
    """Return how the others are to know this run of this peer."""
    port = bulk.getsockname()[1] if bulk else 0
    return replace(settings.me, id=store.peer_id, run=store.run, bulk_port=port)


def _bulk_of(member: Member | None, passport: Passport) -> BulkReply | None:
    """Return where the bulk channel of a member is; None if it has to be asked."""
    if member is None or not member.bulk_port:
        return None
    return BulkReply(member.bulk_port, passport.bulk_token(member.id, member.run))


def _bulk_socket(settings: PeerSettings, stack: AsyncExitStack) -> socketlib.socket | None:
    """Return what has the port of the bulk channel, which the others are told of; None where
    there is to be none."""
    if settings.bulk_port is None or settings.tls is not None:
        return None
    try:
        socket = bound(settings.listen.rpartition(":")[0].strip("[]"), settings.bulk_port)
    except OSError as error:
        raise _no_bulk(settings, error) from error
    return stack.enter_context(socket)


def _no_bulk(settings: PeerSettings, error: OSError) -> Unusable:
    return Unusable(f"peer.bulk {settings.bulk_port}: {error.strerror}; name another port, or any")


async def _listen(
    server: PeerServer, settings: PeerSettings, bulk: socketlib.socket | None
) -> None:
    credentials = settings.tls.server_credentials() if settings.tls else None
    try:
        await server.listen(settings.listen, credentials)
    except OSError as error:
        raise Unusable(
            f"peer.listen {settings.listen}: the address is in use or not this host's; "
            "stop who uses it or name another"
        ) from error
    if bulk is not None:
        try:
            await server.listen_bulk(bulk)
        except OSError as error:
            raise _no_bulk(settings, error) from error
    # The lock on the data directory says that whoever left a socket there is gone.
    for socket in (settings.socket, Path(mount_socket(str(settings.socket)))):
        with suppress(FileNotFoundError):
            socket.unlink()
    settings.socket.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    await server.listen_here(str(settings.socket))


def _export(address: str, metrics: Metrics, stack: AsyncExitStack) -> None:
    if not address:
        return
    host, _, port = address.rpartition(":")
    try:
        web, thread = start_http_server(int(port), host.strip("[]"), metrics.registry())
    except OSError as error:
        raise Unusable(
            f"peer.metrics {address}: {error.strerror}; stop who uses it or name another"
        ) from error

    def close() -> None:
        web.shutdown()
        web.server_close()
        thread.join()

    stack.callback(close)
