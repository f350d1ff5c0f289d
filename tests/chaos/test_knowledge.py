"""When all knew, from lines that are made up."""

from __future__ import annotations

import json

from chaos.knowledge import WELL, Sight, all_knew_s, parsed


def sight(at_s: float, by: str, **states: str) -> Sight:
    return Sight(at_s, by, states)


def test_the_last_to_know_counts() -> None:
    sights = [
        sight(9.0, "a", c="dead"),  # an old death: before the fault
        sight(10.2, "a", c="active"),
        sight(10.2, "b", c="active"),
        sight(11.0, "a", c="dead"),
        sight(12.5, "b", c="dead"),
        sight(13.0, "a", c="dead"),
    ]
    assert all_knew_s(sights, about="c", observers=["a", "b"], since_s=10.0) == 2.5


def test_who_never_knew_leaves_it_open() -> None:
    sights = [sight(11.0, "a", c="dead"), sight(12.0, "b", c="suspect")]
    assert all_knew_s(sights, about="c", observers=["a", "b"], since_s=10.0) is None
    assert all_knew_s([], about="c", observers=["a"], since_s=10.0) is None


def test_to_be_gone_from_the_list_is_to_be_gone() -> None:
    sights = [sight(11.0, "a", a="active")]
    assert all_knew_s(sights, about="c", observers=["a"], since_s=10.0) == 1.0


def test_a_newcomer_is_seen_well() -> None:
    sights = [sight(11.0, "a", b="active"), sight(12.0, "a", b="active", c="active")]
    assert all_knew_s(sights, about="c", observers=["a"], since_s=10.0, states=WELL) == 2.0


def test_half_a_line_and_failed_questions_are_left_out() -> None:
    lines = [
        json.dumps([1.0, "a", {"b": "dead"}]),
        json.dumps([2.0, "a", {}, "no answer"]),
        '[3.0, "a", {"b"',
    ]
    assert parsed(lines) == [sight(1.0, "a", b="dead")]
