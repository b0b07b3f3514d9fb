"""The commands of `cvaeopt admin`, and the files in storage/ that call them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cvaeopt.commands.admin import app

SCRIPTS = Path(__file__).parents[2] / "storage"
NAMES = sorted(command.callback.__name__ for command in app.registered_commands if command.callback)


def call(folder: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, *words]
    return subprocess.run(line, cwd=folder, env={**os.environ, **environment}, capture_output=True, text=True)


def test_a_command_runs_from_anywhere_and_never_prints_a_password(tmp_path: Path) -> None:
    missing = call(tmp_path, "-m", "cvaeopt", "admin", "backup", "x", CVAEOPT_STORAGE=f"sqlite:///{tmp_path}/none.db")
    assert (missing.returncode, "There is no database" in missing.stderr) == (2, True)
    url = "postgresql://u:se%40cret@127.0.0.1:1/x?connect_timeout=2"
    wrong = call(tmp_path, "-m", "cvaeopt", "admin", "upgrade", "--no-copy", "--storage", url)
    assert wrong.returncode == 3
    assert "***" in wrong.stderr
    assert "cret" not in wrong.stderr + wrong.stdout
    assert "Traceback" not in missing.stderr + wrong.stderr


@pytest.mark.parametrize("path", sorted(SCRIPTS.glob("*.py")), ids=lambda path: path.stem)
def test_the_old_files_call_their_command(path: Path, tmp_path: Path) -> None:
    shown = call(tmp_path, str(path), "--help")
    assert shown.returncode == 0
    assert f"Usage: cvaeopt admin {path.stem.partition('_')[0]} " in shown.stdout


@pytest.mark.parametrize("name", NAMES)
def test_every_command_is_in_the_readme_of_the_storage(name: str) -> None:
    assert f"`cvaeopt admin {name} " in (SCRIPTS / "README.md").read_text()
