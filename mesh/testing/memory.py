"""In-memory stand-ins for the other peers and the under-store.

They keep the contracts of the real ones, count what matters, and break on
request. `tests/contracts` runs the same checks against these and those.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import (
    AsyncIterator,
    Callable,
    Coroutine,
    Generator,
    Iterator,
    Mapping,
    Sequence,
)
from typing import Any

from crc32c import crc32c

from mesh.blocks import (
    PIECE_BYTES,
    Attributes,
    BlockKey,
    DirectoryEntry,
    FileVersion,
    piece_count,
    piece_order,
    version_of,
)
from mesh.clock import monotonic_s
from mesh.errors import (
    MeshError,
    NotADirectory,
    NotEmpty,
    NotFound,
    PeerUnavailable,
    Refused,
    Stale,
    UnderStoreUnavailable,
)
from mesh.peer.health import Hedging
from mesh.store.eviction import Rank
from mesh.understore.understore import PAGE_ENTRIES, UnderStore
from mesh.understore.writable import PERMISSIONS, Upload, check_moved, check_replaced
from mesh.wire.hedged import Hedged, Signs, Strays
from mesh.wire.messages import Piece

SOURCE = "memory://test"


class MemoryUnderStore:
    """Files in a dict, by path; a directory is there while something lies in it, or it was made."""

    def __init__(self, files: Mapping[str, bytes] | None = None) -> None:
        self.files = dict(files or {})
        self.tags: Counter[str] = Counter()
        self.reads: Counter[tuple[str, int]] = Counter()
        """By path and offset."""

        self.listings = 0
        self.stats = 0
        self.error: MeshError | None = None
        """Raised by every call while it is set."""

        self.gate = asyncio.Event()
        """Reads wait while it is cleared."""

        self.gate.set()

        self.directories: set[str] = set()
        """Those that were made, and are there even when they are empty."""

        self.modes: dict[str, int] = {}
        self.uploads: Counter[str] = Counter()
        """Begun, by path."""

        self.upload_gate = asyncio.Event()
        """Whoever publishes waits while it is cleared."""

        self.upload_gate.set()

    def write(self, path: str, data: bytes) -> None:
        """Change a file behind the mesh's back."""
        self.files[path] = data
        self.tags[path] += 1

    async def prepare(self) -> None:
        self._check()

    async def stat(self, path: str) -> Attributes:
        self.stats += 1
        return self._about(path)

    def _about(self, path: str) -> Attributes:
        self._check()
        if path in self.files:
            return Attributes(
                is_directory=False,
                size_bytes=len(self.files[path]),
                mtime_ns=self.tags[path] * 10**9,
                tag=f"tag-{self.tags[path]}",
                mode=self.modes.get(path, 0),
            )
        is_made = not path or path in self.directories
        if not is_made and not any(self._below(path)):
            raise NotFound(f"{path}: no such file")
        return Attributes(
            is_directory=True, size_bytes=0, mtime_ns=0, tag="", mode=self.modes.get(path, 0)
        )

    def _found(self, path: str) -> Attributes | None:
        try:
            return self._about(path)
        except NotFound:
            return None

    def _below(self, path: str) -> Iterator[str]:
        """Name all files and made directories below a directory."""
        prefix = f"{path}/" if path else ""
        for named in (self.files, self.directories):
            yield from (name for name in named if name.startswith(prefix))

    async def scan(self, path: str) -> AsyncIterator[list[DirectoryEntry]]:
        self.listings += 1
        self._check()
        if path in self.files:
            raise NotADirectory(f"{path}: not a directory")
        prefix = f"{path}/" if path else ""
        names = sorted({name[len(prefix) :].split("/")[0] for name in self._below(path)})
        if path and not names and path not in self.directories:
            raise NotFound(f"{path}: no such directory")
        for start in range(0, len(names), PAGE_ENTRIES):
            self._check()
            page = names[start : start + PAGE_ENTRIES]
            yield [DirectoryEntry(name, self._about(prefix + name)) for name in page]

    async def read(
        self, path: str, stat: Attributes, offset_bytes: int, size_bytes: int
    ) -> AsyncIterator[bytes]:
        self.reads[path, offset_bytes] += 1
        end_bytes = offset_bytes + size_bytes
        while offset_bytes < end_bytes:
            await self.gate.wait()
            self._check()
            if path not in self.files or stat.tag != f"tag-{self.tags[path]}":
                raise Stale(f"{path} was changed")
            run_bytes = min(PIECE_BYTES, end_bytes - offset_bytes)
            yield self.files[path][offset_bytes : offset_bytes + run_bytes]
            offset_bytes += run_bytes

    async def upload(
        self, path: str, *, size_bytes: int | None = None, mode: int | None = None
    ) -> Upload:
        self._check()
        self._check_above(path)
        self.uploads[path] += 1
        return _MemoryUpload(self, path, mode)

    def put(self, path: str, data: bytes, over: str | None, mode: int | None) -> Attributes:
        """Publish an upload."""
        check_replaced(path, self._found(path), over)
        self._check_above(path)
        self.write(path, data)
        if mode is not None:
            self.modes[path] = mode & PERMISSIONS
        return self._about(path)

    def remove(self, path: str, *, only: str | None = None) -> _Done:
        """Remove a file at once, for a test behind the mesh's back or for who awaits it."""
        found = self._about(path)
        check_replaced(path, found, only)
        self._forget(path)
        return _Done()

    async def make_directory(self, path: str, *, mode: int | None = None) -> None:
        is_new = self._found(path) is None
        self._check_above(f"{path}/")
        parts = path.split("/")
        self.directories |= {"/".join(parts[:count]) for count in range(1, len(parts) + 1)} - {""}
        if mode is not None and is_new:
            self.modes[path] = mode & PERMISSIONS

    async def remove_directory(self, path: str) -> None:
        if not self._about(path).is_directory:
            raise NotADirectory(f"{path}: not a directory")
        if any(self._below(path)):
            raise NotEmpty(f"{path}: not empty")
        self.directories.discard(path)
        self.modes.pop(path, None)

    async def move(self, path: str, target: str, *, over: str | None) -> Attributes:
        about = self._about(path)
        if path == target:
            return about
        check_moved(about, target, self._found(target), over)
        self._check_above(target)

        def moved(name: str) -> str:
            is_moved = name == path or name.startswith(f"{path}/")
            return target + name[len(path) :] if is_moved else name

        self.modes.pop(target, None)
        self.modes = {moved(name): mode for name, mode in self.modes.items()}
        self.directories = set(map(moved, self.directories))
        for old in [name for name in self.files if moved(name) != name]:
            new = moved(old)
            self.tags[new] = max(self.tags[new], self.tags[old])  # so that neither had the next
            self.write(new, self.files[old])
            self._forget(old)
        return self._about(target)

    async def set_mode(self, path: str, mode: int) -> bool:
        self._about(path)
        self.modes[path] = mode & PERMISSIONS
        return True

    def _forget(self, path: str) -> None:
        del self.files[path]
        self.tags[path] += 1
        self.modes.pop(path, None)

    def _check_above(self, path: str) -> None:
        """Raise if a file is where a directory above *path* would have to be."""
        parts = path.split("/")
        for count in range(1, len(parts)):
            if "/".join(parts[:count]) in self.files:
                raise NotADirectory(f"{path}: {'/'.join(parts[:count])} is a file")

    async def aclose(self) -> None:
        return

    def go_away(self) -> None:
        """Answer nothing from now on."""
        self.error = UnderStoreUnavailable("switched off by the test")

    def come_back(self) -> None:
        self.error = None

    def version(self, path: str, *, block_bytes: int = 4 * PIECE_BYTES) -> FileVersion:
        """Name the content that a file has now."""
        return version_of(
            source=SOURCE,
            path=path,
            size_bytes=len(self.files[path]),
            tag=f"tag-{self.tags[path]}",
            block_bytes=block_bytes,
        )

    def _check(self) -> None:
        if self.error is not None:
            raise self.error


