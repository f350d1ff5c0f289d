"""What is hard to get right when one host writes what others may write too."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random

import pytest

from mesh.blocks import MIB, Attributes
from mesh.client.client import MeshClient
from mesh.client.draft import Draft
from mesh.client.writes import Writes
from mesh.clock import monotonic_s
from mesh.errors import (
    Exists,
    IsADirectory,
    MeshError,
    NotADirectory,
    NotFound,
    Stale,
    UnderStoreUnavailable,
)
from mesh.metrics import total
from mesh.store.drafts import DRAFTS
from mesh.store.entries import directory_key
from mesh.testing.cluster import Cluster, running_cluster
from mesh.testing.memory import SOURCE, MemoryUnderStore
from mesh.understore.writable import Upload
from mesh.wire.messages import Change, StatReply
from mesh.wire.writes import (
    PUBLISH,
    AlterRequest,
    PublishRequest,
    Verb,
)

NAMES = ("a", "b", "c")
PATH = "models/new.bin"
DATA = Random(12).randbytes(3 * MIB + 5)
OLD = b"what was there before"


class Distant(MemoryUnderStore):
    """Answers a publication some time after everybody can see it, or never."""

    def __init__(self) -> None:
        super().__init__({"models/old": b""})
        self.answers = asyncio.Event()
        self.answers.set()
        self.lost = 0
        self.after: Callable[[], None] = lambda: None

    async def upload(
        self, path: str, *, size_bytes: int | None = None, mode: int | None = None
    ) -> Upload:
        return _Distant(self, await super().upload(path, size_bytes=size_bytes, mode=mode))


class _Distant:
    def __init__(self, store: Distant, upload: Upload) -> None:
        self._store = store
        self._upload = upload
        self.add, self.abort = upload.add, upload.abort

    async def publish(self, *, over: str | None) -> Attributes:
        answers = self._store.answers
        about = await self._upload.publish(over=over)
        await answers.wait()
        if self._store.lost:
            self._store.lost -= 1
            self._store.after()
            raise UnderStoreUnavailable("the answer was lost by the test")
        return about


@dataclass
class Host:
    """One host of a cluster: reads as its mounts do, and writes."""

    name: str
    client: MeshClient
    writes: Writes

    async def read(self, path: str = PATH) -> bytes:
        handle = await self.client.open(path)
        try:
            into = memoryview(bytearray(handle.file.size_bytes + 1))
            return bytes(into[: await handle.read(0, into)])
        finally:
            handle.close()

    async def names(self, path: str = "models") -> list[str]:
        return [e.name async for page in self.client.scan(path) for e in page.entries]

    @asynccontextmanager
    async def draft(
        self, data: bytes, path: str = PATH, *, over: str = "", is_exclusive: bool = False
    ) -> AsyncIterator[Draft]:
        """Lend a draft that holds *data* and is not published yet."""
        draft = await self.writes.draft(path, over=over, is_exclusive=is_exclusive)
        try:
            for start in range(0, len(data), MIB):
                await draft.write(start, data[start : start + MIB])
            yield draft
        finally:
            await draft.close()

    async def put(
        self, data: bytes, path: str = PATH, *, over: str = "", is_exclusive: bool = False
    ) -> StatReply:
        async with self.draft(data, path, over=over, is_exclusive=is_exclusive) as draft:
            reply = await draft.publish()
        assert reply is not None
        return reply


@asynccontextmanager
async def host_of(cluster: Cluster, name: str) -> AsyncIterator[Host]:
    async with cluster.client(name) as client:
        root = cluster.root / name
        yield Host(name, client, Writes(client._own, root, client.threads, monotonic_s))


@asynccontextmanager
async def running(
    root: Path,
    under_store: MemoryUnderStore,
    names: tuple[str, ...] = NAMES,
    *,
    max_age_s: float = 60.0,
) -> AsyncIterator[tuple[Cluster, list[Host]]]:
    async with AsyncExitStack() as stack:
        cluster = await stack.enter_async_context(
            running_cluster(root, names, under_store, max_age_s=max_age_s)
        )
        hosts = [await stack.enter_async_context(host_of(cluster, name)) for name in names]
        yield cluster, hosts


def owners(cluster: Cluster, path: str = PATH) -> list[str]:
    """Return the peers that own the directory of a path, and then those that do not."""
    ring = next(iter(cluster.peers.values())).neighbors.ring
    directory = directory_key(SOURCE, path.rpartition("/")[0])
    return list(ring.owners(directory, copies=len(cluster.peers)))


def conflicts(cluster: Cluster) -> float:
    return sum(total(peer.metrics.conflicts) for peer in cluster.peers.values())


async def until(condition: Callable[[], bool], *, within_s: float = 20.0) -> None:
    async with asyncio.timeout(within_s):
        while not condition():  # what is waited for has no event
            await asyncio.sleep(0.01)


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
        copies = cluster.peers[first].catalog._to_keep
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
