"""What mesh.toml says of under-stores: each kind has a section, and its mistakes a line each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from mesh.cli.rooms import under_store
from mesh.cli.settings import ConfigErrors, load_settings, render_toml
from mesh.understore.understore import UnderStoreSettings

CANARY = "canary-7b01de"
REST = """\
[cluster]
name = "demo"
[[cluster.peers]]
name = "one"
address = "127.0.0.1:7101"
[peer]
name = "one"
[store]
directory = "/var/lib/mesh"
"""
S3, HDFS, GS = "s3://bucket", "hdfs://host:8020/a", "gs://bucket"
ABFS, ABFSS = "abfs://container", "abfss://container@account.dfs.core.windows.net"
SFTP = "fsspec+sftp://host/a"

Text = Callable[[str, str, str], str]
Load = Callable[[str], UnderStoreSettings]


def config(url: str, section: str = "", lines: str = "") -> str:
    table = f'[mounts."/".{section}]\n{lines}\n' if section else f"{lines}\n"
    return f'{REST}[mounts."/"]\nurl = "{url}"\n{table}'


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """Return what a room is told that a text describes."""

    def loaded(text: str) -> UnderStoreSettings:
        (tmp_path / "mesh.toml").write_text(text)
        return under_store(load_settings(tmp_path / "mesh.toml").mounts["/"])

    return loaded


def test_owner_modes_and_read_only_reach_the_room(load: Load) -> None:
    plain = load(config(S3))
    assert (plain.uid, plain.gid, plain.umask, plain.read_only) == (None, None, 0, False)
    assert (plain.file_mode, plain.directory_mode) == (0o644, 0o755)

    lines = (
        'uid = 1000\ngid = "100"\nfile_mode = "0640"\ndir_mode = "750"\n'
        'umask = "022"\nread_only = true'
    )
    told = load(config(S3, "", lines))
    assert (told.uid, told.gid, told.umask, told.read_only) == (1000, 100, 0o22, True)
    assert (told.file_mode, told.directory_mode) == (0o640, 0o750)


def test_each_kind_reaches_its_room(load: Load) -> None:
    s3 = load(config(S3, "s3", 'role_arn = "arn:x"\nweb_identity_token_file = "/token"')).s3
    assert (s3.role_arn, s3.web_identity_token_file) == ("arn:x", "/token")
    s3 = load(config(S3, "s3", 'profile = "lab"\nchecksum = "off"')).s3
    assert (s3.profile, s3.checksum) == ("lab", "off")

    hdfs = load(config(HDFS, "hdfs", 'config_dir = "/etc/hadoop"\noptions = {"dfs.x" = "1"}')).hdfs
    assert (hdfs.config_dir, hdfs.options) == ("/etc/hadoop", (("dfs.x", "1"),))

    gcs = load(config(GS, "gcs", 'anonymous = true\nproject = "p"')).gcs
    assert (gcs.anonymous, gcs.project) == (True, "p")

    azure = load(config(ABFS, "azure", 'account = "a"\naccount_key = "k"')).azure
    assert (azure.account, azure.account_key) == ("a", "k")

    fsspec = load(config(SFTP, "fsspec", 'username = "u"\nport = 22')).fsspec
    assert dict(fsspec.options) == {"username": "u", "port": 22}


@pytest.mark.parametrize(
    ("url", "section", "line"),
    [
        (S3, "s3", f'access_key = "a"\nsecret_key = "{CANARY}"\nsession_token = "{CANARY}"'),
        (ABFS, "azure", f'account = "a"\naccount_key = "{CANARY}"'),
        (ABFSS, "azure", f'sas_token = "{CANARY}"'),
        (ABFSS, "azure", f'tenant_id = "t"\nclient_id = "c"\nclient_secret = "{CANARY}"'),
        (SFTP, "fsspec", f'password = "{CANARY}"\nport = 22'),
    ],
)
def test_secrets_reach_the_room_and_are_never_shown(
    load: Load, tmp_path: Path, url: str, section: str, line: str
) -> None:
    told = load(config(url, section, line))
    assert CANARY not in repr(told)
    settings = load_settings(tmp_path / "mesh.toml")
    assert CANARY not in repr(settings) + render_toml(settings)
    assert '"**********"' in render_toml(settings)
    (tmp_path / "mesh.toml").write_text(render_toml(settings))
    assert render_toml(load_settings(tmp_path / "mesh.toml")) == render_toml(settings)


def test_what_is_rendered_loads_as_the_same(load: Load, tmp_path: Path) -> None:
    lines = 'config_dir = "/etc/hadoop"\n[mounts."/".hdfs.options]\n"dfs.a b" = "1"\n"dfs.x" = "2"'
    told = load(config(HDFS, "hdfs", lines))
    assert load(render_toml(load_settings(tmp_path / "mesh.toml"))) == told
    assert dict(told.hdfs.options) == {"dfs.a b": "1", "dfs.x": "2"}

    told = load(config(S3, "", 'uid = 0\nfile_mode = "0600"\nread_only = true'))
    assert load(render_toml(load_settings(tmp_path / "mesh.toml"))) == told


@pytest.mark.parametrize(
    ("url", "section", "lines", "expected"),
    [
        (HDFS, "s3", 'region = "x"', "s3: set for a url that is not s3://; remove this section"),
        (S3, "hdfs", "", "hdfs: set for a url that is not hdfs://; remove this section"),
        (S3, "gcs", "", "gcs: set for a url that is not gs://; remove this section"),
        (S3, "fsspec", "a = 1", "fsspec: set for a url that is not fsspec+; remove this section"),
        (
            GS,
            "azure",
            "",
            "azure: set for a url that is not abfs:// or abfss://; remove this section",
        ),
        (
            S3,
            "s3",
            'role_arn = "arn:x"',
            "s3.web_identity_token_file: missing beside role_arn; set both or neither",
        ),
        (
            S3,
            "s3",
            'profile = "x"\naccess_key = "a"\nsecret_key = "b"',
            "s3.profile: set beside keys; keep one way to credentials",
        ),
        (
            S3,
            "s3",
            'profile = "x"\nanonymous = true',
            "s3.anonymous: set beside profile; remove profile, or this",
        ),
        (
            S3,
            "s3",
            'checksum = "on"',
            "s3.checksum: \"on\" is not known; write 'auto' or 'off'",
        ),
        (
            HDFS,
            "hdfs",
            'kerberos_keytab = "/k"',
            "hdfs.kerberos_principal: missing beside kerberos_keytab; set both or neither",
        ),
        (
            HDFS,
            "hdfs",
            'config_dir = "etc"',
            'hdfs.config_dir: "etc" is not an absolute path; write the path from / on',
        ),
        (
            ABFS,
            "azure",
            'account_key = "x"',
            'azure.account: missing; add account = "name", or name it in the url',
        ),
        (
            ABFSS,
            "azure",
            'account = "other"',
            "azure.account: set beside a url that names one; remove it here, or there",
        ),
        (
            ABFSS,
            "azure",
            'account_key = "x"\nsas_token = "y"',
            "azure.sas_token: set beside account_key; keep one way to credentials",
        ),
        (
            ABFSS,
            "azure",
            'client_secret = "x"',
            "azure.client_secret: set without the client it belongs to; "
            "set tenant_id and client_id too",
        ),
        (
            SFTP,
            "fsspec",
            f'secrets = ["{CANARY}"]',
            "fsspec.secrets: is not a plain value; write a text, a number, true or false",
        ),
    ],
)
def test_each_mistake_is_one_line(
    load: Load, url: str, section: str, lines: str, expected: str
) -> None:
    with pytest.raises(ConfigErrors) as caught:
        load(config(url, section, lines))
    assert [str(mistake) for mistake in caught.value.mistakes] == [f'mounts."/".{expected}']
    assert CANARY not in str(caught.value)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (
            "file_mode = 644",
            'file_mode: 644 is not an octal mode; write one in quotes, such as "0644"',
        ),
        ('umask = "9"', 'umask: "9" is not an octal mode; write one in quotes, such as "0644"'),
        ('uid = "root"', 'uid: "root" is not a number of a user or group; write one such as 1000'),
        (
            "read_only = 1.5",
            "read_only: 1.5 is neither true nor false; write true or false, without quotes",
        ),
    ],
)
def test_owners_and_modes_are_checked(load: Load, line: str, expected: str) -> None:
    with pytest.raises(ConfigErrors) as caught:
        load(config(S3, "", line))
    assert str(caught.value) == f'mounts."/".{expected}'
