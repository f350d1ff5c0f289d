"""Mounts nest: the deepest one over a path has it."""

from __future__ import annotations

import pytest

from mesh.blocks import Attributes
from mesh.errors import NotFound
from mesh.testing.memory import MemoryUnderStore
from mesh.understore.table import MountTable
from mesh.understore.understore import UnderStoreSettings

ROOT, DEEP, DEEPER = "s3://all", "s3://imagenet", "file:///nvme"
MOUNTS = {"/": ROOT, "/datasets/imagenet": DEEP, "/datasets/imagenet/a/b": DEEPER}
STORES = {url: MemoryUnderStore() for url in (ROOT, DEEP, DEEPER)}


def table(*paths: str) -> MountTable:
    mounts = {path: UnderStoreSettings(url=MOUNTS[path]) for path in paths}
    return MountTable(mounts, {each.url: STORES[each.url] for each in mounts.values()})


@pytest.mark.parametrize(
    ("path", "source", "below"),
    [
        ("/", ROOT, ""),
        ("/datasets", ROOT, "datasets"),
        ("/datasets/imagenet2/x", ROOT, "datasets/imagenet2/x"),
        ("/datasets/imagenet", DEEP, ""),
        ("/datasets/imagenet/a", DEEP, "a"),
        ("/datasets/imagenet/a/bb", DEEP, "a/bb"),
        ("/datasets/imagenet/a/b", DEEPER, ""),
        ("/datasets/imagenet/a/b/c", DEEPER, "c"),
    ],
)
def test_the_deepest_mount_has_a_path(path: str, source: str, below: str) -> None:
    place = table(*MOUNTS).place(path)
    assert (place.settings.url, place.path) == (source, below)
    assert place.store is STORES[source]


def test_a_path_is_of_one_mount_however_it_is_written() -> None:
    mounts = table(*MOUNTS)
    assert mounts.place("datasets//imagenet/a/") == mounts.place("/datasets/imagenet/a")


def test_a_directory_shows_each_name_that_leads_to_a_mount_once() -> None:
    mounts = table(*MOUNTS)
    assert mounts.names_below("/") == ["datasets"]
    assert mounts.names_below("/datasets") == ["imagenet"]
    assert mounts.names_below("/datasets/imagenet") == ["a"]
    assert mounts.names_below("/datasets/imagenet/a/b") == []
    assert mounts.names_below("/elsewhere") == []


def test_without_a_root_only_the_mounts_are_there() -> None:
    mounts = table("/datasets/imagenet")
    with pytest.raises(NotFound, match="no mount is over it"):
        mounts.place("/datasets")
    assert mounts.names_below("/") == ["datasets"]
    assert mounts.place("/datasets/imagenet/x").path == "x"


def test_what_a_mount_shadows_is_another_version() -> None:
    """The same content under the same path of two stores never shares a version."""
    about = Attributes(is_directory=False, size_bytes=1, mtime_ns=0, tag="t")
    seen = table(*MOUNTS).place("/datasets/imagenet/x").version(about)
    shadowed = table("/").place("/datasets/imagenet/x").version(about)
    assert (seen.source, shadowed.source) == (DEEP, ROOT)
    assert seen.id != shadowed.id
    assert table(*MOUNTS).store_of(seen) is STORES[DEEP]


def test_a_version_of_elsewhere_is_not_found() -> None:
    about = Attributes(is_directory=False, size_bytes=1, mtime_ns=0, tag="t")
    version = table("/datasets/imagenet").place("/datasets/imagenet/x").version(about)
    with pytest.raises(NotFound, match="not in this peer's mount table"):
        table("/").store_of(version)
