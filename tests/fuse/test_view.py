"""The tree that a mount shows, over a real peer and without a kernel."""

from __future__ import annotations

import errno
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from mesh import errors
from mesh.blocks import MIB, DirectoryEntry
from mesh.client.client import MeshClient
from mesh.errors import IsADirectory, MeshError, NotFound, Stale, UnderStoreUnavailable
from mesh.fuse.errnos import errno_for
from mesh.fuse.nodes import ROOT
from mesh.fuse.view import XATTRS, View
from mesh.store.entries import directory_key
from mesh.testing.clock import ManualClock
from mesh.testing.cluster import running_cluster
from mesh.testing.memory import SOURCE, MemoryUnderStore
from mesh.understore.understore import PAGE_ENTRIES

DATA = Random(3).randbytes(2 * MIB)
COUNT = 2500
NAMES = [f"{number:04}" for number in range(COUNT)]


def origin() -> MemoryUnderStore:
    return MemoryUnderStore({"dir/sub/f": DATA, "dir/g": b"", "top": b"123"})


@asynccontextmanager
async def mounted(
    root: Path, under_store: MemoryUnderStore, *, max_age_s: float = 0.0
) -> AsyncIterator[tuple[View, MeshClient]]:
    async with (
        running_cluster(root, ("a",), under_store, max_age_s=max_age_s) as cluster,
        cluster.client("a") as client,
    ):
        yield View(client), client


async def walk(view: View, path: str) -> int:
    """Look up the parts of a path, as the kernel does; return the number of the last."""
    number = ROOT
    for name in path.split("/"):
        number = (await view.lookup(number, name)).number
    return number


async def read(view: View, handle: int, size_bytes: int = len(DATA)) -> bytes:
    target = memoryview(bytearray(size_bytes))
    return bytes(target[: await view.file(handle).read(0, target)])


# Names


async def test_names_lead_to_nodes_and_back(tmp_path: Path) -> None:
    async with mounted(tmp_path, origin()) as (view, _):
        folder = await view.lookup(ROOT, "dir")
        inner = await view.lookup(folder.number, "sub")
        node = await view.lookup(inner.number, "f")
        assert (node.path, node.attributes.size_bytes) == ("dir/sub/f", len(DATA))
        assert await view.lookup(inner.number, "f") is node
        assert await view.lookup(inner.number, ".") is inner
        assert await view.lookup(inner.number, "..") is folder
        assert await view.lookup(folder.number, "..") is view.nodes.node(ROOT)
        with pytest.raises(NotFound):
            await view.lookup(folder.number, "nothing")


async def test_references_are_counted_and_taken_back(tmp_path: Path) -> None:
    async with mounted(tmp_path, origin()) as (view, _):
        for _ in range(3):
            top = await view.lookup(ROOT, "top")
        folder = await view.lookup(ROOT, "dir")
        await view.lookup(folder.number, ".")
        assert (top.lookups, folder.lookups, len(view.nodes)) == (3, 2, 3)
        await view.attributes(top.number)
        assert top.lookups == 3
        view.forget(top.number, 2)
        assert view.nodes.node(top.number) is top
        view.forget(top.number, 1)
        view.forget(folder.number, 2)
        assert len(view.nodes) == 1
        assert (await view.lookup(ROOT, "top")).number == top.number


async def test_freshness_is_what_the_mount_table_allows(tmp_path: Path) -> None:
    async with mounted(tmp_path, origin(), max_age_s=60) as (view, _):
        assert 50 < (await view.lookup(ROOT, "top")).fresh_s <= 60


async def test_numbers_are_the_same_in_two_mounts(tmp_path: Path) -> None:
    paths = ["dir/sub/f", "dir/g", "top", "dir"]
    async with (
        running_cluster(tmp_path, ("a", "b"), origin()) as cluster,
        cluster.client("a") as a,
        cluster.client("b") as b,
    ):
        one, two = View(a), View(b)
        for path in ("dir/sub", "dir", ""):  # one of them has listed everything before
            async for page in a.scan(path):
                for entry in page.entries:
                    one.note_listed(entry, f"{path}/{entry.name}".lstrip("/"))
        here = [await walk(one, path) for path in paths]
        there = [await walk(two, path) for path in reversed(paths)]
        assert here == list(reversed(there))


# Files


async def test_a_file_is_opened_read_and_released(tmp_path: Path) -> None:
    async with mounted(tmp_path, origin()) as (view, _):
        number = await walk(view, "dir/sub/f")
        one, two = await view.open(number), await view.open(number)
        assert one != two
        assert await read(view, one) == DATA
        await view.release(one)
        assert view.nodes.node(number).opens == 1
        assert await read(view, two) == DATA
        await view.release(two)
        assert view.nodes.node(number).opens == 0


