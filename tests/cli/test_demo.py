"""`mesh demo` shows what it promises, and leaves nothing however it ends."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from mesh.blocks import MIB
from mesh.cli import demo
from mesh.cli.demo import CannotShow, files_of
from mesh.cli.info import mesh_mountpoints

MODEL_BYTES = 20 * MIB
ENDS_WITHIN_S = 60.0


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.bin"
    path.write_bytes(os.urandom(MODEL_BYTES))
    return path


@pytest.fixture
def scratch() -> Iterator[Path]:
    """Where the demo puts everything: what is left there or runs from there is left behind."""
    # Not below tmp_path: with the name of a test in it, a socket's path is too long.
    with tempfile.TemporaryDirectory(prefix="demo-", dir="/tmp") as path:
        yield Path(path)


def _start(model: Path, scratch: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "mesh.cli.main", "demo", str(model)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(scratch), "PYTHONUNBUFFERED": "1"},
    )


def _left_behind(scratch: Path) -> list[str]:
    left = [str(path) for path in scratch.iterdir()]
    left += [f"mount {path}" for path in mesh_mountpoints() if path.is_relative_to(scratch)]
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes()
        except OSError:
            continue
        if os.fsencode(scratch) in command:
            left.append(f"process {process.name}: {command!r}")
    return left


@pytest.mark.fuse
@pytest.mark.slow
def test_both_reads_are_right_and_nothing_is_left(model: Path, scratch: Path) -> None:
    with _start(model, scratch) as child:
        out, said = child.communicate(timeout=ENDS_WITHIN_S)
    assert child.returncode == 0, out + said
    assert said == ""
    rows = {
        cells[1].strip(): [cell.strip() for cell in cells[2:4]]
        for cells in (re.split("[│┃]", line) for line in out.splitlines())
        if len(cells) == 5
    }
    assert rows["SHA-256"] == ["same", "same"]
    assert rows["errors"] == ["0", "0"]
    assert rows["from the under-store, by all peers"][0] == "20.0 MiB"
    assert "killed" in [row[1] for row in rows.values()]
    assert _left_behind(scratch) == []


@pytest.mark.fuse
@pytest.mark.slow
@pytest.mark.parametrize("moment", ["model", "peers", "read 1", "kill", "read 2"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda n: n.name)
def test_a_signal_at_any_moment_leaves_nothing(
    model: Path, scratch: Path, moment: str, number: signal.Signals
) -> None:
    with _start(model, scratch) as child:
        assert child.stdout is not None
        for line in child.stdout:
            if line.startswith(moment):
                break
        child.send_signal(number)
        _, said = child.communicate(timeout=ENDS_WITHIN_S)
    assert child.returncode == {signal.SIGINT: 130, signal.SIGTERM: 143}[number]
    assert said == f"mesh: ended by {number.name}; everything is stopped\n"
    assert _left_behind(scratch) == []


def test_a_folder_is_all_its_files_links_followed(tmp_path: Path) -> None:
    blob = tmp_path / "blob"
    blob.write_bytes(b"weights")
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "config").write_bytes(b"{}")
    (folder / "weights").symlink_to(blob)
    found = [(path, size_bytes) for _, path, size_bytes in files_of(folder)]
    assert found == [("/model/sub/config", 2), ("/model/weights", 7)]
    # By the name that a person gave, not by that of what a link leads to.
    assert [path for _, path, _ in files_of(folder / "weights")] == ["/weights"]


def test_nothing_to_read_is_said(tmp_path: Path) -> None:
    with pytest.raises(CannotShow, match="does not exist"):
        list(files_of(tmp_path / "none"))
    with pytest.raises(CannotShow, match="nothing to read"):
        list(files_of(tmp_path))


def test_a_temporary_directory_too_deep_for_sockets_is_said(model: Path, scratch: Path) -> None:
    deep = scratch / ("d" * 90)
    deep.mkdir()
    with _start(model, deep) as child:
        _, said = child.communicate(timeout=ENDS_WITHIN_S)
    assert child.returncode == 1
    assert said.startswith(f"mesh: {deep} is too long a path")
    assert len(said.splitlines()) == 1
    assert _left_behind(scratch) == [str(deep)]


def test_without_the_model_package_there_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "PACKAGE", "no_such_package_of_a_model")
    with pytest.raises(CannotShow, match="`make demo`"):
        demo.packaged_model()
