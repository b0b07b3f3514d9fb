"""The commands of `cvaeopt admin`, and the files that stand for them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cvaeopt.commands.admin import app

SCRIPTS = Path(__file__).parents[2] / "storage"


def test_scripts_run_from_anywhere_and_never_print_a_password(tmp_path: Path) -> None:
    def call(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        script, *rest = arguments
        return subprocess.run(
            [sys.executable, str(SCRIPTS / script), *rest],
            cwd=tmp_path,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
        )

    missing = call("backup.py", "x.tar", CVAEOPT_STORAGE=f"sqlite:///{tmp_path}/none.db")
    assert (missing.returncode, "There is no database" in missing.stderr) == (2, True)
    wrong = call("upgrade.py", "--no-copy", "--storage", "postgresql://u:se%40cret@127.0.0.1:1/x?connect_timeout=2")
    assert wrong.returncode == 3
    assert "***" in wrong.stderr
    assert "cret" not in wrong.stderr + wrong.stdout
    assert "Traceback" not in missing.stderr + wrong.stderr


@pytest.mark.parametrize("name", sorted(command.callback.__name__ for command in app.registered_commands))
def test_every_command_is_in_the_readme_of_the_storage(name: str) -> None:
    assert f"`cvaeopt admin {name} " in (SCRIPTS / "README.md").read_text()
