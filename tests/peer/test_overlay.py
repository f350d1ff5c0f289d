"""Names that owners show before the under-store has them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from mesh.blocks import Attributes, written_tag
from mesh.errors import StoreFull
from mesh.peer import overlay as overlay_module
from mesh.peer.overlay import BELIEVED_S, End, Overlay
from mesh.store.entries import directory_key
from mesh.store.store import BlockStore, StoreSettings, open_store
from mesh.testing.clock import ManualClock
from mesh.testing.memory import SOURCE, MemoryUnderStore
from mesh.understore.table import MountTable
from mesh.understore.understore import UnderStoreSettings
from mesh.wire.staged import StagedFile

DIRECTORY = directory_key(SOURCE, "ckpt")
FILE = StagedFile("t" * 32, "ckpt/f", 5, "", 0o644, 7, ("a", "b"), 100.0)
NEWER = replace(FILE, token="u" * 32, queued_s=200.0)


class Mesh:
    """Who is there, and what time it is."""

    def __init__(self) -> None:
        self.up = {"a", "b"}
        self.owned = {DIRECTORY}
        self.clock = ManualClock()
        table = {"/": UnderStoreSettings(url=SOURCE)}
        self.table = MountTable(table, {SOURCE: MemoryUnderStore()})

    async def overlay(self, store: BlockStore) -> Overlay:
        overlay = Overlay(
            self.table,
            store.staged_names,
            store.ended,
            self.up.__contains__,
            self.owned.__contains__,
            self.clock,
        )
        await overlay.load()
        return overlay


@asynccontextmanager
async def opened(root: Path) -> AsyncIterator[BlockStore]:
    settings = StoreSettings(directory=root / "store", capacity_bytes=1 << 30)
    async with open_store(settings, cluster="test") as store:
        yield store


async def test_what_is_staged_is_shown_until_it_is_persisted(tmp_path: Path) -> None:
    mesh = Mesh()
    async with opened(tmp_path) as store:
        overlay = await mesh.overlay(store)
        await overlay.put(FILE)
        assert overlay.look(DIRECTORY, "f") == FILE
        assert overlay.names(DIRECTORY) == {"f": FILE.attributes}
        about = Attributes(False, 5, 9, written_tag(FILE.token, "etag"))
        assert await overlay.persisted("ckpt/f", about)
        assert overlay.look(DIRECTORY, "f") is None
        assert await overlay.claim(FILE) is None


async def test_a_restart_forgets_nothing(tmp_path: Path) -> None:
    mesh = Mesh()
    async with opened(tmp_path) as store:
        overlay = await mesh.overlay(store)
        await overlay.put(FILE)
        await overlay.put(replace(FILE, token="e" * 32, path="ckpt/gone"))
        await overlay.forget(DIRECTORY, "gone")
    async with opened(tmp_path) as store:
        overlay = await mesh.overlay(store)
        assert overlay.names(DIRECTORY) == {"f": FILE.attributes}
        assert await overlay.claim(replace(FILE, token="e" * 32, path="ckpt/gone")) is None


async def test_the_newer_one_of_two_is_shown_whoever_claims_first(tmp_path: Path) -> None:
    mesh = Mesh()
    async with opened(tmp_path) as store:
        overlay = await mesh.overlay(store)
        assert await overlay.claim(FILE) == FILE
        assert await overlay.claim(NEWER) == NEWER
        assert await overlay.claim(FILE) is None
        assert overlay.look(DIRECTORY, "f") == NEWER


async def test_a_newer_one_learns_what_an_older_one_has_put_there(tmp_path: Path) -> None:
    mesh = Mesh()
    async with opened(tmp_path) as store:
        overlay = await mesh.overlay(store)
        await overlay.put(replace(FILE, over="base"))
        await overlay.put(NEWER)
        assert await overlay.claim(NEWER) == replace(NEWER, over="base")
        about = Attributes(False, 5, 9, written_tag(FILE.token, "etag"))
        assert not await overlay.persisted("ckpt/f", about)
        assert await overlay.claim(NEWER) == replace(NEWER, over="etag")


async def test_what_no_holder_speaks_of_is_not_believed_for_ever(tmp_path: Path) -> None:
    mesh = Mesh()
    async with opened(tmp_path) as store:
        overlay = await mesh.overlay(store)
        await overlay.put(FILE)
        mesh.clock.advance(BELIEVED_S)
        assert overlay.look(DIRECTORY, "f") is None
        mesh.up.clear()  # who could have spoken is away
        assert overlay.look(DIRECTORY, "f") == FILE
        mesh.up.add("b")
        await overlay.claim(FILE)
        assert overlay.look(DIRECTORY, "f") == FILE


async def test_a_holder_who_missed_a_rename_is_told_where_the_file_is(tmp_path: Path) -> None:
    mesh = Mesh()
    renamed = replace(FILE, path="ckpt/g")
    async with opened(tmp_path) as store:
        overlay = await mesh.overlay(store)
        await overlay.put(FILE)
        await overlay.put(renamed)
        await overlay.forget(DIRECTORY, "f", moved_to="ckpt/g")
    async with opened(tmp_path) as store:
        overlay = await mesh.overlay(store)
        assert await overlay.claim(FILE) == renamed
        await overlay.put(replace(NEWER, path="ckpt/f"))  # another one has its old name
        assert await overlay.claim(FILE) == renamed
        assert await overlay.claim(renamed) == renamed
        # Renamed back, it is what it was.
        await overlay.put(FILE)
        await overlay.forget(DIRECTORY, "g", moved_to="ckpt/f")
        assert await overlay.claim(FILE) == FILE
        assert await overlay.claim(renamed) == FILE


async def test_what_is_ended_at_one_path_is_not_ended_at_another(tmp_path: Path) -> None:
    mesh = Mesh()
    async with opened(tmp_path) as store:
        overlay = await mesh.overlay(store)
        await overlay.put(NEWER)
        assert await overlay.claim(FILE) is None  # it comes too late there
        elsewhere = replace(FILE, path="ckpt/g")
        assert await overlay.claim(elsewhere) == elsewhere


async def test_all_who_say_that_they_hold_a_file_are_its_holders(tmp_path: Path) -> None:
    mesh = Mesh()
    async with opened(tmp_path) as store:
        overlay = await mesh.overlay(store)
        await overlay.put(FILE)
        other = replace(FILE, holders=("a", "c"))
        for _ in range(2):
            assert await overlay.claim(other) == replace(FILE, holders=("a", "b", "c"))
            assert await overlay.claim(FILE) == replace(FILE, holders=("a", "b", "c"))


async def test_what_ended_long_ago_is_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(overlay_module, "ENDED_MAX", 2)
    mesh = Mesh()
    async with opened(tmp_path) as store:
        overlay = await mesh.overlay(store)
        for number in range(3):
            await overlay.end(FILE.token, f"ckpt/{number}")
        assert len(await store.ended.all()) == 2
        assert await overlay.claim(replace(FILE, path="ckpt/0")) is not None
        assert await overlay.claim(replace(FILE, path="ckpt/2")) is None


async def test_what_was_claimed_elsewhere_before_a_restart_is_claimed_again(tmp_path: Path) -> None:
    """Its owners were away then, and were told later what became of it."""
    mesh = Mesh()
    async with opened(tmp_path) as store:
        await (await mesh.overlay(store)).claim(FILE)
        mesh.owned.clear()
        overlay = await mesh.overlay(store)
        assert overlay.look(DIRECTORY, "f") is None
        assert not overlay.names(DIRECTORY)
        assert overlay.told(lambda directory: True) == ([], {})
        assert await overlay.claim(FILE) == FILE
        assert overlay.names(DIRECTORY) == {"f": FILE.attributes}
        mesh.owned.add(DIRECTORY)
        overlay = await mesh.overlay(store)
        assert overlay.look(DIRECTORY, "f") == FILE


async def test_what_was_renamed_over_a_newer_file_is_there(tmp_path: Path) -> None:
    mesh = Mesh()
    renamed = replace(FILE, named_s=300.0)
    async with opened(tmp_path) as store:
        overlay = await mesh.overlay(store)
        await overlay.put(NEWER)
        assert await overlay.claim(renamed) == replace(renamed, over="")
        assert overlay.names(DIRECTORY) == {"f": FILE.attributes}
        assert await overlay.claim(NEWER) is None
        # Its mount knows it without the time.
        await overlay.put(FILE)
        assert overlay.look(DIRECTORY, "f").named_s == 300.0


async def test_what_has_ended_is_not_staged_again_by_a_restart(tmp_path: Path) -> None:
    """The peer was killed when it had journaled the end, and not yet that the name is free."""
    mesh = Mesh()
    async with opened(tmp_path) as store:
        overlay = await mesh.overlay(store)
        await overlay.put(FILE)
        await overlay.end(FILE.token, FILE.path)
    async with opened(tmp_path) as store:
        overlay = await mesh.overlay(store)
        assert overlay.names(DIRECTORY) == {}
        assert not overlay.has(DIRECTORY, "f")


async def test_what_was_staged_before_gives_way_to_what_was_done_meanwhile(
    tmp_path: Path,
) -> None:
    mesh = Mesh()
    async with opened(tmp_path) as store:
        overlay = await mesh.overlay(store)
        await overlay.put(FILE)
        await overlay.outdate("ckpt/f")
        assert overlay.look(DIRECTORY, "f") == FILE, "that was said to this run of the peer"
    async with opened(tmp_path) as store:
        overlay = await mesh.overlay(store)
        await overlay.outdate("ckpt/f")
        assert overlay.look(DIRECTORY, "f") is None
        assert await overlay.claim(FILE) == FILE, "its holder knows better"


async def test_what_another_owner_tells_is_known_though_the_disk_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mesh = Mesh()
    async with opened(tmp_path) as store:
        overlay = await mesh.overlay(store)
        await overlay.put(FILE)

        async def full(values: object) -> None:
            raise StoreFull("journal: no space left")

        for notes in (store.staged_names, store.ended):
            monkeypatch.setattr(notes, "put", full)
        ended = {overlay_module._end_key(FILE.token, FILE.path): End(9e9, tag="its tag").packed()}
        other = replace(NEWER, path="ckpt/g")
        assert await overlay.learn([other], ended) == ([other], [FILE])
        assert overlay.names(DIRECTORY) == {"g": other.attributes}
        assert await overlay.claim(FILE) is None
