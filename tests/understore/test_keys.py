"""Every key is either shown, or hidden for a reason, and always the same."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.understore.keys import Hidden, Level, Shown, why_no_name, why_no_path


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("", ""),
        ("a", ""),
        ("a/b.c/...", ""),
        ("a/" + "n" * 255, ""),
        ("a//b", "a part without a name"),
        ("/a", "a part without a name"),
        ("a/", "a part without a name"),
        ("a/../b", 'a part that is ".."'),
        ("./a", 'a part that is "."'),
        ("a/" + "n" * 256, "a part of more than 255 bytes"),
        ("a/" + "ü" * 128, "a part of more than 255 bytes"),
        ("a\0b", "a zero byte"),
    ],
)
def test_what_is_a_path(path: str, reason: str) -> None:
    assert why_no_path(path) == reason


def entries(
    keys: list[str], prefixes: list[str], *, below: str = ""
) -> tuple[dict[str, bool], dict[str, str]]:
    shown, hidden = {}, {}
    for entry in Level[str](below).entries([(key, key) for key in keys], prefixes):
        if isinstance(entry, Hidden):
            hidden[entry.key] = entry.reason
        else:
            shown[entry.name] = entry.content is None
    return shown, hidden


def test_a_level_of_plain_keys() -> None:
    shown, hidden = entries(["d/a", "d/c"], ["d/b/"], below="d/")
    assert list(shown.items()) == [("a", False), ("b", True), ("c", False)]
    assert hidden == {}


def test_the_mark_of_the_directory_itself_is_no_entry() -> None:
    assert entries(["d/"], [], below="d/") == ({}, {})


def test_what_cannot_be_a_name_is_hidden_with_its_reason() -> None:
    shown, hidden = entries(["d/.", "d/" + "n" * 256], ["d//", "d/../"], below="d/")
    assert shown == {}
    assert hidden == {
        "d/.": 'a part that is "."',
        "d/../": 'a part that is ".."',
        "d//": "a part without a name",
        "d/" + "n" * 256: "a part of more than 255 bytes",
    }


def test_a_file_hides_the_directory_of_its_name() -> None:
    shown, hidden = entries(["a", "a-b", "a.c"], ["a/", "ab/"])
    assert shown == {"a": False, "a-b": False, "a.c": False, "ab": True}
    assert hidden == {"a/": "a file of the same name"}


def test_it_does_so_across_pages() -> None:
    """Between "a" and "a/" there may be a million keys: "a-0", "a-1"..."""
    level = Level[int]("")
    first = list(level.entries([("a", 1), ("a-0", 1)], []))
    second = list(level.entries([("a-1", 1)], ["a/"]))
    assert first == [Shown("a", 1), Shown("a-0", 1)]
    assert second == [Shown("a-1", 1), Hidden("a/", "a file of the same name")]


@given(
    keys=st.sets(st.text(alphabet="ab-./", min_size=1, max_size=6), max_size=12),
    page_entries=st.integers(1, 5),
)
def test_a_listing_agrees_with_the_keys(keys: set[str], page_entries: int) -> None:
    """However it is paged: each name once, a file exactly where there is such a key."""
    folders = {key.partition("/")[0] + "/" for key in keys if "/" in key}
    files = {key for key in keys if "/" not in key}
    level = Level[str]("")
    ordered = sorted(files | folders)
    found = []
    for start in range(0, len(ordered), page_entries):
        page = ordered[start : start + page_entries]
        objects = [(key, key) for key in page if key in files]
        found += list(level.entries(objects, [key for key in page if key in folders]))

    shown = {entry.name: entry.content is not None for entry in found if isinstance(entry, Shown)}
    assert len(found) == len(ordered)
    assert {name for name, is_file in shown.items() if is_file} == {
        name for name in files if not why_no_name(name)
    }
    assert {name for name, is_file in shown.items() if not is_file} == {
        folder[:-1] for folder in folders if not why_no_name(folder[:-1])
    } - files
