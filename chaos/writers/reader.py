"""A reader: a process that notes what is to be seen through one mount.

    python -m chaos.writers.reader --view DIR --out FILE --logs N=FILE ...    again and again
    python -m chaos.writers.reader --view DIR --out FILE --paths FILE         each path once

Every read is noted as it was, and judged later. The first form reads what these writers have,
who are on other hosts: a mount shows what is written on it before it is acknowledged. It
prefers what was written a moment ago. The second form ends with the names of all files.
SIGTERM: finish the read at hand, then end.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from random import Random

from chaos.writers.content import DIRECTORIES, MIB, SLOTS, digest, slot
from chaos.writers.verdict import Seen
from chaos.writers.view import name_of, opened

PAUSE_S = 0.4
TAIL_BYTES = 2048


class Reader:
    """Reads whole files, each time opened anew."""

    def __init__(self, told: argparse.Namespace) -> None:
        self._view, self._where, self._is_plain = Path(told.view), told.where, told.plain
        self._out = Path(told.out).open("a", buffering=1)  # noqa: SIM115  # until the process ends

    def read(self, path: str) -> None:
        """Note what is at a path."""
        start_s = time.monotonic()
        content, size_bytes, problem = "", 0, ""
        try:
            with opened(self._view, is_plain=self._is_plain) as root:
                content, size_bytes = _found(root, path)
        except OSError as error:
            problem = name_of(error)
        now_s = time.monotonic()
        self._note(Seen(self._where, path, start_s, now_s, content, size_bytes, problem))

    def _note(self, seen: Seen) -> None:
        self._out.write(json.dumps(asdict(seen)) + "\n")

    def names(self) -> None:
        """Note the names of all files that are there."""
        with opened(self._view, is_plain=self._is_plain) as root:
            found = [
                f"{directory}/{name}"
                for directory in DIRECTORIES
                for name in _listed(root, directory)
            ]
        self._out.write(json.dumps({"where": self._where, "names": found}) + "\n")


def _found(root: int, path: str) -> tuple[str, int]:
    """Return digest and size of a file; an empty digest when there is none."""
    try:
        fd = os.open(path, os.O_RDONLY, dir_fd=root)
    except FileNotFoundError:
        # It may be the mount that went away.
        os.stat(path.partition("/")[0], dir_fd=root)
        return "", 0
    try:
        size_bytes = 0

        def parts() -> Iterator[bytes]:
            nonlocal size_bytes
            while part := os.read(fd, MIB):
                size_bytes += len(part)
                yield part

        return digest(parts()), size_bytes
    finally:
        os.close(fd)


def _listed(root: int, directory: str) -> list[str]:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY, dir_fd=root)
    try:
        return os.listdir(fd)  # noqa: PTH208  # a descriptor, not a path
    finally:
        os.close(fd)


def chosen(dice: Random, logs: Mapping[int, Path]) -> str:
    """Return a path: any that a writer has, or one that it has just written."""
    writer = dice.choice(list(logs))
    if dice.random() < 0.5:
        return slot(writer, dice.randrange(SLOTS))
    recent = [path for path in _tail(logs[writer]) if "-tmp-" not in path]
    return dice.choice(recent) if recent else slot(writer, 0)


def _tail(log: Path) -> list[str]:
    """Return the paths in the last lines of a log."""
    if not log.exists():
        return []
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - TAIL_BYTES))
        lines = file.read().splitlines()[1:]
    begun = [json.loads(line) for line in lines if line.endswith(b"}") and b'"begin"' in line]
    return [path for record in begun for path in record["effects"]]


def told_by_the_command_line() -> argparse.Namespace:
    words = argparse.ArgumentParser(description="note what is to be seen through a mount")
    for name in ("--view", "--out", "--where"):
        words.add_argument(name, required=True)
    words.add_argument("--plain", action="store_true", help="a directory, and no mount")
    words.add_argument("--seed", default="")
    words.add_argument("--logs", nargs="*", default=[])
    words.add_argument("--paths", type=Path)
    return words.parse_args()


def main() -> None:
    told = told_by_the_command_line()
    is_over: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: is_over.append(number))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the one who started us
    reader, dice = Reader(told), Random(f"{told.seed}/reader/{told.where}")
    if told.paths:
        for path in json.loads(told.paths.read_text()):
            reader.read(path)
        reader.names()
        return
    pairs = (log.partition("=") for log in told.logs)
    logs = {int(number): Path(log) for number, _, log in pairs}
    while not is_over:
        reader.read(chosen(dice, logs))
        time.sleep(dice.uniform(0, 2 * PAUSE_S))


if __name__ == "__main__":
    main()
