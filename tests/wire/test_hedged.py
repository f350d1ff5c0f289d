"""Several peers for one block: who is asked when, and that nobody is waited for in vain."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

import pytest

from mesh.errors import MeshError, NotFound, PeerUnavailable, Stale
from mesh.testing.loop import simulate
from mesh.wire.hedged import DEAF_FOR_S, Hedged, Signs, Strays
from mesh.wire.messages import Piece


@dataclass
class Patience:
    tokens: int = 100
    after_s: float = 0.2
    lost_after_s: float = 0.5

    def may(self) -> bool:
        self.tokens -= 1
        return self.tokens >= 0


class Peers:
    """Peers that send by a timetable: seconds to wait, then a piece or an error."""

    def __init__(self, **timetables: Sequence[tuple[float, int | MeshError | None]]) -> None:
        self.timetables = timetables
        self.asked: list[tuple[str, float]] = []
        self.sent: list[str] = []

    async def ask(self, peer: str) -> AsyncIterator[Piece]:
        self.asked.append((peer, asyncio.get_running_loop().time()))
        for wait_s, what in self.timetables[peer]:
            await asyncio.sleep(wait_s)
            if isinstance(what, MeshError):
                raise what
            self.sent.append(peer)
            yield Piece(0, 0, b"") if what is None else Piece(what, 0, b"x")


def pieces_of(
    peers: Peers, wanted: int = 2, *, patience: Patience | None = None, gives_up: bool = False
) -> tuple[list[tuple[str, int]], float, Hedged]:
    """Return what was taken from whom, how long that took, and the race itself."""

    async def race() -> tuple[list[tuple[str, int]], float, Hedged]:
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        hedged = Hedged(
            list(peers.timetables),
            peers.ask,
            patience or Patience(),
            Signs(),
            loop.time,
            answers=(Stale,),
            gives_up=gives_up,
        )
        strays = Strays()
        taken: dict[int, str] = {}
        async for source, piece in hedged.pieces():
            taken.setdefault(piece.number, source.peer)
            if len(taken) == wanted:
                break
        took_s = loop.time() - began_s
        strays.take(hedged)
        await asyncio.sleep(100)
        assert len(strays) == 0, "whoever is left over is let end"
        return [(peer, number) for number, peer in sorted(taken.items())], took_s, hedged

    return simulate(lambda random: race(), 1)


def test_the_first_alone_when_it_is_well() -> None:
    peers = Peers(a=[(0.01, 0), (0.01, 1)], b=[(0, 0), (0, 1)])
    taken, took_s, hedged = pieces_of(peers)
    assert taken == [("a", 0), ("a", 1)]
    assert [peer for peer, _ in peers.asked] == ["a"]
    assert hedged.hedges == 0
    assert took_s < 0.05


def test_the_second_at_once_when_the_first_fails() -> None:
    peers = Peers(a=[(0.01, 0), (0.01, PeerUnavailable("a", "reset"))], b=[(0.01, 1)])
    taken, took_s, hedged = pieces_of(peers)
    assert taken == [("a", 0), ("b", 1)]
    assert took_s < 0.05
    assert hedged.hedges == 0, "that is a failover, not a hedge"
    assert isinstance(hedged.sources[0].error, PeerUnavailable)


def test_the_second_as_well_when_the_first_is_silent() -> None:
    peers = Peers(a=[(60, 0)], b=[(0.01, 0), (0.01, 1)])
    taken, took_s, hedged = pieces_of(peers)
    assert taken == [("b", 0), ("b", 1)]
    assert 0.2 <= took_s < 0.25
    assert hedged.hedges == 1


def test_the_first_that_was_only_slow_may_still_win() -> None:
    peers = Peers(a=[(0.25, 0), (0.01, 1)], b=[(0.2, 0), (0.2, 1)])
    taken, took_s, _ = pieces_of(peers)
    assert taken == [("a", 0), ("a", 1)]
    assert took_s < 0.3


def test_heartbeats_are_signs_of_life() -> None:
    """An owner that fills for three seconds is not overtaken."""
    peers = Peers(a=[(0.1, None)] * 30 + [(0.1, 0), (0, 1)], b=[(0, 0), (0, 1)])
    taken, _, hedged = pieces_of(peers)
    assert taken == [("a", 0), ("a", 1)]
    assert [peer for peer, _ in peers.asked] == ["a"]
    assert hedged.sources[0].beats == 30


def test_without_a_token_the_second_is_asked_once_the_first_is_lost() -> None:
    peers = Peers(a=[(60, 0)], b=[(0.01, 0), (0.01, 1)])
    _, took_s, hedged = pieces_of(peers, patience=Patience(tokens=0))
    assert 0.5 <= took_s < 0.56
    assert hedged.hedges == 0


def test_when_all_fail_it_ends_and_keeps_the_errors() -> None:
    peers = Peers(a=[(0, NotFound("a"))], b=[(0, PeerUnavailable("b", "gone"))])
    taken, _, hedged = pieces_of(peers)
    assert taken == []
    assert [type(source.error) for source in hedged.sources] == [NotFound, PeerUnavailable]


def test_an_answer_is_raised_whoever_gives_it() -> None:
    peers = Peers(a=[(0, Stale("changed"))], b=[(0, 0), (0, 1)])
    with pytest.raises(Stale):
        pieces_of(peers)
    assert [peer for peer, _ in peers.asked] == ["a"]


def test_who_gives_up_does_not_wait_for_the_last() -> None:
    taken, took_s, _ = pieces_of(Peers(a=[(60, 0)]), patience=Patience(tokens=0), gives_up=True)
    assert taken == []
    assert took_s < 0.25


def test_when_two_are_silent_nobody_else_is_waited_for() -> None:
    """More likely than both being away: we are cut off, and should go elsewhere."""
    taken, took_s, _ = pieces_of(Peers(a=[(60, 0)], b=[(60, 0)]))
    assert taken == []
    assert 0.4 <= took_s < 0.45


def test_the_last_one_is_waited_for_until_it_is_lost() -> None:
    taken, took_s, _ = pieces_of(Peers(a=[(60, 0)]))
    assert taken == []
    assert 0.5 <= took_s < 0.55


def test_another_stream_of_the_same_peer_is_a_sign_of_life() -> None:
    """Streams share a connection: what queues behind megabytes is not silent."""
    signs = Signs()
    signs.asked("a", 1.0)
    assert signs.silent_s("a", asked_s=1.0, now_s=3.0) == 2.0
    assert signs.silent_s("a", asked_s=2.9, now_s=3.0) == 2.0, "others wait since then"
    signs.heard("a", 2.9)
    assert signs.silent_s("a", asked_s=1.0, now_s=3.0) == pytest.approx(0.1)
    signs.asked("a", 2.95)
    assert signs.silent_s("a", asked_s=2.95, now_s=3.0) == pytest.approx(0.05)


def test_after_an_error_a_peer_is_judged_anew() -> None:
    signs = Signs()
    signs.asked("a", 1.0)
    signs.forget("a")
    signs.asked("a", 9.0)
    assert signs.silent_s("a", asked_s=9.0, now_s=9.1) == pytest.approx(0.1)


def test_of_several_who_are_silent_in_a_row_it_is_we_who_can_not_hear() -> None:
    signs = Signs()
    signs.heard("d", 9.9)
    signs.gave_up(["a"], 0.3, 10.3)
    assert (signs.is_doubted(), signs.is_deaf(10.3)) == (True, False)
    signs.gave_up(["a"], 0.6, 10.6)
    assert not signs.is_deaf(10.6), "it is that one who does not answer"
    signs.gave_up(["b"], 0.3, 10.9)
    assert signs.is_deaf(10.9)
    assert not signs.is_deaf(10.9 + DEAF_FOR_S), "others are tried again"


def test_several_at_once_are_enough() -> None:
    signs = Signs()
    signs.heard("d", 9.5)
    signs.gave_up(["a", "b"], 0.3, 10.0)
    assert signs.is_deaf(10.0)


def test_who_has_heard_nobody_yet_waits_in_queues() -> None:
    signs = Signs()
    signs.gave_up(["a", "b"], 0.3, 10.0)
    assert not signs.is_deaf(10.0)


def test_one_word_of_anybody_is_enough_to_hear() -> None:
    signs = Signs()
    signs.heard("d", 9.0)
    signs.gave_up(["a"], 0.3, 10.0)
    signs.heard("d", 10.1)
    signs.gave_up(["b"], 0.3, 10.3)
    assert not signs.is_deaf(10.3), "somebody was heard while that one was silent"
    assert not signs.is_doubted()
    signs.gave_up(["b"], 0.5, 10.6)
    signs.gave_up(["c"], 0.3, 10.9)
    assert signs.is_deaf(10.9)
    signs.heard_of(10.9)
    assert (signs.is_doubted(), signs.is_deaf(10.9)) == (False, False)
