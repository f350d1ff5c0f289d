"""Writing through real mounts, as real programs do it.

Each line of the table of operations in docs/semantics.md names one of these.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import boto3
import pytest

from mesh.testing.servers import MotoS3
from tests.system.hosts import Hosts, directory, mesh, run_python, s3, until

pytestmark = pytest.mark.fuse

MIB = 1024 * 1024
NAMES = ["one", "two"]

PRELUDE = """
import errno, os, sys, time
from pathlib import Path
view = Path(sys.argv[1])
def errno_of(call, *words):
    try:
        call(*words)
    except OSError as error:
        return errno.errorcode[error.errno]
    return None
"""


def do(view: Path, code: str, *words: str, timeout_s: float = 60) -> str:
    """Run code about `view` in a process of its own; return what it prints."""
    return run_python(PRELUDE + code, str(view), *words, timeout_s=timeout_s).strip()


def run(*command: str, cwd: Path | None = None, timeout_s: float = 100) -> str:
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=cwd, timeout=timeout_s, check=False
    )
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout


@contextmanager
def writing(view: Path, code: str) -> Iterator[subprocess.Popen[str]]:
    """Run code about `view` beside the test, to the end of the block at most."""
    command = [sys.executable, "-c", PRELUDE + code, str(view)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as writer:
        try:
            yield writer
        finally:
            writer.kill()


def line(writer: subprocess.Popen[str]) -> str:
    """Wait for the next line that a program prints."""
    assert writer.stdout is not None
    return writer.stdout.readline().strip()


@contextmanager
def mounted(
    root: Path, names: list[str] = NAMES, **keys: str
) -> Iterator[tuple[Hosts, list[Path], Path]]:
    data = root / "data"
    data.mkdir(exist_ok=True)
    with Hosts(root, names, directory(data, **keys)) as hosts:
        hosts.start()
        yield hosts, [hosts.mount(name) for name in names], data


class Here(tuple[Path, Path, Path]):
    """A directory in the mounts of two hosts, and behind them."""

    config: Path
    durability: str

    def settle(self) -> Path:
        """Wait until the under-store has all that was acknowledged; return its directory."""
        if self.durability != "through":
            name = f"/{self[2].name}"
            done = mesh("flush", name, "-c", str(self.config))
            assert done.returncode == 0, done.stderr
        return self[2]


@pytest.fixture(scope="module", params=["through", pytest.param("copies", marks=pytest.mark.slow)])
def pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, Path, tuple[Path, Path, Path]]]:
    """Two mounts of two hosts, the directory behind them, and what close waits for."""
    root = tmp_path_factory.mktemp("pair")
    durability = request.param
    with mounted(root, durability=f'"{durability}"') as (hosts, (one, two), data):
        yield durability, hosts.config("one"), (one, two, data)


@pytest.fixture
def here(pair: tuple[str, Path, tuple[Path, Path, Path]], tmp_path: Path) -> Here:
    durability, config, places = pair
    found = Here(each / tmp_path.name for each in places)
    found.durability, found.config = durability, config
    found[2].mkdir()
    return found


# What everybody sees


def test_a_closed_file_is_seen_at_once_and_an_open_one_by_nobody_else(
    here: Here,
) -> None:
    one, two, data = here
    do(two, "assert not (view / 'f').exists()")  # what is not there is remembered, too
    seen = do(
        one,
        """
other, data = Path(sys.argv[2]), Path(sys.argv[3])
with open(view / "f", "wb") as file:
    file.write(b"one")
    file.flush()
    print((view / "f").stat().st_size, os.listdir(view), os.listdir(other), os.listdir(data))
