"""S3 as a server may answer that is slow, broken, huge or not quite S3."""

from __future__ import annotations

import json
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import trustme
from structlog.testing import capture_logs

from mesh.blocks import GIB, Attributes
from mesh.errors import MeshError, NotFound, Refused, Stale, UnderStoreUnavailable
from mesh.metrics import Metrics
from mesh.testing.scripted_http import Answer, Asked, ScriptedHttp
from mesh.understore.open import open_under_store
from mesh.understore.s3 import S3Store
from mesh.understore.s3_client import bucket_url, s3_clients
from mesh.understore.understore import S3Settings, UnderStoreSettings

MODIFIED = "Sun, 22 Nov 2026 10:00:00 GMT"
KEYS = {"access_key": "OURKEY", "secret_key": "s" * 16}
SLOW_DOWN = Answer(503, b"<Error><Code>SlowDown</Code><Message>less</Message></Error>")


@asynccontextmanager
async def store_of(
    script: Callable[[Asked], Answer],
    *,
    timeout_s: float = 20.0,
    tls: ssl.SSLContext | None = None,
    **s3: Any,
) -> AsyncIterator[tuple[S3Store, ScriptedHttp]]:
    with ScriptedHttp(script, tls=tls) as server:
        settings = UnderStoreSettings(
            url="s3://bucket",
            timeout_s=timeout_s,
            s3=S3Settings(endpoint=server.endpoint, **(s3 or KEYS)),
        )
        store = open_under_store(settings, Metrics())
        assert isinstance(store, S3Store)
        yield store, server
        await store.aclose()


def failed(status: int, code: str = "") -> Answer:
    return Answer(status, f"<Error><Code>{code}</Code></Error>".encode())


def head(size_bytes: int, etag: str = "e1") -> Answer:
    length = {"Content-Length": str(size_bytes)}
    return Answer(headers=length | {"ETag": f'"{etag}"', "Last-Modified": MODIFIED})


def part(asked: Asked, whole_bytes: int, *, etag: str = "e1", sent: bytes | None = None) -> Answer:
    start, last = map(int, asked.headers["range"].removeprefix("bytes=").split("-"))
    headers = {
        "ETag": f'"{etag}"',
        "Last-Modified": MODIFIED,
        "Content-Range": f"bytes {start}-{last}/{whole_bytes}",
        "Content-Length": str(last + 1 - start),
    }
    return Answer(206, b"x" * (last + 1 - start) if sent is None else sent, headers)


def page(keys: list[str], *, more: str = "") -> Answer:
    contents = "".join(
        f"<Contents><Key>{key}</Key><LastModified>2026-11-22T10:00:00.250Z</LastModified>"
        f"<ETag>&quot;e-{key}&quot;</ETag><Size>5</Size></Contents>"
        for key in keys
    )
    body = f"<ListBucketResult>{contents}{more}</ListBucketResult>"
    return Answer(body=body.encode(), headers={"Content-Type": "application/xml"})


def about(size_bytes: int, tag: str = "e1") -> Attributes:
    return Attributes(is_directory=False, size_bytes=size_bytes, mtime_ns=0, tag=tag)


async def read(store: S3Store, of: Attributes, offset: int = 0, size: int = 5) -> bytes:
    return b"".join([run async for run in store.read("f", of, offset, size)])


# What it costs


async def test_a_stat_is_one_head_and_a_range_is_one_conditional_get() -> None:
    def script(asked: Asked) -> Answer:
        return head(5) if asked.method == "HEAD" else part(asked, 5)

    async with store_of(script) as (store, server):
        found = await store.stat("f")
        assert await read(store, found) == b"xxxxx"
    assert [asked.method for asked in server.requests] == ["HEAD", "GET"]
    assert server.requests[1].headers["if-match"] == '"e1"'
    assert server.requests[1].headers["range"] == "bytes=0-4"


async def test_an_object_of_200_gib() -> None:
    size_bytes, offset = 200 * GIB, 199 * GIB + 7

    def script(asked: Asked) -> Answer:
        return head(size_bytes) if asked.method == "HEAD" else part(asked, size_bytes)

    async with store_of(script) as (store, server):
        found = await store.stat("f")
        assert found.size_bytes == size_bytes
        assert await read(store, found, offset, 3) == b"xxx"
        assert await read(store, found, size_bytes - 1, 1) == b"x"
    ranges = [asked.headers["range"] for asked in server.requests[1:]]
    assert ranges == [f"bytes={offset}-{offset + 2}", f"bytes={size_bytes - 1}-{size_bytes - 1}"]


