"""Mounts of hosts of one process, as their kernels use them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random

from mesh.blocks import MIB
from mesh.client.client import MeshClient
from mesh.client.writes import Writes
from mesh.clock import monotonic_s
from mesh.errors import (
    NotFound,
)
from mesh.fuse.nodes import ROOT, Node
from mesh.fuse.view import View
from mesh.store.drafts import DRAFTS
from mesh.testing.clock import ManualClock
from mesh.testing.cluster import Cluster, running_cluster
from mesh.testing.memory import MemoryUnderStore
from mesh.wire.messages import StatReply
from mesh.wire.writes import AlterReply, AlterRequest, Verb

DATA = Random(4).randbytes(2 * MIB + 9)


@dataclass
class Mount:
    """One mount of one host."""

    view: View
    client: MeshClient
    root: Path
    clock: ManualClock

    async def walk(self, path: str) -> int:
        """Look up the parts of a path, as the kernel does; return the number of the last."""
        number = ROOT
        for name in path.split("/") if path else ():
            number = (await self.view.lookup(number, name)).number
        return number

    async def create(self, path: str, *, is_exclusive: bool = False) -> tuple[Node, int]:
        parent, _, name = path.rpartition("/")
        return await self.view.create(
            await self.walk(parent), name, mode=0o640, is_exclusive=is_exclusive, is_cut=True
        )

    async def put(self, path: str, data: bytes) -> None:
        """Write a whole file, as `cp` does."""
        _, handle = await self.create(path)
        await self.view.write(handle, 0, data)
        await self.view.flush(handle)
        await self.view.release(handle)

    async def open(self, path: str, *, writes: bool = False, is_cut: bool = False) -> int:
        return await self.view.open(await self.walk(path), writes=writes, is_cut=is_cut)

    async def got(self, handle: int) -> bytes:
        target = memoryview(bytearray(len(DATA) + MIB))
        return bytes(target[: await self.view.file(handle).read(0, target)])

    async def read(self, path: str) -> bytes:
        handle = await self.open(path)
        try:
            return await self.got(handle)
        finally:
            await self.view.release(handle)

    async def names(self, path: str = "") -> list[str]:
        handle = self.view.open_directory(await self.walk(path))
        names = [entry.name async for _, entry, _ in self.view.entries(handle, 0)]
        self.view.release_directory(handle)
        return sorted(names)

    async def rename(self, path: str, target: str, *, is_exclusive: bool = False) -> None:
        (above, _, name), (other, _, new) = path.rpartition("/"), target.rpartition("/")
        numbers = await self.walk(above), await self.walk(other)
        await self.view.rename(numbers[0], name, numbers[1], new, is_exclusive=is_exclusive)

    async def remove(self, path: str) -> None:
        parent, _, name = path.rpartition("/")
        await self.view.remove(await self.walk(parent), name)

    async def alter(self, verb: Verb, path: str, target: str = "", mode: int = 0) -> AlterReply:
        return await self.client.writes.alter(AlterRequest(verb, path, target, mode=mode))

    async def stat(self, path: str) -> StatReply:
        return await self.client.stat(path)

    async def is_there(self, path: str) -> bool:
        try:
            await self.client.stat(path)
        except NotFound:
            return False
        return True

    @property
    def drafts(self) -> int:
        return len(list((self.root / DRAFTS).iterdir()))


@asynccontextmanager
async def mount_of(cluster: Cluster, name: str) -> AsyncIterator[Mount]:
    async with cluster.client(name) as client:
        root, clock = cluster.root / name, ManualClock()
        client.writes = Writes(client._own, root, client.threads, monotonic_s)
        yield Mount(View(client, clock=clock), client, root, clock)


@asynccontextmanager
async def mounted(
    root: Path, under_store: MemoryUnderStore, names: tuple[str, ...] = ("a", "b")
) -> AsyncIterator[list[Mount]]:
    async with AsyncExitStack() as stack:
        cluster = await stack.enter_async_context(running_cluster(root, names, under_store))
        yield [await stack.enter_async_context(mount_of(cluster, name)) for name in names]
