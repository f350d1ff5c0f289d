"""Jobs of a mesh: each byte once, and an end that the peers themselves have confirmed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any

import pytest

from mesh.blocks import KIB, MIB, BlockKey, DirectoryEntry
from mesh.errors import NotFound, Refused
from mesh.metrics import by_label, total
from mesh.peer import crew, delivery, warmup
from mesh.peer.peer import Peer
from mesh.peer.throttle import Throttle
from mesh.testing.cluster import Cluster, running_cluster
from mesh.testing.memory import MemoryUnderStore
from mesh.wire.care import HoldingsRequest, Job, JobOrder, JobRequest
from mesh.wire.messages import Nothing

NAMES = ("a", "b", "c")


def tree() -> MemoryUnderStore:
    """One file of five blocks, and three dozen small ones, two directories deep."""
    noise = Random(5)
    files = {"models/big": noise.randbytes(4 * MIB + 7), "models/empty": b""}
    for n in range(36):
        files[f"data/part-{n % 4}/{n:02}"] = noise.randbytes(n * KIB + 1)
    return MemoryUnderStore(files)


ALL_FILES = 38
ALL_BYTES = 4 * MIB + 7 + sum(n * KIB + 1 for n in range(36))


@asynccontextmanager
async def mesh_of(
    root: Path, under_store: MemoryUnderStore, names: tuple[str, ...] = NAMES, **options: Any
) -> AsyncIterator[Cluster]:
    async with running_cluster(root, names, under_store, **options) as cluster:
        yield cluster


async def ended(peer: Peer, number: int, *, within_s: float = 60.0) -> Job:
    """Wait for a job as `mesh job wait` does."""
    async with asyncio.timeout(within_s):
        while True:
            job = await peer.keeper.jobs.show(JobRequest(number))
            if job.state not in ("queued", "running"):
                return job
            await asyncio.sleep(0.01)


async def done(peer: Peer, kind: str = "warm", *paths: str, **options: Any) -> Job:
    order = JobOrder(kind=kind, paths=paths or ("/",), **options)
    return await ended(peer, (await peer.keeper.jobs.start(order)).number)


def reads_of(under_store: MemoryUnderStore) -> dict[tuple[str, int], int]:
    return dict(under_store.reads)


def holders(cluster: Cluster, under_store: MemoryUnderStore, path: str) -> list[set[str]]:
    """Return who has each block of a file, as their disks say."""
    file = under_store.version(path, block_bytes=MIB)
    return [
        {name for name, peer in cluster.peers.items() if peer.store.index.block(file.key(index))}
        for index in range(file.block_count)
    ]


async def until(condition: Callable[[], bool], *, within_s: float = 20.0) -> None:
    async with asyncio.timeout(within_s):
        while not condition():  # what is waited for has no event
            await asyncio.sleep(0.01)


# Bringing


async def test_each_byte_leaves_the_under_store_once(tmp_path: Path) -> None:
    under_store = tree()
    async with mesh_of(tmp_path, under_store) as cluster:
        job = await done(cluster.peers["a"])
        assert (job.state, job.failures) == ("done", ())
        tally = job.tally
        assert tally.files == tally.kept_files == ALL_FILES
        assert tally.size_bytes == ALL_BYTES
        assert (tally.kept_bytes, tally.under_store_bytes) == (ALL_BYTES, ALL_BYTES)
        assert (tally.here_files, tally.here_bytes) == (1, 0)  # the empty one
        assert (tally.directories, tally.is_verified) == (7, True)
        assert set(reads_of(under_store).values()) == {1}
        assert len(under_store.reads) == 36 + 5
        ring = cluster.peers["a"].neighbors.ring
        file = under_store.version("models/big", block_bytes=MIB)
        owners = [set(ring.owners(file.key(n), copies=1)) for n in range(5)]
        assert holders(cluster, under_store, "models/big") == owners


async def test_what_is_here_is_not_brought_again(tmp_path: Path) -> None:
    under_store = tree()
    async with mesh_of(tmp_path, under_store) as cluster:
        await done(cluster.peers["a"], "warm", "/models")
        before = reads_of(under_store)
        job = await done(cluster.peers["b"], "warm", "/models", "/data/part-1")
        assert job.state == "done"
        assert (job.tally.here_files, job.tally.here_bytes) == (2, 4 * MIB + 7)
        assert all(under_store.reads[place] == 1 for place in before)
        assert job.tally.under_store_bytes == job.tally.size_bytes - (4 * MIB + 7)


async def test_a_warm_up_is_no_read(tmp_path: Path) -> None:
    """Or the hit ratio that people look at would say that the cache is useless."""
    under_store = tree()
    async with mesh_of(tmp_path, under_store) as cluster:
        await done(cluster.peers["a"])
        assert sum(total(peer.metrics.read_bytes) for peer in cluster.peers.values()) == 0
        assert sum(total(p.metrics.fill_bytes) for p in cluster.peers.values()) == ALL_BYTES


@pytest.mark.parametrize("options", [{"replicas": 3}, {"peers": ("all",)}, {"peers": NAMES}])
async def test_copies_come_from_peers_not_from_the_under_store(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    under_store = tree()
    async with mesh_of(tmp_path, under_store) as cluster:
        job = await done(cluster.peers["b"], **options)
        assert (job.state, job.failures) == ("done", ())
        assert set(reads_of(under_store).values()) == {1}
        assert holders(cluster, under_store, "models/big") == [set(NAMES)] * 5
        assert job.tally.peer_bytes == 2 * ALL_BYTES


@pytest.mark.parametrize("options", [{}, {"replicas": 2}, {"peers": ("c",)}])
async def test_in_a_large_mesh_only_those_are_asked_who_should_have_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    monkeypatch.setattr(crew, "ALL_ASKED_MAX", 1)
    monkeypatch.setattr(crew, "SPARE_OWNERS", 0)
    under_store = tree()
    async with mesh_of(tmp_path, under_store) as cluster:
        job = await done(cluster.peers["a"], **options)
        assert (job.state, job.tally.kept_bytes) == ("done", ALL_BYTES)
        assert set(reads_of(under_store).values()) == {1}
        again = await done(cluster.peers["b"], **options)
        assert (again.tally.here_bytes, again.tally.peer_bytes) == (ALL_BYTES, 0)


async def test_on_names_who_gets_it(tmp_path: Path) -> None:
    under_store = tree()
    async with mesh_of(tmp_path, under_store) as cluster:
        job = await done(cluster.peers["a"], "warm", "/models", peers=("b",))
        assert job.state == "done"
        assert all("b" in who for who in holders(cluster, under_store, "models/big"))


async def test_a_copy_somewhere_is_what_its_owner_gets(tmp_path: Path) -> None:
    """One peer has it all; the owners copy from there, and nothing is read again."""
    under_store = tree()
    async with mesh_of(tmp_path, under_store) as cluster:
        await done(cluster.peers["a"], "warm", "/models", peers=("b",))
        for name in ("a", "c"):
            store = cluster.peers[name].store
            file = under_store.version("models/big", block_bytes=MIB)
            await store.drop([file.key(index) for index in range(5)])
        job = await done(cluster.peers["a"], "warm", "/models")
        assert (job.state, job.tally.under_store_bytes) == ("done", 0)
        assert set(reads_of(under_store).values()) == {1}


async def test_bandwidth_holds_the_under_store_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The arithmetic is `Throttle`'s; here, that it is asked for each byte, once."""
    taken: list[int] = []

    class Counted(Throttle):
        def wait_s(self, size_bytes: int, now_s: float) -> float:
            taken.append(size_bytes)
            return super().wait_s(size_bytes, now_s)

    monkeypatch.setattr(delivery, "Throttle", Counted)
    async with mesh_of(tmp_path, tree()) as cluster:
        job = await done(cluster.peers["a"], "warm", "/models", bytes_per_s=64 * MIB, replicas=2)
        assert job.state == "done"
        assert sum(taken) == job.tally.under_store_bytes == 4 * MIB + 7


