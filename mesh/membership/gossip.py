"""Membership by gossip: SWIM with Lifeguard, as kinship speaks it.

kinship runs the protocol in Rust on a thread of its own, so a busy event loop here
does not make this peer look dead. It seals every packet with the cluster's key; who
has another key, or another cluster's name, is neither heard nor answered.

A run of a peer is a member of kinship's under the run's tag, so a peer that comes
back at another address is not taken for an impostor of itself: its run before fades
away under its own name while the new one is already here.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import kinship
import structlog

from mesh.errors import Unusable
from mesh.membership.membership import PROTOCOL, Watched, Watching, as_left, identity_of
from mesh.membership.roster import GRACE_S, Roster
from mesh.membership.view import Member, State

log = structlog.get_logger()

LEAVE_WITHIN_S = 2.0
RESOLVE_WITHIN_S = 10.0
TAKEN_IN_WITHIN_S = 2.0
HINT_EVERY_S = 60.0
LOOK_EVERY_S = 1.0
GARBAGE = (64).to_bytes(4, "big") + bytes(64)
"""A frame that no key opens: who is alive hangs up, who is stopped says nothing."""

_STATES = {
    kinship.State.SUSPECT: State.SUSPECT,
    kinship.State.DEAD: State.DEAD,
    kinship.State.LEFT: State.LEFT,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Timings:
    """How fast a death is found; measured in docs/reliability.md."""

    probe_every_s: float = 0.5
    probe_timeout_s: float = 0.2
    suspicion_mult: int = 2
    suspicion_max_mult: int = 3
    gossip_every_s: float = 0.1
    reconnect_every_s: float = 3.0
    """So often one that is dead is tried again: a healed cut is noticed by this."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GossipSettings:
    """What gossip is told."""

    cluster: str
    seeds: Sequence[str]
    """host:port of some peers' gossip; a name may stand for many addresses."""

    key: str
    """Base64 of 32 bytes; "" only where nothing leaves this host, or in the clear."""

    grace_s: float = GRACE_S
    timings: Timings = Timings()
    protocol: int = PROTOCOL


