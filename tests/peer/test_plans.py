"""The small parts of a warm-up: sets of blocks, spools on disk, patience."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.blocks import FileVersion, version_of
from mesh.peer import masks
from mesh.peer.delivery import Patience
from mesh.peer.spool import PlannedFile, Spool, planned


def file_of(size_bytes: int, *, path: str = "f") -> FileVersion:
    return version_of(source="s3://b", path=path, size_bytes=size_bytes, tag="t", block_bytes=10)


block_sets = st.sets(st.integers(0, 100))


@given(found=block_sets)
def test_a_mask_is_a_set(found: set[int]) -> None:
    mask = masks.mask_of(found)
    assert list(masks.indexes(mask)) == sorted(found)
    assert mask.bit_count() == len(found)


@given(sets=st.lists(block_sets, max_size=5), count=st.integers(1, 4))
def test_blocks_in_at_least_so_many_sets(sets: list[set[int]], count: int) -> None:
    wanted = {n for n in range(101) if sum(n in some for some in sets) >= count}
    assert masks.at_least(map(masks.mask_of, sets), count) == masks.mask_of(wanted)


@given(size_bytes=st.integers(0, 95), data=st.data())
def test_the_bytes_of_a_mask(size_bytes: int, data: st.DataObject) -> None:
    file = file_of(size_bytes)
    assert masks.size_of(file, masks.whole(file)) == size_bytes
    some = data.draw(st.sets(st.integers(0, max(0, file.block_count - 1))))
    some = some if file.block_count else set()
    expected = sum(map(file.length_bytes, some))
    assert masks.size_of(file, masks.mask_of(some)) == expected


async def test_a_spool_gives_back_what_was_put_in_its_order(tmp_path: Path) -> None:
    with Spool(tmp_path, PlannedFile) as spool:
        files = [file_of(n, path=f"d/\udce9 {n}") for n in range(10)]
        await spool.append([planned(f"/m/\udce9 {n}", file) for n, file in enumerate(files[:6])])
        await spool.append([])
        await spool.append([planned(f"/m/\udce9 {n}", file) for n, file in enumerate(files[6:], 6)])
        found = [one async for frame in spool.frames() for one in frame]
        assert [one.version() for one in found] == files
        assert [one.shown for one in found] == [f"/m/\udce9 {n}" for n in range(10)]
        assert spool.count == 10
        spool.clear()
        assert [frame async for frame in spool.frames()] == []
        assert not any(tmp_path.iterdir())  # noqa: ASYNC240 - a crash leaves nothing


async def test_a_spool_is_a_queue_when_it_grows_while_it_is_read(tmp_path: Path) -> None:
    with Spool(tmp_path, bytes) as spool:
        await spool.append([b"1"])
        seen = []
        async for frame in spool.frames():
            seen += frame
            if len(seen) < 4:
                await spool.append([b"%d" % (len(seen) + 1)])
        assert seen == [b"1", b"2", b"3", b"4"]


@pytest.mark.parametrize(
    ("good_s", "since_s", "now_s", "over"),
    [
        (0, 0, 600, False),
        (0, 0, 601, True),  # nobody had anything
        (500, 0, 601, True),  # this one waits too long, whatever the others do
        (500, 480, 1001, False),
        (500, 1000, 1101, True),  # who comes late does not wait ten minutes more
        (500, 1101, 1101, False),  # and yet is tried once
    ],
)
def test_patience(good_s: float, since_s: float, now_s: float, over: bool) -> None:
    times = iter([0.0, good_s, now_s])
    patience = Patience(lambda: next(times))
    patience.good()
    assert patience.is_over(since_s) is over
