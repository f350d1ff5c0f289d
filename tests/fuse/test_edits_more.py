"""Open files in directories that get another name; to be put into tests/fuse."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random

import pytest

from mesh.blocks import MIB, Attributes
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


def origin() -> MemoryUnderStore:
    return MemoryUnderStore({"dir/old": b"old", "dir/sub/f": b"f", "top": b"top"})


@pytest.mark.parametrize("is_shown_before", [True, False])
async def test_what_is_written_again_goes_with_its_directory(
    tmp_path: Path, is_shown_before: bool
) -> None:
    """MemoryUnderStore gives what was moved another tag, as an object store may."""
    under_store = origin()
    async with mounted(tmp_path, under_store) as (a, b):
        handle = await a.open("dir/old", writes=True)
        try:
            await a.view.write(handle, 0, b"O")
            if is_shown_before:
                await a.view.flush(handle)
            await a.rename("dir", "moved")
            await a.view.write(handle, 1, b"LD")
            await a.view.flush(handle)
        finally:
            await a.view.release(handle)
        assert await b.read("moved/old") == b"OLD"


class KeepsTags(MemoryUnderStore):
    """As a directory, HDFS and S3 do."""

    async def move(self, path: str, target: str, *, over: str | None) -> Attributes:
        tags = {name.replace(path, target): self.tags[name] for name in self.files}
        await super().move(path, target, over=over)
        self.tags.update({name: tag - self.tags[name] for name, tag in tags.items()})
        return await self.stat(target)


async def test_who_reads_a_file_reads_on_when_its_directory_is_renamed(tmp_path: Path) -> None:
    store = KeepsTags({"dir/old": b"old", "dir/sub/f": b"f"})
    async with mounted(tmp_path, store, ("a",)) as (a,):
        handle = await a.open("dir/old")
        try:
            await a.rename("dir", "moved")
            assert await a.got(handle) == b"old"
        finally:
            await a.view.release(handle)


async def test_a_file_that_is_renamed_to_itself_stays(tmp_path: Path) -> None:
    async with mounted(tmp_path, origin(), ("a",)) as (a,):
        await a.rename("top", "top")
        assert await a.read("top") == b"top"


@pytest.mark.parametrize("verb", ["rename", "remove"])
async def test_a_name_that_goes_while_its_first_close_is_under_way_is_gone(
    tmp_path: Path, verb: str
) -> None:
    under_store = origin()
    async with mounted(tmp_path, under_store, ("a",)) as (a,):
        _, handle = await a.create("new")
        await a.view.write(handle, 0, b"new")
        under_store.upload_gate.clear()
        closing = asyncio.create_task(a.view.flush(handle))
        while not under_store.uploads["new"]:
            await asyncio.sleep(0.01)
        work = a.rename("new", "moved") if verb == "rename" else a.remove("new")
        going = asyncio.create_task(work)
        await asyncio.sleep(0.05)  # it has to wait, which shows nowhere
        under_store.upload_gate.set()
        await asyncio.gather(closing, going)
        await a.view.release(handle)
        assert "new" not in under_store.files
        assert under_store.files.get("moved") == (b"new" if verb == "rename" else None)
        assert not await a.is_there("new")
