"""What is written and renamed in one mount: there at once here, elsewhere when it is closed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from mesh.blocks import MIB, Attributes
from mesh.errors import (
    Exists,
    NotEmpty,
    ReadOnly,
    StoreFull,
)
from mesh.fuse import edits as edits_module
from mesh.fuse.edits import OWN_S, Kept, KeptAttributes
from mesh.fuse.nodes import ROOT, Node
from mesh.testing.cluster import Cluster
from mesh.testing.memory import MemoryUnderStore
from mesh.wire.writes import Verb
from tests.mounts import DATA, mount_of, mounted


def origin() -> MemoryUnderStore:
    return MemoryUnderStore({"dir/old": b"old", "dir/sub/f": b"f", "top": b"top"})


# Files


async def test_a_file_is_written_read_back_and_shown_when_it_is_closed(tmp_path: Path) -> None:
    under_store = origin()
    async with mounted(tmp_path, under_store) as (a, b):
        node, handle = await a.create("dir/new")
        assert (node.lookups, node.writers, node.is_begun) == (1, 1, True)
        await a.view.write(handle, MIB, DATA[MIB:])
        await a.view.write(handle, 0, DATA[:MIB])
        assert await a.got(handle) == DATA
        assert node.attributes.size_bytes == len(DATA)
        assert await a.names("dir") == ["new", "old", "sub"]
        assert await b.names("dir") == ["old", "sub"]
        assert not await b.is_there("dir/new")
        await a.view.flush(handle)
        assert not node.is_begun
        assert await b.names("dir") == ["new", "old", "sub"]
        assert await b.read("dir/new") == DATA
        await a.view.release(handle)
        assert (node.draft, node.writers, node.opens, a.drafts) == (None, 0, 0, 0)
        assert await a.walk("dir/new") == node.number  # the kernel's pages of it are good
        assert (await a.read("dir/new"), await a.names("dir")) == (DATA, ["new", "old", "sub"])
        assert under_store.modes["dir/new"] == 0o640


async def test_what_was_not_flushed_is_shown_by_the_last_release(tmp_path: Path) -> None:
    async with mounted(tmp_path, origin()) as (a, b):
        node, one = await a.create("new")
        two = await a.view.open(node.number, writes=True)
        await a.view.write(one, 0, b"one")
        await a.view.write(two, 3, b"two")
        await a.view.release(one)
        assert not await b.is_there("new")
        await a.view.release(two)
        assert await b.read("new") == b"onetwo"


async def test_a_reader_keeps_a_draft_alive_and_the_last_writer_shows_it(tmp_path: Path) -> None:
    async with mounted(tmp_path, origin()) as (a, b):
        node, writer = await a.create("new")
        reader = await a.view.open(node.number)
        await a.view.write(writer, 0, b"one")
        assert await a.got(reader) == b"one"
        await a.view.release(writer)
        assert await b.read("new") == b"one"
        assert await a.got(reader) == b"one"
        assert a.drafts == 1
        await a.view.release(reader)
        assert a.drafts == 0


async def test_a_part_of_a_file_is_changed(tmp_path: Path) -> None:
    under_store = origin()
    under_store.write("top", DATA)
    async with mounted(tmp_path, under_store) as (a, b):
        assert await b.read("top") == DATA
        handle = await a.open("top", writes=True)
        assert await a.got(handle) == DATA
        await a.view.write(handle, 5, b"12345")
        changed = DATA[:5] + b"12345" + DATA[10:]
        assert await a.got(handle) == changed
        assert await b.read("top") == DATA
        await a.view.flush(handle)
        await a.view.release(handle)
        assert await a.read("top") == await b.read("top") == changed


async def test_who_opens_for_writing_and_writes_nothing_changes_nothing(tmp_path: Path) -> None:
    under_store = origin()
    async with mounted(tmp_path, under_store) as (a, _):
        handle = await a.open("top", writes=True)
        await a.view.flush(handle)
        await a.view.release(handle)
        assert (under_store.uploads, a.drafts) == ({}, 0)


@pytest.mark.parametrize("is_open", [True, False])
async def test_a_file_is_cut(tmp_path: Path, is_open: bool) -> None:
    async with mounted(tmp_path, origin()) as (a, b):
        assert await b.read("top") == b"top"
        if is_open:
            handle = await a.open("top", writes=True, is_cut=True)
            await a.view.write(handle, 0, b"T")
            assert await b.read("top") == b"top"
            await a.view.release(handle)
        else:
            await a.view.edits.truncate(a.view.nodes.node(await a.walk("top")), 1)
        assert await b.read("top") == (b"T" if is_open else b"t")
        assert a.drafts == 0


async def test_what_is_there_is_opened_by_create_unless_it_must_not_be(tmp_path: Path) -> None:
    async with mounted(tmp_path, origin()) as (a, b):
        with pytest.raises(Exists):
            await a.create("top", is_exclusive=True)
        node, handle = await a.create("top")
        assert node.number == await a.walk("top")
        assert await a.got(handle) == b""
        await a.view.release(handle)
        assert await b.read("top") == b""
        _, handle = await a.create("new", is_exclusive=True)
        with pytest.raises(Exists):  # also what nobody else sees
            await a.create("new", is_exclusive=True)
        await b.put("new", b"faster")
        with pytest.raises(Exists):
            await a.view.flush(handle)
        await a.view.release(handle)
        assert await a.read("new") == await b.read("new") == b"faster"


async def test_what_can_not_be_shown_is_said_and_leaves_no_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    under_store = origin()

    async def full(*_: object, **__: object) -> None:
        raise StoreFull("no room in the under-store")

    async with mounted(tmp_path, under_store) as (a, b):
        node, handle = await a.create("new")
        await a.view.write(handle, 0, b"one")
        monkeypatch.setattr(under_store, "upload", full)
        with pytest.raises(StoreFull):
            await a.view.flush(handle)
        assert await a.got(handle) == b"one"
        await a.view.release(handle)
        monkeypatch.undo()
        assert (a.view.nodes.at("new"), node.draft) == (None, None)
        for mount in (a, b):
            assert not await mount.is_there("new")
            assert await mount.names() == ["dir", "top"]
        assert a.drafts == 0


async def test_nothing_is_changed_where_the_mount_table_says_so(tmp_path: Path) -> None:
    under_store = origin()
    cluster = Cluster(tmp_path, ("a",), under_store)
    cluster._mounts["/"] = replace(cluster._mounts["/"], read_only=True)
    await cluster.start("a")
    try:
        async with mount_of(cluster, "a") as a:
            top = a.view.nodes.node(await a.walk("top"))
            handle = await a.open("top")
            for attempt in (
                lambda: a.create("new"),
                lambda: a.open("top", writes=True),
                lambda: a.view.edits.truncate(top, 0),
                lambda: a.view.make_directory(ROOT, "d", mode=0o755),
                lambda: a.remove("top"),
                lambda: a.view.remove_directory(ROOT, "dir"),
                lambda: a.rename("top", "other"),
                lambda: a.view.edits.set_mode(top, 0o600),
                # And the peer itself, whatever the mount thinks.
                *(lambda verb=verb: a.alter(verb, "top", "other", 0o600) for verb in Verb),
            ):
                with pytest.raises(ReadOnly):
                    await attempt()
            assert await a.got(handle) == b"top"
            await a.view.release(handle)
        assert under_store.files == origin().files
        assert not under_store.modes
    finally:
        await cluster.stop("a")


# Names of what is being written


@pytest.mark.parametrize("target", ["dir/new", "top"])
async def test_what_nobody_else_sees_is_renamed(tmp_path: Path, target: str) -> None:
    """As editors and browsers do it, and before they have closed it."""
    under_store = origin()
    async with mounted(tmp_path, under_store) as (a, b):
        node, handle = await a.create("tmp")
        await a.view.write(handle, 0, b"one")
        await a.rename("tmp", target)
        assert await a.walk(target) == node.number
        assert await a.got(handle) == b"one"
        assert not await b.is_there("tmp")
        assert "tmp" not in await a.names()
        assert target.rpartition("/")[2] in await a.names(target.rpartition("/")[0])
        await a.view.write(handle, 3, b"two")
        await a.view.release(handle)
        assert await a.read(target) == await b.read(target) == b"onetwo"
        assert under_store.uploads == {target: 1}
        assert not any("conflict" in path for path in under_store.files)


async def test_what_is_being_written_again_is_renamed(tmp_path: Path) -> None:
    under_store = origin()
    async with mounted(tmp_path, under_store) as (a, b):
        handle = await a.open("top", writes=True)
        await a.view.write(handle, 0, b"T")
        await a.rename("top", "dir/renamed")
        assert await b.read("dir/renamed") == b"Top"  # it has to be shown to be renamed
        assert not await b.is_there("top")
        await a.view.write(handle, 1, b"OP")
        await a.view.release(handle)
        assert await a.read("dir/renamed") == await b.read("dir/renamed") == b"TOP"
        assert under_store.files.keys() == {"dir/renamed", "dir/old", "dir/sub/f"}


async def test_a_directory_is_renamed_in_which_something_is_written(tmp_path: Path) -> None:
    under_store = origin()
    async with mounted(tmp_path, under_store) as (a, b):
        _, handle = await a.create("dir/sub/new")
        await a.view.write(handle, 0, b"one")
        await a.rename("dir", "moved")
        assert await a.got(handle) == b"one"
        await a.view.release(handle)
        assert await a.read("moved/sub/new") == await b.read("moved/sub/new") == b"one"
        assert under_store.files.keys() == {"moved/old", "moved/sub/f", "moved/sub/new", "top"}


async def test_what_nobody_else_has_seen_is_removed_while_it_is_open(tmp_path: Path) -> None:
    """A temporary file that nobody is to see."""
    under_store = origin()
    async with mounted(tmp_path, under_store) as (a, b):
        _, handle = await a.create("tmp")
        await a.view.write(handle, 0, b"one")
        await a.remove("tmp")
        assert await a.names() == await b.names() == ["dir", "top"]
        await a.view.write(handle, 3, b"two")
        assert await a.got(handle) == b"onetwo"
        await a.view.flush(handle)
        _, again = await a.create("tmp")  # the name is free
        await a.view.release(handle)
        await a.view.release(again)
        assert under_store.files["tmp"] == b""
        assert a.drafts == 0


@pytest.mark.parametrize("how", ["remove", "replace"])
async def test_who_has_a_file_open_reads_it_on_when_it_is_gone(tmp_path: Path, how: str) -> None:
    under_store = origin()
    under_store.write("big", DATA)
    async with mounted(tmp_path, under_store) as (a, b):
        handle = await a.open("big")
        if how == "remove":
            await a.remove("big")
            assert not await b.is_there("big")
        else:
            await a.rename("top", "big")
            assert await b.read("big") == b"top"
        assert await a.got(handle) == DATA
        await a.view.release(handle)
        assert a.drafts == 0
        assert under_store.files.get("big") == (None if how == "remove" else b"top")


async def test_a_directory_in_which_something_is_begun_is_not_empty(tmp_path: Path) -> None:
    async with mounted(tmp_path, origin()) as (a, b):
        await a.view.make_directory(ROOT, "empty", mode=0o755)
        _, handle = await a.create("empty/new")
        with pytest.raises(NotEmpty):
            await a.view.remove_directory(ROOT, "empty")
        await a.remove("empty/new")
        await a.view.release(handle)
        await a.view.remove_directory(ROOT, "empty")
        assert not await b.is_there("empty")


# What the kernel knows


async def test_what_this_mount_has_done_the_kernel_knows(tmp_path: Path) -> None:
    async with mounted(tmp_path, origin()) as (a, b):
        _, handle = await a.create("new")
        assert not await a.view.is_known_to_kernel(ROOT, "new")  # nobody can speak of it yet
        await a.view.write(handle, 0, b"one")
        await a.view.flush(handle)
        assert await a.view.is_known_to_kernel(ROOT, "new")
        await a.view.release(handle)
        assert await a.view.is_known_to_kernel(ROOT, "new")
        assert not await a.view.is_known_to_kernel(ROOT, "top")
        await a.rename("new", "moved")
        await a.remove("top")
        await a.view.make_directory(ROOT, "made", mode=0o755)
        for name in ("new", "moved", "top", "made"):
            assert await a.view.is_known_to_kernel(ROOT, name), name
            assert not await b.view.is_known_to_kernel(ROOT, name)


async def test_what_somebody_else_has_done_since_the_kernel_does_not_know(tmp_path: Path) -> None:
    async with mounted(tmp_path, origin()) as (a, b):
        await a.put("new", b"of a")
        await a.remove("top")
        await a.put("gone", b"of a")
        await b.put("new", b"of b")
        await b.put("top", b"of b")
        await b.remove("gone")
        for name in ("new", "top", "gone"):
            assert not await a.view.is_known_to_kernel(ROOT, name)


async def test_a_change_of_long_ago_is_not_ones_own(tmp_path: Path) -> None:
    async with mounted(tmp_path, origin(), ("a",)) as (a,):
        await a.put("new", b"one")
        a.clock.advance(OWN_S - 0.1)
        assert await a.view.is_known_to_kernel(ROOT, "new")
        a.clock.advance(0.2)
        assert not await a.view.is_known_to_kernel(ROOT, "new")


# What the under-store does not keep


def node_of(path: str, tag: str, *, mtime_ns: int = 1) -> Node:
    about = Attributes(is_directory=False, size_bytes=3, mtime_ns=mtime_ns, tag=tag)
    return Node(2, path, about)


def test_what_was_set_is_kept_by_path_and_goes_with_it() -> None:
    kept = KeptAttributes()
    one, below = node_of("dir", "1"), node_of("dir/f", "2")
    kept.make("dir").mode = 0o700
    kept.make("dir/f").uid = 7
    kept.make("directory").uid = 8  # which is not below it
    kept.rename("dir", "moved")
    assert (kept.of(one).mode, kept.of(below).uid) == (None, None)
    one.path, below.path = "moved", "moved/f"
    assert (kept.of(one).mode, kept.of(below).uid) == (0o700, 7)
    assert kept.of(node_of("directory", "3")).uid == 8
    kept.remove("moved/f")
    assert kept.of(below).uid is None
    assert kept.of(below) == Kept()


def test_a_time_that_was_set_is_of_one_content() -> None:
    kept = KeptAttributes()
    node = node_of("f", "mesh-draft")
    made = kept.make("f")
    made.mtime_ns, made.content = 77, "mesh-draft"
    assert kept.mtime_ns(node) == 77
    node.attributes = node_of("f", "mesh-one=9", mtime_ns=5).attributes
    assert kept.mtime_ns(node) == 5
    kept.published(node, "mesh-draft")  # `cp -p` sets it before it closes
    assert kept.mtime_ns(node) == 77
    node.attributes = node_of("f", "mesh-one=10", mtime_ns=6).attributes
    assert kept.mtime_ns(node) == 77  # the same content, whatever the under-store calls it
    kept.published(node, "mesh-another")
    kept.changed(node)
    assert kept.mtime_ns(node) == 6


def test_the_oldest_is_forgotten_when_there_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edits_module, "KEPT_MAX", 2)
    kept = KeptAttributes()
    for path in ("a", "b", "a", "c"):
        kept.make(path).uid = 1
    assert [kept.of(node_of(path, "1")).uid for path in "abc"] == [1, None, 1]


async def test_modes_owners_and_times_stay_with_a_file(tmp_path: Path) -> None:
    async with mounted(tmp_path, origin()) as (a, b):
        node, handle = await a.create("new")
        await a.view.write(handle, 0, b"one")
        a.view.edits.set_owner(node, 7, None)
        a.view.edits.set_owner(node, None, 8)
        a.view.edits.set_mtime(node, 123)
        await a.view.edits.set_mode(node, 0o604)
        await a.view.flush(handle)
        assert (a.view.rights(node), a.view.kept.mtime_ns(node)) == ((7, 8, 0o604), 123)
        assert (await b.client.stat("new")).attributes.mode == 0o604
        await a.rename("new", "moved")
        assert (a.view.rights(node), a.view.kept.mtime_ns(node)) == ((7, 8, 0o604), 123)
        await a.view.write(handle, 3, b"two")
        assert a.view.kept.mtime_ns(node) == node.attributes.mtime_ns != 123
        await a.view.release(handle)
