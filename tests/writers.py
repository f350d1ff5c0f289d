"""Hosts of one process that write, and an under-store that answers late."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random

from mesh.blocks import MIB, Attributes
from mesh.client.client import MeshClient
from mesh.client.draft import Draft
from mesh.client.writes import Writes
from mesh.clock import monotonic_s
from mesh.errors import (
    UnderStoreUnavailable,
)
from mesh.metrics import total
from mesh.store.entries import directory_key
from mesh.testing.cluster import Cluster, running_cluster
from mesh.testing.memory import SOURCE, MemoryUnderStore
from mesh.understore.writable import Upload
from mesh.wire.messages import StatReply

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
        self.lost = self.tries = 0
        self.after: Callable[[], None] = lambda: None

    async def upload(
        self, path: str, *, size_bytes: int | None = None, mode: int | None = None
    ) -> Upload:
        self.tries += 1
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


# Everybody sees it
