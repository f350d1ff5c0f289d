"""What the mesh itself has done to names: said to the owners of their directories.

An owner notes it as it notes what the under-store says, tells all who have heard otherwise,
and says yes when they know. So whoever looks after that, anywhere, sees it.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import replace

import structlog

from mesh.blocks import WRITTEN, Attributes, identity_of, is_staged, token_of, under_store_tag
from mesh.clock import Clock, monotonic_s
from mesh.errors import MeshError, NotFound, Unavailable
from mesh.paths import Spot, spot_of
from mesh.peer.catalog import Catalog
from mesh.peer.overlay import Overlay
from mesh.peer.shards import Shards
from mesh.store.entry_store import Changes, EntryStore
from mesh.understore.table import MountTable, plain
from mesh.wire.messages import Change, InvalidateRequest, Kept, Nothing
from mesh.wire.staged import AssertReply, AssertRequest, RecallReply, RecallRequest, StagedFile
from mesh.wire.writes import AnnounceRequest

log = structlog.get_logger()

RECALL_TIMEOUT_S = 2.0
MISSED_MAX = 10_000
"""Of more paths than that an owner who was away doubts all that he knows."""


class Announcer:
    """Makes known what this peer has changed in an under-store."""

    def __init__(
        self,
        catalog: Catalog,
        entries: EntryStore,
        shards: Shards,
        table: MountTable,
        overlay: Overlay,
        *,
        clock: Clock = monotonic_s,
    ) -> None:
        self._catalog = catalog
        self._entries = entries
        self._shards = shards
        self._table = table
        self._overlay = overlay
        self._clock = clock
        self._started_s = clock()
        """What was noted before may have changed while this peer was away."""

        catalog.recalled.clear()
        self._answered: set[str] = set()
        """Who has said what this peer missed."""

        self._missed: dict[str, dict[str, None]] = {}
        """By owner who could not be told: the paths, until he says that he has heard."""

        self._told: dict[str, set[str]] = {}
        """By owner: which of them he was told, and may have heard."""

    async def announce(self, *done: Kept, moved_to: str = "", ended: str = "") -> None:
        """Have all know what was done to these names; those who can't be told find out when
        what they know is too old.

        Say *moved_to* of a name that is gone because the same staged file has another one, and
        *ended* of a token without which nothing was done.
        """
        by_directory: dict[bytes, list[Kept]] = {}
        for one in done:
            spot = spot_of(self._table, one.path)
            by_directory.setdefault(spot.directory, []).append(one)
        await asyncio.gather(
            *(
                self._announce(
                    directory,
                    AnnounceRequest(
                        self._shards.me,
                        tuple(kept),
                        moved_to=moved_to,
                        ended=ended,
                    ),
                )
                for directory, kept in by_directory.items()
            )
        )

    async def there(self, path: str) -> Attributes | None:
        """Return what is at a path, as far as the mesh knows."""
        try:
            return (await self._catalog.stat(path)).attributes
        except NotFound:
            return None

    async def announce_staged(self, file: StagedFile) -> None:
        """Have all see a file that the under-store does not have; its owners journal it."""
        directory = spot_of(self._table, file.path).directory
        await self._announce(directory, AnnounceRequest(self._shards.me, staged=(file,)))

    async def announce_persisted(self, one: Kept, there_s: float) -> None:
        """Have all know that the under-store has what was staged, and was there since then."""
        directory = spot_of(self._table, one.path).directory
        request = AnnounceRequest(self._shards.me, (one,), is_persisted=True, there_s=there_s)
        await self._announce(directory, request)

    async def announce_below(self, file: StagedFile) -> None:
        """Have all see what the under-store has where a file was staged, which went beside."""
        place = self._table.place(file.path)
        found: Attributes | None = None
        with suppress(MeshError):
            found = await place.store.stat(place.path)
        await self.announce(Kept(file.path, found, 0.0), ended=file.token)

    async def _announce(self, directory: bytes, request: AnnounceRequest) -> None:
        nearer = self._shards.nearer(directory)
        if nearer:
            with suppress(Unavailable):
                await self._shards.in_order(nearer, lambda p: self._shards.announce(p, request))
                # The mounts of this host read our own tables.
                for one in _all(request):
                    spot = spot_of(self._table, one.path)
                    if not self._is_news_here(spot, one, request):
                        continue
                    self._catalog.note(spot.source, spot.parent, self._note(spot, one))
                await self._entries.flushed()
                return
        await self.take(request)

    def _is_news_here(self, spot: Spot, one: Kept, request: AnnounceRequest) -> bool:
        """Whether to note what the owner was told; of what something newer may have replaced
        meanwhile he tells us as all others."""
        if request.ended:
            return False
        if not request.is_persisted or one.attributes is None:
            return True
        return identity_of(self._noted_tag(spot)) == identity_of(one.attributes.tag)

    async def take(self, request: AnnounceRequest) -> Nothing:
        """Note, as an owner, what was done; return when all have heard who knew otherwise."""
        if not request.is_copy:
            await self._catalog.is_up_to_date()
        staged = [self._over(file) for file in request.staged]
        for file in staged:
            await self._overlay.put(file)
        news = [Kept(f.path, f.attributes, 0.0) for f in staged]
        news += [one for one in request.kept if await self._uncover(one, request)]
        spots = [spot_of(self._table, plain(one.path)) for one in news]
        changes = [self._note(spot, one) for spot, one in zip(spots, news, strict=True)]
        if request.is_copy:
            for spot, change in zip(spots, changes, strict=True):
                self._catalog.note(spot.source, spot.parent, change)
            return Nothing()
        told = [spot_of(self._table, plain(one.path)) for one in _all(request)]
        if request.staged:  # safe before anybody sees it
            await self._give_copies(request, told)
        for spot, change in zip(spots, changes, strict=True):
            self._catalog.tell(spot.source, spot.parent, change)
        await self._entries.flushed()
        for directory in {spot.directory: None for spot in spots}:
            await self._catalog.all_heard(directory)
        if not request.staged:  # after the word that what they knew is old
            await self._give_copies(request, told)
        return Nothing()

    def _over(self, file: StagedFile) -> StagedFile:
        """Return a staged file that may replace what the mesh itself has persisted there."""
        tag = self._noted_tag(spot_of(self._table, file.path), since_s=self._started_s)
        if tag.startswith(WRITTEN) and not is_staged(tag):
            return replace(file, over=under_store_tag(tag))
        return self._resolved(file)

    def _resolved(self, file: StagedFile) -> StagedFile:
        """Return a staged file that may replace just what its writer saw: if that was staged,
        what the under-store calls it by now."""
        if not file.over.startswith(WRITTEN):
            return file
        tag = self._noted_tag(spot_of(self._table, file.path))
        is_that = identity_of(tag) == file.over and not is_staged(tag)
        return replace(file, over=under_store_tag(tag) if is_that else "")

    def _noted_tag(self, spot: Spot, *, since_s: float = -math.inf) -> str:
        """Return the tag that was noted of a name, if not before that."""
        record, noted_s = self._entries.look(spot.directory, spot.name)
        if record is None or record.attributes is None or noted_s < since_s:
            return ""
        return record.attributes.tag

    async def _uncover(self, one: Kept, request: AnnounceRequest) -> bool:
        """Take away what is staged under a name; say whether what was done to it is news."""
        spot = spot_of(self._table, plain(one.path))
        is_replaced = False
        if request.is_persisted and one.attributes is not None:
            token = token_of(one.attributes.tag)
            is_replaced = self._overlay.is_ended(token, one.path) or self._overlay.is_later(
                spot.directory, spot.name, token, request.there_s
            )
            await self._overlay.end(token, one.path, tag=one.attributes.tag)
        if request.ended and not self._overlay.is_of(spot.directory, spot.name, request.ended):
            return False
        if not self._overlay.has(spot.directory, spot.name):
            return True
        if is_replaced and one.attributes is not None:
            return await self._overlay.persisted(one.path, one.attributes)
        tag = one.attributes.tag if one.attributes is not None else ""
        await self._overlay.forget(spot.directory, spot.name, moved_to=request.moved_to, tag=tag)
        return True

    async def _give_copies(self, request: AnnounceRequest, spots: Iterable[Spot]) -> None:
        """Have the other owners know and journal the same; who can't be told recalls it."""
        paths = {spot.path: None for spot in spots}
        peers = {peer for spot in spots for peer in self._shards.owners(spot.directory)}
        copy = replace(request, is_copy=True)
        calls = [self._give_copy(peer, copy, paths) for peer in peers if peer != self._shards.me]
        await asyncio.gather(*calls)

    async def _give_copy(self, peer: str, copy: AnnounceRequest, paths: dict[str, None]) -> None:
        if not self._shards.is_broken(peer):
            try:
                return await self._shards.announce(peer, copy)
            except MeshError as error:
                log.debug("owner not told", peer=peer, reason=str(error))
        missed = self._missed.setdefault(peer, {})
        missed |= paths
        self._told.get(peer, set()).difference_update(paths)
        if len(missed) > MISSED_MAX:
            self._missed[peer] = {"": None}

    # Staged files, again and again

    async def claim(self, file: StagedFile, *, is_doubted: bool = False) -> AssertReply:
        """Ask an owner whether a staged file is still wanted; raises if none answers.

        What *is_doubted* has ended if the owner never heard of it.
        """
        request = AssertRequest(file, is_doubted)
        directory = spot_of(self._table, file.path).directory
        nearer = self._shards.nearer(directory)
        if nearer:
            with suppress(Unavailable):
                return await self._shards.in_order(nearer, lambda p: self._shards.claim(p, request))
        return await self.claimed(request)

    async def claimed(self, request: AssertRequest) -> AssertReply:
        """Answer a holder as an owner, who may have come to the directory just now.

        Of a file that the owner has never heard of nobody knows whether it is newer than what
        was persisted meanwhile: it replaces what its writer saw, or goes beside.
        """
        file = request.file
        spot = spot_of(self._table, file.path)
        known = self._known_of(spot, file)
        if request.is_copy:
            return known
        await self._catalog.is_up_to_date()
        known = self._known_of(spot, file)
        if known.is_unknown:
            known = await self._others_say(spot, file)
            if known.is_unknown and request.is_doubted:
                return AssertReply(is_ended=True)
            if known.is_ended or known.path:
                await self._overlay.end(file.token, file.path, moved_to=known.path)
                return known
            if not known.is_unknown:
                file = replace(file, over=known.over, formers=known.formers, digest=known.digest)
        was_known = self._overlay.is_of(spot.directory, spot.name, file.token)
        kept = await self._overlay.claim(self._resolved(file))
        if kept is None:
            return AssertReply(is_ended=True)
        if kept.path != file.path:
            return AssertReply(is_ended=False, path=kept.path)
        if not was_known:
            changes = self._note(spot, Kept(kept.path, kept.attributes, 0.0))
            self._catalog.tell(spot.source, spot.parent, changes)
        return _reply(kept)

    def _known_of(self, spot: Spot, file: StagedFile) -> AssertReply:
        """Say what this owner knows of a staged file, without noting anything."""
        tag = self._noted_tag(spot)
        is_written = tag.startswith(WRITTEN) and not is_staged(tag)
        noted = (under_store_tag(tag),) if is_written else ()
        known = self._overlay.look(spot.directory, spot.name)
        formers = () if known is None else known.formers
        end = self._overlay.end_of(file)
        if is_written and token_of(tag) == file.token:
            return AssertReply(is_ended=True, noted=noted)
        if end is not None:
            return AssertReply(is_ended=not end.moved_to, path=end.moved_to, noted=noted)
        if known is not None and known.token == file.token:
            return replace(_reply(known), noted=(*noted, known.over))
        return AssertReply(is_ended=False, is_unknown=True, formers=formers, noted=noted)

    async def _others_say(self, spot: Spot, file: StagedFile) -> AssertReply:
        """Ask the other owners: this one may have been away."""
        request = AssertRequest(file, is_copy=True)
        for peer in self._shards.owners(spot.directory):
            if peer == self._shards.me or self._shards.is_broken(peer):
                continue
            with suppress(MeshError, TimeoutError):
                async with asyncio.timeout(RECALL_TIMEOUT_S):
                    reply = await self._shards.claim(peer, request)
                if not reply.is_unknown:
                    return reply
        return AssertReply(is_ended=False, is_unknown=True)

    async def knows_all_of(self, file: StagedFile) -> AssertReply:
        """Ask all owners of a path what they know of it: what the mesh itself has put there,
        and may have been told to one of them alone."""
        spot = spot_of(self._table, file.path)
        request = AssertRequest(file, is_copy=True)
        replies = [self._known_of(spot, file)]
        for peer in self._shards.owners(spot.directory):
            if peer != self._shards.me:
                with suppress(MeshError, TimeoutError):
                    async with asyncio.timeout(RECALL_TIMEOUT_S):
                        replies.append(await self._shards.claim(peer, request))
        return AssertReply(
            is_ended=any(reply.is_ended for reply in replies),
            formers=tuple({former for reply in replies for former in reply.formers}),
            noted=tuple({tag for reply in replies for tag in reply.noted}),
        )

    # An owner who was away

    async def recalled(self, request: RecallRequest) -> RecallReply:
        """Tell another owner what he should know; what he missed again, until he has heard."""
        if request.is_heard:
            missed_before = self._missed.get(request.asker, {})
            for path in self._told.pop(request.asker, ()):
                missed_before.pop(path, None)
            return RecallReply((), {})
        staged, ended = self._overlay.told(
            lambda directory: request.asker in self._shards.owners(directory)
        )
        kept: list[Kept] = []
        missed: list[str] = []
        self._told[request.asker] = set(self._missed.get(request.asker, ()))
        for path in self._missed.get(request.asker, ()):
            spot = spot_of(self._table, path)
            record, noted_s = self._entries.look(spot.directory, spot.name)
            if path and record is not None and noted_s >= self._started_s:
                kept.append(Kept(path, record.attributes, self._clock() - noted_s))
            else:
                missed.append(path)
        return RecallReply(tuple(staged), ended, tuple(missed), tuple(kept))

    async def recall(self) -> None:
        """Learn what the other owners of this peer's directories were told meanwhile."""
        try:
            left = sorted(self._silent())
            answers = await asyncio.gather(*(self._recall_from(peer) for peer in left))
            self._answered |= {peer for peer, is_told in zip(left, answers, strict=True) if is_told}
            if not self._silent():
                self._catalog.known.sure_since_s = -math.inf
        finally:
            self._catalog.recalled.set()

    async def recall_all(self) -> None:
        """Recall from all others once: also from those who come back later, and may know alone
        what holders have told them."""
        while True:
            await asyncio.sleep(RECALL_TIMEOUT_S)
            if self._silent() or self._catalog.known.sure_since_s > -math.inf:
                await self.recall()

    def _silent(self) -> set[str]:
        """Return who is there and has not said yet what this peer missed."""
        return {member.name for member in self._shards.others()} - self._answered

    async def _recall_from(self, peer: str) -> bool:
        """Learn from a peer; False if it does not answer, or what it says can't be kept.

        What this peer was told itself while that answer came is later.
        """
        began_s = self._clock()
        try:
            async with asyncio.timeout(RECALL_TIMEOUT_S):
                reply = await self._shards.recall(peer)
        except (MeshError, TimeoutError) as error:
            log.info("not recalled", peer=peer, reason=str(error) or "no answer in time")
            return False
        try:
            news, gone = await self._overlay.learn(reply.staged, reply.ended)
            learned = list(self._learned(gone, news))
            for path in {file.path for file in gone} - {one.path for one in learned}:
                await self._doubt(path)
            for one in learned:
                spot = spot_of(self._table, one.path)
                self._catalog.tell(spot.source, spot.parent, self._note(spot, one, began_s))
            for path in (*(one.path for one in reply.kept), *reply.missed):
                if path:
                    await self._overlay.outdate(path)
            for one in reply.kept:
                spot = spot_of(self._table, one.path)
                if not self._overlay.has(spot.directory, spot.name):
                    self._catalog.note(spot.source, spot.parent, self._note(spot, one, began_s))
            for path in reply.missed:
                await self._doubt(path)
        except MeshError as error:
            log.warning("not recalled", peer=peer, reason=str(error))
            return False
        count = len(reply.missed) + len(reply.kept)
        if count:
            with suppress(MeshError, TimeoutError):
                async with asyncio.timeout(RECALL_TIMEOUT_S):
                    await self._shards.recall(peer, is_heard=True)
        if news or gone or count:
            counts = {"staged": len(news), "ended": len(gone), "missed": count}
            log.info("recalled", peer=peer, **counts)
        return True

    def _learned(self, gone: list[StagedFile], news: list[StagedFile]) -> Iterator[Kept]:
        """Yield what is known of files that are staged, and of those that are no more, since
        they are: what was done to their names later may be known already.

        What has ended may be persisted, or have been replaced by what is, or be removed: what
        nobody says is doubted.
        """
        for file in gone:
            spot, end = spot_of(self._table, file.path), self._overlay.end_of(file)
            if end is None or self._overlay.has(spot.directory, spot.name):
                continue
            age_s = max(0.0, time.time() - end.wall_s)
            if end.tag:
                yield Kept(file.path, replace(file.attributes, tag=end.tag), age_s)
            elif end.moved_to:
                yield Kept(file.path, None, age_s)
        for file in news:
            yield Kept(file.path, file.attributes, 0.0)

    async def _doubt(self, path: str) -> None:
        """Believe no more what was known of a path; of all of them, if it is the root."""
        if not path:
            for root in self._table.roots():
                place = self._table.place(root)
                tree = Change(place.settings.url, place.path, is_tree=True)
                await self._catalog.doubt_tree(tree)
            return
        spot = spot_of(self._table, path)
        change = Change(spot.source, spot.parent, (spot.name,), is_listing=True)
        await self._catalog.invalidate(InvalidateRequest((change,)))

    async def announce_tree(self, *paths: str) -> None:
        """Have all doubt what they know of directories and of all that is below them."""
        for path in paths:
            place = self._table.place(path)
            tree = Change(place.settings.url, place.path, is_tree=True)
            await self._catalog.doubt_tree(tree)
            await self._catalog.tell_all(tree)

    def _note(self, spot: Spot, one: Kept, said_s: float | None = None) -> Changes:
        """Keep what was done, and return what that changes: nobody else may know the name.

        What was said then, and not just now, is kept unless something later is known.
        """
        old, _ = self._entries.look(spot.directory, spot.name)
        asked_s = self._clock() if said_s is None else said_s - one.age_s
        self._entries.note(spot.source, spot.parent, spot.name, one.attributes, asked_s)
        was_there = old is not None and old.attributes is not None
        is_listing = old is None or was_there is not (one.attributes is not None)
        return Changes([spot.name], is_listing=is_listing)


def _all(request: AnnounceRequest) -> list[Kept]:
    return [*request.kept, *(Kept(f.path, f.attributes, 0.0) for f in request.staged)]


def _reply(known: StagedFile) -> AssertReply:
    return AssertReply(is_ended=False, over=known.over, formers=known.formers, digest=known.digest)
