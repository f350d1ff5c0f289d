"""A data directory is taken, or refused in one line with nothing changed."""

from __future__ import annotations

from pathlib import Path
from uuid import UUID

import lmdb
import msgspec
import pytest

from mesh.errors import Unusable
from mesh.store.journal import MAP_BYTES, Identity, claim

ONE, TWO = UUID(int=1), UUID(int=2)


def snapshot(root: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(root)): p.read_bytes()
        for p in sorted(root.rglob("*"))
        if p.is_file() and p.name not in ("lock", "lock.mdb")
    }


def test_a_new_directory_is_made_for_its_owner_alone(tmp_path: Path) -> None:
    taken = claim(tmp_path / "a" / "b", cluster="c", peer_id=ONE)
    assert taken.boot.number == 1
    assert (tmp_path / "a" / "b").stat().st_mode & 0o777 == 0o700
    taken.release()


def test_starts_are_counted_and_an_unclean_stop_is_known(tmp_path: Path) -> None:
    claim(tmp_path / "d", cluster="c", peer_id=ONE).release()
    second = claim(tmp_path / "d", cluster="c", peer_id=ONE)
    assert (second.boot.number, second.boot.clean) == (2, True)
    second.abandon()
    third = claim(tmp_path / "d", cluster="c", peer_id=ONE)
    assert (third.boot.number, third.boot.clean) == (3, False)
    third.release()


def test_two_peers_cannot_have_one_directory(tmp_path: Path) -> None:
    taken = claim(tmp_path / "d", cluster="c", peer_id=ONE)
    before = snapshot(tmp_path)
    with pytest.raises(Unusable, match="in use by another peer"):
        claim(tmp_path / "d", cluster="c", peer_id=ONE)
    assert snapshot(tmp_path) == before
    taken.release()


@pytest.mark.parametrize(
    ("cluster", "peer", "words"),
    [("other", ONE, 'belongs to cluster "c", not "other"'), ("c", TWO, "belongs to another peer")],
)
def test_somebody_elses_directory_is_refused(
    tmp_path: Path, cluster: str, peer: UUID, words: str
) -> None:
    claim(tmp_path / "d", cluster="c", peer_id=ONE).release()
    before = snapshot(tmp_path)
    with pytest.raises(Unusable, match=words) as failure:
        claim(tmp_path / "d", cluster=cluster, peer_id=peer)
    assert "\n" not in str(failure.value)
    assert snapshot(tmp_path) == before
    claim(tmp_path / "d", cluster="c", peer_id=ONE).release()


def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    claim(tmp_path / "d", cluster="c", peer_id=ONE).release()
    with lmdb.open(str(tmp_path / "d" / "journal"), map_size=MAP_BYTES) as env:
        with env.begin(write=True) as txn:
            txn.put(b"identity", msgspec.json.encode(Identity(99, "c", str(ONE))))
    before = snapshot(tmp_path)
    with pytest.raises(Unusable, match="schema 99, this mesh knows 2"):
        claim(tmp_path / "d", cluster="c", peer_id=ONE)
    assert snapshot(tmp_path) == before


def test_a_directory_with_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(Unusable, match="files that are not mesh's"):
        claim(tmp_path, cluster="c", peer_id=ONE)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_file_in_the_place_of_the_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("x")
    with pytest.raises(Unusable, match="is a file"):
        claim(tmp_path / "f" / "d", cluster="c", peer_id=ONE)


def test_a_full_disk_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mesh.store.journal.FREE_BYTES_MIN", 1 << 62)
    with pytest.raises(Unusable, match="the disk is full"):
        claim(tmp_path / "d", cluster="c", peer_id=ONE)
    assert not (tmp_path / "d").exists()