# Endings that are no success


async def test_a_file_that_is_removed_is_missing_by_name(tmp_path: Path) -> None:
    under_store = tree()
    async with mesh_of(tmp_path, under_store) as cluster:
        under_store.gate.clear()
        started = await cluster.peers["a"].keeper.jobs.start(JobOrder(kind="warm", paths=("/",)))
        await until(lambda: bool(under_store.reads))
        under_store.remove("data/part-3/35")
        under_store.gate.set()
        job = await ended(cluster.peers["a"], started.number)
        assert job.state == "failed"
        assert job.failures == (("/data/part-3/35", "it was removed"),)
        assert (job.tally.kept_files, job.tally.failed) == (ALL_FILES - 1, 1)


async def test_a_file_that_changes_meanwhile_is_brought_as_it_is_now(tmp_path: Path) -> None:
    under_store = tree()
    async with mesh_of(tmp_path, under_store) as cluster:
        under_store.gate.clear()
        started = await cluster.peers["a"].keeper.jobs.start(JobOrder(kind="warm", paths=("/",)))
        await until(lambda: bool(under_store.reads))
        under_store.write("models/big", bytes(2 * MIB))
        under_store.gate.set()
        job = await ended(cluster.peers["a"], started.number)
        assert (job.state, job.failures) == ("done", ())
        assert job.tally.kept_bytes == job.tally.size_bytes == ALL_BYTES - 2 * MIB - 7
        assert all(holders(cluster, under_store, "models/big"))


