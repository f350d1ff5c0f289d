"""The same news give the same view, in whatever order they come."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.membership.roster import FORGET_S, GRACE_S, Roster
from mesh.membership.view import Member, State, View, view_from_json, view_of, view_to_json

A = Member("a", "host-a:1", id="id-a", run=1)
GONE = [State.DEAD, State.LEFT]
HERE = [State.JOINING, State.ACTIVE, State.SUSPECT, State.DRAINING]


def told(*news: tuple[float, Member], grace_s: float = GRACE_S) -> Roster:
    roster = Roster(grace_s=grace_s)
    for at_s, member in news:
        roster.hear(member, at_s)
    return roster


def only(view: View) -> Member:
    (member,) = view.members
    return member


def a(state: State, *, run: int = 1, address: str = "host-a:1") -> Member:
    return replace(A, state=state, run=run, address=address)


# One peer

CASES = {
    "a newcomer that is not ready has no place": ([(0, a(State.JOINING))], 1, False),
    "one that is ready has": ([(0, a(State.JOINING)), (1, a(State.ACTIVE))], 2, True),
    "a suspect keeps it": ([(0, a(State.ACTIVE)), (1, a(State.SUSPECT))], 2, True),
    "one that drains keeps it": ([(0, a(State.ACTIVE)), (1, a(State.DRAINING))], 2, True),
    "a dead one keeps it": ([(0, a(State.ACTIVE)), (1, a(State.DEAD))], 2, True),
    "to the end of the grace": ([(0, a(State.ACTIVE)), (1, a(State.DEAD))], 60.999, True),
    "and no longer": ([(0, a(State.ACTIVE)), (1, a(State.DEAD))], 61, False),
    "leaving is no worse than dying": ([(0, a(State.ACTIVE)), (1, a(State.LEFT))], 60.9, True),
    "to die after leaving starts no second grace": (
        [(0, a(State.ACTIVE)), (1, a(State.LEFT)), (50, a(State.DEAD))],
        61,
        False,
    ),
    "who never was ready gets no place by dying": (
        [(0, a(State.JOINING)), (1, a(State.DEAD))],
        2,
        False,
    ),
    "a restart within the grace keeps it while it is not ready yet": (
        [(0, a(State.ACTIVE)), (1, a(State.DEAD)), (5, a(State.JOINING, run=2))],
        100,
        True,
    ),
    "and so does one that was not even noticed to be dead": (
        [(0, a(State.ACTIVE)), (5, a(State.JOINING, run=2))],
        6,
        True,
    ),
    "a restart after the grace begins anew": (
        [(0, a(State.ACTIVE)), (1, a(State.DEAD)), (100, a(State.JOINING, run=2))],
        101,
        False,
    ),
    "and then has a place again": (
        [(0, a(State.DEAD)), (100, a(State.JOINING, run=2)), (101, a(State.ACTIVE, run=2))],
        102,
        True,
    ),
    "a second death has a grace of its own": (
        [(0, a(State.DEAD)), (50, a(State.ACTIVE, run=2)), (55, a(State.DEAD, run=2))],
        114,
        True,
    ),
    "also when nobody saw it alive in between": (
        [(0, a(State.DEAD)), (55, a(State.DEAD, run=2))],
        114,
        True,
    ),
}


@pytest.mark.parametrize(("news", "at_s", "is_placed"), CASES.values(), ids=CASES.keys())
def test_who_has_a_place(news: list[tuple[float, Member]], at_s: float, is_placed: bool) -> None:
    assert only(told(*news).view(at_s)).is_placed is is_placed


@given(
    before=st.lists(st.sampled_from(HERE), max_size=4),
    gone=st.sampled_from(GONE),
    grace_s=st.floats(0.1, 100),
    after_s=st.floats(0, 200),
)
def test_a_dead_one_keeps_its_place_exactly_for_the_grace(
    before: list[State], gone: State, grace_s: float, after_s: float
) -> None:
    news = [(0.0, a(state)) for state in [*before, State.ACTIVE, gone]]
    member = only(told(*news, grace_s=grace_s).view(after_s))
    assert member.state is gone
    assert member.is_placed is (after_s < grace_s)


@given(gone=st.sampled_from(GONE), grace_s=st.floats(0.1, 100))
def test_the_next_change_is_when_the_view_changes(gone: State, grace_s: float) -> None:
    """Who sleeps until then sees another view, and is told of a later moment or of none."""
    roster = told((0.0, a(gone)), grace_s=grace_s)
    seen, now_s = [roster.view(0.0)], 0.0
    while (next_s := roster.next_change_s(now_s)) is not None:
        assert next_s > now_s
        assert roster.view((now_s + next_s) / 2) == seen[-1]
        seen.append(roster.view(next_s))
        now_s = next_s
    assert [len(view.placed) for view in seen] == [1, 0, 0]
    assert [len(view.members) for view in seen] == [1, 1, 0]
    assert now_s == grace_s + FORGET_S


def test_what_is_said_of_an_earlier_run_is_dropped() -> None:
    roster = told(
        (0, a(State.ACTIVE)),
        (1, a(State.ACTIVE, run=2, address="host-b:9")),
        (2, a(State.DEAD)),
        (3, a(State.SUSPECT)),
    )
    member = only(roster.view(4))
    assert (member.state, member.run, member.address) == (State.ACTIVE, 2, "host-b:9")
    roster.mark("id-a", 1, State.DEAD, 5)
    assert only(roster.view(6)).state is State.ACTIVE
    roster.mark("id-a", 2, State.DEAD, 7)
    assert only(roster.view(8)).state is State.DEAD


def test_of_two_copies_of_a_data_directory_one_is_kept() -> None:
    twin = a(State.ACTIVE, address="host-b:9")
    roster = told((0, A), (1, twin), (2, replace(twin, state=State.DEAD)))
    assert only(roster.view(3)) == A
    # Once that one is gone, the other one is the peer.
    roster.hear(a(State.DEAD), 4)
    roster.hear(twin, 5)
    assert only(roster.view(6)) == twin


def test_marks_of_nobody_known_are_dropped() -> None:
    roster = Roster()
    roster.mark("id-a", 1, State.DEAD, 0)
    assert roster.known("id-a") is None
    assert roster.view(0).members == ()


# Many peers

names = st.sampled_from(["a", "b"])


@st.composite
def runs(draw: st.DrawFn) -> list[Member]:
    """News of distinct runs of some identities, some of which claim one name."""
    identities = draw(st.dictionaries(st.integers(0, 4), names, min_size=1))
    found = []
    for identity, name in identities.items():
        numbers = draw(st.lists(st.integers(1, 5), unique=True, min_size=1, max_size=3))
        found += [
            Member(
                name,
                f"host:{identity}{run}",
                id=f"id-{identity}",
                run=run,
                state=draw(st.sampled_from([*HERE, *GONE])),
            )
            for run in numbers
        ]
    return found


@given(news=runs(), order=st.randoms(use_true_random=False))
def test_any_order_of_the_same_news_of_distinct_runs_gives_the_same_view(
    news: list[Member], order: Random
) -> None:
    shuffled = list(news)
    order.shuffle(shuffled)
    assert told(*((0, m) for m in news)).view(1) == told(*((0, m) for m in shuffled)).view(1)


@given(news=runs(), order=st.randoms(use_true_random=False), gaps=st.lists(st.floats(0, 3)))
def test_homonyms_are_chosen_alike_whenever_they_were_heard(
    news: list[Member], order: Random, gaps: list[float]
) -> None:
    """Another rule, such as "who was heard first", would give each peer another ring."""
    here = [replace(member, state=State.ACTIVE) for member in news]
    shuffled = list(here)
    order.shuffle(shuffled)
    times = [*gaps, *([0.0] * len(here))]
    one = told(*((0, m) for m in here))
    other = told(*zip(times, shuffled, strict=False))
    assert one.view(10) == other.view(10)
    assert {(c.id, o.id) for c, o in one.homonyms(10)} == {
        (c.id, o.id) for c, o in other.homonyms(10)
    }


@given(news=runs())
def test_a_later_run_wins_and_each_name_is_there_once(news: list[Member]) -> None:
    view = told(*((0, m) for m in news)).view(1)
    assert [m.name for m in view.members] == sorted({m.name for m in news})
    for member in view.members:
        assert member.run == max(m.run for m in news if m.id == member.id)
        same_name = [m for m in news if m.name == member.name]
        latest = [max((m for m in same_name if m.id == i), key=lambda m: m.run)
                  for i in {m.id for m in same_name}]  # fmt: skip
        if any(m.is_here for m in latest):
            assert member.is_here
            here = [m for m in latest if m.is_here]
            if all(m.state is State.ACTIVE for m in here):
                assert member.id == min(m.id for m in here)


def test_a_newcomer_takes_the_name_of_nobody_who_has_a_place() -> None:
    """It was given a name that is taken; it will see that, and stop."""
    old = Member("a", "host:1", id="id-2")
    new = Member("a", "other:1", id="id-1", state=State.JOINING)
    assert only(told((0, old), (1, new)).view(2)) == old
    assert only(told((0, new), (1, old)).view(2)) == old


def test_a_homonym_that_died_long_ago_takes_no_place_from_one_that_just_died() -> None:
    """A host was set up anew under its old name, and restarts."""
    old = Member("a", "host:1", id="id-1", state=State.DEAD)
    new = Member("a", "host:1", id="id-2", state=State.DEAD)
    member = only(told((0, old), (100, new)).view(101))
    assert (member.id, member.is_placed) == ("id-2", True)


def test_homonyms_are_named() -> None:
    first, second = Member("a", "x:1", id="id-1"), Member("a", "y:1", id="id-2")
    roster = told((0, second), (5, first))
    assert roster.homonyms(6) == [(first, second)]
    roster.hear(replace(first, state=State.DEAD), 7)
    assert roster.homonyms(8) == []
    assert only(roster.view(8)) == second


# Epochs

fields = st.fixed_dictionaries(
    {
        "name": names,
        "address": st.sampled_from(["h:1", "h:2"]),
        "zone": st.sampled_from(["", "z"]),
        "weight": st.sampled_from([1.0, 2.0]),
        "id": st.sampled_from(["1", "2"]),
        "state": st.sampled_from([*HERE, *GONE]),
        "run": st.integers(0, 1),
        "portion": st.sampled_from([0.5, 1.0]),
        "gossip": st.sampled_from(["", "h:3"]),
        "is_placed": st.booleans(),
    }
)
views = st.lists(fields, max_size=3, unique_by=lambda f: f["name"]).map(
    lambda found: view_of(Member(**each) for each in found)
)


@given(one=views, other=views)
def test_epochs_are_equal_when_the_members_are_and_only_then(one: View, other: View) -> None:
    """Those who are gone for good don't count: a newcomer has never heard of them."""

    def counted(view: View) -> list[Member]:
        return [member for member in view.members if member.is_here or member.is_placed]

    assert (one.epoch == other.epoch) is (counted(one) == counted(other))


