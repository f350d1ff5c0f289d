"""What is staged on peers of one process: who has it, when it goes, and what becomes of names."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from random import randbytes
from typing import Any

import pytest

from mesh.blocks import MIB, holders_of, is_staged, token_of
from mesh.clock import monotonic_s
from mesh.errors import Exists, NotFound, StoreFull, UnderStoreUnavailable
from mesh.metrics import total
from mesh.peer import alterations, announcer, doubts, uploads, writer
from mesh.peer import holder as holder_module
from mesh.peer.alterations import staged_file
from mesh.peer.overlay import Overlay
from mesh.peer.scribe import Scribe
from mesh.peer.shards import Shards
from mesh.peer.stager import Stager
from mesh.peer.uploads import Uploads
from mesh.store.drafts import Digests
from mesh.store.entries import directory_key
from mesh.testing.cluster import Cluster, running_cluster
from mesh.testing.memory import SOURCE, MemoryUnderStore
from mesh.understore.understore import Durability
from mesh.wire.catalog import STAT
from mesh.wire.local import mount_socket
from mesh.wire.messages import Nothing, StatRequest
from mesh.wire.staged import FlushRequest, RecallReply, RetargetReply, RetargetRequest, StagedFile
from mesh.wire.writes import AlterRequest, Verb
from tests.writers import DATA, NAMES, PATH, Host, host_of, owners, until

OTHER = "models/other.bin"


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have what waits for seconds wait for less."""
    monkeypatch.setattr(uploads, "TAKEOVER_S", 0.3)
    monkeypatch.setattr(uploads, "CLAIM_EVERY_S", 0.3)
    monkeypatch.setattr(uploads, "LOOK_EVERY_S", 0.1)
    monkeypatch.setattr(uploads, "PAUSE_S", 0.05)
    monkeypatch.setattr(doubts, "ASK_EVERY_S", 0.2)
    for module in (writer, alterations):
        monkeypatch.setattr(module, "PUBLISH_S", 1.0)


class Staged:
    """Peers, the hosts that write through them, and an under-store that is away at first."""

    def __init__(self, cluster: Cluster, hosts: list[Host], store: MemoryUnderStore) -> None:
        self.cluster = cluster
        self.a, self.b, self.c = hosts
        self.store = store

    def stager(self, name: str) -> Stager:
        return self.scribe(name).stager

    def uploads(self, name: str) -> Uploads:
        return self.scribe(name).uploads

    def scribe(self, name: str) -> Scribe:
        return self.cluster.peers[name].scribe

    async def waiting(self, by: str = "a") -> list[str]:
        return [w.file.path for w in (await self.uploads(by).all_waiting(Nothing())).waiting]

    async def flush(self, path: str = "") -> None:
        assert (await self.uploads("a").flush(FlushRequest(path, 20.0))).waiting == 0


@asynccontextmanager
async def staged(
    root: Path,
    *,
    durability: Durability = "copies",
    staged_bytes_max: int = 64 * MIB,
    upload_bytes_per_s: float = 0.0,
    is_away: bool = True,
) -> AsyncIterator[Staged]:
    store = MemoryUnderStore({"models/old": b""})
    async with running_cluster(
        root,
        NAMES,
        store,
        durability=durability,
        staged_bytes_max=staged_bytes_max,
        upload_bytes_per_s=upload_bytes_per_s,
    ) as cluster:
        async with (
            host_of(cluster, "a") as a,
            host_of(cluster, "b") as b,
            host_of(cluster, "c") as c,
        ):
            for host in (a, b, c):
                await host.names()  # known before it is away
            if is_away:
                store.go_away()
            yield Staged(cluster, [a, b, c], store)


def alter(verb: Verb, path: str, target: str = "") -> AlterRequest:
    return AlterRequest(verb, path, target)


