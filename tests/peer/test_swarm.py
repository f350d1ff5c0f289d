"""Whole peers that read one file together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random

import pytest

from mesh.blocks import MIB, PIECE_BYTES, FileVersion, Span
from mesh.clock import monotonic_s
from mesh.errors import Busy, NotFound, PeerUnavailable, UnderStoreUnavailable
from mesh.metrics import PEERS_NAMED_MAX, Metrics, PeerCounter, by_label, total
from mesh.peer.peer import Peer
from mesh.peer.session import FIRST_S, Session, beat_s
from mesh.peer.swarms import Pace, Swarms
from mesh.swarm.bits import span
from mesh.swarm.slots import SENT_OFTEN, SlotRules
from mesh.testing.clock import ManualClock
from mesh.testing.cluster import Cluster, running_cluster
from mesh.testing.memory import MemoryUnderStore
from mesh.wire.basics import error_named, named
from mesh.wire.channels import HEARTBEAT_S
from mesh.wire.codec import SERVE
from mesh.wire.hedged import PULSE_AT
from mesh.wire.messages import BlockRequest, Piece
from mesh.wire.swarm import ShowRequest, TakeRequest, WantRequest
from tests.writers import until

PATH = "models/one.bin"
BLOCKS = 32
DATA = Random(5).randbytes(BLOCKS * MIB - 7)
NAMES = ("a", "b", "c", "d")
AHEAD = 4


@asynccontextmanager
async def running(root: Path) -> AsyncIterator[tuple[Cluster, FileVersion, MemoryUnderStore]]:
    under_store = MemoryUnderStore({PATH: DATA, "small": DATA[: 2 * MIB]})
    async with running_cluster(root, NAMES, under_store) as cluster:
        file = (await cluster.peers["a"].catalog.stat(PATH)).file
        assert file is not None
        yield cluster, file, under_store


async def read_all(peer: Peer, file: FileVersion, *, first: int = 0) -> bytes:
    """Read a file in order, as a mount has it read: some blocks ahead, and then each."""
    found = b""
    for index in range(first, file.block_count):
        for ahead in range(index, min(index + AHEAD, file.block_count)):
            await peer.reader.read_ahead(file, ahead)
        length_bytes = file.length_bytes(index)
        reply = await peer.reader.read(file, Span(index, 0, length_bytes))
        offset_bytes = index * file.block_bytes
        found += peer.store.extents.read(file.id, offset_bytes, length_bytes, inode=reply.inode)
    return found


def fills(cluster: Cluster) -> float:
    return sum(total(peer.metrics.fills) for peer in cluster.peers.values())


def swarms_of(peer: Peer) -> Swarms:
    assert isinstance(peer.reader.swarms, Swarms)
    return peer.reader.swarms


def session(peer: Peer, file: FileVersion) -> Session:
    found = swarms_of(peer).session(file.id)
    assert found is not None
    return found


async def test_each_block_is_brought_once_and_given_on_by_readers(tmp_path: Path) -> None:
    async with running(tmp_path) as (cluster, file, _):
        found = await asyncio.gather(*(read_all(p, file) for p in cluster.peers.values()))
        assert all(data == DATA for data in found)
        assert fills(cluster) == BLOCKS
        for peer in cluster.peers.values():
            mine = session(peer, file)
            assert mine.scheduler.is_whole
            assert set(mine.scheduler.neighbors) == set(NAMES) - {peer.neighbors.me}
            assert len(mine.received_bytes) > 1, "one alone gave it all"


async def test_who_begins_later_has_what_is_there_from_those_who_have_it(tmp_path: Path) -> None:
    async with running(tmp_path) as (cluster, file, _):
        assert await read_all(cluster.peers["a"], file) == DATA
        assert await read_all(cluster.peers["b"], file) == DATA
        assert fills(cluster) == BLOCKS
        later = await asyncio.gather(*(read_all(cluster.peers[name], file) for name in "cd"))
        assert later == [DATA, DATA]
        assert fills(cluster) == BLOCKS


async def test_the_first_block_too_is_asked_for_by_turns(tmp_path: Path) -> None:
    """All who begin together want it of one owner, before anybody knows of anybody."""
    async with running(tmp_path) as (cluster, file, _):
        first = Span(0, 0, MIB)
        await asyncio.gather(*(p.reader.read(file, first) for p in cluster.peers.values()))
        assert fills(cluster) == 1
        received = [sum(session(p, file).received_bytes.values()) for p in cluster.peers.values()]
        assert sorted(received) == [0, MIB, MIB, MIB], "all but its owner had it in a swarm"
        schedulers = [session(p, file).scheduler for p in cluster.peers.values()]
        await until(lambda: not any(scheduler.flying for scheduler in schedulers))
        assert all(s.mine == 1 for s in schedulers), "nobody reads on, nothing more is brought"


async def test_who_wants_one_block_of_the_middle_reads_alone(tmp_path: Path) -> None:
    async with running(tmp_path) as (cluster, file, _):
        await cluster.peers["a"].reader.read(file, Span(7, 0, 4096))
        assert swarms_of(cluster.peers["a"]).session(file.id) is None


async def test_who_read_a_head_alone_leaves_soon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mesh.peer.swarms.LINGER_HEAD_S", 60.0)
    monkeypatch.setattr("mesh.peer.swarms.INTERVAL_S", 0.05)
    async with running(tmp_path) as (cluster, file, _):
        a, b = cluster.peers["a"], cluster.peers["b"]
        await a.reader.read(file, Span(0, 0, MIB))
        await b.reader.read(file, Span(0, 0, MIB))
        await b.reader.read_ahead(file, 1)
        assert swarms_of(a).session(file.id) is not None
        monkeypatch.setattr("mesh.peer.swarms.LINGER_HEAD_S", 0.0)
        await until(lambda: swarms_of(a).session(file.id) is None)
        assert session(b, file).is_read_on, "who reads on stays"


async def test_a_reader_that_dies_costs_the_others_no_error_and_no_second_fill(
    tmp_path: Path,
) -> None:
    async with running(tmp_path) as (cluster, file, under_store):
        under_store.gate.clear()
        reading = {
            name: asyncio.create_task(read_all(peer, file)) for name, peer in cluster.peers.items()
        }
        await until(lambda: len(under_store.reads) > 4)
        under_store.gate.set()
        await until(lambda: session(cluster.peers["a"], file).done > 0.3)
        reading.pop("d").cancel()
        await cluster.stop("d")
        assert await asyncio.gather(*reading.values()) == [DATA] * 3


async def test_an_owner_takes_what_others_say_they_have_before_it_fills(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first owner was silent for a moment, and so was who was asked what he has: the second
    owner filled a block that a dozen readers had announced."""
    async with running(tmp_path) as (cluster, file, _):
        assert await read_all(cluster.peers["a"], file) == DATA
        assert fills(cluster) == BLOCKS
        second = cluster.peers["b"]
        own = next(i for i in range(BLOCKS) if second.neighbors.owners(file.key(i))[1] == "b")

        async def nobody(*_: object, **__: object) -> list[str]:
            return []

        monkeypatch.setattr(second.neighbors, "other_holders", nobody)
        swarms_of(second).joined(file, 0)
        session(second, file).heard("a", "", span(0, BLOCKS), 4, is_greeting=False)
        pieces = [p async for p in second.reader.serve_relayed(file, own, 0) if p.data]
        assert sum(len(p.data) for p in pieces) == file.length_bytes(own)
        assert fills(cluster) == BLOCKS


