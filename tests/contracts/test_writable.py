"""One contract for every under-store that can be written, against real servers of each kind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.blocks import GIB, MIB, Attributes
from mesh.errors import IsADirectory, NotADirectory, NotEmpty, NotFound, Refused, Stale
from mesh.understore.fsspec import FsspecStore
from mesh.understore.writable import (
    PART_BYTES_MAX,
    PART_BYTES_MIN,
    PARTS_MAX,
    UPLOAD_PREFIX,
    Writable,
    part_bytes,
)
from tests.contracts import understores
from tests.contracts.understores import Subject, boto, names, new_bucket, s3_settings, whole

SERVERS: dict[str, Callable[[Any], Subject]] = {
    "moto": understores.s3,
    "weed": understores.s3,
    "hdfs": understores.hdfs,
}
TIB = 1024 * GIB
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in SERVERS]


@pytest.fixture(params=["directory", "fsspec-memory", "fsspec-file", *SLOW])
async def subject(request: Any, tmp_path: Path) -> AsyncIterator[Subject]:
    if request.param in SERVERS:
        made = SERVERS[request.param](request.getfixturevalue(request.param))
    else:
        made = understores.without_server(request.param, tmp_path)
    yield made
    await made.store.aclose()


def writable(subject: Subject) -> Writable:
    store: Any = subject.store
    return store  # type: ignore[no-any-return]


async def put(subject: Subject, path: str, data: bytes, *, over: str | None = "") -> Attributes:
    upload = await writable(subject).upload(path)
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
    for call in (subject.store.stat("f"), writable(subject).remove("f")):
        with pytest.raises(NotFound):
            await call


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


async def test_below_a_file_nothing_can_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"1")
    made = understores.directory(tmp_path)
    with pytest.raises(NotADirectory):
        await put(made, "file/below", b"2")
    assert in_it(tmp_path) == ["file"]
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


# Parts


@given(st.integers(0, 5 * TIB))
def test_a_file_of_known_size_has_few_parts_of_one_size(size_bytes: int) -> None:
    part = part_bytes(0, size_bytes)
    assert all(part_bytes(n, size_bytes) == part for n in (1, 999, 9999))
    assert PART_BYTES_MIN <= part <= PART_BYTES_MAX
    assert -(-size_bytes // part) <= PARTS_MAX
    assert part == PART_BYTES_MIN or size_bytes > PARTS_MAX * PART_BYTES_MIN - GIB


def test_parts_grow_so_that_the_largest_object_fits() -> None:
    sizes = [part_bytes(number, None) for number in range(PARTS_MAX)]
    assert sizes[:1000] == [PART_BYTES_MIN] * 1000
    assert sizes == sorted(sizes)
    assert max(sizes) <= PART_BYTES_MAX
    assert sum(sizes) >= 5 * TIB
