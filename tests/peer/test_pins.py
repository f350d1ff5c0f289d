"""Pins: the last word on a path, on every peer, through restarts and full disks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.blocks import MIB
from mesh.errors import NotFound
from mesh.peer.peer import Peer
from mesh.peer.pins import Covered, places
from mesh.store.index import FileRecord
from mesh.testing.cluster import Cluster, running_cluster
from mesh.testing.memory import SOURCE, MemoryUnderStore
from mesh.understore.table import MountTable
from mesh.understore.understore import UnderStoreSettings
from mesh.wire.care import JobOrder, JobRequest, Pin, SetPinsRequest

NAMES = ("a", "b", "c")


@asynccontextmanager
async def mesh_of(
    root: Path, *names: str, capacity_bytes: int = 64 * MIB
) -> AsyncIterator[tuple[Cluster, MemoryUnderStore]]:
    under_store = MemoryUnderStore({f"d/{n:02}": Random(n).randbytes(MIB) for n in range(16)})
    running = running_cluster(root, names, under_store, capacity_bytes=capacity_bytes)
    async with running as cluster:
        yield cluster, under_store


async def until(condition: Callable[[], bool], *, within_s: float = 20.0) -> None:
    async with asyncio.timeout(within_s):
        while not condition():  # what is waited for has no event
            await asyncio.sleep(0.01)


async def bring(peer: Peer, under_store: MemoryUnderStore, path: str) -> str:
    return await peer.reader.bring(under_store.version(path, block_bytes=MIB), 0)


def has(peer: Peer, under_store: MemoryUnderStore, path: str) -> bool:
    key = under_store.version(path, block_bytes=MIB).key(0)
    return peer.store.index.block(key) is not None


async def test_a_pin_reaches_all_peers_and_outlives_restarts(tmp_path: Path) -> None:
    async with mesh_of(tmp_path, *NAMES) as (cluster, _):
        await cluster.peers["a"].keeper.pins.set(["/d/00"], is_pinned=True)
        assert all(peer.keeper.pins.over("/d/00") for peer in cluster.peers.values())
        assert cluster.peers["b"].keeper.pins.over("/d/01") is None
        for name in NAMES:
            await cluster.stop(name)
        peer = await cluster.start("c")
        assert peer.keeper.pins.over("/d/00") == "/d/00"
        await peer.keeper.pins.set(["/d/00"], is_pinned=False)
        await cluster.stop("c")
        assert (await cluster.start("c")).keeper.pins.over("/d/00") is None


async def test_who_was_away_learns_what_was_said_meanwhile(tmp_path: Path) -> None:
    """Also that something is not pinned any more: nobody may bring that pin back."""
    async with mesh_of(tmp_path, *NAMES) as (cluster, _):
        await cluster.peers["a"].keeper.pins.set(["/d/00"], is_pinned=True)
        await cluster.stop("c")
        await cluster.peers["a"].keeper.pins.set(["/d/00"], is_pinned=False)
        await cluster.peers["b"].keeper.pins.set(["/d"], is_pinned=True)
        late = await cluster.start("c")
        await until(lambda: late.keeper.pins.over("/d/00") == "/d")
        assert {p.path for p in late.keeper.pins.all().pins if p.is_pinned} == {"/d"}
        assert cluster.peers["a"].keeper.pins.all() == late.keeper.pins.all()


words = st.lists(
    st.builds(Pin, st.sampled_from(["/a", "/b"]), st.integers(0, 3).map(float), st.booleans()),
    max_size=8,
)


@given(said=words, data=st.data())
def test_words_in_any_order_make_the_same_pins(said: list[Pin], data: st.DataObject) -> None:
    shuffled = data.draw(st.permutations(said))

    class Kept:
        """Notes that nobody reads again."""

        async def put(self, values: dict[bytes, bytes | None]) -> None:
            return

    async def after(order: list[Pin]) -> tuple[Pin, ...]:
        from mesh.peer.pins import Pins

        pins = Pins(Kept(), MountTable({}, {}), None)  # type: ignore[arg-type]
        for pin in order:
            await pins.merge([pin])
        return pins.all().pins

    assert asyncio.run(after(said)) == asyncio.run(after(list(shuffled)))


async def test_pinned_blocks_survive_what_evicts_all_others(tmp_path: Path) -> None:
    async with mesh_of(tmp_path, "a", capacity_bytes=6 * MIB) as (cluster, under_store):
        peer = cluster.peers["a"]
        await peer.keeper.pins.set(["/d/00", "/d/01"], is_pinned=True)
        for path in sorted(under_store.files):
            await bring(peer, under_store, path)
            await peer.store.evict()
        assert has(peer, under_store, "d/00")
        assert has(peer, under_store, "d/01")
        assert not has(peer, under_store, "d/02")
        assert sum(under_store.reads.values()) == 16
        await cluster.stop("a")
        peer = await cluster.start("a")
        for path in sorted(under_store.files):
            if not has(peer, under_store, path):
                await bring(peer, under_store, path)
                await peer.store.evict()
        assert has(peer, under_store, "d/00")
        await peer.keeper.pins.set(["/d/00", "/d/01"], is_pinned=False)
        for path in sorted(under_store.files):
            if not has(peer, under_store, path):
                await bring(peer, under_store, path)
                await peer.store.evict()
        assert not has(peer, under_store, "d/00")


async def test_more_pinned_than_fits_wedges_nothing(tmp_path: Path) -> None:
    """What does not fit is not kept, and is read all the same."""
    async with mesh_of(tmp_path, "a", capacity_bytes=4 * MIB) as (cluster, under_store):
        peer = cluster.peers["a"]
        await peer.keeper.pins.set(["/"], is_pinned=True)
        order = JobOrder(kind="warm", paths=("/",))
        number = (await peer.keeper.jobs.start(order)).number
        async with asyncio.timeout(30):
            while (job := await peer.keeper.jobs.show(JobRequest(number))).state != "failed":
                assert job.state in ("queued", "running")
                await asyncio.sleep(0.01)
        assert 3 <= job.tally.kept_files <= 4
        assert "can't be kept" in dict(job.failures)["/d/15"]
        assert peer.store.used_bytes <= 4 * MIB
        for path, data in under_store.files.items():
            file = under_store.version(path, block_bytes=MIB)
            pieces = [piece async for piece in peer.reader.serve(file, 0, 0) if piece.data]
            assert bytes(pieces[0].data) == data
        await peer.keeper.pins.set(["/"], is_pinned=False)
        await until(lambda: peer.store._clock() >= peer.store._pins_until_s)
        await peer.store.evict()
        assert peer.store.used_bytes <= 0.9 * 4 * MIB


async def test_evicting_leaves_pinned_files_below_and_refuses_pinned_paths(tmp_path: Path) -> None:
    async with mesh_of(tmp_path, "a") as (cluster, under_store):
        peer = cluster.peers["a"]
        for path in under_store.files:
            await bring(peer, under_store, path)
        await peer.keeper.pins.set(["/d/03"], is_pinned=True)
        jobs = peer.keeper.jobs
        with pytest.raises(NotFound, match="/d/03 is pinned; `mesh unpin /d/03` first"):
            await jobs.start(JobOrder(kind="evict", paths=("/d/03",)))
        number = (await jobs.start(JobOrder(kind="evict", paths=("/d",)))).number
        async with asyncio.timeout(30):
            while (job := await jobs.show(JobRequest(number))).state in ("queued", "running"):
                await asyncio.sleep(0.01)
        assert (job.state, job.tally.pinned_files, job.tally.dropped_blocks) == ("done", 1, 15)
        assert peer.store.block_count == 1


async def test_what_cannot_be_pinned_is_one_line(tmp_path: Path) -> None:
    async with mesh_of(tmp_path, "a") as (cluster, _):
        keeper = cluster.peers["a"].keeper
        with pytest.raises(NotFound, match="/d/99: no such file"):
            await keeper._set_pins(SetPinsRequest(("/d/99",), is_pinned=True))
        with pytest.raises(NotFound, match="/d/01 is not pinned"):
            await keeper._set_pins(SetPinsRequest(("/d/01",), is_pinned=False))
        with pytest.raises(NotFound, match="more than 1000 paths"):
            await keeper.pins.set([f"/{n}" for n in range(1001)], is_pinned=True)
        with pytest.raises(NotFound, match="longer than 1024"):
            await keeper.pins.set(["/" + "n" * 1024], is_pinned=True)
        assert keeper.pins.all().pins == ()


def test_a_pinned_directory_covers_the_mounts_below_it() -> None:
    outer, inner = UnderStoreSettings(url=SOURCE), UnderStoreSettings(url="memory://inner")
    stores = {SOURCE: MemoryUnderStore(), "memory://inner": MemoryUnderStore()}
    table = MountTable({"/a": outer, "/a/b/c": inner}, stores)
    assert set(places(table, "/a/x")) == {(SOURCE, "x")}
    covered = set(places(table, "/a"))
    assert {(SOURCE, ""), ("memory://inner", "")} <= covered
    assert ("memory://inner", "") in set(places(table, "/"))
    about = FileRecord(1, 1, 0, "memory://inner", "deep/file", "t")
    assert about in Covered(frozenset(covered))
    assert about not in Covered(frozenset({("memory://inner", "deep/fil")}))
    assert about in Covered(frozenset({("memory://inner", "deep")}))
