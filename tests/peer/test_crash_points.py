"""Whatever ends, at whichever step: what was acknowledged is there, the rest is gone or whole."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NoReturn
from unittest.mock import patch

import pytest
import structlog

from mesh.blocks import MIB
from mesh.client import draft as draft_module
from mesh.client import writes as writes_module
from mesh.membership import static
from mesh.peer import doubts, holder, neighbors, overlay, stager, turns, uploads, writer
from mesh.store.staging import Staging
from mesh.testing.crash_steps import crash_steps
from mesh.testing.crashes import mortal_tasks, step
from mesh.wire.writes import AlterRequest, Verb
from tests.crashing import Desk, Found, Point, Scenario, State, explored

pytestmark = [
    # What the dead have left undone, and what comes of it when they are buried.
    pytest.mark.filterwarnings("ignore:coroutine .* was never awaited"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

PATH, TEMPORARY = "models/new.bin", "models/new.bin.tmp"
AT_ONCE = 6
"""Runs in one loop: each waits most of its time."""

ONLY = os.environ.get("CRASH_AT", "")
"""Words in the label of the steps to run alone, like "record staged#2"."""

# What is done


async def create(desk: Desk) -> None:
    """A file of some pieces, which the holder has most of before it is closed."""
    data = desk.content(3 * MIB + 5)
    desk.watch()
    draft = await desk.host.writes.draft(PATH)
    await step("made")
    for start in range(0, len(data), MIB):
        await draft.write(start, data[start : start + MIB])
        await asyncio.sleep(0.02)  # so that it is told of
        await step("wrote a piece")
    await desk.publish(draft, {**desk.sure, PATH: data})
    await draft.close()
    await step("closed")


async def replace_persisted(desk: Desk) -> None:
    tag = (await desk.host.client.stat(PATH)).attributes.tag
    desk.watch()
    await desk.put(PATH, desk.content(100_000), tag)
    await step("closed")


async def replace_staged(desk: Desk) -> None:
    desk.under_store.opens.clear()
    tag = await desk.put(PATH, desk.content(100_000))
    desk.watch()
    await desk.put(PATH, desk.content(70_000), tag)
    await step("closed")


async def replace_racing(desk: Desk) -> None:
    """While what was there is on its way."""
    tag = await desk.put(PATH, desk.content(100_000))
    desk.watch()
    await desk.put(PATH, desk.content(70_000), tag)
    await step("closed")


async def rename_over_persisted(desk: Desk) -> None:
    await _rename(desk, await desk.put(TEMPORARY, desk.content(100_000)))


async def rename_over_staged(desk: Desk) -> None:
    desk.under_store.opens.clear()
    await desk.put(PATH, desk.content(70_000))
    await _rename(desk, await desk.put(TEMPORARY, desk.content(100_000)))


async def _rename(desk: Desk, tag: str) -> None:
    after = {**desk.sure, PATH: desk.sure[TEMPORARY]}
    del after[TEMPORARY]
    desk.watch()
    with desk.doing(after):
        size_bytes = len(desk.sure[TEMPORARY])
        request = AlterRequest(Verb.RENAME, TEMPORARY, PATH, size_bytes=size_bytes, tag=tag)
        await desk.host.writes.alter(request)
    await step("renamed")


async def sync_and_append(desk: Desk) -> None:
    first, more = desk.content(100_000), desk.content(70_000)
    draft = await desk.host.writes.draft(PATH)
    await draft.write(0, first)
    await desk.publish(draft, {**desk.sure, PATH: first})
    desk.watch()
    await draft.write(len(first), more)
    await step("appended")
    await desk.publish(draft, {**desk.sure, PATH: first + more})
    await draft.close()
    await step("closed")


async def remove_staged(desk: Desk) -> None:
    """One that would have replaced another one, if that was there."""
    desk.under_store.opens.clear()
    tag = (await desk.host.client.stat(PATH)).attributes.tag if PATH in desk.sure else ""
    await desk.put(PATH, desk.content(100_000), tag)
    after = dict(desk.sure)
    del after[PATH]
    desk.watch()
    with desk.doing(after):
        await desk.host.writes.alter(AlterRequest(Verb.REMOVE, PATH))
    await step("removed")


OLD = {PATH: b"what was there before" * 5000}
SCENARIOS: dict[str, tuple[Scenario, State]] = {
    "create": (create, {}),
    "replace-persisted": (replace_persisted, OLD),
    "replace-staged": (replace_staged, {}),
    "replace-racing": (replace_racing, {}),
    "rename-over-persisted": (rename_over_persisted, OLD),
    "rename-over-staged": (rename_over_staged, {}),
    "sync-and-append": (sync_and_append, {}),
    "remove-staged": (remove_staged, {}),
    "remove-staged-over": (remove_staged, OLD),
}


# How

QUICK: list[tuple[object, str, float]] = [
    (draft_module, "GROW_EVERY_BYTES", MIB),
    (stager, "PULLED_BYTES", MIB),
    (holder, "INCOMING_IDLE_S", 0.5),
    (writer, "RUN_BYTES", MIB),
    (writer, "PAUSE_S", 0.05),
    (writer, "SWEEP_EVERY_S", 0.1),
    (writes_module, "PAUSE_S", 0.02),
    (uploads, "CLAIM_EVERY_S", 0.2),
    (uploads, "LOOK_EVERY_S", 0.05),
    (uploads, "PAUSE_S", 0.02),
    (uploads, "PAUSE_MAX_S", 0.1),
    (uploads, "TAKEOVER_S", 0.3),
    (overlay, "BELIEVED_S", 1.5),
    (doubts, "ASK_EVERY_S", 0.2),
    (doubts, "SURE_FOR_S", 0.3),
    (turns, "TURN_S", 0.6),
    (static, "PROBE_EVERY_S", 0.3),
    (neighbors, "PROBE_EVERY_S", 0.1),
]


def _dropped(*_: object) -> NoReturn:
    raise structlog.DropEvent


@contextmanager
def mortality() -> Iterator[None]:
    """Have lives end on the running loop, and all that waits wait less."""
    loop, was = asyncio.get_running_loop(), structlog.get_config()
    with ExitStack() as stack:
        for module, name, value in QUICK:
            stack.enter_context(patch.object(module, name, value))
        stack.enter_context(crash_steps())
        loop.set_task_factory(mortal_tasks)
        # What is left of the dead complains when it is buried.
        loop.set_exception_handler(lambda loop, context: None)
        for name in ("grpc", "asyncio"):
            logging.getLogger(name).setLevel(logging.CRITICAL + 1)
        structlog.configure(processors=[_dropped])
        try:
            yield
        finally:
            structlog.configure(**was)
            loop.set_task_factory(None)


async def explore(case: Point, *, only: str = ONLY) -> Found:
    with mortality():
        return await explored(case, *SCENARIOS[case.scenario], at_once=AT_ONCE, only=only)


def _cases() -> Iterator[Point]:
    for scenario in SCENARIOS:
        yield Point(scenario, "peer")
        yield Point(scenario, "power")
    for scenario in ("create", "rename-over-staged", "remove-staged-over"):
        yield Point(scenario, "lone")
    for watched in ("holder", "owner"):
        for mode in ("peer", "power", "away"):
            yield Point("replace-persisted", mode, watched=watched)
            yield Point("remove-staged-over", mode, watched=watched)
    yield Point("create", "mount")
    yield Point("sync-and-append", "mount")
    yield Point("replace-persisted", "both")
    yield Point("replace-persisted", "away")
    yield Point("rename-over-persisted", "blackout")
    yield Point("rename-over-persisted", "power", layout="owner")
    for mode in ("peer", "power"):
        yield Point("replace-persisted", mode, "local")
        yield Point("replace-persisted", mode, "through")


# What is seen


@pytest.mark.slow
async def test_a_power_cut_at_any_step_of_a_first_file() -> None:
    found = await explore(Point("create", "power"))
    assert len(found.steps) > 40
    assert not found.wrong, str(found)


@pytest.mark.slow
@pytest.mark.skipif(not os.environ.get("MESH_EXPLORE"), reason="takes long: make explore")
@pytest.mark.parametrize("case", [*_cases()], ids=lambda case: case.name)
async def test_an_end_at_any_step(case: Point) -> None:
    found = await explore(case)
    assert not found.wrong, str(found)
    # The steps of those who race have other numbers in each run.
    assert found.reached >= 0.6 * found.runs, f"{case.name}: {found.reached} of {found.runs}"


# That it would be seen


@pytest.mark.slow
async def test_a_record_before_its_bytes_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A journal that is ahead of the disk promises what a power cut takes away."""

    async def put(self: Staging, token: str, record: bytes, source: Path) -> None:
        os.link(source, self.path(token))
        _sync(self.path(token).parent)
        await self._notes.put({token.encode(): record})
        await asyncio.to_thread(_sync, self.path(token))

    monkeypatch.setattr(Staging, "put", put)
    found = await explore(Point("create", "power", "local"), only="fsync")
    assert found.wrong


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
