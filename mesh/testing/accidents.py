"""What happens to a simulated cluster: a schedule drawn from its random numbers.

Each accident begins, lasts for some seconds and is undone; several may last at once,
while clients read. At least two peers always run.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace

from mesh.testing.network import Weather
from mesh.testing.simulation import Simulation

STEPS = 14
READS_A_STEP = 6
LASTS_S = (0.5, 5.0)
AWAY_S = (0.5, 9.0)
"""For so long a peer is away: sometimes for longer than its grace."""

AT_ONCE = 3
PEERS_MAX = 7

Undo = Callable[[], Awaitable[None]]


class Accidents:
    """The accidents of one run."""

    def __init__(self, sim: Simulation) -> None:
        self._sim = sim
        self._random = sim.random
        self._lasting: list[tuple[float, str, Undo]] = []
        self._kinds: list[Callable[[], Awaitable[tuple[str, Undo] | None]]] = [
            self._kill,
            self._kill,
            self._stop,
            self._split,
            self._cut_one_way,
            self._bad_weather,
            self._bad_weather,
            self._slow_peer,
            self._under_store_down,
            self._under_store_slow,
            self._under_store_cut,
            self._join,
            self._leave,
            self._rot,
        ]

    async def happen(self) -> None:
        """Let them happen while clients read; all are over when this returns."""
        sim, loop = self._sim, asyncio.get_running_loop()
        for _ in range(STEPS):
            await asyncio.sleep(self._random.uniform(0.02, 1.5))
            for _ in range(self._random.randrange(READS_A_STEP + 1)):
                sim.read_somewhere()
            await self._undo_before(loop.time())
            if len(self._lasting) < AT_ONCE and self._random.random() < 0.9:
                await self._begin(self._random.choice(self._kinds))
            sim.check()
        await self._undo_before(float("inf"))

    async def _begin(self, kind: Callable[[], Awaitable[tuple[str, Undo] | None]]) -> None:
        begun = await kind()
        if begun is None:
            return
        what, undo = begun
        self._sim.note(f"begins: {what}")
        self._sim.tally.accidents.append(what.split()[0])
        lasts_s = AWAY_S if what.startswith(("kill", "leave")) else LASTS_S
        end_s = asyncio.get_running_loop().time() + self._random.uniform(*lasts_s)
        self._lasting.append((end_s, what, undo))

    async def _undo_before(self, now_s: float) -> None:
        over = [each for each in self._lasting if each[0] <= now_s]
        self._lasting = [each for each in self._lasting if each[0] > now_s]
        for _, what, undo in over:
            self._sim.note(f"ends: {what}")
            await undo()

    def _one_of_many(self, left_at_least: int = 2) -> str | None:
        """Return a peer that runs undisturbed, if enough others do."""
        names = [
            peer.name for peer in self._sim.running if not self._sim.world.is_stopped(peer.name)
        ]
        return self._random.choice(names) if len(names) > left_at_least else None

    # Peers

    async def _kill(self) -> tuple[str, Undo] | None:
        name = self._one_of_many()
        if name is None:
            return None
        await self._sim.kill(name)
        return f"kill {name}", lambda: self._sim.start(name)

    async def _stop(self) -> tuple[str, Undo] | None:
        name = self._one_of_many()
        if name is None:
            return None
        sim = self._sim
        sim.disturb(name)
        sim.world.stop(name)

        async def go_on() -> None:
            sim.world.go_on(name)
            sim.disturb(name)

        return f"stop {name}", go_on

    async def _slow_peer(self) -> tuple[str, Undo]:
        sim = self._sim
        name = self._random.choice(list(sim.hosts))
        by_s = self._random.choice([0.01, 0.1, 0.4])
        return self._weather(
            f"slow {name} by {by_s} s", replace(sim.network.weather, slow={name: by_s})
        )

    async def _join(self) -> tuple[str, Undo] | None:
        sim = self._sim
        if len(sim.hosts) >= PEERS_MAX:
            return None
        name = f"p{len(sim.hosts)}"
        await sim.start(name)
        return f"join {name}", _nothing

    async def _leave(self) -> tuple[str, Undo] | None:
        name = self._one_of_many()
        if name is None:
            return None
        await self._sim.leave(name)
        return f"leave {name}", lambda: self._sim.start(name)

    # The network

    async def _split(self) -> tuple[str, Undo]:
        names = list(self._sim.hosts)
        self._random.shuffle(names)
        half = self._random.randrange(1, len(names))
        pairs = [(a, b) for a in names[:half] for b in names[half:]]
        return self._cut(f"split {names[:half]}", pairs + [(b, a) for a, b in pairs])

    async def _cut_one_way(self) -> tuple[str, Undo]:
        source, target = self._random.sample(list(self._sim.hosts), 2)
        return self._cut(f"cut {source} to {target}", [(source, target)])

    def _cut(self, what: str, pairs: list[tuple[str, str]]) -> tuple[str, Undo]:
        sim = self._sim
        new = [pair for pair in pairs if sim.world.carries(*pair)]
        sim.disturb("cuts")
        for pair in new:
            sim.world.cut(*pair)

        async def mend() -> None:
            for pair in new:
                sim.world.mend(*pair)
            sim.disturb("cuts")

        return what, mend

    async def _bad_weather(self) -> tuple[str, Undo]:
        what = self._random.choice(["loss", "delay", "repeats", "garbles"])
        now = self._sim.network.weather
        weather = {
            "loss": replace(now, loss=self._random.choice([0.01, 0.1])),
            "delay": replace(now, delay_s=(0.001, self._random.choice([0.05, 0.3]))),
            "repeats": replace(now, repeats=0.3),
            "garbles": replace(now, garbles=self._random.choice([0.05, 0.5])),
        }
        return self._weather(what, weather[what])

    def _weather(self, what: str, weather: Weather) -> tuple[str, Undo]:
        sim = self._sim
        sim.network.weather = weather
        sim.disturb("weather")

        async def clear_up() -> None:
            sim.network.weather = Weather()
            sim.disturb("weather")

        return what, clear_up

    # The under-store, and disks

    async def _under_store_down(self) -> tuple[str, Undo]:
        sim = self._sim
        sim.is_under_store_up = False
        sim.disturb("under-store")

        async def come_back() -> None:
            sim.is_under_store_up = True
            sim.disturb("under-store")

        return "outage of the under-store", come_back

    async def _under_store_slow(self) -> tuple[str, Undo]:
        sim = self._sim
        before_s = sim.under_store_delay_s
        sim.under_store_delay_s = (0.3, 1.5)

        async def speed_up() -> None:
            sim.under_store_delay_s = before_s

        return "crawl of the under-store", speed_up

    async def _under_store_cut(self) -> tuple[str, Undo]:
        sim = self._sim
        name = self._random.choice(list(sim.hosts))
        sim.cut_off[name] = None
        sim.disturb(f"under-store {name}")

        async def mend() -> None:
            sim.cut_off.pop(name, None)
            sim.disturb(f"under-store {name}")

        return f"cut-off of {name} from the under-store", mend

    async def _rot(self) -> tuple[str, Undo] | None:
        sim = self._sim
        peer = self._random.choice(sim.running)
        held = [
            (file, index)
            for file in sim.files.values()
            for index, _ in peer.disk.index.blocks(file.id)
        ]
        if not held:
            return None
        file, index = self._random.choice(held)
        sim.disturb(f"{file.key(index)} on {peer.name}")
        peer.disk.rot(file, index)
        return f"rot of {file.path}/{index} on {peer.name}", _nothing


async def _nothing() -> None:
    return


async def accidents(sim: Simulation) -> None:
    """All kinds of accidents, for `mesh.testing.simulation.run`."""
    await Accidents(sim).happen()
