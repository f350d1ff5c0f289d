"""Membership by etcd: for those who run one anyway.

Each run of a peer writes a key under a lease that it keeps alive; when the lease ends
the key goes, and the others know.

    /mesh/<cluster>/peers/<tag>    {"protocol": 1, "member": {...}}

etcd says who is in the mesh, and nobody asks it for anything else. When it is away
the mesh stays as it is: the last view stands, nobody dies of it, and whatever
etcd drops as it comes back is believed only once everybody had the time to write its
key again. Who leaves writes so before it deletes its key, so that nobody takes it for
dead.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, replace

import msgspec
import structlog

from mesh.errors import MeshError, Unusable
from mesh.membership.etcd_api import Denied, EtcdAccess, EtcdApi, Forgotten, Moment
from mesh.membership.membership import PROTOCOL, Watched, Watching, as_left, identity_of
from mesh.membership.roster import GRACE_S, Roster
from mesh.membership.view import Member

log = structlog.get_logger()

TTL_S = 4
START_WITHIN_S = 5.0
LEAVE_WITHIN_S = 2.0
RETRY_S = 0.5
REWATCH_S = 10.0
"""A watch whose connection has died says nothing, for ever: begin a new one so often."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EtcdSettings:
    """What membership by etcd is told."""

    cluster: str
    access: EtcdAccess
    ttl_s: int = TTL_S
    """A dead peer is known to be dead after this, at the latest a second later."""

    grace_s: float = GRACE_S
    protocol: int = PROTOCOL


class Answers:
    """Whether the end of a lease means that a peer died, or only that etcd was away.

    Arithmetic only. etcd ends the leases of all when it was away for longer than they
    last, as it could not be asked to keep them. Whoever is alive then writes its key
    again within one more lease.
    """

    def __init__(self, ttl_s: float, now_s: float) -> None:
        self._late_s = ttl_s / 2
        self._settle_s = ttl_s + 1.0
        self._last_s = now_s
        self._settled_s = now_s

    def answered(self, now_s: float) -> None:
        """Note that etcd said something; asked each third of a lease, it is late or not."""
        if now_s - self._last_s > self._late_s:
            self._settled_s = now_s + self._settle_s
        self._last_s = now_s

    def is_believed(self, now_s: float) -> bool:
        """Whether who has no key is dead."""
        return now_s - self._last_s <= self._late_s and now_s >= self._settled_s


class _Record(msgspec.Struct):
    protocol: int
    member: msgspec.Raw


