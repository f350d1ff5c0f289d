"""What is changed behind the mesh's back, through real mounts and their kernel's caches.

Each line of the contract in docs/semantics.md names one of these.
"""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import boto3
import pytest

from mesh.testing.request_log import RequestLog
from mesh.testing.servers import MotoS3
from tests.system.hosts import Hosts, directory, mesh, run_python, s3, until

pytestmark = pytest.mark.fuse

NAMES = ["one", "two", "three"]
MIB = 1024 * 1024


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data" / "dir"
    folder.mkdir(parents=True)
    for name in ("a", "b", "c"):
        (folder / name).write_bytes(name.encode())
    return folder


@contextmanager
def mounted(
    root: Path, names: list[str] = NAMES, *, max_age: str, **more: str
) -> Iterator[tuple[Hosts, list[Path]]]:
    mounts = directory(root / "data", max_age=max_age, **more)
    with Hosts(root, names, mounts) as hosts:
        hosts.start()
        yield hosts, [hosts.mount(name) for name in names]


def replaced(path: Path, content: bytes) -> None:
    """Change a file as people do it: a new one takes its name."""
    fresh = path.with_name(f".{path.name}.new")
    fresh.write_bytes(content)
    fresh.replace(path)


def look(view: Path, code: str) -> str:
    """Run an expression about `view` in a process of its own."""
    imports = "import os, sys\nfrom collections import Counter\nfrom pathlib import Path\n"
    return run_python(f"{imports}view = Path(sys.argv[1])\nprint({code})", str(view)).strip()


def content(view: Path, name: str = "dir/a") -> str:
    return look(view, f"(view / {name!r}).read_bytes().decode()")


@pytest.mark.slow
def test_a_change_is_believed_away_until_somebody_looks_and_then_all_see_it(
    tmp_path: Path, data: Path
) -> None:
    """Kernel caches of an hour, taken back by the push of the owner."""
    with mounted(tmp_path, max_age='"1h"') as (hosts, views):
        for view in views:
            assert content(view) == "a"
            assert look(view, "sorted(os.listdir(view / 'dir'))") == "['a', 'b', 'c']"
        replaced(data / "a", b"changed")
        (data / "b").unlink()
        (data / "new").write_bytes(b"new")
        for view in views:
            assert content(view) == "a"
        told = mesh("refresh", "/dir", "--config", str(hosts.config("two")))
        assert told.returncode == 0, told.stderr
        for view in views:
            until(lambda: content(view) == "changed", "the push came", within_s=10)  # noqa: B023
            assert look(view, "(view / 'dir' / 'b').exists()") == "False"
            assert look(view, "sorted(os.listdir(view / 'dir'))") == "['a', 'c', 'new']"
            assert content(view, "dir/new") == "new"


@pytest.mark.slow
def test_o_direct_and_the_xattr_look_at_the_under_store(tmp_path: Path, data: Path) -> None:
    with mounted(tmp_path, ["one", "two"], max_age='"1h"') as (_, views):
        for view in views:
            assert content(view) == "a"
        replaced(data / "a", b"direct")
        size = "os.fstat(os.open(view / 'dir' / 'a', os.O_RDONLY | os.O_DIRECT)).st_size"
        assert look(views[0], size) == "6"
        until(lambda: content(views[1]) == "direct", "the other mount was told", within_s=10)
        replaced(data / "a", b"by xattr")
        before = look(views[1], "os.getxattr(view / 'dir' / 'a', 'user.mesh.version')")
        after = look(views[1], "os.getxattr(view / 'dir' / 'a', 'user.mesh.refresh')")
        assert before != after
        for view in views:
            until(lambda: content(view) == "by xattr", "both see it", within_s=10)  # noqa: B023


@pytest.mark.slow
def test_max_age_0_sees_every_change_at_open(tmp_path: Path, data: Path) -> None:
    with mounted(tmp_path, ["one", "two"], max_age="0") as (_, views):
        for number in range(10):
            replaced(data / "a", f"round {number}".encode())
            for view in views:
                assert content(view) == f"round {number}"
            if number % 3 == 0:
                (data / "a").unlink()
                for view in views:
                    assert look(view, "(view / 'dir' / 'a').exists()") == "False"


