"""What others hold is asked once for many blocks."""

from __future__ import annotations

import asyncio

import pytest

from mesh.blocks import MIB, FileVersion, version_of
from mesh.errors import PeerUnavailable
from mesh.peer.holdings import KEPT_S, KEPT_S_MAX, KEPT_TIMES, Holdings

FILE = version_of(source="m", path="p", size_bytes=8 * MIB, tag="t", block_bytes=MIB)


class Other:
    """A peer that takes its time to say what it has."""

    def __init__(self, took_s: float = 0.0) -> None:
        self.took_s = took_s
        self.now_s = 100.0
        self.asked = 0
        self.has = frozenset({1})
        self.holdings = Holdings(self.ask, lambda: self.now_s)

    async def ask(self, peer: str, file: FileVersion) -> frozenset[int]:
        assert (peer, file) == ("b", FILE)
        self.asked += 1
        await asyncio.sleep(0)
        self.now_s += self.took_s
        if not self.has:
            raise PeerUnavailable(peer, "does not answer")
        return self.has

    async def asked_after(self, after_s: float) -> int:
        """Return how often it was asked by then, of two times that somebody wants to know."""
        assert await self.holdings.of("b", FILE) == self.has
        self.now_s += after_s - self.took_s
        assert await self.holdings.of("b", FILE) == self.has
        return self.asked


@pytest.mark.parametrize(
    ("took_s", "kept_s"),
    [(0.0, KEPT_S), (KEPT_S / 100, KEPT_S), (0.3, 0.3 * KEPT_TIMES), (1.0, KEPT_S_MAX)],
)
async def test_an_answer_serves_for_as_long_as_it_was_dear(took_s: float, kept_s: float) -> None:
    assert await Other(took_s).asked_after(kept_s - 0.01) == 1
    assert await Other(took_s).asked_after(kept_s + 0.01) == 2


async def test_who_does_not_answer_is_asked_again_soon() -> None:
    """It may have what a read fails without (MESH_SEED=389 of tests/simulation)."""
    for after_s, asked in ((KEPT_S - 0.01, 1), (KEPT_S + 0.01, 2)):
        other = Other(0.5)
        other.has = frozenset()
        assert await other.asked_after(after_s) == asked


async def test_who_would_fail_takes_no_old_answer() -> None:
    other = Other(0.5)
    assert await other.holdings.of("b", FILE) == {1}
    other.now_s += KEPT_S
    other.has = frozenset({1, 2})
    assert await other.holdings.of("b", FILE) == {1}
    assert await other.holdings.of("b", FILE, is_fresh=True) == {1, 2}


async def test_what_was_said_before_a_change_is_asked_anew() -> None:
    other = Other(1.0)
    assert await other.holdings.of("b", FILE) == {1}
    other.holdings.clear()
    other.has = frozenset({1, 2})
    assert await other.holdings.of("b", FILE) == {1, 2}