async def test_a_block_that_a_neighbor_does_not_have_after_all_is_filled_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The question for it is still being ended when the fill is decided."""
    for name in ("PATIENCE_S_MIN", "PATIENCE_S_MAX"):
        monkeypatch.setattr(f"mesh.peer.session.{name}", 60.0)
    async with running(tmp_path) as (cluster, file, _):
        for name, peer in cluster.peers.items():
            own = [i for i in range(1, BLOCKS) if peer.neighbors.is_filler(file.key(i))]
            swarms_of(peer).joined(file, 0)
            other = next(each for each in NAMES if each != name)
            session(peer, file).heard(other, "", 1 << own[0], 4, is_greeting=False)
            async with asyncio.timeout(10):
                await peer.reader.read(file, Span(own[0], 0, file.length_bytes(own[0])))
        assert fills(cluster) == len(NAMES)


async def test_who_is_cut_off_asks_two_and_then_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("PATIENCE_S_MIN", "PATIENCE_S_MAX"):
        monkeypatch.setattr(f"mesh.peer.session.{name}", 60.0)
    monkeypatch.setattr("mesh.wire.hedged.DEAF_FOR_S", 60.0)
    async with running(tmp_path) as (cluster, file, _):
        peer = cluster.peers["a"]
        others = [i for i in range(1, BLOCKS) if not peer.neighbors.is_filler(file.key(i))]
        swarms_of(peer).joined(file, 0)
        for name in NAMES[1:]:
            session(peer, file).heard(name, "", span(0, BLOCKS), 4, is_greeting=False)
        peer.neighbors.signs.heard_of(monotonic_s())
        asked = cut_off(peer, monkeypatch)
        async with asyncio.timeout(20):
            for index in others[:3]:
                await peer.reader.read(file, Span(index, 0, file.length_bytes(index)))
        assert len(asked) <= 3, "the first block, with one hedge"


def cut_off(peer: Peer, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Let no answer of anybody come to a peer; return whom it asks for blocks."""
    neighbors, asked = peer.neighbors, list[str]()

    async def silent(address: str, *_: object) -> AsyncIterator[Piece]:
        asked.append(address)
        await asyncio.Event().wait()
        yield Piece(0, 0, b"")

    async def unheard(address: str, *_: object, timeout_s: float) -> object:
        await asyncio.sleep(timeout_s)
        raise PeerUnavailable(address, f"silent for {timeout_s} s")

    monkeypatch.setattr(neighbors._wire, "pieces", silent)
    monkeypatch.setattr(neighbors._control, "call", unheard)
    return asked