async def test_a_directory_has_no_bytes(tmp_path: Path) -> None:
    async with mounted(tmp_path, origin()) as (view, _):
        with pytest.raises(IsADirectory):
            await view.open(await walk(view, "dir"))


async def test_a_new_version_gets_a_new_node_and_the_old_one_is_stale(tmp_path: Path) -> None:
    under_store = origin()
    async with mounted(tmp_path, under_store) as (view, _):
        old = await walk(view, "dir/sub/f")
        under_store.write("dir/sub/f", DATA[::-1])
        with pytest.raises(Stale):
            await view.open(old)
        with pytest.raises(Stale):
            await view.attributes(old)
        new = await walk(view, "dir/sub/f")
        assert new != old
        handle = await view.open(new)
        assert await read(view, handle) == DATA[::-1]
        await view.release(handle)
        view.forget(old, 1)
        assert (await view.attributes(new)).number == new


async def test_a_node_is_opened_without_asking_while_it_is_fresh(tmp_path: Path) -> None:
    under_store, clock = origin(), ManualClock()
    async with mounted(tmp_path, under_store, max_age_s=60) as (_, client):
        view = View(client, clock=clock)
        number = await walk(view, "top")
        asked = under_store.stats
        under_store.go_away()
        await view.release(await view.open(number))
        under_store.come_back()
        under_store.write("top", b"longer")
        clock.advance(61)
        await client.stat("top", refresh=True)
        with pytest.raises(Stale):
            await view.open(number)
        assert under_store.stats == asked + 1


async def test_whoever_read_a_stale_file_can_open_it_again_at_once(tmp_path: Path) -> None:
    """With a `max_age` of a minute it would otherwise be ESTALE for a minute."""
    under_store = origin()
    async with mounted(tmp_path, under_store, max_age_s=60) as (view, _):
        number = await walk(view, "dir/sub/f")
        handle = await view.open(number)
        under_store.write("dir/sub/f", DATA[::-1])
        with pytest.raises(Stale):
            await read(view, handle)
        await view.release(handle)
        with pytest.raises(Stale):  # upon which the kernel looks the path up again
            await view.open(number)
        handle = await view.open(await walk(view, "dir/sub/f"))
        assert await read(view, handle) == DATA[::-1]
        await view.release(handle)


async def test_an_open_file_keeps_its_version_and_is_never_a_mix(tmp_path: Path) -> None:
    under_store = origin()
    async with mounted(tmp_path, under_store) as (view, _):
        number = await walk(view, "dir/sub/f")
        handle = await view.open(number)
        assert await read(view, handle, 10) == DATA[:10]
        under_store.write("dir/sub/f", b"short")
        assert (await view.attributes(number)).attributes.size_bytes == len(DATA)
        again = await view.open(number)  # while it is open, the kernel has its pages
        assert await read(view, again, 10) == DATA[:10]
        with pytest.raises(Stale):
            await read(view, handle)
        assert await walk(view, "dir/sub/f") != number
        await view.release(handle)
        await view.release(again)
        with pytest.raises(Stale):
            await view.attributes(number)


async def test_a_removed_file_is_gone_and_its_number_is_not_given_away(tmp_path: Path) -> None:
    under_store = origin()
    async with mounted(tmp_path, under_store, max_age_s=0) as (view, _):
        number = await walk(view, "dir/g")
        under_store.remove("dir/g")
        with pytest.raises(NotFound):
            await view.attributes(number)
        with pytest.raises(NotFound):
            await walk(view, "dir/g")
        under_store.write("dir/g", b"")
        assert await walk(view, "dir/g") != number
        view.forget(number, 1)


async def test_the_under_store_is_away_and_what_is_known_can_be_opened(tmp_path: Path) -> None:
    under_store = origin()
    async with mounted(tmp_path, under_store) as (view, _):
        number = await walk(view, "dir/sub/f")
        handle = await view.open(number)
        assert await read(view, handle) == DATA
        await view.release(handle)
        under_store.go_away()
        handle = await view.open(await walk(view, "dir/sub/f"))
        assert await read(view, handle) == DATA
        await view.release(handle)
        with pytest.raises(UnderStoreUnavailable):
            await view.lookup(ROOT, "unknown")


# Directories


