"""One run of the write path that ends somewhere: a cluster, a scenario, an end, and what is left.

A run is told at which step of which host what ends. Whatever that is, afterwards everybody
sees one state, the under-store has it, and it is the one after all that was acknowledged, or
the one after what was under way besides.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from pathlib import Path
from random import Random

from mesh.blocks import Attributes
from mesh.client.draft import Draft
from mesh.errors import MeshError, Unusable
from mesh.peer.peer import Peer, running_peer
from mesh.store.drafts import new_token
from mesh.testing.cluster import Cluster
from mesh.testing.crash_steps import DISKS, MOUNTS
from mesh.testing.crashes import DIRECTORIES, Life, Plan, step
from mesh.testing.disks import Disk
from mesh.testing.memory import MemoryUnderStore
from mesh.understore.writable import Upload
from tests.writers import NAMES, Host, host_of, owners

SETTLED_WITHIN_S = 6.0
WRITER_WITHIN_S = 8.0
LEAVES_WITHIN_S = 10.0
WRONG_MAX = 12
"""After so many nothing more is tried: each waits in vain."""

LOOK_EVERY_S = 0.03
STAYS_S = 0.3
"""More than two rounds of claims: what comes late has come by then."""

State = dict[str, bytes]
"""What lies where."""


@dataclass(frozen=True)
class Point:
    """Where one run ends, and how.

    none      nothing ends
    peer      the peer is killed and started again; its mount goes on
    mount     the mount is killed
    both      both are
    power     both are, and the peer's disk has what was synced
    away      both are, and do not come back
    lone      as "away", and the others have a power cut at that moment
    blackout  all have a power cut
    """

    scenario: str
    mode: str
    durability: str = "copies"
    watched: str = "writer"
    layout: str = "apart"
    label: str = ""

    @property
    def name(self) -> str:
        words = (self.scenario, self.mode, self.durability, self.watched, self.layout)
        return "-".join(words)


class Broken(AssertionError):
    """Something was seen that must never be."""


class StepStore(MemoryUnderStore):
    """An under-store that knows who writes to it, and in which order what was shown."""

    def __init__(self, files: State) -> None:
        super().__init__(files)
        self.shown: list[tuple[str, bytes]] = []
        self.opens = asyncio.Event()
        """Nothing is uploaded while it is cleared."""

        self.opens.set()

    def write(self, path: str, data: bytes) -> None:
        self.shown.append((path, data))
        super().write(path, data)

    async def upload(
        self, path: str, *, size_bytes: int | None = None, mode: int | None = None
    ) -> Upload:
        await step("upload")
        await self.opens.wait()
        return _Steps(await super().upload(path, size_bytes=size_bytes, mode=mode))

    async def remove(self, path: str, *, only: str | None = None) -> None:  # type: ignore[override]
        await step("remove")
        super().remove(path, only=only)
        await step("removed")

    async def move(self, path: str, target: str, *, over: str | None) -> Attributes:
        await step("move")
        about = await super().move(path, target, over=over)
        await step("moved")
        return about


class _Steps:
    def __init__(self, upload: Upload) -> None:
        self._upload = upload
        self.abort = upload.abort

    async def add(self, data: bytes | memoryview) -> None:
        await step("add")
        await self._upload.add(data)

    async def publish(self, *, over: str | None) -> Attributes:
        await step("publish")
        about = await self._upload.publish(over=over)
        await step("published")
        return about


class Crashable(Cluster):
    """Peers with lives that end."""

    def __init__(self, root: Path, under_store: StepStore, plan: Plan, durability: str) -> None:
        super().__init__(root, NAMES, under_store, max_age_s=0.3, durability=durability)  # type: ignore[arg-type]
        self.plan = plan
        self.lives: dict[str, Life] = {}
        self.mounts: dict[str, Life] = {}
        self.hosts: dict[str, Host] = {}
        self.graves: list[Life] = []

    async def start(self, name: str) -> Peer:
        directory = self.root / name
        for _ in range(100):
            life = self.lives[name] = Life(self.plan, name, directory)
            DIRECTORIES[str(directory)] = life
            try:
                peer = self.peers[name] = await life.enter(running_peer(self.settings(name)))
            except Unusable:  # gRPC has not let its port go yet
                await asyncio.sleep(0.02)
                continue
            break
        else:
            raise Broken(f"{name} can't be started again")
        if name in self.hosts:
            self.share(self.hosts[name].client, name)
        return peer

    async def mount(self, name: str) -> Host:
        life = self.mounts[name] = Life(self.plan, name, self.root / name)
        MOUNTS[str(self.root / name)] = life
        self.hosts[name] = await life.enter(host_of(self, name))
        return self.hosts[name]

    async def end(self, doomed: list[Life]) -> None:
        """Do for these lives, which are over, what the kernel does."""
        for life in doomed:
            self.graves.append(life)
            if self.mounts.get(life.name) is life:
                await life.reap_mount(self.hosts.pop(life.name).client)
                del self.mounts[life.name]
        for life in doomed:
            if self.lives.get(life.name) is life:
                if life.name in self.hosts:
                    await life.let_go_of_store(self.hosts[life.name].client)
                await life.reap_peer(self.peers.pop(life.name))
                del self.lives[life.name]

    async def aclose(self) -> None:
        for life in [*self.mounts.values(), *self.lives.values()]:
            try:
                async with asyncio.timeout(LEAVES_WITHIN_S):
                    await life.leave()
            except Exception:  # it was said already what is wrong
                self.graves.append(life)
        for life in self.graves:
            await life.bury()
        for name in NAMES:
            for known in (DIRECTORIES, MOUNTS, DISKS):  # each of all runs of this process
                gone = known.pop(str(self.root / name), None)
                if isinstance(gone, Disk):
                    gone.close()


@dataclass
class Desk:
    """What a scenario works with."""

    host: Host
    under_store: StepStore
    sure: State
    pending: State | None = None
    contents: list[bytes] = field(default_factory=list)
    """All that was ever whole, in the order in which it came to be."""

    errors: list[str] = field(default_factory=list)
    watch: Callable[[], None] = lambda: None
    """Counts steps from here on: what came before is another scenario's."""

    def content(self, size_bytes: int) -> bytes:
        return Random(len(self.contents)).randbytes(size_bytes)

    @contextmanager
    def doing(self, after: State) -> Iterator[None]:
        """Do what leads from the one state to the other one, whole or not at all."""
        for data in after.values():
            if data not in self.contents:
                self.contents.append(data)
        self.pending = after
        yield
        self.sure, self.pending = after, None

    def allowed(self) -> list[State]:
        return [self.sure] if self.pending is None else [self.sure, self.pending]

    async def put(self, path: str, data: bytes, over: str = "") -> str:
        """Write a file; return its tag."""
        async with self.host.draft(data, path, over=over) as draft:
            await step("written")
            return await self.publish(draft, {**self.sure, path: data})

    async def publish(self, draft: Draft, after: State) -> str:
        with self.doing(after):
            reply = await draft.publish()
        await step("acknowledged")
        return "" if reply is None else reply.attributes.tag