print((other / "f").read_bytes(), os.listdir(other))
""",
        str(two),
        str(data),
    )
    assert seen.splitlines() == ["3 ['f'] [] []", "b'one' ['f']"]
    assert (here.settle() / "f").read_bytes() == b"one"


def test_a_replaced_file_is_seen_at_once(here: Here) -> None:
    one, two, _data = here
    for round_ in range(5):
        content = f"round {round_}" * 40_000
        do(one, "(view / 'f').write_text(sys.argv[2] * 40_000)", f"round {round_}")
        assert do(two, "print((view / 'f').read_text()[:7], (view / 'f').stat().st_size)") == (
            f"round {round_} {len(content)}"
        )
        assert (here.settle() / "f").read_text() == content
        assert do(two, "(view / 'g').write_text('x'); print((view / 'g').read_text())") == "x"


def test_bytes_of_many_sizes_come_back_on_another_host(here: Here, tmp_path: Path) -> None:
    one, two, _data = here
    sizes = [0, 1, 65_536, 65_537, 4 * MIB, 4 * MIB + 1, 40 * MIB + 13]
    for size_bytes in sizes:
        content = os.urandom(size_bytes)
        source = tmp_path / "source"
        source.write_bytes(content)
        run("cp", str(source), str(one / f"f{size_bytes}"))
        copy = tmp_path / "copy"
        run("cp", str(two / f"f{size_bytes}"), str(copy))
        assert copy.read_bytes() == content
        assert (here.settle() / f"f{size_bytes}").read_bytes() == content


# One operation after the other


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("f.write_bytes(b'abc'); f.open('ab').write(b'def')", b"abcdef"),
        ("f.write_bytes(b'abcdef'); os.truncate(f, 2)", b"ab"),
        ("f.write_bytes(b'ab'); os.truncate(f, 4)", b"ab\0\0"),
        ("f.write_bytes(b'abcdef'); h = open(f, 'r+b'); h.seek(2); h.write(b'XY')", b"abXYef"),
        ("h = open(f, 'wb'); h.seek(3); h.write(b'x')", b"\0\0\0x"),
        (
            "h = open(f, 'w+b'); h.write(b'abcdef'); h.truncate(3); h.seek(0, 2); h.write(b'!')",
            b"abc!",
        ),
        ("f.write_bytes(b'old'); h = open(f, 'wb'); h.write(b'n')", b"n"),
        (
            "h = os.open(f, os.O_CREAT | os.O_WRONLY); d = os.dup(h)\n"
            "os.close(h); os.write(d, b'dup')",
            b"dup",
        ),
        ("f.write_bytes(b''); f.write_bytes(b'again')", b"again"),
        (
            "h = os.open(f, os.O_CREAT | os.O_RDWR); os.pwrite(h, b'b', 1); os.pwrite(h, b'a', 0)\n"
            "assert os.pread(h, 9, 0) == b'ab'",
            b"ab",
        ),
    ],
)
def test_writes(here: Here, code: str, expected: bytes) -> None:
    one, two, _data = here
    do(one, f"f = view / 'f'\n{code}")
    assert (here.settle() / "f").read_bytes() == expected
    assert do(two, "print((view / 'f').read_bytes())") == repr(expected)
    assert do(one, "print((view / 'f').read_bytes())") == repr(expected)


def test_fsync_shows_what_is_there_so_far(here: Here) -> None:
    one, two, data = here
    where = data if here.durability == "through" else two  # who sees it when fsync returns
    seen = do(
        one,
        """
data = Path(sys.argv[2])
with open(view / "f", "wb") as file:
    file.write(b"first"); file.flush(); os.fsync(file.fileno())
    print((data / "f").read_bytes())
    file.write(b" second"); file.flush(); os.fsync(file.fileno())
    print((data / "f").read_bytes())
    file.seek(0); file.write(b"FIRST")
print((data / "f").read_bytes())
""",
        str(where),
    )
    assert seen.splitlines() == ["b'first'", "b'first second'", "b'FIRST second'"]
    assert (here.settle() / "f").read_bytes() == b"FIRST second"


def test_a_memory_map_writes_and_reads(here: Here) -> None:
    one, _, _data = here
    do(
        one,
        """
