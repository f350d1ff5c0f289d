"""Whether what was seen is what writers were promised. No I/O.

lost       nothing is there, and it was acknowledged
older      an older version is there than was acknowledged; one that was removed counts
torn       what is there is no version that anybody wrote
both       two names were to be one: neither has what was acknowledged
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from chaos.writers.history import Attempt, Content, History, Step

STEP_MOST_S = 120.0
UPLOAD_PREFIX = ".mesh-upload-"
CALM_AFTER_S = 15.0
"""So long after the last fault everything is to be well."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What somebody found at a path."""

    where: str
    path: str
    start_s: float
    end_s: float
    digest: str = ""
    """Of the whole content; empty when there is no file."""
    size_bytes: int = 0
    error: str = ""
    """Why nothing can be said of it: the errno by name."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One broken promise."""

    kind: str
    path: str
    where: str
    words: str
    lost_bytes: int = 0

    def __str__(self) -> str:
        return f"{self.kind}: {self.path} at {self.where}: {self.words}"


@dataclass(frozen=True, slots=True)
class Wrong:
    """Why something that was seen may not be."""

    kind: str
    words: str
    late_s: float
    """For how long the newer one had been acknowledged; inf if it can't be for that."""


def wrong(history: History, seen: Seen, *, is_final: bool) -> Wrong | None:
    """Say what is wrong with what was seen; None if nothing is."""
    until_s = float("inf") if is_final else seen.end_s
    at_s = float("inf") if is_final else seen.start_s
    allowed = history.allowed(seen.path, at_s=at_s, until_s=until_s)
    if any(_is(attempt, seen) for attempt in allowed):
        return None
    before = [a for a in history.attempts(seen.path) if a not in allowed and _is(a, seen)]
    newest = before[-1] if before else None
    acked = allowed[0]
    wanted = f"acknowledged: {_in_words(acked)}"
    if newest is None:
        if not seen.digest:
            return Wrong("lost", f"nothing there; {wanted}", float("inf"))
        words = f"{seen.size_bytes:,} bytes of no version; {wanted}"
        return Wrong("torn", words, float("inf"))
    late_s = seen.start_s - history.superseded_s(seen.path, newest)
    kind = "older" if seen.digest else "lost"
    return Wrong(kind, f"{_in_words(newest)}, {late_s:.1f} s late; {wanted}", late_s)


def _is(attempt: Attempt, seen: Seen) -> bool:
    content = attempt.content
    return (content.digest if content else "") == seen.digest


def _in_words(attempt: Attempt) -> str:
    content, step = attempt.content, attempt.step
    told = "nothing" if content is None else f"{content.size_bytes:,} bytes"
    return f"{told} by step {step.number} of writer {step.writer} ({step.style})"


def final(history: History, seen: Iterable[Seen], *, truth: str) -> Iterator[Finding]:
    """Yield what is not as promised after the end; bytes are lost if *truth* has them not."""
    for one in seen:
        if one.error:
            yield Finding("unreadable", one.path, one.where, one.error)
            continue
        found = wrong(history, one, is_final=True)
        if found is not None:
            content = history.acked_last(one.path).content
            lost_bytes = content.size_bytes if content and one.where == truth else 0
            yield Finding(found.kind, one.path, one.where, found.words, lost_bytes)


def half_moved(history: History, seen: Iterable[Seen], *, truth: str) -> Iterator[Finding]:
    """Yield renames without an answer after which neither name has what was there."""
    there = {one.path: one.digest for one in seen if one.where == truth}
    for step in history.steps:
        moved = _moved(history, step)
        if step.is_acked or moved is None:
            continue
        names = list(step.effects)
        if any(history.paths[name][-1].step is not step for name in names):
            continue  # one of them was written anew
        if all(there.get(name, "") != moved.digest for name in names):
            words = f"{_in_words(Attempt(step, moved))} is under neither name"
            yield Finding("both", " -> ".join(names), truth, words, moved.size_bytes)


def _moved(history: History, step: Step) -> Content | None:
    """Return what a rename moves, if that was acknowledged before."""
    if len(step.effects) != 2 or all(content is not None for content in step.effects.values()):
        return None
    gone = next(path for path, content in step.effects.items() if content is None)
    moved = next(content for content in step.effects.values() if content is not None)
    before = [a for a in history.paths[gone] if a.step is not step]
    is_safe = before[-1].step.is_acked and before[-1].content == moved
    return moved if is_safe else None


@dataclass(frozen=True, slots=True)
class Trouble:
    """A time in which something was wrong on purpose."""

    from_s: float
    to_s: float
    label: str = ""


def is_calm(from_s: float, to_s: float, troubles: Sequence[Trouble]) -> bool:
    """Say whether no fault was on, nor a while before."""
    return not any(
        trouble.from_s <= to_s and from_s - CALM_AFTER_S <= trouble.to_s for trouble in troubles
    )


def is_promised(history: History, seen: Seen) -> bool:
    """Say whether an error is one that readers are promised: a file that is replaced while it
    is read may be ESTALE (docs/semantics.md)."""
    versions = history.allowed(seen.path, at_s=seen.start_s, until_s=seen.end_s)
    return seen.error == "ESTALE" and len(versions) > 1


def reads(
    history: History, seen: Iterable[Seen], troubles: Sequence[Trouble], *, most_late_s: float
) -> Iterator[Finding]:
    """Yield what readers saw meanwhile and should not have.

    A peer that can't be told of a change believes what it knows for a while, so that
    something older is no finding for *most_late_s* after a fault.
    """
    for one in seen:
        calm = is_calm(one.start_s, one.end_s, troubles)
        if one.error:
            if calm and not is_promised(history, one):
                yield Finding("error", one.path, one.where, f"{one.error}, with all well")
            continue
        found = wrong(history, one, is_final=False)
        if found is not None and (calm or found.late_s > most_late_s):
            words = f"{found.words}{'; with all well' if calm else ''}"
            yield Finding(f"read {found.kind}", one.path, one.where, words)


def late(history: History, seen: Iterable[Seen]) -> Iterator[float]:
    """Yield how late each read was that saw something older."""
    for one in seen:
        found = None if one.error else wrong(history, one, is_final=False)
        if found is not None:
            yield found.late_s


def hangs(history: History, *, now_s: float) -> Iterator[Finding]:
    """Yield steps that took too long, ended or not."""
    for step in history.steps:
        took_s = min(step.end_s, now_s) - step.begin_s
        if took_s > STEP_MOST_S:
            words = f"{step.style} by writer {step.writer} took {took_s:.0f} s"
            yield Finding("hang", " ".join(step.effects), f"writer {step.writer}", words)


def is_unfinished(name: str) -> bool:
    """Say whether a name is that of an upload whose peer was killed; no mount shows it."""
    return name.rpartition("/")[2].startswith(UPLOAD_PREFIX)


def strangers(
    history: History, names: Mapping[str, Iterable[str]], *, truth: str
) -> Iterator[Finding]:
    """Yield files that nobody has written: conflicts, and what was left behind."""
    for where, found in names.items():
        for name in found:
            if name not in history.paths and not (where == truth and is_unfinished(name)):
                kind = "conflict" if ".conflict-" in name else "stranger"
                yield Finding(kind, name, where, "nobody has written such a file")
