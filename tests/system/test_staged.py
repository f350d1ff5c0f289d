"""Files that are on the disks of peers before the under-store has them, through real mounts."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mesh.testing.servers import MotoS3
from tests.system.hosts import Hosts, directory, mesh, s3, until
from tests.system.test_write import do

pytestmark = pytest.mark.fuse

MIB = 1024 * 1024
NAMES = ["one", "two", "three"]


@contextmanager
def mounted(
    root: Path,
    durability: str,
    names: list[str] = NAMES,
    *,
    store: str = 'capacity = "40GiB"',
    max_age: str = '"60s"',
) -> Iterator[tuple[Hosts, list[Path], Path]]:
    data = root / "data"
    data.mkdir(exist_ok=True)
    table = directory(data, durability=f'"{durability}"', max_age=max_age)
    with Hosts(root, names, table, store=store, peer="check_under_stores = false") as hosts:
        hosts.start()
        yield hosts, [hosts.mount(name) for name in names], data


def away(data: Path) -> Path:
    """Have the under-store not answer: its directory is not there."""
    elsewhere = data.with_name("data-away")
    data.rename(elsewhere)
    return elsewhere


def uploads(hosts: Hosts, by: str) -> list[dict[str, object]]:
    done = mesh("uploads", "--json", "-c", str(hosts.config(by)))
    assert done.returncode == 0, done.stderr
    found: list[dict[str, object]] = json.loads(done.stdout)["uploads"]
    return found


def flushed(hosts: Hosts, by: str, path: str = "/") -> None:
    done = mesh("flush", path, "--timeout", "50s", "-c", str(hosts.config(by)))
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(("durability", "copies"), [("copies", 2), ("local", 1)])
def test_a_file_is_read_everywhere_before_it_is_persisted(
    tmp_path: Path, durability: str, copies: int
) -> None:
    with mounted(tmp_path, durability) as (hosts, (one, two, three), data):
        for view in (one, two, three):
            do(view, "os.listdir(view)")  # then it is known what is not there
        elsewhere = away(data)
        content = os.urandom(40 * MIB + 5)
        source = tmp_path / "source"
        source.write_bytes(content)
        told = do(
            one,
            """
source = Path(sys.argv[2])
(view / "big").write_bytes(source.read_bytes())
(view / "small").write_bytes(b"small")
for name in ("persisted", "copies", "queued_since"):
    print(os.getxattr(view / "big", f"user.mesh.{name}").decode())
""",
            str(source),
        ).splitlines()
        assert told[:2] == ["0", str(copies)]
        assert float(told[2]) > 1e9
        for view in (two, three):
            same = do(
                view,
                "print((view / 'big').read_bytes() == Path(sys.argv[2]).read_bytes(), "
                "(view / 'small').read_bytes())",
                str(source),
            )
            assert same == "True b'small'"
        waiting = uploads(hosts, "three")
        assert [one["path"] for one in waiting] == ["big", "small"]
        assert {len(one["holders"]) for one in waiting} == {copies}  # type: ignore[arg-type]
        elsewhere.rename(data)
        flushed(hosts, "two")
        assert (data / "big").read_bytes() == content
        assert (data / "small").read_bytes() == b"small"
        assert sorted(p.name for p in data.iterdir()) == ["big", "small"]
        until(lambda: uploads(hosts, "one") == [], "nothing waits")
        for name in NAMES:
            assert list((hosts.store(name) / "staged").iterdir()) == []
        assert do(three, "print(os.getxattr(view / 'big', 'user.mesh.persisted'))") == "b'1'"
        assert do(two, "print((view / 'small').read_bytes(), os.listdir(view))") == (
            "b'small' ['big', 'small']"
        )


@pytest.mark.slow
def test_a_holder_persists_what_a_dead_writer_has_promised(tmp_path: Path) -> None:
    with mounted(tmp_path, "copies", max_age='"2s"') as (hosts, (one, two, three), data):
        do(one, "os.listdir(view); (view / 'known').write_bytes(b'k')")
        flushed(hosts, "one")
        elsewhere = away(data)
        content = os.urandom(9 * MIB)
        (tmp_path / "source").write_bytes(content)
        do(
            one,
            "(view / 'f').write_bytes(Path(sys.argv[2]).read_bytes())",
            str(tmp_path / "source"),
        )
        hosts.kill("one")
        equal = "print((view / 'f').read_bytes() == Path(sys.argv[2]).read_bytes())"
        for view in (two, three):
            assert do(view, equal, str(tmp_path / "source")) == "True"
        elsewhere.rename(data)
        until(lambda: (data / "f").exists(), "a holder has uploaded it")
        assert (data / "f").read_bytes() == content
        # The writer comes back, and undoes nothing that came after.
        do(two, "(view / 'f').write_bytes(b'newer')")
        flushed(hosts, "two")
        hosts.start("one")
        until(lambda: not list((hosts.store("one") / "staged").iterdir()), "it has let it go")
        assert (data / "f").read_bytes() == b"newer"
        # Nobody could tell it: what it knows is believed for max_age.
        until(lambda: do(one, "print((view / 'f').read_bytes())") == "b'newer'", "it knows")
        assert sorted(p.name for p in data.iterdir()) == ["f", "known"]


@pytest.mark.slow
@pytest.mark.parametrize("durability", ["copies", "local"])
def test_all_are_killed_and_nothing_that_was_promised_is_lost(
    tmp_path: Path, durability: str
) -> None:
    with mounted(tmp_path, durability, ["one", "two"]) as (hosts, (one, _), data):
        do(one, "print(os.listdir(view))")
        elsewhere = away(data)
        (tmp_path / "source").write_bytes(os.urandom(5 * MIB))
        words = [str(tmp_path / "source")]
        do(
            one,
            """