import mmap
with open(view / "f", "w+b") as file:
    file.truncate(3 << 20)
    with mmap.mmap(file.fileno(), 3 << 20) as map:
        map[1 << 20 : (1 << 20) + 4] = b"here"
        map.flush()
""",
    )
    assert (here.settle() / "f").read_bytes() == bytes(MIB) + b"here" + bytes(2 * MIB - 4)


def test_names(here: Here) -> None:
    one, two, data = here
    told = do(
        one,
        """
(view / "d").mkdir()
(view / "d" / "e").mkdir()
(view / "d" / "f").write_bytes(b"f")
print(errno_of(os.mkdir, view / "d"), errno_of(os.rmdir, view / "d"))
print(errno_of(os.open, view / "d" / "f", os.O_CREAT | os.O_EXCL | os.O_WRONLY))
print(errno_of(os.rename, view / "d" / "f", view / "d" / "e"))
print(errno_of(os.rename, view / "none", view / "x"), errno_of(os.unlink, view / "none"))
os.rename(view / "d" / "f", view / "d" / "g")
os.rename(view / "d", view / "D")
os.rmdir(view / "D" / "e")
print(sorted(os.listdir(view / "D")), os.listdir(view), (view / "D" / "g").read_bytes())
(view / "h").write_bytes(b"h")
os.rename(view / "h", view / "D" / "g")
print((view / "D" / "g").read_bytes(), os.listdir(view))
""",
    )
    assert told.splitlines() == [
        "EEXIST ENOTEMPTY",
        "EEXIST",
        "EISDIR",
        "ENOENT ENOENT",
        "['g'] ['D'] b'f'",
        "b'h' ['D']",
    ]
    assert [str(p.relative_to(data)) for p in sorted(here.settle().rglob("*"))] == ["D", "D/g"]
    assert do(two, "print(os.listdir(view), (view / 'D' / 'g').read_bytes())") == "['D'] b'h'"
    do(two, "os.unlink(view / 'D' / 'g'); os.rmdir(view / 'D')")
    assert do(one, "print(os.listdir(view), (view / 'D').exists())") == "[] False"
    assert list(here.settle().iterdir()) == []


def test_a_renamed_directory_is_another_path_everywhere(here: Here) -> None:
    one, two, _ = here
    do(one, "os.makedirs(view / 'a/b/c'); (view / 'a/b/c/f').write_text('deep')")
    assert do(two, "print((view / 'a/b/c/f').read_text(), os.listdir(view / 'a/b'))") == (
        "deep ['c']"
    )
    do(one, "os.rename(view / 'a', view / 'z')")
    assert do(two, "print((view / 'z/b/c/f').read_text(), (view / 'a/b/c/f').exists())") == (
        "deep False"
    )


def test_a_removed_file_is_read_by_who_has_it_open(here: Here) -> None:
    one, _, data = here
    (data / "old").write_bytes(b"o" * 3 * MIB)
    told = do(
        one,
        """
old, new = open(view / "old", "rb"), open(view / "new", "w+b")
new.write(b"n" * 100); new.flush()
os.unlink(view / "old"); os.unlink(view / "new")
new.seek(0); new.write(b"N"); new.seek(0)
print(len(old.read()), new.read(3), os.listdir(view))
old.close(); new.close()
print(os.listdir(view))
""",
    )
    assert told.splitlines() == ["3145728 b'Nnn' []", "[]"]
    assert list(here.settle().iterdir()) == []


def test_a_replaced_file_is_read_by_who_has_it_open(here: Here) -> None:
    one, _, data = here
    (data / "f").write_bytes(b"o" * 3 * MIB)
    told = do(
        one,
        """
old = open(view / "f", "rb")
(view / "g").write_bytes(b"new")
os.rename(view / "g", view / "f")
print(len(old.read()), (view / "f").read_bytes(), os.listdir(view))
""",
    )
    assert told == "3145728 b'new' ['f']"


def test_what_is_still_written_can_be_renamed(here: Here) -> None:
    one, two, data = here
    (data / "f").write_bytes(b"old")
    do(
        one,
        """
