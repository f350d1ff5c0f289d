"""The catalog's entries that this node keeps: what is written, and what of it is fresh.

What is noted can be read at once, and is committed a moment later, many names at a time.
Mounts of this host read the same tables (`entries`), so a name that is fresh there costs
them no call.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from math import inf
from typing import Any, Protocol, TypeVar

import msgspec

from mesh.blocks import Attributes
from mesh.clock import Clock
from mesh.store.entries import (
    DirectoryRecord,
    Entries,
    EntryRecord,
    as_written,
    directory_key,
    is_news,
    is_same,
)

FLUSH_AFTER_S = 0.003
AGAIN_S = 0.5
UNWRITTEN_MAX = 100_000
"""Names that are kept in memory while the disk is full; what is more is looked up again."""

NOTED_MAX = 1000
"""Names that wait to be committed; with more they are committed at once."""

SWEPT_TOGETHER = 2000
FORGOTTEN_TOGETHER = 2000
LOOKED_AT_TOGETHER = 256
HEARD_AGAIN_MS = 60_000
CHANGES_MAX = 256
"""So many changed names are told one by one; more mean that all of a directory changed."""

T = TypeVar("T")


class Writing(Protocol):
    def submit(self, op: Callable[[Any], T]) -> Future[T]: ...


@dataclass(slots=True)
class Changes:
    """What is different in a directory since it was last known."""

    names: list[str] = field(default_factory=list)
    is_all: bool = False
    """There are too many to name."""

    is_listing: bool = False
    """Names came or went."""

    def add(self, names: Iterable[str]) -> None:
        if not self.is_all:
            self.names.extend(names)
        if len(self.names) > CHANGES_MAX:
            self.names.clear()
            self.is_all = True

    def __bool__(self) -> bool:
        return bool(self.names) or self.is_all or self.is_listing


@dataclass(slots=True)
class Scan:
    """A scan of a directory that is under way."""

    directory: bytes
    number: int
    asked_ms: int
    generation: int
    was_listed: bool


@dataclass(frozen=True, slots=True)
class _Noted:
    """What was noted of a name, and is not committed yet."""

    source: str
    path: str
    record: EntryRecord
    is_sure: bool


class EntryStore:
    """Names and directories in the tables of this node."""

    def __init__(self, entries: Entries, writer: Writing, clock: Clock) -> None:
        entries.note_boot()
        self.tables = entries
        self._generation = entries.generation
        self._writer = writer
        self._clock = clock
        self._noted: dict[tuple[bytes, str], _Noted] = {}
        self._flushing: dict[tuple[bytes, str], _Noted] = {}
        self._flush_due: asyncio.TimerHandle | None = None

    # One name

    def look(self, directory: bytes, name: str) -> tuple[EntryRecord | None, float]:
        """Return what is known of a name and since when; -inf when it is doubtful."""
        key = (directory, name)
        noted = self._noted.get(key) or self._flushing.get(key)
        if noted is not None:
            return noted.record, noted.record.asked_ms / 1000
        return self.tables.entry(directory, name)

    def note(
        self,
        source: str,
        path: str,
        name: str,
        about: Attributes | None,
        asked_s: float,
        *,
        is_sure: bool = True,
    ) -> Changes:
        """Keep what was said of a name in the directory *path*; return what it changes.

        It *is_sure* if no word of a change there came while it was found out.
        """
        directory = directory_key(source, path)
        old, _ = self.look(directory, name)
        if old is not None:
            about = as_written(old.attributes, about)
        record = EntryRecord(about, int(asked_s * 1000), self._generation)
        changes = Changes()
        if old is not None and not is_same(old.attributes, about):
            changes.names.append(name)
            changes.is_listing = (old.attributes is None) is not (about is None)
        if old is None or is_news(old, record, is_sure=is_sure):
            self._noted[directory, name] = _Noted(source, path, record, is_sure)
            if len(self._noted) >= NOTED_MAX:
                self.flush()
            elif self._flush_due is None:
                loop = asyncio.get_running_loop()
                self._flush_due = loop.call_later(FLUSH_AFTER_S, self.flush)
        return changes

    async def flushed(self) -> None:
        """Wait until what was noted is committed: then the mounts of this host see it."""
        self.flush()
        await self._write(lambda _: None)

    def flush(self) -> None:
        """Have what was noted committed."""
        if self._flush_due is not None:
            self._flush_due.cancel()
            self._flush_due = None
        if not self._noted:
            return
        batch, self._noted = self._noted, {}
        self._flushing |= batch
        done = asyncio.wrap_future(self._writer.submit(partial(self._put_all, batch=batch)))
        done.add_done_callback(partial(self._flushed, batch))

    def _flushed(self, batch: dict[tuple[bytes, str], _Noted], done: asyncio.Future[None]) -> None:
        """Forget what is committed; what could not be, on a full disk, is tried again: until
        then it is still what is known."""
        is_lost = done.cancelled() or done.exception() is not None
        for key, value in batch.items():
            if self._flushing.get(key) is not value:
                continue
            del self._flushing[key]
            if is_lost and len(self._noted) < UNWRITTEN_MAX:
                self._noted.setdefault(key, value)
        if is_lost and self._noted and self._flush_due is None:
            loop = asyncio.get_running_loop()
            self._flush_due = loop.call_later(AGAIN_S, self.flush)

    def _put_all(self, txn: object, batch: dict[tuple[bytes, str], _Noted]) -> None:
        known: dict[bytes, DirectoryRecord] = {}
        for (directory, name), noted in batch.items():
            if directory not in known:
                about = self._known(txn, directory, noted.source, noted.path)
                if abs(self._now_ms() - about.heard_ms) > HEARD_AGAIN_MS:
                    about = _with(about, heard_ms=self._now_ms())
                    self.tables.put_directory(txn, directory, about)
                known[directory] = about
            asked_ms, generation = noted.record.asked_ms, noted.record.generation
            scan = known[directory].scan_at(asked_ms, generation)
            seen = EntryRecord(noted.record.attributes, asked_ms, generation, scan)
            self.tables.put(txn, directory, name, seen, is_sure=noted.is_sure)

    def _known(self, txn: object, directory: bytes, source: str, path: str) -> DirectoryRecord:
        record = self.tables.get_directory(txn, directory)
        if record is None:
            record = DirectoryRecord(_bytes(source), _bytes(path), heard_ms=self._now_ms())
            self.tables.put_directory(txn, directory, record)
        return record

    # Whole directories

    def listed_s(self, directory: bytes) -> float | None:
        """Return since when the whole listing is known; None when it is not."""
        return self.tables.listed_s(directory)

    async def begin_scan(
        self, source: str, path: str, asked_s: float, *, give_s: float = 0.0
    ) -> Scan | None:
        """Take the pages of a scan that began then, or up to *give_s* later; nothing shows
        before `end_scan`. None when a scan that began after it was begun before."""
        directory = directory_key(source, path)
        self.flush()  # what was noted in this same millisecond is older than what it will show

        def begin(txn: object) -> Scan | None:
            old = self._known(txn, directory, source, path)
            asked_ms = int(asked_s * 1000)
            latest_ms = int((asked_s + give_s) * 1000)
            if old.last_scan_generation == self._generation and latest_ms < old.last_scan_ms:
                return None
            begun = _with(
                old,
                last_scan=old.last_scan + 1,
                last_scan_ms=asked_ms,
                last_scan_generation=self._generation,
            )
            self.tables.put_directory(txn, directory, begun)
            return Scan(directory, begun.last_scan, asked_ms, self._generation, old.scan > 0)

        return await self._write(begin)

    async def add_page(
        self, scan: Scan, page: Sequence[tuple[str, Attributes]], *, is_sure: bool = True
    ) -> Changes:
        """Put a page of a scan; return what is not as it was known.

        It *is_sure* if no word of a change there came since the scan began.
        """

        def put(txn: object) -> tuple[list[str], bool]:
            changed: list[str] = []
            came = False
            for name, about in page:
                record = EntryRecord(about, scan.asked_ms, scan.generation, scan.number)
                old = self.tables.put(txn, scan.directory, name, record, is_sure=is_sure)
                if old is None:
                    came = True
                elif not is_same(old, as_written(old, about)):
                    changed.append(name)
            return changed, came

        changed, came = await self._write(put)
        changes = Changes(is_listing=came and scan.was_listed)
        changes.add(changed)
        return changes

    async def end_scan(self, scan: Scan) -> Changes:
        """Make the listing that of this scan, which was whole; return which names are gone."""
        changes = Changes()
        after: str | None = ""
        entry_count = 0
        while after is not None:
            sweep = partial(
                self.tables.sweep,
                directory=scan.directory,
                name=after,
                scan=scan.number,
                gone=EntryRecord(None, scan.asked_ms, scan.generation),
                count=SWEPT_TOGETHER,
            )
            gone, kept, after = await self._write(sweep)
            entry_count += kept
            changes.add(gone)
            changes.is_listing |= bool(gone) and scan.was_listed

        def end(txn: object) -> None:
            old = self.tables.get_directory(txn, scan.directory)
            if old is None or old.scan > scan.number:
                return
            record = _with(
                old,
                scan=scan.number,
                listed_ms=scan.asked_ms,
                listed_generation=scan.generation,
                entry_count=entry_count,
                heard_ms=self._now_ms(),
            )
            self.tables.put_directory(txn, scan.directory, record)

        await self._write(end)
        return changes

    # Doubt, and forgetting

    async def doubt(self, directory: bytes, changes: Changes) -> None:
        """Have what has changed elsewhere looked up again, whatever its age."""
        for name in changes.names:
            self._noted.pop((directory, name), None)
            self._flushing.pop((directory, name), None)
        if changes.is_all:
            self._noted = {k: v for k, v in self._noted.items() if k[0] != directory}
            self._flushing = {k: v for k, v in self._flushing.items() if k[0] != directory}

        def doubt(txn: object) -> None:
            for name in changes.names:
                self.tables.doubt(txn, directory, name, self._now_ms())
            old = self.tables.get_directory(txn, directory)
            if old is None:
                return
            if changes.is_all:
                # From the next millisecond on: what was asked in this one may be old.
                old = _with(old, fresh_from_ms=self._now_ms() + 1)
            # The listing shows the attributes of names, so it is as doubtful as they are.
            old = _with(old, listed_generation=0)
            self.tables.put_directory(txn, directory, old)

        await self._write(doubt)

    async def idle(self, after: bytes, *, for_s: float) -> tuple[list[bytes], bytes | None]:
        """Return directories that nobody asked about for so long, among those after *after*,
        and after which to go on; None at the end."""
        known = await asyncio.to_thread(self.tables.directories_after, after, LOOKED_AT_TOGETHER)
        now_ms = self._now_ms()
        idle = [
            directory
            for directory, about in known
            if not 0 <= now_ms - about.heard_ms <= for_s * 1000
        ]
        return idle, known[-1][0] if len(known) == LOOKED_AT_TOGETHER else None

    async def below(self, source: str, path: str) -> list[str]:
        """Return the directories that something is known of, *path* and those below it."""
        await self.flushed()
        found: list[str] = []
        after: bytes | None = b""
        above = f"{path}/" if path else ""
        while after is not None:
            known = await asyncio.to_thread(
                self.tables.directories_after, after, LOOKED_AT_TOGETHER
            )
            for _, about in known:
                where = about.path.decode("utf-8", "surrogateescape")
                if about.source == _bytes(source) and (where == path or where.startswith(above)):
                    found.append(where)
            after = known[-1][0] if len(known) == LOOKED_AT_TOGETHER else None
        return found

    async def forget(self, directory: bytes) -> None:
        """Forget all that is known of a directory."""
        while not await self._write(
            partial(self.tables.forget, directory=directory, count=FORGOTTEN_TOGETHER)
        ):
            pass

    def _now_ms(self) -> int:
        return int(self._clock() * 1000)

    async def _write(self, op: Callable[[Any], T]) -> T:
        return await asyncio.wrap_future(self._writer.submit(op))


def age_s(since_s: float | None, now_s: float) -> float:
    """Return the age of what is known since then; inf when it is doubtful or not known."""
    if since_s is None or since_s > now_s:
        return inf
    return now_s - since_s


def _with(record: DirectoryRecord, **changes: int) -> DirectoryRecord:
    return msgspec.structs.replace(record, **changes)


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")
