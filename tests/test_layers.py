"""The floors of the house (docs/architecture.md): an import only ever points down.

Read from the source, so imports inside functions count as well; those for type checkers do not.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

PACKAGE = Path(__file__).parent.parent / "rtpool_sync"

#: Room → floor. A new module or package has to be declared here, and described in docs/architecture.md.
FLOORS = {
    "errors": 0,
    "config": 0,
    "converters": 0,
    "settings": 1,
    "transport": 1,
    "protocols": 1,
    "patching": 1,
    "birthplace": 1,
    "policy": 1,
    "stats": 1,
    "observers": 1,
    "events": 1,
    "connection": 2,
    "view": 2,
    "pool": 3,
    "reaper": 3,
    "connector": 3,
    "registry": 3,
    "ledger": 3,
    "loop": 3,
    "lifecycle": 3,
    "dialing": 3,
    "__init__": 3,
    "metrics": 4,
    "web": 4,
    "status": 4,
    "diagnosis": 4,
    "contrib": 5,
    "bridges": 5,
    "cli": 5,
    "compat": 5,
    "emulator": 5,
    "pytest_plugin": 5,
    "__main__": 6,
}
TOP = 5
#: On the top floor nobody knows a neighbour, but for these. True: only inside a function.
NEIGHBOURS = {("cli", "emulator"): True, ("pytest_plugin", "emulator"): True}
#: What anybody may take from the package itself.
CONSTANTS = {"__version__"}


class Import(NamedTuple):
    line: int
    room: str
    lazy: bool


def room_of(module: tuple[str, ...]) -> str:
    return module[0] if module else "__init__"


def imports(source: str, module: tuple[str, ...], is_package: bool, rooms: set[str]) -> list[Import]:
    """The rooms that ``rtpool_sync.<module>`` imports."""
    found = []
    tree = ast.parse(source)
    lazy = {
        inner
        for outer in ast.walk(tree)
        if isinstance(outer, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for inner in ast.walk(outer)
    }
    here = ("rtpool_sync", *module)
    unreal = {
        inner
        for outer in ast.walk(tree)
        if isinstance(outer, ast.If) and ast.unparse(outer.test) == "TYPE_CHECKING"
        for statement in outer.body
        for inner in ast.walk(statement)
    }
    for node in ast.walk(tree):
        if node in unreal:
            continue
        targets: list[tuple[str, ...]] = []
        if isinstance(node, ast.Import):
            targets = [tuple(alias.name.split(".")) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = tuple(node.module.split(".")) if node.module else ()
            if node.level:
                up = node.level - is_package
                base = here[: len(here) - up] + base
            names = {alias.name for alias in node.names}
            if base == ("rtpool_sync",):
                # `from . import errors` names a room, `from . import RealtimePool` the package itself.
                targets = [(*base, name) if name in rooms else base for name in names - CONSTANTS]
            else:
                targets = [base]
        for target in targets:
            if target[:1] == ("rtpool_sync",):
                found.append(Import(node.lineno, room_of(target[1:]), node in lazy))
    return found


def faults(sources: dict[str, str]) -> list[str]:
    """What is wrong with a package, given as path → source."""
    modules = {}
    for path in sources:
        parts = Path(path).with_suffix("").parts
        is_package = parts[-1] == "__init__"
        modules[path] = (parts[:-1] if is_package else parts, is_package)
    rooms = {room_of(module) for module, _ in modules.values()}
    wrong = [f"{room} is on no floor: declare it in test_layers.py" for room in sorted(rooms - set(FLOORS))]
    for path, (module, is_package) in sorted(modules.items()):
        room = room_of(module)
        if room not in FLOORS:
            continue
        for line, other, lazy in imports(sources[path], module, is_package, rooms):
            if other == room or other not in FLOORS:
                continue
            if FLOORS[other] > FLOORS[room]:
                wrong.append(
                    f"{path}:{line}: {room} (floor {FLOORS[room]}) imports {other} ({FLOORS[other]})"
                )
            elif FLOORS[other] == FLOORS[room] == TOP:
                must_be_lazy = NEIGHBOURS.get((room, other))
                if must_be_lazy is None:
                    wrong.append(f"{path}:{line}: {room} imports its neighbour {other}")
                elif must_be_lazy and not lazy:
                    wrong.append(f"{path}:{line}: {room} may import {other} only inside a function")
    return wrong


def test_imports_point_down() -> None:
    sources = {
        str(path.relative_to(PACKAGE)): path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py")
    }
    assert "errors.py" in sources
    assert faults(sources) == []


@pytest.mark.parametrize(
    ("path", "source", "fault"),
    [
        ("transport/stream.py", "from ..pool import RealtimePool", "transport (floor 1) imports pool (3)"),
        ("errors.py", "from . import config, pool", "errors (floor 0) imports pool (3)"),
        ("errors.py", "import rtpool_sync.settings", "errors (floor 0) imports settings (1)"),
        ("policy.py", "def f():\n    from rtpool_sync.pool import x", "policy (floor 1) imports pool (3)"),
        ("policy.py", "from . import RealtimePool", "policy (floor 1) imports __init__ (3)"),
        ("protocols/__init__.py", "from ..connection import x", "protocols (floor 1) imports connection (2)"),
        ("compat.py", "from .cli import main", "compat imports its neighbour cli"),
        ("cli/demo.py", "from ..emulator import x", "cli may import emulator only inside a function"),
        ("helpers.py", "", "helpers is on no floor"),
        ("policy.py", "from . import __version__", None),
        ("policy.py", "if TYPE_CHECKING:\n    from .pool import x", None),
        (
            "policy.py",
            "if TYPE_CHECKING:\n    pass\nelse:\n    from .pool import x",
            "policy (floor 1) imports",
        ),
        ("cli/demo.py", "def f():\n    from ..emulator import x", None),
        ("pool.py", "from .reaper import Reaper\nfrom .errors import x\nimport os", None),
    ],
)
def test_the_test_sees(path: str, source: str, fault: str | None) -> None:
    rest = {f"{room}.py": "" for room in ("pool", "config", "settings", "connection", "reaper", "__init__")}
    found = faults({**rest, path: source})
    assert [fault in line for line in found] == [True] if fault else found == []


def test_importing_the_package_is_light() -> None:
    """By itself it loads nothing; its names load no optional library, and only what making a pool needs."""
    # Of websockets only the C function that masks may be there (extra `speed`).
    heavy = [
        "dynaconf",
        "websockets.frames",
        "websockets.protocol",
        "openai",
        "flask",
        "django",
        "prometheus_client",
        "rich",
        "trustme",
    ]
    program = (
        "import sys, rtpool_sync; print([name for name in sys.modules if name.startswith('rtpool_sync.')])\n"
        f"from rtpool_sync import *; print([name for name in {heavy} if name in sys.modules])"
    )
    done = subprocess.run(
        # Coverage stays out: what counts is what a user's process loads.
        [sys.executable, "-c", program],
        env={"PYTHONPATH": str(PACKAGE.parent)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines() == ["[]", "[]"]


def test_its_modules_are_there_without_being_imported() -> None:
    program = "import rtpool_sync; print(rtpool_sync.errors.PoolTimeout is rtpool_sync.PoolTimeout)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"
