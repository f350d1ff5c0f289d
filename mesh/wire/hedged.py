"""The pieces of one block from several peers, in order of preference.

    first     ──piece──piece──┤ silence ├─ …                    overtaken
    second                    └──piece──piece──┤ all are here

The first is asked. The next is asked as well when the one before has been silent for
longer than patience allows, and instead when it failed. What comes first is taken.
Whoever is left over is hung up on if that is free, and else let end: a stream of grpc.aio
that is cancelled leaks memory (grpc issue 43360).
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Protocol

from mesh.clock import Clock
from mesh.errors import MeshError
from mesh.wire.messages import Piece

PULSE_AT = 0.5
"""Part of the patience after which a sign of life is asked for, by another connection."""

POLL_S = 0.1
MARGIN_S = 0.001
"""A timer that fires a moment early must not be set again for nothing."""

HEARD_LATELY_S = 5.0
DEAF_AFTER = 2
DEAF_FOR_S = 1.0
"""Then others are asked again; who does not answer is away by then."""

STRAYS_MAX = 256
"""Streams that nobody wants any more and that are let end; over this all are cut off."""


class Patience(Protocol):
    """When to ask a second peer."""

    @property
    def after_s(self) -> float:
        """Silence that is worth a second request."""
        ...

    @property
    def lost_after_s(self) -> float:
        """Silence after which nothing more is to be expected."""
        ...

    def may(self) -> bool:
        """Take what one more request costs; False if it can't be had now."""
        ...


class Cuttable(ABC):
    """A stream that can be hung up on without harm, and says when part of a piece comes."""

    on_sign: Callable[[], None] | None

    @property
    @abstractmethod
    def is_worth_cutting(self) -> bool:
        """Whether more is to come than what ends it."""

    @abstractmethod
    async def aclose(self) -> None: ...


class Signs:
    """When each peer was last heard, in whatever stream, and since when it is waited for.

    Streams share a connection: the one that has to wait for the megabytes of the others
    is not silent. Only when nothing at all comes from a peer that should send is it, and
    then also for those who ask it only now.

    When several were silent, one after the other, and nobody at all was heard meanwhile, it
    is more likely that we can't hear.
    """

    def __init__(self) -> None:
        self._any_s = 0.0
        """When anybody was heard last."""

        self._given_up: set[str] = set()
        """Who was silent for too long since."""

        self._given_up_s = 0.0
        self._heard_s: dict[str, float] = {}
        self._waiting_s: dict[str, float] = {}

    def asked(self, peer: str, now_s: float) -> None:
        """Note that something is expected of *peer* from now on."""
        self._waiting_s.setdefault(peer, now_s)

    def heard(self, peer: str, now_s: float) -> None:
        self._any_s = self._heard_s[peer] = now_s
        self._waiting_s.pop(peer, None)

    def heard_of(self, now_s: float) -> None:
        """Note that something came that nobody was asked for."""
        self._any_s = now_s

    def forget(self, peer: str) -> None:
        """Judge *peer* anew when it is asked again."""
        self._waiting_s.pop(peer, None)

    def silent_s(self, peer: str, asked_s: float, now_s: float) -> float:
        """Return for how long a peer that was asked then, or before, has been silent."""
        waiting_s = min(asked_s, self._waiting_s.get(peer, asked_s))
        return now_s - max(waiting_s, self._heard_s.get(peer, waiting_s))

    def gave_up(self, peers: Iterable[str], for_s: float, now_s: float) -> None:
        """Note that *peers* were silent for so long, which is too long.

        Who has not heard anybody for a while, or yet, may only be far back in all their queues.
        """
        if self._any_s > self._given_up_s:
            self._given_up.clear()
        if for_s <= now_s - self._any_s <= for_s + HEARD_LATELY_S:
            self._given_up.update(peers)
            self._given_up_s = now_s

    def is_doubted(self) -> bool:
        """Whether the last one who was asked was silent, and nobody was heard since."""
        return self._given_up_s > self._any_s

    def is_deaf(self, now_s: float) -> bool:
        """Whether nobody is heard at all; others are worth a question again after a while."""
        is_silence = self._given_up_s > self._any_s and len(self._given_up) >= DEAF_AFTER
        return is_silence and now_s < self._given_up_s + DEAF_FOR_S