async def test_who_says_that_it_is_safe_has_it_twice(tmp_path: Path) -> None:
    async with staged(tmp_path) as mesh:
        reply = await mesh.a.put(DATA)
        holders = holders_of(reply.attributes.tag)
        assert (len(holders), holders[0]) == (2, "a")
        token = reply.attributes.tag.partition("mesh-")[2].partition("@")[0]
        for name in holders:
            assert (tmp_path / name / "staged" / token).read_bytes() == DATA
            assert total(mesh.cluster.peers[name].metrics.staged_bytes) == len(DATA)
        assert [await host.read() for host in (mesh.a, mesh.b, mesh.c)] == [DATA] * 3
        assert PATH not in mesh.store.files
        mesh.store.come_back()
        await mesh.flush()
        assert mesh.store.files[PATH] == DATA
        assert mesh.stager("a").staged_bytes == 0
        await until(lambda: not any(mesh.stager(name).files for name in NAMES))


async def test_a_holder_that_can_not_is_not_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with staged(tmp_path) as mesh:
        first = next(mesh.stager("a")._candidates("d" * 32))
        others = {"b", "c"} - {first}
        names = [first, *others]
        monkeypatch.setattr(mesh.stager("a"), "_candidates", lambda draft: iter(names))
        monkeypatch.setattr(mesh.stager(first), "has_room", lambda more_bytes: False)
        reply = await mesh.a.put(DATA)
        assert holders_of(reply.attributes.tag) == ["a", *others]
        assert not mesh.stager(first).files


async def test_without_a_second_disk_it_is_written_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with staged(tmp_path, is_away=False) as mesh:
        monkeypatch.setattr(mesh.stager("a"), "_candidates", lambda draft: iter(()))
        reply = await mesh.a.put(DATA)
        assert not is_staged(reply.attributes.tag)
        assert mesh.store.files[PATH] == DATA
        mesh.store.go_away()
        with pytest.raises(UnderStoreUnavailable):
            await mesh.a.put(b"more", OTHER)


async def test_what_is_on_its_way_here_counts_as_well(tmp_path: Path) -> None:
    async with staged(tmp_path, staged_bytes_max=40 * MIB) as mesh:
        async with mesh.a.draft(bytes(34 * MIB)) as draft:
            here = [mesh.stager(name) for name in ("b", "c")]
            await until(lambda: any(not each.has_room(10 * MIB) for each in here))
            assert [each.staged_bytes for each in here] == [0, 0]
            await draft.publish()
        assert not mesh.stager("a").has_room(30 * MIB)
        mesh.store.come_back()
        await mesh.flush()
        await until(lambda: all(mesh.stager(name).has_room(40 * MIB) for name in NAMES))


async def test_what_a_writer_will_not_end_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with staged(tmp_path) as mesh:
        async with mesh.a.draft(bytes(64 * MIB)):
            outgoing = mesh.stager("a")._outgoing
            await until(lambda: any(each.told_bytes == 64 * MIB for each in outgoing.values()))
            holder = next(iter(outgoing.values())).holder
            idle = mesh.stager(holder).holder
            await idle.give_up_idle()
            assert idle._incoming
            monkeypatch.setattr(holder_module, "INCOMING_IDLE_S", -1.0)
            await idle.give_up_idle()
            assert not idle._incoming
            assert list((tmp_path / holder / "drafts").iterdir()) == []


async def test_the_next_holder_uploads_for_a_writer_that_is_gone(tmp_path: Path) -> None:
    async with staged(tmp_path) as mesh:
        reply = await mesh.a.put(DATA)
        holder = holders_of(reply.attributes.tag)[1]
        await mesh.cluster.stop("a")
        mesh.store.come_back()
        await until(lambda: mesh.store.files.get(PATH) == DATA)
        await until(lambda: not mesh.stager(holder).files)
        assert total(mesh.cluster.peers[holder].metrics.takeovers) == 1
        await mesh.cluster.start("a")
        await until(lambda: not mesh.stager("a").files)
        assert mesh.store.tags[PATH] == 1  # it was not sent again


