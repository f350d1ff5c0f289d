"""Names that the mesh has and the under-store does not have yet, at the owners of directories.

The holders of a staged file say again and again that it is (`claim`), so that an owner who
came to a directory a moment ago knows it as well. A journal keeps what an owner was told,
and for a while what has ended at a path, and where it went, so that a holder who was away
can't bring it back.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from hashlib import blake2b

import structlog

from mesh.blocks import Attributes, identity_of, token_of, under_store_tag
from mesh.clock import Clock
from mesh.errors import StoreFull
from mesh.store.entries import directory_key, split
from mesh.store.notes import Notes
from mesh.understore.table import MountTable
from mesh.wire.basics import path_bytes, path_text
from mesh.wire.staged import StagedFile, decode_staged, encode_staged

log = structlog.get_logger()

BELIEVED_S = 120.0
"""After so long without a word of its holders, though one of them is there, it is not."""

ENDED_FOR_S = 7 * 86_400.0
ENDED_MAX = 100_000
FORMERS_MAX = 8
RECALLED_S = 3600.0
RECALLED_MAX = 10_000
"""What has ended so lately, and no more of it, is told to an owner who was away."""


@dataclass(slots=True)
class _Known:
    file: StagedFile
    heard_s: float
    is_loaded: bool = False
    """Whether this comes from before this peer was started."""


@dataclass(frozen=True, slots=True)
class End:
    """What became of a staged file at one path."""

    wall_s: float
    moved_to: str = ""
    tag: str = ""
    """What it is called since it is persisted."""

    def packed(self) -> bytes:
        return b"%r\0%b\0%b" % (self.wall_s, path_bytes(self.moved_to), self.tag.encode())


def _end_of(value: bytes) -> End:
    wall_s, target, tag = [*value.split(b"\0"), b""][:3]
    return End(float(wall_s), path_text(target), tag.decode())


class Overlay:
    """The staged names of the directories that this peer owns, or has owned."""

    def __init__(
        self,
        table: MountTable,
        names: Notes,
        ended: Notes,
        is_up: Callable[[str], bool],
        owns: Callable[[bytes], bool],
        clock: Clock,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._table = table
        self._names = names
        self._ended_notes = ended
        self._is_up = is_up
        self._owns = owns
        self._clock = clock
        self._wall_clock = wall_clock
        self._known: dict[bytes, dict[str, _Known]] = {}
        self._ended: dict[bytes, End] = {}

    async def load(self) -> None:
        """Learn from the journal. What has ended there has, though its name is journaled too:
        the end is written first, and this peer may have been killed before the rest."""
        wall_s = self._wall_clock()
        for key, value in (await self._ended_notes.all()).items():
            ended = _end_of(value)
            if wall_s - ended.wall_s < ENDED_FOR_S:
                self._ended[key] = ended
        now_s = self._clock()
        for value in (await self._names.all()).values():
            file = decode_staged(value)
            if _end_key(file.token, file.path) in self._ended:
                continue
            directory, name = self._spot(file.path)
            self._known.setdefault(directory, {})[name] = _Known(file, now_s, is_loaded=True)

    def look(self, directory: bytes, name: str) -> StagedFile | None:
        """Return what is staged under a name."""
        known = self._known.get(directory, {}).get(name)
        return known.file if known and self._is_believed(directory, known) else None

    def has(self, directory: bytes, name: str) -> bool:
        return name in self._known.get(directory, ())

    def is_ended(self, token: str, path: str) -> bool:
        """Whether a file is known to be of no use at a path any more."""
        return _end_key(token, path) in self._ended

    def end_of(self, file: StagedFile) -> End | None:
        """Return what became of a file at its path; None while it is there, or never was."""
        return self._ended.get(_end_key(file.token, file.path))

    async def outdate(self, path: str) -> None:
        """Take back what was staged at a path before this peer was started: another owner
        says that something was done there since. If it is still staged, a holder claims it."""
        directory, name = self._spot(path)
        known = self._known.get(directory, {}).get(name)
        if known is not None and known.is_loaded:
            del self._known[directory][name]
            await _as_far_as_there_is_room(self._names, {_key(directory, name): None})

    def is_of(self, directory: bytes, name: str, token: str) -> bool:
        """Whether it is that file which is staged under a name."""
        known = self._known.get(directory, {}).get(name)
        return known is not None and known.file.token == token

    def is_later(self, directory: bytes, name: str, token: str, there_s: float) -> bool:
        """Whether another file than that is staged under a name, and came there after it."""
        known = self._known.get(directory, {}).get(name)
        return known is not None and known.file.token != token and known.file.there_s > there_s

    def names(self, directory: bytes) -> Mapping[str, Attributes]:
        """Return what is staged in a directory, by name, as it is now and will be."""
        known = self._known.get(directory)
        return _Names(known, partial(self._is_believed, directory)) if known else {}

    def _is_believed(self, directory: bytes, known: _Known) -> bool:
        if known.is_loaded and not self._owns(directory):
            return False  # claimed here while its owners were away; they were told the rest
        if self._clock() - known.heard_s < BELIEVED_S:
            return True
        return not any(self._is_up(peer) for peer in known.file.holders)

    async def claim(self, file: StagedFile) -> StagedFile | None:
        """Note, if that is news, that a file is staged; None when it is no more.

        Returns what is known of it: another path, if it was renamed.
        """
        ended = self._ended.get(_end_key(file.token, file.path))
        if ended is not None:
            return replace(file, path=ended.moved_to, over="") if ended.moved_to else None
        directory, name = self._spot(file.path)
        known = self._known.get(directory, {}).get(name)
        is_other = known is not None and known.file.token != file.token
        if known is not None and is_other and known.file.there_s >= file.there_s:
            await self.end(file.token, file.path)
            return None
        if known is not None and known.file.token == file.token:
            known.heard_s, known.is_loaded = self._clock(), False
            is_news = file.named_s > known.file.named_s
            if not is_news and set(file.holders) <= set(known.file.holders):
                return known.file
            more = (name for name in file.holders if name not in known.file.holders)
            holders = (*known.file.holders, *more)
            named_s = max(file.named_s, known.file.named_s)
            file = replace(known.file, holders=holders, named_s=named_s)
        await self.put(file)
        return file

    async def put(self, file: StagedFile) -> None:
        """Note that a file is staged, in place of what was; durable on return."""
        directory, name = self._spot(file.path)
        names = self._known.setdefault(directory, {})
        before = names.get(name)
        if before is not None:
            # What the under-store had below that, or has of what was below: no writer knows better.
            formers = tuple(dict.fromkeys((*file.formers, *before.file.formers)))
            if before.file.token == file.token:
                file = replace(file, named_s=max(file.named_s, before.file.named_s))
            elif before.file.digest:
                formers = (*formers, before.file.digest)
            file = replace(file, over=before.file.over, formers=formers[-FORMERS_MAX:])
        names[name] = now = _Known(file, self._clock())
        try:
            if self._ended.pop(key := _end_key(file.token, file.path), None):  # renamed back
                await self._ended_notes.put({key: None})
            await self._names.put({_key(directory, name): encode_staged(file)})
        except StoreFull:
            if names.get(name) is now:
                names.pop(name) if before is None else names.update({name: before})
            raise
        if before is not None and before.file.token != file.token:
            await self.end(before.file.token, before.file.path)

    async def persisted(self, path: str, about: Attributes) -> bool:
        """Note what the under-store has now; False when something newer is staged there."""
        directory, name = self._spot(path)
        known = self._known.get(directory, {}).get(name)
        if known is None:
            return True
        if identity_of(known.file.attributes.tag) == identity_of(about.tag):
            await self.forget(directory, name, tag=about.tag)
            return True
        known.file = replace(known.file, over=under_store_tag(about.tag), formers=())
        await self._names.put({_key(directory, name): encode_staged(known.file)})
        return False

    def told(
        self, is_theirs: Callable[[bytes], bool]
    ) -> tuple[list[StagedFile], dict[bytes, bytes]]:
        """Return what is staged in directories, and what has ended lately, for another owner."""
        staged = [
            known.file
            for directory, names in self._known.items()
            if is_theirs(directory)
            for known in names.values()
            if self._is_believed(directory, known)
        ]
        since_s = self._wall_clock() - RECALLED_S
        ended: dict[bytes, bytes] = {}
        for key, end in reversed(self._ended.items()):
            if end.wall_s < since_s or len(ended) >= RECALLED_MAX:
                break
            ended[key] = end.packed()
        return staged, ended

    async def learn(
        self, staged: Iterable[StagedFile], ended: Mapping[bytes, bytes]
    ) -> tuple[list[StagedFile], list[StagedFile]]:
        """Note what another owner knows; return what is news, and what is staged no more.

        He has it in his journal: a disk that is full here is no reason not to know it.
        """
        news: list[StagedFile] = []
        gone: list[StagedFile] = []
        new_ends = {key: value for key, value in ended.items() if key not in self._ended}
        self._ended |= {key: _end_of(value) for key, value in new_ends.items()}
        for directory, names in list(self._known.items()):
            for name, known in list(names.items()):
                if _end_key(known.file.token, known.file.path) in new_ends:
                    gone.append(known.file)
                    del names[name]
            if not names:
                del self._known[directory]
        for file in staged:
            directory, name = self._spot(file.path)
            before = self._known.get(directory, {}).get(name)
            is_older = before is not None and before.file.there_s > file.there_s
            if is_older or _end_key(file.token, file.path) in self._ended:
                continue
            news.append(file)
            self._known.setdefault(directory, {})[name] = _Known(file, self._clock())
        changes: dict[bytes, bytes | None] = {_key(*self._spot(f.path)): None for f in gone}
        changes |= {_key(*self._spot(f.path)): encode_staged(f) for f in news}
        await _as_far_as_there_is_room(self._names, changes)
        await _as_far_as_there_is_room(self._ended_notes, new_ends)
        return news, gone

    async def forget(
        self, directory: bytes, name: str, *, moved_to: str = "", tag: str = ""
    ) -> None:
        """Note that a name is staged no more, and the path that its file has instead, or the
        tag under which it is persisted."""
        known = self._known.get(directory, {}).pop(name, None)
        if known is None:
            return
        if not self._known[directory]:
            del self._known[directory]
        tag = tag if token_of(tag) == known.file.token else ""
        await self.end(known.file.token, known.file.path, moved_to=moved_to, tag=tag)
        await _as_far_as_there_is_room(self._names, {_key(directory, name): None})

    async def end(self, token: str, path: str, *, moved_to: str = "", tag: str = "") -> None:
        """Note that a staged file is not to go to a path any more."""
        ended = End(self._wall_clock(), moved_to, tag)
        key = _end_key(token, path)
        self._ended.pop(key, None)  # it is the newest of all
        self._ended[key] = ended
        changes: dict[bytes, bytes | None] = {key: ended.packed()}
        while len(self._ended) > ENDED_MAX:
            oldest = next(iter(self._ended))
            del self._ended[oldest]
            changes[oldest] = None
        await _as_far_as_there_is_room(self._ended_notes, changes)

    def _spot(self, path: str) -> tuple[bytes, str]:
        place = self._table.place(path)
        parent, name = split(place.path)
        return directory_key(place.settings.url, parent), name


async def _as_far_as_there_is_room(notes: Notes, changes: Mapping[bytes, bytes | None]) -> None:
    """Journal what is not promised to anybody: without it an owner that is started again asks
    the others."""
    try:
        await notes.put(changes)
    except StoreFull as error:
        log.warning("not journaled", reason=str(error))


class _Names(Mapping[str, Attributes]):
    """What is believed of one directory; to ask for one name does not look at the others."""

    def __init__(self, known: dict[str, _Known], is_believed: Callable[[_Known], bool]) -> None:
        self._known = known
        self._is_believed = is_believed

    def __getitem__(self, name: str) -> Attributes:
        known = self._known[name]
        if not self._is_believed(known):
            raise KeyError(name)
        return known.file.attributes

    def __iter__(self) -> Iterator[str]:
        return (name for name, known in self._known.items() if self._is_believed(known))

    def __len__(self) -> int:
        return sum(1 for _ in self)


def _end_key(token: str, path: str) -> bytes:
    return token.encode() + blake2b(path_bytes(path), digest_size=16).digest()


def _key(directory: bytes, name: str) -> bytes:
    return directory + name.encode("utf-8", "surrogateescape")