with open(view / "f.tmp", "wb") as file:
    file.write(b"half"); file.flush()
    os.rename(view / "f.tmp", view / "f")
    assert os.listdir(view) == ["f"] and (view / "f").read_bytes() == b"half"
    file.write(b" whole")
""",
    )
    assert (here.settle() / "f").read_bytes() == b"half whole"
    assert do(two, "print(os.listdir(view), (view / 'f').read_bytes())") == "['f'] b'half whole'"


def test_what_is_sent_already_can_be_renamed(here: Here) -> None:
    one, two, _data = here
    do(
        one,
        """
with open(view / "f.tmp", "wb") as file:
    for number in range(40):
        file.write(bytes([number]) * (1 << 20))
    file.flush()
    time.sleep(1)  # most of it is on its way
    os.rename(view / "f.tmp", view / "f")
""",
    )
    assert [p.name for p in here.settle().iterdir()] == ["f"]
    told = "content = (view / 'f').read_bytes(); print(os.listdir(view), len(content), content[-1])"
    assert do(two, told) == f"['f'] {40 * MIB} 39"


def test_attributes_are_kept(here: Here) -> None:
    one, _, _data = here
    told = do(
        one,
        """
f = view / "f"
f.write_bytes(b"x")
os.chmod(f, 0o640); os.utime(f, ns=(10**18, 10**18))
about = f.stat()
print(oct(about.st_mode), about.st_mtime_ns == 10**18)
os.chown(f, 12, 34)
print(f.stat().st_uid, f.stat().st_gid)
os.rename(f, view / "g")
about = (view / "g").stat()
print(oct(about.st_mode), about.st_mtime_ns == 10**18, about.st_uid)
(view / "g").write_bytes(b"y")
print((view / "g").stat().st_mtime_ns > 10**18)
""",
    )
    assert told.splitlines() == ["0o100640 True", "12 34", "0o100640 True 12", "True"]
    assert (here.settle() / "g").stat().st_mode & 0o777 == 0o640


def test_what_cannot_be_had_says_so_at_once(here: Here) -> None:
    one, _, data = here
    (data / "f").write_bytes(b"x")
    told = do(
        one,
        """
f = view / "f"
print(errno_of(os.link, f, view / "hard"), errno_of(os.symlink, "f", view / "soft"))
print(errno_of(os.mknod, view / "pipe", 0o10600), errno_of(os.mkfifo, view / "fifo"))
print(errno_of(os.setxattr, f, "user.x", b"y"))
print(errno_of(os.open, view / ("n" * 256), os.O_CREAT | os.O_WRONLY))
import ctypes
libc, at_cwd, exchange = ctypes.CDLL(None, use_errno=True), -100, 2
(view / "g").write_bytes(b"y")
libc.renameat2(at_cwd, bytes(f), at_cwd, bytes(view / "g"), exchange)
print(errno.errorcode[ctypes.get_errno()])
os.unlink(view / "g")
print(errno_of(os.open, f, os.O_RDONLY | os.O_DIRECTORY), os.listdir(view), f.read_bytes())
""",
    )
    assert told.splitlines() == [
        "EPERM EPERM",
        "EPERM EPERM",
        "ENOTSUP",
        "ENAMETOOLONG",
        "EINVAL",
        "ENOTDIR ['f'] b'x'",
    ]


def test_a_read_only_mount_refuses_all_of_it(tmp_path: Path) -> None:
    with mounted(tmp_path, ["one"], read_only="true") as (_, (one,), data):
        (data / "f").write_bytes(b"x")
        told = do(
            one,
            """