async def test_what_was_held_and_never_announced_is_seen_by_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def ended(*about: object, **more: object) -> None:
        raise StoreFull("the writer ends here")

    async def not_taken_back(file: StagedFile) -> None:
        return

    async with staged(tmp_path, is_away=False) as mesh:
        with monkeypatch.context() as patch:
            patch.setattr(mesh.stager("a"), "keep", ended)
            patch.setattr(mesh.stager("a"), "_take_back", not_taken_back)
            patch.setattr(mesh.scribe("a").writer, "_published", ended)
            with pytest.raises(StoreFull):
                await mesh.a.put(DATA)
        holder = next(name for name in ("b", "c") if mesh.stager(name).files)
        await mesh.a.put(b"written anew")
        await mesh.flush()
        await until(lambda: not mesh.stager(holder).files)
        assert await mesh.c.read() == b"written anew"
        assert mesh.store.files == {"models/old": b"", PATH: b"written anew"}
        assert await mesh.b.names() == await mesh.c.names() == ["new.bin", "old"]


async def test_what_is_kept_is_known_although_its_writer_dies_in_that_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or else it would stay on the disk, and nobody would ever let it go."""
    async with staged(tmp_path) as mesh:
        keep, may_go_on = Stager.keep, asyncio.Event()
        kept: list[tuple[Stager, str]] = []

        async def slow(self: Stager, file: StagedFile, path: Path, digests: Digests) -> None:
            await keep(self, file, path, digests)
            if self is not mesh.stager("a"):
                kept.append((self, file.token))
                await may_go_on.wait()

        monkeypatch.setattr(Stager, "keep", slow)
        putting = asyncio.create_task(mesh.a.put(DATA))
        await until(lambda: bool(kept))
        putting.cancel()
        await mesh.cluster.stop("a")
        await asyncio.gather(putting, return_exceptions=True)
        may_go_on.set()
        ((holder, token),) = kept
        await until(lambda: bool(holder.files))
        assert list(holder.files) == [token]


async def test_what_its_writer_has_lost_is_persisted_by_a_holder(tmp_path: Path) -> None:
    async with staged(tmp_path) as mesh:
        reply = await mesh.a.put(DATA)
        holder = holders_of(reply.attributes.tag)[1]
        await until(lambda: not any(mesh.uploads(holder).doubts._doubtful()))
        mesh.stager("a").files.clear()
        mesh.uploads(holder).doubts._sure_until_s.clear()
        await until(lambda: bool(mesh.uploads(holder).doubts.lost))
        mesh.store.come_back()
        await until(lambda: not mesh.stager(holder).files)
        assert mesh.store.files == {"models/old": b"", PATH: DATA}


async def test_an_owner_who_was_away_learns_what_was_staged_and_what_has_ended(
    tmp_path: Path,
) -> None:
    async with staged(tmp_path) as mesh:
        first, _, writer = owners(mesh.cluster)
        host = {"a": mesh.a, "b": mesh.b, "c": mesh.c}[writer]
        await host.put(b"one")
        await host.put(b"gone", OTHER)
        await mesh.cluster.stop(first)
        await host.put(b"two")
        await host.writes.alter(alter(Verb.REMOVE, OTHER))
        await mesh.cluster.start(first)
        names = mesh.scribe(first)._overlay.names(directory_key(SOURCE, "models"))
        assert list(names) == ["new.bin"]
        assert names["new.bin"].size_bytes == 3
        mesh.store.come_back()
        await mesh.flush()
        assert mesh.store.files == {"models/old": b"", PATH: b"two"}
        assert await host.names() == ["new.bin", "old"]


async def test_an_owner_who_has_not_heard_yet_what_it_missed_says_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its mounts find it the moment that it listens; the under-store does not have the file."""
    async with staged(tmp_path) as mesh:
        first, _, writer = owners(mesh.cluster)
        host = {"a": mesh.a, "b": mesh.b, "c": mesh.c}[writer]
        await mesh.cluster.stop(first)
        await host.put(DATA)
        mesh.store.upload_gate.clear()
        mesh.store.come_back()
        may_recall, recall = asyncio.Event(), Shards.recall

        async def late(self: Shards, peer: str, *, is_heard: bool = False) -> RecallReply:
            await may_recall.wait()
            return await recall(self, peer, is_heard=is_heard)

        monkeypatch.setattr(Shards, "recall", late)
        monkeypatch.setattr(Shards, "former", lambda self, directory: [])  # it knows nobody yet
        starting = asyncio.create_task(mesh.cluster.start(first))
        client = {"a": mesh.a, "b": mesh.b, "c": mesh.c}[first].client
        async with asyncio.timeout(20.0):
            while not await answers(mesh.cluster, first):
                await asyncio.sleep(0.01)
        asking = asyncio.create_task(client._own.call(STAT, StatRequest(PATH), timeout_s=20.0))
        await asyncio.wait([asking], timeout=0.2)
        may_recall.set()
        assert (await asking).attributes.size_bytes == len(DATA)
        await starting
        mesh.store.upload_gate.set()
        await mesh.flush()