class Guarded(MemoryUnderStore):
    """One file may be listed, and not be read."""

    async def read(self, path: str, *words: Any) -> AsyncIterator[bytes]:
        if path == "data/part-0/04":
            raise Refused(f"{path}: not for you")
        async for run in super().read(path, *words):
            yield run


async def test_a_file_that_may_not_be_read_is_missing_by_name(tmp_path: Path) -> None:
    under_store = Guarded(tree().files)
    async with mesh_of(tmp_path, under_store) as cluster:
        job = await done(cluster.peers["a"])
        assert job.state == "failed"
        assert [path for path, _ in job.failures] == ["/data/part-0/04"]
        assert "not for you" in job.failures[0][1]
        assert job.tally.kept_files == ALL_FILES - 1


class Odd(MemoryUnderStore):
    """One directory may not be looked into, and one has gone when one does."""

    async def scan(self, path: str) -> AsyncIterator[list[DirectoryEntry]]:
        if path == "data/part-1":
            raise NotFound(path)
        if path == "data/part-2":
            raise Refused(f"{path}: not for you")
        async for page in super().scan(path):
            yield page


async def test_a_directory_that_cannot_be_listed_is_named_and_one_that_vanished_is_counted(
    tmp_path: Path,
) -> None:
    async with mesh_of(tmp_path, Odd(tree().files)) as cluster:
        job = await done(cluster.peers["a"])
        assert job.state == "failed"
        assert job.failures == (("/data/part-2", "data/part-2: not for you"),)
        tally = job.tally
        assert (tally.vanished_directories, tally.directories, tally.failed) == (1, 5, 1)
        assert tally.kept_files == tally.files == ALL_FILES - 18


async def test_what_does_not_fit_is_never_called_done(tmp_path: Path) -> None:
    """A rival said success at 36.5 of 84 GB."""
    under_store = MemoryUnderStore({f"f{n:02}": bytes([n]) * MIB for n in range(24)})
    async with mesh_of(tmp_path, under_store, capacity_bytes=4 * MIB) as cluster:
        job = await done(cluster.peers["a"])
        assert job.state == "failed"
        held = [bool(holders(cluster, under_store, path)[0]) for path in under_store.files]
        # A peer that has just been asked what it has may still make room.
        assert sum(held) <= job.tally.kept_files <= 3 * 4
        assert job.tally.failed == 24 - job.tally.kept_files
        assert len(job.failures) == job.tally.failed


