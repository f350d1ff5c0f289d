"""What people write for sizes, durations and addresses, and what it stands for."""

from __future__ import annotations

import math
import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.cli.quantities import (
    GIB,
    KIB,
    MIB,
    TIB,
    BrokenRule,
    check_url,
    format_max_age,
    format_mode,
    format_seconds,
    format_size,
    is_loopback,
    parse_id,
    parse_max_age,
    parse_mode,
    parse_seconds,
    parse_size,
    shown,
    split_address,
    toml_value,
)


@pytest.mark.parametrize(
    ("written", "size_bytes"),
    [
        (4096, 4096),
        ("4096", 4096),
        ("0", 0),
        ("7B", 7),
        ("4KiB", 4 * KIB),
        ("4MiB", 4 * MIB),
        ("100GiB", 100 * GIB),
        ("2TiB", 2 * TIB),
        ("512k", 512 * KIB),
        ("512K", 512 * KIB),
        ("1m", MIB),
        ("1G", GIB),
        ("1t", TIB),
        ("512kB", 512_000),
        ("3mb", 3_000_000),
        ("100GB", 100 * 10**9),
        ("1TB", 10**12),
        ("1.5GiB", 3 * GIB // 2),
        (" 4 MiB ", 4 * MIB),
    ],
)
def test_sizes(written: object, size_bytes: int) -> None:
    assert parse_size(written) == size_bytes


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("lots", "is not a size; write a number with a unit, such as 100GiB"),
        ("", "is not a size; write a number with a unit, such as 100GiB"),
        (-1, "is not a size; write a number with a unit, such as 100GiB"),
        ("-1k", "is not a size; write a number with a unit, such as 100GiB"),
        (True, "is not a size; write a number with a unit, such as 100GiB"),
        (1.5, "is not a size; write a number with a unit, such as 100GiB"),
        (None, "is not a size; write a number with a unit, such as 100GiB"),
        ("٤MiB", "is not a size; write a number with a unit, such as 100GiB"),
        ("4 MiBs", "is not a size; write a number with a unit, such as 100GiB"),
        ("0.5", "is not a whole number of bytes; write a smaller unit, such as 512KiB"),
        ("9000000TiB", "is more than a file system can hold; write less than 8388608TiB"),
        (10**4000, "is more than a file system can hold; write less than 8388608TiB"),
    ],
)
def test_what_is_no_size_says_why(written: object, message: str) -> None:
    with pytest.raises(BrokenRule) as caught:
        parse_size(written)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("written", "duration_s"),
    [
        ("500ms", 0.5),
        ("60s", 60),
        ("2m", 120),
        ("1h", 3600),
        ("1.5h", 5400),
        ("0", 0),
        ("0.25", 0.25),
        (60, 60),
        (0.1, 0.1),
    ],
)
def test_durations(written: object, duration_s: float) -> None:
    assert parse_seconds(written) == duration_s


@pytest.mark.parametrize("written", ["soon", "", "-1s", -1, True, math.inf, math.nan, "1d", [1]])
def test_what_is_no_duration_says_why(written: object) -> None:
    message = "^is not a duration; write a number with a unit, such as 500ms or 60s$"
    with pytest.raises(BrokenRule, match=message):
        parse_seconds(written)


@pytest.mark.parametrize(
    "written", ["99999999999999999999h", 1e300, 10**4000], ids=["text", "float", "int"]
)
def test_endless_durations_are_refused_and_not_an_overflow(written: object) -> None:
    with pytest.raises(BrokenRule, match=r"^is longer than 31 years; write less than 277777h$"):
        parse_seconds(written)


def test_formats_are_those_that_people_would_have_written() -> None:
    sizes = (0, 1, 1000, 1024, 4 * MIB, 100 * GIB, 100 * 10**9, 3 * GIB // 2)
    assert [format_size(size_bytes) for size_bytes in sizes] == [
        *("0B", "1B", "1kB", "1KiB", "4MiB", "100GiB", "100GB", "1536MiB")
    ]
    durations = (0.0, 0.5, 0.0015, 1.0, 1.5, 60.0, 90.0, 3600.0)
    assert [format_seconds(duration_s) for duration_s in durations] == [
        *("0s", "500ms", "1.5ms", "1s", "1.5s", "1m", "90s", "1h")
    ]


@given(st.integers(0, 2**63 - 1))
def test_any_size_survives_being_written(size_bytes: int) -> None:
    assert parse_size(format_size(size_bytes)) == size_bytes


@given(st.integers(0, 2000), st.sampled_from(["B", "KiB", "MiB", "GiB", "kB", "MB", "GB", "TB"]))
def test_any_written_size_survives_being_read(count: int, unit: str) -> None:
    size_bytes = parse_size(f"{count}{unit}")
    assert parse_size(format_size(size_bytes)) == size_bytes


@given(st.floats(0, 10**9))
def test_any_duration_survives_being_written(duration_s: float) -> None:
    assert parse_seconds(format_seconds(duration_s)) == duration_s


@given(st.floats(0, 10**9) | st.just(math.inf))
def test_any_max_age_survives_being_written(max_age_s: float) -> None:
    assert parse_max_age(format_max_age(max_age_s)) == max_age_s


def test_immutable_never_asks_again() -> None:
    assert parse_max_age("immutable") == math.inf


def test_addresses() -> None:
    assert split_address("node-1.example.org:7101") == ("node-1.example.org", 7101)
    assert split_address("[::1]:7101") == ("::1", 7101)


@pytest.mark.parametrize(
    "written", ["", ":7101", "one", "one:", "one:port", "::1:7101", "300.1.1.1:1", "[1.2.3.4]:1"]
)
def test_what_is_no_address_says_why(written: str) -> None:
    with pytest.raises(BrokenRule, match=r"^is not host:port; write an address such as"):
        split_address(written)


@pytest.mark.parametrize("port", [0, 65536, 99999])
def test_ports_have_a_range(port: int) -> None:
    with pytest.raises(BrokenRule, match=r"^has a port outside 1\.\.65535; "):
        split_address(f"127.0.0.1:{port}")


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("127.0.0.1:1", True),
        ("127.8.9.1:1", True),
        ("[::1]:1", True),
        ("LocalHost:1", True),
        ("0.0.0.0:1", False),
        ("[::]:1", False),
        ("10.0.0.1:1", False),
        ("localhost.example.org:1", False),
    ],
)
def test_loopback_is_what_only_this_host_reaches(address: str, *, expected: bool) -> None:
    assert is_loopback(address) is expected


