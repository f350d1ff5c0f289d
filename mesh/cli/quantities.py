"""The words that people write: sizes and durations, names, addresses and places.

    "4MiB" "100GiB" "512k" 4096   <->  bytes, an int
    "500ms" "60s" "2m" "1h" 60    <->  seconds, a float

One letter is a binary unit, as JuiceFS has it: 512k is 512 KiB. Two letters are
a decimal unit: 512kB is 512,000 bytes. Capitals do not matter. What is formatted
here is parsed to exactly the same number.

Pure, but for `check_pem`, which looks whether the file is there. Imports nothing from mesh.
"""

from __future__ import annotations

import ipaddress
import json
import math
import posixpath
import re
from collections.abc import Callable, Iterator, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

KIB, MIB, GIB, TIB = 1024, 1024**2, 1024**3, 1024**4

# Where something stands in the configuration: ("cluster", "peers", 0, "name").
Location = tuple[int | str, ...]

_BINARY = {"KiB": KIB, "MiB": MIB, "GiB": GIB, "TiB": TIB}
_DECIMAL = {"kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_FORMATTED = {"B": 1, **_BINARY, **_DECIMAL}
_BYTES = {
    "": 1,
    **{unit.lower(): size_bytes for unit, size_bytes in _FORMATTED.items()},
    **{unit[0].lower(): size_bytes for unit, size_bytes in _BINARY.items()},
}
_SECONDS = {
    "ms": Decimal("0.001"),
    "": Decimal(1),
    "s": Decimal(1),
    "m": Decimal(60),
    "h": Decimal(3600),
}

# The largest offset of a file that Linux knows.
_SIZE_BYTES_MAX = 2**63 - 1

# 31 years: whoever wants more wants no limit.
_DURATION_S_MAX = 10**9

# 340 places hold the smallest float, 4.9406564584124654e-324, as 17 digits of milliseconds.
_WRITTEN = re.compile(r"([0-9]{1,20}(?:\.[0-9]{1,340})?) ?([a-z]*)", re.IGNORECASE)


_BUCKET = r"[a-z0-9][a-z0-9._-]{1,61}[a-z0-9]"
_HOST_AND_PORT = r"[A-Za-z0-9_]([A-Za-z0-9_.-]{0,252})(:[0-9]{1,5})?"
_CONTAINER = r"[$a-z0-9][a-z0-9-]{1,61}[a-z0-9](@[a-z0-9]{3,24}\.dfs\.core\.[a-z.-]+)?"

# What stands between :// and the path, by scheme, and an example.
_PLACES = {
    "file": (r"", "file:///path"),
    "s3": (r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]", "s3://bucket/prefix"),
    "hdfs": (_HOST_AND_PORT, "hdfs://host:8020/path"),
    "gs": (_BUCKET, "gs://bucket/prefix"),
    "abfs": (_CONTAINER, "abfs://container/prefix"),
    "abfss": (_CONTAINER, "abfss://container@account.dfs.core.windows.net/prefix"),
    "fsspec": (r"[^\s#]*", "fsspec+sftp://host/path"),
}


class BrokenRule(ValueError):
    """Something that a person wrote breaks a rule; says which one and what to write."""

    def __init__(self, rule: str, mend: str) -> None:
        super().__init__(f"{rule}; {mend}")
        self.rule = rule
        """Goes after the value: "is not a size"."""
        self.mend = mend
        """What to do about it: "write a number with a unit, such as 100GiB"."""


def parse_size(written: object) -> int:
    """Return the bytes that *written*, a text or a whole number, stands for.

    Raises `BrokenRule` when it is no size, no whole number of bytes or over 2^63-1.
    """
    size_bytes = _read(written, _BYTES) if not isinstance(written, float) else None
    if size_bytes is None:
        raise BrokenRule("is not a size", "write a number with a unit, such as 100GiB")
    if size_bytes != size_bytes.to_integral_value():
        raise BrokenRule("is not a whole number of bytes", "write a smaller unit, such as 512KiB")
    if size_bytes > _SIZE_BYTES_MAX:
        raise BrokenRule("is more than a file system can hold", "write less than 8388608TiB")
    return int(size_bytes)


def format_size(size_bytes: int) -> str:
    """Return *size_bytes* in the unit that needs the smallest whole number: "4MiB", "100GB"."""
    if size_bytes == 0:
        return "0B"
    counts = {u: size_bytes // unit for u, unit in _FORMATTED.items() if size_bytes % unit == 0}
    unit = min(counts, key=lambda unit: counts[unit])
    return f"{counts[unit]}{unit}"


def parse_seconds(written: object) -> float:
    """Return the seconds that *written*, a text or a number, stands for.

    Raises `BrokenRule` when it is no duration, which a negative one is not either.
    """
    duration_s = _read(written, _SECONDS)
    if duration_s is None:
        raise BrokenRule("is not a duration", "write a number with a unit, such as 500ms or 60s")
    if duration_s > _DURATION_S_MAX:
        raise BrokenRule("is longer than 31 years", "write less than 277777h")
    return float(duration_s)


def format_seconds(duration_s: float) -> str:
    """Return *duration_s* in the largest unit that leaves a whole number: "500ms", "2m", "90s"."""
    exact_s = Decimal(repr(float(duration_s)))
    if exact_s == 0:
        return "0s"
    for unit in ("h", "m", "s"):
        if exact_s % _SECONDS[unit] == 0:
            return f"{exact_s / _SECONDS[unit]:.0f}{unit}"
    if exact_s > 1:
        return f"{exact_s:f}s"
    return f"{(exact_s / _SECONDS['ms']).normalize():f}ms"


def parse_max_age(written: object) -> float:
    """Return the seconds of *written*, inf for "immutable"; raises `BrokenRule`."""
    if written == "immutable" or written == math.inf:
        return math.inf
    try:
        return parse_seconds(written)
    except BrokenRule as broken:
        raise BrokenRule(broken.rule, 'write one such as 60s, 0 or "immutable"') from None


def format_max_age(max_age_s: float) -> str:
    """Return what `parse_max_age` takes for *max_age_s*."""
    return "immutable" if max_age_s == math.inf else format_seconds(max_age_s)


def more_than_nothing(duration_s: float) -> float:
    """Return *duration_s*; raises `BrokenRule` when it is 0."""
    if duration_s <= 0:
        raise BrokenRule("leaves no time at all", "write more than 0, such as 30s")
    return duration_s


def at_least(least_bytes: int) -> Callable[[int], int]:
    """Return a check for sizes from *least_bytes* on."""

    def check(size_bytes: int) -> int:
        if size_bytes < least_bytes:
            least = format_size(least_bytes)
            raise BrokenRule(f"is less than {least}", f"write at least {least}")
        return size_bytes

    return check


def power_of_two(least_bytes: int, most_bytes: int) -> Callable[[int], int]:
    """Return a check for powers of two of that range."""

    def check(size_bytes: int) -> int:
        if size_bytes.bit_count() != 1 or not least_bytes <= size_bytes <= most_bytes:
            least, most = format_size(least_bytes), format_size(most_bytes)
            rule = f"is not a power of two from {least} to {most}"
            raise BrokenRule(rule, "write one such as 4MiB")
        return size_bytes

    return check


def number(least: float, most: float) -> Callable[[object], float]:
    """Return a check for numbers of that range, both ends included."""

    def check(written: object) -> float:
        if least <= (number := _float(written)) <= most:
            return number
        raise BrokenRule(f"is not a number from {least:g} to {most:g}", "write one of that range")

    return check


def whole_number(least: int, most: int) -> Callable[[object], int]:
    """Return a check for whole numbers of that range, both ends included."""

    def check(written: object) -> int:
        number = _float(written)
        if least <= number <= most and number.is_integer():
            return int(number)
        raise BrokenRule(f"is not a whole number from {least} to {most}", "write one of that range")

    return check


def split_address(address: str) -> tuple[str, int]:
    """Return host and port of "host:port" or "[::1]:port"; raises `BrokenRule`."""
    host, _, port = address.rpartition(":")
    if not re.fullmatch(r"[0-9]{1,5}", port) or not _is_host(host):
        raise BrokenRule("is not host:port", "write an address such as 127.0.0.1:7101")
    if not 1 <= int(port) <= 65535:
        raise BrokenRule("has a port outside 1..65535", "write a port of that range")
    return host.strip("[]"), int(port)


def is_loopback(address: str) -> bool:
    """Return whether only this host can reach *address*, a host:port."""
    host, _ = split_address(address)
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def is_wildcard(address: str) -> bool:
    """Return whether *address* means every address of this host."""
    return split_address(address)[0] in ("0.0.0.0", "::")  # noqa: S104


def check_name(written: str) -> str:
    """Return *written*, the name of a cluster or a peer; raises `BrokenRule`."""
    if not re.fullmatch(r"[a-z0-9][a-z0-9-]{0,62}", written):
        raise BrokenRule("is not a name", "write 1 to 63 of a-z, 0-9 and -, and no - in front")
    return written


def check_mount_path(written: str) -> str:
    """Return *written*, a path such as "/" or "/datasets"; raises `BrokenRule`."""
    if not _is_normalized(written):
        mend = 'write it from / on, without ".." or a / at the end, such as "/datasets"'
        raise BrokenRule("is not an absolute, normalized path", mend)
    return written


def check_url(written: str) -> str:
    """Return *written* without a slash at its end, so that equal places have equal names.

    Raises `BrokenRule` when it is no place that there is an under-store for.
    """
    scheme, _, place = written.partition("://")
    place = place.rstrip("/") or ("/" if place.startswith("/") else "")
    kind = "fsspec" if scheme.startswith("fsspec+") else scheme
    if kind not in _PLACES:
        mend = "write file:///path, s3://bucket/prefix or another one of docs/understores.md"
        raise BrokenRule("is not a URL of an under-store", mend)
    form, example = _PLACES[kind]
    if kind == "fsspec" and re.search(r":[^/@]*@|\?", place):
        mend = "write it as a key of the mount's fsspec section"
        raise BrokenRule("may have a secret in it", mend)
    named, _, path = place.partition("/")
    is_named = re.fullmatch(form, named) and re.fullmatch(r"[a-z0-9+.-]+", scheme)
    is_clean = place.isprintable() and (not path or _is_normalized(f"/{path}"))
    if is_named and is_clean and (place or kind == "fsspec"):
        return f"{scheme}://{place}"
    raise BrokenRule("is not a URL of an under-store", f"write one such as {example}")


def check_endpoint(written: str) -> str:
    """Return *written*, an HTTP URL without a user in it, or empty; raises `BrokenRule`."""
    if written and not re.fullmatch(r"https?://[^/@\s?#]+(/[^@\s?#]*)?", written):
        raise BrokenRule("is not an HTTP URL", "write one such as http://127.0.0.1:8333")
    return written


def parse_mode(written: object) -> int:
    """Return the permission bits that *written*, octal text, stands for."""
    if not isinstance(written, str) or not re.fullmatch(r"(0o?)?[0-7]{1,3}", written):
        raise BrokenRule("is not an octal mode", 'write one in quotes, such as "0644"')
    return int(written, 8)


def format_mode(mode: int) -> str:
    """Return what `parse_mode` takes for *mode*."""
    return f"{mode:04o}"


def parse_id(written: object) -> int | None:
    """Return the uid or gid that *written* stands for, None for empty."""
    if written is None or written == "":
        return None
    number = _float(written)
    if isinstance(written, float) or not (0 <= number < 2**32 - 1 and number.is_integer()):
        raise BrokenRule("is not a number of a user or group", "write one such as 1000")
    return int(number)


def check_option(written: object) -> object:
    """Return *written*, a value for somebody else's library; raises `BrokenRule`."""
    if isinstance(written, bool | int | float | str):
        return written
    raise BrokenRule("is not a plain value", "write a text, a number, true or false")


def check_absolute_or_empty(written: str) -> str:
    """Return *written*, a path from / on, or empty; raises `BrokenRule`."""
    return str(check_absolute(Path(written))) if written else ""


def check_text(written: str) -> str:
    """Return *written*, free text on one line; raises `BrokenRule`."""
    if not written.isprintable():
        raise BrokenRule("has unprintable characters", "leave them out")
    return written


def check_address(written: str) -> str:
    """Return *written*, a host:port; raises `BrokenRule`."""
    split_address(written)
    return written


def check_address_or_off(written: str) -> str:
    """Return *written*, a host:port or empty; raises `BrokenRule`."""
    return check_address(written) if written else ""


def port_or_word(written: object) -> int | None:
    """Return a TCP port, 0 for "any" free one and None for "off"; raises `BrokenRule`."""
    if written in ("any", "off"):
        return 0 if written == "any" else None
    is_port = isinstance(written, int) and not isinstance(written, bool)
    if is_port and 0 < int(str(written)) < 65536:
        return int(str(written))
    raise BrokenRule("is no port", 'write one from 1 to 65535, "any" or "off"')


def port_word(port: int | None) -> int | str:
    """Return what `port_or_word` reads."""
    return "off" if port is None else port or "any"


def check_absolute(written: Path) -> Path:
    """Return *written*, a path from / on; raises `BrokenRule`."""
    if not written.is_absolute() or not str(written).isprintable():
        raise BrokenRule("is not an absolute path", "write the path from / on")
    return written


def check_pem(written: object) -> object:
    """Return *written*, the path of a file, or None for empty; raises `BrokenRule`."""
    try:
        is_file = not isinstance(written, str) or not written or Path(written).is_file()
    except OSError:  # such as a directory on the way that may not be looked into
        is_file = False
    if not is_file:
        raise BrokenRule("is not a file", "write the path of a PEM file that exists")
    return None if written == "" else written


def shown(value: object) -> str:
    """Return *value* as a mistake may repeat it; empty when it is no plain value or a huge one."""
    if isinstance(value, str):
        text = _without_secrets(value)
        return toml_value(text if len(text) <= 200 else f"{text[:200]}...")
    # Python refuses to spell integers of thousands of digits.
    is_short = isinstance(value, int) and value.bit_length() <= 64
    return toml_value(value) if is_short or isinstance(value, float) else ""


def spelled(at: Location) -> str:
    """Return *at* as TOML spells it below a section: .peers[0].name, ."/".url."""
    keys = [
        f"[{part}]" if isinstance(part, int) else f".{part if _is_bare(part) else toml_value(part)}"
        for part in at
    ]
    return "".join(keys)


def toml_value(value: object) -> str:
    """Return *value* as TOML has it, on one line of printable text."""
    text = repr(value) if isinstance(value, float) else json.dumps(value, ensure_ascii=False)
    return "".join(c if c.isprintable() else _escaped(c) for c in text)


def toml_tables(table: Mapping[str, Any], at: Location = ()) -> Iterator[list[str]]:
    """Yield the lines of *table* and of every table below it, those of lists included."""
    plain = {key: value for key, value in table.items() if _is_plain(value)}
    lines = [f"{spelled((key,))[1:]} = {toml_value(value)}" for key, value in plain.items()]
    if at and lines:
        yield [f"[{spelled(at)[1:]}]", *lines]
    for key, value in table.items():
        if isinstance(value, dict):
            yield from toml_tables(value, (*at, key))
        elif not _is_plain(value):
            for item in value:
                first, *rest = next(toml_tables(item, (*at, key)))
                yield [f"[{first}]", *rest]


def _read(written: object, units: dict[str, int] | dict[str, Decimal]) -> Decimal | None:
    """Return the number that *written* stands for, or None when it cannot be read."""
    if isinstance(written, bool) or not isinstance(written, str | int | float):
        return None
    if isinstance(written, int):
        return Decimal(written) if written >= 0 else None
    if isinstance(written, float):
        return Decimal(repr(written)) if 0 <= written < math.inf else None
    parts = _WRITTEN.fullmatch(written.strip())
    if parts is None or parts[2].lower() not in units:
        return None
    return Decimal(parts[1]) * units[parts[2].lower()]


def _is_host(host: str) -> bool:
    if host.startswith("[") or re.fullmatch(r"[0-9.]+", host):
        version = 6 if host.startswith("[") else 4
        try:
            return ipaddress.ip_address(host.strip("[]")).version == version
        except ValueError:
            return False
    return re.fullmatch(r"[A-Za-z0-9_]([A-Za-z0-9_.-]{0,252})", host) is not None


def _is_normalized(path: str) -> bool:
    clean = path.startswith("/") and not path.startswith("//") and path.isprintable()
    return clean and posixpath.normpath(path) == path


def _is_plain(value: object) -> bool:
    """Whether it goes on one line: no table, and no list of tables."""
    if isinstance(value, list):
        return not any(isinstance(item, dict) for item in value)
    return not isinstance(value, dict)


def _without_secrets(written: str) -> str:
    """Return *written* without the user, password and query that a URL may hold."""
    written = re.sub(r"^([a-z0-9]*://)?.*@", r"\1**********@", written, flags=re.DOTALL)
    return re.sub(r"(://.*?\?).*", r"\1**********", written, flags=re.DOTALL)


def _is_bare(key: str) -> bool:
    return re.fullmatch(r"[A-Za-z0-9_-]+", key) is not None


def _escaped(character: str) -> str:
    code = ord(character)
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _float(written: object) -> float:
    """Return the number that *written* stands for, nan when it is none."""
    try:
        return math.nan if isinstance(written, bool) else float(str(written))
    except ValueError:
        return math.nan