async def test_the_under_store_away_for_a_while_is_waited_for(tmp_path: Path) -> None:
    under_store = tree()
    async with mesh_of(tmp_path, under_store) as cluster:
        under_store.gate.clear()
        started = await cluster.peers["a"].keeper.jobs.start(JobOrder(kind="warm", paths=("/",)))
        await until(lambda: bool(under_store.reads))
        under_store.go_away()
        under_store.gate.set()
        await until(lambda: not any(map(total_in_flight, cluster.peers.values())))
        under_store.come_back()
        job = await ended(cluster.peers["a"], started.number)
        assert (job.state, job.failures) == ("done", ())


def total_in_flight(peer: Peer) -> int:
    return total(peer.metrics.in_flight_bytes)


@pytest.mark.slow
async def test_away_for_too_long_it_fails_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(warmup, "RETRY_FOR_S", 0.5)
    monkeypatch.setattr(delivery.Patience, "__init__", impatient)
    under_store = tree()
    async with mesh_of(tmp_path, under_store) as cluster:
        under_store.gate.clear()
        started = await cluster.peers["a"].keeper.jobs.start(
            JobOrder(kind="warm", paths=("/models/big",))
        )
        await until(lambda: bool(under_store.reads))
        under_store.go_away()
        under_store.gate.set()
        job = await ended(cluster.peers["a"], started.number)
        assert job.state == "failed"
        assert [path for path, _ in job.failures] == ["/models/big"]
        assert "switched off" in job.failures[0][1]


def impatient(self: delivery.Patience, clock: Callable[[], float]) -> None:
    self.clock, self.for_s, self.last_good_s = clock, 0.5, clock()


async def test_a_peer_that_stops_in_the_middle_loses_nothing(tmp_path: Path) -> None:
    under_store = tree()
    async with mesh_of(tmp_path, under_store) as cluster:
        under_store.gate.clear()
        started = await cluster.peers["a"].keeper.jobs.start(JobOrder(kind="warm", paths=("/",)))
        await until(lambda: len(under_store.reads) > 3)
        under_store.gate.set()
        await cluster.stop("c")
        job = await ended(cluster.peers["a"], started.number)
        assert (job.state, job.failures) == ("done", ())
        for path, data in under_store.files.items():
            assert all(holders(cluster, under_store, path)) or not data


@pytest.mark.slow
async def test_a_peer_that_was_named_and_went_away_is_waited_for_and_then_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery, "PEER_AWAY_S", 0.3)
    under_store = tree()
    async with mesh_of(tmp_path, under_store) as cluster:
        under_store.gate.clear()
        order = JobOrder(kind="warm", paths=("/models/big",), peers=("c",))
        started = await cluster.peers["a"].keeper.jobs.start(order)
        await until(lambda: bool(under_store.reads))
        await cluster.stop("c")
        under_store.gate.set()
        job = await ended(cluster.peers["a"], started.number)
        assert job.state == "failed"
        assert [path for path, _ in job.failures] == ["/models/big"]
        assert "peer c" in job.failures[0][1]
        assert all(holders(cluster, under_store, "models/big"))


# Other kinds of jobs


async def test_check_brings_nothing_and_counts(tmp_path: Path) -> None:
    under_store = tree()
    async with mesh_of(tmp_path, under_store) as cluster:
        job = await done(cluster.peers["a"], "check", "/models")
        assert (job.state, job.tally.here_blocks, job.tally.blocks) == ("done", 0, 5)
        assert not under_store.reads
        await done(cluster.peers["a"], "warm", "/models")
        job = await done(cluster.peers["c"], "check", "/models")
        assert (job.state, job.tally.here_files, job.tally.here_bytes) == ("done", 2, 4 * MIB + 7)
        assert (await done(cluster.peers["c"], "check", "/")).tally.here_files == 2


