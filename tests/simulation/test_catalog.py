"""Whole catalogs that change behind each other's backs: nothing older than `max_age`, ever.

Three peers with real tables, a clock that jumps, links that break. After every step each
answer is held against the history of the under-store: what was said must have been true at
some moment that the contract allows. A failure prints its seed.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import pytest

from mesh.errors import MeshError, NotFound, PeerUnavailable
from mesh.membership.view import Member, view_of
from mesh.metrics import Metrics
from mesh.peer import listings
from mesh.peer.catalog import Catalog
from mesh.peer.neighbors import RingNeighbors
from mesh.peer.shards import Shards
from mesh.store.entries import NEGATIVE_S, Entries
from mesh.store.entry_store import EntryStore
from mesh.store.index import Writer, open_index
from mesh.testing.clock import ManualClock
from mesh.testing.memory import SOURCE, MemoryUnderStore
from mesh.understore.table import MountTable
from mesh.understore.understore import UnderStoreSettings
from mesh.wire.catalog import INVALIDATE, KEEP, LIST, LOOKUP
from mesh.wire.codec import HELLO
from mesh.wire.messages import HelloReply, Nothing

NAMES = ("a", "b", "c")
DIRECTORIES = ("x", "y", "x/z")
FILES = ("1", "2", "3", "4")
MAX_AGE_S = 10.0
STEPS = 200
SLACK_S = 0.002
"""Times in the tables are whole milliseconds."""


@dataclass
class History:
    """What each path was, and since when; None: nothing."""

    clock: ManualClock
    store: MemoryUnderStore
    known: dict[str, list[tuple[float, int | None]]] = field(
        default_factory=lambda: defaultdict(lambda: [(0.0, None)])
    )

    def write(self, path: str, size: int) -> None:
        self.store.write(path, bytes(size))
        self.known[path].append((self.clock(), size))

    def remove(self, path: str) -> None:
        self.store.remove(path)
        self.known[path].append((self.clock(), None))

    def was(self, path: str, within_s: float) -> set[int | None]:
        """Return what a path has been at some moment of the last *within_s*."""
        since_s = self.clock() - within_s - SLACK_S
        events = self.known[path]
        began = max(n for n, (at_s, _) in enumerate(events) if at_s <= since_s)
        return {size for _, size in events[began:]}


class Loopback:
    """Calls of one peer to the others, in the bytes of the wire, over links that break."""

    def __init__(self, me: str, world: World) -> None:
        self._me = me
        self._world = world

    async def call(self, address: str, method: Any, request: Any, *, timeout_s: float = 1.0) -> Any:
        began_s = self._world.clock()
        await asyncio.sleep(0)
        if self._world.clock() - began_s > timeout_s:
            raise PeerUnavailable(address, "no answer in time")
        peer = address.partition(":")[0]
        if (self._me, peer) in self._world.broken or peer not in self._world.catalogs:
            raise PeerUnavailable(peer, "the link is broken")
        if method is HELLO:  # of who is slow, and there
            return HelloReply(b"")
        catalog = self._world.catalogs[peer]
        answers = {
            LOOKUP.name: catalog.lookup,
            LIST.name: catalog.list_directory,
            INVALIDATE.name: catalog.invalidate,
            KEEP.name: catalog.keep,
        }
        if method.name not in answers:
            raise PeerUnavailable(peer, f"no {method.name} here")
        reply = await answers[method.name](method.decode_request(method.encode_request(request)))
        if (self._me, peer) in self._world.broken:
            raise PeerUnavailable(peer, "the link broke")
        return method.decode_reply(method.encode_reply(Nothing() if reply is None else reply))

    def pieces(self, address: str, *_: object) -> Any:
        raise PeerUnavailable(address, "no blocks here")


class World:
    def __init__(self, root: Path, *, links_break: bool) -> None:
        self.root = root
        self._links_break = links_break
        self.clock = ManualClock()
        self.store = MemoryUnderStore()
        self.history = History(self.clock, self.store)
        self.catalogs: dict[str, Catalog] = {}
        self.broken: set[tuple[str, str]] = set()
        self._broke_s = 0.0
        self._view = view_of(Member(name, f"{name}:1", id=name) for name in NAMES)
        settings = UnderStoreSettings(url=SOURCE, max_age_s=MAX_AGE_S)
        self._table = MountTable({"/": settings}, {SOURCE: self.store})

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            stores = {name: stack.enter_context(self._tables_of(name)) for name in NAMES}
            # One group for all: a peer that ends would leave the others' calls in the air.
            tasks = await stack.enter_async_context(asyncio.TaskGroup())
            for name, entries in stores.items():
                neighbors = RingNeighbors(self._view, name, Loopback(name, self), clock=self.clock)
                metrics = Metrics()
                shards = Shards(neighbors, tasks, metrics)
                self.catalogs[name] = Catalog(
                    self._table, entries, shards, tasks, metrics, clock=self.clock
                )
            yield

    @contextmanager
    def _tables_of(self, name: str) -> Iterator[EntryStore]:
        (self.root / name).mkdir(parents=True)
        index = open_index(self.root / name)
        writer = Writer(index.env)
        entries = EntryStore(Entries(index.env, writable=True), writer, self.clock)
        try:
            yield entries
        finally:
            entries.flush()
            writer.close()
            index.env.close()

    async def step(self, draw: Random) -> None:
        """Do one thing, and hold what is said against what was true."""
        kind = draw.choices(
            ("write", "remove", "stat", "list", "refresh", "wait", "link"),
            weights=(4, 2, 10, 4, 2, 3, int(self._links_break)),
        )[0]
        path = f"{draw.choice(DIRECTORIES)}/{draw.choice(FILES)}"
        peer = draw.choice(NAMES)
        if kind == "write":
            self.history.write(path, draw.randrange(1, 10**6))
        elif kind == "remove" and path in self.store.files:
            self.history.remove(path)
        elif kind == "stat":
            await self.stat(peer, path)
        elif kind == "list":
            await self.list(peer, draw.choice(DIRECTORIES))
        elif kind == "refresh":
            await self.refresh(peer, path)
        elif kind == "wait":
            self.clock.advance(draw.choice((0.01, 0.3, 2.0, 9.0, 30.0)))
        elif kind == "link":
            link = (draw.choice(NAMES), peer)
            self.broken ^= {link} if link[0] != link[1] else set()
            self._broke_s = self.clock()

    async def size(self, peer: str, path: str, *, refresh: bool = False) -> int | None:
        try:
            reply = await self.catalogs[peer].stat(path, refresh=refresh)
        except NotFound:
            return None
        assert not reply.attributes.is_directory
        return reply.attributes.size_bytes

    async def stat(self, peer: str, path: str) -> None:
        size = await self.size(peer, path)
        within_s = NEGATIVE_S if size is None else MAX_AGE_S
        assert size in self.history.was(path, within_s), f"{peer} says {size} of {path}"

    async def refresh(self, peer: str, path: str) -> None:
        size = await self.size(peer, path, refresh=True)
        assert size in self.history.was(path, 0.0)
        # Then everybody has heard; who could not be told once may not know it until it is old.
        if not self.broken and self.clock() - self._broke_s > MAX_AGE_S:
            for other in NAMES:
                size = await self.size(other, path)
                assert size in self.history.was(path, 0.0), f"{other} was not told of {path}"

    async def list(self, peer: str, directory: str) -> None:
        found: dict[str, int] = {}
        try:
            async for page in self.catalogs[peer].scan(directory):
                found |= {e.name: e.attributes.size_bytes for e in page}
        except NotFound:
            pass
        for name in FILES:
            were = self.history.was(f"{directory}/{name}", MAX_AGE_S)
            assert found.get(name) in were, f"{peer} lists {directory}/{name}: {found.get(name)}"


async def run(root: Path, seed: int) -> int:
    """Run a world; return how many questions reached the under-store."""
    world, draw = World(root, links_break=seed % 2 == 1), Random(seed)
    async with world.running():
        for number in range(STEPS):
            try:
                await world.step(draw)
            except (AssertionError, MeshError) as error:
                raise AssertionError(f"seed {seed}, step {number}: {error}") from error
        world.broken.clear()  # or tasks that try again would be waited for
        await asyncio.sleep(0.02)  # tasks that still tell
    return world.store.stats + world.store.listings


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock of a world does not move while something waits; a pause is for nothing."""
    monkeypatch.setattr(listings, "COPY_AGAIN_S", 0.01)


@pytest.mark.parametrize("seed", range(6))
async def test_nothing_is_older_than_it_may_be(tmp_path: Path, seed: int) -> None:
    assert await run(tmp_path, seed) > 0


@pytest.mark.slow
@pytest.mark.parametrize("first", range(1000, 1040, 10))
async def test_nothing_is_older_than_it_may_be_in_any_of_ten_worlds(
    tmp_path: Path, first: int
) -> None:
    asked = [await run(tmp_path / str(seed), seed) for seed in range(first, first + 10)]
    assert min(asked) > 0
