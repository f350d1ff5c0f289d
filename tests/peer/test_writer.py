"""What one host writes is there for all of them, at once, whole and once."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from mesh.blocks import MIB
from mesh.errors import (
    Exists,
    NotFound,
    ReadOnly,
    Stale,
    UnderStoreUnavailable,
)
from mesh.metrics import total
from mesh.peer import writer as writer_module
from mesh.store.drafts import DRAFTS
from mesh.testing.cluster import Cluster
from mesh.testing.memory import MemoryUnderStore
from mesh.wire.writes import PUBLISH, RETIRE, GrowRequest, PublishRequest, RetireRequest
from tests.writers import (
    DATA,
    OLD,
    PATH,
    Distant,
    conflicts,
    host_of,
    owners,
    running,
    until,
)


@pytest.mark.parametrize("writer", range(3))
@pytest.mark.parametrize("size_bytes", [0, 100, len(DATA)])
async def test_what_was_closed_is_read_everywhere_at_once(
    tmp_path: Path, writer: int, size_bytes: int
) -> None:
    """By those too who were told a moment ago that there is no such file."""
    under_store, data = MemoryUnderStore({"models/old": b""}), DATA[:size_bytes]
    async with running(tmp_path, under_store) as (_, hosts):
        for host in hosts:
            with pytest.raises(NotFound):
                await host.client.stat(PATH)
            assert await host.names() == ["old"]
        await hosts[writer].put(data)
        assert under_store.files[PATH] == data
        for host in hosts:
            found = await host.client.stat(PATH)
            assert (found.attributes.size_bytes, found.is_stale) == (size_bytes, False)
            assert await host.names() == ["new.bin", "old"]
            assert await host.read() == data


@pytest.mark.parametrize("writer", range(3))
async def test_a_new_content_takes_the_place_of_the_old_one_everywhere(
    tmp_path: Path, writer: int
) -> None:
    under_store = MemoryUnderStore({PATH: OLD})
    async with running(tmp_path, under_store) as (_, hosts):
        for number, data in enumerate((DATA, b"short", DATA[::-1])):
            before = [await host.client.stat(PATH) for host in hosts]
            assert await hosts[number - 1].read()
            await hosts[writer].put(data, over=before[writer].attributes.tag)
            for host, was in zip(hosts, before, strict=True):
                found = await host.client.stat(PATH)
                assert found.file != was.file
                assert await host.read() == data
        assert under_store.files == {PATH: DATA[::-1]}


async def test_the_first_owner_of_the_directory_is_gone(tmp_path: Path) -> None:
    under_store = MemoryUnderStore({"models/old": b""})
    async with running(tmp_path, under_store) as (cluster, hosts):
        for host in hosts:
            assert await host.names() == ["old"]
        first = owners(cluster)[0]
        for host in hosts:
            if host.name == first:
                host.client.here.close()
        await cluster.stop(first)
        left = [host for host in hosts if host.name != first]
        for number, host in enumerate(left):
            path = f"models/new-{number}"
            await host.put(DATA, path)
            for other in left:
                assert await other.read(path) == DATA
                assert path.rpartition("/")[2] in await other.names()


# What is kept of it


async def test_what_was_written_is_read_here_without_the_under_store(tmp_path: Path) -> None:
    under_store = MemoryUnderStore()
    async with running(tmp_path, under_store) as (cluster, (a, *_)):
        for path, data in ((PATH, DATA), ("models/small", b"small")):
            reply = await a.put(data, path)
            assert reply.attributes.tag.startswith("mesh-")
            found = await a.client.stat(path)
            assert found.file == reply.file
            under_store.go_away()
            assert await a.read(path) == data
            under_store.come_back()
        assert not under_store.reads
        assert cluster.peers["a"].store.used_bytes == len(DATA) + 5
        assert list((tmp_path / "a" / DRAFTS).iterdir()) == []


@pytest.mark.parametrize("writer", range(3))
async def test_what_the_under_store_says_later_is_that_it_is_the_same(
    tmp_path: Path, writer: int
) -> None:
    """Otherwise all that was kept would be worth nothing after a `max_age`."""
    under_store = MemoryUnderStore({"models/old": b""})
    async with running(tmp_path, under_store, max_age_s=0.0) as (_, hosts):
        for host in hosts:
            assert await host.names() == ["old"]
        reply = await hosts[writer].put(DATA)
        for host in hosts:
            stats = under_store.stats
            found = await host.client.stat(PATH)
            assert under_store.stats > stats
            again = await host.client.stat(PATH, refresh=True)
            assert found.file == again.file == reply.file
            assert await host.names() == ["new.bin", "old"]
        assert await hosts[writer].read() == DATA
        assert not under_store.reads


async def test_what_was_changed_after_it_was_published_is_not_kept(tmp_path: Path) -> None:
    async with running(tmp_path, MemoryUnderStore(), ("a",)) as (cluster, (a,)):
        async with a.draft(DATA) as draft:
            await draft.publish()
            await draft.write(0, b"changed")
        assert cluster.peers["a"].store.used_bytes == 0
        assert await a.read() == DATA


# Many write it


async def test_who_closes_last_wins(tmp_path: Path) -> None:
    under_store = MemoryUnderStore()
    async with running(tmp_path, under_store) as (cluster, hosts):
        async with AsyncExitStack() as stack:
            drafts = [
                await stack.enter_async_context(host.draft(b"of " + host.name.encode()))
                for host in hosts
            ]
            for host, draft in zip(hosts, drafts, strict=True):
                await draft.publish()
                for reader in hosts:
                    assert await reader.read() == b"of " + host.name.encode()
        assert under_store.files == {PATH: b"of c"}
        assert conflicts(cluster) == 0


@pytest.mark.parametrize("second", range(3))
async def test_who_closes_while_another_close_is_under_way_wins(
    tmp_path: Path, second: int
) -> None:
    """On the same host too: two processes of one job that write one file."""
    under_store = Distant()
    async with running(tmp_path, under_store) as (cluster, hosts):
        async with hosts[0].draft(b"first") as one, hosts[second].draft(b"second") as two:
            under_store.answers.clear()
            publishing = asyncio.create_task(one.publish())
            await until(lambda: PATH in under_store.files)
            held, under_store.answers = under_store.answers, asyncio.Event()
            under_store.answers.set()
            try:
                following = asyncio.create_task(two.publish())
                await until(lambda: under_store.uploads.total() > 1)
                # Whether it waits for the other one to be announced is its own affair.
                await asyncio.wait({following}, timeout=1.0)
            finally:
                held.set()
            replies = await asyncio.gather(publishing, following)
        assert all(replies)
        assert conflicts(cluster) == 0
        assert under_store.files == {PATH: b"second", "models/old": b""}
        for host in hosts:
            assert await host.read() == b"second"


async def test_only_one_makes_a_file_that_must_not_be_there(tmp_path: Path) -> None:
    under_store = MemoryUnderStore()
    async with running(tmp_path, under_store) as (cluster, (a, b, _)):
        async with (
            a.draft(b"of a", is_exclusive=True) as one,
            b.draft(b"and of b", is_exclusive=True) as two,
        ):
            await one.publish()
            with pytest.raises(Exists):
                await two.publish()
        assert (under_store.files, conflicts(cluster)) == ({PATH: b"of a"}, 0)
        assert await b.read() == b"of a"


# The under-store is away


async def test_a_close_waits_for_the_under_store(tmp_path: Path) -> None:
    under_store = Distant()
    async with running(tmp_path, under_store) as (_, hosts), hosts[0].draft(DATA) as draft:
        under_store.go_away()
        publishing = asyncio.create_task(draft.publish())
        await until(lambda: under_store.tries >= 2)
        assert not publishing.done()
        under_store.come_back()
        assert await publishing is not None
        for host in hosts:
            assert await host.read() == DATA


async def test_a_close_does_not_wait_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer_module, "PUBLISH_S", 0.5)
    under_store = MemoryUnderStore({"models/old": b""})
    async with running(tmp_path, under_store) as (cluster, hosts):
        for host in hosts:
            assert await host.names() == ["old"]
        async with hosts[0].draft(DATA) as draft:
            under_store.go_away()
            with pytest.raises(UnderStoreUnavailable):
                await draft.publish()
            under_store.come_back()
            for host in hosts:
                with pytest.raises(NotFound):
                    await host.client.stat(PATH)
                assert await host.names() == ["old"]
            assert await draft.publish() is not None
        for host in hosts:
            assert await host.read() == DATA
        assert conflicts(cluster) == 0


@pytest.mark.parametrize("data", [b"", b"small", DATA])
async def test_an_answer_that_was_lost_is_no_conflict(tmp_path: Path, data: bytes) -> None:
    under_store = Distant()
    async with running(tmp_path, under_store) as (cluster, hosts):
        for is_exclusive in (False, True):
            path = f"{PATH}-{is_exclusive}"
            under_store.lost = 1
            await hosts[0].put(data, path, is_exclusive=is_exclusive)
            assert under_store.lost == 0
            assert under_store.tags[path] == 1  # it was not put again
            for host in hosts:
                assert await host.read(path) == data
        assert len(under_store.files) == 3
        assert conflicts(cluster) == 0


async def test_a_mount_that_asks_again_has_its_file_once(tmp_path: Path) -> None:
    """Its peer was restarted between the publication and the answer."""
    under_store = MemoryUnderStore()
    async with running(tmp_path, under_store) as (cluster, (a, b, _)):
        async with a.draft(DATA) as draft:
            await draft.publish()
            a.client.here.close()
            await cluster.stop("a")
            await cluster.start("a")
            again = PublishRequest(draft.token, PATH, len(DATA), is_again=True)
            reply = await a.writes._call(PUBLISH, again, timeout_s=20.0, again=again)
            assert reply.attributes.size_bytes == len(DATA)
        assert under_store.files == {PATH: DATA}
        assert conflicts(cluster) == 0
        assert await a.read() == await b.read() == DATA


# Behind the mesh's back


@pytest.mark.parametrize("was_there", [True, False])
async def test_what_somebody_else_has_put_there_is_not_replaced(
    tmp_path: Path, was_there: bool
) -> None:
    under_store = MemoryUnderStore({PATH: OLD} if was_there else {"models/old": b""})
    async with running(tmp_path, under_store) as (cluster, (a, b, c)):
        tag = (await a.client.stat(PATH)).attributes.tag if was_there else ""
        async with a.draft(DATA, over=tag) as draft:
            under_store.write(PATH, b"behind the back")
            with pytest.raises(Stale):
                await draft.publish()
            assert await draft.publish() is None
        assert under_store.files[PATH] == b"behind the back"
        (beside,) = [path for path in under_store.files if path.startswith(f"{PATH}.conflict-")]
        assert "-a-" in beside
        assert under_store.files[beside] == DATA
        assert total(cluster.peers["a"].metrics.conflicts) == 1
        for host in (a, b, c):
            assert (await host.read(), await host.read(beside)) == (b"behind the back", DATA)
            assert beside.rpartition("/")[2] in await host.names()


# Sent early


async def test_what_is_stable_is_sent_before_it_is_closed(tmp_path: Path) -> None:
    big = Random(5).randbytes(MIB) * 36
    under_store = MemoryUnderStore()
    async with running(tmp_path, under_store, ("a",)) as (cluster, (a,)):
        metrics = cluster.peers["a"].metrics
        async with a.draft(big) as draft:
            await until(lambda: total(metrics.written_bytes) >= 32 * MIB)
            assert under_store.uploads == {PATH: 1}
            assert under_store.files == {}
            await draft.publish()
        assert under_store.uploads == {PATH: 1}
        assert total(metrics.written_bytes) == len(big)
        assert under_store.files[PATH] == big
        assert await a.read() == big
        assert not under_store.reads


@pytest.mark.parametrize("how", ["write", "cut"])
async def test_what_was_sent_and_then_changed_is_sent_again(tmp_path: Path, how: str) -> None:
    """As the header of a file that is written last."""
    big = bytearray(Random(6).randbytes(MIB) * 33)
    under_store = MemoryUnderStore()
    async with running(tmp_path, under_store, ("a",)) as (cluster, (a,)):
        async with a.draft(bytes(big)) as draft:
            metrics = cluster.peers["a"].metrics
            await until(lambda: total(metrics.written_bytes) >= 16 * MIB)
            if how == "write":
                await draft.write(0, b"header")
                big[:6] = b"header"
            else:
                await draft.truncate(5 * MIB)
                del big[5 * MIB :]
            await draft.publish()
        assert under_store.files[PATH] == big
        assert await a.read() == big
        assert not under_store.reads


# What can't be


async def test_nothing_is_written_where_the_mount_table_says_so(tmp_path: Path) -> None:
    under_store = MemoryUnderStore({"models/old": b""})
    cluster = Cluster(tmp_path, ("a",), under_store)
    cluster._mounts["/"] = replace(cluster._mounts["/"], read_only=True)
    await cluster.start("a")
    try:
        async with host_of(cluster, "a") as a, a.draft(DATA) as draft:
            with pytest.raises(ReadOnly):
                await draft.publish()
        assert (under_store.uploads, under_store.files) == ({}, {"models/old": b""})
    finally:
        await cluster.stop("a")


@pytest.mark.parametrize("token", ["", "../../../etc/passwd", "a" * 31, "g" * 32, "A" * 32])
async def test_what_is_no_token_is_no_draft(tmp_path: Path, token: str) -> None:
    under_store = MemoryUnderStore()
    async with running(tmp_path, under_store, ("a",)) as (_, (a,)):
        own = a.writes._own
        with pytest.raises(NotFound):
            await own.call(PUBLISH, PublishRequest(token, PATH, 3), timeout_s=20.0)
        with pytest.raises(NotFound):
            await own.call(RETIRE, RetireRequest(token, True), timeout_s=20.0)
        with pytest.raises(NotFound):
            await a.writes.grow(GrowRequest(token, PATH, 16 * MIB))
        assert under_store.files == {}
