"""Which keys of an object store are paths, and what one level of it looks like.

An object store has keys, and a tree of files has names: not every key is a path.
What cannot be one is left out of listings, and is not found by `stat` and `read`:

    a//b    /a      a part without a name
    a/../b  a/./b   parts that mean other places
    part > 255 B    longer than a name can be on Linux
    dir/            the mark of a directory; whatever it holds is not shown
    a  and  a/b     the object is the file `a`, and there is no directory `a`

Pure; the order of keys is that of their UTF-8 bytes, as S3, GCS and Azure list them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from heapq import merge
from typing import Generic, TypeVar

NAME_BYTES_MAX = 255
T = TypeVar("T")


def why_no_name(name: str) -> str:
    """Return why no file can have this name; "" when one can."""
    if not name:
        return "a part without a name"
    if name in (".", ".."):
        return f'a part that is "{name}"'
    if "\0" in name:
        return "a zero byte"
    if len(name.encode("utf-8", "surrogateescape")) > NAME_BYTES_MAX:
        return f"a part of more than {NAME_BYTES_MAX} bytes"
    return ""


def why_no_path(path: str) -> str:
    """Return why nothing can be at *path*; "" when something can. The root is ""."""
    reasons = (why_no_name(name) for name in path.split("/")) if path else ()
    return next(filter(None, reasons), "")


@dataclass(frozen=True, slots=True)
class Shown(Generic[T]):
    """A name in a directory."""

    name: str
    content: T | None
    """None for a directory."""


@dataclass(frozen=True, slots=True)
class Hidden:
    """A key, or all that lies below it, that is left out of a listing."""

    key: str
    reason: str


class Level(Generic[T]):
    """What lies directly below *prefix*, while its pages go by in the order of keys."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        # The files of which a prefix of the same name may yet come: between "a" and
        # "a/" stand "a b", "a-b", "a.b". Each begins with the one before it.
        self._files: list[str] = []

    def entries(
        self, objects: Iterable[tuple[str, T]], prefixes: Iterable[str]
    ) -> Iterator[Shown[T] | Hidden]:
        """Yield the entries of one page."""
        found: Iterable[tuple[str, T | None]] = merge(
            objects, ((prefix, None) for prefix in prefixes), key=lambda each: each[0]
        )
        for key, content in found:
            if key == self._prefix:
                continue  # the mark of this directory
            name = key.removeprefix(self._prefix)
            while self._files and not name.startswith(self._files[-1]):
                self._files.pop()
            if content is None:
                name = name.removesuffix("/")
            if reason := why_no_name(name):
                yield Hidden(key, reason)
            elif content is None and name in self._files:
                yield Hidden(key, "a file of the same name")
            else:
                yield Shown(name, content)
                if content is not None:
                    self._files.append(name)
