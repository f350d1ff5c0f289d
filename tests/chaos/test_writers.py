"""The judge of the writers finds what is lost, older, torn or missing, and nothing else."""

from __future__ import annotations

import json
from itertools import pairwise
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chaos.writers import verdict
from chaos.writers.content import (
    LARGEST_BYTES,
    SLOTS,
    Segment,
    digest,
    file_bytes,
    segment_bytes,
    size,
    slot,
    temporary,
)
from chaos.writers.history import Content, History
from chaos.writers.plan import FULL, SHORT, Length, draw
from chaos.writers.verdict import Finding, Seen, Trouble

TRUTH = "under-store"
PATH = "d0/w0-0"


def content(version: int, size_bytes: int = 10) -> Content:
    return Content(version, size_bytes, f"digest-{version}")


class Writing:
    """A writer's log, written by hand: one step a second."""

    def __init__(self) -> None:
        self.history = History()
        self.now_s = 0.0
        self._step = 0

    def step(
        self, effects: dict[str, Content | None], *, end: str = "acked", style: str = "write"
    ) -> None:
        self._step += 1
        told = {path: c and (c.version, c.size_bytes, c.digest) for path, c in effects.items()}
        self._put("begin", style=style, effects=told)
        self.now_s += 1
        if end != "never":
            self._put(end, **({"error": "EIO"} if end == "failed" else {}))

    def write(self, version: int, *, end: str = "acked", path: str = PATH) -> None:
        self.step({path: content(version)}, end=end)

    def _put(self, do: str, **more: object) -> None:
        line = json.dumps({"do": do, "at": self.now_s, "step": self._step, **more})
        self.history.feed(0, [line])


def seen(version: int | None, *, path: str = PATH, where: str = TRUTH, at_s: float = 99.0) -> Seen:
    if version is None:
        return Seen(where, path, at_s, at_s + 0.1)
    return Seen(where, path, at_s, at_s + 0.1, f"digest-{version}", 10)


def final(writing: Writing, *sights: Seen) -> list[Finding]:
    return list(verdict.final(writing.history, sights, truth=TRUTH))


# What is there in the end


def test_what_was_acknowledged_last_is_right() -> None:
    writing = Writing()
    writing.write(1)
    writing.write(2)
    assert final(writing, seen(2), seen(2, where="peer-1")) == []


def test_an_older_version_is_found_and_its_bytes_are_lost() -> None:
    writing = Writing()
    writing.write(1)
    writing.write(2)
    (found,) = final(writing, seen(1))
    assert (found.kind, found.path, found.lost_bytes) == ("older", PATH, 10)


def test_a_missing_file_is_lost() -> None:
    writing = Writing()
    writing.write(1)
    (found,) = final(writing, seen(None))
    assert (found.kind, found.lost_bytes) == ("lost", 10)


def test_a_torn_file_is_found() -> None:
    writing = Writing()
    writing.write(1)
    writing.write(2, end="failed")
    (found,) = final(writing, seen(77))
    assert (found.kind, found.lost_bytes) == ("torn", 10)


def test_a_mount_that_shows_the_wrong_file_loses_no_bytes() -> None:
    writing = Writing()
    writing.write(1)
    writing.write(2)
    (found,) = final(writing, seen(2), seen(1, where="peer-3"))
    assert (found.kind, found.where, found.lost_bytes) == ("older", "peer-3", 0)


@pytest.mark.parametrize("end", ["failed", "never"])
def test_an_attempt_without_an_answer_may_have_come_true_or_not(end: str) -> None:
    writing = Writing()
    writing.write(1)
    writing.write(2, end=end)
    assert final(writing, seen(1)) == []
    assert final(writing, seen(2)) == []
    assert [each.kind for each in final(writing, seen(None))] == ["lost"]


def test_an_attempt_before_the_last_promise_is_older() -> None:
    writing = Writing()
    writing.write(1, end="failed")
    writing.write(2)
    assert [each.kind for each in final(writing, seen(1))] == ["older"]


def test_what_was_removed_does_not_come_back() -> None:
    writing = Writing()
    writing.write(1)
    writing.step({PATH: None})
    assert final(writing, seen(None)) == []
    assert [each.kind for each in final(writing, seen(1))] == ["older"]
    writing.write(2, end="failed")
    assert final(writing, seen(None), seen(2)) == []


def test_a_removal_without_an_answer() -> None:
    writing = Writing()
    writing.write(1)
    writing.step({PATH: None}, end="failed")
    assert final(writing, seen(1), seen(None)) == []


def test_a_first_write_that_failed_may_be_nothing() -> None:
    writing = Writing()
    writing.write(1, end="failed")
    assert final(writing, seen(None), seen(1)) == []


def test_what_can_not_be_read_is_a_finding() -> None:
    writing = Writing()
    writing.write(1)
    (found,) = final(writing, Seen("peer-1", PATH, 9.0, 9.1, error="EIO"))
    assert found.kind == "unreadable"


# Renames


def renamed(*, end: str) -> Writing:
    writing = Writing()
    writing.write(1)
    writing.write(2, path="d0/tmp")
    writing.step({"d0/tmp": None, PATH: content(2)}, end=end, style="rename")
    return writing


def half_moved(writing: Writing, *sights: Seen) -> list[str]:
    return [each.kind for each in verdict.half_moved(writing.history, sights, truth=TRUTH)]


def test_a_rename_moves() -> None:
    writing = renamed(end="acked")
    assert final(writing, seen(2), seen(None, path="d0/tmp")) == []
    assert [each.kind for each in final(writing, seen(1))] == ["older"]
    assert [each.kind for each in final(writing, seen(2, path="d0/tmp"))] == ["older"]


