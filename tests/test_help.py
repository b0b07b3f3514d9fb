"""What `--help` says of every command, and what the shell completes."""

from __future__ import annotations

import contextlib
import io
import os
import shlex
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import typer

from cvaeopt import cli
from cvaeopt.commands.help import EXAMPLES


def commands(group: Any = None, above: str = "") -> Iterator[tuple[str, Any]]:
    """Every command with its name; of a group both words, such as "admin backup"."""
    for name, command in (group or typer.main.get_command(cli.app)).commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, f"{name} ")
        else:
            yield above + name, command


COMMANDS = dict(commands())


def cvaeopt(*words: str, folder: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """`python -m cvaeopt WORDS` at 80 columns."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith("CVAEOPT_")}
    return subprocess.run(
        [sys.executable, "-m", "cvaeopt", *words],
        cwd=folder,
        env={**clean, "COLUMNS": "80", **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_help_is_there_for_every_command_and_loads_nothing_heavy() -> None:
    code = """
import sys
from cvaeopt.cli import main
for name in ["", *sys.argv[1:]]:
    sys.argv = ["cvaeopt", *name.split(), "--help"]
    try:
        main()
    except SystemExit as ended:
        assert not ended.code, name
heavy = {"torch", "optuna", "sqlalchemy", "numpy", "matplotlib"} & set(sys.modules)
assert not heavy, heavy
"""
    ended = subprocess.run([sys.executable, "-c", code, *COMMANDS], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("Usage: cvaeopt") == len(COMMANDS) + 1
    assert ended.stdout.count("\n  Examples:\n") == len(COMMANDS)
    assert ended.stderr == ""


def test_no_summary_is_cut_at_80_columns_and_every_command_stands_in_one_group() -> None:
    shown = {line.strip() for group in ((), ("admin",)) for line in cvaeopt(*group, "--help").stdout.splitlines()}
    assert {"Search:", "Results:", "Data:", "Service:"} <= shown
    rows = [line.partition(" ") for line in shown]
    for name, command in COMMANDS.items():
        summary = command.help.partition("\n")[0]
        assert len(summary) < 50, name
        assert sum(first == name.split()[-1] and rest.strip() == summary for first, _, rest in rows) == 1, name


@pytest.mark.parametrize("name", COMMANDS)
def test_every_example_can_be_typed(name: str) -> None:
    assert EXAMPLES[name]
    for example in EXAMPLES[name]:
        words = shlex.split(example)
        assert " ".join(words[: len(name.split())]) == name
        COMMANDS[name].make_context(name, words[len(name.split()) :])  # a usage error is raised here


def test_no_example_is_left_of_a_command_that_is_gone() -> None:
    assert EXAMPLES.keys() == COMMANDS.keys()


# ---- completion


def completed(folder: Path, line: str, **environment: str) -> list[str]:
    """What bash proposes at the end of `line`."""
    asked = {"_CVAEOPT_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(len(line.split(" ")) - 1)}
    out, err = io.StringIO(), io.StringIO()
    with (
        mock.patch.dict(os.environ, {**asked, **environment}),
        mock.patch.object(sys, "argv", ["cvaeopt"]),
        contextlib.chdir(folder),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        pytest.raises(SystemExit) as ended,
    ):
        cli.main()
    assert (ended.value.code, err.getvalue()) == (0, "")
    return out.getvalue().split()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the files of two studies, one of them in its database beside a third one."""
    (tmp_path / "studies").mkdir()
    (tmp_path / "storage").mkdir()
    for name in ("main", "demo"):
        (tmp_path / "studies" / f"{name}.toml").touch()
    for place, names in (("storage/cvaeopt.db", ("main", "main.confirm")), ("other.db", ("mine",))):
        with sqlite3.connect(tmp_path / place) as connection:
            connection.execute("CREATE TABLE cvaeopt_study (name TEXT)")
            connection.executemany("INSERT INTO cvaeopt_study VALUES (?)", [(name,) for name in names])
        connection.close()
    return tmp_path


@pytest.mark.parametrize(
    ("line", "proposed"),
    [
        ("status --study ", ["demo", "main", "main.confirm"]),
        ("worker --gpu 0 --study m", ["main", "main.confirm"]),
        ("admin delete d", ["demo"]),
        ("admin backup x.tar --study main.", ["main.confirm"]),
        ("status --storage sqlite:///other.db --study m", ["main", "mine"]),
        ("dashboard --study x", []),
        ("status --storage sqlite : ///other.db --study m", ["main"]),  # as bash splits a URL
        ("stat", ["status"]),
    ],
)
def test_the_shell_completes_the_names_of_studies(folder: Path, line: str, proposed: list[str]) -> None:
    assert completed(folder, f"cvaeopt {line}") == proposed


def test_completion_takes_the_storage_of_the_environment(folder: Path) -> None:
    assert completed(folder, "cvaeopt status --study mi", CVAEOPT_STORAGE="sqlite:///other.db") == ["mine"]


@pytest.mark.parametrize("url", ["postgresql://u@127.0.0.1:1/x", "sqlite:///torn.db", "sqlite://", "nonsense"])
def test_completion_is_silent_about_a_database_that_it_cannot_read(folder: Path, url: str) -> None:
    (folder / "torn.db").write_bytes(b"SQLite format 3\0" + bytes(50))
    assert completed(folder, f"cvaeopt status --storage {url} --study d") == ["demo"]


def test_completion_knows_the_studies_of_a_real_database(tmp_path: Path) -> None:
    from cvaeopt.search.definition import Definition
    from cvaeopt.store.opening import open_storage
    from cvaeopt.store.study import create_or_open

    tables = {"budget": {"trials": 1, "epochs": 1}, "search": {"lr": {"type": "float", "low": 0.1, "high": 0.2}}}
    with open_storage(f"sqlite:///{tmp_path}/real.db") as storage:
        create_or_open(storage, Definition.parse(tables, "stored", "a test"))
        assert completed(tmp_path, f"cvaeopt status --storage sqlite:///{tmp_path}/real.db --study ") == ["stored"]
