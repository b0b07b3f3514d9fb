"""The floors of the house: a folder of the package imports from lower folders only, and some doors stay shut."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "cvaeopt"

FLOORS = (
    "__init__",
    "errors",
    "spelling",
    "files",
    "tomlfile",
    "config",
    "text",
    "demo_data",
    "vae",
    "search",
    "suggest",
    "store",
    "pictures",
    "run",
    "outcome",
    "admin",
    "terminal",
    "commands",
    "cli",
    "__main__",
)
"""The rooms from the ground up: modules of the package itself, and folders."""

TRAINER_ONLY = ("cvaeopt.search", "cvaeopt.suggest", "cvaeopt.store", "cvaeopt.run", "optuna", "sqlalchemy")
"""What training, prediction and scores do without: they run where neither Optuna nor a database is installed."""

SHUT = {
    "demo_data": ("torch", *TRAINER_ONLY, "rich", "typer"),
    "vae": (*TRAINER_ONLY, "rich", "typer"),
    "search": ("rich", "typer", "matplotlib"),
    "suggest": ("sqlalchemy", "rich", "typer", "matplotlib"),
    "store": ("torch", "rich", "typer", "matplotlib"),
    "pictures": (*TRAINER_ONLY, "rich", "typer"),
    "run": ("rich", "typer", "matplotlib"),
    "outcome": ("rich", "typer"),
    "outcome.intervals": TRAINER_ONLY,
    "outcome.predict": TRAINER_ONLY,
    "outcome.recipe": TRAINER_ONLY,
    "outcome.rolling": TRAINER_ONLY,
    "outcome.retrain": TRAINER_ONLY,
    "outcome.score": TRAINER_ONLY,
    "outcome.transfer": TRAINER_ONLY,
    "terminal": ("torch", "optuna", "sqlalchemy"),
}

LIMITS = {"module": 400, "class": 250, "function": 60}
"""Lines at most: what is longer holds two things."""

PATHS = sorted(path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py" or path.parent == PACKAGE)


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


MODULES = {module_of(path): ast.parse(path.read_text()) for path in PATHS}


def imports_of(tree: ast.AST) -> set[str]:
    """Every module that `tree` imports anywhere, names imported from packages included ("cvaeopt.vae.dataset")."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide the floor"
            assert node.module is not None
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def rooms_of(tree: ast.AST) -> set[str]:
    """The modules of this package that `tree` imports."""
    own = {name.removeprefix("cvaeopt.") for name in imports_of(tree) if name.startswith("cvaeopt.")}
    return own & set(MODULES) | ({"__init__"} if "cvaeopt.__version__" in imports_of(tree) else set())


def room_of(module: str) -> str:
    return module.partition(".")[0]


def test_every_module_stands_in_a_room() -> None:
    assert {room_of(module) for module in MODULES} <= set(FLOORS)


@pytest.mark.parametrize("module", sorted(MODULES))
def test_a_module_imports_from_its_own_room_and_from_lower_ones(module: str) -> None:
    floor = FLOORS.index(room_of(module))
    above = {other for other in rooms_of(MODULES[module]) if FLOORS.index(room_of(other)) > floor}
    assert not above, f"{module} imports {sorted(above)}"


def test_no_two_modules_import_each_other() -> None:
    left = {module: rooms_of(tree) - {module} for module, tree in MODULES.items()}
    while free := {module for module, needs in left.items() if not needs & left.keys()}:
        for module in free:
            del left[module]
    assert not left, f"in circles, or above one: {sorted(left)}"


@pytest.mark.parametrize("module", sorted(MODULES))
def test_shut_doors_stay_shut(module: str) -> None:
    for room, doors in SHUT.items():
        if module == room or module.startswith(f"{room}."):
            opened = {
                name
                for name in imports_of(MODULES[module])
                if any(name == d or name.startswith(f"{d}.") for d in doors)
            }
            assert not opened, f"{module} imports {sorted(opened)}"


def test_the_packages_themselves_import_nothing_of_ours() -> None:
    for path in PACKAGE.rglob("__init__.py"):
        named = {name.partition(".")[0] for name in imports_of(ast.parse(path.read_text()))}
        assert named <= {"__future__", "importlib"}, path


SILENT = sorted(module for module in MODULES if room_of(module) not in ("cli", "commands", "terminal"))


@pytest.mark.parametrize("module", SILENT)
def test_only_the_command_line_prints_and_exits(module: str) -> None:
    for node in ast.walk(MODULES[module]):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in ("print", "exit", "quit", "input"), f"{module}:{node.lineno}"
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            called = f"{node.value.id}.{node.attr}"
            assert called not in ("sys.exit", "sys.stdout", "sys.stderr", "os._exit"), f"{module}:{node.lineno}"
        if isinstance(node, ast.Name):
            assert node.id != "SystemExit", f"{module}:{node.lineno}"


LIGHT = {"__init__", "errors", "run.signals", "text"}


@pytest.mark.parametrize("module", sorted(module for module in MODULES if room_of(module) in ("cli", "commands")))
def test_nothing_heavy_is_imported_before_a_command_runs(module: str) -> None:
    tree = ast.Module([node for node in MODULES[module].body if not is_type_checking(node)], [])
    top = ast.Module([node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)], [])
    assert {room for room in rooms_of(top) if room_of(room) not in ("commands", "terminal")} <= LIGHT
    assert not imports_of(top) & {"torch", "optuna", "sqlalchemy", "numpy", "matplotlib"}


def is_type_checking(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def test_nothing_outgrows_its_limit() -> None:
    lengths = [("module", name, len(path.read_text().splitlines())) for name, path in zip(MODULES, PATHS, strict=True)]
    for name, tree in MODULES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                assert node.end_lineno is not None
                kind = "class" if isinstance(node, ast.ClassDef) else "function"
                lengths.append((kind, f"{name}.{node.name}", node.end_lineno - node.lineno + 1))
    assert [entry for entry in lengths if entry[2] > LIMITS[entry[0]]] == []


def test_a_test_module_imports_from_no_other_test_module() -> None:
    tests = PACKAGE.parent / "tests"
    modules = {path.stem for path in tests.rglob("test_*.py")}
    for path in tests.rglob("*.py"):
        named = {
            part for name in imports_of(ast.parse(path.read_text())) for part in name.split(".") if "tests." in name
        }
        assert not named & modules, f"{path} imports {sorted(named & modules)}"


def test_benchmarks_and_what_they_share_with_tests_import_from_no_test() -> None:
    root = PACKAGE.parent
    for path in [*(root / "bench").glob("*.py"), *(root / "testbed").glob("*.py")]:
        assert not any(name.split(".")[0] == "tests" for name in imports_of(ast.parse(path.read_text()))), path
