"""A mistake in mesh.toml is a line that says what to write, never a traceback."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import SecretStr, ValidationError
from typer.testing import CliRunner

from mesh.cli.config import app
from mesh.cli.quantities import GIB, MIB
from mesh.cli.settings import ConfigErrors, Settings, load_settings, render_toml

CANARY = "canary-5a1fb0"

GOOD = """\
[cluster]
name = "demo"
[[cluster.peers]]
name = "one"
address = "127.0.0.1:7101"
zone = "a"
[[cluster.peers]]
name = "two"
address = "127.0.0.1:7102"
[peer]
name = "one"
[store]
directory = "/var/lib/mesh"
[mounts."/"]
url = "file:///data"
"""
S3 = GOOD.replace("file:///data", "s3://bucket/prefix") + '[mounts."/".s3]\n'
BEYOND = GOOD.replace("127.0.0.1:7102", "10.0.0.2:7102")

BULK = 'is no port; write one from 1 to 65535, "any" or "off"'

Write = Callable[[str], Path]


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in os.environ:
        if variable.upper().startswith("MESH_"):
            monkeypatch.delenv(variable)


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a text to a file and return its path."""

    def to_file(text: str) -> Path:
        path = tmp_path / "mesh.toml"
        path.write_text(text, encoding="utf-8")
        return path

    return to_file


def mistakes(path: Path) -> list[str]:
    with pytest.raises(ConfigErrors) as caught:
        load_settings(path)
    return [str(mistake) for mistake in caught.value.mistakes]


def with_line(section: str, line: str) -> str:
    """Return the good file with *line* in *section*, in place of the same key if it is there."""
    key = line.partition(" =")[0]
    before, _, after = GOOD.partition(f"{section}\n")
    if not after:
        return f"{GOOD}{section}\n{line}\n"
    body, bracket, rest = after.partition("[")
    kept = "".join(f"{old}\n" for old in body.splitlines() if not old.startswith(f"{key} ="))
    return f"{before}{section}\n{kept}{line}\n{bracket}{rest}"


def test_the_shortest_file_has_every_default(write: Write) -> None:
    settings = load_settings(write(GOOD))

    assert settings.peer.listen == "127.0.0.1:7101"
    assert settings.peer.socket == Path("/var/lib/mesh/peer.sock")
    assert settings.peer.memory == 512 * MIB
    assert settings.peer.check_under_stores is True
    assert settings.store.capacity == 100 * GIB
    assert settings.store.free_space_ratio == 0.1
    assert [peer.weight for peer in settings.cluster.peers] == [1.0, 1.0]
    mount = settings.mounts["/"]
    assert (mount.block, mount.request, mount.max_age) == (4 * MIB, 4 * MIB, 60.0)
    assert (mount.concurrency, mount.timeout) == (16, 30.0)
    assert (settings.fuse.attr_cache, settings.fuse.negative_entry_cache) == (60.0, 0.5)
    assert settings.security.ca is None
    assert (settings.log.level, settings.log.format) == ("info", "auto")


def test_values_are_converted(write: Write) -> None:
    text = with_line('[mounts."/"]', 'max_age = "immutable"').replace('"one"', '"me"')
    settings = load_settings(write(text + 'block = "1m"\ntimeout = "500ms"\nconcurrency = 4\n'))

    mount = settings.mounts["/"]
    assert (mount.max_age, mount.block, mount.timeout) == (math.inf, MIB, 0.5)
    assert isinstance(mount.concurrency, int)


def test_path_style_follows_the_endpoint(write: Write) -> None:
    assert load_settings(write(S3)).mounts["/"].s3.path_style is False
    own = S3 + 'endpoint = "http://127.0.0.1:8333"\n'
    assert load_settings(write(own)).mounts["/"].s3.path_style is True
    virtual = own + "path_style = false\n"
    assert load_settings(write(virtual)).mounts["/"].s3.path_style is False


def test_settings_do_not_change(write: Write) -> None:
    settings = load_settings(write(GOOD))
    with pytest.raises(ValidationError):
        settings.peer.listen = "127.0.0.1:1"
    with pytest.raises(ValidationError):
        settings.log = settings.log


