"""The servers that under-stores are tested against, one of each for all tests."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

import pytest

from mesh.testing.emulators import Azurite, GcsEmulator
from mesh.testing.fetched import NotToBeHad
from mesh.testing.hdfs import Hdfs
from mesh.testing.servers import MotoS3, SeaweedS3


def _running(kind: Any, tmp_path_factory: Any) -> Iterator[Any]:
    try:
        server: AbstractContextManager[Any] = kind(tmp_path_factory.mktemp(kind.__name__))
    except (NotToBeHad, FileNotFoundError) as reason:
        pytest.skip(str(reason))
    with server as running:
        yield running


@pytest.fixture(scope="session")
def moto(tmp_path_factory: Any) -> Iterator[Any]:
    yield from _running(MotoS3, tmp_path_factory)


@pytest.fixture(scope="session")
def weed(tmp_path_factory: Any) -> Iterator[Any]:
    yield from _running(SeaweedS3, tmp_path_factory)


@pytest.fixture(scope="session")
def hdfs(tmp_path_factory: Any) -> Iterator[Any]:
    yield from _running(Hdfs, tmp_path_factory)


@pytest.fixture(scope="session")
def azurite(tmp_path_factory: Any) -> Iterator[Any]:
    yield from _running(Azurite, tmp_path_factory)


@pytest.fixture(scope="session")
def gcs(tmp_path_factory: Any) -> Iterator[Any]:
    yield from _running(GcsEmulator, tmp_path_factory)
