"""The floors of the house: a module imports only from lower floors, and some doors stay shut.

The table below is the order of the rooms. Two of them differ from the first plan: `outcome.charts` and
`outcome.pictures` stand below `search`, because a trial leaves pictures; and `search.events` is a list of facts on the
ground floor of `search`, which the terminal reads.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "cvaeopt"

FLOORS = [
    ["__init__", "errors", "spelling", "streams", "signals"],
    ["files", "search.events", "vae.device", "vae.metrics", "vae.pictures", "tomlfile", "search.password"],
    ["config", "vae.dataset", "demo_data.choreography", "outcome.noise"],
    ["demo_data.skeleton", "vae.schedules", "vae.model", "outcome.importance", "search.estimate", "search.surrogate"],
    ["demo_data.drawing", "vae.rollout", "vae.checkpoint", "outcome.charts", "outcome.transfer", "search.forecast"],
    ["demo_data.writer", "vae.loss", "outcome.pictures", "outcome.recipe", "search.pruning"],
    ["vae.lanes"],
    ["vae.trainer", "outcome.predict"],
    ["search.space", "search.storage", "outcome.score"],
    ["search.definition", "search.fleet", "search.checkpoints", "search.quasirandom"],
    ["search.bayes"],
    ["search.sampling", "search.courier"],
    ["search.study", "search.objective", "search.worker"],
    ["search.dashboard", "search.gallery", "search.confirmation", "outcome.trials", "outcome.retrain"],
    ["outcome.confirmed"],
    ["outcome.export", "outcome.locate", "outcome.study_charts", "outcome.settings_charts"],
    ["outcome.report_text"],
    ["outcome.report_data"],
    ["outcome.report_pictures"],
    ["outcome.report"],
    ["console"],
    ["watching", "smoke", "crew"],
    ["cli"],
]
FLOOR = {module: number for number, modules in enumerate(FLOORS) for module in modules}

SHUT = {
    "vae": ("cvaeopt.search", "cvaeopt.outcome", "optuna", "sqlalchemy", "rich", "typer"),
    "search": ("rich", "typer", "matplotlib", "cvaeopt.console"),
    "outcome": ("rich", "typer", "cvaeopt.console"),
    "outcome.charts": ("cvaeopt.search", "optuna", "sqlalchemy"),
    "outcome.pictures": ("cvaeopt.search", "optuna", "sqlalchemy"),
    "outcome.noise": ("cvaeopt.search", "optuna", "sqlalchemy"),
    "outcome.predict": ("cvaeopt.search", "optuna", "sqlalchemy"),
    "outcome.recipe": ("cvaeopt.search", "optuna", "sqlalchemy"),
    "outcome.retrain": ("cvaeopt.search", "optuna", "sqlalchemy"),
    "outcome.score": ("cvaeopt.search", "optuna", "sqlalchemy"),
    "outcome.transfer": ("cvaeopt.search", "optuna", "sqlalchemy"),
    "console": ("torch", "optuna", "sqlalchemy"),
}

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


def test_every_module_has_a_floor_and_every_floor_its_modules() -> None:
    assert set(MODULES) == set(FLOOR)
    assert len(FLOOR) == sum(map(len, FLOORS))


@pytest.mark.parametrize("module", sorted(MODULES))
def test_a_module_imports_only_from_lower_floors(module: str) -> None:
    above = {room for room in rooms_of(MODULES[module]) if FLOOR[room] >= FLOOR[module]}
    assert not above, f"{module} (floor {FLOOR[module]}) imports {sorted(above)}"


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


@pytest.mark.parametrize("module", sorted(set(MODULES) - {"cli", "console"}))
def test_only_the_command_line_prints_and_exits(module: str) -> None:
    for node in ast.walk(MODULES[module]):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in ("print", "exit", "quit", "input"), f"{module}:{node.lineno}"
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            called = f"{node.value.id}.{node.attr}"
            assert called not in ("sys.exit", "sys.stdout", "sys.stderr", "os._exit"), f"{module}:{node.lineno}"
        if isinstance(node, ast.Name):
            assert node.id != "SystemExit", f"{module}:{node.lineno}"


def test_nothing_heavy_is_imported_before_a_command_runs() -> None:
    tree = ast.Module([node for node in MODULES["cli"].body if not is_type_checking(node)], [])
    top = ast.Module([node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)], [])
    assert rooms_of(top) == {"__init__", "console", "errors", "signals", "streams"}
    assert not imports_of(top) & {"torch", "optuna", "sqlalchemy", "numpy", "matplotlib"}


def is_type_checking(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
