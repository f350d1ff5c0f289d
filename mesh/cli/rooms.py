"""From the words of the config to the settings of each room."""

from __future__ import annotations

import os
from pathlib import Path

from mesh.cli.settings import Mount, Settings
from mesh.client.client import ClientSettings
from mesh.membership.view import Member, View, view_of
from mesh.peer.peer import PeerSettings
from mesh.store.store import StoreSettings
from mesh.understore.understore import S3Settings, UnderStoreSettings
from mesh.wire.channels import TlsSettings


def peer_settings(settings: Settings) -> PeerSettings:
    """Return what the peer of this config is told."""
    return PeerSettings(
        cluster=settings.cluster.name,
        name=settings.peer.name,
        view=view(settings),
        listen=settings.peer.listen,
        socket=settings.peer.socket,
        store=StoreSettings(
            directory=settings.store.directory,
            capacity_bytes=settings.store.capacity,
            free_space_ratio=settings.store.free_space_ratio,
        ),
        mounts={path: under_store(mount) for path, mount in settings.mounts.items()},
        metrics_address=settings.peer.metrics,
        memory_bytes=settings.peer.memory,
        check_under_stores=settings.peer.check_under_stores,
        tls=tls(settings),
    )


def client_settings(settings: Settings) -> ClientSettings:
    """Return what a mount on this peer's host is told."""
    return ClientSettings(
        name=settings.peer.name,
        view=view(settings),
        socket=settings.peer.socket,
        store_directory=settings.store.directory,
        mounts={path: under_store(mount) for path, mount in settings.mounts.items()},
        memory_bytes=settings.fuse.buffer,
        tls=tls(settings),
    )


def view(settings: Settings) -> View:
    """Return the static view that the config names."""
    return view_of(Member(p.name, p.address, p.zone, p.weight) for p in settings.cluster.peers)


def under_store(mount: Mount) -> UnderStoreSettings:
    s3 = mount.s3
    return UnderStoreSettings(
        url=mount.url,
        block_bytes=mount.block,
        max_age_s=mount.max_age,
        concurrency=mount.concurrency,
        request_bytes=mount.request,
        timeout_s=mount.timeout,
        s3=S3Settings(
            endpoint=s3.endpoint,
            region=s3.region,
            path_style=s3.path_style,
            anonymous=s3.anonymous,
            access_key=s3.access_key.get_secret_value(),
            secret_key=s3.secret_key.get_secret_value(),
            session_token=s3.session_token.get_secret_value(),
        ),
    )


def tls(settings: Settings) -> TlsSettings | None:
    security = settings.security
    if security.ca is None or security.certificate is None or security.key is None:
        return None
    return TlsSettings(ca=security.ca, certificate=security.certificate, key=security.key)


def absolute(path: Path) -> Path:
    """Return where *path* is, without following what is mounted there."""
    return Path(os.path.abspath(path))  # noqa: PTH100