class Big(MemoryUnderStore):
    """2,500 entries; goes away after so many pages."""

    def __init__(self) -> None:
        super().__init__({f"big/{name}": b"" for name in NAMES})
        self.pages_left = 1000

    async def scan(self, path: str) -> AsyncIterator[list[DirectoryEntry]]:
        async for page in super().scan(path):
            if self.pages_left == 0:
                raise UnderStoreUnavailable("switched off by the test half-way")
            self.pages_left -= 1
            yield page


async def listed(view: View, handle: int, start: int, *, at_most: int = COUNT) -> list[str]:
    """Take entries as one readdir does: until its buffer is full."""
    names: list[str] = []
    async for number, entry, path in view.entries(handle, start):
        if len(names) == at_most:
            break
        assert number == start + len(names)
        assert path == f"big/{entry.name}"
        names.append(entry.name)
    return names


async def test_a_big_directory_is_streamed_a_page_at_a_time(tmp_path: Path) -> None:
    under_store = Big()
    async with mounted(tmp_path, under_store) as (view, _):
        handle = view.open_directory(await walk(view, "big"))
        directory = view._handles.directories[handle]
        names: list[str] = []
        while part := await listed(view, handle, len(names), at_most=77):
            names += part
            assert len(directory.page) <= PAGE_ENTRIES
        assert names == NAMES
        assert under_store.listings == 1
        assert await listed(view, handle, COUNT) == []
        view.release_directory(handle)


@pytest.mark.parametrize("stop", [1, 999, 1000, 1001, 2500])
async def test_a_rewound_directory_begins_again(tmp_path: Path, stop: int) -> None:
    """rewinddir(), and every `ls` of a shell that keeps the descriptor."""
    async with mounted(tmp_path, Big()) as (view, _):
        handle = view.open_directory(await walk(view, "big"))
        assert await listed(view, handle, 0, at_most=stop) == NAMES[:stop]
        assert await listed(view, handle, 0) == NAMES
        assert await listed(view, handle, 0) == NAMES
        view.release_directory(handle)


@pytest.mark.parametrize(
    ("first", "second"), [(2400, 1500), (1500, 999), (700, 650), (0, 2100), (2499, 2500)]
)
async def test_seeks_land_where_they_should(tmp_path: Path, first: int, second: int) -> None:
    async with mounted(tmp_path, Big()) as (view, _):
        handle = view.open_directory(await walk(view, "big"))
        assert await listed(view, handle, first, at_most=50) == NAMES[first : first + 50]
        assert await listed(view, handle, second) == NAMES[second:]
        view.release_directory(handle)


async def extend(names: list[str], view: View, handle: int) -> None:
    """Go on to the end, some names at a time."""
    while part := await listed(view, handle, len(names), at_most=300):
        names += part


@pytest.mark.parametrize("pages", [0, 1, 2])
async def test_an_error_in_the_middle_is_an_error_and_never_a_short_listing(
    tmp_path: Path, pages: int
) -> None:
    """`cp -r` of half a directory would be a silent loss."""
    under_store = Big()
    async with mounted(tmp_path, under_store) as (view, _):
        handle = view.open_directory(await walk(view, "big"))
        under_store.pages_left = pages
        names: list[str] = []
        for _ in range(2):  # a caller that just goes on gets the error again
            with pytest.raises(UnderStoreUnavailable):
                await extend(names, view, handle)
        under_store.pages_left = 1000
        await extend(names, view, handle)
        assert names == NAMES
        view.release_directory(handle)


async def test_a_listing_goes_on_at_another_peer(tmp_path: Path) -> None:
    async with (
        running_cluster(tmp_path, ("a", "b"), Big()) as cluster,
        cluster.client("a") as client,
    ):
        client.here.close()  # the store of a peer that stops
        view = View(client)
        handle = view.open_directory(await walk(view, "big"))
        names = await listed(view, handle, 0, at_most=300)
        await cluster.stop("a")
        names += await listed(view, handle, 300)
        assert names == NAMES
        view.release_directory(handle)


async def test_a_listing_goes_on_when_its_peer_has_dropped_it(tmp_path: Path) -> None:
    async with (
        running_cluster(tmp_path, ("a",), Big()) as cluster,
        cluster.client("a") as client,
    ):
        view = View(client)
        handle = view.open_directory(await walk(view, "big"))
        names = await listed(view, handle, 0, at_most=300)
        await cluster.peers["a"].store.entries.forget(directory_key(SOURCE, "big"))
        names += await listed(view, handle, 300)
        assert names == NAMES
        view.release_directory(handle)


