"""A draft holds what was written to it, in whatever order, and shows all of it or nothing."""

from __future__ import annotations

import asyncio
import errno
import os
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.blocks import KIB, MIB, Attributes
from mesh.client import draft as draft_module
from mesh.client.draft import Draft
from mesh.client.file import MeshFile
from mesh.client.writes import Writes
from mesh.errors import MeshError, NotFound, Stale, StoreFull
from mesh.store.drafts import DRAFTS, make_draft, new_token
from mesh.store.extents import write_all
from mesh.wire.messages import StatReply
from mesh.wire.writes import GrowRequest, PublishRequest

PATH = "dir/f"


@dataclass
class Peer:
    """The part of `Writes` that a draft needs; notes what it is asked."""

    root: Path
    threads: ThreadPoolExecutor
    published: list[tuple[PublishRequest, bytes]] = field(default_factory=list)
    grown: list[tuple[GrowRequest, bytes]] = field(default_factory=list)
    retired: list[tuple[str, bool]] = field(default_factory=list)
    error: MeshError | None = None

    def draft(self, *, base: bytes | None = None, is_exclusive: bool = False) -> Draft:
        (self.root / DRAFTS).mkdir(exist_ok=True)
        token = new_token()
        return Draft(
            cast(Writes, self),
            make_draft(self.root, token),
            token,
            PATH,
            over="" if base is None else "tag-0",
            base=None if base is None else cast(MeshFile, Base(base)),
            mode=0o640,
            is_exclusive=is_exclusive,
        )

    def content(self, token: str, size_bytes: int) -> bytes:
        """Read what a peer would of a draft."""
        with (self.root / DRAFTS / token).open("rb") as file:
            return file.read(size_bytes)

    async def grow(self, request: GrowRequest) -> None:
        if self.error is not None:
            raise self.error
        self.grown.append((request, self.content(request.draft, request.stable_bytes)))

    async def publish(self, request: PublishRequest) -> StatReply:
        if self.error is not None:
            raise self.error
        self.published.append((request, self.content(request.draft, request.size_bytes)))
        tag = f"tag-{len(self.published)}"
        about = Attributes(
            is_directory=False, size_bytes=request.size_bytes, mtime_ns=1, tag=tag, mode=0
        )
        return StatReply(about, None)

    async def retire(self, token: str, *, is_published: bool) -> None:
        self.retired.append((token, is_published))


@dataclass
class _Version:
    size_bytes: int


class Base:
    """What the file held before."""

    def __init__(self, data: bytes) -> None:
        self.file = _Version(len(data))
        self.data = data
        self.is_closed = False

    async def read(self, offset_bytes: int, into: memoryview) -> int:
        assert not self.is_closed
        part = self.data[offset_bytes : offset_bytes + len(into)]
        into[: len(part)] = part
        return len(part)

    def close(self) -> None:
        self.is_closed = True


@contextmanager
def peer_at(root: Path) -> Iterator[Peer]:
    with ThreadPoolExecutor(2) as threads:
        yield Peer(root, threads)


async def read(draft: Draft, offset_bytes: int = 0, size_bytes: int = 2 * MIB) -> bytes:
    target = memoryview(bytearray(size_bytes))
    return bytes(target[: await draft.read(offset_bytes, target)])


# Any writes, in any order

offsets = st.integers(0, 300 * KIB) | st.sampled_from([0, 64 * KIB, MIB])
"""Near enough to each other for writes to meet."""

lengths = st.integers(1, 2000) | st.sampled_from([64 * KIB, 128 * KIB])
Step = tuple[str, int, int, int]
steps: st.SearchStrategy[Step] = st.one_of(
    st.tuples(st.just("write"), offsets, lengths, st.integers(1, 255)),
    st.tuples(st.just("truncate"), offsets, st.just(0), st.just(0)),
    st.tuples(st.just("read"), offsets, lengths, st.just(0)),
    st.tuples(st.just("publish"), st.just(0), st.just(0), st.just(0)),
)


