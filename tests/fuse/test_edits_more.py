"""Open files in directories that get another name; to be put into tests/fuse."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from mesh.blocks import Attributes
from mesh.testing.memory import MemoryUnderStore
from tests.mounts import mounted


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
