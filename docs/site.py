"""A hook of mkdocs: the site has every page of the project at its own path, so that all relative links live."""

from __future__ import annotations

import subprocess
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """All files of the project under version control, in place of those in `docs`; the theme's own files stay."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    theme = [file for file in files if Path(file.src_dir or "") != ROOT / "docs"]
    own = [
        File(path, str(ROOT), config.site_dir, config.use_directory_urls)
        for path in listed.splitlines()
        if not path.startswith((".", "tests/", "cvaeopt/", "bench/results/")) or path.endswith((".png", ".md", ".json"))
    ]
    return Files([*theme, *own])


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """The page with our own script for search from a folder, in place of one that would come from another server."""
    depth = page.url.count("/")
    return output.replace("https://unpkg.com/iframe-worker/shim", "../" * depth + "docs/worker.js")