f = view / "f"
print(errno_of(open, f, "wb"), errno_of(open, view / "g", "wb"), errno_of(os.unlink, f))
print(errno_of(os.mkdir, view / "d"), errno_of(os.rename, f, view / "g"), errno_of(os.chmod, f, 0))
""",
        )
        assert set(told.split()) == {"EROFS"}
        assert [p.name for p in data.iterdir()] == ["f"]


@pytest.mark.slow
def test_mounts_of_several_under_stores(tmp_path: Path) -> None:
    (tmp_path / "fixed").mkdir()
    (tmp_path / "too").mkdir()
    (tmp_path / "fixed" / "f").write_bytes(b"x")
    data = tmp_path / "data"
    data.mkdir()
    more = (
        f'{directory(data)}[mounts."/fixed"]\nurl = "{(tmp_path / "fixed").as_uri()}"\n'
        f'read_only = true\n[mounts."/too"]\nurl = "{(tmp_path / "too").as_uri()}"\n'
    )
    with Hosts(tmp_path, ["one"], more) as hosts:
        hosts.start()
        one = hosts.mount("one")
        told = do(
            one,
            """
(view / "w").write_bytes(b"w")
(view / "too" / "t").write_bytes(b"t")
print(errno_of(os.rename, view / "too" / "t", view / "t"), (view / "too" / "t").read_bytes())
print(errno_of(open, view / "fixed" / "f", "wb"), errno_of(open, view / "fixed" / "n", "wb"))
print(errno_of(os.rename, view / "w", view / "fixed" / "w"), (view / "fixed/f").read_bytes())
print(errno_of(os.rmdir, view / "fixed"))
""",
        )
        assert told.splitlines() == ["EXDEV b't'", "EROFS EROFS", "EROFS b'x'", "EROFS"]


# When something is wrong


def test_what_was_changed_behind_the_meshs_back_is_kept_beside(
    here: Here,
) -> None:
    if here.durability != "through":
        pytest.skip("close does not wait for the under-store; test_staged.py has that one")
    one, _, data = here
    (data / "f").write_bytes(b"first")
    told = do(
        one,
        """
data = Path(sys.argv[2])
file = os.open(view / "f", os.O_RDWR)
os.pwrite(file, b"MINE!", 0)
(data / "f").write_bytes(b"theirs")
print(errno_of(os.close, file))
""",
        str(data),
    )
    assert told == "ESTALE"
    names = sorted(p.name for p in data.iterdir())
    assert names[0] == "f"
    assert names[1].startswith("f.conflict-")
    assert len(names) == 2
    assert (data / "f").read_bytes() == b"theirs"
    assert (data / names[1]).read_bytes() == b"MINE!"
    assert do(one, "print(sorted(os.listdir(view)) == sys.argv[2:])", *names) == "True"


def test_two_hosts_write_one_file_and_the_last_close_wins(here: Here) -> None:
    one, two, _data = here
    told = do(
        one,
        """
other = Path(sys.argv[2])
mine, theirs = open(view / "f", "wb"), open(other / "f", "wb")
mine.write(b"mine"); theirs.write(b"theirs"); mine.flush(); theirs.flush()
theirs.close(); print((view / "f").read_bytes())
mine.close(); print((other / "f").read_bytes())
""",
        str(two),
    )
    assert told.splitlines() == ["b'mine'", "b'mine'"]
    assert (here.settle() / "f").read_bytes() == b"mine"


def test_two_hosts_replace_one_file_again_and_again(here: Here) -> None:
    one, two, data = here
    code = """
for number in range(40):
    (view / "f").write_bytes(bytes([65 + number % 26]) * int(sys.argv[2]))
"""
    with ThreadPoolExecutor(2) as threads:
        done = [
            threads.submit(do, view, code, size) for view, size in ((one, "900"), (two, "80000"))
        ]
        assert [each.result() for each in done] == ["", ""]
    content = (here.settle() / "f").read_bytes()
    assert len(content) in (900, 80_000)
    assert len(set(content)) == 1
    assert [p.name for p in data.iterdir()] == ["f"]
    for view in (one, two):
        assert do(view, "print(len((view / 'f').read_bytes()))") == str(len(content))


def test_only_one_of_two_hosts_makes_a_file_for_itself(here: Here) -> None:
    one, two, _data = here
    told = do(
        one,
        """
