"""The files of a new project folder."""

from __future__ import annotations

from importlib.resources import files
from typing import Final

STUDIES: Final = ("main", "wide")
"""The studies that users usually edit first. Commands find the other included studies by name in any folder."""

_TEMPLATES: Final = {"README.md": "README.md", ".env.example": "env.example", ".gitignore": "gitignore"}


def project_files() -> dict[str, str]:
    """The files of a new project: path relative to the project folder -> text."""
    package = files("cvaeopt")
    templates, studies = package / "admin" / "templates", package / "studies"
    made = {name: (templates / source).read_text(encoding="utf-8") for name, source in _TEMPLATES.items()}
    return {**made, **{f"studies/{name}.toml": (studies / f"{name}.toml").read_text("utf-8") for name in STUDIES}}