async def test_a_listing_is_asked_for_a_page_at_a_time() -> None:
    def script(asked: Asked) -> Answer:
        query = parse_qs(urlsplit(asked.path).query)
        number = int(query.get("continuation-token", ["0"])[0])
        more = "<IsTruncated>true</IsTruncated>" if number < 2 else ""
        token = f"<NextContinuationToken>{number + 1}</NextContinuationToken>" if more else ""
        return page([f"k{number}"], more=more + token)

    async with store_of(script) as (store, server):
        pages = store.scan("")
        assert [entry.name for entry in await anext(pages)] == ["k0"]
        assert len(server.requests) == 1
        rest = [entry for page in [page async for page in pages] for entry in page]
    assert [entry.name for entry in rest] == ["k1", "k2"]
    assert rest[0].attributes.tag == "e-k1"
    assert rest[0].attributes.mtime_ns % 10**9 == 0
    queries = [parse_qs(urlsplit(asked.path).query) for asked in server.requests]
    assert all(query["max-keys"] == ["1000"] and query["delimiter"] == ["/"] for query in queries)


# What goes wrong


async def test_a_server_that_does_not_heed_the_condition() -> None:
    async with store_of(lambda asked: part(asked, 5, etag="e2")) as (store, _):
        with pytest.raises(Stale):
            await read(store, about(5))


@pytest.mark.parametrize("status", [412, 416, 404])
async def test_a_file_that_is_not_what_it_was_is_stale(status: int) -> None:
    async with store_of(lambda asked: failed(status)) as (store, _):
        with pytest.raises(Stale):
            await read(store, about(5))


async def test_a_body_that_breaks_off_is_asked_for_again() -> None:
    bodies = [b"xx", b"xxxxx"]
    async with store_of(lambda asked: part(asked, 5, sent=bodies.pop(0))) as (store, server):
        assert await read(store, about(5)) == b"xxxxx"
    assert len(server.requests) == 2


async def test_a_server_without_etags_is_told_apart_by_time() -> None:
    def script(asked: Asked) -> Answer:
        answer = head(5) if asked.method == "HEAD" else part(asked, 5)
        return replace(answer, headers={k: v for k, v in answer.headers.items() if k != "ETag"})

    async with store_of(script) as (store, server):
        found = await store.stat("f")
        assert found.tag.startswith("mtime-")
        assert await read(store, found) == b"xxxxx"
        assert "if-match" not in server.requests[1].headers
        with pytest.raises(Stale):
            await read(store, replace(found, tag="mtime-1"))


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (failed(403, "AccessDenied"), Refused),
        (failed(400, "ExpiredToken"), Refused),
        (failed(404, "NoSuchBucket"), NotFound),
        (failed(500, "InternalError"), UnderStoreUnavailable),
        (failed(408, "RequestTimeout"), UnderStoreUnavailable),
        (Answer(200, b"<html>a proxy says hello"), UnderStoreUnavailable),
    ],
)
async def test_each_answer_by_its_meaning(answer: Answer, kind: type[MeshError]) -> None:
    async with store_of(lambda asked: answer) as (store, server):
        with pytest.raises(kind):
            await store.stat("")
        assert len(server.requests) == (3 if kind is UnderStoreUnavailable else 1)


@pytest.mark.parametrize(
    "second",
    [failed(500), failed(403), page([], more="<IsTruncated>true</IsTruncated>")],
    ids=["unavailable", "refused", "no token"],
)
async def test_a_listing_that_fails_half_way_never_ends_short(second: Answer) -> None:
    first = page(
        ["a"],
        more="<IsTruncated>true</IsTruncated><NextContinuationToken>t</NextContinuationToken>",
    )

    def script(asked: Asked) -> Answer:
        return second if "continuation-token" in asked.path else first

    async with store_of(script) as (store, _):
        pages = store.scan("")
        assert [entry.name for entry in await anext(pages)] == ["a"]
        with pytest.raises(MeshError):
            await anext(pages)


# SlowDown


