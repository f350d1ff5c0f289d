"""Calls of another mesh are refused in words that say what to mend."""

from __future__ import annotations

import pytest

from mesh.wire.passport import TOKEN_BYTES, Passport, fingerprint_of, words_of

KEY = fingerprint_of("c", "secret")


def passport(cluster: str = "c", key: str = KEY, epoch: int = 7) -> Passport:
    return Passport(cluster, key, lambda: epoch)


def test_peers_of_one_mesh_understand_each_other() -> None:
    words = words_of(passport().words())
    assert passport().objection(words) == ""
    assert passport().other_epoch(words) is None
    assert passport(epoch=8).other_epoch(words) == 7


@pytest.mark.parametrize(
    ("caller", "says"),
    [
        (passport(cluster="d"), 'cluster "d" is not ours, "c"; mend cluster.name'),
        (passport(key=fingerprint_of("c", "other")), "its cluster.key is not ours"),
        (passport(key=""), "its cluster.key is not ours"),
        (passport(cluster="ç"), r'cluster "\xe7" is not ours'),
    ],
)
def test_others_are_refused(caller: Passport, says: str) -> None:
    assert passport().objection(words_of(caller.words())).startswith(says)


def test_another_protocol_is_refused() -> None:
    words = words_of(passport().words()) | {"mesh-protocol": "2"}
    assert passport().objection(words) == "protocol 2 is not ours, 1; run the same release"


def test_a_bulk_channel_is_opened_by_who_knows_whose_it_is() -> None:
    token = passport().bulk_token("id", 3)
    assert len(token) == TOKEN_BYTES
    assert passport(epoch=8).bulk_token("id", 3) == token
    others = [
        passport(cluster="d").bulk_token("id", 3),
        passport(key="").bulk_token("id", 3),
        passport().bulk_token("id", 4),
        passport().bulk_token("other", 3),
    ]
    assert len({token, *others}) == 5


def test_who_shows_nothing_is_let_through() -> None:
    assert passport().objection({}) == ""
    assert passport().other_epoch({}) is None
    assert passport().other_epoch({"mesh-epoch": "no number"}) is None


def test_the_key_can_not_be_read_from_its_fingerprint() -> None:
    assert "secret" not in KEY
    assert fingerprint_of("c", "secret") != fingerprint_of("d", "secret")
    assert fingerprint_of("c", "") == ""
