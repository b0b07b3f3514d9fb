"""A project begins in an empty folder: `cvaeopt init`, and the studies that come with the package."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from cvaeopt.admin.project import project_files
from tests.support.command import Shop

STUDIES = Path(__file__).parents[2] / "studies"


@pytest.fixture
def empty(tmp_path: Path) -> Shop:
    (tmp_path / "here").mkdir()
    return Shop(tmp_path / "here", tmp_path / "data")


def texts(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_an_empty_folder_becomes_a_project_and_a_second_time_nothing_changes(empty: Shop) -> None:
    first = empty.run("init", "--json")
    assert first.code == 0
    written = texts(empty.root)
    assert set(json.loads(first.out)["written"]) == set(written) == set(project_files())
    assert written["studies/main.toml"] == (STUDIES / "main.toml").read_text()
    (empty.root / "studies/main.toml").write_text("mine")
    (empty.root / ".env.example").unlink()
    again = empty.run("init", "--json")
    assert json.loads(again.out)["written"] == [".env.example"]
    assert texts(empty.root) == {**written, "studies/main.toml": "mine"}


def test_a_dry_run_writes_nothing_and_a_file_in_the_way_is_named(empty: Shop) -> None:
    shown = empty.run("init", "a project", "--dry-run")
    assert shown.code == 0
    assert "would write: a project/studies/main.toml" in shown.text
    assert not texts(empty.root)
    (empty.root / "taken").write_text("")
    refused = empty.run("init", "taken/below")
    assert (refused.code, "taken is a file" in refused.text) == (2, True)
    assert "cd 'a project'" in empty.run("init", "a project").text


def test_the_studies_of_the_package_run_where_there_are_none_and_it_is_said(empty: Shop) -> None:
    shown = empty.run("worker", "--study", "wide", "--dry-run")
    assert (shown.code, "There is no studies/wide.toml here" in shown.err) == (0, True)
    empty.run("init")
    shown = empty.run("worker", "--study", "wide", "--dry-run")
    assert (shown.code, "There is no" in shown.text) == (0, False)


def test_the_readme_of_a_project_shows_commands_that_exist_and_fits_on_a_screen(empty: Shop) -> None:
    text = project_files()["README.md"]
    assert len([line for line in text.splitlines() if line]) <= 13
    shown = set(re.findall(r"cvaeopt ([a-z-]+)", text.split("\n", 1)[1]))
    assert {"check-data", "confirm", "report", "hand-in"} <= shown
    assert shown and all(empty.run(name, "--help").code == 0 for name in shown)


def test_the_settings_of_a_project_are_variables_of_the_commands(empty: Shop) -> None:
    names = re.findall(r"(?m)^(CVAEOPT_\w+)=", project_files()[".env.example"])
    helped = empty.run("worker", "--help").out
    assert names and all(name in helped for name in names)
