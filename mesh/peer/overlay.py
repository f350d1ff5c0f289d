"""Names that the mesh has and the under-store does not have yet, at the owners of directories.

The holders of a staged file say again and again that it is (`claim`), so that an owner who
came to a directory a moment ago knows it as well. A journal keeps what an owner was told,
and for a while what has ended, so that a holder who was away can't bring it back.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from mesh.blocks import Attributes, identity_of, under_store_tag
from mesh.clock import Clock
from mesh.store.entries import directory_key, split
from mesh.store.notes import Notes
from mesh.understore.table import MountTable
from mesh.wire.writes import StagedFile, decode_staged, encode_staged

CLAIM_EVERY_S = 5.0
BELIEVED_S = 60.0
"""After so long without a word of its holders, though one of them is there, it is not."""

ENDED_FOR_S = 7 * 86_400.0
ENDED_MAX = 100_000


@dataclass(slots=True)
class _Known:
    file: StagedFile
    heard_s: float


class Overlay:
    """The staged names of the directories that this peer owns, or has owned."""

    def __init__(
        self,
        table: MountTable,
        names: Notes,
        ended: Notes,
        is_up: Callable[[str], bool],
        clock: Clock,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._table = table
        self._names = names
        self._ended_notes = ended
        self._is_up = is_up
        self._clock = clock
        self._wall_clock = wall_clock
        self._known: dict[bytes, dict[str, _Known]] = {}
        self._ended: dict[str, float] = {}

    async def load(self) -> None:
        now_s = self._clock()
        for value in (await self._names.all()).values():
            file = decode_staged(value)
            directory, name = self._spot(file.path)
            self._known.setdefault(directory, {})[name] = _Known(file, now_s)
        wall_s = self._wall_clock()
        for token, ended in (await self._ended_notes.all()).items():
            if wall_s - float(ended) < ENDED_FOR_S:
                self._ended[token.decode()] = float(ended)

    def look(self, directory: bytes, name: str) -> StagedFile | None:
        """Return what is staged under a name."""
        known = self._known.get(directory, {}).get(name)
        return known.file if known is not None and self._is_believed(known) else None

    def has(self, directory: bytes, name: str) -> bool:
        return name in self._known.get(directory, ())

    def names(self, directory: bytes) -> Mapping[str, Attributes]:
        """Return what is staged in a directory, by name."""
        known = self._known.get(directory)
        if not known:
            return {}
        return {n: k.file.attributes for n, k in known.items() if self._is_believed(k)}

    def _is_believed(self, known: _Known) -> bool:
        if self._clock() - known.heard_s < BELIEVED_S:
            return True
        return not any(self._is_up(peer) for peer in known.file.holders)

    async def claim(self, file: StagedFile) -> StagedFile | None:
        """Note, if that is news, that a file is staged; None when it is no more."""
        if file.token in self._ended:
            return None
        directory, name = self._spot(file.path)
        known = self._known.get(directory, {}).get(name)
        is_other = known is not None and known.file.token != file.token
        if known is not None and is_other and known.file.queued_s >= file.queued_s:
            await self.end(file.token)
            return None
        if known is not None and known.file.token == file.token:
            known.heard_s = self._clock()
            if known.file.holders == file.holders:
                return known.file
            file = replace(file, over=known.file.over)
        await self.put(file)
        return file

    async def put(self, file: StagedFile) -> None:
        """Note that a file is staged, in place of what was; durable on return."""
        directory, name = self._spot(file.path)
        names = self._known.setdefault(directory, {})
        before = names.get(name)
        if before is not None and before.file.token != file.token and not file.over:
            file = replace(file, over=before.file.over)  # of that nothing may have gone anywhere
        names[name] = _Known(file, self._clock())
        await self._names.put({_key(directory, name): encode_staged(file)})
        if before is not None and before.file.token != file.token:
            await self.end(before.file.token)

    async def persisted(self, path: str, about: Attributes) -> bool:
        """Note what the under-store has now; False when something newer is staged there."""
        directory, name = self._spot(path)
        known = self._known.get(directory, {}).get(name)
        if known is None:
            return True
        if identity_of(known.file.attributes.tag) == identity_of(about.tag):
            await self.forget(directory, name)
            return True
        known.file = replace(known.file, over=under_store_tag(about.tag))
        await self._names.put({_key(directory, name): encode_staged(known.file)})
        return False

    async def forget(self, directory: bytes, name: str, *, is_ended: bool = True) -> None:
        """Note that a name is staged no more, and unless it has another one its file too."""
        known = self._known.get(directory, {}).pop(name, None)
        if known is None:
            return
        if not self._known[directory]:
            del self._known[directory]
        if is_ended:
            await self.end(known.file.token)
        await self._names.put({_key(directory, name): None})

    async def end(self, token: str) -> None:
        """Note that a staged file is of no use any more."""
        now_s = self._wall_clock()
        self._ended[token] = now_s
        changes: dict[bytes, bytes | None] = {token.encode(): repr(now_s).encode()}
        while len(self._ended) > ENDED_MAX:
            oldest = next(iter(self._ended))
            del self._ended[oldest]
            changes[oldest.encode()] = None
        await self._ended_notes.put(changes)

    def _spot(self, path: str) -> tuple[bytes, str]:
        place = self._table.place(path)
        parent, name = split(place.path)
        return directory_key(place.settings.url, parent), name


def _key(directory: bytes, name: str) -> bytes:
    return directory + name.encode("utf-8", "surrogateescape")
