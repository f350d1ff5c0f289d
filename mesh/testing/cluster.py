"""Whole peers in one process: real stores, real gRPC on loopback, one event loop."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from mesh.blocks import GIB, MIB
from mesh.client.client import ClientSettings, MeshClient, open_client
from mesh.membership.open import StaticSettings
from mesh.membership.view import Member, State, View, peer_id, view_of
from mesh.peer.peer import Peer, PeerSettings, running_peer
from mesh.store.store import StoreSettings
from mesh.testing.memory import SOURCE
from mesh.testing.servers import free_port
from mesh.understore.understore import Durability, UnderStore, UnderStoreSettings


class Cluster:
    """Peers that a test starts and stops one by one."""

    def __init__(
        self,
        root: Path,
        names: Sequence[str],
        under_store: UnderStore,
        *,
        block_bytes: int = MIB,
        max_age_s: float = 60.0,
        capacity_bytes: int = GIB,
        durability: Durability = "through",
        staged_bytes_max: int = GIB,
        upload_bytes_per_s: float = 0.0,
    ) -> None:
        self.root = root
        self.view: View = view_of(
            Member(name, f"127.0.0.1:{free_port()}", id=str(peer_id("test", name)))
            for name in names
        )
        self.peers: dict[str, Peer] = {}
        self._stacks: dict[str, AsyncExitStack] = {}
        self._under_store = under_store
        self._mounts = {
            "/": UnderStoreSettings(
                url=SOURCE, block_bytes=block_bytes, max_age_s=max_age_s, durability=durability
            )
        }
        self._capacity_bytes = capacity_bytes
        self._staged_bytes_max = staged_bytes_max
        self.flush_s = 0.0
        """What peers that are started from now on take to upload what they have."""

        self._upload_bytes_per_s = upload_bytes_per_s

    @property
    def _stores(self) -> Mapping[str, UnderStore]:
        return {SOURCE: self._under_store}

    async def start(self, name: str) -> Peer:
        """Start a peer, on the data that it had if it ran before."""
        stack = AsyncExitStack()
        self.peers[name] = await stack.enter_async_context(running_peer(self.settings(name)))
        self._stacks[name] = stack
        return self.peers[name]

    def settings(self, name: str) -> PeerSettings:
        return PeerSettings(
            cluster="test",
            me=Member(name, self.view.member(name).address, state=State.JOINING, is_placed=False),
            membership=StaticSettings(cluster="test", listed=self.view.members, notice_s=0.0),
            listen=self.view.member(name).address,
            socket=self.root / f"{name}.sock",
            store=StoreSettings(
                directory=self.root / name,
                capacity_bytes=self._capacity_bytes,
                free_space_ratio=0.0,
            ),
            mounts=self._mounts,
            staged_bytes_max=self._staged_bytes_max,
            upload_bytes_per_s=self._upload_bytes_per_s,
            memory_bytes=64 * MIB,
            under_stores=self._stores,
            check_under_stores=False,
            drain_s=0.0,
            flush_s=self.flush_s,
        )

    async def stop(self, name: str) -> None:
        del self.peers[name]
        await self._stacks.pop(name).aclose()

    @asynccontextmanager
    async def client(self, name: str) -> AsyncIterator[MeshClient]:
        """Use the mesh from the host of that peer, running or not.

        LMDB cannot be opened twice in one process, so the client reads from a
        directory that is not there and has its peer bring everything. Real mounts
        read the store itself: `tests/system` has those.
        """
        settings = ClientSettings(
            cluster="test",
            name=name,
            view=self.view,
            socket=self.root / f"{name}.sock",
            store_directory=self.root / "nowhere",
            mounts=self._mounts,
            under_stores=self._stores,
        )
        async with open_client(settings) as client:
            if name in self.peers:
                self.share(client, name)
            yield client

    def share(self, client: MeshClient, name: str) -> None:
        """Have a client read the store of the running peer of its host.

        All of it is taken from there: a table that is opened while the peer writes to the
        same environment waits for it with the interpreter's lock held, for ever.
        """
        store, here = self.peers[name].store, client.here
        here.close()
        here._index, here._is_ours = store.index, False
        here._entries, here.extents = store.entries.tables, store.extents


@asynccontextmanager
async def running_cluster(
    root: Path,
    names: Sequence[str],
    under_store: UnderStore,
    *,
    block_bytes: int = MIB,
    max_age_s: float = 60.0,
    capacity_bytes: int = GIB,
    durability: Durability = "through",
    staged_bytes_max: int = GIB,
    upload_bytes_per_s: float = 0.0,
) -> AsyncIterator[Cluster]:
    """Run peers of these names for as long as the caller stays inside the block."""
    cluster = Cluster(
        root,
        names,
        under_store,
        block_bytes=block_bytes,
        max_age_s=max_age_s,
        capacity_bytes=capacity_bytes,
        durability=durability,
        staged_bytes_max=staged_bytes_max,
        upload_bytes_per_s=upload_bytes_per_s,
    )
    try:
        for name in names:
            await cluster.start(name)
        yield cluster
    finally:
        for name in list(cluster.peers):
            await cluster.stop(name)