async def test_fills_that_failed_do_not_keep_others_from_being_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mesh.swarm.rests.REST_S", 0.1)
    async with running(tmp_path) as (cluster, file, under_store):
        peer = cluster.peers["a"]
        under_store.error = UnderStoreUnavailable("memory", "is away")
        swarms_of(peer).joined(file, 0)
        reader = session(peer, file)
        reader.want_all()
        await until(lambda: len(under_store.reads) > 4)
        begun = len(under_store.reads)
        await asyncio.sleep(0.3)
        assert len(under_store.reads) < begun + 60, "one after the other without a pause"
        under_store.error = None
        await until(lambda: reader.scheduler.is_whole)
        assert not reader.scheduler.flying


async def test_the_whole_file_is_brought_to_whom_it_is_wanted(tmp_path: Path) -> None:
    """Nobody reads it there."""
    async with running(tmp_path) as (cluster, file, _):
        for peer in cluster.peers.values():
            await swarms_of(peer).want(WantRequest((file,)))
        await until(lambda: all(session(p, file).done == 1.0 for p in cluster.peers.values()))
        assert fills(cluster) == BLOCKS
        shown = await swarms_of(cluster.peers["a"]).show(ShowRequest((file,)))
        assert shown.held_bytes == len(DATA)
        assert sum(source.received_bytes for source in shown.sources) > len(DATA) / 2


async def test_small_files_are_not_read_together(tmp_path: Path) -> None:
    async with running(tmp_path) as (cluster, _, _):
        peer = cluster.peers["a"]
        small = (await peer.catalog.stat("small")).file
        assert small is not None
        assert not swarms_of(peer).reads(small, 0)
        await swarms_of(peer).want(WantRequest((small,)))
        await until(lambda: len(peer.store.index.blocks(small.id)) == small.block_count)


async def test_who_is_asked_too_often_names_others(tmp_path: Path) -> None:
    async with running(tmp_path) as (cluster, file, _):
        peer = cluster.peers["a"]
        swarms = swarms_of(peer)
        await peer.reader.bring(file, 0)
        for number in range(SENT_OFTEN):
            taken = [p async for p in swarms.take(TakeRequest(file, 0, 0, f"reader-{number}"))]
            assert b"".join(p.data for p in taken) == DATA[:MIB]
        at_once = SlotRules().sends
        sends = [swarms.take(TakeRequest(file, 0, 0, f"slow-{n}")) for n in range(at_once)]
        for send in sends:
            await anext(send)
        with pytest.raises(Busy) as busy:
            await anext(swarms.take(TakeRequest(file, 0, 0, "one more")))
        assert set(busy.value.others) <= {f"reader-{n}" for n in range(SENT_OFTEN)}
        assert busy.value.others
        assert busy.value.retry_s > 0
        for send in sends:
            await send.aclose()