def test_where_the_bulk_channel_is_is_no_part_of_the_epoch() -> None:
    """Who is in a static list says so only when it is asked, and older releases don't."""
    one, other = Member("a", "h:1"), Member("a", "h:1", bulk_port=7)
    assert view_of([one]).epoch == view_of([other]).epoch
    assert view_of([one]) != view_of([other])
    assert view_from_json(view_to_json(view_of([other]))) == view_of([other])


@pytest.mark.parametrize("port", [-1, 1 << 16])
def test_no_member_has_a_bulk_channel_where_there_is_no_port(port: int) -> None:
    with pytest.raises(ValueError, match=f"bulk port of peer a is {port}, need 0 to 65535"):
        Member("a", "h:1", bulk_port=port)


def test_who_is_at_an_address_is_who_is_here() -> None:
    gone = Member("a", "h:1", state=State.DEAD)
    assert view_of([gone]).at("h:1") is None
    assert view_of([gone, Member("b", "h:1")]).at("h:1") == Member("b", "h:1")


@given(view=views, order=st.randoms(use_true_random=False))
def test_an_epoch_does_not_hang_on_the_order(view: View, order: Random) -> None:
    members = list(view.members)
    order.shuffle(members)
    assert view_of(members) == view


def test_what_a_view_names() -> None:
    here, gone = A, Member("b", "h:1", state=State.DEAD, is_placed=False)
    view = view_of([gone, here])
    assert (view.here, view.placed) == ((here,), (here,))
    assert view.find("b") is view.member("b") is gone
    assert view.find("c") is None
    with pytest.raises(KeyError):
        view.member("c")


@pytest.mark.parametrize(("field", "value"), [("weight", 0.1), ("weight", 5), ("portion", 0)])
def test_members_that_make_no_sense(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{field} of peer a is {value:g}, need"):
        replace(A, **{field: value})


@given(view=views, weight=st.sampled_from([1, 2, 0.25, 1 / 3]))
def test_a_view_is_the_same_after_a_journey(view: View, weight: float) -> None:
    view = view_of(replace(member, weight=weight) for member in view.members)
    assert view_from_json(view_to_json(view)) == view
