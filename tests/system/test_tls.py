"""Peers show each other their certificates, and nobody else gets in."""

from __future__ import annotations

from pathlib import Path

import grpc
import pytest
import trustme
from grpc_health.v1 import health_pb2, health_pb2_grpc

from mesh.wire.codec import BULK
from mesh.wire.messages import Nothing
from tests.system.hosts import Hosts, directory

pytestmark = [pytest.mark.fuse, pytest.mark.slow]
MIB = 1024 * 1024


def certificates(root: Path) -> tuple[str, trustme.CA]:
    ca = trustme.CA()
    ca.cert_pem.write_to_path(root / "ca.pem")
    leaf = ca.issue_cert("127.0.0.1", "localhost")
    leaf.cert_chain_pems[0].write_to_path(root / "cert.pem")
    leaf.private_key_pem.write_to_path(root / "key.pem")
    security = (
        f'[security]\nca = "{root}/ca.pem"\ncertificate = "{root}/cert.pem"\nkey = "{root}/key.pem"'
    )
    return security, ca


def check(address: str, credentials: grpc.ChannelCredentials | None) -> None:
    channel = (
        grpc.insecure_channel(address)
        if credentials is None
        else grpc.secure_channel(address, credentials)
    )
    with channel:
        stub = health_pb2_grpc.HealthStub(channel)
        answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=5)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_a_mesh_over_tls(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "f").write_bytes(bytes(range(256)) * 65536)
    security, _ = certificates(tmp_path)
    mounts = directory(data, block='"1MiB"')
    with Hosts(tmp_path, ["one", "two"], mounts, more=security) as hosts:
        hosts.start()
        view = hosts.mount("one")
        assert (view / "f").read_bytes() == (data / "f").read_bytes()
        assert hosts.peers("one")["one"]["read_bytes"]["peer"] > 0
        assert hosts.peers("one")["two"]["is_up"]

        key, cert = (tmp_path / "key.pem").read_bytes(), (tmp_path / "cert.pem").read_bytes()
        root = (tmp_path / "ca.pem").read_bytes()
        check(hosts.addresses["two"], grpc.ssl_channel_credentials(root, key, cert))
        with grpc.secure_channel(
            hosts.addresses["two"], grpc.ssl_channel_credentials(root, key, cert)
        ) as channel:
            ask = channel.unary_unary(BULK.path, BULK.encode_request, BULK.decode_reply)
            assert ask(Nothing(), timeout=5).port == 0  # blocks are nowhere to be had in the clear
        stranger = trustme.CA().issue_cert("127.0.0.1")
        strange = grpc.ssl_channel_credentials(
            root, stranger.private_key_pem.bytes(), stranger.cert_chain_pems[0].bytes()
        )
        for refused in (None, grpc.ssl_channel_credentials(root), strange):
            with pytest.raises(grpc.RpcError):
                check(hosts.addresses["two"], refused)
        # The own peer gone, the mount itself reads from the other one over TLS.
        hosts.kill("one")
        (data / "g").write_bytes(b"g" * (3 * MIB))
        assert (view / "g").read_bytes() == b"g" * (3 * MIB)