@pytest.mark.parametrize(
    ("written", "url"),
    [
        ("file:///", "file:///"),
        ("file:///data/", "file:///data"),
        ("s3://bucket", "s3://bucket"),
        ("s3://bucket/", "s3://bucket"),
        ("s3://my.bucket/a/b/", "s3://my.bucket/a/b"),
        ("hdfs://name-node:8020/data/", "hdfs://name-node:8020/data"),
        ("hdfs://nameservice", "hdfs://nameservice"),
        ("gs://my_bucket/a/", "gs://my_bucket/a"),
        ("abfs://container/a", "abfs://container/a"),
        (
            "abfss://c0ntainer@account.dfs.core.windows.net/a/",
            "abfss://c0ntainer@account.dfs.core.windows.net/a",
        ),
        ("fsspec+memory://", "fsspec+memory://"),
        ("fsspec+sftp://user@host/a/", "fsspec+sftp://user@host/a"),
    ],
)
def test_equal_places_have_equal_urls(written: str, url: str) -> None:
    assert check_url(written) == url


@pytest.mark.parametrize(
    ("written", "mend"),
    [
        ("", "file:///path, s3://bucket/prefix or another one"),
        ("/data", "file:///path, s3://bucket/prefix or another one"),
        ("ftp://host/", "file:///path, s3://bucket/prefix or another one"),
        ("file://data", "one such as file:///path"),
        ("file:///a/../b", "one such as file:///path"),
        ("s3://", "one such as s3://bucket/prefix"),
        ("s3://B", "one such as s3://bucket/prefix"),
        ("s3:///a", "one such as s3://bucket/prefix"),
        ("s3://bucket/a//b", "one such as s3://bucket/prefix"),
        ("s3://bucket/../b", "one such as s3://bucket/prefix"),
        ("hdfs:///a", "one such as hdfs://host:8020/path"),
        ("hdfs://host:port/a", "one such as hdfs://host:8020/path"),
        ("gs://B", "one such as gs://bucket/prefix"),
        ("abfs://container@elsewhere.org", "one such as abfs://container/prefix"),
    ],
)
def test_what_is_no_under_store_says_why(written: str, mend: str) -> None:
    with pytest.raises(BrokenRule, match=f"^is not a URL of an under-store; write {mend}"):
        check_url(written)


@pytest.mark.parametrize("url", ["fsspec+sftp://u:hush@host/a", "fsspec+http://host/a?key=hush"])
def test_a_secret_has_no_place_in_a_url(url: str) -> None:
    with pytest.raises(
        BrokenRule, match=r"^may have a secret in it; write it as a key of"
    ) as caught:
        check_url(url)
    assert "hush" not in str(caught.value)
    assert "hush" not in shown(url)


@pytest.mark.parametrize(("written", "mode"), [("0644", 0o644), ("22", 0o22), ("0o700", 0o700)])
def test_modes_are_octal_text(written: str, mode: int) -> None:
    assert parse_mode(written) == mode
    assert parse_mode(format_mode(mode)) == mode


@pytest.mark.parametrize("written", [644, "0888", "01777", "", "-1", "rw-r--r--", True])
def test_what_is_no_mode_says_why(written: object) -> None:
    with pytest.raises(BrokenRule, match=r"^is not an octal mode; write one in quotes"):
        parse_mode(written)


@pytest.mark.parametrize(("written", "number"), [(0, 0), ("1000", 1000), ("", None), (None, None)])
def test_users_are_numbers(written: object, number: int | None) -> None:
    assert parse_id(written) == number


@pytest.mark.parametrize("written", [-1, 2**32 - 1, "root", 1.0, True, "1.5"])
def test_what_is_no_user_says_why(written: object) -> None:
    with pytest.raises(BrokenRule, match=r"^is not a number of a user or group"):
        parse_id(written)


@given(st.text())
def test_any_text_is_one_line_of_toml(text: str) -> None:
    line = toml_value(text)
    assert line.isprintable()
    assert tomllib.loads(f"text = {line}") == {"text": text}
