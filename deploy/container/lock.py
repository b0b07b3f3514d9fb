"""Writes requirements.txt beside it: what the image installs, in the versions of constraints.txt, with PyPI's hashes.

    python deploy/container/lock.py

Run it in the project's environment after a change of pyproject.toml or constraints.txt; it asks PyPI and installs
nothing. torch is left out: each of its indices (CPU, CUDA) has other files under the same version, and the CUDA
libraries that it brings are chosen by its wheel. The Dockerfile installs it by its version alone.
"""

from __future__ import annotations

import importlib.metadata
import json
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
TARGET = Path(__file__).with_name("requirements.txt")
EXTRAS = ("postgres", "s3")
PYTHON = "3.12"
MACHINES = ("x86_64", "aarch64")
WITHOUT_HASH = "torch"


def pins() -> dict[str, str]:
    """The lines of constraints.txt by the names of the packages."""
    lines = (line.partition("#")[0].strip() for line in (ROOT / "constraints.txt").read_text().splitlines())
    return {canonicalize_name(line.partition("==")[0]): line for line in lines if line}


def installed() -> list[str]:
    """The lines of constraints.txt that the image needs: our dependencies, and theirs, torch's included."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    stated = [*project["dependencies"], *(line for extra in EXTRAS for line in project["optional-dependencies"][extra])]
    waiting = [Requirement(line) for line in (*stated, "setuptools")]  # setuptools builds our own wheel
    names: set[tuple[str, str]] = set()
    while waiting:
        asked = waiting.pop()
        for extra in asked.extras or {""}:
            name = canonicalize_name(asked.name)
            if (name, extra) in names or name not in pins():
                continue  # the CUDA libraries are in no constraints: torch's wheel names their versions
            names.add((name, extra))
            here = {**default_environment(), "python_version": PYTHON, "extra": extra}
            further = [Requirement(line) for line in importlib.metadata.requires(name) or ()]
            waiting += [one for one in further if one.marker is None or one.marker.evaluate(here)]
    return [line for name, line in pins().items() if name in dict(names) and name != WITHOUT_HASH]


def hashes(lines: list[str], machine: str) -> dict[str, str]:
    """The SHA-256 of the wheel that pip would install on `machine`, by the package's name."""
    platforms = [f"manylinux_2_{minor}_{machine}" for minor in (28, 27, 26, 24, 17)] + [f"manylinux2014_{machine}"]
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--no-deps", "--quiet"]
        command += ["--only-binary", ":all:", "--implementation", "cp", "--python-version", PYTHON, "--target", folder]
        command += [f"--platform={platform}" for platform in platforms]
        subprocess.run([*command, "--report", str(report), *lines], check=True)
        found = json.loads(report.read_text())["install"]
    return {
        canonicalize_name(one["metadata"]["name"]): one["download_info"]["archive_info"]["hashes"]["sha256"]
        for one in found
    }


def main() -> None:
    lines = installed()
    by_machine = [hashes(lines, machine) for machine in MACHINES]
    text = "# Written by lock.py from constraints.txt; not edited by hand.\n"
    for line in lines:
        name = canonicalize_name(line.partition("==")[0])
        sums = sorted({sums[name] for sums in by_machine})
        text += " \\\n    ".join([line, *(f"--hash=sha256:{sum}" for sum in sums)]) + "\n"
    TARGET.write_text(re.sub(r"[ \t]+\n", "\n", text))


if __name__ == "__main__":
    main()
