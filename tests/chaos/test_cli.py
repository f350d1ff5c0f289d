"""What the set says of scenarios that failed."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import typer

from chaos import checks, cli, scenario
from chaos.checks import Check
from chaos.report import Report
from chaos.stats import Read

FINE = Check("it holds", holds=True, seen="yes")
LATE = Check("it is in time", holds=False, seen="late")
WRONG = checks.no_wrong_bytes([Read("r", 1, 0.0, 1.0, 0, 100, 7, 0)])


@pytest.mark.parametrize(
    ("runs", "exit_code", "said"),
    [
        ([FINE], 0, "1 passed, 0 failed, 0 had to be repeated"),
        ([LATE, FINE], 0, "1 passed, 0 failed, 1 had to be repeated"),
        ([LATE, LATE], 1, "0 passed, 1 failed, 1 had to be repeated"),
        ([WRONG], 1, "0 passed, 1 failed, 0 had to be repeated"),
    ],
)
def test_what_failed_is_repeated_once_unless_bytes_were_wrong(
    runs: Sequence[Check],
    exit_code: int,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    left = [Report("kill", 1, 4, checks=[check]) for check in runs]
    monkeypatch.setattr(scenario, "in_set", lambda: [scenario.ALL["kill"]])
    monkeypatch.setattr(cli, "_played", lambda *_: left.pop(0))
    with pytest.raises(typer.Exit) as end:
        cli.run_set(seed=1)
    assert end.value.exit_code == exit_code
    assert not left
    assert capsys.readouterr().out.splitlines()[-1] == said