content = Path(sys.argv[2]).read_bytes()
for number in range(5):
    (view / f"f{number}").write_bytes(content[number:])
(view / "small").write_bytes(b"small")
open(view / "unfinished", "wb").write(content)
file = open(view / "unfinished", "wb"); file.write(content); file.flush()
os.kill(int(sys.argv[3]), 9)
""",
            *words,
            str(hosts.views[one].pid),
        )
        for name in ("one", "two"):
            hosts.kill(name)
        subprocess.run(["umount", "-l", str(one)], check=False, timeout=20)
        # The index may be lost as well: it is a cache.
        for name in ("index", "data"):
            subprocess.run(["rm", "-r", str(hosts.store("one") / name)], check=True, timeout=20)
        hosts.start()
        again = hosts.mount("one")
        same = (
            "content = Path(sys.argv[2]).read_bytes()\n"
            "print(all((view / f'f{n}').read_bytes() == content[n:] for n in range(5)), "
            "(view / 'small').read_bytes())"
        )
        assert do(again, same, *words) == "True b'small'"
        elsewhere.rename(data)
        flushed(hosts, "two")
        assert do(data, same, *words) == "True b'small'"


@pytest.mark.slow
def test_names_of_staged_files_change_without_an_upload(tmp_path: Path) -> None:
    with mounted(tmp_path, "copies") as (hosts, (one, two, _), data):
        (data / "d").mkdir()
        (data / "d" / "base").write_bytes(b"base")
        do(one, "print(os.listdir(view), os.listdir(view / 'd'), (view / 'd/base').read_bytes())")
        elsewhere = away(data)
        told = do(
            one,
            """
other = Path(sys.argv[2])
(view / "a").write_bytes(b"a" * 100_000)
os.rename(view / "a", view / "b")
print((other / "b").read_bytes() == b"a" * 100_000, (other / "a").exists())
(view / "c").write_bytes(b"c")
os.rename(view / "c", view / "b")
print((other / "b").read_bytes(), sorted(os.listdir(other)))
(other / "b").write_bytes(b"newer"); print((view / "b").read_bytes())
(view / "gone").write_bytes(b"g")
(view / "new").write_bytes(b"new"); os.rename(view / "new", view / "d" / "base")
print((other / "d" / "base").read_bytes(), os.listdir(other / "d"))
""",
            str(two),
        )
        assert told.splitlines() == [
            "True False",
            "b'c' ['b', 'd']",
            "b'newer'",
            "b'new' ['base']",
        ]
        assert {one["path"] for one in uploads(hosts, "one")} >= {"b", "gone", "d/base"}
        elsewhere.rename(data)
        do(one, "os.unlink(view / 'gone')")
        flushed(hosts, "one")
        assert (data / "b").read_bytes() == b"newer"
        assert [p.name for p in (data / "d").iterdir()] == ["base"]
        assert (data / "d" / "base").read_bytes() == b"new"
        assert sorted(p.name for p in data.iterdir()) == ["b", "d"]
        assert do(two, "print(sorted(os.listdir(view)))") == "['b', 'd']"


@pytest.mark.slow
def test_a_change_behind_the_meshs_back_is_met_by_the_upload(tmp_path: Path) -> None:
    with mounted(tmp_path, "copies", ["one", "two"]) as (hosts, (one, two), data):
        (data / "f").write_bytes(b"first")
        assert do(one, "print((view / 'f').read_bytes(), os.listdir(view))") == "b'first' ['f']"
        elsewhere = away(data)
        do(one, "(view / 'f').write_bytes(b'mine')")
        (elsewhere / "f").write_bytes(b"theirs")
        elsewhere.rename(data)
        flushed(hosts, "one")
        names = sorted(p.name for p in data.iterdir())
        assert len(names) == 2
        assert names[1].startswith("f.conflict-")
        assert ((data / "f").read_bytes(), (data / names[1]).read_bytes()) == (b"theirs", b"mine")
        until(lambda: do(two, "print((view / 'f').read_bytes())") == "b'theirs'", "it is shown")


@pytest.mark.slow
def test_what_has_no_room_to_be_staged_is_written_through(tmp_path: Path) -> None:
    store = 'capacity = "2GiB"\nstaging = "20MiB"'
    with mounted(tmp_path, "copies", ["one", "two"], store=store) as (_hosts, (one, _), data):
        told = do(
            one,
            """
