"""What one host does to names is done for all of them, or for none."""

from __future__ import annotations

from pathlib import Path

import pytest

from mesh.errors import (
    Exists,
    IsADirectory,
    NotADirectory,
    NotEmpty,
    NotFound,
)
from mesh.testing.memory import MemoryUnderStore
from mesh.wire.writes import AlterRequest, Verb
from tests.mounts import DATA, mounted

NAMES = ("a", "b", "c")


def origin() -> MemoryUnderStore:
    return MemoryUnderStore({"dir/old": b"old", "dir/sub/f": b"f", "top": b"top"})


@pytest.mark.parametrize("writer", range(3))
async def test_directories_come_and_go_everywhere_at_once(tmp_path: Path, writer: int) -> None:
    under_store = origin()
    async with mounted(tmp_path, under_store, NAMES) as mounts:
        for mount in mounts:
            assert not await mount.is_there("dir/made")
            assert await mount.names("dir") == ["old", "sub"]
        reply = await mounts[writer].alter(Verb.MAKE_DIRECTORY, "dir/made", mode=0o750)
        assert reply.found is not None
        for mount in mounts:
            about = (await mount.stat("dir/made")).attributes
            assert (about.is_directory, about.mode) == (True, 0o750)
            assert await mount.names("dir") == ["made", "old", "sub"]
            with pytest.raises(Exists):
                await mount.alter(Verb.MAKE_DIRECTORY, "dir/made")
        with pytest.raises(NotEmpty):
            await mounts[writer].alter(Verb.REMOVE_DIRECTORY, "dir")
        await mounts[writer].alter(Verb.REMOVE_DIRECTORY, "dir/made")
        for mount in mounts:
            assert not await mount.is_there("dir/made")
            assert await mount.names("dir") == ["old", "sub"]
        assert "dir/made" not in under_store.directories


@pytest.mark.parametrize("writer", range(3))
async def test_a_written_file_is_the_same_under_another_name(tmp_path: Path, writer: int) -> None:
    under_store = origin()
    async with mounted(tmp_path, under_store, NAMES) as mounts:
        one = mounts[writer]
        await one.put("dir/new", DATA)
        before = (await one.stat("dir/new")).file
        assert before is not None
        for mount in mounts:
            await mount.stat("dir/new")
            assert not await mount.is_there("dir/sub/moved")
        under_store.reads.clear()
        await one.alter(Verb.RENAME, "dir/new", "dir/sub/moved")
        for mount in mounts:
            assert not await mount.is_there("dir/new")
            after = (await mount.stat("dir/sub/moved")).file
            assert after is not None
            assert after.id == before.id
            assert await mount.names("dir/sub") == ["f", "moved"]
        assert await one.read("dir/sub/moved") == DATA
        assert not under_store.reads
        for mount in mounts:
            assert await mount.read("dir/sub/moved") == DATA
            fresh = await mount.client.stat("dir/sub/moved", refresh=True)
            assert fresh.file is not None
            assert fresh.file.id == before.id


@pytest.mark.parametrize("writer", range(3))
async def test_a_renamed_directory_is_another_path_everywhere(tmp_path: Path, writer: int) -> None:
    async with mounted(tmp_path, origin(), NAMES) as mounts:
        for mount in mounts:
            assert await mount.read("dir/sub/f") == b"f"
            assert await mount.names("dir/sub") == ["f"]
            assert not await mount.is_there("moved/sub/f")
        await mounts[writer].alter(Verb.RENAME, "dir", "moved")
        for mount in mounts:
            assert not await mount.is_there("dir/sub/f")
            assert not await mount.is_there("dir")
            assert await mount.names() == ["moved", "top"]
            assert await mount.names("moved/sub") == ["f"]
            assert await mount.read("moved/sub/f") == b"f"


@pytest.mark.parametrize("writer", range(3))
async def test_a_removed_file_is_gone_everywhere_and_can_be_made_again(
    tmp_path: Path, writer: int
) -> None:
    under_store = origin()
    async with mounted(tmp_path, under_store, NAMES) as mounts:
        for mount in mounts:
            assert await mount.read("dir/old") == b"old"
        await mounts[writer].alter(Verb.REMOVE, "dir/old")
        for mount in mounts:
            assert not await mount.is_there("dir/old")
            assert await mount.names("dir") == ["sub"]
            with pytest.raises(NotFound):
                await mount.alter(Verb.REMOVE, "dir/old")
        await mounts[writer - 1].put("dir/old", b"new")
        for mount in mounts:
            assert await mount.read("dir/old") == b"new"


@pytest.mark.parametrize(
    ("request_", "kind"),
    [
        (AlterRequest(Verb.RENAME, "top", "dir/old", is_exclusive=True), Exists),
        (AlterRequest(Verb.RENAME, "top", "dir"), IsADirectory),
        (AlterRequest(Verb.RENAME, "dir", "top"), NotADirectory),
        (AlterRequest(Verb.RENAME, "dir", "other"), NotEmpty),
        (AlterRequest(Verb.RENAME, "nothing", "new"), NotFound),
        (AlterRequest(Verb.REMOVE, "dir"), IsADirectory),
        (AlterRequest(Verb.REMOVE, "nothing"), NotFound),
        (AlterRequest(Verb.REMOVE_DIRECTORY, "dir"), NotEmpty),
        (AlterRequest(Verb.REMOVE_DIRECTORY, "top"), NotADirectory),
        (AlterRequest(Verb.REMOVE_DIRECTORY, "nothing"), NotFound),
        (AlterRequest(Verb.MAKE_DIRECTORY, "top"), Exists),
        (AlterRequest(Verb.MAKE_DIRECTORY, "dir"), Exists),
        (AlterRequest(Verb.MAKE_DIRECTORY, "top/below"), NotADirectory),
        (AlterRequest(Verb.SET_MODE, "nothing", mode=0o600), NotFound),
    ],
)
async def test_what_can_not_be_done_is_said_and_changes_nothing(
    tmp_path: Path, request_: AlterRequest, kind: type[Exception]
) -> None:
    under_store = origin()
    under_store.files["other/f"] = b"other"
    before = dict(under_store.files)
    async with mounted(tmp_path, under_store) as mounts:
        with pytest.raises(kind):
            await mounts[0].client.writes.alter(request_)
        assert under_store.files == before
        for mount in mounts:
            assert await mount.names() == ["dir", "other", "top"]
            assert await mount.read("dir/sub/f") == b"f"


async def test_an_empty_directory_is_replaced_by_another(tmp_path: Path) -> None:
    under_store = origin()
    async with mounted(tmp_path, under_store) as (a, b):
        await a.alter(Verb.MAKE_DIRECTORY, "empty")
        assert await b.names("empty") == []
        await a.alter(Verb.RENAME, "dir", "empty")
        assert await b.names("empty") == ["old", "sub"]
        assert await b.read("empty/sub/f") == b"f"
        assert not await b.is_there("dir")


@pytest.mark.parametrize("path", ["top", "dir"])
async def test_a_mode_is_seen_everywhere_and_the_content_stays(tmp_path: Path, path: str) -> None:
    async with mounted(tmp_path, origin(), NAMES) as mounts:
        before = [await mount.stat(path) for mount in mounts]
        reply = await mounts[0].alter(Verb.SET_MODE, path, mode=0o604)
        assert reply.is_mode_kept
        for mount, was in zip(mounts, before, strict=True):
            now = await mount.stat(path)
            assert now.attributes.mode == 0o604
            assert now.file == was.file
