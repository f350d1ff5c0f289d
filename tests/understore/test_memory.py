"""What tests can do with a `MemoryUnderStore` besides what every under-store can."""

from __future__ import annotations

import asyncio

import pytest

from mesh.errors import NotADirectory, NotFound, UnderStoreUnavailable
from mesh.testing.memory import MemoryUnderStore


async def test_uploads_are_counted_and_wait_for_the_gate() -> None:
    store = MemoryUnderStore()
    store.upload_gate.clear()
    upload = await store.upload("d/f")
    await upload.add(b"1")
    publishing = asyncio.create_task(upload.publish(over=""))
    await asyncio.sleep(0.01)
    assert not publishing.done()
    assert store.files == {}
    store.upload_gate.set()
    about = await publishing
    assert about == await store.stat("d/f")
    assert store.files == {"d/f": b"1"}
    assert store.uploads == {"d/f": 1}


async def test_whoever_changes_one_that_is_away_hears_of_it_and_may_go_on_later() -> None:
    store = MemoryUnderStore({"f": b"1", "d/f": b"2"})
    upload = await store.upload("new")
    await upload.add(b"new")
    store.go_away()
    for call in (
        lambda: store.upload("x"),
        lambda: upload.add(b"x"),
        lambda: upload.publish(over=""),
        lambda: store.remove("f"),
        lambda: store.make_directory("e"),
        lambda: store.remove_directory("d"),
        lambda: store.move("f", "g", over=""),
        lambda: store.set_mode("f", 0o600),
    ):
        with pytest.raises(UnderStoreUnavailable):
            await call()
    assert store.files == {"f": b"1", "d/f": b"2"}
    assert store.uploads == {"new": 1}
    store.come_back()
    await upload.publish(over="")
    assert store.files["new"] == b"new"


async def test_every_change_has_a_tag_of_its_own() -> None:
    store = MemoryUnderStore({"a": b"1", "b": b"2"})
    store.write("a", b"3")
    tags = [(await store.stat("a")).tag]
    for path, target in (("a", "b"), ("b", "a"), ("a", "d/c"), ("d", "e")):
        await store.move(path, target, over=None)
        tags.append((await store.stat("e/c" if target == "e" else target)).tag)
    assert len(set(tags)) == len(tags)


async def test_a_file_is_removed_at_once_by_who_does_not_await_it() -> None:
    store = MemoryUnderStore({"f": b"1"})
    store.remove("f")
    assert store.files == {}
    with pytest.raises(NotFound):
        store.remove("f")
    with pytest.raises(NotADirectory):
        await MemoryUnderStore({"f": b"1"}).upload("f/below")
