"""The words of `mesh warmup`, `mesh job` and `mesh pin`, over a mesh of real daemons."""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from mesh.blocks import MIB
from mesh.cli.commands import app_for
from mesh.cli.following import failure_lines, plan_line, report, result_line, room_warning
from mesh.cli.local_cluster import LocalCluster, local_cluster
from mesh.cli.pinned import Pinned
from mesh.cli.warmup import distinct
from mesh.wire.care import Job, Pin, Tally
from mesh.wire.messages import Description, Overview

NAMES = ("one", "two", "three")
app = app_for()
runner = CliRunner(env={"COLUMNS": "200"})


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    directory = tmp_path_factory.mktemp("mesh")
    data = directory / "data"
    for name in ("models", "data", "later", "odd"):
        (data / name).mkdir(parents=True)
    (data / "models" / "big").write_bytes(os.urandom(6 * MIB))
    (data / "later" / "big").write_bytes(os.urandom(6 * MIB))
    for n in range(10):
        (data / "data" / f"{n}").write_bytes(os.urandom(1000))
    (data / "odd" / os.fsdecode(b"not-utf8-\xe9")).write_bytes(b"odd")
    with local_cluster(directory, data, NAMES, capacity_bytes=256 * MIB) as cluster:
        asyncio.run(cluster.start_peers())
        yield cluster


@pytest.fixture
def config(mesh: LocalCluster) -> str:
    return str(mesh.peers["one"].config)


def run(config: str, *words: str, **options: str | bytes) -> Result:
    return runner.invoke(app, [*words, "--config", config], **options)  # type: ignore[arg-type]


def one_line(result: Result) -> str:
    assert result.exit_code == 1, result.output
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    return line


# Warm-up


def test_a_warm_up_says_its_plan_and_what_the_peers_hold(config: str) -> None:
    result = run(config, "warmup", "/models", "/data")
    assert result.exit_code == 0, result.output
    plan, end = result.stdout.splitlines()
    assert "11 files in 2 directories, 6.0 MiB; here already: 0 B (0.0 %)" in plan
    assert end.startswith("in the mesh: 11 of 11 files, 6.0 MiB of 6.0 MiB, as the peers say; ")
    assert "6.0 MiB came from the under-store" in end
    again = run(config, "warmup", "/models", "/data")
    assert "here already: 6.0 MiB (100.0 %)" in again.stdout
    assert "0 B came from the under-store and 0 B from peers" in again.stdout


def test_as_json_it_is_one_object_and_nothing_else(config: str) -> None:
    result = run(config, "warmup", "--json", "/data")
    assert result.exit_code == 0
    assert result.stderr == ""
    said = json.loads(result.stdout)
    assert (said["kind"], said["state"], said["failures"]) == ("warm", "done", [])
    assert said["tally"]["kept_files"] == said["tally"]["files"] == 10
    assert said["tally"]["is_verified"] is True


def test_check_says_how_much_and_its_exit_code_whether_all(config: str) -> None:
    result = run(config, "warmup", "--check", "/later")
    assert result.exit_code == 1
    assert result.stdout == ("in the mesh: 0 of 1 files, 0 of 2 blocks, 0 B of 6.0 MiB (0.0 %)\n")
    assert run(config, "warmup", "/later").exit_code == 0
    result = run(config, "warmup", "--check", "/later")
    assert result.exit_code == 0
    assert "2 of 2 blocks, 6.0 MiB of 6.0 MiB (100.0 %)" in result.stdout
    result = run(config, "warmup", "--evict", "/later")
    assert (result.exit_code, result.stdout) == (0, "dropped 2 blocks (6.0 MiB)\n")
    assert run(config, "warmup", "--check", "/later").exit_code == 1


def test_metadata_only_brings_nothing(config: str) -> None:
    result = run(config, "warmup", "--metadata-only", "/later")
    assert result.exit_code == 0
    assert result.stdout.startswith("walked 1 directory in ")
    assert result.stdout.endswith(": 1 file, 6.0 MiB\n")
    assert run(config, "warmup", "--check", "/later").exit_code == 1


def test_paths_may_be_a_list_in_a_file_or_on_stdin(config: str, tmp_path: Path) -> None:
    listed = tmp_path / "list"
    listed.write_bytes(b"/data/1\n\n/data/2\r\n/odd/not-utf8-\xe9\n")
    result = run(config, "warmup", "--json", "-f", str(listed), "/data/3")
    assert json.loads(result.stdout)["tally"]["kept_files"] == 4
    result = run(config, "warmup", "--json", "-f", "-", input=b"/data/1\n/data/2\n")
    assert json.loads(result.stdout)["tally"]["kept_files"] == 2


