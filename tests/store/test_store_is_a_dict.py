"""A store behaves like a dict that survives crashes; Hypothesis finds the sequence."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from uuid import UUID

from crc32c import crc32c
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from mesh.blocks import FileVersion, version_of
from mesh.errors import BlockCorrupt
from mesh.store.eviction import Rank
from mesh.store.store import BlockStore, StoreSettings, open_store

BLOCK_BYTES = 96 * 1024


def version(name: str, size_bytes: int) -> FileVersion:
    return version_of(
        source="memory://", path=name, size_bytes=size_bytes, tag="1", block_bytes=BLOCK_BYTES
    )


BIG, SMALL = version("big", 3 * BLOCK_BYTES - 7), version("small", 200)
places = st.sampled_from([(BIG, 0), (BIG, 1), (BIG, 2), (SMALL, 0)])


class Crash(Exception):
    pass


def content(file: FileVersion, index: int) -> bytes:
    """The only bytes that this block can ever have: blocks are immutable."""
    return bytes([index + 1]) * file.length_bytes(index)


class StoreIsADict(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp())
        self.runner = asyncio.Runner()
        self.model: set[tuple[FileVersion, int]] = set()
        self.maybe: set[tuple[FileVersion, int]] = set()  # lost bytes; may or may not be noticed
        self.stack = AsyncExitStack()
        self.runner.run(self.open())

    async def open(self) -> None:
        settings_ = StoreSettings(
            directory=self.root / "store", capacity_bytes=1 << 30, free_space_ratio=0.0
        )
        self.store: BlockStore = await self.stack.enter_async_context(
            open_store(settings_, cluster="c", peer_id=UUID(int=1))
        )

    async def crash(self) -> None:
        with suppress(Crash):
            await self.stack.__aexit__(Crash, Crash(), None)
        self.stack = AsyncExitStack()
        await self.open()

    @rule(place=places)
    def put(self, place: tuple[FileVersion, int]) -> None:
        self.runner.run(self._put(*place, commit=True))
        self.model.add(place)
        self.maybe.discard(place)

    @rule(place=places)
    def drop(self, place: tuple[FileVersion, int]) -> None:
        file, index = place
        self.runner.run(self.store.drop([file.key(index)]))
        self.model.discard(place)
        self.maybe.discard(place)

    @rule(place=places)
    def crash_between_bytes_and_record(self, place: tuple[FileVersion, int]) -> None:
        self.runner.run(self._put(*place, commit=False))
        self.runner.run(self.crash())

    @rule(index=st.integers(0, 2), torn=st.integers(0, BLOCK_BYTES - 8))
    def power_cut_that_tears_a_block(self, index: int, torn: int) -> None:
        path = self.store.extents.path(BIG.id)
        if (BIG, index) in self.model:
            with path.open("r+b") as extent:
                extent.seek(index * BLOCK_BYTES + torn)
                extent.write(b"\0" * 7)
            self.model.discard((BIG, index))
            self.maybe.add((BIG, index))
        self.runner.run(self.crash())

    @rule()
    def stop_and_start(self) -> None:
        self.runner.run(self.stack.aclose())
        self.stack = AsyncExitStack()
        self.runner.run(self.open())

    @rule()
    def crash_and_start(self) -> None:
        self.runner.run(self.crash())

    async def _put(self, file: FileVersion, index: int, *, commit: bool) -> None:
        data = content(file, index)
        async with self.store.writing(file, index) as writer:
            await writer.write(0, data, crc32c(data))
            if commit:
                await writer.commit(rank=Rank.OWNED)

    @invariant()
    def every_block_is_what_was_put(self) -> None:
        for file, index in [(BIG, 0), (BIG, 1), (BIG, 2), (SMALL, 0)]:
            held = self.runner.run(self.store.holds(file, index))
            if (file, index) in self.maybe:
                assert not held or self.runner.run(self._read(file, index)) is None
                self.maybe.discard((file, index))
            else:
                assert held == ((file, index) in self.model)
            if (file, index) in self.model:
                assert self.runner.run(self._read(file, index)) == content(file, index)

    async def _read(self, file: FileVersion, index: int) -> bytes | None:
        try:
            return (await self.store.read(file, index, 0))[0]
        except BlockCorrupt:
            return None

    @invariant()
    def what_it_says_of_its_use_is_so(self) -> None:
        assert self.store.used_bytes == self.store.index.usage()[1]

    def teardown(self) -> None:
        self.runner.run(self.stack.aclose())
        self.runner.close()
        shutil.rmtree(self.root)


TestStoreIsADict = StoreIsADict.TestCase
TestStoreIsADict.settings = settings(max_examples=25, stateful_step_count=20, deadline=None)