@pytest.mark.slow
def test_max_age_is_the_longest_that_a_change_stays_unseen(tmp_path: Path, data: Path) -> None:
    with mounted(tmp_path, ["one", "two"], max_age='"2s"') as (_, views):
        for view in views:
            assert content(view) == "a"
        changed_s = time.monotonic()
        replaced(data / "a", b"later")
        for view in views:
            until(lambda: content(view) == "later", "max_age is over", within_s=20)  # noqa: B023
        assert time.monotonic() - changed_s > 0.1  # it was believed for a while


@pytest.mark.slow
def test_immutable_is_never_asked_again(tmp_path: Path, data: Path) -> None:
    with mounted(tmp_path, ["one"], max_age='"immutable"') as (_, [view]):
        assert content(view) == "a"
        replaced(data / "a", b"changed")
        subprocess.run(["sync"], check=True)
        Path("/proc/sys/vm/drop_caches").write_text("2\n")  # the kernel asks anew
        assert content(view) == "a"


CHANGER = """
import os, sys, time
view, at, size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
fd = os.open(view, os.O_RDONLY)
got = os.pread(fd, at, 0)
print(len(got), flush=True)
sys.stdin.readline()
parts = [got]
try:
    while part := os.pread(fd, 1 << 20, sum(map(len, parts))):
        parts.append(part)
except OSError as error:
    print(error.errno, flush=True)
    sys.exit()
whole = b"".join(parts)
print(len(whole) == size and whole == whole[:1] * size, whole[:1], flush=True)
"""


def changed_behind(file: Path, way: str, size: int) -> bytes:
    """Change a file of that size in one way; return what it has now."""
    if way == "overwrite":
        file.write_bytes(b"n" * size)
    elif way == "shrink":
        os.truncate(file, 3 * MIB)
        return b"o" * 3 * MIB
    elif way == "delete":
        file.unlink()
        return b""
    elif way == "recreate":
        file.unlink()
        file.write_bytes(b"n" * size)
    else:
        replaced(file, b"n" * size)
    return b"n" * size


