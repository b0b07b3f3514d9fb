"""What the documentation says is there, and what is there is documented."""

from __future__ import annotations

import ast
import functools
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = sorted(
    path
    for path in ROOT.rglob("*.md")
    if not any(part.startswith(".") or part == "demo" for part in path.parts[len(ROOT.parts) :])
)
README = (ROOT / "README.md").read_text()
DOCS = ROOT / "docs"
COMMANDS = (DOCS / "commands.md").read_text()


def commands() -> set[str]:
    """The names of all commands, as `--help` lists them; of a group both words, such as "admin backup"."""
    import typer

    from cvaeopt.cli import app

    def names(group: typer.Typer) -> Iterator[str]:
        for command in group.registered_commands:
            assert command.callback is not None
            yield command.name or command.callback.__name__.replace("_", "-")

    below = {f"{group.name} {name}" for group in app.registered_groups for name in names(group.typer_instance)}
    return {*names(app), *below}


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= 150


def test_every_command_has_its_row() -> None:
    rows = re.findall(r"(?m)^\| `cvaeopt ([a-z-]+)(?: ([a-z-]+))?", COMMANDS)
    assert commands() <= {first for first, _ in rows} | {f"{first} {second}" for first, second in rows}


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_command_and_option_that_a_page_shows_exists(page: Path) -> None:
    known = commands()
    for name, rest in re.findall(r"(?m)(?:^|`|\$ |\s)cvaeopt ([a-z][a-z-]+)((?: +[^`\n#|;]*)?)", page.read_text()):
        if name in ("is", "can", "and", "needs", "package", "command"):  # prose, not a command
            continue
        if name not in known:  # a group of commands
            name = " ".join([name, *rest.split()[:1]])
        assert name in known, f"{page.name} shows `cvaeopt {name}`"
        options = re.findall(r"(?<![\w-])--[a-z][a-z-]+", rest)
        shown = help_of(name)
        for option in options:
            assert option in shown, f"{page.name} shows `cvaeopt {name} {option}`"


@functools.cache
def help_of(name: str) -> str:
    from typer.testing import CliRunner

    from cvaeopt.cli import app

    shown = CliRunner().invoke(app, [*name.split(), "--help"])
    assert shown.exit_code == 0, name
    return shown.output


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_relative_link_lives(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.relative_to(ROOT)} links to {target}"


def test_the_python_of_the_pages_is_python_and_names_what_exists() -> None:
    import importlib

    blocks = [block for page in PAGES for block in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)]
    assert len(blocks) >= 3
    for block in blocks:
        tree = ast.parse(block)
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module:
                module = importlib.import_module(node.module)
                for alias in node.names:
                    assert hasattr(module, alias.name) or importlib.import_module(f"{node.module}.{alias.name}")


def test_the_readmes_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"`?make ([a-z]+)", README)):
        assert re.search(rf"(?m)^{target}:", makefile), target


def test_every_message_of_the_troubleshooting_page_is_one_of_the_programs() -> None:
    messages = re.findall(r"(?m)^\| `([^`]+)` \|", (DOCS / "troubleshooting.md").read_text())
    assert len(messages) >= 10
    sources = " ".join(path.read_text() for path in sorted((ROOT / "cvaeopt").rglob("*.py")))
    for message in messages:
        assert message in sources, message


def test_the_documentation_says_where_to_add_things_and_the_files_exist() -> None:
    table = re.search(r"\| to add \|.*?\n\n", (DOCS / "architecture.md").read_text(), re.DOTALL)
    assert table is not None
    named = re.findall(r"`([a-z_/]+\.(?:py|md))`", table.group())
    assert len(named) >= 9
    for path in named:
        assert (ROOT / path).exists(), path


def test_the_documentation_says_where_things_are_and_the_files_exist() -> None:
    table = re.search(r"\| file in `cvaeopt/` \|.*?\n\n", (DOCS / "architecture.md").read_text(), re.DOTALL)
    assert table is not None
    named = re.findall(r"`([a-z_/]+\.py)`", table.group())
    assert len(named) >= 20
    for path in named:
        assert (ROOT / "cvaeopt" / path).exists(), path


def test_the_site_is_built_without_a_warning_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )
    assert built.returncode == 0, built.stderr
    assert (tmp_path / "search" / "search_index.js").stat().st_size > 10_000
    named = set(re.findall(r"(?m)^ +- .*?([\w/-]+)\.md$", (ROOT / "mkdocs.yml").read_text()))
    assert {"docs/commands", "studies/README", "docs/zh-TW/quick-start"} <= named
    for name in named:
        page = (tmp_path / ("index" if name == "README" else name)).with_suffix(".html")
        if not page.is_file():
            page = tmp_path / name.replace("README", "index")
            page = page.with_suffix(".html")
        foreign = re.findall(r"<(?:script|link|img)[^>]*(?:src|href)=\"?(https?://[^\s\">]+)", page.read_text())
        assert foreign == [], page


def test_exit_codes_of_the_documentation_are_those_of_the_errors() -> None:
    from cvaeopt import errors

    sentence = re.search(r"Exit codes: (.*?)\n\n", COMMANDS, re.DOTALL)
    assert sentence is not None
    stated = {int(code) for code in re.findall(r"\b(\d+) ", sentence.group(1))}
    assert stated == {
        0,
        errors.UserError.exit_code,
        errors.StorageUnreachable.exit_code,
        errors.TryAgain.exit_code,
        errors.Interrupted.exit_code,
    }