@dataclass(slots=True)
class Source:
    """One peer that was asked, and what became of it."""

    peer: str
    stream: AsyncIterator[Piece]
    began_s: float
    next: asyncio.Future[Piece] = field(init=False)
    first_s: float = 0.0
    """When it first gave a sign of life; 0.0 for not yet."""

    last_s: float = 0.0
    """When it last gave a sign of life; 0.0 for not yet."""

    first_data_s: float = 0.0
    data_bytes: int = 0
    beats: int = 0
    error: MeshError | None = None
    is_over: bool = False
    """Nothing more is expected of it."""

    is_ended: bool = False
    """Its stream has come to its end."""


class Hedged:
    """Asks peers for the pieces of one block until all are here or all have failed."""

    def __init__(
        self,
        peers: Sequence[str],
        ask: Callable[[str], AsyncIterator[Piece]],
        patience: Patience,
        signs: Signs,
        clock: Clock,
        *,
        answers: tuple[type[MeshError], ...] = (),
        gives_up: bool = False,
        is_told: bool = False,
        pulse: Callable[[str], None] = lambda peer: None,
    ) -> None:
        """Take errors of the kinds *answers* for the answer, from whomever they come.

        With *gives_up* nobody is waited for who was silent too long, not even the last; with
        *is_told* that is a sign that we may not hear (`Signs.gave_up`).
        *pulse* is called for a peer that begins to be silent; what it then learns of it
        by other ways counts as a sign of life (`Signs.heard`).
        """
        self._peers = deque(peers)
        self._ask = ask
        self._patience = patience
        self._signs = signs
        self._clock = clock
        self._answers = answers
        self._gives_up = gives_up
        self._is_told = is_told
        self._pulse = pulse
        self.sources: list[Source] = []
        """Whom was asked, in order."""

        self.silent: list[str] = []
        """Who said nothing at all when it was given up."""

        self.hedges = 0

    async def pieces(self) -> AsyncGenerator[tuple[Source, Piece], None]:
        """Yield the pieces as they come, each with who sent it; ends when nobody is left.

        Errors of peers end their sources and nothing else; they are kept there. Those
        that are answers are raised.
        """
        self._next_source()
        while live := [source for source in self.sources if not source.is_over]:
            if self.are_silent(live) and not self._hedge(live) and self._is_vain(live):
                self.silent = [source.peer for source in live]
                if self._is_told:
                    silent_s = min(map(self.silent_s, live))
                    self._signs.gave_up(self.silent, silent_s, self._clock())
                return
            live = self.overtaken()
            futures = [source.next for source in live]
            await asyncio.wait(
                futures, timeout=self._wait_s(live), return_when=asyncio.FIRST_COMPLETED
            )
            came = [source for source in live if source.next.done()]
            for source in came:
                if (piece := self._taken(source)) is not None and piece.data:
                    yield source, piece
            if all(source.is_over for source in self.sources):
                self._next_source()
            elif not came:
                self._feel(live)

    def give_up(self, source: Source, error: MeshError) -> None:
        """Expect nothing more of a source, because of what it sent."""
        source.error, source.is_over = error, True

    def ask_also(self, peer: str) -> None:
        """Ask one more peer, now: the one that was asked is slow, and not silent."""
        self._peers.appendleft(peer)
        self._next_source()

    def overtaken(self) -> list[Source]:
        """Return who is still being waited for."""
        return [source for source in self.sources if not source.is_over]

    def silent_s(self, source: Source) -> float:
        """Return for how long nothing has come from a source's peer, since it was asked."""
        return self._signs.silent_s(source.peer, source.began_s, self._clock())

    def is_lost(self, source: Source) -> bool:
        """Whether nothing more is to be expected of a source."""
        return not source.is_over and self.silent_s(source) >= self._patience.lost_after_s

    def _wait_s(self, live: list[Source]) -> float:
        silent_s = min(map(self.silent_s, live))
        after_s = self._patience.after_s
        ends_s = (after_s * PULSE_AT, after_s, self._patience.lost_after_s)
        return next((end_s - silent_s for end_s in ends_s if end_s > silent_s), POLL_S) + MARGIN_S

    def _feel(self, live: list[Source]) -> None:
        """Ask those who begin to be silent for a sign of life."""
        for source in live:
            if self._begins_silence(source):
                self._pulse(source.peer)

    def _begins_silence(self, source: Source) -> bool:
        return self.silent_s(source) >= self._patience.after_s * PULSE_AT

    def are_silent(self, sources: list[Source]) -> bool:
        """Whether nothing has come from any of *sources* for too long."""
        return min(map(self.silent_s, sources)) >= self._patience.after_s

    def _hedge(self, live: list[Source]) -> bool:
        """Ask one more, because all are silent for too long; False if that can't be had."""
        if all(map(self.is_lost, live)):
            return self._next_source()
        if self._patience.may() and self._next_source():
            self.hedges += 1
            return True
        return False

    def _is_vain(self, live: list[Source]) -> bool:
        """Whether it is time to go without any of them: nobody else is left to be asked.

        When two say nothing at once it is more likely that we can't hear.
        """
        is_hopeless = self._gives_up or len(live) > 1 or all(map(self.is_lost, live))
        return not self._peers and is_hopeless

    def _next_source(self) -> bool:
        if not self._peers:
            return False
        peer = self._peers.popleft()
        source = Source(peer, self._ask(peer), self._clock())
        self._signs.asked(peer, source.began_s)
        if isinstance(source.stream, Cuttable):
            source.stream.on_sign = lambda: self._signs.heard(peer, self._clock())
        source.next = self._begun(source)
        self.sources.append(source)
        return True

    def _taken(self, source: Source) -> Piece | None:
        """Take what has come from a source and begin to wait for more."""
        try:
            piece = source.next.result()
        except StopAsyncIteration:
            source.is_over = source.is_ended = True
            return None
        except MeshError as error:
            source.error, source.is_over, source.is_ended = error, True, True
            if isinstance(error, self._answers):
                raise
            return None
        source.last_s = self._clock()
        source.first_s = source.first_s or source.last_s
        if piece.data:
            source.first_data_s = source.first_data_s or source.last_s
            source.data_bytes += len(piece.data)
        else:
            source.beats += 1
        source.next = self._begun(source)
        return piece

    def _begun(self, source: Source) -> asyncio.Future[Piece]:
        return asyncio.ensure_future(self.read(source))

    async def read(self, source: Source) -> Piece:
        """Wait for what a source sends next, wanted or not."""
        try:
            piece = await anext(source.stream)
        except BaseException as error:
            # Who is hung up on although a sign of life was asked for is still being judged.
            if not (isinstance(error, asyncio.CancelledError) and self._begins_silence(source)):
                self._signs.forget(source.peer)
            raise
        self._signs.heard(source.peer, self._clock())
        return piece


