"""One node is one path at one version, for as long as the kernel holds on to it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.blocks import Attributes, FileVersion, version_of
from mesh.fuse.nodes import ROOT, Node, Nodes

SECOND_NS = 10**9
DIRECTORY = Attributes(is_directory=True, size_bytes=0, mtime_ns=0)


def file(tag: str = "1", *, path: str = "f", size_bytes: int = 5) -> FileVersion:
    return version_of(
        source="memory://", path=path, size_bytes=size_bytes, tag=tag, block_bytes=1 << 20
    )


def about(mtime_ns: int = SECOND_NS, *, size_bytes: int = 5, tag: str = "") -> Attributes:
    return Attributes(is_directory=False, size_bytes=size_bytes, mtime_ns=mtime_ns, tag=tag)


def noted(
    nodes: Nodes, attributes: Attributes, version: FileVersion | None, *, path: str = "f"
) -> Node:
    return nodes.note(path, attributes, version, fresh_s=60, now_s=1000)


def looked_up(nodes: Nodes, path: str, version: FileVersion | None) -> Node:
    """Do what a look-up of the kernel does."""
    node = noted(nodes, DIRECTORY if version is None else about(), version, path=path)
    node.lookups += 1
    return node


def test_the_root_is_there_and_stays() -> None:
    nodes = Nodes()
    root = nodes.node(ROOT)
    assert (root.path, root.attributes.is_directory, root.lookups) == ("", True, 1)
    nodes.forget(ROOT, 100)
    assert nodes.node(ROOT) is nodes.at("") is root
    nodes.leave(root)
    assert nodes.at("") is root


def test_a_version_keeps_its_node_and_gets_the_latest_attributes() -> None:
    nodes = Nodes()
    node = nodes.note("f", about(), file(), fresh_s=60, now_s=1000)
    again = nodes.note("f", about(mtime_ns=7 * SECOND_NS), file(), fresh_s=3, now_s=1050)
    assert again is node
    assert (node.attributes.mtime_ns, node.fresh_s) == (7 * SECOND_NS, 3)
    assert node.is_fresh(1052)
    assert not node.is_fresh(1053)
    assert len(nodes) == 2


def test_a_new_version_gets_a_new_node_and_the_old_one_stays_with_the_kernel() -> None:
    nodes = Nodes()
    old = looked_up(nodes, "f", file("1"))
    new = looked_up(nodes, "f", file("2"))
    assert new.number != old.number
    assert nodes.at("f") is new
    assert nodes.node(old.number) is old
    nodes.forget(old.number, 1)
    assert nodes.at("f") is new
    with pytest.raises(KeyError):
        nodes.node(old.number)


def test_a_node_is_forgotten_with_its_last_reference() -> None:
    nodes = Nodes()
    for _ in range(3):
        node = looked_up(nodes, "f", file())
    nodes.forget(node.number, 2)
    assert nodes.node(node.number) is node
    nodes.forget(node.number, 1)
    assert nodes.at("f") is None
    assert len(nodes) == 1


def test_a_path_that_was_left_gets_another_node() -> None:
    """A file was removed and made anew, with the content that it had."""
    nodes = Nodes()
    old = looked_up(nodes, "f", file())
    nodes.leave(old)
    assert nodes.at("f") is None
    new = looked_up(nodes, "f", file())
    assert new.number != old.number
    nodes.leave(old)  # it has no path to leave
    assert nodes.at("f") is new


def test_a_directory_that_becomes_a_file_is_another_node() -> None:
    nodes = Nodes()
    directory = looked_up(nodes, "f", None)
    assert looked_up(nodes, "f", None) is directory
    assert looked_up(nodes, "f", file()) is not directory
    assert looked_up(nodes, "f", None).attributes.is_directory


def test_what_a_listing_saw_becomes_the_version_that_a_look_up_names() -> None:
    """An `ls -l` and an open after it must not be two inodes."""
    nodes = Nodes()
    listed = noted(nodes, about(mtime_ns=SECOND_NS + 123), None)
    found = noted(nodes, about(mtime_ns=SECOND_NS), file())
    assert found is listed
    assert found.file == file()
    listed_again = noted(nodes, about(mtime_ns=SECOND_NS + 123), None)
    assert listed_again is found
    assert listed_again.file == file()


@pytest.mark.parametrize(
    "seen", [about(size_bytes=6), about(mtime_ns=2 * SECOND_NS), about(mtime_ns=0)]
)
def test_a_listing_that_saw_another_size_or_time_saw_another_version(seen: Attributes) -> None:
    nodes = Nodes()
    node = noted(nodes, about(), file())
    assert noted(nodes, seen, None) is not node


def test_numbers_are_the_same_on_every_host() -> None:
    """Tools that compare inodes across hosts, and an exported mount, need this."""
    one, two = Nodes(), Nodes()
    paths = [f"dir/{n}" for n in range(100)]
    here = {path: looked_up(one, path, file(path=path)).number for path in paths}
    there = {path: looked_up(two, path, file(path=path)).number for path in reversed(paths)}
    assert here == there
    assert len(set(here.values())) == len(paths)
    assert looked_up(one, "dir", None).number == looked_up(two, "dir", None).number


@pytest.mark.parametrize("path", ["caf\udce9", "ü", "a b\n"])
def test_any_name_has_a_number(path: str) -> None:
    node = looked_up(Nodes(), path, file())
    assert ROOT < node.number < 1 << 63


names = st.sampled_from(["a", "b", "c"])
tags = st.sampled_from(["1", "2", ""])  # "": a directory
steps = st.one_of(
    st.tuples(st.just("look up"), names, tags),
    st.tuples(st.just("leave"), names, tags),
    st.tuples(st.just("forget"), st.integers(0, 9), tags),
)


@given(st.lists(steps, max_size=40))
def test_a_number_never_comes_to_mean_something_else(doings: list[tuple[str, str, str]]) -> None:
    """Whatever happens, each node that the kernel holds is the one that it was told of."""
    nodes = Nodes()
    held: dict[int, tuple[Node, str, bytes | None]] = {}
    for what, which, tag in doings:
        if what == "look up":
            version = file(tag, path=which) if tag else None
            node = looked_up(nodes, which, version)
            told = (node, which, version and version.id)
            assert held.setdefault(node.number, told) == told
        elif what == "leave" and (found := nodes.at(which)) is not None:
            nodes.leave(found)
        elif what == "forget" and held:
            number = sorted(held)[int(which) % len(held)]
            nodes.forget(number, held.pop(number)[0].lookups)
        assert len(nodes) == 1 + len(held)
        for number, (node, path, version_id) in held.items():
            assert nodes.node(number) is node
            assert (node.path, node.file and node.file.id) == (path, version_id)