other = Path(sys.argv[2])
flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY
mine, theirs = os.open(view / "lock", flags), os.open(other / "lock", flags)
os.write(mine, b"mine"); os.write(theirs, b"theirs")
print(errno_of(os.close, theirs), errno_of(os.close, mine))
""",
        str(two),
    )
    assert told == "None EEXIST"
    assert (here.settle() / "lock").read_bytes() == b"theirs"


@pytest.mark.slow
def test_the_own_peer_restarts_while_a_file_is_written(tmp_path: Path) -> None:
    with mounted(tmp_path) as (hosts, (one, two), data):
        code = """
with open(view / "f", "wb") as file:
    file.write(b"a" * (20 << 20)); file.flush()
    print("half", flush=True); sys.stdin.readline()
    file.write(b"b" * (20 << 20))
print("closed", flush=True)
"""
        with writing(one, code) as writer:
            assert line(writer) == "half"
            hosts.kill("one")
            assert writer.stdin is not None
            writer.stdin.write("go on\n")
            writer.stdin.flush()
            hosts.start("one")
            assert line(writer) == "closed"
        assert (data / "f").read_bytes() == b"a" * (20 * MIB) + b"b" * (20 * MIB)
        assert do(two, "print((view / 'f').stat().st_size)") == str(40 * MIB)


@pytest.mark.slow
def test_a_mount_that_dies_leaves_nothing_unfinished(tmp_path: Path) -> None:
    with mounted(tmp_path) as (hosts, (one, two), data):
        do(one, "(view / 'whole').write_bytes(b'w')")
        code = """
file = open(view / "f", "wb")
file.write(b"x" * (40 << 20)); file.flush()
print("half", flush=True)
sys.stdin.readline()
"""
        with writing(one, code) as writer:
            assert line(writer) == "half"
            hosts.views[one].kill()
            hosts.views[one].wait()
        run("umount", "-l", str(one))
        hosts.kill("one")
        hosts.start("one")
        until(lambda: not list((hosts.store("one") / "drafts").iterdir()), "drafts are swept")
        assert [p.name for p in data.iterdir() if not p.name.startswith(".mesh")] == ["whole"]
        assert do(two, "print(os.listdir(view))") == "['whole']"


# S3


@pytest.fixture
def bucket(tmp_path: Path) -> Iterator[tuple[Path, Path, object]]:
    with MotoS3(tmp_path / "moto") as server:
        server.make_bucket("bucket")
        with Hosts(tmp_path, NAMES, s3("s3://bucket", server, server.endpoint)) as hosts:
            hosts.start()
            client = boto3.client(
                "s3",
                endpoint_url=server.endpoint,
                region_name=server.region,
                aws_access_key_id=server.access_key,
                aws_secret_access_key=server.secret_key,
            )
            yield hosts.mount("one"), hosts.mount("two"), client


@pytest.mark.slow
def test_a_bucket_is_written(bucket: tuple[Path, Path, object]) -> None:
    one, two, _ = bucket
    told = do(
        one,
        """
other = Path(sys.argv[2])
(view / "d").mkdir()
content = os.urandom(40 << 20)
(view / "d" / "big").write_bytes(content)
print((other / "d" / "big").read_bytes() == content, os.listdir(other), os.listdir(other / "d"))
with open(other / "d" / "big", "r+b") as file:
    file.seek(100); file.write(b"edited")