class Strays:
    """Streams that nobody wants any more, being let end."""

    def __init__(self) -> None:
        self._tasks: dict[asyncio.Task[None], None] = {}  # in order: so do they end

    def take(self, hedged: Hedged) -> None:
        """Let the sources of *hedged* that have not ended do so by themselves."""
        for source in hedged.sources:
            if source.is_ended:
                continue
            source.is_over = source.is_ended = True
            stream = source.stream
            if isinstance(stream, Cuttable) and stream.is_worth_cutting:
                task = asyncio.ensure_future(_cut(source.next, stream))
            elif len(self._tasks) < STRAYS_MAX:
                task = asyncio.ensure_future(_drained(hedged, source))
            else:
                source.next.cancel()
                continue
            self._tasks[task] = None
            task.add_done_callback(self._forget)

    def __len__(self) -> int:
        return len(self._tasks)

    def _forget(self, task: asyncio.Task[None]) -> None:
        del self._tasks[task]

    async def aclose(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


async def _cut(reading: asyncio.Future[Piece], stream: Cuttable) -> None:
    reading.cancel()
    await asyncio.gather(reading, return_exceptions=True)
    await stream.aclose()


async def _drained(hedged: Hedged, source: Source) -> None:
    with suppress(MeshError, StopAsyncIteration):
        await source.next
        while True:
            await hedged.read(source)