class _MemoryUpload:
    """A file on its way to a `MemoryUnderStore`."""

    def __init__(self, store: MemoryUnderStore, path: str, mode: int | None) -> None:
        self._store = store
        self._path = path
        self._mode = mode
        self._data = bytearray()

    async def add(self, data: bytes | memoryview) -> None:
        self._store._check()
        self._data += data

    async def publish(self, *, over: str | None) -> Attributes:
        await self._store.upload_gate.wait()
        return self._store.put(self._path, bytes(self._data), over, self._mode)

    async def abort(self) -> None:
        self._store._check()
        self._data.clear()


class _Done(Coroutine[Any, Any, None]):
    """What has been done already; nobody is warned who does not await it."""

    def __await__(self) -> Generator[Any, Any, None]:
        yield from ()

    def send(self, value: Any) -> None:
        raise StopIteration

    def throw(self, *error: Any) -> None:
        raise StopIteration

    def close(self) -> None:
        return


class DistantUnderStore:
    """An under-store as one peer reaches it: late, and sometimes not at all."""

    def __init__(
        self,
        store: UnderStore,
        *,
        delay_s: Callable[[], float],
        is_reached: Callable[[], bool],
        timeout_s: float = 2.0,
    ) -> None:
        self._store = store
        self._delay_s = delay_s
        self._is_reached = is_reached
        self._timeout_s = timeout_s

    async def read(
        self, path: str, stat: Attributes, offset_bytes: int, size_bytes: int
    ) -> AsyncIterator[bytes | memoryview]:
        await self._travel()
        async for run in self._store.read(path, stat, offset_bytes, size_bytes):
            await self._travel()
            yield run

    async def _travel(self) -> None:
        await asyncio.sleep(self._delay_s())
        if not self._is_reached():
            await asyncio.sleep(self._timeout_s)
            raise UnderStoreUnavailable(f"no answer in {self._timeout_s:g} s")


