"""Silence, and what it means after how long."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.membership.detector import Detector, Patience
from mesh.membership.view import State

PATIENCE = Patience(suspect_after_s=1.0, dead_after_s=3.0)
ORDER = [State.ACTIVE, State.SUSPECT, State.DEAD]
moments = st.floats(0, 1000, allow_nan=False)


@pytest.mark.parametrize(
    ("silence_s", "verdict"),
    [
        (0.0, State.ACTIVE),
        (0.999, State.ACTIVE),
        (1.0, State.SUSPECT),
        (2.999, State.SUSPECT),
        (3.0, State.DEAD),
        (1e9, State.DEAD),
    ],
)
def test_a_verdict_is_the_length_of_the_silence(silence_s: float, verdict: State) -> None:
    detector = Detector(PATIENCE)
    detector.heard("a", 0.0)
    assert detector.verdict("a", silence_s) is verdict


def test_one_that_was_never_heard_is_dead() -> None:
    assert Detector(PATIENCE).verdict("a", 0.0) is State.DEAD


@given(heard=st.lists(moments, min_size=1), now_s=moments)
def test_late_news_never_turn_the_clock_back(heard: list[float], now_s: float) -> None:
    detector, once = Detector(PATIENCE), Detector(PATIENCE)
    for at_s in heard:
        detector.heard("a", at_s)
    once.heard("a", max(heard))
    assert detector.verdict("a", now_s) is once.verdict("a", now_s)


@given(heard_s=moments, first_s=moments, later_s=moments)
def test_silence_alone_never_brings_anybody_back(
    heard_s: float, first_s: float, later_s: float
) -> None:
    detector = Detector(PATIENCE)
    detector.heard("a", heard_s)
    first = detector.verdict("a", min(first_s, later_s))
    later = detector.verdict("a", max(first_s, later_s))
    assert ORDER.index(first) <= ORDER.index(later)


def test_a_sign_of_life_brings_back_the_dead_and_nobody_else() -> None:
    detector = Detector(PATIENCE)
    detector.heard("a", 0.0)
    detector.heard("b", 0.0)
    detector.heard("a", 10.0)
    assert detector.verdict("a", 10.5) is State.ACTIVE
    assert detector.verdict("b", 10.5) is State.DEAD


@pytest.mark.parametrize(("suspect_s", "dead_s"), [(0.0, 1.0), (1.0, 1.0), (2.0, 1.0), (-1.0, 1.0)])
def test_patience_that_makes_no_sense(suspect_s: float, dead_s: float) -> None:
    with pytest.raises(ValueError, match="suspect_after_s < dead_after_s"):
        Patience(suspect_after_s=suspect_s, dead_after_s=dead_s)
