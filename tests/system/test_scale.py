"""Many entries, many readers, many page faults."""

from __future__ import annotations

import itertools
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from tests.system.hosts import Hosts, directory, rss_bytes, run_python, until

pytestmark = [pytest.mark.fuse, pytest.mark.slow]
MIB = 1024 * 1024
ENTRIES = 100_000


def test_a_directory_of_100_000_entries(tmp_path: Path) -> None:
    data = tmp_path / "data"
    (data / "many").mkdir(parents=True)
    for n in range(ENTRIES):
        os.close(os.open(data / "many" / f"sample-{n:06}", os.O_CREAT | os.O_WRONLY))
    with Hosts(tmp_path, ["one"], directory(data)) as hosts:
        hosts.start()
        view = hosts.mount("one")
        peer, mount = hosts.daemons["one"].pid, hosts.views[view].pid
        (view / "many" / "sample-000000").stat()
        before = [rss_bytes(pid, "RssAnon") for pid in (peer, mount)]
        listed = subprocess.run(
            ["ls", "-U", str(view / "many")], capture_output=True, timeout=100, check=True
        ).stdout.split()
        assert len(listed) == ENTRIES
        assert len(set(listed)) == ENTRIES
        after = [rss_bytes(pid, "RssAnon") for pid in (peer, mount)]
        # The peer keeps them in LMDB: less than 100 bytes of memory for each of them.
        assert after[0] - before[0] < 10 * MIB
        # The mount keeps what the kernel holds references to: path, number, attributes.
        assert after[1] - before[1] < ENTRIES * 1024
        assert (view / "many" / f"sample-{ENTRIES - 1:06}").stat().st_size == 0


def test_page_faults_of_64_threads_in_one_cold_file(tmp_path: Path) -> None:
    """safetensors maps its file, and loaders fault its pages in parallel."""
    import numpy as np
    from safetensors.numpy import save_file

    data = tmp_path / "data"
    data.mkdir()
    noise = np.random.default_rng(1)
    tensors = {f"t{n}": noise.integers(0, 255, 4 * MIB, dtype=np.uint8) for n in range(32)}
    save_file(tensors, data / "model.safetensors")
    sums = {name: int(tensor.sum()) for name, tensor in tensors.items()}
    code = (
        "import sys, threading\n"
        "from safetensors import safe_open\n"
        "with safe_open(sys.argv[1], framework='numpy') as file:\n"
        "    names = sorted(file.keys())\n"
        "    out = {}\n"
        "    def load(k):\n"
        "        for name in names[k::8]:\n"
        "            out[name] = int(file.get_tensor(name).sum())\n"
        "    threads = [threading.Thread(target=load, args=(k,)) for k in range(8)]\n"
        "    [t.start() for t in threads]\n"
        "    [t.join() for t in threads]\n"
        "print(out)\n"
    )
    with Hosts(tmp_path, ["one", "two"], directory(data)) as hosts:
        hosts.start()
        view = hosts.mount("one")
        path = str(view / "model.safetensors")
        processes = [
            subprocess.Popen([sys.executable, "-c", code, path], stdout=subprocess.PIPE)
            for _ in range(8)
        ]
        for process in processes:
            out, _ = process.communicate(timeout=100)
            assert process.returncode == 0
            assert eval(out) == sums


def test_300_readers_in_a_small_budget(tmp_path: Path) -> None:
    """Memory is a matter of budgets, not of readers. `bench.memory` has 1,000 of them."""
    data = tmp_path / "data"
    data.mkdir()
    noise = random.Random(6)
    for n in range(40):
        (data / f"f{n}").write_bytes(noise.randbytes(12 * MIB))
    code = (
        "import sys, threading, random, hashlib, pathlib\n"
        "view, real = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])\n"
        "seed = int(sys.argv[3])\n"
        "def read(k):\n"
        "    name = f'f{random.Random(seed * 1000 + k).randrange(40)}'\n"
        "    a = hashlib.file_digest((view / name).open('rb'), 'sha256').digest()\n"
        "    b = hashlib.file_digest((real / name).open('rb'), 'sha256').digest()\n"
        "    right.append(a == b)\n"
        "right = []\n"
        "threads = [threading.Thread(target=read, args=(k,)) for k in range(75)]\n"
        "[t.start() for t in threads]\n"
        "[t.join() for t in threads]\n"
        "assert right == [True] * 75, right\n"
    )
    with Hosts(
        tmp_path, ["one", "two", "three"], directory(data), peer='memory = "128MiB"'
    ) as hosts:
        hosts.start()
        view = hosts.mount("one")
        readers = [
            subprocess.Popen([sys.executable, "-c", code, str(view), str(data), str(k)])
            for k in range(4)
        ]
        highest = 0
        pids = [process.pid for process in (*hosts.daemons.values(), *hosts.views.values())]
        while any(reader.poll() is None for reader in readers):
            highest = max([highest, *(rss_bytes(pid) for pid in pids)])
            try:
                readers[0].wait(0.2)
            except subprocess.TimeoutExpired:
                continue
        assert [reader.wait(10) for reader in readers] == [0] * 4
        # The budget is for blocks in flight; the interpreter and its libraries come on top.
        assert highest < 128 * MIB + 200 * MIB, f"{highest / MIB:.0f} MiB"
        assert hosts.peers("one")["one"]["in_flight_bytes"] == 0


def test_a_cache_smaller_than_the_data_evicts_and_reads_on(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for n in range(10):
        (data / f"f{n}").write_bytes(random.Random(n).randbytes(24 * MIB))
    store = 'capacity = "100MiB"'
    with Hosts(tmp_path, ["one"], directory(data), store=store) as hosts:
        hosts.start()
        view = hosts.mount("one")
        numbers = itertools.cycle(range(10))

        def read_one() -> None:
            """From the daemon, not from the kernel's pages."""
            name = f"f{next(numbers)}"
            with (view / name).open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                assert file.read() == (data / name).read_bytes(), name

        def evicted_bytes() -> int:
            about = hosts.peers("one")["one"]
            assert about["used_bytes"] <= 100 * MIB
            return int(about["evicted_bytes"])

        for _ in range(10):
            read_one()
        before = evicted_bytes()
        assert before > 0

        def has_evicted_more() -> bool:
            # What was read within a lease stays, and while nothing may go reads pass
            # the store by: so not each read evicts.
            read_one()
            return evicted_bytes() > before + 50 * MIB

        until(has_evicted_more, "the cache follows what is read")
        code = "import sys; sys.stdout.write(str(len(open(sys.argv[1], 'rb').read())))"
        assert run_python(code, str(view / "f3")) == str(24 * MIB)