Scenario = Callable[[Desk], Awaitable[None]]


def roles(cluster: Cluster, layout: str) -> dict[str, str]:
    """Return who is what: by layout, the writer owns nothing, or the directory itself."""
    first, second, third = owners(cluster)
    if layout == "apart":
        return {"writer": third, "holder": second, "owner": first}
    return {"writer": first, "holder": second, "owner": first}


def tokens_for(cluster: Cluster, writer: str, holder: str) -> Callable[[], str]:
    """Return a maker of tokens of drafts that this peer comes to hold."""
    ring = next(iter(cluster.peers.values())).neighbors.ring

    def make() -> str:
        while True:
            token = new_token()
            key = blake2b(token.encode(), digest_size=16).digest()
            names = [n for n in ring.owners(key, copies=8) if n != writer]
            if names[0] == holder:
                return token

    return make


class Run:
    """One run of a scenario."""

    def __init__(self, point: Point, scenario: Scenario, before: State) -> None:
        self.point = point
        self._scenario = scenario
        self._before = before
        self.root = Path(tempfile.mkdtemp(prefix="crash-"))
        self.gone: set[str] = set()
        self.steps: list[str] = []
        self.is_reached = False

    async def go(self) -> str:
        """Run it; return what is wrong, "" for nothing."""
        plan = Plan("", self.point.label)
        self._store = StepStore({"models/old": b"x", **self._before})
        cluster = self._cluster = Crashable(self.root, self._store, plan, self.point.durability)
        try:
            return await self._run(cluster, plan)
        finally:
            await cluster.aclose()
            self.steps = plan.steps
            self.is_reached = plan.crashed.is_set()
            shutil.rmtree(self.root, ignore_errors=True)

    async def _run(self, cluster: Crashable, plan: Plan) -> str:
        for name in NAMES:
            DISKS[str(self.root / name)] = Disk(self.root / name)
            await cluster.start(name)
        self._roles = roles(cluster, self.point.layout)
        plan.watched = self._roles[self.point.watched]
        plan.new_token = tokens_for(cluster, self._roles["writer"], self._roles["holder"])
        for name in NAMES:
            host = await cluster.mount(name)
            await host.names()
        writer = self._roles["writer"]
        state = dict(self._store.files)
        self._desk = Desk(cluster.hosts[writer], self._store, state, contents=list(state.values()))
        plan.doomed = self._doomed
        self._desk.watch = plan.begin
        ending = asyncio.create_task(self._end(cluster, plan))
        working = cluster.mounts[writer].begin(self._work())
        try:
            return await self._outcome(plan, working, ending)
        except Broken as error:
            return str(error)
        finally:
            plan.is_on = False
            ending.cancel()
            await asyncio.wait({ending})

    async def _work(self) -> None:
        try:
            await self._scenario(self._desk)
        except MeshError as error:
            self._desk.errors.append(f"{type(error).__name__}: {error}")

    async def _outcome(
        self, plan: Plan, working: asyncio.Task[None], ending: asyncio.Task[None]
    ) -> str:
        await asyncio.wait(
            {working, ending}, timeout=WRITER_WITHIN_S, return_when="FIRST_COMPLETED"
        )
        if plan.crashed.is_set():
            await asyncio.wait({ending}, timeout=WRITER_WITHIN_S)
        if not working.done() and not ending.done():
            return "the writer hangs, or who ends it"
        if ending.done():
            ending.result()
            if not self._is_writer_dead():
                await asyncio.wait({working}, timeout=WRITER_WITHIN_S)
                if not working.done():
                    return "the writer hangs"
        if working.done():
            working.result()
        self._store.opens.set()
        wrong = await self._settled(plan, ending)
        if not wrong:
            await asyncio.sleep(STAYS_S)
            wrong = await self._settled(plan, ending)
        self._check_order()
        if not wrong and self._desk.errors and self.point.mode == "peer":
            wrong = f"the writer was told {self._desk.errors}"
        return wrong

    # The end

    def _doomed(self) -> list[Life]:
        lives, mounts = self._cluster.lives, self._cluster.mounts
        who = self._roles[self.point.watched]
        mode = self.point.mode
        if mode == "mount":
            return [mounts[who]]
        if mode == "blackout":
            return [*lives.values(), mounts[self._roles["writer"]]]
        if mode == "lone":
            return [*lives.values(), mounts[self._roles["writer"]]]
        if mode == "peer" or self.point.watched != "writer":
            return [lives[who]]
        return [lives[who], mounts[who]]

    def _is_writer_dead(self) -> bool:
        return self.point.watched == "writer" and self.point.mode != "peer"

    async def _end(self, cluster: Crashable, plan: Plan) -> None:
        await plan.crashed.wait()
        doomed = [life for life in [*cluster.mounts.values(), *cluster.lives.values()]]
        doomed = [life for life in doomed if life.is_over]
        names = [life.name for life in doomed if cluster.lives.get(life.name) is life]
        await cluster.end(doomed)
        writer, mode = self._roles["writer"], self.point.mode
        if mode in ("power", "lone", "blackout"):
            for name in names:
                DISKS[str(self.root / name)].cut_power()
        if mode == "away":
            self.gone.add(self._roles[self.point.watched])
        if mode == "lone":
            self.gone.add(writer)
        if names:
            await asyncio.sleep(0.02)
        for name in names:
            if name not in self.gone:
                await cluster.start(name)
        if writer not in cluster.hosts and writer not in self.gone:
            await cluster.mount(writer)
        for name in self.gone & set(cluster.hosts):
            life = cluster.mounts[name]
            life.is_over = True
            await cluster.end([life])

    # What is left

    async def _settled(self, plan: Plan, ending: asyncio.Task[None]) -> str:
        """Wait until everybody sees one state that may be; return what is wrong at the end."""
        loop = asyncio.get_running_loop()
        deadline_s, wrong = loop.time() + SETTLED_WITHIN_S, "nothing"
        while wrong and loop.time() < deadline_s:
            await asyncio.sleep(LOOK_EVERY_S)
            if plan.crashed.is_set() and not ending.done():
                wrong = "it is ending"
                continue
            if ending.done():
                ending.result()
            try:
                async with asyncio.timeout(SETTLED_WITHIN_S):
                    wrong = await self._differences()
            except TimeoutError:
                wrong = "a look takes for ever"
        return wrong

    async def _differences(self) -> str:
        for name in self._cluster.peers:
            for room in ("staged", "drafts"):
                with suppress(FileNotFoundError):
                    if left := [each.name[:6] for each in (self.root / name / room).iterdir()]:
                        return f"{name} has {left} in {room}/"
        there = dict(self._store.files)
        if there not in self._desk.allowed():
            return f"the under-store has {self._told(there)}, not {self._all_told()}"
        for name in list(self._cluster.hosts):
            try:
                seen = await self._seen(name)
            except MeshError as error:
                return f"{name} can't read: {type(error).__name__}: {error}"
            if seen != there:
                return f"{name} sees {self._told(seen)}, not {self._told(there)}"
        return ""

    async def _seen(self, name: str) -> State:
        host, seen = self._cluster.hosts[name], {}
        for each in await host.names():
            seen[f"models/{each}"] = await host.read(f"models/{each}")
        if any(data not in self._desk.contents for data in seen.values()):
            raise Broken(f"{name} sees a mix: {self._told(seen)}")
        return seen

    def _check_order(self) -> None:
        latest: dict[str, int] = {}
        for path, data in self._store.shown:
            if data not in self._desk.contents:
                raise Broken(f"a mix was uploaded to {path}")
            number = self._desk.contents.index(data)
            if number < latest.get(path, 0):
                raise Broken(f"{path}: {number} was shown after {latest[path]}")
            latest[path] = number

    def _told(self, state: State) -> str:
        def number(data: bytes) -> object:
            return self._desk.contents.index(data) if data in self._desk.contents else "?"

        return str({path.rpartition("/")[2]: number(data) for path, data in state.items()})

    def _all_told(self) -> str:
        return " or ".join(map(self._told, self._desk.allowed()))


