"""The clients of an S3 server, as the mount table describes it: address, dialect, credentials.

botocore knows every way to credentials and every dialect, and asks for all but bytes.
obstore, which is Rust, reads: a conditional GET that leaves Python's lock alone. It is
told by botocore where the bucket is and with which keys to sign, so that both are one.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from functools import cache, partial
from pathlib import Path
from typing import Any, cast

from mesh.understore.pool import split_url
from mesh.understore.understore import S3Settings, UnderStoreSettings

CONNECT_TIMEOUT_S = 5.0
METADATA_TIMEOUT_S = 1.0
WEB_IDENTITY_PROFILE = "mesh"

KEYS_FOR = timedelta(minutes=10)
"""So long botocore's keys are good for when it hands them out: it renews them before."""


@dataclass(frozen=True, slots=True)
class S3Clients:
    """Two clients of one bucket; neither repeats anything by itself."""

    about: Any
    """botocore's, for heads and listings."""

    data: Any
    """obstore's, for bytes."""


def s3_clients(settings: UnderStoreSettings) -> S3Clients:
    """Make both; nothing is asked of the server yet."""
    import botocore.session

    s3 = settings.s3
    session = botocore.session.Session(profile=s3.profile or None)
    session.register_component("data_loader", _models())
    # botocore's own tries every format there is: 95 ms for each 1,000 entries, against 27.
    session.get_component("response_parser_factory").set_parser_defaults(timestamp_parser=read_time)
    session.set_config_variable("metadata_service_timeout", METADATA_TIMEOUT_S)
    if s3.access_key:
        session.set_credentials(s3.access_key, s3.secret_key, s3.session_token or None)
    elif s3.role_arn:
        _take_role(session, s3)
    about = _botocore_client(session, settings)
    return S3Clients(about, _obstore(session, about, settings))


def _botocore_client(session: Any, settings: UnderStoreSettings) -> Any:
    from botocore import UNSIGNED
    from botocore.config import Config

    s3 = settings.s3
    # Servers other than AWS's reject the checksums that newer SDKs add.
    checksums = "when_supported" if s3.checksum == "auto" and not s3.endpoint else "when_required"
    config = Config(
        signature_version=UNSIGNED if s3.anonymous else None,
        connect_timeout=min(CONNECT_TIMEOUT_S, settings.timeout_s),
        read_timeout=settings.timeout_s,
        max_pool_connections=settings.concurrency,
        retries={"total_max_attempts": 1},  # `PooledStore` repeats, and slows down
        s3={"addressing_style": "path" if s3.path_style else "virtual"},
        request_checksum_calculation=checksums,
        response_checksum_validation=checksums,
        user_agent_extra="mesh",
    )
    return session.create_client(
        "s3",
        region_name=s3.region,
        endpoint_url=s3.endpoint or None,
        verify=_authorities(session) or None,
        config=config,
    )


def _obstore(session: Any, about: Any, settings: UnderStoreSettings) -> Any:
    from obstore.store import S3Store

    s3 = settings.s3
    bucket = split_url(settings.url)[1]
    url = bucket_url(about, bucket)
    http: dict[str, Any] = {
        "allow_http": url.startswith("http://"),
        "connect_timeout": timedelta(seconds=min(CONNECT_TIMEOUT_S, settings.timeout_s)),
        "timeout": timedelta(seconds=settings.timeout_s),
    }
    if authorities := _authorities(session):
        http["root_certificate"] = Path(authorities).read_bytes()
    return S3Store(
        bucket,
        endpoint=url,
        virtual_hosted_style_request=True,  # the endpoint is the bucket's own
        region=s3.region,
        skip_signature=s3.anonymous,
        credential_provider=None if s3.anonymous else _keys_of(session),
        client_options=cast(Any, http),
        retry_config={"max_retries": 0, "retry_timeout": timedelta(seconds=settings.timeout_s)},
    )


def _authorities(session: Any) -> str:
    """Return the file of who may vouch for a server; "" for whom everybody trusts."""
    named = session.get_config_variable("ca_bundle") or os.environ.get("SSL_CERT_FILE")
    return str(named or "")


def bucket_url(about: Any, bucket: str) -> str:
    """Return where botocore finds a bucket: the one place where dialects are known."""
    signed: str = about.generate_presigned_url("get_object", {"Bucket": bucket, "Key": "-"})
    return signed.partition("?")[0].removesuffix("/-")


def _keys_of(session: Any) -> Any:
    """Return what tells obstore the keys that *session* has now."""
    from botocore.credentials import RefreshableCredentials
    from botocore.exceptions import NoCredentialsError

    def keys() -> dict[str, Any]:
        credentials = session.get_credentials()
        if credentials is None:
            raise NoCredentialsError
        frozen = credentials.get_frozen_credentials()
        are_renewed = isinstance(credentials, RefreshableCredentials)
        return {
            "access_key_id": frozen.access_key,
            "secret_access_key": frozen.secret_key,
            "token": frozen.token,
            "expires_at": datetime.now(UTC) + KEYS_FOR if are_renewed else None,
        }

    return keys


@cache
def _models() -> Any:
    """Return what reads the description of S3: 100 ms and some MB, once for all mounts."""
    from botocore.loaders import create_loader

    return create_loader()


def _take_role(session: Any, s3: S3Settings) -> None:
    """Have *session* take a role with the token in a file, before all other credentials."""
    from botocore.credentials import AssumeRoleWithWebIdentityProvider

    role = {"role_arn": s3.role_arn, "web_identity_token_file": s3.web_identity_token_file}
    provider = AssumeRoleWithWebIdentityProvider(
        load_config=lambda: {"profiles": {WEB_IDENTITY_PROFILE: role}},
        client_creator=partial(session.create_client, region_name=s3.region),
        profile_name=WEB_IDENTITY_PROFILE,
        disable_env_vars=True,
    )
    session.get_component("credential_provider").insert_before("env", provider)


def read_time(text: str) -> datetime:
    """Read a time of S3's: ISO 8601 in XML, RFC 5322 in headers."""
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        return parsedate_to_datetime(text)
