"""When a peer takes it that it hears nobody."""

from __future__ import annotations

from mesh.peer.hearing import DEAF_FOR_S, Hearing


def test_of_several_who_are_silent_in_a_row_it_is_we_who_can_not_hear() -> None:
    hearing = Hearing()
    hearing.gave_up(["a"], 10.0)
    assert (hearing.is_doubted, hearing.is_deaf(10.0)) == (True, False)
    hearing.gave_up(["a"], 10.3)
    assert not hearing.is_deaf(10.3), "it is that one who does not answer"
    hearing.gave_up(["b"], 10.5)
    assert hearing.is_deaf(10.5)
    assert not hearing.is_deaf(10.5 + DEAF_FOR_S), "others are tried again"


def test_one_word_of_anybody_is_enough() -> None:
    hearing = Hearing()
    hearing.gave_up(["a"], 10.0)
    hearing.heard()
    hearing.gave_up(["b"], 10.3)
    assert not hearing.is_deaf(10.3)
    hearing.gave_up(["c"], 10.4)
    assert hearing.is_deaf(10.4)
    hearing.heard()
    assert (hearing.is_doubted, hearing.is_deaf(10.4)) == (False, False)


def test_who_was_asked_and_gave_all_is_no_silence() -> None:
    hearing = Hearing()
    for at_s in range(5):
        hearing.gave_up([], float(at_s))
    assert not hearing.is_doubted
