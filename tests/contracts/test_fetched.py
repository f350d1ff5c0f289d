"""What is fetched for tests is there whole, or not at all."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from mesh.testing.fetched import NotToBeHad, fetched, needed_program, run


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def test_it_is_fetched_once() -> None:
    fetches: list[Path] = []

    def fetch(place: Path) -> None:
        fetches.append(place)
        (place / "jar").write_text("jar")

    places = {fetched("jars", fetch) for _ in range(3)}
    assert [(place / "jar").read_text() for place in places] == ["jar"]
    assert len(fetches) == 1


def test_half_of_it_is_not_kept(tmp_path: Path) -> None:
    def fetch(place: Path) -> None:
        (place / "jar").write_text("ja")
        run(sys.executable, "-c", "raise SystemExit('the network is away')")

    with pytest.raises(NotToBeHad, match="the network is away"):
        fetched("jars", fetch)
    assert list((tmp_path / "mesh-testing").iterdir()) == []


def test_a_program_that_is_missing_is_named_with_its_package() -> None:
    with pytest.raises(NotToBeHad, match="needs no-such-java: apt-get install jre"):
        needed_program("no-such-java", "jre")
