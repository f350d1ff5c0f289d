"""Pins: paths of the mesh whose blocks are never evicted, the same on every peer.

    pinned at 10:02 ──┐
    unpinned at 10:05 ┴─> the later word holds; that nothing is pinned is kept as a word too

A word goes to all peers when it is said. Who was away then learns it from anybody: each
peer that starts, or sees one that it did not see before, exchanges all words with one
other, and so it does now and then without a reason.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from hashlib import blake2b

import structlog

from mesh.clock import Clock, monotonic_s
from mesh.errors import MeshError, NotFound
from mesh.peer.neighbors import RingNeighbors
from mesh.store.index import FileRecord
from mesh.store.notes import Notes
from mesh.understore.table import MountTable
from mesh.wire.care import SHARE_PINS, Pin, PinList

log = structlog.get_logger()

PINS_MAX = 1000
PATH_BYTES_MAX = 1024
"""All pins go into one message."""

TOMBSTONES_MAX = 500
SHARE_TIMEOUT_S = 2.0
LOOK_EVERY_S = 1.0
EXCHANGE_EVERY_S = 30.0
AGAIN_AFTER_S = 2.0


@dataclass(frozen=True, slots=True)
class Covered:
    """What is pinned, as under-stores name it; never changed, so threads may read it."""

    places: frozenset[tuple[str, str]]
    """Source, and path below it without slashes at its ends."""

    def __contains__(self, about: object) -> bool:
        if not self.places or not isinstance(about, FileRecord):
            return False
        return any((about.source, path) in self.places for path in _upwards(about.path))


class Pins:
    """The pins that this peer knows."""

    def __init__(
        self,
        notes: Notes,
        table: MountTable,
        neighbors: RingNeighbors,
        *,
        clock: Clock = monotonic_s,
    ) -> None:
        self._notes = notes
        self._table = table
        self._neighbors = neighbors
        self._clock = clock
        self._pins: dict[str, Pin] = {}
        self._covered = Covered(frozenset())
        self._merging = asyncio.Lock()

    async def load(self) -> None:
        """Take up what was kept."""
        for value in (await self._notes.all()).values():
            for pin in SHARE_PINS.decode_request(value).pins:
                self._pins[pin.path] = pin
        self._cover()

    def all(self) -> PinList:
        """Return every word, those that unpin included."""
        return PinList(tuple(sorted(self._pins.values(), key=lambda pin: pin.path)))

    def is_pinned(self, about: FileRecord) -> bool:
        """Whether the blocks of a version stay; may be asked in any thread."""
        return about in self._covered

    def over(self, path: str) -> str | None:
        """Return the pinned path that *path* is, or lies below; None if there is none."""
        above = ("/" + part for part in _upwards(path))
        return next((at for at in above if self._is_live(at)), None)

    async def set(self, paths: Iterable[str], *, is_pinned: bool) -> None:
        """Pin or unpin paths here and on all peers that can be reached now.

        `NotFound` when a path to be unpinned is not pinned, or there are too many pins.
        """
        paths = ["/" + next(_upwards(path)) for path in paths]
        self._check(paths, is_pinned=is_pinned)
        now_s = time.time()
        said = []
        for path in paths:
            last = self._pins.get(path)
            # Later than what it replaces, even if that was said by a clock ahead of ours.
            stamp_s = now_s if last is None else max(now_s, last.stamp_s + 1e-3)
            said.append(Pin(path, stamp_s, is_pinned))
        await self.merge(said)
        await asyncio.gather(*(self._exchange(name, said) for name in self._others()))

    def _check(self, paths: list[str], *, is_pinned: bool) -> None:
        if not is_pinned:
            for path in paths:
                if not self._is_live(path):
                    raise NotFound(f"{path} is not pinned; `mesh pin` lists what is")
            return
        live = {path for path in self._pins if self._is_live(path)}
        if len(live | set(paths)) > PINS_MAX:
            raise NotFound(f"more than {PINS_MAX} paths can't be pinned; pin their directories")
        for path in paths:
            if len(path.encode("utf-8", "surrogateescape")) > PATH_BYTES_MAX:
                raise NotFound(f"{path} is longer than {PATH_BYTES_MAX} bytes; pin its directory")

    async def merge(self, said: Iterable[Pin]) -> None:
        """Take words from elsewhere; of two about one path the later holds."""
        async with self._merging:
            newer = {pin.path: pin for pin in said if _is_newer(pin, self._pins.get(pin.path))}
            if not newer:
                return
            self._pins |= newer
            forgotten = self._old_tombstones()
            for path in forgotten:
                del self._pins[path]
            self._cover()
            values: dict[bytes, bytes | None] = {
                _key(path): SHARE_PINS.encode_request(PinList((pin,)))
                for path, pin in newer.items()
            }
            await self._notes.put(values | {_key(path): None for path in forgotten})
        for pin in newer.values():
            log.info("pinned" if pin.is_pinned else "unpinned", path=pin.path)

    def _old_tombstones(self) -> list[str]:
        dead = [pin for pin in self._pins.values() if not pin.is_pinned]
        dead.sort(key=lambda pin: pin.stamp_s, reverse=True)
        return [pin.path for pin in dead[TOMBSTONES_MAX:]]

    async def run(self) -> None:
        """Exchange words with others for as long as this peer runs."""
        known: frozenset[tuple[str, int]] = frozenset()
        due_s = 0.0
        while True:
            here = frozenset((m.name, m.run) for m in self._neighbors.view.here if m.is_asked)
            newcomers = [name for name, _ in here - known if name != self._neighbors.me]
            known = here
            if newcomers or self._clock() >= due_s:
                due_s = self._clock() + EXCHANGE_EVERY_S
                asked = newcomers or self._others()
                if asked and not await self._exchange(random.choice(asked), self.all().pins):  # noqa: S311
                    due_s = self._clock() + AGAIN_AFTER_S
            await asyncio.sleep(LOOK_EVERY_S)

    async def _exchange(self, peer: str, said: Iterable[Pin]) -> bool:
        request = PinList(tuple(said))
        try:
            answer = await self._neighbors.ask(peer, SHARE_PINS, request, timeout_s=SHARE_TIMEOUT_S)
        except MeshError:
            return False
        await self.merge(answer.pins)
        return True

    def _others(self) -> list[str]:
        neighbors = self._neighbors
        return [m.name for m in neighbors.view.here if m.name != neighbors.me and m.is_asked]

    def _is_live(self, path: str) -> bool:
        pin = self._pins.get(path)
        return pin is not None and pin.is_pinned

    def _cover(self) -> None:
        live = [path for path in self._pins if self._is_live(path)]
        self._covered = Covered(
            frozenset(place for path in live for place in places(self._table, path))
        )


def places(table: MountTable, path: str) -> Iterator[tuple[str, str]]:
    """Yield the source and the path below it of *path*, and of each mount below it."""
    with suppress(NotFound):
        place = table.place(path)
        yield place.settings.url, place.path
    for name in table.names_below(path):
        yield from places(table, f"{path}/{name}")


def _is_newer(pin: Pin, known: Pin | None) -> bool:
    # Of two words of one moment the one that keeps blocks holds.
    return known is None or (pin.stamp_s, pin.is_pinned) > (known.stamp_s, known.is_pinned)


def _upwards(path: str) -> Iterator[str]:
    """Yield a path without slashes at its ends, the directory above it, and so on to ""."""
    parts = [part for part in path.split("/") if part]
    for count in range(len(parts), -1, -1):
        yield "/".join(parts[:count])


def _key(path: str) -> bytes:
    """Return the key of a path, which is any length, as LMDB's keys are not."""
    packed = path.encode("utf-8", "surrogateescape")
    return packed[:440] + bytes([0]) + blake2b(packed, digest_size=16).digest()
