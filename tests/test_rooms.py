"""The rooms of the house: each imports from those below it, and from no other."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parent.parent
FLOORS = [
    {"common"},
    {"custom_resnet"},
    {"networks"},
    {"config"},
    {"machine"},
    {"images"},
    {"lightning_module", "datamodule"},
    {"training"},
    {"analysis"},
    {"train", "predict", "evaluate", "export", "report", "app"},
    {"sweep", "hubconf"},
    {"benchmarks"},
]
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
MODULES = sorted(
    path.relative_to(PROJECT)
    for room in FLOOR
    for path in (*PROJECT.glob(f"{room}.py"), *PROJECT.glob(f"{room}/**/*.py"))
)


def imports(path: Path) -> Iterator[str]:
    """Rooms that a module imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (name.name.split(".")[0] for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.split(".")[0]


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_imports_go_downwards(module: Path) -> None:
    room = module.parts[0].removesuffix(".py")
    for other in imports(PROJECT / module):
        if other in FLOOR and other != room:
            assert FLOOR[other] < FLOOR[room], other


def test_every_module_has_a_floor() -> None:
    found = {path.stem for path in PROJECT.glob("*.py")}
    found |= {path.parent.name for path in PROJECT.glob("*/__init__.py")}
    assert found - {"conftest"} == {*FLOOR}