def test_a_rename_that_failed_leaves_the_file_under_one_name_at_least() -> None:
    writing = renamed(end="failed")
    old, new = (seen(1), seen(2, path="d0/tmp")), (seen(2), seen(None, path="d0/tmp"))
    neither = (seen(1), seen(None, path="d0/tmp"))
    for sights in (old, new, neither):
        assert final(writing, *sights) == []
    assert half_moved(writing, *old) == []
    assert half_moved(writing, *new) == []
    assert half_moved(writing, *neither) == ["both"]
    writing.write(3)
    assert half_moved(writing, seen(3), seen(None, path="d0/tmp")) == []


# What readers see meanwhile


def meanwhile(
    writing: Writing, sight: Seen, *troubles: Trouble, most_late_s: float = 5.0
) -> list[str]:
    found = verdict.reads(writing.history, [sight], troubles, most_late_s=most_late_s)
    return [each.kind for each in found]


def test_a_reader_sees_what_was_acknowledged_before_it_opened() -> None:
    writing = Writing()
    writing.write(1)  # acknowledged at 1 s
    writing.write(2)  # from 1 s to 2 s
    assert meanwhile(writing, seen(1, at_s=1.5)) == []
    assert meanwhile(writing, seen(2, at_s=1.5)) == []
    assert meanwhile(writing, seen(1, at_s=2.5)) == ["read older"]
    assert meanwhile(writing, seen(None, at_s=2.5)) == ["read lost"]
    assert meanwhile(writing, seen(77, at_s=1.5)) == ["read torn"]


def test_after_a_fault_what_is_older_may_be_seen_for_a_while() -> None:
    writing = Writing()
    writing.write(1)
    writing.write(2)
    fault = Trouble(0.0, 3.0)
    assert meanwhile(writing, seen(1, at_s=4.0), fault) == []
    assert meanwhile(writing, seen(1, at_s=8.0), fault) == ["read older"]
    assert meanwhile(writing, seen(77, at_s=4.0), fault) == ["read torn"]
    assert list(verdict.late(writing.history, [seen(1, at_s=4.0)])) == [2.0]


def test_errors_count_when_all_is_well() -> None:
    writing = Writing()
    failed = Seen("peer-1", PATH, 30.0, 30.1, error="EIO")
    assert meanwhile(writing, failed, Trouble(0.0, 14.0)) == ["error"]
    assert meanwhile(writing, failed, Trouble(0.0, 16.0)) == []
    assert meanwhile(writing, failed, Trouble(30.05, 40.0)) == []


def test_what_is_replaced_while_it_is_read_may_be_stale() -> None:
    writing = Writing()
    writing.write(1)
    writing.write(2)  # from 1 s to 2 s
    for at_s, error, expected in (
        (1.5, "ESTALE", []),
        (0.95, "ESTALE", []),
        (2.5, "ESTALE", ["error"]),
        (1.5, "EIO", ["error"]),
    ):
        sight = Seen("peer-1", PATH, at_s, at_s + 0.1, error=error)
        assert meanwhile(writing, sight) == expected


def test_hangs_and_strangers() -> None:
    writing = Writing()
    writing.write(1, end="never")
    assert list(verdict.hangs(writing.history, now_s=100.0)) == []
    assert [each.kind for each in verdict.hangs(writing.history, now_s=121.0)] == ["hang"]
    unfinished = "d0/.mesh-upload-12"
    names = {TRUTH: [PATH, f"{PATH}.conflict-1", unfinished], "peer-1": [unfinished]}
    found = [each.kind for each in verdict.strangers(writing.history, names, truth=TRUTH)]
    assert found == ["conflict", "stranger"]


def test_a_log_that_is_cut_off_is_read_to_the_cut() -> None:
    history = History()
    begin = {"do": "begin", "at": 1.0, "step": 1, "style": "write", "effects": {PATH: [1, 2, "d"]}}
    history.feed(0, [json.dumps(begin), '{"do": "ack'])
    assert [step.is_acked for step in history.steps] == [False]


# What is written, and when what goes wrong


def test_contents_follow_from_their_names() -> None:
    first, second = Segment(1, 100), Segment(2, 1)
    whole = file_bytes(7, 3, (first, second))
    assert whole == segment_bytes(7, 3, first) + segment_bytes(7, 3, second)
    assert whole.startswith(b"mesh-chaos seed=7 writer=3 version=1\n")
    assert len(whole) == 101
    assert digest([whole]) == digest([whole[:50], whole[50:]])
    assert segment_bytes(7, 4, first) != segment_bytes(7, 3, first) != segment_bytes(8, 3, first)
    sizes = [size(Random(n)) for n in range(500)]
    assert 1 <= min(sizes) < 100
    assert LARGEST_BYTES / 4 < max(sizes) <= LARGEST_BYTES


def test_no_two_writers_have_a_path_in_common() -> None:
    paths = [slot(writer, number) for writer in range(8) for number in range(SLOTS)]
    paths += [temporary(writer, 5, slot(writer, 1)) for writer in range(8)]
    assert len(set(paths)) == len(paths)
    assert sum(path.startswith("through/") for path in paths) > 10


@given(st.integers(0, 2**32), st.sampled_from([FULL, SHORT]))
def test_one_host_at_most_is_dead_at_a_time(seed: int, length: Length) -> None:
    deaths, full, away = draw(seed, hosts=4, length=length)
    assert draw(seed, hosts=4, length=length) == [deaths, full, away]
    for lane in (deaths, full):
        assert lane
        assert all(a.at_s + a.for_s <= b.at_s for a, b in pairwise(lane))
    assert [planned.for_s for planned in away] == [length.away_s]
    ends = [planned.at_s + planned.for_s for lane in (deaths, full, away) for planned in lane]
    assert max(ends) <= length.load_s + 0.1