def filled(size_bytes: int) -> bytes:
    return bytes(range(1, 252)) * (size_bytes // 251) + bytes(range(size_bytes % 251))


async def take(draft: Draft, model: bytearray, step: Step) -> None:
    """Do a step to a draft and to what it should hold."""
    verb, offset, size, value = step
    if verb == "write":
        data = bytes([value]) * size
        await draft.write(offset, data)
        model.extend(bytes(max(0, offset + size - len(model))))
        model[offset : offset + size] = data
    elif verb == "truncate":
        await draft.truncate(offset)
        del model[offset:]
        model.extend(bytes(offset - len(model)))
    elif verb == "read":
        assert await read(draft, offset, size) == model[offset : offset + size]
    else:
        await draft.publish()


@settings(max_examples=120)
@given(base_bytes=st.none() | st.integers(0, 1100 * KIB), todo=st.lists(steps, max_size=12))
def test_what_is_published_is_what_was_written(base_bytes: int | None, todo: list[Step]) -> None:
    base = None if base_bytes is None else filled(base_bytes)

    async def scenario(root: Path) -> None:
        with peer_at(root) as peer:
            draft = peer.draft(base=base)
            model = bytearray(base or b"")
            is_changed = base is None
            for step in todo:
                is_changed |= step[0] in ("write", "truncate")
                await take(draft, model, step)
                assert draft.size_bytes == len(model)
            assert await read(draft) == model
            await draft.publish()
            assert bool(peer.published) is is_changed
            if is_changed:
                assert peer.published[-1][1] == model
                assert peer.published[-1][0].size_bytes == len(model)
            assert await read(draft) == model
            await draft.close()
            assert peer.retired == [(draft.token, True)]

    with tempfile.TemporaryDirectory() as root:
        asyncio.run(scenario(Path(root)))


# Showing it


async def test_what_was_published_says_what_it_is(tmp_path: Path) -> None:
    with peer_at(tmp_path) as peer:
        draft = peer.draft(is_exclusive=True)
        await draft.write(0, b"one")
        reply = await draft.publish()
        assert reply is not None
        assert draft.over == reply.attributes.tag == "tag-1"
        assert await draft.publish() is None  # nothing is new
        await draft.write(3, b"two")
        await draft.publish()
        await draft.close()
    (first, one), (second, both) = peer.published
    assert (one, both) == (b"one", b"onetwo")
    assert first == PublishRequest(draft.token, PATH, 3, "", is_exclusive=True, mode=0o640)
    # By now it is this mount's own, and what was sent of it has changed.
    assert second == PublishRequest(draft.token, PATH, 6, "tag-1", is_rewritten=True, mode=0o640)


async def test_an_empty_file_is_a_file(tmp_path: Path) -> None:
    with peer_at(tmp_path) as peer:
        draft = peer.draft()
        assert await draft.publish() is not None
        await draft.close()
    assert [data for _, data in peer.published] == [b""]


async def test_what_nobody_wrote_to_is_not_published(tmp_path: Path) -> None:
    with peer_at(tmp_path) as peer:
        base = Base(b"before")
        draft = peer.draft(base=base.data)
        assert await read(draft) == b"before"
        assert await draft.publish() is None
        await draft.settle()
        assert await draft.publish() is None
        assert await read(draft) == b"before"
        await draft.close()
    assert peer.published == []


async def test_what_was_removed_is_not_published_and_still_read(tmp_path: Path) -> None:
    with peer_at(tmp_path) as peer:
        draft = peer.draft()
        await draft.write(0, b"one")
        draft.is_removed = True
        assert await draft.publish() is None
        assert await read(draft) == b"one"
        await draft.close()
        assert peer.published == []
        assert peer.retired == [(draft.token, False)]


async def test_a_base_is_closed_once_it_is_here_or_not_wanted(tmp_path: Path) -> None:
    with peer_at(tmp_path) as peer:
        for is_written in (True, False):
            draft = peer.draft(base=b"before")
            base = cast(Base, draft._base)
            if is_written:
                await draft.write(0, b"B")
                assert base.is_closed
                assert await read(draft) == b"Before"
            await draft.close()
            assert base.is_closed


async def test_a_base_that_is_shorter_than_it_was_is_no_file_with_a_hole(tmp_path: Path) -> None:
    with peer_at(tmp_path) as peer:
        draft = peer.draft(base=b"before")
        cast(Base, draft._base).data = b"bef"
        with pytest.raises(Stale):
            await draft.write(6, b"more")
        assert await draft.publish() is None
        await draft.close()
    assert peer.published == []


async def test_what_could_not_be_published_can_be_again(tmp_path: Path) -> None:
    with peer_at(tmp_path) as peer:
        draft = peer.draft()
        await draft.write(0, b"one")
        peer.error = StoreFull("for now")
        with pytest.raises(StoreFull):
            await draft.publish()
        peer.error = None
        assert await draft.publish() is not None
        await draft.close()
    assert [data for _, data in peer.published] == [b"one"]
    assert peer.retired == [(draft.token, True)]


async def test_what_lies_beside_is_not_sent_there_again(tmp_path: Path) -> None:
    with peer_at(tmp_path) as peer:
        draft = peer.draft(base=b"before")
        await draft.write(0, b"one")
        peer.error = Stale("somebody else has changed it")
        with pytest.raises(Stale):
            await draft.publish()
        peer.error = None
        assert await draft.publish() is None
        await draft.close()


async def test_what_was_not_published_is_not_kept(tmp_path: Path) -> None:
    with peer_at(tmp_path) as peer:
        draft = peer.draft()
        await draft.write(0, b"one")
        peer.error = NotFound("the directory is gone")
        with suppress(NotFound):
            await draft.publish()
        await draft.close()
        assert peer.retired == [(draft.token, False)]


# A full disk


@pytest.fixture
def no_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have no writer wait for room."""
    monkeypatch.setattr(draft_module, "FULL_DISK_WAIT_S", 0.0)


async def test_a_writer_waits_for_room_and_then_all_of_it_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = 0

    def full_twice(fd: int, data: bytes | memoryview, offset_bytes: int) -> None:
        nonlocal tries
        tries += 1
        if tries <= 2:
            write_all(fd, data[: len(data) // 2], offset_bytes)
            raise OSError(errno.ENOSPC, "No space left on device")
        write_all(fd, data, offset_bytes)

    monkeypatch.setattr(draft_module, "write_all", full_twice)
    with peer_at(tmp_path) as peer:
        draft = peer.draft()
        await draft.write(0, b"one")
        assert tries == 3
        assert await draft.publish() is not None
        await draft.close()
    assert [data for _, data in peer.published] == [b"one"]


async def test_a_writer_that_was_told_that_the_disk_is_full_does_not_wait_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = 0

    def full(fd: int, data: bytes | memoryview, offset_bytes: int) -> None:
        nonlocal tries
        tries += 1
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(draft_module, "write_all", full)
    monkeypatch.setattr(draft_module, "FULL_DISK_WAIT_S", 0.3)
    with peer_at(tmp_path) as peer:
        draft = peer.draft()
        with pytest.raises(StoreFull):
            await draft.write(0, b"one")
        first_tries, tries = tries, 0
        with pytest.raises(StoreFull):
            await draft.write(3, b"two")
        await draft.close()
    assert (first_tries > 1, tries) == (True, 1)


@pytest.mark.usefixtures("no_wait")
async def test_a_file_with_a_part_missing_is_not_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(fd: int, data: bytes | memoryview, offset_bytes: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with peer_at(tmp_path) as peer:
        draft = peer.draft()
        await draft.write(0, b"one")
        monkeypatch.setattr(draft_module, "write_all", full)
        with pytest.raises(StoreFull):
            await draft.write(3, b"two")
        monkeypatch.setattr(draft_module, "write_all", write_all)
        await draft.write(6, b"three")  # another thread of the writer, which has not heard of it
        for _ in range(2):
            with pytest.raises(StoreFull):
                await draft.publish()
        assert peer.published == []
        await draft.truncate(3)
        assert await draft.publish() is not None
        await draft.close()
    assert [data for _, data in peer.published] == [b"one"]


@pytest.mark.usefixtures("no_wait")
async def test_a_half_write_to_what_was_published_is_not_kept_as_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def half(fd: int, data: bytes | memoryview, offset_bytes: int) -> None:
        write_all(fd, data[: len(data) // 2], offset_bytes)
        raise OSError(errno.ENOSPC, "No space left on device")

    with peer_at(tmp_path) as peer:
        draft = peer.draft()
        await draft.write(0, b"published")
        await draft.publish()
        monkeypatch.setattr(draft_module, "write_all", half)
        with pytest.raises(StoreFull):
            await draft.write(0, b"PUBLISHED")
        assert await read(draft) == b"PUBLished"
        await draft.close()
        assert peer.retired == [(draft.token, False)]


@pytest.mark.usefixtures("no_wait")
@pytest.mark.parametrize(
    ("code", "kind"), [(errno.ENOSPC, StoreFull), (errno.EDQUOT, StoreFull), (errno.EIO, MeshError)]
)
async def test_what_the_disk_says_is_what_the_writer_hears(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, kind: type[MeshError]
) -> None:
    def broken(fd: int, data: bytes | memoryview, offset_bytes: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(draft_module, "write_all", broken)
    with peer_at(tmp_path) as peer:
        draft = peer.draft()
        with pytest.raises(MeshError) as raised:
            await draft.write(0, b"one")
        assert type(raised.value) is kind
        with pytest.raises(kind):
            await draft.publish()
        await draft.close()
    assert (peer.published, peer.retired) == ([], [(draft.token, False)])


@pytest.mark.usefixtures("no_wait")
async def test_the_last_of_the_disk_is_for_the_peer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(draft_module, "FREE_BYTES_MIN", 1 << 60)
    with peer_at(tmp_path) as peer:
        draft = peer.draft()
        with pytest.raises(StoreFull):
            await draft.write(0, b"one")
        assert (tmp_path / DRAFTS / draft.token).stat().st_size == 0
        await draft.close()


# Sending it early

RUN = bytes(MIB)


async def write_run(draft: Draft, first_mib: int, count: int) -> None:
    for number in range(first_mib, first_mib + count):
        await draft.write(number * MIB, RUN)
    if draft._growing is not None:
        await asyncio.wait({draft._growing})


async def test_what_is_written_in_order_is_sent_early_and_seldom(tmp_path: Path) -> None:
    with peer_at(tmp_path) as peer:
        draft = peer.draft()
        await write_run(draft, 0, 15)
        assert peer.grown == []
        await write_run(draft, 15, 1)
        await write_run(draft, 16, 20)
        assert [request for request, _ in peer.grown] == [
            GrowRequest(draft.token, PATH, size * MIB, 0o640) for size in (16, 32)
        ]
        assert all(len(data) == request.stable_bytes for request, data in peer.grown)
        await draft.publish()
        await draft.close()
    assert not peer.published[0][0].is_rewritten


async def test_a_gap_is_not_sent_early(tmp_path: Path) -> None:
    with peer_at(tmp_path) as peer:
        draft = peer.draft()
        await write_run(draft, 1, 40)
        assert peer.grown == []
        await draft.close()


@pytest.mark.parametrize("how", ["write", "cut"])
async def test_what_was_changed_after_it_was_sent_is_said_to_be(tmp_path: Path, how: str) -> None:
    with peer_at(tmp_path) as peer:
        draft = peer.draft()
        await write_run(draft, 0, 16)
        assert len(peer.grown) == 1
        if how == "write":
            await draft.write(0, b"x")
        else:
            await draft.truncate(16 * MIB - 1)
        await write_run(draft, 16, 32)
        assert len(peer.grown) == 1  # nothing is in order any more
        await draft.publish()
        await draft.close()
    assert peer.published[0][0].is_rewritten


async def test_what_is_written_behind_what_was_sent_changes_nothing_of_it(tmp_path: Path) -> None:
    with peer_at(tmp_path) as peer:
        draft = peer.draft()
        await write_run(draft, 0, 16)
        await draft.write(16 * MIB, b"x")
        await draft.truncate(16 * MIB)
        await draft.publish()
        await draft.close()
    assert len(peer.grown) == 1
    assert not peer.published[0][0].is_rewritten


@pytest.mark.parametrize("has_base", [True, False])
async def test_only_a_new_file_is_sent_early(tmp_path: Path, has_base: bool) -> None:
    """What takes the place of something is sent when it is closed, and once published, too."""
    with peer_at(tmp_path) as peer:
        draft = peer.draft(base=b"before" if has_base else None)
        if not has_base:
            await draft.publish()
        await write_run(draft, 0, 33)
        assert peer.grown == []
        await draft.close()


async def test_who_can_not_be_sent_early_is_sent_at_the_end(tmp_path: Path) -> None:
    with peer_at(tmp_path) as peer:
        draft = peer.draft()
        peer.error = StoreFull("not now")
        await write_run(draft, 0, 17)
        peer.error = None
        await draft.publish()
        await draft.close()
    assert len(peer.published[0][1]) == 17 * MIB