class Etcd(Watching):
    """A `Membership`; it begins with `start`."""

    def __init__(self, settings: EtcdSettings, me: Member) -> None:
        self._settings = settings
        self._watched = Watched(me, roster=Roster(grace_s=settings.grace_s))
        self._api = EtcdApi(settings.access, timeout_s=max(1.0, settings.ttl_s / 3))
        self._prefix = f"/mesh/{settings.cluster}/peers/"
        self._answers = Answers(settings.ttl_s, self._watched.clock())
        self._lease = 0
        self._is_said = False
        """Whether etcd has how this peer is now."""

        self._missing: dict[str, None] = {}
        """Tags whose keys are gone, until that is believed."""

        self._since: Moment | None = None
        self._saying = asyncio.Lock()
        self._is_away = False
        self._foreign: set[str] = set()
        self._tasks: list[asyncio.Task[None]] = []

    # What the rest of mesh asks

    async def announce(self, me: Member) -> None:
        """Tell etcd; later, when it is away now."""
        self._watched.mine(me)
        self._watched.renew()
        self._is_said = False
        with suppress(MeshError):
            await self._say()

    async def meet(self, members: Sequence[Member]) -> None:
        """Who is here is what etcd says."""

    async def leave(self) -> None:
        self._watched.mine(as_left(self._watched.me))
        await self._end_tasks()
        with suppress(MeshError, TimeoutError):
            async with asyncio.timeout(LEAVE_WITHIN_S):
                self._is_said = False
                await self._say()
                await self._api.revoke(self._lease)

    async def aclose(self) -> None:
        await self._end_tasks()
        await self._api.aclose()

    async def _end_tasks(self) -> None:
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def start(self) -> None:
        """Raises `Unusable` when etcd does not answer, or does not let us in."""
        try:
            async with asyncio.timeout(START_WITHIN_S):
                await self._say()
                await self._read()
        except (MeshError, TimeoutError) as error:
            await self._api.aclose()
            raise _unusable(self._settings.access.endpoints, error) from error
        self._tasks = [
            asyncio.create_task(self._keep(), name="etcd lease"),
            asyncio.create_task(self._follow(), name="etcd watch"),
            asyncio.create_task(self._watched.renew_by_time(), name="graces"),
        ]

    # How this peer is

    async def _keep(self) -> None:
        """Keep the lease, get another one when it has ended, and say what is not said yet."""
        while True:
            await asyncio.sleep(self._settings.ttl_s / 3)
            try:
                if not await self._api.keep(self._lease):
                    log.info("lease ended", mend="none is needed: the peer enters itself again")
                    self._is_said = False
                await self._say()
            except MeshError as error:
                self._note_away(error)
            else:
                self._note_answer()
            self._bury()

    async def _say(self) -> None:
        """Write how this peer is, unless etcd has it."""
        async with self._saying:  # or the key might hang on a lease that nobody keeps
            while not self._is_said:
                said = self._watched.me
                record = {"protocol": self._settings.protocol, "member": said}
                value = msgspec.json.encode(record)
                key = self._prefix + self._watched.tag
                if self._lease and await self._api.put(key, value, self._lease):
                    self._is_said = said == self._watched.me
                else:
                    self._lease = await self._api.grant(self._settings.ttl_s)

    # How the others are

    async def _follow(self) -> None:
        while True:
            try:
                if self._since is None:
                    await self._read()
                else:
                    await self._watch(self._since)
            except Forgotten:
                self._since = None
            except MeshError as error:
                self._note_away(error)
                await asyncio.sleep(RETRY_S)

    async def _read(self) -> None:
        """Take what etcd has for all that there is."""
        self._since, values = await self._api.read(self._prefix)
        self._note_answer()
        for key, value in values.items():
            self._hear(key, value)
        gone = (tag for tag in self._watched.heard if self._prefix + tag not in values)
        self._missing.update(dict.fromkeys(gone))
        self._bury()

    async def _watch(self, since: Moment) -> None:
        """Follow what changes, for a while."""
        with suppress(TimeoutError):
            async with (
                asyncio.timeout(REWATCH_S),
                aclosing(self._api.watch(self._prefix, since)) as watch,
            ):
                async for changes in watch:
                    self._note_answer()
                    for change in changes:
                        self._hear(change.key, change.value)
                        # At once: what was followed twice would kill and revive.
                        since = self._since = replace(since, revision=change.revision)
                    self._bury()

    def _hear(self, key: str, value: bytes | None) -> None:
        tag = key.removeprefix(self._prefix)
        if value is None:
            self._missing[tag] = None
            self._is_said = self._is_said and tag != self._watched.tag
            return
        self._missing.pop(tag, None)
        member = self._member_of(tag, value)
        if member is not None:
            self._watched.hear(tag, member)

    def _member_of(self, tag: str, value: bytes) -> Member | None:
        try:
            record = msgspec.json.decode(value, type=_Record)
            if record.protocol == self._settings.protocol:
                member = msgspec.json.decode(record.member, type=Member)
                return member if identity_of(tag) == (member.id, member.run) else None
        except msgspec.DecodeError as error:
            log.warning("a key in etcd makes no sense", key=self._prefix + tag, reason=str(error))
            return None
        if tag not in self._foreign:
            self._foreign.add(tag)
            log.warning(
                "a peer speaks another protocol and is not counted",
                tag=tag,
                protocol=record.protocol,
                ours=self._settings.protocol,
                mend="run the same release of mesh everywhere",
            )
        return None

    def _bury(self) -> None:
        """Take those without a key for dead, if etcd is to be believed just now."""
        if self._answers.is_believed(self._watched.clock()):
            for tag in self._missing:
                self._watched.lose(tag)
            self._missing.clear()
        self._watched.renew()

    # Whether etcd is there

    def _note_answer(self) -> None:
        self._answers.answered(self._watched.clock())
        if self._is_away:
            self._is_away = False
            log.info("etcd is back")

    def _note_away(self, error: MeshError) -> None:
        if not self._is_away:
            self._is_away = True
            log.warning("etcd is away: the mesh stays as it was", reason=str(error))


def _unusable(endpoints: Sequence[str], error: Exception) -> Unusable:
    where = f"cluster.etcd: {', '.join(endpoints)}"
    if isinstance(error, Denied):
        return Unusable(f"{where} does not let us in: {error}; mend the user or its rights")
    reason = str(error) or f"no answer in {START_WITHIN_S:g} s"
    return Unusable(f"{where} can't be used: {reason}; start etcd or mend the addresses")
