"""The rooms of mesh import downwards only."""

import ast
from pathlib import Path

import pytest

HOUSE = Path(__file__).parent.parent / "mesh"

# From the ground up; a room may import rooms on lower floors, not its own floor.
FLOORS = [
    {"blocks", "budget", "clock", "errors", "metrics"},
    {"ring", "store", "understore", "membership", "wire", "swarm"},
    {"paths"},
    {"peer", "client"},
    {"fuse", "gateway", "testing"},
    {"cli"},
]
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
LINES_MAX = 500
FUNCTION_LINES_MAX = 70


def imported_rooms(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
            if node.module == "mesh":
                names.update(f"mesh.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
    return {name.split(".")[1] for name in names if name.startswith("mesh.")}


MODULES = [p for p in sorted(HOUSE.rglob("*.py")) if "gen" not in p.parts]


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(HOUSE)))
def test_imports_go_down(path: Path) -> None:
    room = path.relative_to(HOUSE).with_suffix("").parts[0]
    if room == "__init__":
        return
    for other in imported_rooms(path) - {room}:
        assert FLOOR[other] < FLOOR[room], f"{room} must not import {other}"


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(HOUSE)))
def test_files_and_functions_stay_short(path: Path) -> None:
    text = path.read_text()
    assert text.count("\n") <= LINES_MAX
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert (node.end_lineno or 0) - node.lineno < FUNCTION_LINES_MAX, node.name


def test_only_the_wire_sees_protobuf_and_only_fuse_sees_fuse() -> None:
    keepers = {"google.protobuf": {"wire"}, "pyfuse3": {"fuse"}, "lmdb": {"store", "client"}}
    for path in MODULES:
        room = path.relative_to(HOUSE).parts[0]
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            for name in names:
                for kept, rooms in keepers.items():
                    if name == kept or name.startswith(kept + "."):
                        assert room in rooms, f"{path} imports {name}"