class OneUnderStore:
    """A mount table of one."""

    def __init__(self, store: UnderStore) -> None:
        self._store = store

    def store_of(self, file: FileVersion) -> UnderStore:
        return self._store


class MemoryNeighbors:
    """Peers that answer from a dict, until a test kills or corrupts them."""

    def __init__(self, order: Sequence[str], me: str) -> None:
        """Have *order* be the owners of every block, nearest first."""
        self.order = list(order)
        self.me = me
        self.held: dict[str, dict[BlockKey, bytes]] = {name: {} for name in order}
        self.dead: set[str] = set()
        self.dies_after_pieces: dict[str, int] = {}
        self.lies: set[str] = set()
        """Peers whose bytes do not match their checksum."""

        self.asked: Counter[str] = Counter()
        self.under_store_answers = True
        self._signs = Signs()
        self._strays = Strays()

    def owners(self, key: BlockKey) -> list[str]:
        return self.order

    def is_me(self, peer: str) -> bool:
        return peer == self.me

    def owns(self, key: BlockKey) -> bool:
        return self.me in self.order

    def rank(self, key: BlockKey) -> Rank:
        if self.me not in self.order:
            return Rank.COPY
        return Rank.OWNED if self.order[0] == self.me else Rank.SPARE

    def may_bypass(self) -> bool:
        return True

    def may_ask_after_all(self) -> bool:
        return True

    def note_under_store(self, *, answers: bool) -> None:
        self.under_store_answers = answers

    def serve(
        self, peers: Sequence[str], file: FileVersion, index: int, missing: Sequence[int]
    ) -> Hedged:
        return self._hedged(self.served, peers, file, index, missing)

    def relay(self, file: FileVersion, index: int, missing: Sequence[int]) -> Hedged | None:
        return None

    def peek(
        self, peers: Sequence[str], file: FileVersion, index: int, missing: Sequence[int]
    ) -> Hedged:
        return self._hedged(self.served, peers, file, index, missing)

    def _hedged(
        self,
        verb: Callable[[str, FileVersion, int, int], AsyncIterator[Piece]],
        peers: Sequence[str],
        file: FileVersion,
        index: int,
        missing: Sequence[int],
    ) -> Hedged:
        return Hedged(
            peers,
            lambda peer: verb(peer, file, index, missing[0] if missing else 0),
            Hedging(),
            self._signs,
            monotonic_s,
            answers=(Stale, Refused),
        )

    def settle(self, hedged: Hedged) -> None:
        self._strays.take(hedged)

    async def served(
        self, peer: str, file: FileVersion, index: int, first_piece: int
    ) -> AsyncIterator[Piece]:
        """Yield what *peer* sends when it is asked for a block."""
        self.asked[peer] += 1
        await asyncio.sleep(0)
        if peer in self.dead:
            raise PeerUnavailable(peer, "killed by the test")
        data = self.held[peer].get(file.key(index))
        if data is None:
            raise NotFound(f"{file.key(index)} on {peer}")
        count = piece_count(len(data))
        for number in piece_order(count, first=first_piece % count):
            if number == self.dies_after_pieces.get(peer):
                raise PeerUnavailable(peer, "killed by the test half-way")
            part = data[number * PIECE_BYTES : (number + 1) * PIECE_BYTES]
            crc = crc32c(part)
            yield Piece(number, crc ^ 1 if peer in self.lies else crc, part)

    async def other_holders(self, file: FileVersion, index: int, *, wide: bool) -> Sequence[str]:
        """In a quiet mesh nobody is asked but when the under-store is away."""
        if not wide:
            return []
        return [peer for peer in self.order if file.key(index) in self.held[peer]]
