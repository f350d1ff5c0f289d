"""From the words of the config to the settings of each room."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from mesh.cli.sections import Mount
from mesh.cli.settings import Settings
from mesh.client.client import ClientSettings
from mesh.membership.etcd import EtcdSettings
from mesh.membership.etcd_api import EtcdAccess
from mesh.membership.gossip import GossipSettings
from mesh.membership.open import MembershipSettings, StaticSettings
from mesh.membership.view import VIEW_FILE, Member, State, View, peer_id, read_view, view_of
from mesh.peer.peer import PeerSettings
from mesh.store.store import StoreSettings
from mesh.understore.understore import (
    AzureSettings,
    FsspecSettings,
    GcsSettings,
    HdfsSettings,
    S3Settings,
    UnderStoreSettings,
)
from mesh.wire.channels import TlsSettings
from mesh.wire.passport import fingerprint_of


def peer_settings(settings: Settings) -> PeerSettings:
    """Return what the peer of this config is told."""
    return PeerSettings(
        cluster=settings.cluster.name,
        me=me(settings),
        membership=membership(settings),
        key_fingerprint=fingerprint(settings),
        listen=settings.peer.listen,
        socket=settings.peer.socket,
        store=StoreSettings(
            directory=settings.store.directory,
            capacity_bytes=settings.store.capacity,
            free_space_ratio=settings.store.free_space_ratio,
        ),
        mounts={path: under_store(mount) for path, mount in settings.mounts.items()},
        metrics_address=settings.peer.metrics,
        staged_bytes_max=min(settings.store.staging, settings.store.capacity // 2),
        upload_bytes_per_s=settings.store.upload_limit,
        memory_bytes=settings.peer.memory,
        bulk_port=settings.peer.bulk,
        is_swarming=settings.peer.swarm,
        egress_bytes_per_s=settings.peer.egress_limit,
        check_under_stores=settings.peer.check_under_stores,
        tls=tls(settings),
        slow_start_s=settings.cluster.slow_start,
        repair_bytes_per_s=settings.cluster.repair,
    )


def client_settings(settings: Settings) -> ClientSettings:
    """Return what a mount on this peer's host is told."""
    return ClientSettings(
        cluster=settings.cluster.name,
        key_fingerprint=fingerprint(settings),
        name=settings.peer.name,
        view=last_view(settings),
        socket=settings.peer.socket,
        store_directory=settings.store.directory,
        mounts={path: under_store(mount) for path, mount in settings.mounts.items()},
        memory_bytes=settings.fuse.buffer,
        tls=tls(settings),
    )


def me(settings: Settings) -> Member:
    """Return how the others are to know this peer."""
    peer = settings.peer
    return Member(
        name=peer.name,
        address=peer.address,
        zone=peer.zone,
        weight=peer.weight,
        gossip=peer.gossip,
        state=State.JOINING,
        is_placed=False,
    )


def membership(settings: Settings) -> MembershipSettings:
    """Return how this peer finds out who is in the mesh."""
    cluster = settings.cluster
    if cluster.seeds:
        return GossipSettings(
            cluster=cluster.name,
            seeds=cluster.seeds,
            key=cluster.key.get_secret_value(),
            grace_s=cluster.grace,
        )
    if cluster.etcd:
        return EtcdSettings(
            cluster=cluster.name,
            access=EtcdAccess(endpoints=cluster.etcd),
            grace_s=cluster.grace,
        )
    return StaticSettings(cluster=cluster.name, listed=listed(settings), grace_s=cluster.grace)


def listed(settings: Settings) -> tuple[Member, ...]:
    """Return the peers that the config lists."""
    cluster = settings.cluster
    return tuple(
        Member(p.name, p.address, p.zone, p.weight, id=str(peer_id(cluster.name, p.name)))
        for p in cluster.peers
    )


def last_view(settings: Settings) -> View:
    """Return who is in the mesh as far as this host can know without asking."""
    written = read_view(settings.store.directory / VIEW_FILE)
    return written or view_of(listed(settings))


def fingerprint(settings: Settings) -> str:
    cluster = settings.cluster
    return fingerprint_of(cluster.name, cluster.key.get_secret_value())


def under_store(mount: Mount) -> UnderStoreSettings:
    s3, hdfs, azure = mount.s3, mount.hdfs, mount.azure
    return UnderStoreSettings(
        url=mount.url,
        block_bytes=mount.block,
        max_age_s=mount.max_age,
        concurrency=mount.concurrency,
        request_bytes=mount.request,
        timeout_s=mount.timeout,
        uid=mount.uid,
        gid=mount.gid,
        file_mode=mount.file_mode,
        directory_mode=mount.dir_mode,
        umask=mount.umask,
        read_only=mount.read_only,
        durability=mount.durability,
        durabilities=tuple((path.strip("/"), d) for path, d in mount.durabilities.items()),
        s3=S3Settings(
            endpoint=s3.endpoint,
            region=s3.region,
            path_style=s3.path_style,
            anonymous=s3.anonymous,
            access_key=s3.access_key.get_secret_value(),
            secret_key=s3.secret_key.get_secret_value(),
            session_token=s3.session_token.get_secret_value(),
            profile=s3.profile,
            role_arn=s3.role_arn,
            web_identity_token_file=s3.web_identity_token_file,
            checksum=s3.checksum,
        ),
        hdfs=HdfsSettings(
            config_dir=hdfs.config_dir,
            kerberos_principal=hdfs.kerberos_principal,
            kerberos_keytab=hdfs.kerberos_keytab,
            options=tuple(hdfs.options.items()),
        ),
        gcs=GcsSettings(**mount.gcs.model_dump()),
        azure=AzureSettings(
            account=azure.account,
            account_key=azure.account_key.get_secret_value(),
            sas_token=azure.sas_token.get_secret_value(),
            tenant_id=azure.tenant_id,
            client_id=azure.client_id,
            client_secret=azure.client_secret.get_secret_value(),
            endpoint=azure.endpoint,
        ),
        fsspec=FsspecSettings(
            options=tuple((key, _plain(value)) for key, value in mount.fsspec.items())
        ),
    )


def _plain(value: Any) -> Any:
    return value.get_secret_value() if isinstance(value, SecretStr) else value


def tls(settings: Settings) -> TlsSettings | None:
    security = settings.security
    if security.ca is None or security.certificate is None or security.key is None:
        return None
    return TlsSettings(ca=security.ca, certificate=security.certificate, key=security.key)


def absolute(path: Path) -> Path:
    """Return where *path* is, without following what is mounted there."""
    return Path(os.path.abspath(path))  # noqa: PTH100
