"""What this node must not forget: jobs, pins, and what is staged.

More tables of the journal's environment; each commit is synced.

    table          key                        value
    jobs           number (u64, big-endian)   a job, as its owner packs it
    pins           path in the mesh           a pin, as its owner packs it
    staged         token                      a staged file that is here
    staged_names   directory key + name       a staged file of a directory that is owned here
    ended          token + hash of a path     when it ended there, and where it went
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from typing import TypeVar

import lmdb

from mesh.errors import StoreFull
from mesh.store.spare import is_disk_full

T = TypeVar("T")


class Notes:
    """One table of small values; opened by `open_notes`."""

    def __init__(
        self,
        env: lmdb.Environment,
        table: bytes,
        threads: Executor,
        make_room: Callable[[], bool] = lambda: False,
    ) -> None:
        """Do what waits for the disk in *threads*, which end before *env* is closed.

        On a full disk it is tried once more if *make_room* says that it did.
        """
        self._make_room = make_room
        self._env = env
        self._table = env.open_db(table)
        self._threads = threads
        self._turn = asyncio.Lock()

    async def all(self) -> dict[bytes, bytes]:
        """Return everything, by key, in the order of keys."""
        return await self._in_thread(self._all)

    async def put(self, values: Mapping[bytes, bytes | None]) -> None:
        """Keep these values, and forget those that are None; durable on return.

        What is asked for later is written later, whichever thread comes first. Raises
        `StoreFull` when the disk is full.
        """
        async with self._turn:
            await self._in_thread(lambda: self._put_in_room(values))

    def _put_in_room(self, values: Mapping[bytes, bytes | None]) -> None:
        try:
            return self._put(values)
        except lmdb.Error as error:
            if not is_disk_full(error):
                raise
            if not self._make_room():
                raise StoreFull(f"journal: {error}") from error
        try:
            self._put(values)
        except lmdb.Error as error:
            if not is_disk_full(error):
                raise
            raise StoreFull(f"journal: {error}") from error

    def _all(self) -> dict[bytes, bytes]:
        with self._env.begin(db=self._table) as txn:
            return {bytes(key): bytes(value) for key, value in txn.cursor()}

    def _put(self, values: Mapping[bytes, bytes | None]) -> None:
        with self._env.begin(db=self._table, write=True) as txn:
            for key, value in values.items():
                if value is None:
                    txn.delete(key)
                else:
                    txn.put(key, value)

    async def _in_thread(self, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, call)
