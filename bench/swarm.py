"""One file to as many as 10,000 readers, simulated with the scheduler that peers run.

    links shared by all that is sent at once, 10 % jitter, an under-store of four links, 256
    blocks; time of the last reader over that of one transfer, messages, CPU of the decisions

No disk, no CPU, no gRPC is in it: `bench.fanout` has those, with as many hosts as two cores carry.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from bench.table import OUT, Table, value_at_most
from mesh.blocks import MIB
from mesh.testing.cluster import running_cluster
from mesh.testing.memory import MemoryUnderStore
from mesh.testing.swarm import FanOut, Outcome, fan_out
from mesh.wire.swarm import NEWS, Have, NewsRequest

BLOCKS = 256
COUNTS = (8, 16, 32, 100, 300, 1000)
ALONE_MAX = 32
"""Readers up to which owners alone are simulated as well."""

GOALS = {1000: 1.30, 10_000: 1.40}
HARD = {"a fifth killed": {"killed": 0.2}, "2 % slow": {"slow": 0.02}, "spread": {"spread": 0.25}}
HARD_MAX = 1.40
BLOCKS_TOLD = 32
MESSAGES = 5000
LAST = 77
"""Free slots that the last message speaks of."""


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    flags.add_argument("--readers", type=int, nargs="*", default=COUNTS)
    flags.add_argument("--no-hard", action="store_true", help="leave out deaths and slow ones")
    words = flags.parse_args()
    table = Table("swarm", compared="time of the last reader over that of one transfer, simulated")
    shown: list[tuple[int, Outcome]] = []
    for readers in words.readers:
        what = FanOut(readers=readers, blocks=BLOCKS, under_store_links=4.0)
        began_s = time.process_time()
        done = fan_out(what)
        cpu_s = time.process_time() - began_s
        alone = fan_out(replace(what, strategy="owners")).ratio if readers <= ALONE_MAX else None
        shown.append((readers, done))
        goal = value_at_most(GOALS[readers]) if readers in GOALS else None
        name = f"{readers:,} readers"
        table.add(f"{name}: last", done.ratio, "x", control=alone, goal=goal)
        table.add(f"{name}: median", done.median, "x")
        table.add(f"{name}: egress", done.egress, "x", goal=value_at_most(1.0))
        table.add(f"{name}: news for each", done.messages / readers, "messages")
        table.add(f"{name}: decisions for each", cpu_s / readers, "CPU-s (simulator too)")
    if not words.no_hard and max(words.readers) >= min(GOALS):
        for name, more in HARD.items():
            what = FanOut(readers=1000, blocks=BLOCKS, under_store_links=4.0, **more)  # type: ignore[arg-type]
            done = fan_out(what)
            last = done.healthy[-1] - what.spread
            table.add(f"1,000 readers, {name}: last", last, "x", goal=value_at_most(HARD_MAX))
            table.add(f"1,000 readers, {name}: egress", done.egress, "x", goal=value_at_most(1.02))
    each_s = asyncio.run(news_cpu_s())
    table.add("a message of news, both ends", each_s * 1e6, "CPU-us")
    most = shown[-1][1].messages / shown[-1][0]
    table.add(f"all news of one of {shown[-1][0]:,} readers", most * each_s, "CPU-s")
    print(f"drawn in {draw(shown)}")
    table.finish()


async def news_cpu_s() -> float:
    """Return what one message of news costs both ends, over real sockets, in one process."""
    with TemporaryDirectory() as place:
        under_store = MemoryUnderStore({"model": bytes(BLOCKS_TOLD * MIB)})
        async with running_cluster(Path(place), ("a", "b"), under_store) as cluster:
            sender, receiver = cluster.peers["a"], cluster.peers["b"]
            file = (await sender.catalog.stat("model")).file
            assert file is not None
            assert receiver.reader.swarms is not None
            receiver.reader.swarms.reads(file, BLOCKS_TOLD - 1)
            await asyncio.sleep(1.0)  # what it reads is here by then
            have = (Have(file.id, bytes(BLOCKS // 8), is_greeting=False, is_leaving=False),)

            async def messages(count: int) -> AsyncIterator[NewsRequest]:
                for left in reversed(range(count)):
                    yield NewsRequest("a", "", have, 4 if left else LAST)

            async def tell(count: int) -> None:
                await sender.neighbors.push("b", NEWS, messages(count))
                while told.neighbors["a"].free_slots != LAST:  # noqa: ASYNC110 (nobody says that they came)
                    await asyncio.sleep(0.002)

            session = receiver.reader.swarms.session(file.id)
            assert session is not None
            told = session.scheduler._sources
            session.meet("a", "", is_greeting=False)
            await tell(100)
            began_s = time.process_time()
            await tell(MESSAGES)
            return (time.process_time() - began_s) / MESSAGES


def draw(shown: Sequence[tuple[int, Outcome]]) -> Path:
    """Draw the last and the median reader against how many there are."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axis = plt.subplots(figsize=(6, 4))
    counts = [readers for readers, _ in shown]
    axis.plot(counts, [done.ratio for _, done in shown], marker="o", label="last reader")
    axis.plot(counts, [done.median for _, done in shown], marker="o", label="median reader")
    axis.set(xscale="log", xlabel="readers", ylabel="time / (size / rate)", ylim=(1.0, None))
    axis.legend()
    figure.tight_layout()
    OUT.mkdir(exist_ok=True)
    path = OUT / "bench-swarm.png"
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path


if __name__ == "__main__":
    main()
