"""Attributes of whole directories, brought when look-ups come one after the other.

A loader that looks at ten thousand samples of one directory would ask its peer ten
thousand times. After a few look-ups in a directory its listing is brought in the
background, and what it says answers the look-ups that follow. What was listed is
believed no longer than what was looked up: for the mount's `max_age`. That a name
is missing in a listing is never believed.
"""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace

import structlog

from mesh.blocks import DIRECTORY, Attributes, DirectoryEntry, FileVersion
from mesh.clock import Clock, monotonic_s
from mesh.errors import MeshError
from mesh.wire.messages import StatReply

log = structlog.get_logger()

LOOKUPS_BEFORE = 4
"""So many in one directory within WINDOW_S, and its listing is worth bringing."""

WINDOW_S = 1.0
ENTRIES_MAX = 32_768
"""Kept in all, about 600 bytes each."""

ENTRIES_A_LISTING_MAX = 16_384
LISTINGS_AT_ONCE = 4


@dataclass(frozen=True, slots=True)
class _Known:
    reply: StatReply
    asked_s: float


class ListedNames:
    """What listings said of paths, for a while."""

    def __init__(
        self,
        scan: Callable[[str], AsyncIterator[tuple[DirectoryEntry, ...]]],
        listed: Callable[[str, Attributes], tuple[FileVersion | None, float]],
        *,
        clock: Clock = monotonic_s,
    ) -> None:
        """Take how to list a directory, and how to say which version an entry is of."""
        self._scan = scan
        self._listed = listed
        self._clock = clock
        self._known: OrderedDict[str, _Known] = OrderedDict()
        self._lookups: Counter[str] = Counter()
        self._window_s = 0.0
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def look(self, path: str) -> StatReply | None:
        """Return what a fresh listing said of *path*, or None. Counts the look-up."""
        known = self._known.get(path)
        if known is not None:
            age_s = self._clock() - known.asked_s
            if age_s < known.reply.fresh_s:
                return replace(known.reply, fresh_s=known.reply.fresh_s - age_s)
            del self._known[path]
        self._count(path.rpartition("/")[0])
        return None

    def forget(self, path: str) -> None:
        """Believe no listing about *path* any more."""
        self._known.pop(path, None)

    async def aclose(self) -> None:
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _count(self, directory: str) -> None:
        now_s = self._clock()
        if now_s - self._window_s > WINDOW_S:
            self._lookups.clear()
            self._window_s = now_s
        self._lookups[directory] += 1
        if self._lookups[directory] != LOOKUPS_BEFORE or len(self._tasks) >= LISTINGS_AT_ONCE:
            return
        _, fresh_s = self._listed(f"{directory}/x".lstrip("/"), DIRECTORY)
        if fresh_s > 0 and directory not in self._tasks:
            task = asyncio.get_running_loop().create_task(self._bring(directory))
            self._tasks[directory] = task
            task.add_done_callback(lambda _: self._tasks.pop(directory))

    async def _bring(self, directory: str) -> None:
        asked_s = self._clock()
        count = 0
        try:
            async for page in self._scan(directory):
                for entry in page:
                    self._note(f"{directory}/{entry.name}".lstrip("/"), entry, asked_s)
                count += len(page)
                if count >= ENTRIES_A_LISTING_MAX:
                    return
        except MeshError as error:  # the look-ups themselves will meet it
            log.debug("listing not brought", path=directory, reason=str(error))

    def _note(self, path: str, entry: DirectoryEntry, asked_s: float) -> None:
        file, fresh_s = self._listed(path, entry.attributes)
        if not entry.attributes.is_directory and file is None:
            return  # no tag in this listing, so no version: only a look-up can say it
        self._known[path] = _Known(StatReply(entry.attributes, file, fresh_s=fresh_s), asked_s)
        self._known.move_to_end(path)
        while len(self._known) > ENTRIES_MAX:
            self._known.popitem(last=False)
