"""What people told this node and it must not forget: jobs and pins.

Two more tables of the journal's environment, both few and small; each commit is synced.

    table   key                        value
    jobs    number (u64, big-endian)   a job, as its owner packs it
    pins    path in the mesh           a pin, as its owner packs it
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from typing import TypeVar

import lmdb

T = TypeVar("T")


class Notes:
    """One table of small values; opened by `open_notes`."""

    def __init__(self, env: lmdb.Environment, table: bytes, threads: Executor) -> None:
        """Do what waits for the disk in *threads*, which end before *env* is closed."""
        self._env = env
        self._table = env.open_db(table)
        self._threads = threads

    async def all(self) -> dict[bytes, bytes]:
        """Return everything, by key, in the order of keys."""
        return await self._in_thread(self._all)

    async def put(self, values: Mapping[bytes, bytes | None]) -> None:
        """Keep these values, and forget those that are None; durable on return."""
        await self._in_thread(lambda: self._put(values))

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
