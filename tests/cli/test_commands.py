"""Of all commands only the one that was typed is imported."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from mesh.cli.commands import COMMANDS, app_for

SAY_MODULES = (
    "import json, sys; from mesh.cli.commands import app_for; app_for(sys.argv[1:]);"
    "print(json.dumps(sorted(sys.modules)))"
)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_is_the_same_alone_and_among_all(name: str) -> None:
    alone, among = (
        CliRunner().invoke(app, [name, "--help"], env={"COLUMNS": "120"})
        for app in (app_for([name, "--help"]), app_for())
    )
    assert (alone.exit_code, alone.output) == (0, among.output)
    assert f" {name} [OPTIONS]" in alone.output


def test_who_asks_a_peer_does_not_import_what_it_is_made_of() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SAY_MODULES, "status"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    imported = set(json.loads(done.stdout))
    assert "mesh.cli.status" in imported
    assert not {"mesh.cli.demo", "mesh.peer.peer", "mesh.store.store", "aiohttp"} & imported


def test_a_word_that_is_no_command_is_answered_with_those_like_it() -> None:
    result = CliRunner().invoke(app_for(["statu"]), ["statu"])
    assert result.exit_code == 2
    assert "'status'" in result.output
