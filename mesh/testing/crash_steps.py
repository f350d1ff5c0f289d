"""The steps of the write path at which a life may end: all that another process, or the next
run of a peer, can see.

    a disk           fsync, link, unlink, and each record of the journal before and after it
    another peer     each call before it is sent and after its answer, each piece that is pulled
    who calls        each call after it was served, and before it is answered
    under-store      upload, add, publish, remove, move: before, and done but not answered
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import grpc.aio._call as grpc_calls

from mesh.client import writes as writes_module
from mesh.peer import holder as holder_module
from mesh.peer import server as server_module
from mesh.peer import stager as stager_module
from mesh.store import store as store_module
from mesh.store.drafts import make_draft, new_token
from mesh.store.journal import Claim, claim
from mesh.store.notes import Notes
from mesh.testing.crashes import DIRECTORIES, LIFE, in_thread, life_at, reach, step
from mesh.testing.disks import Disk
from mesh.wire.basics import Method
from mesh.wire.bulk_server import BulkServer
from mesh.wire.channels import Channels
from mesh.wire.connection import Connection
from mesh.wire.local import Handler, LocalServer

CALLS = {"Hold", "Announce", "Assert", "Turn", "Retarget", "Pull"}
SERVED = CALLS - {"Pull"}
FROM_MOUNTS = {"Grow", "Publish", "Retire", "Alter"}
NOTES = {b"staged", b"staged_names", b"ended"}
DISKS: dict[str, Disk] = {}
"""By data directory."""


@contextmanager
def crash_steps() -> Iterator[None]:
    """Have every step reached by all peers and mounts of this process that have a life."""
    with ExitStack() as stack:
        for target, name, instead in [
            (os, "fsync", partial(_fsync, os.fsync)),
            (os, "link", partial(_link, os.link)),
            (os, "unlink", partial(_unlink, os.unlink)),
            (asyncio, "to_thread", partial(in_thread, asyncio.to_thread)),
            (Notes, "__init__", _of(_noted_table, Notes.__init__)),
            (Notes, "put", _of(_record, Notes.put)),
            (Channels, "call", _of(_call, Channels.call)),
            (Channels, "pieces", _of(_pieces, Channels.pieces)),
            (grpc_calls.Call, "__init__", _of(_begin_call, grpc_calls.Call.__init__)),
            (server_module, "_unary", partial(_unary, server_module._unary)),
            (server_module.PeerServer, "_server", _of(_server, server_module.PeerServer._server)),
            (LocalServer, "__init__", _of(_local_server, LocalServer.__init__)),
            (BulkServer, "__init__", _of(_bulk_server, BulkServer.__init__)),
            (Connection, "__init__", _of(_connection, Connection.__init__)),
            (stager_module.Stager, "pull", _of(_pull, stager_module.Stager.pull)),
            (holder_module, "make_draft", partial(_make_draft, make_draft)),
            (writes_module, "make_draft", partial(_make_draft, make_draft)),
            (writes_module, "new_token", partial(_new_token, new_token)),
            (store_module, "claim", partial(_claim, claim)),
        ]:
            stack.enter_context(patch.object(target, name, instead))
        yield


def _of(instead: Callable[..., Any], before: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that, unlike a `partial`, becomes a method where it is put."""

    def method(self: Any, *args: Any, **named: Any) -> Any:
        return instead(before, self, *args, **named)

    return method


def _room(path: str) -> str:
    """Return which directory of a peer's a path lies in: "staged", "drafts" or "data"."""
    for directory in DIRECTORIES:
        if path.startswith(f"{directory}/"):
            return path[len(directory) + 1 :].partition("/")[0]
    return ""


# The disk


def _fsync(fsync: Callable[[int], None], fd: int) -> None:
    path = str(Path(f"/proc/self/fd/{fd}").readlink())
    life = life_at(path)
    if life is None:
        fsync(fd)
        return
    kind = "directory" if Path(path).is_dir() else "file"
    reach(life, f"fsync {kind} {_room(path)}")
    DISKS[str(life.directory)].fsync(fd)


def _link(link: Callable[..., None], source: Any, target: Any, **named: Any) -> None:
    life = life_at(os.fspath(target))
    reach(life, f"link {_room(os.fspath(target))}")
    link(source, target, **named)


def _unlink(unlink: Callable[..., None], path: Any, **named: Any) -> None:
    room = _room(os.fspath(path))
    if room in ("staged", "drafts", "data"):
        reach(life_at(os.fspath(path)), f"unlink {room}")
    unlink(path, **named)


