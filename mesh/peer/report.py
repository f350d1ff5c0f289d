"""What a peer tells people: how it is, how the others are, where blocks are."""

from __future__ import annotations

import asyncio
import os
from collections import Counter as Tally
from dataclasses import replace
from importlib.metadata import version

from mesh.clock import Clock, monotonic_s
from mesh.errors import IsADirectory, MeshError
from mesh.membership.view import member_to_json, view_to_json
from mesh.metrics import Metrics, by_label, total
from mesh.peer.neighbors import OWNERS, RingNeighbors
from mesh.store.store import BlockStore
from mesh.wire.messages import (
    Description,
    HelloReply,
    InventoryReply,
    Location,
    MembersReply,
    MountReport,
    Overview,
    StatReply,
)

RELEASE = version("mesh-cache")
INVENTORY_PAGE = 256
"""Versions on a page of the inventory; with 10,000 blocks each, 320 KiB."""

HELD_TIMEOUT_S = 1.0
"""A person can wait for what a read would not."""

MOUNT_SILENT_S = 10.0
"""A mount reports each second; one that has not for so long is gone."""


class Reporter:
    """Answers questions about this peer and, by asking the others, about all."""

    def __init__(
        self,
        cluster: str,
        store: BlockStore,
        neighbors: RingNeighbors,
        metrics: Metrics,
        *,
        clock: Clock = monotonic_s,
    ) -> None:
        self._cluster = cluster
        self._store = store
        self._neighbors = neighbors
        self._metrics = metrics
        self._clock = clock
        self._started_s = clock()
        self._ring = neighbors.ring
        self._ring_shares = neighbors.ring.shares()
        self._mounts: dict[tuple[str, int], tuple[float, MountReport]] = {}
        self._left_bytes: Tally[str] = Tally()  # of mounts that are gone
        self._left_blocks: Tally[str] = Tally()

    def take(self, report: MountReport) -> None:
        """Note what a mount of this host has read since it began."""
        now_s = self._clock()
        self._mounts[report.mountpoint, report.pid] = (now_s, report)
        for key, (heard_s, last) in list(self._mounts.items()):
            if now_s - heard_s > MOUNT_SILENT_S:
                self._left_bytes.update(last.read_bytes)
                self._left_blocks.update(last.read_blocks)
                del self._mounts[key]
        for used in report.used_versions:
            self._store.touch(used)

    def _shares(self) -> dict[str, float]:
        if self._ring is not self._neighbors.ring:
            self._ring = self._neighbors.ring
            self._ring_shares = self._ring.shares()
        return self._ring_shares

    def hello(self) -> HelloReply:
        """Say who this peer is."""
        return HelloReply(member_to_json(self._neighbors.view.member(self._neighbors.me)))

    def members(self, *, unless_epoch: int = -1) -> MembersReply:
        """Say who is in the mesh; nothing when the asker has the view of that epoch."""
        view = self._neighbors.view
        return MembersReply(b"" if view.epoch == unless_epoch else view_to_json(view))

    def describe(self) -> Description:
        """Say how this peer is."""
        member = self._neighbors.view.member(self._neighbors.me)
        metrics = self._metrics
        read_bytes = Tally(by_label(metrics.read_bytes, "source")) + self._left_bytes
        read_blocks = Tally(by_label(metrics.read_blocks, "source")) + self._left_blocks
        now_s = self._clock()
        for _, report in self._mounts.values():
            read_bytes.update(report.read_bytes)
            read_blocks.update(report.read_blocks)
        return Description(
            name=member.name,
            address=member.address,
            zone=member.zone,
            weight=member.weight,
            release=RELEASE,
            uptime_s=now_s - self._started_s,
            used_bytes=self._store.used_bytes,
            capacity_bytes=total(metrics.store_capacity_bytes),
            block_count=self._store.block_count,
            read_bytes=dict(read_bytes),
            read_blocks=dict(read_blocks),
            peer_bytes=by_label(metrics.peer_bytes, "peer"),
            served_bytes=total(metrics.served_bytes),
            fill_bytes=total(metrics.fill_bytes),
            fills=total(metrics.fills),
            evicted_bytes=total(metrics.evicted_bytes),
            corrupt_blocks=total(metrics.corrupt_blocks),
            failovers=total(metrics.failovers),
            errors=total(metrics.errors),
            in_flight_bytes=total(metrics.in_flight_bytes),
            mountpoints=tuple(
                sorted(
                    report.mountpoint
                    for heard_s, report in self._mounts.values()
                    if now_s - heard_s <= MOUNT_SILENT_S
                )
            ),
            ring_share=self._shares().get(member.name, 0.0),
            pid=os.getpid(),
            state=member.state.value,
            id=member.id,
            epoch=self._neighbors.view.epoch,
            hedges=total(metrics.hedges),
            bypass_bytes=total(metrics.bypass_bytes),
            repair_pending_blocks=total(metrics.repair_pending_blocks),
            repaired_bytes=total(metrics.repaired_bytes),
            portion=member.portion,
            staged_bytes=total(metrics.staged_bytes),
            staged_files=total(metrics.staged_files),
            staged_age_s=total(metrics.staged_age_s),
            upload_failures=total(metrics.upload_failures),
        )

    async def overview(self) -> Overview:
        """Say how all peers are; those that do not answer in time are down."""
        view = self._neighbors.view
        peers = await asyncio.gather(*(self._described(m.name) for m in view.members))
        return Overview(self._cluster, view.epoch, tuple(peers))

    async def _described(self, peer: str) -> Description:
        if self._neighbors.is_me(peer):
            return self.describe()
        answer = await self._neighbors.describe(peer)
        member = self._neighbors.view.find(peer)
        state = "" if member is None else member.state.value
        share = self._shares().get(peer, 0.0)
        return replace(answer, state=state, ring_share=share)

    async def inventory(self, after: bytes) -> InventoryReply:
        """Return a page of the versions that have blocks here."""
        return await asyncio.to_thread(self._inventory, after)

    def _inventory(self, after: bytes) -> InventoryReply:
        index = self._store.index
        files = index.files_after(after, INVENTORY_PAGE)
        stock = []
        for version_id, record in files:
            file = record.version()
            if file is not None and file.id == version_id:
                kept = frozenset(number for number, _ in index.blocks(version_id))
                stock.append((file, kept))
        return InventoryReply(tuple(stock), is_last=len(files) < INVENTORY_PAGE)

    def held(self, version_id: bytes) -> frozenset[int]:
        """Return which blocks of a version are here."""
        return frozenset(index for index, _ in self._store.index.blocks(version_id))

    async def locate(self, found: StatReply) -> Location:
        """Say who owns and who has each block of a file."""
        file = found.file
        if file is None:
            raise IsADirectory("a directory has no blocks")
        others = [m.name for m in self._neighbors.view.here if m.name != self._neighbors.me]
        answers = await asyncio.gather(
            *(self._neighbors.held(name, file, timeout_s=HELD_TIMEOUT_S) for name in others),
            return_exceptions=True,
        )
        held = {self._neighbors.me: self.held(file.id)}
        unreachable = []
        for name, answer in zip(others, answers, strict=True):
            if isinstance(answer, MeshError):
                unreachable.append(name)
            elif isinstance(answer, BaseException):
                raise answer
            else:
                held[name] = answer
        ring = self._neighbors.ring
        owners = tuple(
            tuple(ring.owners(file.key(index), copies=OWNERS)) for index in range(file.block_count)
        )
        return Location(found, owners, held, tuple(unreachable))