async def answers(cluster: Cluster, name: str) -> bool:
    """Whether a peer that is being started listens to its mounts."""
    try:
        _, writer = await asyncio.open_unix_connection(
            mount_socket(str(cluster.settings(name).socket))
        )
    except OSError:
        return False
    writer.close()
    await writer.wait_closed()
    return True


@pytest.mark.parametrize("missed_max", [10_000, 0])
async def test_an_owner_who_was_away_does_not_believe_what_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missed_max: int
) -> None:
    """Be it told of each name, or that there were too many."""
    monkeypatch.setattr(announcer, "MISSED_MAX", missed_max)
    async with staged(tmp_path, durability="through", is_away=False) as mesh:
        first, _, writer = owners(mesh.cluster)
        host = {"a": mesh.a, "b": mesh.b, "c": mesh.c}[writer]
        await host.put(b"one")
        await mesh.cluster.stop(first)
        over = (await host.client.stat(PATH)).attributes.tag
        await host.put(b"three", over=over)
        await mesh.cluster.start(first)
        catalog = mesh.cluster.peers[first].catalog
        assert (await catalog.stat(PATH)).attributes.size_bytes == 5


async def test_an_owner_who_knows_nothing_asks_the_other_one(tmp_path: Path) -> None:
    async with staged(tmp_path) as mesh:
        first, second, writer = owners(mesh.cluster)
        host = {"a": mesh.a, "b": mesh.b, "c": mesh.c}[writer]
        one = await host.put(b"one")
        two = await host.put(b"two")
        overlay = mesh.scribe(first)._overlay
        overlay._known.clear()
        overlay._ended.clear()
        claim = mesh.scribe(writer)._announcer.claim
        assert (await claim(staged_file(PATH, one.attributes))).is_ended
        reply = await claim(staged_file(PATH, two.attributes))
        assert (reply.is_ended, len(reply.formers)) == (False, 1)
        assert mesh.scribe(second)._overlay.names(directory_key(SOURCE, "models"))


async def test_what_an_owner_could_not_keep_he_is_told_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """His disk was full when he was told, or the answer was lost."""
    monkeypatch.setattr(announcer, "RECALL_TIMEOUT_S", 0.2)
    async with staged(tmp_path, durability="through", is_away=False) as mesh:
        first, second, writer = owners(mesh.cluster)
        host = {"a": mesh.a, "b": mesh.b, "c": mesh.c}[writer]
        old = await host.put(b"one")
        await mesh.cluster.stop(first)
        new = await host.put(b"three", over=old.attributes.tag)
        missed = mesh.scribe(second)._announcer._missed
        assert PATH in missed[first]
        learn, full = Overlay.learn, [True]

        async def learned(self: Overlay, *about: Any) -> Any:
            if full and full.pop():
                raise StoreFull("the disk is full just now")
            return await learn(self, *about)

        monkeypatch.setattr(Overlay, "learn", learned)
        catalog = (await mesh.cluster.start(first)).catalog
        await until(lambda: not missed[first])
        assert (await catalog.stat(PATH)).file == new.file


