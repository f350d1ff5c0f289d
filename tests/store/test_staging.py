"""What is promised is there after any end; what is not is gone or whole."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from mesh.errors import NotFound
from mesh.store.drafts import new_token
from mesh.store.notes import Notes
from mesh.store.staging import STAGED, Staging
from mesh.store.store import StoreSettings, open_store

DATA = b"promised" * 1000


@asynccontextmanager
async def opened(root: Path) -> AsyncIterator[Staging]:
    settings = StoreSettings(directory=root / "store", capacity_bytes=1 << 30)
    async with open_store(settings, cluster="test") as store:
        yield Staging(root / "store", store.staged)


def source(root: Path, data: bytes = DATA) -> Path:
    path = root / new_token()
    path.write_bytes(data)
    return path


async def test_what_was_put_is_there_after_a_restart(tmp_path: Path) -> None:
    token, path = new_token(), source(tmp_path)
    async with opened(tmp_path) as staging:
        await staging.put(token, b"record", path)
        path.unlink()
    async with opened(tmp_path) as staging:
        assert await staging.load() == {token: b"record"}
        assert await staging.read(token, 8, 16) == DATA[8:24]
        await staging.change(token, b"another")
        assert await staging.load() == {token: b"another"}
        await staging.remove(token)
        assert await staging.load() == {}
        with pytest.raises(NotFound):
            await staging.read(token, 0, 1)


STEPS = ("fsync of the bytes", "link", "fsync of the name", "record")


@pytest.mark.parametrize("step", range(len(STEPS)), ids=STEPS)
async def test_the_power_fails_before_each_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """Nobody was told that it is safe: it is gone."""
    left = step

    class PowerCut(Exception):
        pass

    def counted(call: object) -> object:
        def one(*words: object) -> object:
            nonlocal left
            if not left:
                raise PowerCut
            left -= 1
            return call(*words)  # type: ignore[operator]

        return one

    async def record(self: Notes, values: object) -> None:
        counted(lambda: None)()  # type: ignore[operator]

    token, path = new_token(), source(tmp_path)
    async with opened(tmp_path) as staging:
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", counted(os.fsync))
            patch.setattr(os, "link", counted(os.link))
            patch.setattr(Notes, "put", record)
            with pytest.raises(PowerCut):
                await staging.put(token, b"record", path)
    async with opened(tmp_path) as staging:
        assert await staging.load() == {}
        assert list((tmp_path / "store" / STAGED).iterdir()) == []


async def test_bytes_that_are_lost_are_not_promised_any_more(tmp_path: Path) -> None:
    token = new_token()
    async with opened(tmp_path) as staging:
        await staging.put(token, b"record", source(tmp_path))
        staging.path(token).unlink()  # by a person, or a disk
        assert await staging.load() == {}