class Gossip(Watching):
    """A `Membership`; made by `join`."""

    def __init__(self, settings: GossipSettings, me: Member) -> None:
        self._settings = settings
        self._watched = Watched(me, roster=Roster(grace_s=settings.grace_s))
        self._cluster = kinship.Cluster(self._config(me))
        self._tasks: list[asyncio.Task[None]] = []
        self._unread = 0
        self._hinted_s = -HINT_EVERY_S
        self._foreign: set[str] = set()

    def _config(self, me: Member) -> kinship.Config:
        told = self._settings
        timings = told.timings
        host = me.gossip.rpartition(":")[0].strip("[]")
        try:
            return kinship.Config.lan(
                name=self._watched.tag,
                bind=me.gossip,
                cluster=told.cluster,
                seeds=list(told.seeds),
                keys=[told.key] if told.key else [],
                insecure_plaintext=not told.key and not _is_loopback(host),
                meta=_meta(me, told.protocol),
                resolve_timeout=RESOLVE_WITHIN_S,
                probe_interval=timings.probe_every_s,
                probe_timeout=timings.probe_timeout_s,
                suspicion_mult=timings.suspicion_mult,
                suspicion_max_mult=timings.suspicion_max_mult,
                gossip_interval=timings.gossip_every_s,
                reconnect_interval=timings.reconnect_every_s,
                rejoin_interval=max(timings.reconnect_every_s, 10.0),
            )
        except kinship.ConfigError as error:
            raise Unusable(f"membership can't be set up: {error}; mend cluster or peer") from error

    # What the rest of mesh asks

    async def announce(self, me: Member) -> None:
        self._watched.mine(replace(me, gossip=self._cluster.local.addr))
        await self._cluster.set_meta(_meta(me, self._settings.protocol))
        self._watched.renew()

    async def meet(self, members: Sequence[Member]) -> None:
        with suppress(kinship.KinshipError):
            await self._cluster.join([member.gossip for member in members if member.gossip])

    async def leave(self) -> None:
        self._watched.mine(as_left(self._watched.me))
        with suppress(kinship.KinshipError, RuntimeError):  # not started, or ended already
            await self._cluster.leave(LEAVE_WITHIN_S)

    async def aclose(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        with suppress(kinship.KinshipError, RuntimeError):
            await self._cluster.close()

    # Joining

    async def start(self) -> None:
        """Join by the seeds, or begin a mesh alone when none of them is up.

        Raises `Unusable` when no seed resolves, when one is up but does not take us
        in, and when the address is taken.
        """
        await asyncio.to_thread(kinship.log_to_python, logging.ERROR)
        others = await self._others()
        try:
            await self._cluster.start()
        except kinship.JoinError as error:
            raise _unresolved(self._settings.seeds) from error
        except OSError as error:
            raise Unusable(
                f"peer.gossip {self._watched.me.gossip}: {error}; stop who uses it or name another"
            ) from error
        events = self._cluster.events()
        # As the others see it: what we bind may be a wildcard.
        self._watched.mine(replace(self._watched.me, gossip=self._cluster.local.addr))
        self._resync()
        if others and len(self._cluster.members()) == 1:
            await self._say_why_alone(others)
        self._tasks = [
            asyncio.create_task(self._listen(events), name="gossip"),
            asyncio.create_task(self._watched.renew_by_time(), name="graces"),
            asyncio.create_task(self._look(), name="gossip in other keys"),
        ]

    async def _others(self) -> list[tuple[str, int]]:
        """Return the addresses of the seeds that are not this peer."""
        loop = asyncio.get_running_loop()
        found: list[tuple[str, int]] = []
        failed: list[str] = []
        for seed in self._settings.seeds:
            host, _, port = seed.rpartition(":")
            try:
                async with asyncio.timeout(RESOLVE_WITHIN_S):
                    infos = await loop.getaddrinfo(
                        host.strip("[]"), int(port), type=socket.SOCK_STREAM
                    )
            except (OSError, TimeoutError):
                failed.append(seed)
                continue
            found += [(str(info[4][0]), int(info[4][1])) for info in infos]
        if failed and not found:
            raise _unresolved(failed)
        for seed in failed:
            log.warning("seed does not resolve", seed=seed, mend="mend its name or the DNS")
        own_host, _, own_port = self._watched.me.gossip.rpartition(":")
        own = (own_host.strip("[]"), int(own_port))
        return sorted({address for address in found if address != own})

    async def _say_why_alone(self, others: Sequence[tuple[str, int]]) -> None:
        """Refuse to run beside a mesh that does not take us in; alone is fine otherwise."""
        answers = await asyncio.gather(*(self._hangs_up(*address) for address in others))
        alive = [address for address, is_alive in zip(others, answers, strict=True) if is_alive]
        if not alive:
            log.info("no seed is up yet", seeds=list(self._settings.seeds))
            return
        with suppress(kinship.JoinError, TimeoutError):
            async with asyncio.timeout(TAKEN_IN_WITHIN_S):
                await self._cluster.join()
        self._resync()
        if len(self._cluster.members()) == 1:
            await self._cluster.close()
            host, port = alive[0]
            raise Unusable(
                f"cluster.seeds: {host}:{port} is up but does not take this peer in: its "
                "cluster.key or cluster.name is another; give all peers the same"
            )

    async def _hangs_up(self, host: str, port: int) -> bool:
        """Whether somebody who speaks gossip there is alive, and is not ourselves."""
        try:
            async with asyncio.timeout(TAKEN_IN_WITHIN_S):
                reader, writer = await asyncio.open_connection(host, port)
                try:
                    mine = writer.get_extra_info("sockname")[0]
                    own_port = int(self._watched.me.gossip.rpartition(":")[2])
                    if (host, port) == (mine, own_port):
                        return False
                    writer.write(GARBAGE)
                    return await reader.read(1) == b""
                finally:
                    writer.close()
                    with suppress(OSError):
                        await writer.wait_closed()
        except ConnectionResetError:
            return True
        except (OSError, TimeoutError):
            return False

    # Listening

    async def _listen(self, events: kinship.EventStream) -> None:
        async for event in events:
            if isinstance(event, kinship.EventsLost):
                self._resync()
                continue
            member = getattr(event, "member", None)
            if member is not None and not isinstance(event, kinship.NameConflict):
                self._hear(member)
                self._watched.renew()

    def _resync(self) -> None:
        """Take what kinship knows for the news that were missed, deaths among them."""
        present = self._cluster.members()
        for member in present:
            self._hear(member)
        for tag in self._watched.heard.keys() - {member.name for member in present}:
            gone = self._cluster.member(tag)
            if gone is None:
                self._watched.lose(tag)
            else:
                self._hear(gone)
        self._watched.renew()

    def _hear(self, found: kinship.Member) -> None:
        identity = identity_of(found.name)
        if identity is None or found.name == self._watched.tag:
            return
        if (spoken := found.meta.get("v", "")) != str(self._settings.protocol):
            if found.name not in self._foreign:
                self._foreign.add(found.name)
                log.warning(
                    "a peer speaks another protocol and is not counted",
                    address=found.addr,
                    protocol=spoken,
                    ours=self._settings.protocol,
                    mend="run the same release of mesh everywhere",
                )
            return
        member = _member_of(found, *identity)
        if member is not None:
            self._watched.hear(found.name, member)

    async def _look(self) -> None:
        """Say once a minute that packets come that our key does not open."""
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            unread = self._cluster.stats().decrypt_failures
            now_s = self._watched.clock()
            if unread > self._unread and now_s - self._hinted_s >= HINT_EVERY_S:
                self._hinted_s = now_s
                log.warning(
                    "somebody with another cluster.key or cluster.name calls and is refused",
                    packets=unread - self._unread,
                    mend="give all peers of this mesh the same, and other meshes other ports",
                )
                self._unread = unread


def _unresolved(seeds: Sequence[str]) -> Unusable:
    return Unusable(
        f"cluster.seeds: {', '.join(seeds)} resolves to no address; mend the name or the DNS"
    )


def _is_loopback(host: str) -> bool:
    return host == "localhost" or host == "::1" or host.startswith("127.")


def _meta(me: Member, protocol: int) -> dict[str, str]:
    """Return how others hear of a peer; kinship allows 512 bytes."""
    return {
        "n": me.name,
        "a": me.address,
        "z": me.zone,
        "w": repr(me.weight),  # to the last digit, or no two views are ever equal
        "p": repr(me.portion),
        "s": me.state.value,
        "v": str(protocol),
        "b": str(me.bulk_port),
    }


def _member_of(found: kinship.Member, member_id: str, run: int) -> Member | None:
    """Return the peer that a member of kinship's is; None when it says nonsense."""
    meta = found.meta
    try:
        said = Member(
            name=meta["n"],
            address=meta["a"],
            zone=meta["z"],
            weight=float(meta["w"]),
            portion=float(meta["p"]),
            id=member_id,
            run=run,
            state=State(meta["s"]),
            gossip=found.addr,
            bulk_port=int(meta.get("b", "0")),
        )
    except (KeyError, ValueError) as error:
        log.warning("a peer is described in a way that makes no sense", reason=repr(error))
        return None
    if found.state is kinship.State.SUSPECT and said.state is not State.ACTIVE:
        return said
    return replace(said, state=_STATES.get(found.state, said.state))
