"""Small files of one directory, brought before they are asked for.

A loader opens the samples of a directory one after the other, or in any order. Once a few
of them were not here, the own peer is asked for many that follow by name, in one call.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import structlog

from mesh.blocks import KIB, FileVersion
from mesh.clock import Clock
from mesh.errors import MeshError

log = structlog.get_logger()

SMALL_BYTES_MAX = 128 * KIB
MISSES_BEFORE = 3
WINDOW_S = 2.0
FILES_AHEAD = 256
CALLS_AT_ONCE = 4
DIRECTORIES_MAX = 256

Following = Callable[[str, int], list[tuple[str, FileVersion]]]
Gather = Callable[[tuple[FileVersion, ...]], Awaitable[object]]


@dataclass(slots=True)
class _Directory:
    misses: int = 0
    last_s: float = 0.0
    asked: set[str] = field(default_factory=set)
    """Names that are being brought, or were."""

    middle: str = ""
    """Once this one is opened, the files behind those that were asked for are brought."""

    last: str = ""


class Samples:
    """What is brought ahead of those who read small files."""

    def __init__(self, following: Following, gather: Gather, clock: Clock) -> None:
        """Take how to name the small files after a path that are not here, and how to have
        them brought."""
        self._following = following
        self._gather = gather
        self._clock = clock
        self._directories: OrderedDict[str, _Directory] = OrderedDict()
        self._tasks: set[asyncio.Task[None]] = set()

    def opened(self, path: str, file: FileVersion, *, is_here: bool) -> None:
        """Note that a file was opened."""
        if not 0 < file.size_bytes <= SMALL_BYTES_MAX:
            return
        directory, _, name = path.rpartition("/")
        known = self._directories.get(directory)
        if known is not None and name == known.middle:
            known.middle = ""
            self._bring(directory, known, after=f"{directory}/{known.last}".lstrip("/"))
        if is_here:
            return
        if known is None:
            known = self._directories[directory] = _Directory()
            while len(self._directories) > DIRECTORIES_MAX:
                self._directories.popitem(last=False)
        now_s = self._clock()
        if now_s - known.last_s > WINDOW_S:
            known.misses = 0
            known.asked.clear()
        known.last_s = now_s
        known.misses += 1
        if known.misses >= MISSES_BEFORE and name not in known.asked:
            self._bring(directory, known, after=path)

    def _bring(self, directory: str, known: _Directory, *, after: str) -> None:
        if len(self._tasks) >= CALLS_AT_ONCE:
            return
        found = self._following(after, FILES_AHEAD)
        wanted = [(name, file) for name, file in found if name not in known.asked]
        if not wanted:
            return
        known.asked.update(name for name, _ in wanted)
        known.middle, known.last = wanted[len(wanted) // 2][0], wanted[-1][0]
        files = tuple(file for _, file in wanted)
        task = asyncio.get_running_loop().create_task(self._gathered(directory, files))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _gathered(self, directory: str, files: tuple[FileVersion, ...]) -> None:
        try:
            await self._gather(files)
        except MeshError as error:  # the reads themselves will meet it
            log.debug("small files not brought", path=directory, reason=str(error))

    async def aclose(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