async def test_a_walk_brings_no_bytes_and_all_names(tmp_path: Path) -> None:
    under_store = tree()
    async with mesh_of(tmp_path, under_store) as cluster:
        job = await done(cluster.peers["a"], "walk")
        assert (job.state, job.tally.files, job.tally.size_bytes) == ("done", ALL_FILES, ALL_BYTES)
        assert not under_store.reads
        asked = under_store.stats
        for path in under_store.files:
            await cluster.peers["a"].catalog.stat(path)
        assert under_store.stats == asked


async def test_evict_drops_from_all_peers_what_lies_below(tmp_path: Path) -> None:
    under_store = tree()
    async with mesh_of(tmp_path, under_store) as cluster:
        await done(cluster.peers["a"], replicas=3)
        job = await done(cluster.peers["b"], "evict", "/data/part-1", "/models/big")
        assert (job.state, job.failures) == ("done", ())
        assert job.tally.dropped_blocks == 3 * (9 + 5)
        assert not any(holders(cluster, under_store, "models/big"))
        assert not any(holders(cluster, under_store, "data/part-1/01"))
        assert all(holders(cluster, under_store, "data/part-0/04"))


async def test_evict_names_the_peer_that_keeps_its_blocks(tmp_path: Path) -> None:
    under_store = tree()
    async with mesh_of(tmp_path, under_store) as cluster:
        await done(cluster.peers["a"])
        await cluster.stop("c")
        job = await done(cluster.peers["a"], "evict")
        assert job.state == "failed"
        assert [name for name, _ in job.failures] == ["peer c"]


# Orders


@pytest.mark.parametrize(
    ("order", "words"),
    [
        (JobOrder(kind="warm", paths=("/models", "/nothing")), "/nothing: no such file"),
        (JobOrder(kind="warm", paths=("/",), peers=("d",)), "--on d is no peer of this mesh"),
        (JobOrder(kind="warm", paths=("/",), replicas=4), "--replicas 4 is more than"),
        (JobOrder(kind="warm", paths=("/",), files_at_once=0), "0 files at once"),
        (JobOrder(kind="dance", paths=("/",)), "no job of kind dance"),
    ],
)
async def test_an_order_that_cannot_be_is_refused_and_nothing_begins(
    tmp_path: Path, order: JobOrder, words: str
) -> None:
    async with mesh_of(tmp_path, tree()) as cluster:
        jobs = cluster.peers["a"].keeper.jobs
        with pytest.raises(NotFound, match=words):
            await jobs.start(order)
        assert (await jobs.list(Nothing())).jobs == ()


async def test_paths_may_come_in_several_messages(tmp_path: Path) -> None:
    under_store = tree()
    async with mesh_of(tmp_path, under_store) as cluster:
        jobs = cluster.peers["a"].keeper.jobs
        first = await jobs.start(JobOrder(kind="warm", paths=("/models",), is_open=True))
        assert (await jobs.list(Nothing())).jobs == ()
        rest = JobOrder(kind="warm", paths=("/data/part-0", "/data/part-1"), number=first.number)
        assert (await jobs.start(rest)).path_count == 3
        job = await ended(cluster.peers["a"], first.number)
        assert (job.state, job.tally.files) == ("done", 2 + 18)
        with pytest.raises(NotFound, match="takes no more paths"):
            await jobs.start(rest)


async def test_a_cancelled_job_ends_and_is_kept(tmp_path: Path) -> None:
    under_store = tree()
    async with mesh_of(tmp_path, under_store) as cluster:
        jobs = cluster.peers["a"].keeper.jobs
        under_store.gate.clear()
        started = await jobs.start(JobOrder(kind="warm", paths=("/",)))
        await until(lambda: bool(under_store.reads))
        job = await jobs.cancel(JobRequest(started.number))
        assert (job.state, job.tally.files) == ("cancelled", ALL_FILES)
        under_store.gate.set()
        assert (await jobs.cancel(JobRequest(started.number))).state == "cancelled"
        with pytest.raises(NotFound, match="no job 7"):
            await jobs.cancel(JobRequest(7))