edited = content[:100] + b"edited" + content[106:]
print((view / "d" / "big").read_bytes() == edited)
os.rename(view / "d" / "big", view / "d" / "moved")
print((other / "d" / "moved").read_bytes() == edited, os.listdir(other / "d"))
(view / "d" / "sub").mkdir(); (view / "d" / "sub" / "f").write_bytes(b"f")
os.rename(view / "d", view / "e")
print(sorted(os.listdir(other / "e")), (other / "e/sub/f").read_bytes(), os.listdir(view))
print(errno_of(os.rmdir, view / "e"))
os.unlink(other / "e/sub/f"); os.rmdir(other / "e/sub"); os.unlink(other / "e/moved")
os.rmdir(view / "e"); print(os.listdir(view), os.listdir(other))
""",
        str(two),
        timeout_s=100,
    )
    assert told.splitlines() == [
        "True ['d'] ['big']",
        "True",
        "True ['moved']",
        "['moved', 'sub'] b'f' ['e']",
        "ENOTEMPTY",
        "[] []",
    ]


@pytest.mark.slow
def test_bytes_go_to_a_bucket_while_they_are_written(bucket: tuple[Path, Path, object]) -> None:
    one, _, client = bucket
    told = do(
        one,
        """
import json, urllib.request
file = open(view / "big", "wb")
for _ in range(64):
    file.write(os.urandom(1 << 20))
file.flush()
time.sleep(3)
print("written", flush=True)
time.sleep(2)
""",
    )
    assert told == "written"
    assert client.list_objects_v2(Bucket="bucket")["Contents"][0]["Size"] == 64 * MIB  # type: ignore[attr-defined]


# Programs


def test_numpy_and_safetensors(here: Here) -> None:
    one, two, _ = here
    code = """
import hashlib, numpy, safetensors.numpy
state = {f"w{n}": numpy.random.default_rng(n).random((300, 1000)) for n in range(5)}
if len(sys.argv) > 2:
    safetensors.numpy.save_file(state, view / "model.safetensors")
    numpy.save(view / "w0.npy", state["w0"])
    numpy.savez(view / "all.npz", **state)
    map = numpy.lib.format.open_memmap(view / "map.npy", mode="w+", dtype=float, shape=(300, 1000))
    map[:] = state["w1"]
    del map
else:
    loaded = safetensors.numpy.load_file(view / "model.safetensors")
    zipped = numpy.load(view / "all.npz")
    print(
        all((loaded[name] == state[name]).all() for name in state),
        all((zipped[name] == state[name]).all() for name in state),
        (numpy.load(view / "w0.npy") == state["w0"]).all(),
        (numpy.load(view / "map.npy", mmap_mode="r") == state["w1"]).all(),
    )
"""
    do(one, code, "save")
    assert do(two, code) == "True True True True"


def test_torch(here: Here) -> None:
    pytest.importorskip("torch", reason="torch is not installed: 2 GB for one test")
    one, two, _ = here
    code = """
import torch
state = {f"w{n}": torch.arange(1_000_000) * n for n in range(5)}
if len(sys.argv) > 2:
    torch.save(state, view / "model.pt")
else:
    loaded = torch.load(view / "model.pt", mmap=True)
    print(all(torch.equal(loaded[name], state[name]) for name in state))