(view / "big").write_bytes(bytes(30 << 20))
print(os.getxattr(view / "big", "user.mesh.persisted").decode())
""",
        )
        assert told == "1"
        assert (data / "big").stat().st_size == 30 * MIB


def test_durability_by_path(tmp_path: Path) -> None:
    data = tmp_path / "data"
    (data / "ckpt").mkdir(parents=True)
    table = directory(data) + '[mounts."/".durabilities]\n"/ckpt" = "copies"\n'
    with Hosts(tmp_path, ["one", "two"], table) as hosts:
        hosts.start()
        one = hosts.mount("one")
        do(one, "os.listdir(view); os.listdir(view / 'ckpt')")
        elsewhere = away(data)
        told = do(
            one,
            """
(view / "ckpt" / "f").write_bytes(b"staged")
print(os.getxattr(view / "ckpt" / "f", "user.mesh.persisted").decode())
""",
        )
        assert told == "0"
        elsewhere.rename(data)
        do(one, "(view / 'g').write_bytes(b'through')")
        assert (data / "g").read_bytes() == b"through"


@pytest.mark.slow
def test_a_directory_with_staged_files_is_renamed(tmp_path: Path) -> None:
    with mounted(tmp_path, "copies", ["one", "two"]) as (_hosts, (one, two), data):
        told = do(
            one,
            """
other = Path(sys.argv[2])
(view / "d" / "e").mkdir(parents=True)
for number in range(5):
    (view / "d" / "e" / f"{number}").write_bytes(bytes([number]) * 100_000)
os.rename(view / "d", view / "moved")
print(sorted(os.listdir(other / "moved" / "e")), os.listdir(other))
print([(other / "moved" / "e" / f"{n}").read_bytes() == bytes([n]) * 100_000 for n in range(5)])
""",
            str(two),
        )
        assert told.splitlines() == [f"{list('01234')} ['moved']", str([True] * 5)]
        assert sorted(p.name for p in (data / "moved" / "e").iterdir()) == list("01234")


@pytest.mark.slow
def test_what_waits_is_shown(tmp_path: Path) -> None:
    with mounted(tmp_path, "copies", ["one", "two"]) as (hosts, (one, _), data):
        do(one, "os.listdir(view)")
        elsewhere = away(data)
        do(one, "(view / 'ckpt').write_bytes(bytes(3 << 20))")
        config = str(hosts.config("two"))

        def is_tried() -> bool:
            return any(each["error"] for each in uploads(hosts, "two"))

        until(is_tried, "it was tried")
        table = mesh("uploads", "-c", config).stdout.splitlines()
        assert table[0] == "1 files, 3.0 MiB"
        assert table[2].startswith("ckpt")
        assert "one, two" in table[2]
        status = mesh("status", "-c", config).stdout
        assert "writes: / copies" in status
        assert "6.0 MiB staged" in status
        seen = json.loads(mesh("status", "--json", "-c", config).stdout)
        assert seen["durability"] == {"/": "copies"}
        assert [peer["staged_files"] for peer in seen["peers"]] == [1, 1]
        late = mesh("flush", "/ckpt", "--timeout", "1s", "-c", config)
        assert (late.returncode, late.stdout) == (1, "")
        assert "1 files still wait after 1 s" in late.stderr
        assert mesh("flush", "/other", "--timeout", "1s", "-c", config).returncode == 0
        bad = mesh("flush", "--timeout", "soon", "-c", config)
        assert bad.returncode == 2
        assert "--timeout soon" in bad.stderr
        elsewhere.rename(data)
        flushed(hosts, "two")
        assert mesh("uploads", "-c", config).stdout == "nothing waits\n"


def test_a_durability_that_is_none_is_refused_in_one_line(tmp_path: Path) -> None:
    with Hosts(tmp_path, ["one"], directory(tmp_path, durability='"copy"')) as hosts:
        done = mesh("status", "-c", str(hosts.config("one")))
        assert done.returncode == 1
        assert len(done.stderr.splitlines()) == 1
        assert "durability" in done.stderr
        assert "copies" in done.stderr


@pytest.mark.slow
def test_a_bucket_gets_what_was_staged(tmp_path: Path) -> None:
    """Also what is replaced while it is on its way, and what the bucket changed itself."""
    with MotoS3(tmp_path / "moto") as server:
        server.make_bucket("bucket")
        table = s3("s3://bucket", server, server.endpoint, durability='"copies"')
        with Hosts(tmp_path, ["one", "two"], table) as hosts:
            hosts.start()
            one, two = hosts.mount("one"), hosts.mount("two")
            told = do(
                one,
                """
other = Path(sys.argv[2])
content = os.urandom(20 << 20)
for number in range(8):
    (view / "f").write_bytes(content[number:])
    os.rename(view / "f", other.with_name(view.name) / "g")
print((other / "g").read_bytes() == content[7:], os.listdir(other))
""",
                str(two),
            )
            assert told == "True ['g']"
            flushed(hosts, "one")
            assert do(two, "print(os.getxattr(view / 'g', 'user.mesh.persisted'))") == "b'1'"
            told = do(two, "print(len((view / 'g').read_bytes()), os.listdir(view))")
            assert told == f"{20 * MIB - 7} ['g']"
