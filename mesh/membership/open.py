"""Which way of finding out who is in the mesh the settings ask for."""

from __future__ import annotations

from dataclasses import dataclass

from mesh.membership.etcd import Etcd, EtcdSettings
from mesh.membership.gossip import Gossip, GossipSettings
from mesh.membership.roster import GRACE_S
from mesh.membership.static import NOTICE_S, Probe, StaticList
from mesh.membership.view import Member


@dataclass(frozen=True, slots=True, kw_only=True)
class StaticSettings:
    """Those that are listed, and nobody else."""

    cluster: str
    listed: tuple[Member, ...]
    grace_s: float = GRACE_S
    notice_s: float = NOTICE_S
    """How long one that leaves waits for the others to see it."""


MembershipSettings = StaticSettings | GossipSettings | EtcdSettings


def membership_of(
    settings: MembershipSettings, me: Member, probe: Probe
) -> StaticList | Gossip | Etcd:
    """Return the membership, not begun yet; *probe* is for those that ask the peers."""
    if isinstance(settings, StaticSettings):
        return StaticList(
            settings.listed, me, probe, grace_s=settings.grace_s, notice_s=settings.notice_s
        )
    if isinstance(settings, GossipSettings):
        return Gossip(settings, me)
    return Etcd(settings, me)