"""
    do(one, code, "save")
    assert do(two, code) == "True"


@pytest.mark.skipif(shutil.which("rsync") is None, reason="rsync is not installed")
def test_cp_tar_and_rsync(here: Here, tmp_path: Path) -> None:
    one, two, _data = here
    tree = tmp_path / "tree"
    (tree / "sub" / "empty").mkdir(parents=True)
    for number in range(30):
        (tree / "sub" / f"{number}.bin").write_bytes(os.urandom(number * 7000))
    os.utime(tree / "sub" / "3.bin", ns=(10**18, 10**18))
    run("cp", "-rp", str(tree), str(one / "cp"))
    run("diff", "-r", str(tree), str(two / "cp"))
    assert (one / "cp" / "sub" / "3.bin").stat().st_mtime_ns == 10**18
    archive = tmp_path / "tree.tar"
    run("tar", "cf", str(archive), "-C", str(tree), ".")
    (one / "tar").mkdir()
    run("tar", "xf", str(archive), "-C", str(one / "tar"))
    run("diff", "-r", str(tree), str(two / "tar"))
    for words in ([], ["--inplace"]):
        target = one / f"rsync{len(words)}"
        run("rsync", "-a", *words, f"{tree}/", str(target))
        (tree / "sub" / "5.bin").write_bytes(b"changed" * 5000)
        told = run("rsync", "-ai", *words, f"{tree}/", str(target))
        assert [line.split()[1] for line in told.splitlines()] == ["sub/5.bin"]
        run("diff", "-r", str(tree), str(two / target.name))


def test_git_clone(here: Here, tmp_path: Path) -> None:
    one, two, _data = here
    origin = tmp_path / "origin"
    run("git", "init", "-q", "-b", "main", str(origin))
    for number in range(20):
        (origin / f"{number}.txt").write_text("line\n" * number)
    identity = ("-c", "user.name=t", "-c", "user.email=t@example.com")
    run("git", "-C", str(origin), "add", ".")
    run("git", "-C", str(origin), *identity, "commit", "-qm", "first")
    run("git", "clone", "-q", f"file://{origin}", str(one / "clone"))
    assert run("git", "-C", str(one / "clone"), "status", "--porcelain") == ""
    (one / "clone" / "3.txt").write_text("changed\n")
    run("git", "-C", str(one / "clone"), *identity, "commit", "-qam", "second")
    assert "second" in run("git", "-c", "safe.directory=*", "-C", str(two / "clone"), "log", "-1")
    run("git", "-c", "safe.directory=*", "-C", str(two / "clone"), "fsck", "--strict")


def test_sqlite(here: Here, tmp_path: Path) -> None:
    one, two, data = here
    do(
        one,
        """
import sqlite3
with sqlite3.connect(view / "db") as db:
    db.execute("create table t (n integer)")
    for start in range(3):
        with db:
            db.executemany("insert into t values (?)", [(start * 100 + n,) for n in range(100)])
try:
    with db:
        db.execute("delete from t")
        raise ValueError
except ValueError:
    pass
db.close()
""",
    )
    shutil.copy(here.settle() / "db", tmp_path / "copy")
    with sqlite3.connect(tmp_path / "copy") as db:
        assert db.execute("select count(*), sum(n) from t").fetchone() == (300, 44_850)
    told = do(
        two,
        "import sqlite3\ndb = sqlite3.connect(f'file:{view}/db?mode=ro', uri=True)\n"
        "print(db.execute('pragma integrity_check').fetchone()[0])",
    )
    assert told == "ok"
    assert [p.name for p in data.iterdir()] == ["db"]


@pytest.mark.slow
def test_the_disk_of_the_host_is_full(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    run("mount", "-t", "tmpfs", "-o", "size=256m", "none", str(small))
    try:
        data = tmp_path / "data"
        data.mkdir()
        with Hosts(tmp_path, ["one"], directory(data)) as hosts:
            hosts.config("one").write_text(
                hosts.config("one").read_text().replace(str(hosts.store("one")), str(small / "s"))
            )
            hosts.start()
            one = hosts.mount("one")
            told = do(
                one,
                """
(view / "before").write_bytes(b"b")
file = os.open(view / "f", os.O_CREAT | os.O_WRONLY)
chunk = bytes(1 << 20)
print([code for code in (errno_of(os.write, file, chunk) for _ in range(400)) if code][0])
print(errno_of(os.close, file))
""",
            )
            assert told.splitlines() == ["ENOSPC", "ENOSPC"]
            # What is not whole is not shown, and the room is free again.
            until(lambda: do(one, "print(os.listdir(view))") == "['before']", "it is gone")
            do(one, "(view / 'after').write_bytes(b'a' * (20 << 20))")
            assert [p.name for p in data.iterdir()] == ["before", "after"]
            assert do(one, "print((view / 'before').read_bytes())") == "b'b'"
    finally:
        run("umount", "-l", str(small))
