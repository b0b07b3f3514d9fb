"""A study of ours is an ordinary Optuna study: Optuna alone opens and draws it, and so does the notebook."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from cvaeopt.store.opening import open_storage
from cvaeopt.store.study import create_or_open
from cvaeopt.vae.trainer import Trainer
from testbed import tiny
from tests.support.made_up import definition, sequence_folder, trials

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "docs/notebook.ipynb"

TWO_OBJECTIVES = {"plot_hypervolume_history", "plot_pareto_front"}
"""The charts of Optuna that a study with one objective does not have."""

DRAW_ALL = """
import sys
import matplotlib
import optuna
import optuna.visualization.matplotlib as charts

matplotlib.use("agg")
study = optuna.load_study(study_name="made-up", storage=sys.argv[1])
names = {name for name in charts.__all__ if name.startswith("plot_")} - set(sys.argv[2:])
for name in sorted(names):
    assert getattr(charts, name)(study) is not None, name
    print(name)
    matplotlib.pyplot.close("all")
assert "cvaeopt" not in sys.modules
"""


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A storage with a study that has complete, pruned and diverged trials."""
    made = f"sqlite:///{tmp_path_factory.mktemp('plain')}/cvaeopt.db"
    with open_storage(made) as storage:
        create_or_open(storage, definition()).add_trials(trials(24))
    return made


def test_optuna_alone_opens_a_study(url: str) -> None:
    plain = optuna.storages.RDBStorage(url)
    study = optuna.load_study(study_name="made-up", storage=plain)
    found, best = study.trials, study.best_value
    plain.engine.dispose()
    made = trials(24)
    assert [trial.state for trial in found] == [trial.state for trial in made]
    assert {TrialState.COMPLETE, TrialState.PRUNED} == {trial.state for trial in made}
    assert best == max(trial.value for trial in made if trial.value is not None)
    assert [trial.intermediate_values for trial in found] == [trial.intermediate_values for trial in made]


def test_optuna_alone_draws_every_chart_of_a_study(url: str) -> None:
    """In a process that never imports this package."""
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", DRAW_ALL, url, *TWO_OBJECTIVES],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert {"plot_intermediate_values", "plot_contour", "plot_timeline"} <= set(run.stdout.split())


def test_the_notebook_runs_from_its_first_cell_to_its_last(tmp_path: Path) -> None:
    """On a tiny study that stands where the notebook looks for it."""
    with open_storage(f"sqlite:///{tmp_path}/demo/cvaeopt.db") as storage:
        study = create_or_open(storage, definition().model_copy(update={"name": "demo"}))
        study.add_trials(trials(8))
        best = study.best_trial.number
    sequence_folder(tmp_path / "demo/data", sequences=1, labels=5)
    folder = tmp_path / "demo/artifacts/demo" / f"{best:05d}"
    folder.mkdir(parents=True)
    trainer = Trainer(tiny.config(lr_scheduler="constant"), tiny.dataset())
    for _ in trainer.run(1):
        pass
    trainer.save(folder / "best.pt")
    cells = [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]
    assert len(cells) >= 5 and not any(cell["outputs"] for cell in cells), "kept without its outputs"
    code = "\n\n".join("".join(cell["source"]) for cell in cells)
    code += "\nassert rolled[0].shape == (4, 3, 8, 16) and not (rolled[0] == rolled[1]).all()\n"
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        cwd=tmp_path,
        env={**os.environ, "MPLBACKEND": "agg", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith(f"{best} ")