async def explored(
    case: Point, scenario: Scenario, before: State, *, at_once: int, only: str = ""
) -> Found:
    """Run a case once without an end, and then with it at each of its steps."""
    whole = Run(replace(case, mode="none"), scenario, before)
    found = Found(case, wrong={"": wrong} if (wrong := await whole.go()) else {})
    found.steps = list(dict.fromkeys(whole.steps))
    turns = asyncio.Semaphore(at_once)

    async def one(label: str) -> None:
        async with turns:
            if len(found.wrong) >= WRONG_MAX:
                return
            run = Run(replace(case, label=label), scenario, before)
            if wrong := await run.go():
                found.wrong[label] = wrong
            found.runs += 1
            found.reached += run.is_reached

    await asyncio.gather(*(one(label) for label in found.steps if only in label))
    return found


@dataclass
class Found:
    """What came of a case."""

    case: Point
    steps: list[str] = field(default_factory=list)
    runs: int = 0
    reached: int = 0
    wrong: dict[str, str] = field(default_factory=dict)
    """By the step at which it ended."""

    def __str__(self) -> str:
        lines = [f"{self.case.name}: wrong at {len(self.wrong)} of {len(self.steps)} steps"]
        for label, wrong in self.wrong.items():
            number = self.steps.index(label) if label in self.steps else -1
            lines.append(f"  step {number} ({label or 'no end'}): {wrong}")
        return "\n".join(lines)
