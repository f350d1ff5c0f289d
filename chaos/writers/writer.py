"""A writer: a process that writes through one mount, and notes what it was promised.

    python -m chaos.writers.writer --view DIR --log FILE --seed 7 --number 3

Before each step it notes what the step is to do, and afterwards whether it was acknowledged:
lines of JSON in a file that is not in the mesh. It serves no mount, imports nothing of mesh,
and nobody else writes to its paths.

SIGTERM: finish the step at hand, then end.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import astuple
from pathlib import Path
from random import Random

from chaos.writers.content import (
    LARGEST_BYTES,
    MIB,
    SLOTS,
    Segment,
    digest,
    segment_bytes,
    size,
    slot,
    temporary,
)
from chaos.writers.history import Content
from chaos.writers.view import name_of, opened

PAUSE_S = 0.25
"""From a step to the next, on average."""
AFTER_ERROR_S = 0.3
STYLES = {"write": 5, "synced": 2, "rename": 4, "append": 2, "unlink": 1}
"""How often a writer does what, relative to the others."""


class Log:
    """What a writer tried and was promised, one line at a time."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        self._step = 0

    @contextmanager
    def step(self, style: str, effects: Mapping[str, Content | None]) -> Iterator[None]:
        """Note a step: acknowledged when the block ends, failed when it raises `OSError`."""
        self._step += 1
        told = {path: content and astuple(content) for path, content in effects.items()}
        self._put("begin", style=style, effects=told)
        try:
            yield
        except OSError as error:
            self._put("failed", error=name_of(error))
            raise
        self._put("acked")

    def _put(self, do: str, **more: object) -> None:
        line = json.dumps({"do": do, "at": time.monotonic(), "step": self._step, **more})
        os.write(self._fd, f"{line}\n".encode())


class Writer:
    """Does one step after the other; what failed is not sure, and is not built upon."""

    def __init__(self, told: argparse.Namespace) -> None:
        self._seed, self._number, self._view = told.seed, told.number, Path(told.view)
        self._dice = Random(f"{told.seed}/writer/{told.number}")
        self._log = Log(Path(told.log))
        self._slots = [slot(self._number, each) for each in range(SLOTS)]
        self._sure: dict[str, tuple[Segment, ...]] = {path: () for path in self._slots}
        """What paths hold whose last step was acknowledged; nothing when there is no file."""
        self._version = 0
        self._root = -1

    def one(self) -> None:
        """Do a step, or two that belong together."""
        styles = self._dice.choices(list(STYLES), list(STYLES.values()))[0]
        path = self._dice.choice(self._slots)
        if styles in ("append", "unlink") and not self._sure.get(path):
            styles = "write"
        with opened(self._view) as self._root:
            getattr(self, f"_{styles}")(path)

    def _write(self, path: str) -> None:
        segments = (self._segment(),)
        with self._step("write", path, segments), self._open(path, os.O_TRUNC) as fd:
            self._put(fd, segments[0])
            if self._dice.random() < 0.2:
                os.fsync(fd)

    def _synced(self, path: str) -> None:
        """Write a file in pieces, each of which is safe before the next is begun."""
        segments: tuple[Segment, ...] = ()
        with self._open(path, os.O_TRUNC) as fd:
            for _ in range(self._dice.randint(2, 4)):
                segments = (*segments, self._segment(LARGEST_BYTES // 4))
                with self._step("synced", path, segments):
                    self._put(fd, segments[-1])
                    os.fsync(fd)

    def _append(self, path: str) -> None:
        before = self._sure[path]
        if sum(segment.size_bytes for segment in before) > LARGEST_BYTES:
            return self._write(path)
        segments = (*before, self._segment(LARGEST_BYTES // 4))
        with self._step("append", path, segments), self._open(path, os.O_APPEND) as fd:
            self._put(fd, segments[-1])

    def _rename(self, path: str) -> None:
        """Write another file and put it there; now and then from another directory."""
        segment = self._segment()
        beside = self._dice.choice(self._slots) if self._dice.random() < 0.2 else path
        source = temporary(self._number, segment.version, beside)
        with self._step("temporary", source, (segment,)), self._open(source, os.O_EXCL) as fd:
            self._put(fd, segment)
        effects = {source: None, path: self._content((segment,))}
        self._sure.pop(source)
        self._sure.pop(path, None)
        with self._log.step("rename", effects):
            os.rename(source, path, src_dir_fd=self._root, dst_dir_fd=self._root)
        self._sure[path] = (segment,)

    def _unlink(self, path: str) -> None:
        with self._step("unlink", path, ()):
            os.unlink(path, dir_fd=self._root)

    # Parts of steps

    def _segment(self, most_bytes: int = LARGEST_BYTES) -> Segment:
        self._version += 1
        return Segment(self._version, size(self._dice, most_bytes=most_bytes))

    @contextmanager
    def _step(self, style: str, path: str, segments: tuple[Segment, ...]) -> Iterator[None]:
        """Have a path hold these segments, surely if the block does not raise."""
        self._sure.pop(path, None)
        with self._log.step(style, {path: self._content(segments) if segments else None}):
            yield
        self._sure[path] = segments

    def _content(self, segments: Sequence[Segment]) -> Content:
        parts = (segment_bytes(self._seed, self._number, each) for each in segments)
        size_bytes = sum(segment.size_bytes for segment in segments)
        return Content(segments[-1].version, size_bytes, digest(parts))

    @contextmanager
    def _open(self, path: str, flags: int) -> Iterator[int]:
        """Open a file for writing; its close may raise, and says whether all is safe."""
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | flags, 0o644, dir_fd=self._root)
        try:
            yield fd
        except BaseException:
            with suppress(OSError):
                os.close(fd)
            raise
        os.close(fd)

    def _put(self, fd: int, segment: Segment) -> None:
        data = memoryview(segment_bytes(self._seed, self._number, segment))
        at_once = self._dice.choice((65_537, 256 * 1024, MIB))
        while data:
            data = data[os.write(fd, data[:at_once]) :]


def told_by_the_command_line() -> argparse.Namespace:
    words = argparse.ArgumentParser(description="write through a mount, and note each promise")
    for name in ("--view", "--log"):
        words.add_argument(name, required=True)
    for name in ("--seed", "--number"):
        words.add_argument(name, required=True, type=int)
    words.add_argument("--steps", type=int, default=0, help="0: until told to end")
    return words.parse_args()


def main() -> None:
    told = told_by_the_command_line()
    is_over: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: is_over.append(number))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the one who started us
    writer, pauses, steps = Writer(told), Random(told.number), 0
    while not is_over and (not told.steps or steps < told.steps):
        try:
            writer.one()
        except OSError as error:
            print(f"{time.monotonic():.3f} {error}", file=sys.stderr, flush=True)
            time.sleep(AFTER_ERROR_S)
        steps += 1
        time.sleep(pauses.uniform(0, 2 * PAUSE_S))


if __name__ == "__main__":
    main()