def _noted_table(init: Any, self: Notes, env: Any, table: bytes, *args: Any, **named: Any) -> None:
    init(self, env, table, *args, **named)
    self._name = table  # type: ignore[attr-defined]  # to name the step by


async def _record(
    put: Callable[..., Any], self: Notes, values: Mapping[bytes, bytes | None]
) -> None:
    table: bytes = getattr(self, "_name", b"")
    what = "forget" if all(value is None for value in values.values()) else "record"
    if table in NOTES:
        await step(f"{what} {table.decode()}")
    await put(self, values)
    if table in NOTES:
        await step(f"{what} {table.decode()} done")


def _make_draft(make: Callable[..., int], directory: Path, token: str) -> int:
    fd = make(directory, token)
    # A thread of a mount has no context; one of a peer has.
    life = LIFE.get() or MOUNTS.get(str(directory))
    if life is not None:
        life.fds.append((fd, os.fstat(fd).st_ino))
    return fd


MOUNTS: dict[str, Any] = {}
"""The life of the mount that writes, by the data directory of its peer."""


def _new_token(make: Callable[[], str]) -> str:
    life = LIFE.get()
    return make() if life is None or life.plan.new_token is None else life.plan.new_token()


def _claim(take: Callable[..., Claim], directory: Path, **named: Any) -> Claim:
    taken = take(directory, **named)
    life = DIRECTORIES.get(str(directory))
    if life is not None:
        life.claims.append(taken)
    return taken


# Other peers


async def _call(
    call: Callable[..., Any],
    self: Channels,
    address: str,
    method: Method[Any, Any],
    request: Any,
    **named: Any,
) -> Any:
    life = LIFE.get()
    if method.name not in CALLS and not (life is not None and life.is_over):
        return await call(self, address, method, request, **named)
    name = _named(method, request)
    await step(f"call {name}")
    try:
        return await call(self, address, method, request, **named)
    finally:
        await step(f"called {name}")


def _pieces(
    pieces: Callable[..., AsyncIterator[Any]],
    self: Channels,
    address: str,
    method: Method[Any, Any],
    request: Any,
) -> AsyncIterator[Any]:
    found = pieces(self, address, method, request)
    return _pulled(found) if method.name in CALLS else found


async def _pulled(pieces: AsyncIterator[Any]) -> AsyncIterator[Any]:
    async for piece in pieces:
        await step("piece came")
        yield piece


async def _pull(
    pull: Callable[..., AsyncGenerator[Any, None]], self: Any, request: Any
) -> AsyncGenerator[Any, None]:
    async for piece in pull(self, request):
        await step("piece goes")
        yield piece


def _begin_call(init: Any, self: Any, *args: Any, **named: Any) -> None:
    init(self, *args, **named)
    life = LIFE.get()
    if life is not None:
        life.calls.add(self)


def _unary(unary: Callable[..., Any], border: Any, method: Method[Any, Any], call: Any) -> Any:
    return unary(border, method, _stepping(method, call) if method.name in SERVED else call)


def _bulk_server(init: Any, self: BulkServer, *args: Any) -> None:
    init(self, *args)
    if (life := LIFE.get()) is not None:
        life.bulks.append(self)


def _connection(init: Any, self: Connection, *args: Any) -> None:
    init(self, *args)
    if (life := LIFE.get()) is not None:
        life.connections.add(self)


def _local_server(init: Any, self: LocalServer, handlers: list[Handler]) -> None:
    life = LIFE.get()
    if life is not None:
        life.locals.append(self)
    stepping = [(m, _stepping(m, call) if m.name in FROM_MOUNTS else call) for m, call in handlers]
    init(self, stepping)


def _stepping(method: Method[Any, Any], call: Callable[[Any], Any]) -> Callable[[Any], Any]:
    async def served(request: Any) -> Any:
        name = _named(method, request)
        try:
            return await call(request)
        finally:
            await step(f"answer {name}")

    return served


def _named(method: Method[Any, Any], request: Any) -> str:
    """Return the name of a call, with what tells one kind of it from another."""
    marks = ("is_final", "is_over", "is_copy", "is_persisted", "is_move", "is_again")
    found = [mark.partition("_")[2] for mark in marks if getattr(request, mark, False)]
    if getattr(request, "staged", ()):
        found.append("staged")
    return " ".join([method.name.lower(), *found])


def _server(server: Callable[..., Any], self: Any, methods: Any) -> Any:
    made = server(self, methods)
    life = LIFE.get()
    if life is not None:
        life.servers.append(made)
    return made