@pytest.mark.slow
def test_a_change_in_the_middle_of_a_read_is_the_old_bytes_or_estale(
    tmp_path: Path, data: Path
) -> None:
    """Never a mix, never zeros, never a short read that looks like the end."""
    size = 24 * MIB
    ways = ["overwrite", "shrink", "delete", "recreate", "rename"]
    with mounted(tmp_path, ["one", "two"], max_age="0", block='"1MiB"') as (_, views):
        for way in ways:
            file = data / way
            file.write_bytes(b"o" * size)
            reader = subprocess.Popen(
                [sys.executable, "-c", CHANGER, str(views[0] / "dir" / way), "65536", str(size)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            assert reader.stdout is not None
            assert reader.stdout.readline().strip() == "65536"
            now = changed_behind(file, way, size)
            told, _ = reader.communicate("\n", timeout=100)
            assert told.strip() in (str(errno.ESTALE), "True b'o'"), (way, told)
            seen = look(
                views[1],
                f"Counter((view / 'dir' / {way!r}).read_bytes()) if "
                f"(view / 'dir' / {way!r}).exists() else {{}}",
            )
            assert seen == str(Counter(now) if now else {}), way


@pytest.mark.slow
def test_while_the_under_store_is_away_what_is_known_is_served_as_stale(tmp_path: Path) -> None:
    """Names, listings and bytes, on all hosts; and fresh again when it is back."""
    with MotoS3(tmp_path / "moto") as server:
        server.make_bucket("stale")
        boto3.client(
            "s3",
            endpoint_url=server.endpoint,
            aws_access_key_id=server.access_key,
            aws_secret_access_key=server.secret_key,
            region_name="us-east-1",
        ).put_object(Bucket="stale", Key="dir/a", Body=b"a" * 100_000)
        with RequestLog(server.endpoint) as door:
            mounts = s3("s3://stale", server, door.endpoint, max_age='"1s"', timeout='"2s"')
            with Hosts(tmp_path, ["one", "two"], mounts) as hosts:
                hosts.start()
                views = [hosts.mount(name) for name in ("one", "two")]
                is_stale = "os.getxattr(view / 'dir' / 'a', 'user.mesh.stale')"
                for view in views:
                    assert content(view) == "a" * 100_000
                    assert look(view, is_stale) == "b'0'"
                    assert look(view, "os.listdir(view / 'dir')") == "['a']"
                door.fail_status = 503
                for view in views:
                    until(lambda: look(view, is_stale) == "b'1'", "it is old", within_s=20)  # noqa: B023
                    assert content(view) == "a" * 100_000
                    assert look(view, "os.listdir(view / 'dir')") == "['a']"
                    assert look(view, "(view / 'dir' / 'a').stat().st_size") == "100000"
                info = mesh("info", "/dir/a", "--json", "--config", str(hosts.config("one")))
                assert json.loads(info.stdout)["is_stale"] is True
                door.fail_status = None
                for view in views:
                    until(lambda: look(view, is_stale) == "b'0'", "it is back", within_s=20)  # noqa: B023


@pytest.mark.slow
def test_a_refresh_of_nothing_is_one_line(tmp_path: Path, data: Path) -> None:
    with mounted(tmp_path, ["one"], max_age='"1h"') as (hosts, _):
        told = mesh("refresh", "/dir/nothing", "--config", str(hosts.config("one")))
        assert told.returncode == 1
        assert told.stderr.strip().count("\n") == 0
        assert "/dir/nothing" in told.stderr


@pytest.mark.slow
def test_owner_group_and_mask_are_those_of_the_mount_table(tmp_path: Path, data: Path) -> None:
    """The kernel checks them: default_permissions."""
    (data / "a").chmod(0o664)
    rights = {"uid": "1234", "gid": "5678", "umask": '"037"'}
    with mounted(tmp_path, ["one"], max_age='"1h"', **rights) as (_, [view]):
        fields = "'(' + ', '.join(f'{x:o}' for x in (s.st_uid, s.st_gid, s.st_mode & 0o777)) + ')'"
        for name, mode in (("dir/a", "640"), ("dir", "740")):
            seen = look(view, f"[{fields} for s in [os.stat(view / {name!r})]][0]")
            assert seen == f"({1234:o}, {5678:o}, {mode})"


@pytest.mark.slow
def test_a_mount_without_xattrs_says_so(tmp_path: Path, data: Path) -> None:
    mounts = directory(tmp_path / "data")
    with Hosts(tmp_path, NAMES[:1], mounts, more="[fuse]\nxattr = false") as hosts:
        hosts.start()
        view = hosts.mount(NAMES[0])
        for function in ("getxattr(path, 'user.mesh.version')", "listxattr(path)"):
            code = (
                "import os, sys\npath = sys.argv[1]\n"
                f"try:\n    print(os.{function})\nexcept OSError as error:\n    print(error.errno)"
            )
            assert run_python(code, str(view / "dir" / "a")).strip() == str(errno.EOPNOTSUPP)
        assert content(view) == "a"


@pytest.mark.slow
def test_many_small_files_come_in_few_calls(tmp_path: Path, data: Path) -> None:
    for number in range(400):
        (data / f"sample-{number:04}").write_bytes(b"%d" % number * 2000)
    with mounted(tmp_path, ["one", "two"], max_age='"1h"', block='"1MiB"') as (hosts, views):
        total = "sum(len(p.read_bytes()) for p in sorted((view / 'dir').iterdir()))"
        expected = sum(path.stat().st_size for path in data.iterdir())
        for view in views:
            assert look(view, total) == str(expected)
        peers = hosts.peers("one")
        assert sum(peer["fills"] for peer in peers.values()) == 403
