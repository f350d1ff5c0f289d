"""What a directory on a disk has and others have not: links, special bits, other disks."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from mesh.errors import Elsewhere, Exists, NotADirectory, NotFound, Refused, Stale
from mesh.metrics import Metrics
from mesh.understore.local import LocalStore
from mesh.understore.open import open_under_store
from mesh.understore.understore import UnderStoreSettings


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "root").mkdir()
    return tmp_path / "root"


@pytest.fixture
async def store(root: Path) -> AsyncIterator[LocalStore]:
    made = open_under_store(UnderStoreSettings(url=root.as_uri()), Metrics())
    assert isinstance(made, LocalStore)
    yield made
    await made.aclose()


def in_it(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def bits(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


async def put(store: LocalStore, path: str, *, mode: int | None = None) -> None:
    upload = await store.upload(path, mode=mode)
    await upload.publish(over=None)


async def test_nothing_leaves_the_root_and_nothing_comes_in(root: Path, store: LocalStore) -> None:
    (root.parent / "outside").write_bytes(b"mine")
    (root / "away").symlink_to(root.parent)
    (root / "f").write_bytes(b"1")
    for path, target in (("f", "away/f"), ("away/outside", "in"), ("away/outside", "f")):
        with pytest.raises(NotFound):
            await store.move(path, target, over=None)
    assert (root.parent / "outside").read_bytes() == b"mine"
    assert (root / "f").read_bytes() == b"1"
    assert in_it(root.parent) == ["outside", "root"]


async def test_below_a_file_nothing_can_be(root: Path, store: LocalStore) -> None:
    (root / "file").write_bytes(b"1")
    (root / "f").write_bytes(b"2")
    for change in (put(store, "file/below"), store.move("f", "file/below", over="")):
        with pytest.raises(NotADirectory):
            await change
    assert in_it(root) == ["f", "file"]


async def test_a_link_is_moved_itself_as_long_as_it_leads_where_it_did(
    root: Path, store: LocalStore
) -> None:
    (root / "real").write_bytes(b"1")
    (root / "relative").symlink_to("real")
    (root / "absolute").symlink_to(root / "real")
    await store.move("relative", "renamed", over="")
    assert (root / "renamed").readlink() == Path("real")
    (root / "d").mkdir()
    with pytest.raises(Refused, match="relative link"):
        await store.move("renamed", "d/renamed", over="")
    assert (await store.move("absolute", "d/absolute", over="")).size_bytes == 1
    assert (root / "d/absolute").is_symlink()
    assert (root / "real").read_bytes() == b"1"


async def test_of_two_names_of_one_file_the_old_one_goes(root: Path, store: LocalStore) -> None:
    """As a move leaves them that broke off between `link` and `unlink`; rename does nothing."""
    (root / "old").write_bytes(b"1")
    os.link(root / "old", root / "new")
    about = await store.move("old", "new", over=(await store.stat("new")).tag)
    assert about == await store.stat("new")
    assert in_it(root) == ["new"]


async def test_files_of_one_time_and_size_are_told_apart(root: Path, store: LocalStore) -> None:
    """As they come out of an archive."""
    for name in ("a", "b"):
        (root / name).write_text(name)
        os.utime(root / name, ns=(10**18, 10**18))
    before = await store.stat("a")
    about = await store.move("b", "a", over=before.tag)
    assert (root / "a").read_text() == "b"
    assert about.tag != before.tag
    with pytest.raises(Stale):
        _ = [run async for run in store.read("a", before, 0, 1)]


@pytest.mark.parametrize("over", ["", None])
async def test_another_disk_is_elsewhere(
    root: Path, store: LocalStore, monkeypatch: pytest.MonkeyPatch, over: str | None
) -> None:
    (root / "f").write_bytes(b"1")

    def refuse(*_: object) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr("os.rename", refuse)
    monkeypatch.setattr("os.link", refuse)
    with pytest.raises(Elsewhere):
        await store.move("f", "g", over=over)
    assert in_it(root) == ["f"]


async def test_what_came_since_the_look_is_not_replaced(
    root: Path, store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / "f").write_bytes(b"mine")
    (root / "d").mkdir()
    real = store.check_moved

    def late(path: str, target: str, over: str | None) -> Any:
        found = real(path, target, over)
        if path == "f":
            (root / target).write_bytes(b"theirs")
        else:
            (root / target / "theirs").mkdir(parents=True)
        return found

    monkeypatch.setattr(store, "check_moved", late)
    with pytest.raises(Stale):
        await store.move("f", "g", over="")
    with pytest.raises(Exists):
        await store.move("d", "e", over="")
    assert (root / "f").read_bytes() == b"mine"
    assert (root / "g").read_bytes() == b"theirs"
    assert (root / "e/theirs").is_dir()
    assert (root / "d").is_dir()


async def test_nobody_else_reads_what_is_on_its_way(root: Path, store: LocalStore) -> None:
    upload = await store.upload("secret", mode=0o600)
    [on_its_way] = in_it(root)
    assert bits(root / on_its_way) == 0o600
    await upload.publish(over="")
    assert bits(root / "secret") == 0o600


async def test_bits_that_are_no_permissions_stay(root: Path, store: LocalStore) -> None:
    (root / "d").mkdir()
    (root / "d").chmod(0o2755)
    assert await store.set_mode("d", 0o770)
    assert bits(root / "d") == 0o2770
    await put(store, "f", mode=0o6755)
    assert bits(root / "f") == 0o755
    assert await store.set_mode("f", 0o4711)
    assert bits(root / "f") == 0o711


async def test_modes_are_those_that_were_asked_for_whatever_the_umask(
    root: Path, store: LocalStore
) -> None:
    before = os.umask(0o077)
    try:
        await put(store, "f", mode=0o664)
        await put(store, "plain")
        await store.make_directory("d", mode=0o775)
    finally:
        os.umask(before)
    assert [bits(root / name) for name in ("f", "plain", "d")] == [0o664, 0o644, 0o775]