async def test_who_was_away_when_an_owner_was_started_is_asked_once_he_is_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Holders speak to the first owner alone: he may be the only one who knows a file."""
    monkeypatch.setattr(announcer, "RECALL_TIMEOUT_S", 0.2)
    async with staged(tmp_path) as mesh:
        first, second, writer = owners(mesh.cluster)
        host = {"a": mesh.a, "b": mesh.b, "c": mesh.c}[writer]
        await host.put(DATA)
        await mesh.cluster.stop(first)
        await mesh.cluster.stop(second)
        catalog = (await mesh.cluster.start(second)).catalog
        await until(lambda: catalog.known.sure_since_s < 0)  # all who are there have answered
        told: list[str] = []
        overlay = mesh.scribe(second)._overlay
        learn = overlay.learn

        async def heard(staged: Iterable[StagedFile], ended: Mapping[bytes, bytes]) -> Any:
            staged = list(staged)
            told.extend(file.path for file in staged)
            return await learn(staged, ended)

        monkeypatch.setattr(overlay, "learn", heard)
        await mesh.cluster.start(first)
        await until(lambda: bool(told))
        assert told == [PATH]


async def test_of_two_hosts_one_makes_a_file_for_itself(tmp_path: Path) -> None:
    async with staged(tmp_path) as mesh:
        async with (
            mesh.a.draft(b"a", is_exclusive=True) as mine,
            mesh.b.draft(b"b", is_exclusive=True) as theirs,
        ):
            assert await mine.publish() is not None
            with pytest.raises(Exists):
                await theirs.publish()
        assert await mesh.c.read() == b"a"
        await until(lambda: sum(len(mesh.stager(name).files) for name in NAMES) == 2)


async def test_what_the_mesh_put_there_and_nobody_heard_of_is_no_strangers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The uploader, or the owner whom it told, died in between."""
    async with staged(tmp_path) as mesh:
        await mesh.a.put(b"first")
        mesh.store.write(PATH, b"first")
        await mesh.a.put(b"second")
        await mesh.b.put(b"third")
        mesh.store.come_back()
        await mesh.flush()
        assert mesh.store.files == {"models/old": b"", PATH: b"third"}
        mesh.store.go_away()
        await mesh.a.put(b"fourth")
        mesh.store.write(PATH, b"not ours")
        mesh.store.come_back()
        await mesh.flush()
        names = sorted(mesh.store.files)
        assert (len(names), names[1][: len(PATH) + 9]) == (3, f"{PATH}.conflict")
        assert mesh.store.files[PATH] == b"not ours"
        assert mesh.store.files[names[1]] == b"fourth"


@pytest.mark.parametrize("is_renamed", [False, True], ids=["written", "renamed"])
async def test_what_the_writer_itself_had_there_before_is_no_strangers_either(
    tmp_path: Path, *, is_renamed: bool
) -> None:
    """All who knew that it was persisted have died, and the owners know nothing any more."""
    async with staged(tmp_path) as mesh:
        before = await mesh.a.put(b"first")
        if is_renamed:
            await mesh.a.put(b"second", OTHER)
            await mesh.a.writes.alter(alter(Verb.RENAME, OTHER, PATH))
        else:
            await mesh.a.put(b"second", over=before.attributes.tag)
        for name in NAMES:
            overlay = mesh.scribe(name)._overlay
            overlay._known.clear()
            overlay._ended.clear()
        mesh.store.write(PATH, b"first")
        mesh.store.come_back()
        await mesh.flush()
        assert mesh.store.files == {"models/old": b"", PATH: b"second"}


async def test_owners_know_names_though_nobody_reaches_the_under_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with staged(tmp_path) as mesh:
        own = owners(mesh.cluster, PATH)[:2]
        [other] = set(NAMES) - set(own)
        neighbors = mesh.cluster.peers[other].neighbors
        monkeypatch.setattr(neighbors, "former_owners", lambda directory: [])
        for name in own:
            neighbors.health.barren(name, monotonic_s() + 3600)
        await getattr(mesh, own[0]).put(DATA)
        assert await getattr(mesh, other).read() == DATA


