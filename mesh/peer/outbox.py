"""News on their way to neighbors: one stream for each of them, of all versions.

What is new while a message is on its way goes into the next one, so there is never more
in memory than one set of blocks for each version.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import structlog

from mesh.errors import MeshError
from mesh.wire.swarm import Have, NewsRequest

log = structlog.get_logger()

IDLE_S = 30.0
"""A stream on which there was nothing to say for so long ends."""

Push = Callable[[str, AsyncIterator[NewsRequest]], Awaitable[None]]


class _News:
    """What a neighbor is to be told."""

    def __init__(self) -> None:
        self.have: dict[bytes, tuple[int, int, bool, bool]] = {}
        """By version: blocks, their count, and whether it is a greeting or a leave."""

        self.came = asyncio.Event()
        self.was_told = False
        """Something, since `resting` was set."""

        self.resting: asyncio.TimerHandle | None = None


class Outbox:
    """The news of one peer."""

    def __init__(
        self,
        me: str,
        zone: Callable[[], str],
        push: Push,
        free_slots: Callable[[], int],
        lost: Callable[[str], None],
        tasks: asyncio.TaskGroup,
    ) -> None:
        """*push* sends what is yielded to a peer; *lost* is told who can't be told."""
        self._me = me
        self._zone = zone
        self._push = push
        self._free_slots = free_slots
        self._lost = lost
        self._tasks = tasks
        self._news: dict[str, _News] = {}
        self.messages = 0

    def tell(
        self,
        peer: str,
        version: bytes,
        blocks: int,
        count: int,
        *,
        is_greeting: bool = False,
        is_leaving: bool = False,
    ) -> None:
        """Have a peer told of *blocks* of a version that has *count*."""
        news = self._news.get(peer)
        if news is None:
            news = _News()
            sending = self._send(peer, news)
            try:
                self._tasks.create_task(sending, name=f"news to {peer}")
            except RuntimeError:  # the tasks are being ended
                sending.close()
                return
            self._news[peer] = news
        before, _, was_greeting, _ = news.have.get(version, (0, 0, False, False))
        news.have[version] = (before | blocks, count, was_greeting or is_greeting, is_leaving)
        news.came.set()

    async def _send(self, peer: str, news: _News) -> None:
        self._set_rest(news)
        try:
            await self._push(peer, self._messages(news))
            is_lost = bool(news.have)
        except MeshError as error:
            log.debug("news not told", peer=peer, reason=str(error))
            is_lost = True
        except Exception:  # a task of the peer's group must not raise
            log.exception("news not told", peer=peer)
            is_lost = True
        finally:
            if news.resting is not None:
                news.resting.cancel()
            if self._news.get(peer) is news:
                del self._news[peer]
        if is_lost:
            self._lost(peer)

    def _set_rest(self, news: _News) -> None:
        news.was_told = False
        news.resting = asyncio.get_running_loop().call_later(IDLE_S, self._rest, news)

    def _rest(self, news: _News) -> None:
        """End a stream on which there was nothing to say."""
        if not news.was_told:
            news.came.set()
        self._set_rest(news)

    async def _messages(self, news: _News) -> AsyncIterator[NewsRequest]:
        while True:
            if not news.have:
                news.came.clear()
                await news.came.wait()  # for news, or for `_rest`
                if not news.have:
                    return
            news.was_told = True
            told, news.have = news.have, {}
            have = tuple(
                Have(version, blocks.to_bytes((count + 7) // 8, "little"), greeting, leaving)
                for version, (blocks, count, greeting, leaving) in told.items()
            )
            self.messages += 1
            yield NewsRequest(self._me, self._zone(), have, self._free_slots())