async def test_what_a_listing_shows_is_what_a_look_up_finds(tmp_path: Path) -> None:
    async with mounted(tmp_path, origin(), max_age_s=60) as (view, _):
        handle = view.open_directory(ROOT)
        nodes = {}
        async for _, entry, path in view.entries(handle, 0):
            fresh_s = view.listed_for_s(handle)
            nodes[entry.name] = view.note_listed(entry, path, fresh_s=fresh_s)
        view.release_directory(handle)
        assert nodes.keys() == {"dir", "top"}
        for name, node in nodes.items():
            assert node.lookups == 0
            assert 50 < node.fresh_s <= 60
            assert await view.lookup(ROOT, name) is node
        assert nodes["top"].file is not None


async def test_a_listing_leaves_an_open_file_alone(tmp_path: Path) -> None:
    under_store = origin()
    async with mounted(tmp_path, under_store) as (view, client):
        number = await walk(view, "top")
        handle = await view.open(number)
        under_store.write("top", b"longer")
        (page,) = [page async for page in client.scan("")]
        (entry,) = [entry for entry in page.entries if entry.name == "top"]
        assert view.note_listed(entry, "top") is view.nodes.node(number)
        await view.release(handle)
        assert view.note_listed(entry, "top") is not view.nodes.node(number)


class Untagged(MemoryUnderStore):
    """Names no tags in listings, as S3 does through pyarrow."""

    async def scan(self, path: str) -> AsyncIterator[list[DirectoryEntry]]:
        async for page in super().scan(path):
            yield [replace(e, attributes=replace(e.attributes, tag="")) for e in page]


async def test_a_file_that_was_only_listed_can_be_opened(tmp_path: Path) -> None:
    async with mounted(tmp_path, Untagged(origin().files), max_age_s=60) as (view, client):
        (page,) = [page async for page in client.scan("dir/sub")]
        node = view.note_listed(page.entries[0], "dir/sub/f")
        assert node.file is None
        handle = await view.open(node.number)
        assert await read(view, handle) == DATA
        await view.release(handle)


# Extended attributes


async def test_extended_attributes_say_version_and_how_much_is_here(tmp_path: Path) -> None:
    under_store = origin()
    async with mounted(tmp_path, under_store) as (view, _):
        number = await walk(view, "dir/sub/f")
        version = under_store.version("dir/sub/f", block_bytes=MIB).id.hex()
        before = [await view.xattr(number, name) for name in XATTRS[:3]]
        assert before == [version, "0/2", "0"]
        assert 0 <= float(await view.xattr(number, "user.mesh.age") or "nothing") < 60
        handle = await view.open(number)
        assert await read(view, handle) == DATA
        # And once more, so that the blocks are whole: the wanted pieces came first.
        assert await read(view, handle) == DATA
        await view.release(handle)
        under_store.go_away()
        after = [await view.xattr(number, name) for name in XATTRS[:3]]
        assert after == [version, "2/2", "1"]


async def test_directories_and_strangers_have_none(tmp_path: Path) -> None:
    async with mounted(tmp_path, origin()) as (view, _):
        assert await view.xattr(ROOT, "user.mesh.version") is None
        assert await view.xattr(ROOT, "user.mesh.cached") is None
        assert await view.xattr(await walk(view, "top"), "security.capability") is None


# Errors

MEANINGS = {
    errors.NotFound: errno.ENOENT,
    errors.Refused: errno.EACCES,
    errors.NotADirectory: errno.ENOTDIR,
    errors.IsADirectory: errno.EISDIR,
    errors.Stale: errno.ESTALE,
    errors.ListingGone: errno.EIO,
    errors.BlockCorrupt: errno.EIO,
    errors.Unavailable: errno.EIO,
    errors.PeerUnavailable: errno.EIO,
    errors.Busy: errno.EIO,
    errors.UnderStoreUnavailable: errno.EIO,
    errors.NotEmpty: errno.ENOTEMPTY,
    errors.StoreFull: errno.ENOSPC,
    errors.Exists: errno.EEXIST,
    errors.ReadOnly: errno.EROFS,
    errors.Elsewhere: errno.EXDEV,
    errors.Unusable: errno.EIO,
    MeshError: errno.EIO,
}


def all_errors(kind: type[MeshError] = MeshError) -> set[type[MeshError]]:
    return {kind}.union(*map(all_errors, kind.__subclasses__()))


@pytest.mark.parametrize(
    "kind",
    sorted(
        (kind for kind in all_errors() if kind.__module__ == "mesh.errors"),
        key=lambda kind: kind.__name__,
    ),
)
def test_every_error_has_its_errno(kind: type[MeshError]) -> None:
    assert errno_for(kind.__new__(kind)) == MEANINGS[kind]
