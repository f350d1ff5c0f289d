"""One contract for every under-store that can be written, against real servers of each kind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest

from mesh.blocks import MIB, Attributes
from mesh.errors import (
    Exists,
    IsADirectory,
    MeshError,
    NotADirectory,
    NotEmpty,
    NotFound,
    Refused,
    Stale,
)
from mesh.testing.memory import MemoryUnderStore
from mesh.understore.fsspec import FsspecStore
from mesh.understore.pool import PooledStore
from mesh.understore.s3 import S3Store
from mesh.understore.writable import PART_BYTES_MIN, UPLOAD_PREFIX, Writable
from tests.contracts import understores
from tests.contracts.understores import Subject, boto, names, new_bucket, s3_settings, whole

SERVERS: dict[str, Callable[[Any], Subject]] = {
    "moto": understores.s3,
    "weed": understores.s3,
    "hdfs": understores.hdfs,
}
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in SERVERS]


@pytest.fixture(params=["memory", "directory", "fsspec-memory", "fsspec-file", *SLOW])
async def subject(request: Any, tmp_path: Path) -> AsyncIterator[Subject]:
    if request.param in SERVERS:
        made = SERVERS[request.param](request.getfixturevalue(request.param))
    else:
        made = understores.without_server(request.param, tmp_path)
    yield made
    await made.store.aclose()


def writable(subject: Subject) -> Writable:
    store = subject.store
    assert isinstance(store, PooledStore | MemoryUnderStore)
    return store


async def put(
    subject: Subject, path: str, data: bytes, *, over: str | None = "", mode: int | None = None
) -> Attributes:
    upload = await writable(subject).upload(path, mode=mode)
    await upload.add(data)
    return await upload.publish(over=over)


async def test_what_was_published_is_read_and_named_alike(subject: Subject, noise: Random) -> None:
    data = noise.randbytes(MIB + 3)
    about = await put(subject, "a/b/file", data)
    assert about == await subject.store.stat("a/b/file")
    assert (about.is_directory, about.size_bytes) == (False, len(data))
    assert about.tag
    assert await whole(subject.store, "a/b/file") == data
    assert await names(subject.store, "a/b") == {"file": False}


async def test_an_empty_file(subject: Subject) -> None:
    upload = await writable(subject).upload("empty")
    assert (await upload.publish(over="")).size_bytes == 0
    assert await whole(subject.store, "empty") == b""


@pytest.mark.parametrize("is_known", [False, True])
async def test_what_comes_in_pieces_is_in_order(
    subject: Subject, noise: Random, *, is_known: bool
) -> None:
    """More than four parts, the last one short; the pieces are not as long as parts."""
    data = noise.randbytes(5 * PART_BYTES_MIN + 12345)
    size_bytes = len(data) if is_known else None
    upload = await writable(subject).upload("big", size_bytes=size_bytes)
    piece = bytearray(3 * MIB)
    for start in range(0, len(data), len(piece)):
        run = data[start : start + len(piece)]
        piece[: len(run)] = run
        await upload.add(memoryview(piece)[: len(run)])
        piece[:] = bytes(len(piece))  # it was taken
    about = await upload.publish(over="")
    assert about == await subject.store.stat("big")
    assert await whole(subject.store, "big") == data


async def test_nobody_sees_it_before_it_is_whole(subject: Subject, noise: Random) -> None:
    subject.write("d/old", b"old")
    for path, before in (("d/new", None), ("d/old", b"old")):
        upload = await writable(subject).upload(path)
        for _ in range(3):
            await upload.add(noise.randbytes(4 * MIB))
        assert await names(subject.store, "d") == {"old": False}
        if before is None:
            with pytest.raises(NotFound):
                await subject.store.stat(path)
        else:
            assert await whole(subject.store, path) == before
        await upload.abort()


async def test_an_aborted_one_leaves_nothing(subject: Subject, noise: Random) -> None:
    subject.write("d/other", b"1")
    for pieces in (0, 1, 5):
        upload = await writable(subject).upload("d/gone")
        for _ in range(pieces):
            await upload.add(noise.randbytes(4 * MIB))
        await upload.abort()
        await upload.abort()
    assert await names(subject.store, "d") == {"other": False}


async def test_only_what_was_seen_is_replaced(subject: Subject) -> None:
    first = await put(subject, "f", b"one")
    with pytest.raises(Stale):
        await put(subject, "f", b"exists already", over="")
    with pytest.raises(Stale):
        await put(subject, "f", b"of another", over="no-such-tag")
    with pytest.raises(Stale):
        await put(subject, "nothing", b"was removed", over=first.tag)
    assert await whole(subject.store, "f") == b"one"
    assert await names(subject.store, "") == {"f": False}

    await asyncio.sleep(0.02)
    second = await put(subject, "f", b"two", over=first.tag)
    assert second.tag != first.tag
    assert await whole(subject.store, "f") == b"two"
    await asyncio.sleep(0.02)
    await put(subject, "f", b"three", over=None)
    assert await whole(subject.store, "f") == b"three"


async def test_of_many_that_would_be_the_first_one_is(subject: Subject) -> None:
    async def claim(path: str, number: int) -> int | None:
        upload = await writable(subject).upload(path)
        await upload.add(b"%d" % number)
        try:
            await upload.publish(over="")
        except Stale:
            await upload.abort()
            return None
        return number

    for path in ("a", "b", "c", "d", "e"):
        claims = await asyncio.gather(*(claim(path, number) for number in range(8)))
        won = [number for number in claims if number is not None]
        assert won, "one of them is"
        if not isinstance(subject.store, FsspecStore):  # which can only look before it moves
            assert len(won) == 1
        assert int(await whole(subject.store, path)) in won
    assert await names(subject.store, "") == dict.fromkeys("abcde", False)


async def test_a_file_is_removed_if_it_is_that_one(subject: Subject) -> None:
    about = await put(subject, "f", b"1")
    with pytest.raises(Stale):
        await writable(subject).remove("f", only="no-such-tag")
    assert await whole(subject.store, "f") == b"1"
    await writable(subject).remove("f", only=about.tag)
    for ask in (subject.store.stat, writable(subject).remove):
        with pytest.raises(NotFound):
            await ask("f")


async def test_directories_are_made_and_removed_when_they_are_empty(subject: Subject) -> None:
    store = writable(subject)
    await store.make_directory("a/b")
    await store.make_directory("a/b")
    assert (await subject.store.stat("a/b")).is_directory
    assert await names(subject.store, "a/b") == {}
    assert await names(subject.store, "a") == {"b": True}
    await put(subject, "a/b/f", b"1")
    with pytest.raises(NotEmpty):
        await store.remove_directory("a/b")
    assert await whole(subject.store, "a/b/f") == b"1"
    await store.remove("a/b/f")
    await store.remove_directory("a/b")
    with pytest.raises(NotFound):
        await subject.store.stat("a/b")
    with pytest.raises(NotFound):
        await store.remove_directory("a/b")


async def test_a_file_is_no_directory_and_a_directory_no_file(subject: Subject) -> None:
    store = writable(subject)
    await put(subject, "file", b"1")
    await put(subject, "dir/file", b"1")
    with pytest.raises(NotADirectory):
        await store.make_directory("file")
    with pytest.raises((NotADirectory, NotFound)):
        await store.remove_directory("file")
    with pytest.raises(IsADirectory):
        await put(subject, "dir", b"1")
    with pytest.raises((IsADirectory, NotFound)):
        await store.remove("dir")
    assert await names(subject.store, "dir") == {"file": False}


@pytest.mark.parametrize("name", ["with space", "ünïcödé", "a+b%20c&d", "n" * 200])
async def test_names(subject: Subject, name: str) -> None:
    await put(subject, f"{name}/{name}", b"content")
    assert await names(subject.store, name) == {name: False}
    await writable(subject).remove(f"{name}/{name}")
    with pytest.raises(NotFound):
        await subject.store.stat(f"{name}/{name}")


# What gets another path


async def tree(subject: Subject, path: str) -> dict[str, bytes | None]:
    """Return all below a directory, None for directories."""
    found: dict[str, bytes | None] = {}
    for name, is_directory in (await names(subject.store, path)).items():
        if is_directory:
            found[name] = None
            below = await tree(subject, f"{path}/{name}")
            found |= {f"{name}/{each}": content for each, content in below.items()}
        else:
            found[name] = await whole(subject.store, f"{path}/{name}")
    return found


@pytest.mark.parametrize("over", ["", None])
async def test_a_file_gets_another_path(subject: Subject, noise: Random, over: str | None) -> None:
    data = noise.randbytes(100_000)
    await put(subject, "a/old [1]*?", data)
    await put(subject, "a/old 1", b"no pattern means this one")
    about = await writable(subject).move("a/old [1]*?", "b/c/new [2]", over=over)
    assert about == await subject.store.stat("b/c/new [2]")
    assert (about.is_directory, about.size_bytes) == (False, len(data))
    assert await whole(subject.store, "b/c/new [2]") == data
    assert await names(subject.store, "a") == {"old 1": False}
    with pytest.raises(NotFound):
        await subject.store.stat("a/old [1]*?")


async def test_a_file_takes_the_place_of_the_one_that_was_seen(subject: Subject) -> None:
    store = writable(subject)
    for over_known in (True, False):
        await put(subject, "old", b"replaced", over=None)
        await asyncio.sleep(0.02)
        await put(subject, "new", b"the new one")
        before = await subject.store.stat("old")
        about = await store.move("new", "old", over=before.tag if over_known else None)
        assert about == await subject.store.stat("old")
        assert about.tag != before.tag
        assert await whole(subject.store, "old") == b"the new one"
        assert await names(subject.store, "") == {"old": False}
        with pytest.raises(Stale):
            _ = [run async for run in subject.store.read("old", before, 0, before.size_bytes)]


async def test_what_may_not_be_replaced_stays_and_so_does_what_was_to_be_moved(
    subject: Subject,
) -> None:
    store = writable(subject)
    about = await put(subject, "from", b"from")
    await put(subject, "to", b"to")
    await put(subject, "dir/below", b"below")
    refused: list[tuple[str, str, str | None, type[MeshError]]] = [
        ("from", "to", "", Stale),
        ("from", "to", "no-such-tag", Stale),
        ("from", "nothing", about.tag, Stale),
        ("from", "dir", "", IsADirectory),
        ("from", "dir", None, IsADirectory),
        ("nothing", "to", None, NotFound),
        ("nothing", "new/place", "", NotFound),
        ("dir", "to", None, Exists),
    ]
    for path, target, over, error in refused:
        with pytest.raises(error):
            await store.move(path, target, over=over)
    assert await tree(subject, "dir") == {"below": b"below"}
    assert await names(subject.store, "") == {"from": False, "to": False, "dir": True}
    assert await whole(subject.store, "from") == b"from"
    assert await whole(subject.store, "to") == b"to"
    assert await subject.store.stat("from") == about


async def test_what_is_moved_onto_itself_stays(subject: Subject) -> None:
    about = await put(subject, "d/f", b"1")
    assert await writable(subject).move("d/f", "d/f", over=about.tag) == about
    assert (await writable(subject).move("d", "d", over="")).is_directory
    assert await tree(subject, "d") == {"f": b"1"}


async def test_a_directory_gets_another_path_with_all_below_it(subject: Subject) -> None:
    store = writable(subject)
    for path in ("old", "old/empty", "old/deep/down/empty too"):
        await store.make_directory(path)
    for number in range(30):
        subject.write(f"old/many/{number:02} [x]", b"%d" % number)
    await put(subject, "old/deep/down/file", b"deep")
    await put(subject, "old/top", b"")
    await put(subject, "older", b"begins alike")
    before = await tree(subject, "old")
    assert len(before) == 37
    about = await store.move("old", "else/where/new", over=None)
    assert about == await subject.store.stat("else/where/new")
    assert about.is_directory
    assert await tree(subject, "else/where/new") == before
    with pytest.raises(NotFound):
        await subject.store.stat("old")
    assert await names(subject.store, "") == {"else": True, "older": False}
    await store.make_directory("old")
    assert await names(subject.store, "old") == {}
    assert (await store.move("old", "empty", over=None)).is_directory
    assert await names(subject.store, "empty") == {}


async def test_no_directory_takes_the_place_of_anything(subject: Subject) -> None:
    store = writable(subject)
    await put(subject, "old/file", b"old")
    await put(subject, "full/file", b"full")
    await store.make_directory("empty")
    for target in ("full", "empty", "full/file"):
        with pytest.raises(Exists):
            await store.move("old", target, over=None)
    assert await tree(subject, "old") == {"file": b"old"}
    assert await tree(subject, "full") == {"file": b"full"}
    assert await names(subject.store, "empty") == {}


# Modes


async def test_modes_are_kept_or_it_is_said_that_they_are_not(subject: Subject) -> None:
    store = writable(subject)
    await put(subject, "f", b"1", mode=0o640)
    await store.make_directory("above/d", mode=0o2750)
    await store.make_directory("above/d", mode=0o700)  # it is there already
    about = await subject.store.stat("f")
    above = await subject.store.stat("above")
    kept = await store.set_mode("f", 0o604)
    assert (await subject.store.stat("f")).tag == about.tag
    assert await whole(subject.store, "f") == b"1"
    assert await store.set_mode("above/d", 0o711) is kept
    modes = [(await subject.store.stat(path)).mode for path in ("f", "above/d")]
    if not kept:
        assert isinstance(subject.store, FsspecStore | S3Store)
        assert (about.mode, *modes) == (0, 0, 0)
        return
    assert (about.mode, *modes) == (0o640, 0o604, 0o711)
    assert above.mode != 0o750
    await store.move("f", "g", over="")
    await store.move("above/d", "e", over="")
    assert [(await subject.store.stat(path)).mode for path in ("g", "e")] == [0o604, 0o711]
    with pytest.raises(NotFound):
        await store.set_mode("nothing", 0o600)


@pytest.mark.parametrize("subject", ["memory", "directory", *SLOW[-1:]], indirect=True)
async def test_a_new_content_has_the_mode_of_the_old_one(subject: Subject) -> None:
    new = await put(subject, "f", b"1")
    assert new.mode == (0 if isinstance(subject.store, MemoryUnderStore) else 0o644)
    for mode in (0o600, 0o755):
        await writable(subject).set_mode("f", mode)
        assert (await put(subject, "f", b"%d" % mode, over=None)).mode == mode
    assert (await put(subject, "f", b"last", over=None, mode=0o660)).mode == 0o660
    await writable(subject).make_directory("d", mode=0o750)
    assert (await subject.store.stat("d")).mode == 0o750


# A directory


def in_it(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


async def test_nothing_is_left_on_the_disk_and_nothing_leads_outside(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (tmp_path / "outside").write_bytes(b"mine")
    (root / "link").symlink_to(tmp_path / "outside")
    (root / "away").symlink_to(tmp_path)
    made = understores.directory(root)
    for path in ("link", "away/outside", "away/new"):
        with pytest.raises(NotFound):
            await put(made, path, b"theirs", over=None)
    with pytest.raises(NotFound):
        await writable(made).remove("away/outside")
    upload = await writable(made).upload("d/f")
    await upload.add(b"1")
    [left] = (root / "d").iterdir()
    assert left.name.startswith(UPLOAD_PREFIX)
    await upload.abort()
    assert in_it(root / "d") == []
    assert in_it(tmp_path) == ["outside", "root"]
    assert (tmp_path / "outside").read_bytes() == b"mine"
    await made.store.aclose()


async def test_a_link_within_is_written_through(tmp_path: Path) -> None:
    (tmp_path / "real").write_bytes(b"1")
    (tmp_path / "link").symlink_to("real")
    made = understores.directory(tmp_path)
    await put(made, "link", b"2", over=(await made.store.stat("link")).tag)
    assert (tmp_path / "real").read_bytes() == b"2"
    assert (tmp_path / "link").is_symlink()
    await writable(made).remove("link")
    assert in_it(tmp_path) == ["real"]
    assert (tmp_path / "real").read_bytes() == b"2"
    await made.store.aclose()


# HDFS


@pytest.mark.slow
async def test_of_one_millisecond_no_two_contents_have_one_name(hdfs: Any) -> None:
    made = understores.hdfs(hdfs)
    for path in ("f", "g"):
        await put(made, path, path.encode(), mode=0o640)
        store: Any = made.store
        hdfs.client().set_times(store._path(path), 1_700_000_000_000, 1_700_000_000_000)
    before = await made.store.stat("f")
    assert before == await made.store.stat("g")
    about = await writable(made).move("g", "f", over=before.tag)
    assert about.tag != before.tag
    assert await whole(made.store, "f") == b"g"
    with pytest.raises(Stale):
        _ = [run async for run in made.store.read("f", before, 0, 1)]
    await made.store.aclose()


# S3


@pytest.mark.slow
@pytest.mark.parametrize("server", ["moto", "weed"])
async def test_no_parts_are_left_of_what_was_aborted(
    request: Any, server: str, noise: Random
) -> None:
    running = request.getfixturevalue(server)
    bucket = new_bucket(running)
    made = understores.opened(s3_settings(running, bucket), None, None)
    upload = await writable(made).upload("big")
    for _ in range(5):
        await upload.add(noise.randbytes(4 * MIB))
    client = boto(running)
    assert len(client.list_multipart_uploads(Bucket=bucket).get("Uploads", ())) == 1
    await upload.abort()
    assert not client.list_multipart_uploads(Bucket=bucket).get("Uploads")
    assert not client.list_objects_v2(Bucket=bucket).get("Contents")
    await made.store.aclose()


@pytest.mark.slow
async def test_an_abort_that_failed_is_tried_again(
    moto: Any, noise: Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = new_bucket(moto)
    made = understores.opened(s3_settings(moto, bucket), None, None)
    upload = await writable(made).upload("big")
    for _ in range(3):
        await upload.add(noise.randbytes(4 * MIB))

    def refuse(*_: object) -> None:
        raise Refused("not now")

    with monkeypatch.context() as broken:
        broken.setattr(made.store, "give_up", refuse)
        with pytest.raises(Refused):
            await upload.abort()
    await upload.abort()
    assert not boto(moto).list_multipart_uploads(Bucket=bucket).get("Uploads")
    await made.store.aclose()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gcs", "azurite"])
async def test_what_cannot_be_written_yet_says_so(request: Any, kind: str) -> None:
    """pyarrow shows what is there of a file that was given up."""
    made = {"gcs": understores.gcs, "azurite": understores.azure}[kind](
        request.getfixturevalue(kind)
    )
    with pytest.raises(Refused, match="can't be written yet"):
        await writable(made).upload("f")
    await made.store.aclose()