def test_a_long_list_goes_in_several_messages(config: str, tmp_path: Path) -> None:
    listed = tmp_path / "list"
    listed.write_text("".join(f"/data/{n % 10}/../{n % 10}\n" for n in range(3000)))
    result = run(config, "warmup", "--json", "-f", str(listed))
    assert json.loads(result.stdout)["path_count"] == 10
    listed.write_text("".join(f"/data/{n % 10}\n" for n in range(700)) + "/nothing\n")
    assert one_line(run(config, "warmup", "-f", str(listed))).startswith("mesh: /nothing: no such")


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["warmup"], "mesh: nothing to do; name a PATH, or a list of them with -f"),
        (["warmup", "/nothing"], "mesh: /nothing: no such file or directory in the mesh"),
        (["warmup", "/data", "/nothing"], "mesh: /nothing: no such file or directory"),
        (["warmup", "data"], "mesh: data is not in the mesh; write a path from / on"),
        (["warmup", "/", "-f", "/no/list"], "mesh: --file /no/list: No such file"),
        (["warmup", "/", "-p", "0"], "mesh: --parallel 0 is out of range; write 1 to 1000"),
        (["warmup", "/", "-p", "1001"], "mesh: --parallel 1001 is out of range"),
        (["warmup", "/", "--replicas", "0"], "mesh: --replicas 0 is out of range"),
        (["warmup", "/", "--replicas", "4"], "mesh: --replicas 4 is more than there are peers"),
        (["warmup", "/", "--on", "four"], "mesh: --on four is no peer of this mesh; take of"),
        (["warmup", "/", "--on", "one", "--replicas", "2"], "mesh: --replicas and --on exclude"),
        (["warmup", "/", "--check", "--evict"], "mesh: --check and --evict exclude each other"),
        (["warmup", "/", "--bandwidth", "fast"], "mesh: --bandwidth fast is not a size; write"),
        (["warmup", "/", "--bandwidth", "0"], "mesh: --bandwidth 0 brings nothing; write a rate"),
        (["pin", "/nothing"], "mesh: /nothing: no such file or directory in the mesh"),
        (["pin", "data"], "mesh: data is not in the mesh; write a path"),
        (["unpin", "/data"], "mesh: /data is not pinned; `mesh pin` lists what is"),
        (["job", "show", "999"], "mesh: there is no job 999; `mesh job ls` lists them"),
        (["job", "wait", "999"], "mesh: there is no job 999; `mesh job ls` lists them"),
        (["job", "cancel", "999"], "mesh: there is no job 999; `mesh job ls` lists them"),
    ],
)
def test_what_cannot_be_done_is_one_line(config: str, words: list[str], line: str) -> None:
    assert one_line(run(config, *words)).startswith(line)


@pytest.mark.parametrize("words", [["warmup", "/"], ["job", "ls"], ["job", "wait", "1"], ["pin"]])
def test_without_a_peer_it_is_one_line(tmp_path: Path, words: list[str]) -> None:
    with local_cluster(tmp_path, tmp_path, NAMES, capacity_bytes=0) as cluster:
        said = one_line(run(str(cluster.peers["one"].config), *words))
    assert "is `mesh peer` running here?" in said


# Jobs


def test_a_job_in_the_background_is_waited_for_by_its_number(config: str) -> None:
    assert run(config, "warmup", "--evict", "/models").exit_code == 0
    started = run(config, "warmup", "-b", "/models", "--bandwidth", "4MiB")
    assert started.exit_code == 0
    number = started.stdout.strip()
    listed = json.loads(run(config, "job", "ls", "--json").stdout)
    assert [job["state"] for job in listed if str(job["number"]) == number] == ["running"]
    assert "warm" in run(config, "job", "ls").stdout
    waited = run(config, "job", "wait", number)
    assert waited.exit_code == 0
    assert "in the mesh: 1 of 1 files" in waited.stdout
    shown = run(config, "job", "show", number)
    assert shown.exit_code == 0
    assert shown.stdout.startswith(f"job {number}: warm /models\ndone; ordered ")
    assert json.loads(run(config, "job", "show", number, "--json").stdout)["state"] == "done"


def test_a_cancelled_job_says_so_to_all_who_ask(config: str) -> None:
    assert run(config, "warmup", "--evict", "/models").exit_code == 0
    number = run(config, "warmup", "-b", "/models", "--bandwidth", "1KiB").stdout.strip()
    cancelled = run(config, "job", "cancel", number)
    assert cancelled.exit_code == 0
    assert f"job {number} was cancelled after " in cancelled.stdout
    assert run(config, "job", "wait", number).exit_code == 1
    assert json.loads(run(config, "job", "show", number, "--json").stdout)["state"] == "cancelled"