async def test_jobs_are_in_the_metrics_while_they_go_on_and_when_they_ended(tmp_path: Path) -> None:
    under_store = tree()
    async with mesh_of(tmp_path, under_store) as cluster:
        peer = cluster.peers["a"]
        jobs, metrics = peer.keeper.jobs, peer.metrics
        under_store.gate.clear()
        started = await jobs.start(JobOrder(kind="warm", paths=("/",)))
        await until(lambda: bool(under_store.reads))
        planned_bytes = sum(map(len, under_store.files.values()))
        assert total(metrics.jobs_unended) == 1
        assert 0 < total(metrics.jobs_left_bytes) <= planned_bytes
        under_store.gate.set()
        assert (await ended(peer, started.number)).state == "done"
        # At once: it has not begun, and ends all the same.
        number = (await jobs.start(JobOrder(kind="warm", paths=("/",)))).number
        assert (await jobs.cancel(JobRequest(number))).state == "cancelled"
        assert by_label(metrics.jobs_ended, "state") == {"done": 1, "cancelled": 1}
        assert total(metrics.jobs_unended) == total(metrics.jobs_left_bytes) == 0


async def test_a_job_goes_on_after_its_peer_was_restarted(tmp_path: Path) -> None:
    under_store = tree()
    async with mesh_of(tmp_path, under_store) as cluster:
        under_store.gate.clear()
        jobs = cluster.peers["a"].keeper.jobs
        first = await jobs.start(JobOrder(kind="warm", paths=("/",)))
        await until(lambda: bool(under_store.reads))
        under_store.gate.set()
        await cluster.stop("a")
        peer = await cluster.start("a")
        job = await ended(peer, first.number)
        assert (job.state, job.resumed, job.tally.kept_bytes) == ("done", 1, ALL_BYTES)
        await cluster.stop("a")
        peer = await cluster.start("a")
        again = await peer.keeper.jobs.show(JobRequest(first.number))
        assert (again.state, again.tally) == ("done", job.tally)
        assert list((tmp_path / "a" / "jobs").iterdir()) == []


async def test_only_the_last_ended_jobs_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mesh.peer.jobs.KEPT_MAX", 3)
    async with mesh_of(tmp_path, tree(), ("a",)) as cluster:
        peer = cluster.peers["a"]
        for _ in range(5):
            await done(peer, "check", "/models/empty")
        assert [job.number for job in (await peer.keeper.jobs.list(Nothing())).jobs] == [3, 4, 5]
        await cluster.stop("a")
        peer = await cluster.start("a")
        assert [job.number for job in (await peer.keeper.jobs.list(Nothing())).jobs] == [3, 4, 5]
        assert (await done(peer, "check", "/models/empty")).number == 6


async def test_blocks_that_must_be_checked_first_do_not_count_as_held(tmp_path: Path) -> None:
    """After a crash of its peer a block is believed only once it was looked at."""
    under_store = tree()
    async with mesh_of(tmp_path, under_store) as cluster:
        peer = cluster.peers["a"]
        await done(peer, "warm", "/models/big", peers=("a",))
        file = under_store.version("models/big", block_bytes=MIB)
        stamp = peer.store.new_stamp()
        peer.store._writer.submit(lambda txn: peer.store.index.trust_since(txn, stamp)).result()
        care = peer.keeper._care
        held = await care.holdings(HoldingsRequest((file,)))
        assert (held.masks, held.doubtful, held.sure) == ((0b11111,), (0b11111,), (0,))
        before = reads_of(under_store)
        job = await done(peer, "warm", "/models/big", peers=("a",))
        assert (job.state, reads_of(under_store)) == ("done", before)
        assert peer.store.index.trusted_block(BlockKey(file.id, 4)) is not None
