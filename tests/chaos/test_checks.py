"""What fails a run, and what does not."""

from __future__ import annotations

import errno

from chaos import checks
from chaos.checks import Window
from chaos.stats import Read


def read(end_s: float = 1.0, *, wrong: int = 0, error: int = 0) -> Read:
    return Read("r", 2, end_s - 0.5, end_s, 4096, 0 if error else 100, wrong, error)


def test_one_wrong_byte_is_too_many() -> None:
    assert checks.no_wrong_bytes([read(), read()]).holds
    found = checks.no_wrong_bytes([read(), read(wrong=3)])
    assert not found.holds
    assert "3 wrong bytes in 1 reads" in found.seen
    assert "file 2 at 4096" in found.seen


def test_errors_are_named_and_counted() -> None:
    found = checks.no_errors([read(error=errno.EIO), read(error=errno.EIO), read()])
    assert not found.holds
    assert found.seen == "2 errors: EIO x 2"


def test_only_reads_that_meet_the_window_are_excused() -> None:
    window = Window(10.0, 12.0)
    inside, across, before, after = (read(t, error=errno.EIO) for t in (11, 12.3, 9.9, 12.6))
    assert checks.no_errors([inside, across], [window]).holds
    assert checks.errors_outside([inside, before, after], [window]) == [before, after]


def test_a_run_in_which_nobody_read_proves_nothing() -> None:
    assert not checks.something_was_read([]).holds
    assert not checks.something_was_read([read(error=errno.EIO)]).holds
    assert checks.something_was_read([read()]).holds


def test_a_read_that_never_ended_is_a_hang() -> None:
    assert checks.no_hang([], 19.0, deadline_s=20.0).holds
    assert checks.no_hang([0.3], 1.0, deadline_s=20.0).holds
    assert not checks.no_hang([21.0], 1.0, deadline_s=20.0).holds
    assert not checks.no_hang([], 20.5, deadline_s=20.0).holds


def test_egress() -> None:
    assert checks.egress_at_most(1.02).holds
    assert not checks.egress_at_most(1.03).holds
    assert checks.nothing_fetched(0, 100).holds
    assert checks.nothing_fetched(10, 100).holds
    assert not checks.nothing_fetched(11, 100).holds


def test_broken_are_those_that_do_not_hold() -> None:
    good, bad = checks.egress_at_most(1.0), checks.egress_at_most(2.0)
    assert list(checks.broken([good, bad])) == [bad]
