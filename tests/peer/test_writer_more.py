"""What is hard to get right when one host writes what others may write too."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from mesh.blocks import MIB, Attributes, written_tag
from mesh.errors import (
    Exists,
    IsADirectory,
    MeshError,
    NotADirectory,
    NotFound,
    Stale,
)
from mesh.metrics import total
from mesh.peer.overlay import End, _end_key
from mesh.store.drafts import DRAFTS
from mesh.store.entries import directory_key
from mesh.testing.memory import SOURCE, MemoryUnderStore
from mesh.wire.messages import Change, Kept
from mesh.wire.staged import RecallReply, StagedFile
from mesh.wire.writes import PUBLISH, AlterRequest, AnnounceRequest, PublishRequest, Verb
from tests.writers import (
    DATA,
    OLD,
    PATH,
    Distant,
    conflicts,
    owners,
    running,
    until,
)


async def test_nobody_sees_it_before_it_is_closed(tmp_path: Path) -> None:
    under_store = MemoryUnderStore({"models/old": b""})
    async with running(tmp_path, under_store) as (_, hosts):
        under_store.upload_gate.clear()
        async with hosts[0].draft(DATA) as draft:
            publishing = asyncio.create_task(draft.publish())
            await until(lambda: bool(under_store.uploads[PATH]))
            for host in hosts:
                with pytest.raises(NotFound):
                    await host.client.stat(PATH)
                assert await host.names() == ["old"]
            under_store.upload_gate.set()
            assert await publishing is not None
            for host in hosts:
                assert await host.read() == DATA


@pytest.mark.parametrize("writer", [0, 2])
async def test_it_is_the_same_when_the_first_owner_is_gone(tmp_path: Path, writer: int) -> None:
    """Or else every restart of a peer costs the hosts what they have cached."""
    under_store = MemoryUnderStore({"models/old": b""})
    async with running(tmp_path, under_store, max_age_s=0.0) as (cluster, hosts):
        first, second, third = owners(cluster)
        by_name = {host.name: host for host in hosts}
        reply = await by_name[(first, second, third)[writer]].put(DATA)
        copies = cluster.peers[first].catalog._copies._queued
        await until(lambda: not copies)
        by_name[first].client.here.close()
        await cluster.stop(first)
        for name in (second, third):
            assert (await by_name[name].client.stat(PATH)).file == reply.file


async def test_each_close_is_a_version_and_the_last_one_is_kept(tmp_path: Path) -> None:
    under_store = MemoryUnderStore()
    async with running(tmp_path, under_store) as (cluster, (a, b, _)):
        async with a.draft(DATA) as draft:
            first = await draft.publish()
            assert await b.read() == DATA
            await draft.write(0, b"changed")
            second = await draft.publish()
            assert await b.read() == b"changed" + DATA[7:]
        assert first is not None
        assert second is not None
        assert first.file is not None
        assert second.file is not None
        assert first.file.id != second.file.id
        under_store.reads.clear()
        assert await a.read() == b"changed" + DATA[7:]
        assert not under_store.reads
        assert total(cluster.peers["a"].metrics.written_files) == 2
        assert conflicts(cluster) == 0


async def test_a_close_waits_until_who_knew_otherwise_has_heard(tmp_path: Path) -> None:
    under_store = MemoryUnderStore({"models/old": b""})
    async with running(tmp_path, under_store) as (cluster, hosts):
        for host in hosts:
            assert await host.names() == ["old"]
        first, second, _ = owners(cluster)
        herald, may_go, told = cluster.peers[first].catalog._herald, asyncio.Event(), []
        send = herald._send

        async def late(peer: str, changes: tuple[Change, ...]) -> object:
            told.append(peer)
            await may_go.wait()
            return await send(peer, changes)

        herald._send = late
        (writer,) = [host for host in hosts if host.name == first]
        async with writer.draft(DATA) as draft:
            publishing = asyncio.create_task(draft.publish())
            await until(lambda: second in told)
            done, _ = await asyncio.wait({publishing}, timeout=0.3)
            assert not done
            may_go.set()
            await publishing
        for host in hosts:
            assert await host.read() == DATA


async def test_what_was_removed_before_its_close_was_announced_is_gone(tmp_path: Path) -> None:
    under_store = Distant()
    async with running(tmp_path, under_store) as (_, (a, b, c)):
        async with a.draft(DATA) as draft:
            under_store.answers.clear()
            publishing = asyncio.create_task(draft.publish())
            await until(lambda: PATH in under_store.files)
            removing = asyncio.create_task(b.writes.alter(AlterRequest(Verb.REMOVE, PATH)))
            await asyncio.sleep(0.1)  # it has to wait for its turn, which shows nowhere
            assert PATH in under_store.files
            under_store.answers.set()
            await asyncio.gather(publishing, removing)
        assert PATH not in under_store.files
        for host in (a, b, c):
            with pytest.raises(NotFound):
                await host.client.stat(PATH)


@pytest.mark.parametrize("data", [b"", b"alike"])
async def test_only_one_makes_a_lock_file(tmp_path: Path, data: bytes) -> None:
    """Their contents are alike, and most often empty."""
    under_store = MemoryUnderStore()
    async with (
        running(tmp_path, under_store) as (_, (a, b, _)),
        a.draft(data, is_exclusive=True) as one,
        b.draft(data, is_exclusive=True) as two,
    ):
        await one.publish()
        with pytest.raises(Exists):
            await two.publish()


async def test_an_answer_is_lost_and_somebody_else_writes(tmp_path: Path) -> None:
    under_store = Distant()
    async with running(tmp_path, under_store) as (cluster, (a, b, _)):
        under_store.lost = 1
        under_store.after = lambda: under_store.write(PATH, b"of somebody else")
        async with a.draft(DATA) as draft:
            with pytest.raises(Stale):
                await draft.publish()
        (kept,) = [path for path in under_store.files if "conflict" in path]
        assert under_store.files[kept] == DATA
        assert under_store.files[PATH] == b"of somebody else"
        assert await b.read() == b"of somebody else"
        assert conflicts(cluster) == 1


@pytest.mark.parametrize("data", [b"first", DATA])
async def test_what_lies_beside_is_not_kept_as_what_was_published_before(
    tmp_path: Path, data: bytes
) -> None:
    under_store = MemoryUnderStore()
    async with running(tmp_path, under_store, ("a",)) as (cluster, (a,)):
        async with a.draft(data) as draft:
            reply = await draft.publish()
            under_store.write(PATH, b"behind the back")
            await draft.write(0, b"more")
            with pytest.raises(Stale):
                await draft.publish()
        assert reply is not None
        assert reply.file is not None
        assert dict(cluster.peers["a"].store.index.blocks(reply.file.id)) == {}


async def test_what_was_removed_behind_its_back_is_made_again(tmp_path: Path) -> None:
    under_store = MemoryUnderStore({PATH: OLD})
    async with running(tmp_path, under_store) as (cluster, (a, b, _)):
        tag = (await a.client.stat(PATH)).attributes.tag
        async with a.draft(DATA, over=tag) as draft:
            under_store.remove(PATH)
            assert await draft.publish() is not None
        assert under_store.files == {PATH: DATA}
        assert await b.read() == DATA
        assert conflicts(cluster) == 0


async def test_what_the_mesh_wrote_is_replaced_whatever_it_had_been(tmp_path: Path) -> None:
    """Who has opened a file before somebody else closed it closes last, and wins."""
    under_store = MemoryUnderStore({PATH: OLD})
    async with running(tmp_path, under_store) as (cluster, (a, b, c)):
        tag = (await a.client.stat(PATH)).attributes.tag
        async with a.draft(b"of a", over=tag) as one, b.draft(b"of b", over=tag) as two:
            await two.publish()
            await one.publish()
        assert under_store.files == {PATH: b"of a"}
        assert await c.read() == b"of a"
        assert conflicts(cluster) == 0


async def test_what_was_sent_early_and_never_closed_leaves_nothing(tmp_path: Path) -> None:
    under_store = MemoryUnderStore()
    async with running(tmp_path, under_store, ("a",)) as (cluster, (a,)):
        async with a.draft(bytes(17 * MIB)) as draft:
            await until(lambda: bool(under_store.uploads))
            draft.is_removed = True
        assert under_store.files == {}
        assert cluster.peers["a"].store.used_bytes == 0
        assert list((tmp_path / "a" / DRAFTS).iterdir()) == []


async def test_a_draft_that_is_shorter_than_it_should_be_is_not_published(tmp_path: Path) -> None:
    under_store = MemoryUnderStore()
    async with running(tmp_path, under_store, ("a",)) as (_, (a,)):
        async with a.draft(b"ab") as draft:
            for token in (draft.token, "a" * 32):
                with pytest.raises(NotFound):
                    request = PublishRequest(token, PATH, 3)
                    await a.writes._own.call(PUBLISH, request, timeout_s=20.0)
        assert under_store.files == {}


@pytest.mark.parametrize(
    ("path", "kind"), [("file/below", NotADirectory), ("directory", IsADirectory)]
)
async def test_what_is_in_the_way_is_said_and_stays(
    tmp_path: Path, path: str, kind: type[MeshError]
) -> None:
    under_store = MemoryUnderStore({"file": b"1", "directory/f": b"2"})
    async with running(tmp_path, under_store, ("a",)) as (_, (a,)):
        async with a.draft(DATA, path) as draft:
            with pytest.raises(kind):
                await draft.publish()
        assert under_store.files == {"file": b"1", "directory/f": b"2"}


@pytest.mark.parametrize("is_removed", [False, True])
async def test_an_owner_who_was_away_asks_the_other_one_what_came_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_removed: bool
) -> None:
    """The under-store is away, and the other owner was restarted as well since he heard."""
    monkeypatch.setattr("mesh.peer.announcer.MISSED_MAX", 0 if is_removed else 10_000)
    under_store = MemoryUnderStore({"models/old": b""})
    async with running(tmp_path, under_store, max_age_s=0.2) as (cluster, hosts):
        first, second, third = owners(cluster)
        by_name = {host.name: host for host in hosts}
        old = await by_name[third].put(OLD)
        for name in (first, second):
            assert (await cluster.peers[name].catalog.stat(PATH)).file == old.file
        by_name[first].client.here.close()
        await cluster.stop(first)
        if is_removed:
            await by_name[third].writes.alter(AlterRequest(Verb.REMOVE, PATH))
        else:
            new = await by_name[third].put(DATA, over=old.attributes.tag)
        by_name[second].client.here.close()
        if not is_removed:
            await cluster.stop(second)
            await cluster.start(second)
        under_store.go_away()
        await cluster.start(first)
        for _ in range(3):
            await asyncio.sleep(0.3)  # longer than what was known is believed
            if is_removed:
                with pytest.raises(NotFound):
                    await cluster.peers[first].catalog.stat(PATH)
            else:
                said = await cluster.peers[first].catalog.stat(PATH)
                assert said.is_stale
                assert said.file == new.file


async def test_what_an_owner_is_told_while_it_asks_another_is_later(tmp_path: Path) -> None:
    """Or else the next writer would write over what is not there any more: a conflict."""
    under_store = MemoryUnderStore({"models/old": b""})
    async with running(tmp_path, under_store) as (cluster, hosts):
        first, second, third = owners(cluster)
        writer = next(host for host in hosts if host.name == third)
        old = await writer.put(OLD)
        announcer = cluster.peers[first].scribe._announcer

        async def recall(peer: str, *, is_heard: bool = False) -> RecallReply:
            assert peer == second
            if is_heard:
                return RecallReply((), {})
            answer = RecallReply((), {}, (), (Kept(PATH, old.attributes, 0.0),))
            nonlocal new
            new = await writer.put(DATA, over=old.attributes.tag)
            return answer

        new = old
        announcer._shards.recall = recall  # type: ignore[method-assign]
        assert await announcer._recall_from(second)
        assert new.file != old.file
        assert (await cluster.peers[first].catalog.stat(PATH)).file == new.file


async def test_what_has_ended_before_is_not_what_is_there_now(tmp_path: Path) -> None:
    """An owner hears that a staged file was persisted, and knows what has replaced it since."""
    under_store = MemoryUnderStore({"models/old": b""})
    async with running(tmp_path, under_store) as (cluster, hosts):
        first, second, third = owners(cluster)
        new = await next(host for host in hosts if host.name == third).put(DATA)
        announcer = cluster.peers[first].scribe._announcer
        overlay = announcer._overlay
        staged = StagedFile("t" * 32, PATH, len(OLD), "", 0o644, 7, (third,), 1.0)
        await overlay.put(staged)
        ended = End(time.time() - 60.0, tag=written_tag(staged.token, "its tag")).packed()

        async def recall(peer: str, *, is_heard: bool = False) -> RecallReply:
            return RecallReply((), {_end_key(staged.token, PATH): ended}, (), ())

        announcer._shards.recall = recall  # type: ignore[method-assign]
        assert await announcer._recall_from(second)
        assert not overlay.has(directory_key(SOURCE, "models"), "new.bin")
        assert (await cluster.peers[first].catalog.stat(PATH)).file == new.file


@pytest.mark.parametrize("is_older", [True, False])
async def test_what_is_persisted_is_compared_with_what_is_staged_by_who_did_not_hear_of_it(
    tmp_path: Path, is_older: bool
) -> None:
    """Or else an owner who was away would take what was acknowledged since for replaced."""
    under_store = MemoryUnderStore({"models/old": b""})
    async with running(tmp_path, under_store) as (cluster, _):
        first, _, third = owners(cluster)
        announcer = cluster.peers[first].scribe._announcer
        overlay = announcer._overlay
        staged = StagedFile("n" * 32, PATH, 5, "", 0o644, 7, (third,), 20.0)
        await announcer.take(AnnounceRequest(third, staged=(staged,)))
        persisted = Attributes(False, 3, 9, written_tag("p" * 32, "its tag"))
        request = AnnounceRequest(
            third,
            (Kept(PATH, persisted, 0.0),),
            is_persisted=True,
            there_s=10.0 if is_older else 30.0,
        )
        await announcer.take(request)
        answer = await overlay.claim(staged)
        assert (answer is not None) is is_older
        assert overlay.has(directory_key(SOURCE, "models"), "new.bin") is is_older
        if answer is not None:
            assert answer.over == "its tag", "that is what it will replace"


async def test_with_the_other_owner_away_whoever_has_seen_it_is_asked(tmp_path: Path) -> None:
    under_store = MemoryUnderStore({"models/old": b""})
    async with running(tmp_path, under_store, max_age_s=0.2) as (cluster, hosts):
        first, second, third = owners(cluster)
        writer = next(host for host in hosts if host.name == third)
        old = await writer.put(OLD)
        assert (await cluster.peers[first].catalog.stat(PATH)).file == old.file
        for host in hosts:
            if host.name != third:
                host.client.here.close()
        await cluster.stop(first)
        new = await writer.put(DATA, over=old.attributes.tag)
        await cluster.stop(second)
        under_store.go_away()
        catalog = (await cluster.start(first)).catalog
        await asyncio.sleep(0.3)  # longer than what was known is believed
        said = await catalog.stat(PATH)
        assert said.is_stale
        assert said.file == new.file


async def test_what_others_have_seen_is_not_nothing_for_who_listed_before(tmp_path: Path) -> None:
    """The listing of an owner who was away did not show it, and is all that he knows."""
    under_store = MemoryUnderStore({"models/old": b""})
    async with running(tmp_path, under_store, max_age_s=0.2) as (cluster, hosts):
        first, second, third = owners(cluster)
        by_name = {host.name: host for host in hosts}
        assert await by_name[first].names() == ["old"]
        for name in (first, second):
            by_name[name].client.here.close()
        await cluster.stop(first)
        new = await by_name[third].put(DATA)
        await cluster.stop(second)
        under_store.go_away()
        catalog = (await cluster.start(first)).catalog
        catalog.known.sure_since_s = float("-inf")  # nobody is there who could tell it more
        await asyncio.sleep(0.3)
        assert (await catalog.stat(PATH)).file == new.file