@pytest.mark.parametrize("usual_s", [0.01, 0.1, 0.4, 1.0, 1.9, 8.0])
async def test_who_waits_by_turns_is_silent_for_longer_than_between_two_beats(
    tmp_path: Path, usual_s: float
) -> None:
    async with running(tmp_path) as (cluster, file, _):
        peer = cluster.peers["a"]
        assert swarms_of(peer).joined(file, 0) is not None
        reader = session(peer, file)
        assert reader.piece_s == FIRST_S  # nobody can say yet
        for _ in range(9):
            reader.scheduler._sources.sent("b", usual_s, 1.0)
        assert reader.scheduler.usual_s == usual_s
        assert HEARTBEAT_S <= beat_s(usual_s) <= max(HEARTBEAT_S, usual_s)
        assert reader.piece_s * PULSE_AT > beat_s(usual_s)


async def test_what_is_not_here_is_not_passed_on(tmp_path: Path) -> None:
    async with running(tmp_path) as (cluster, file, _):
        swarms = swarms_of(cluster.peers["a"])
        with pytest.raises(NotFound):
            _ = [p async for p in swarms.take(TakeRequest(file, 3, 0, "b"))]
        assert fills(cluster) == 0


async def test_a_thousand_streams_for_one_cold_block_are_one_question_to_the_under_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A thousand clients and eight peers share one thread here: nobody is silent, all are late.
    for lane in ("channels", "bulk"):
        monkeypatch.setattr(f"mesh.wire.{lane}.STALL_S", 60.0)
    under_store = MemoryUnderStore({PATH: DATA})
    names = [f"peer-{n}" for n in range(8)]
    async with running_cluster(tmp_path, names, under_store) as cluster:
        peers = list(cluster.peers.values())
        file = (await peers[0].catalog.stat(PATH)).file
        assert file is not None
        last = MIB // PIECE_BYTES - 1
        before_bytes = memory_bytes("VmRSS")
        forget_peak()

        async def stream(number: int) -> bool:
            asker = peers[number % len(peers)].neighbors
            # Its last piece: all bytes of all of them would keep two cores busy for seconds.
            asked = asker.pieces(names[number // 8 % 8], SERVE, BlockRequest(file, 3, last))
            found = b"".join([piece.data async for piece in asked])
            return found == DATA[3 * MIB + last * PIECE_BYTES : 4 * MIB]

        assert all(await asyncio.gather(*(stream(number) for number in range(1000))))
        assert len(under_store.reads) == 1
        # Eight peers, each with a budget of 512 MiB, and all clients are in this process.
        assert memory_bytes("VmHWM") - before_bytes < 1024 * MIB


def forget_peak() -> None:
    """Have the highest use of memory of this process begin anew."""
    Path("/proc/self/clear_refs").write_text("5")


def memory_bytes(what: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(what):
            return int(line.split()[1]) * 1024
    raise AssertionError(what)


async def test_who_gave_it_is_counted(tmp_path: Path) -> None:
    async with running(tmp_path) as (cluster, file, _):
        await asyncio.gather(*(read_all(p, file) for p in cluster.peers.values()))
        for peer in cluster.peers.values():
            counted = by_label(peer.metrics.swarm_bytes, "peer")
            assert counted == session(peer, file).received_bytes


def test_of_many_peers_the_first_are_told_apart() -> None:
    metrics = Metrics()
    counter = PeerCounter(metrics.swarm_bytes)
    for number in [*range(3 * PEERS_NAMED_MAX), 0]:
        counter.add(f"peer-{number}", 10)
    counted = by_label(metrics.swarm_bytes, "peer")
    assert len(counted) == PEERS_NAMED_MAX + 1
    assert counted["others"] == 2 * PEERS_NAMED_MAX * 10
    assert counted["peer-0"] == 20


def test_who_is_busy_says_so_over_the_wire() -> None:
    error = error_named("a", named(Busy.of(0.25, ["b", "c"])))
    assert isinstance(error, Busy)
    assert (error.retry_s, error.others) == (0.25, ["b", "c"])


async def test_no_more_is_sent_each_second_than_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = ManualClock()
    slept: list[float] = []

    async def sleep(for_s: float) -> None:
        slept.append(for_s)
        clock.advance(for_s)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    pace = Pace(10 * MIB, clock)
    began_s = clock()
    for _ in range(50):
        await pace.take(len(Piece(0, 0, bytes(MIB)).data))
    assert 4.8 <= clock() - began_s <= 5.0
    assert slept