async def test_what_was_renamed_over_a_newer_file_is_persisted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its host still has both: nobody has told it yet that the newer one is of no use."""
    let_go = asyncio.Event()
    retargeted = Uploads.retargeted

    async def late(self: Uploads, request: RetargetRequest) -> RetargetReply:
        if request.is_over:
            await let_go.wait()
        return await retargeted(self, request)

    monkeypatch.setattr(Uploads, "retargeted", late)
    async with staged(tmp_path) as mesh:
        await mesh.a.put(b"older", OTHER)
        before = await mesh.a.put(b"newer")
        renaming = asyncio.create_task(
            mesh.a.writes.alter(alter(Verb.RENAME, OTHER, PATH)), name="rename"
        )
        await until(lambda: len(mesh.stager("a").files) < 2)
        [left] = mesh.stager("a").files.values()
        assert left.token != token_of(before.attributes.tag)
        let_go.set()
        await renaming
        mesh.store.come_back()
        await mesh.flush()
        assert mesh.store.files == {"models/old": b"", PATH: b"older"}


async def test_what_is_evicted_of_a_file_is_not_taken_from_who_writes_on_it(
    tmp_path: Path,
) -> None:
    """Its draft is the same file on disk as its blocks."""
    data = randbytes(3 * MIB + 5)
    async with staged(tmp_path, is_away=False) as mesh:
        async with mesh.a.draft(data) as draft:
            assert await draft.publish() is not None
            await mesh.flush()
            version = (await mesh.a.client.stat(PATH)).file
            assert version is not None
            assert await mesh.cluster.peers["a"].store.drop([version.key(0)]) > 0
            await draft.write(len(data), b"more")
            assert await draft.publish() is not None
        await mesh.flush()
        assert mesh.store.files[PATH] == data + b"more"


async def test_what_is_evicted_of_a_first_try_is_not_taken_from_the_second_one(
    tmp_path: Path,
) -> None:
    """A mount whose peer died before it answered has it publish the same draft again."""
    data = randbytes(3 * MIB + 5)
    async with staged(tmp_path) as mesh, mesh.a.draft(data) as draft:
        reply = await draft.publish()
        assert reply is not None
        assert reply.file is not None
        draft.is_dirty = True
        again = await draft.publish()
        assert again is not None
        await until(lambda: len(mesh.stager("a").files) == 1)
        store = mesh.cluster.peers["a"].store
        await until(lambda: reply.file.id not in store.held)
        assert await store.drop([reply.file.key(0)]) > 0
        token = token_of(again.attributes.tag)
        assert (tmp_path / "a" / "staged" / token).read_bytes() == data


async def test_who_is_told_to_stop_uploads_first_what_it_can(tmp_path: Path) -> None:
    async with staged(tmp_path) as mesh:
        mesh.cluster.flush_s = 10.0
        await mesh.cluster.stop("a")
        await mesh.cluster.start("a")
        await mesh.a.put(DATA)
        mesh.store.come_back()
        await mesh.cluster.stop("a")
        assert mesh.store.files[PATH] == DATA
        assert list((tmp_path / "a" / "staged").iterdir()) == []


async def test_who_is_told_to_stop_does_not_wait_for_what_is_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads, "STALLED_S", 0.3)
    async with staged(tmp_path) as mesh:
        await mesh.a.put(DATA)
        began_s = asyncio.get_running_loop().time()
        await mesh.uploads("a").drain(for_s=60.0)
        assert asyncio.get_running_loop().time() - began_s < 30.0
        assert [file.path for file in mesh.stager("a").files.values()] == [PATH]


async def test_no_more_is_sent_each_second_than_is_allowed(tmp_path: Path) -> None:
    rate = 8 * MIB
    async with staged(tmp_path, upload_bytes_per_s=rate) as mesh:
        for number in range(4):
            await mesh.a.put(bytes(4 * MIB), f"models/{number}")
        began_s = asyncio.get_running_loop().time()
        mesh.store.come_back()
        await mesh.flush()
        took_s = asyncio.get_running_loop().time() - began_s
        assert took_s > 0.9 * 16 * MIB / rate


async def test_oldest_first_and_what_fails_does_not_hold_up_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads, "AT_ONCE", 1)
    async with staged(tmp_path) as mesh:
        paths = [f"models/{number}" for number in range(5)]
        for path in paths:
            await mesh.a.put(b"x", path)
        assert await mesh.waiting() == paths
        sent: list[str] = []
        upload = mesh.store.upload

        async def noted(path: str, **about: int) -> object:
            sent.append(path)
            if path == paths[1]:
                raise UnderStoreUnavailable("this one never")
            return await upload(path, **about)

        monkeypatch.setattr(mesh.store, "upload", noted)
        await until(lambda: any(j.tries for j in mesh.uploads("a")._jobs.values()))
        sent.clear()
        mesh.store.come_back()
        await until(lambda: len(mesh.stager("a").files) == 1)
        order = [path for path in dict.fromkeys(sent) if path != paths[1]]
        assert sorted(order) == order
        waiting = (await mesh.uploads("a").waiting(Nothing())).waiting
        assert [w.file.path for w in waiting] == [paths[1]]
        assert "this one never" in waiting[0].reason
        assert total(mesh.cluster.peers["a"].metrics.upload_failures) >= waiting[0].tries > 0


# Names of what is staged


async def test_a_name_that_is_removed_before_it_is_persisted_costs_nothing(
    tmp_path: Path,
) -> None:
    async with staged(tmp_path) as mesh:
        await mesh.a.put(DATA)
        await mesh.b.writes.alter(alter(Verb.REMOVE, PATH))
        with pytest.raises(NotFound):
            await mesh.c.client.stat(PATH)
        assert await mesh.waiting() == []
        mesh.store.come_back()
        await asyncio.sleep(0.5)
        assert (PATH in mesh.store.files, mesh.store.tags[PATH]) == (False, 0)


async def test_a_name_that_is_changed_before_it_is_persisted_costs_nothing(
    tmp_path: Path,
) -> None:
    async with staged(tmp_path) as mesh:
        await mesh.a.put(DATA)
        await mesh.b.writes.alter(alter(Verb.RENAME, PATH, OTHER))
        assert await mesh.c.read(OTHER) == DATA
        assert sorted(await mesh.c.names()) == ["old", "other.bin"]
        mesh.store.come_back()
        await mesh.flush()
        assert (mesh.store.files[OTHER], PATH in mesh.store.files) == (DATA, False)


@pytest.mark.parametrize("verb", [Verb.RENAME, Verb.REMOVE])
async def test_a_holder_who_did_not_hear_of_it_brings_nothing_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: Verb
) -> None:
    async with staged(tmp_path) as mesh:
        reply = await mesh.a.put(DATA)
        holder = holders_of(reply.attributes.tag)[1]
        asked = Uploads._retarget_at

        async def deaf(self: Uploads, to: str, request: RetargetRequest) -> RetargetReply:
            if to == holder:
                raise UnderStoreUnavailable("it did not hear")
            return await asked(self, to, request)

        with monkeypatch.context() as patch:
            patch.setattr(Uploads, "_retarget_at", deaf)
            await mesh.a.writes.alter(alter(verb, PATH, OTHER if verb is Verb.RENAME else ""))
            await mesh.a.put(b"another", PATH)
        assert await mesh.c.read() == b"another"
        await mesh.cluster.stop("a")  # now the holder is the first of those that are there
        mesh.store.come_back()
        await until(lambda: mesh.store.files.get(PATH) == b"another")
        await mesh.cluster.start("a")
        await until(lambda: not any(mesh.stager(name).files for name in NAMES))
        others = {OTHER: DATA} if verb is Verb.RENAME else {}
        assert mesh.store.files == {"models/old": b"", PATH: b"another", **others}


async def test_a_directory_is_made_once_the_under_store_is_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (writer, alterations):
        monkeypatch.setattr(module, "PUBLISH_S", 20.0)
    async with staged(tmp_path) as mesh:
        made = asyncio.create_task(mesh.a.writes.alter(alter(Verb.MAKE_DIRECTORY, "models/d")))
        await asyncio.sleep(0.5)
        assert not made.done()
        mesh.store.come_back()
        await made
        assert "models/d" in mesh.store.directories
        with pytest.raises(Exists):
            await mesh.b.writes.alter(alter(Verb.MAKE_DIRECTORY, "models/d"))


async def test_an_under_store_that_stays_away_is_waited_for_no_longer_than_that(
    tmp_path: Path,
) -> None:
    async with staged(tmp_path) as mesh:
        with pytest.raises(UnderStoreUnavailable):
            await mesh.a.writes.alter(alter(Verb.MAKE_DIRECTORY, "models/d"))
        with pytest.raises(UnderStoreUnavailable):
            await mesh.a.writes.alter(alter(Verb.REMOVE, "models/old"))
        assert sorted(await mesh.b.names()) == ["old"]