async def test_slow_down_is_waited_out_with_fewer_requests() -> None:
    answers = [SLOW_DOWN] * 3

    def script(asked: Asked) -> Answer:
        return answers.pop() if answers else part(asked, 5)

    async with store_of(script) as (store, server):
        assert await read(store, about(5)) == b"xxxxx"
        assert len(server.requests) == 4
        assert store._window.limit == 2
        await read(store, about(5))
        assert store._window.limit == 3  # more again, after a window of two answers


async def test_slow_down_for_ever_ends_at_the_deadline() -> None:
    async with store_of(lambda asked: SLOW_DOWN, timeout_s=0.5) as (store, server):
        with pytest.raises(UnderStoreUnavailable, match=r"no answer in 0\.5 s.*SlowDown"):
            await read(store, about(5))
    assert len(server.requests) > 1


async def test_slow_down_without_a_body_is_one_too() -> None:
    answers = [Answer(503)] * 2
    async with store_of(lambda asked: answers.pop() if answers else head(5)) as (store, _):
        assert (await store.stat("f")).size_bytes == 5


# Keys that are no paths


async def test_what_is_not_shown_is_logged_once() -> None:
    answer = page(["ok", "n" * 256])
    async with store_of(lambda asked: answer) as (store, _):
        with capture_logs() as logs:
            for _ in range(3):
                assert [[e.name for e in p] async for p in store.scan("")] == [["ok"]]
    assert [(line["key"], line["reason"]) for line in logs] == [
        ("n" * 256, "a part of more than 255 bytes")
    ]


@pytest.mark.parametrize("path", ["a//b", "/a", "a/", "../a", "a/./b", "n" * 256])
async def test_what_is_not_shown_is_not_found_and_not_asked_for(path: str) -> None:
    async with store_of(lambda asked: head(5)) as (store, server):
        with pytest.raises(NotFound):
            await store.stat(path)
        with pytest.raises(NotFound):
            _ = [page async for page in store.scan(path)]
        with pytest.raises(NotFound):
            _ = [run async for run in store.read(path, about(5), 0, 5)]
        assert server.requests == []


# Credentials and dialects


def signer(server: ScriptedHttp) -> str:
    """Return the key that both libraries, the one for stats and the one for bytes, signed with."""
    signers = set()
    for asked in server.requests[-2:]:
        assert asked.path == "/bucket/f"
        authorization = asked.headers.get("authorization", "")
        signers.add(authorization.partition("Credential=")[2].partition("/")[0])
    assert [asked.method for asked in server.requests[-2:]] == ["HEAD", "GET"]
    [found] = signers
    return str(found)


async def stat_and_read(store: S3Store) -> None:
    assert await read(store, await store.stat("f")) == b"xxxxx"


def file(asked: Asked) -> Answer:
    return head(5) if asked.method == "HEAD" else part(asked, 5)


