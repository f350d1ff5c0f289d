"""Who is whose neighbor."""

from __future__ import annotations

from random import Random

import pytest

from mesh.swarm.graph import DEGREE, DEGREE_MAX, DEGREE_MIN, EXPIRES_S, Graph


def graph_of(count: int, *, zones: int = 1) -> Graph:
    graph = Graph(Random(1))
    for number in range(count):
        graph.join(0.0, f"peer-{number}", zone=f"zone-{number % zones}")
    for number in range(count):  # as a heartbeat does
        graph.join(1.0, f"peer-{number}", zone=f"zone-{number % zones}")
    return graph


def neighbors(graph: Graph, name: str, zone: str = "zone-0") -> list[str]:
    return graph.join(1.0, name, zone=zone)


@pytest.mark.parametrize("count", [2, 8, DEGREE + 1])
def test_a_few_all_know_each_other(count: int) -> None:
    graph = graph_of(count)
    for number in range(count):
        assert len(neighbors(graph, f"peer-{number}")) == count - 1


def test_of_many_each_has_some_and_none_has_all() -> None:
    graph = graph_of(1000)
    degrees = [degree for _, _, degree in graph.readers]
    assert min(degrees) >= DEGREE_MIN
    assert max(degrees) <= DEGREE_MAX
    assert abs(sum(degrees) / len(degrees) - DEGREE) < 3


def test_from_each_one_can_walk_to_all_others() -> None:
    graph = graph_of(500)
    met, walk = {"peer-0"}, ["peer-0"]
    while walk:
        for other in neighbors(graph, walk.pop()):
            if other not in met:
                met.add(other)
                walk.append(other)
    assert len(met) == 500


def test_most_neighbors_are_in_the_own_zone_and_some_are_not() -> None:
    graph = graph_of(200, zones=4)
    zone_of = {f"peer-{n}": f"zone-{n % 4}" for n in range(200)}
    near = far = 0
    for name, zone in zone_of.items():
        for other in neighbors(graph, name, zone):
            near += zone_of[other] == zone
            far += zone_of[other] != zone
    assert near > 1.5 * far
    assert far > 0


def test_who_speaks_no_more_is_forgotten_and_replaced() -> None:
    graph = graph_of(100)
    left = {f"peer-{n}" for n in range(0, 100, 2)}
    for _ in range(2):
        for name in left:
            graph.join(EXPIRES_S + 2.0, name)
    assert len(graph) == len(left)
    for name in left:
        assert set(graph.join(EXPIRES_S + 2.0, name)) <= left
    assert min(degree for _, _, degree in graph.readers) >= DEGREE_MIN


def test_who_does_not_answer_is_no_neighbor() -> None:
    graph = graph_of(5)
    assert "peer-1" not in graph.join(1.0, "peer-0", gone=["peer-1"])
    graph.leave("peer-2")
    assert set(graph.join(1.0, "peer-0", gone=["peer-1"])) == {"peer-3", "peer-4"}


def test_an_owner_that_knows_nothing_learns_it_from_those_who_do() -> None:
    """Its predecessor died: the graph is as it was once all have spoken."""
    old, new = graph_of(60), Graph(Random(2))
    known = {f"peer-{n}": set(neighbors(old, f"peer-{n}")) for n in range(60)}
    for _ in range(2):
        for name, others in known.items():
            new.join(2.0, name, known=sorted(others))
    for name, others in known.items():
        assert others <= set(new.join(2.0, name))