# Pins


def test_pins_are_set_shown_and_taken_back(config: str, mesh: LocalCluster) -> None:
    assert run(config, "pin", "/data", "/models/big").exit_code == 0
    other = str(mesh.peers["two"].config)
    assert [line.split()[0] for line in run(other, "pin").stdout.splitlines()] == [
        "/data",
        "/models/big",
    ]
    assert [pin["path"] for pin in json.loads(run(other, "pin", "--json").stdout)] == [
        "/data",
        "/models/big",
    ]
    told = run(other, "info", "/data/1").stdout
    assert re.search(r"^pinned +by /data *$", told, re.MULTILINE)
    assert json.loads(run(other, "info", "--json", "/data/1").stdout)["pinned"] == "/data"
    assert json.loads(run(other, "info", "--json", "/later").stdout)["pinned"] is None
    refused = one_line(run(config, "warmup", "--evict", "/later", "/data/1"))
    assert refused == "mesh: /data/1 is pinned; `mesh unpin /data` first"
    assert run(config, "unpin", "/data", "/models/big").exit_code == 0
    assert run(other, "pin").stdout == ""


# Words


def test_paths_below_others_are_not_asked_for_twice() -> None:
    assert distinct(["/a/b", "/a", "/ab", "/a", "/c/d"]) == ["/a", "/ab", "/c/d"]
    assert distinct(["/a", "/"]) == ["/"]


def test_a_pin_covers_what_lies_below_it_and_no_name_like_it() -> None:
    pinned = Pinned((Pin("/a/b", 1.0, is_pinned=True),))
    assert pinned.over("/a/b") == pinned.over("/a/b/c/d") == "/a/b"
    assert pinned.over("/a/bc") is None
    assert pinned.over("/") is None
    assert Pinned((Pin("/", 1.0, is_pinned=True),)).over("/x/y") == "/"


def failed_job() -> Job:
    failures = tuple((f"/f{n}", "it was removed") for n in range(100))
    tally = Tally(files=1234, size_bytes=84 * MIB, kept_files=1034, kept_bytes=80 * MIB, failed=200)
    return Job(
        number=3,
        kind="warm",
        paths=("/",),
        path_count=1,
        state="failed",
        began_s=10.0,
        ended_s=20.0,
        tally=tally,
        failures=failures,
    )


def test_what_is_missing_is_named_as_far_as_a_screen_goes(
    capsys: pytest.CaptureFixture[str],
) -> None:
    job = failed_job()
    lines = list(failure_lines(job))
    assert lines[0] == "missing are 200 of 1,234 files:"
    assert lines[1] == "  /f0: it was removed"
    assert lines[-1] == "  and 180 more"
    assert len(lines) == 22
    assert report(job, as_json=False) == 1
    assert capsys.readouterr().out == ""
    assert report(replace(job, error="the disk is full"), as_json=False) == 1
    assert "mesh: job 3 failed: the disk is full" in capsys.readouterr().err


def test_the_words_of_plans_and_ends() -> None:
    job = replace(failed_job(), state="cancelled", replicas=2)
    assert result_line(job) == "job 3 was cancelled after 10s; what was brought stays"
    assert "each block on 2 peers; here already: 0 B (0.0 %)" in plan_line(job)
    assert "all of it on a and b; " in plan_line(replace(job, peers=("a", "b")))
    busy = Tally(dropped_blocks=3, dropped_bytes=MIB, pinned_files=2, busy_blocks=1)
    evicted = replace(job, kind="evict", state="done", tally=busy)
    assert result_line(evicted) == (
        "dropped 3 blocks (1.0 MiB); copies of pinned files stay: 2; blocks in use stay: 1"
    )


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({}, None),  # 84 MiB into 0.9 x 100
        ({"replicas": 2}, "168 MiB are wanted and all caches together keep 90.0 MiB: "),
        ({"peers": ("a",)}, "84.0 MiB are wanted and each of these caches keeps 72.0 MiB: "),
        ({"peers": ("all",)}, "84.0 MiB are wanted and each of these caches keeps 18.0 MiB: "),
        ({"replicas": 2, "kind": "check"}, None),
    ],
)
def test_a_plan_that_does_not_fit_is_warned_of(options: dict[str, Any], wanted: str | None) -> None:
    peers = [
        Description(name="a", address="", capacity_bytes=80 * MIB),
        Description(name="b", address="", capacity_bytes=20 * MIB),
        Description(name="c", address="", capacity_bytes=80 * MIB, is_up=False),
    ]
    said = room_warning(replace(failed_job(), **options), Overview("demo", 1, tuple(peers)))
    assert said is None if wanted is None else said is not None and said.startswith(wanted)