def test_the_environment_wins_over_the_file(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MESH_STORE__CAPACITY", "20GiB")
    monkeypatch.setenv("MESH_PEER__NAME", "two")
    monkeypatch.setenv("MESH_FUSE__ALLOW_OTHER", "true")
    monkeypatch.setenv("MESH_MOUNTS", '{"/Deep": {"url": "file:///deep", "concurrency": 2}}')
    settings = load_settings(write(with_line("[store]", 'capacity = "10GiB"')))

    assert settings.store.capacity == 20 * GIB
    assert settings.store.directory == Path("/var/lib/mesh")
    assert settings.peer.listen == "127.0.0.1:7102"
    assert settings.fuse.allow_other is True
    assert sorted(settings.mounts) == ["/", "/Deep"]


def test_variables_of_others_are_left_alone(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kubernetes sets MESH_PEER_PORT for a service called mesh-peer."""
    monkeypatch.setenv("MESH_PEER_PORT", "tcp://10.0.0.1:7101")
    monkeypatch.setenv("MESH_BENCH__ROUNDS", "3")
    assert load_settings(write(GOOD)).peer.name


SIZE = "is not a size; write a number with a unit, such as 100GiB"
DURATION = "is not a duration; write a number with a unit, such as 500ms or 60s"
NAME = "is not a name; write 1 to 63 of a-z, 0-9 and -, and no - in front"
TABLE = "is not a table; write its keys under a [section] of their own"
BLOCK = "is not a power of two from 64KiB to 64MiB; write one such as 4MiB"
URL = (
    "is not a URL of an under-store; "
    "write file:///path, s3://bucket/prefix or another one of docs/understores.md"
)
S3_URL = "is not a URL of an under-store; write one such as s3://bucket/prefix"
MOUNT = (
    "is not an absolute, normalized path; "
    'write it from / on, without ".." or a / at the end, such as "/datasets"'
)
TLS = (
    "is reached from other hosts without TLS; "
    "set security.ca, certificate and key, or security.insecure = true"
)


ADDRESS = "is not host:port; write an address such as 127.0.0.1:7101"
PORT = "has a port outside 1..65535; write a port of that range"
ABSOLUTE = "is not an absolute path; write the path from / on"
SMALL = "is less than 64MiB; write at least 64MiB"
HUGE = "is more than a file system can hold; write less than 8388608TiB"
RATIO = "is not a number from 0 to 0.9; write one of that range"
WHOLE = "is not a whole number from 1 to 256; write one of that range"
REQUEST = "is not a power of two from 64KiB to 1GiB; write one such as 4MiB"
MAX_AGE = 'is not a duration; write one such as 60s, 0 or "immutable"'
NO_TIME = "leaves no time at all; write more than 0, such as 30s"
BOOLEAN = "is neither true nor false; write true or false, without quotes"
GHOST = "is not in cluster.peers; write one of one, two, or add this peer there"
LONG = "bytes, and a Unix socket's path at most 100"
PEM = "is not a file; write the path of a PEM file that exists"
LEVEL = "is not known; write 'debug', 'info', 'warning' or 'error'"
SECTIONS = "write one of cluster, peer, store, mounts, fuse, security, log"
DID_YOU_MEAN = "unknown key; did you mean capacity?"
STORE_KEYS = "write one of directory, capacity, free_space_ratio, staging, upload_limit"


@pytest.mark.parametrize(
    ("section", "key", "value", "message"),
    [
        ("store", "capacity", '"lots"', SIZE),
        ("store", "capacity", "true", SIZE),
        ("store", "capacity", "1.5", SIZE),
        ("store", "capacity", '"1MiB"', SMALL),
        ("store", "directory", '"mesh"', ABSOLUTE),
        ("store", "directory", "5", "is not text; write the path in quotes"),
        ("store", "free_space_ratio", "0.95", RATIO),
        ("store", "free_space_ratio", "nan", RATIO),
        ("cluster", "name", '"Demo"', NAME),
        ("cluster", "name", '"demo\\n"', NAME),
        ("cluster", "name", "5", "is not text; write it in quotes"),
        ("peer", "name", '"tow"', GHOST),
        ("peer", "listen", '"7101"', ADDRESS),
        ("peer", "listen", '""', ADDRESS),
        ("peer", "listen", '"0.0.0.0:7101"', TLS),
        ("peer", "metrics", '"127.0.0.1:70000"', PORT),
        ("peer", "socket", f'"/{"x" * 100}"', f"has 101 {LONG}; write a shorter path"),
        ("peer", "memory", '"1MiB"', SMALL),
        ("peer", "bulk", '"often"', BULK),
        ("peer", "bulk", "70000", BULK),
        ("peer", "bulk", "true", BULK),
        ("peer", "check_under_stores", '"maybe"', BOOLEAN),
        ('mounts."/"', "url", '"/data"', URL),
        ('mounts."/"', "block", '"3MiB"', BLOCK),
        ('mounts."/"', "block", '"32KiB"', BLOCK),
        ('mounts."/"', "block", "0", BLOCK),
        ('mounts."/"', "request", '"5MiB"', REQUEST),
        ('mounts."/"', "max_age", '"never"', MAX_AGE),
        ('mounts."/"', "concurrency", "16.5", WHOLE),
        ('mounts."/"', "concurrency", "true", WHOLE),
        ('mounts."/"', "timeout", "0", NO_TIME),
        ("fuse", "attr_cache", '"immutable"', DURATION),
        ("fuse", "read_ahead", "-1", SIZE),
        ("security", "ca", '"/no/such.pem"', PEM),
        ("security", "ca", "0", "is not text; write the path in quotes"),
        ("log", "level", '"loud"', LEVEL),
    ],
)
def test_a_bad_value_is_one_line(
    write: Write, section: str, key: str, value: str, message: str
) -> None:
    text = with_line(f"[{section}]", f"{key} = {value}")
    assert mistakes(write(text)) == [f"{section}.{key}: {value} {message}"]


@pytest.mark.parametrize(("value", "port"), [('"any"', 0), ('"off"', None), ("7103", 7103)])
def test_the_bulk_channel_has_a_port_any_or_none(
    write: Write, value: str, port: int | None
) -> None:
    settings = load_settings(write(with_line("[peer]", f"bulk = {value}")))
    assert settings.peer.bulk == port
    assert f"bulk = {value}" in render_toml(settings)


@pytest.mark.parametrize(
    ("section", "line", "expected"),
    [
        ("[store]", "capacity = [1]", f"store.capacity: {SIZE}"),
        ("[store]", f"capacity = 0x{'f' * 5000}", f"store.capacity: {HUGE}"),
        ("[store]", "capacty = 1", f"store.capacty: {DID_YOU_MEAN}"),
        ("[store]", '"a\\nb" = 1', f'store."a\\nb": unknown key; {STORE_KEYS}'),
        (
            "[store]",
            f'directory = "/{"é" * 50}"',
            f'peer.socket: "/{"é" * 50}/peer.sock" has 111 {LONG}; '
            "set it, or shorten store.directory",
        ),
        (
            '[mounts."/"]',
            f'url = "s3://user:{CANARY}@bucket?token={CANARY}"',
            f'mounts."/".url: "s3://**********@bucket?**********" {S3_URL}',
        ),
        ('[mounts."/"]', f's3 = "{CANARY}"', f'mounts."/".s3: {TABLE}'),
        ('[mounts."/data/"]', 'url = "file:///d"', f'mounts."/data/": "/data/" {MOUNT}'),
        ("[mounts.data]", 'url = "file:///d"', f'mounts.data: "data" {MOUNT}'),
        ('[mounts."/a"]', "block = 65536", 'mounts."/a".url: missing; add url = "file:///data"'),
        (
            '[mounts."/".s3]',
            'region = "here"',
            'mounts."/".s3: set for a url that is not s3://; remove this section',
        ),
        ("[stoer]", f'secret = "{CANARY}"', "stoer: unknown section; did you mean store?"),
        ("[_env_file]", "x = 1", f"_env_file: unknown section; {SECTIONS}"),
    ],
)
def test_each_mistake_is_one_line(write: Write, section: str, line: str, expected: str) -> None:
    assert mistakes(write(with_line(section, line))) == [expected]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "",
            [
                "cluster: missing; add a [cluster] section",
                "peer: missing; add a [peer] section",
                "store: missing; add a [store] section",
                'mounts: missing; add a [mounts."/"] section',
            ],
        ),
        (
            GOOD.replace('directory = "/var/lib/mesh"', ""),
            ['store.directory: missing; add directory = "/var/lib/mesh"'],
        ),
        (
            GOOD.replace('[mounts."/"]\nurl = "file:///data"', "[mounts]"),
            ['mounts: empty; add a [mounts."/"] section'],
        ),
        (
            GOOD.replace('address = "127.0.0.1:7102"\n', "weight = 5\n"),
            [
                'cluster.peers[1].address: missing; add address = "127.0.0.1:7101"',
                "cluster.peers[1].weight: 5 is not a number from 0.25 to 4; "
                "write one of that range",
            ],
        ),
        (
            GOOD.replace('"two"', '"one"').replace("7102", "7101"),
            [
                'cluster.peers[1].name: "one" is the name of an earlier peer; '
                "give every peer its own name",
                'cluster.peers[1].address: "127.0.0.1:7101" is the address of an earlier peer; '
                "give every peer its own address",
            ],
        ),
        (
            'store = "x"\n' + GOOD.replace('[store]\ndirectory = "/var/lib/mesh"\n', ""),
            [f"store: {TABLE}"],
        ),
        (BEYOND, [f'cluster.peers[1].address: "10.0.0.2:7102" {TLS}']),
        (
            S3 + f'access_key = "{CANARY}"\n',
            ['mounts."/".s3.secret_key: missing beside access_key; set both or neither'],
        ),
        (
            S3 + f'secret_key = "{CANARY}"\nanonymous = true\n',
            [
                'mounts."/".s3.access_key: missing beside secret_key; set both or neither',
                'mounts."/".s3.anonymous: set beside keys; remove the keys, or this',
            ],
        ),
        (
            S3 + f'session_token = "{CANARY}"\n',
            [
                'mounts."/".s3.session_token: set without the keys it belongs to; '
                "set access_key and secret_key too"
            ],
        ),
        (
            S3 + f'secret_key = ["{CANARY}"]\nsecret_kye = "{CANARY}"\n',
            [
                'mounts."/".s3.secret_key: is not text; write it in quotes',
                'mounts."/".s3.secret_kye: unknown key; did you mean secret_key?',
            ],
        ),
        (
            S3 + f'endpoint = "http://user:{CANARY}@host:80"\nsecret_key = 5\n',
            [
                'mounts."/".s3.endpoint: "http://**********@host:80" is not an HTTP URL; '
                "write one such as http://127.0.0.1:8333",
                'mounts."/".s3.secret_key: is not text; write it in quotes',
            ],
        ),
        # Keys of sound sections are compared although another section is broken.
        (
            GOOD.replace('[peer]\nname = "one"', '[peer]\nname = "ghost"')
            + 'block = "3MiB"\n[log]\nlevle = "info"\n[caches]\n',
            [
                f"caches: unknown section; {SECTIONS}",
                f'mounts."/".block: "3MiB" {BLOCK}',
                "log.levle: unknown key; did you mean level?",
                f'peer.name: "ghost" {GHOST}',
            ],
        ),
    ],
)
def test_every_mistake_is_said_at_once(write: Write, text: str, expected: list[str]) -> None:
    lines = mistakes(write(text))
    assert lines == expected
    assert CANARY not in "".join(lines)


@pytest.mark.parametrize(
    ("variable", "value", "expected"),
    [
        ("MESH_STORE__CAPACITY", "lots", f'MESH_STORE__CAPACITY: "lots" {SIZE}'),
        ("MESH_STORE__CAPACTY", CANARY, f"MESH_STORE__CAPACTY: {DID_YOU_MEAN}"),
        ("MESH_PEER__NAME", "ghost", f'MESH_PEER__NAME: "ghost" {GHOST}'),
        (
            "MESH_CLUSTER__PEERS",
            '[{"name": "one", "address": "127.0.0.1:1"}, {"name": "B", "address": "127.0.0.1:2"}]',
            f'MESH_CLUSTER__PEERS[1].name: "B" {NAME}',
        ),
        (
            "MESH_CLUSTER__PEERS",
            "[{",
            'MESH_CLUSTER__PEERS: "[{" is not a list of tables; '
            "write [[cluster.peers]] for each peer",
        ),
        ("MESH_MOUNTS", f"{{{CANARY}", f"MESH_MOUNTS: {TABLE}"),
        (
            "MESH_CLUSTER__PEERS",
            '[{"name": "one", "address": "127.0.0.1:1", "zone": "\\ud800"}]',
            'MESH_CLUSTER__PEERS[0].zone: "\\ud800" has unprintable characters; leave them out',
        ),
    ],
)
def test_a_mistake_in_a_variable_names_it(
    write: Write, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, expected: str
) -> None:
    monkeypatch.setenv(variable, value)
    assert mistakes(write(GOOD)) == [expected]


def test_three_files_of_tls_or_none(write: Write, tmp_path: Path) -> None:
    pem = tmp_path / "ca.pem"
    pem.write_text("pem")
    lines = mistakes(write(f'{BEYOND}[security]\nca = "{pem}"\nkey = "{pem}"\n'))
    assert lines == ["security.certificate: missing; set all three files, or none"]

    complete = f'{BEYOND}[security]\nca = "{pem}"\ncertificate = "{pem}"\nkey = "{pem}"\n'
    assert load_settings(write(complete)).security.ca == pem
    load_settings(write(f"{BEYOND}[security]\ninsecure = true\n"))


def test_files_that_cannot_be_read(write: Write, tmp_path: Path) -> None:
    missing = tmp_path / "none.toml"
    assert mistakes(missing) == [
        f"{missing}: there is no such file; write one, or name another one"
    ]
    assert mistakes(tmp_path) == [
        f"{tmp_path}: cannot be read: is a directory; name a file that can be"
    ]
    path = write("[store]\n\ncapacity 5\n")
    assert mistakes(path) == [
        f"{path}: is not TOML: Expected '=' after a key in a key/value pair "
        "(at line 3, column 10); mend it there"
    ]
    path.write_bytes(b"\xff")
    assert mistakes(path) == [f"{path}: is not UTF-8; save it as UTF-8"]
    assert "line 2, the end" in mistakes(write('[store]\ncapacity = "5'))[0]
    assert len(mistakes(write("x = " + "[" * 100_000))) == 1


FULL = (
    S3
    + f"""\
endpoint = "http://127.0.0.1:8333"
access_key = "{CANARY}"
secret_key = "{CANARY}"
session_token = "{CANARY}"
[mounts."/data sets/\\"x\\""]
url = "file:///data/é"
max_age = "immutable"
block = "64KiB"
timeout = "1500ms"
[fuse]
buffer = "100MB"
attr_cache = 0.25
[log]
level = "debug"
"""
)


def test_what_is_rendered_loads_as_the_same(write: Write) -> None:
    settings = load_settings(write(FULL))
    text = render_toml(settings)
    again = load_settings(write(text))

    keys = ("access_key", "secret_key", "session_token")
    stars = dict.fromkeys(keys, SecretStr("**********"))
    for path, mount in settings.mounts.items():
        s3 = mount.s3.model_copy(update=stars) if mount.url.startswith("s3:") else mount.s3
        assert again.mounts[path] == mount.model_copy(update={"s3": s3})
    assert render_toml(again) == text
    assert again.model_copy(update={"mounts": settings.mounts}) == settings


def test_what_is_rendered_is_in_human_units(write: Write) -> None:
    lines = render_toml(load_settings(write(FULL))).splitlines()

    for line in (
        "[[cluster.peers]]",
        'capacity = "100GiB"',
        'max_age = "1m"',
        'max_age = "immutable"',
        'timeout = "1.5s"',
        'buffer = "100MB"',
        'attr_cache = "250ms"',
        'socket = "/var/lib/mesh/peer.sock"',
        '[mounts."/data sets/\\"x\\""]',
        'secret_key = "**********"',
    ):
        assert line in lines


def test_secrets_stay_secret(write: Write) -> None:
    settings: Settings = load_settings(write(FULL))

    assert settings.mounts["/"].s3.secret_key.get_secret_value() == CANARY
    assert CANARY not in render_toml(settings) + repr(settings) + str(settings)


def test_secrets_stay_secret_when_something_else_is_wrong(write: Write) -> None:
    with pytest.raises(ConfigErrors) as caught:
        load_settings(write(FULL + "[stor]\n[store2]\n" + "[peer.x]\n"))
    assert CANARY not in str(caught.value) + repr(caught.value) + repr(caught.value.mistakes)
    assert caught.value.__context__ is None or CANARY not in str(caught.value.__context__)


def test_check_prints_the_settings(write: Write) -> None:
    path = write(FULL)
    result = CliRunner().invoke(app, ["check", "--config", str(path)])
    assert result.exit_code == 0
    assert result.stdout == render_toml(load_settings(path))
    assert result.stderr == ""


def test_check_prints_each_mistake_on_a_line(write: Write) -> None:
    path = write(BEYOND + "[log]\nlevle = 1\n")
    result = CliRunner().invoke(app, ["check", "--config", str(path)])
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.splitlines() == [
        "log.levle: unknown key; did you mean level?",
        f'cluster.peers[1].address: "10.0.0.2:7102" {TLS}',
    ]
