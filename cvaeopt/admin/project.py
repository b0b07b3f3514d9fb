"""The files of a new project folder."""

from __future__ import annotations

from importlib.resources import files
from typing import Final

STUDIES: Final = ("main", "wide")
"""The studies that people edit first; the other shipped ones are found by their names wherever one works."""

_TEMPLATES: Final = {"README.md": "README.md", ".env.example": "env.example", ".gitignore": "gitignore"}


def project_files() -> dict[str, str]:
    """The text of each file of a new project, by its path below the project folder."""
    package = files("cvaeopt")
    templates, studies = package / "admin" / "templates", package / "studies"
    made = {name: (templates / source).read_text(encoding="utf-8") for name, source in _TEMPLATES.items()}
    return {**made, **{f"studies/{name}.toml": (studies / f"{name}.toml").read_text("utf-8") for name in STUDIES}}