@pytest.fixture
def no_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Whatever keys the developer has are not to be found."""
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    return tmp_path


async def test_keys_of_the_config_with_a_session_token() -> None:
    async with store_of(file, **KEYS, session_token="tkn") as (store, server):
        await stat_and_read(store)
    assert signer(server) == "OURKEY"
    assert server.requests[-1].headers["x-amz-security-token"] == "tkn"


async def test_anonymous_signs_nothing(no_home: Path) -> None:
    async with store_of(file, anonymous=True) as (store, server):
        await stat_and_read(store)
    assert signer(server) == ""


async def test_keys_of_the_environment(no_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "ENVKEY")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s")
    async with store_of(file, region="x") as (store, server):
        await stat_and_read(store)
    assert signer(server) == "ENVKEY"


async def test_keys_of_a_named_profile(no_home: Path) -> None:
    (no_home / "credentials").write_text(
        "[default]\naws_access_key_id=NOTTHIS\naws_secret_access_key=s\n"
        "[lab]\naws_access_key_id=LABKEY\naws_secret_access_key=s\n"
    )
    async with store_of(file, profile="lab") as (store, server):
        await stat_and_read(store)
    assert signer(server) == "LABKEY"


async def test_a_profile_that_is_not_there_is_refused(no_home: Path) -> None:
    async with store_of(file, profile="lab") as (store, _):
        with pytest.raises(Refused, match="lab"):
            await store.stat("f")


async def test_no_keys_anywhere_is_refused(no_home: Path) -> None:
    async with store_of(file, region="x") as (store, server):
        with pytest.raises(Refused, match="credentials"):
            await store.stat("f")
        assert server.requests == []


async def test_the_role_of_an_instance(no_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = {
        "Code": "Success",
        "AccessKeyId": "ROLEKEY",
        "SecretAccessKey": "s",
        "Token": "tkn",
        "Expiration": "2999-01-01T00:00:00Z",
    }

    def script(asked: Asked) -> Answer:
        if asked.path == "/latest/api/token":
            return Answer(body=b"metadata-token")
        if asked.path.endswith("/security-credentials/"):
            return Answer(body=b"role")
        if asked.path.endswith("/security-credentials/role"):
            return Answer(body=json.dumps(keys).encode())
        return file(asked)

    async with store_of(script, region="x") as (store, server):
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "false")
        monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", server.endpoint)
        await stat_and_read(store)
    assert signer(server) == "ROLEKEY"


async def test_a_role_by_web_identity(no_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (no_home / "token").write_text("web-token")
    granted = (
        b"<AssumeRoleWithWebIdentityResponse><AssumeRoleWithWebIdentityResult><Credentials>"
        b"<AccessKeyId>WEBKEY</AccessKeyId><SecretAccessKey>s</SecretAccessKey>"
        b"<SessionToken>tkn</SessionToken><Expiration>2999-01-01T00:00:00Z</Expiration>"
        b"</Credentials></AssumeRoleWithWebIdentityResult></AssumeRoleWithWebIdentityResponse>"
    )

    def script(asked: Asked) -> Answer:
        return Answer(body=granted) if asked.method == "POST" else file(asked)

    role = {"role_arn": "arn:aws:iam::1:role/r", "web_identity_token_file": str(no_home / "token")}
    async with store_of(script, **role) as (store, server):
        monkeypatch.setenv("AWS_ENDPOINT_URL_STS", server.endpoint)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "NOTTHIS")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s")
        await stat_and_read(store)
    assert signer(server) == "WEBKEY"


@pytest.mark.parametrize("variable", ["AWS_CA_BUNDLE", "SSL_CERT_FILE"])
async def test_a_server_with_a_certificate_of_ones_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, variable: str
) -> None:
    """Both libraries believe the authorities that the environment names, and nobody else."""
    ours, bundle = trustme.CA(), tmp_path / "bundle.pem"
    bundle.write_bytes(trustme.CA().cert_pem.bytes() + ours.cert_pem.bytes())
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ours.issue_cert("127.0.0.1").configure_cert(tls)
    async with store_of(file, tls=tls) as (store, _):
        with pytest.raises(UnderStoreUnavailable, match="SSL"):
            await store.stat("f")
        with pytest.raises(UnderStoreUnavailable):
            await read(store, about(5))
    monkeypatch.setenv(variable, str(bundle))
    async with store_of(file, tls=tls) as (store, _):
        await stat_and_read(store)


def url_of(**s3: Any) -> str:
    clients = s3_clients(UnderStoreSettings(url="s3://bucket", s3=S3Settings(**KEYS, **s3)))
    url = bucket_url(clients.about, "bucket")
    clients.about.close()
    return url


def test_the_bucket_is_in_the_path_or_in_the_host() -> None:
    own = "https://store.example.org"
    assert url_of(endpoint=own, path_style=True) == "https://store.example.org/bucket"
    assert url_of(endpoint=own, path_style=False) == "https://bucket.store.example.org"
    assert url_of(path_style=False, region="eu-west-1").startswith("https://bucket.s3.")
    assert url_of(path_style=False, region="cn-north-1").endswith(".amazonaws.com.cn")


@pytest.mark.parametrize(
    ("s3", "checksums"),
    [
        ({}, "when_supported"),
        ({"checksum": "off"}, "when_required"),
        ({"endpoint": "http://127.0.0.1:1"}, "when_required"),
    ],
)
def test_checksums_are_for_aws_alone(s3: dict[str, Any], checksums: str) -> None:
    client = s3_clients(UnderStoreSettings(url="s3://bucket", s3=S3Settings(**KEYS, **s3))).about
    config = client.meta.config
    assert config.request_checksum_calculation == checksums
    assert config.response_checksum_validation == checksums
    client.close()
