"""What the report that is handed in says of a study, for studies whose trials were never trained."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState

from cvaeopt.config import Config
from cvaeopt.outcome.hand_in import forcing
from cvaeopt.outcome.hand_in_report import TITLE, blocks
from cvaeopt.outcome.hand_in_study import StudyPart, study_part
from cvaeopt.outcome.hand_in_text import Facts, Said, latex
from cvaeopt.search.claims import MEASURES
from cvaeopt.search.definition import Definition
from cvaeopt.store import claims as stored
from cvaeopt.store.confirmation import register
from cvaeopt.store.identity import of
from cvaeopt.store.opening import open_storage
from cvaeopt.store.storage import Storage
from cvaeopt.store.study import create_or_open, open_existing
from cvaeopt.vae.trainer import Trainer
from testbed import tiny
from tests.support.made_up import BASELINES, NOON, definition, registered, run_all, run_folder, trials
from tests.support.tex import faults

SCORE = {
    "epoch": 3,
    "val_psnr": 28.2,
    "val_psnr_late": 27.1,
    "frames": 159,
    "lowest": 21.3,
    "worst_frames": [7, 60],
    "gain_over_baselines": 1.25,
    "baselines": BASELINES,
    "noise": {"kind": "prior"},
    "output": "sigmoid",
    "explained": [
        {"what": "speed of the pose", "correlation": -0.5, "low": -0.8, "high": -0.1, "psnr_is": "lower"},
        {"what": "drift", "correlation": -0.3, "low": -0.7, "high": 0.2, "psnr_is": "unknown"},
        {"what": "distance", "correlation": 0.1, "low": None, "high": None, "psnr_is": "unknown"},
        {"what": "share outside", "correlation": None, "low": None, "high": None, "psnr_is": "unknown"},
    ],
}


@pytest.fixture
def storage(tmp_path: Path) -> Iterator[Storage]:
    with open_storage(f"sqlite:///{tmp_path}/studies.db") as opened:
        yield opened


def part(storage: Storage, tmp_path: Path, name: str = "made-up") -> StudyPart:
    return study_part(storage, name, tmp_path / "artifacts", NOON)


def sentences(study: dict[str, Any] | None, config: Config | None = None, **score: Any) -> str:
    """All sentences of the report; its LaTeX is checked, and that its facts can be stored."""
    config = config or tiny.config()
    run = {"settings": config.plain(), "forcing": forcing(config), "provenance": {}}
    values = {"confidence_percent": 95, "score": {**SCORE, **score}, "prediction": None, "run": run, "study": study}
    facts = Facts(json.loads(json.dumps(values, allow_nan=False)))
    made = blocks(facts, ["search", "importance", "arms_loss"])
    assert faults(latex(TITLE, made)) == []
    return "\n".join(one.text for one in made if isinstance(one, Said))


def test_the_epoch_in_which_the_forcing_ratio_falls_is_that_of_the_history() -> None:
    config = tiny.config(tfr=1.0, tfr_sde=1, tfr_d_step=0.4, num_epoch=4)
    trainer = Trainer(config, tiny.DATA)
    rows = [result.row() for result in trainer.run()]
    lower = next(row["epoch"] for row in rows if row["tfr"] < rows[0]["tfr"])
    assert f"It falls by 0.4 an epoch, and is lower in epoch {lower} for the first time." in sentences(None, config)
    never = tiny.config(tfr=1.0, tfr_sde=9, tfr_d_step=0.4, num_epoch=4)
    assert "The forcing ratio is 1 in every epoch." in sentences(None, never)


def test_without_a_study_it_says_so() -> None:
    text = sentences(None)
    assert "No study was named" in text
    assert "is 1.25 dB above the better trivial baseline" in text
    assert "does NOT beat" in sentences(None, gain_over_baselines=-0.5)


def test_a_correlation_that_noise_explains_is_worded_so() -> None:
    lines = [line for line in sentences(None).splitlines() if "correlation with" in line]
    assert [("within noise" in line, "more than noise explains" in line) for line in lines] == [
        (False, True),
        (True, False),
        (True, False),
        (False, False),
    ]
    assert "(-0.80 to -0.10, a 95 % interval" in lines[0]
    assert "interval" not in lines[2]


def test_a_running_study_that_is_not_confirmed_says_both(storage: Storage, tmp_path: Path) -> None:
    create_or_open(storage, definition(trials=30)).add_trials(trials(16))
    made = part(storage, tmp_path)
    assert made.facts["is_open"]
    text = sentences(made.facts)
    assert "had not ended when this report was made" in text
    assert "This value is not confirmed" in text
    assert "were not trained again, so their order is not known" in text


def test_a_study_without_a_complete_trial_has_a_report(storage: Storage, tmp_path: Path) -> None:
    create_or_open(storage, definition())
    text = sentences(part(storage, tmp_path).facts)
    assert "No trial is complete yet." in text


def test_leaders_within_noise_are_worded_so_and_others_are_not(storage: Storage, tmp_path: Path) -> None:
    create_or_open(storage, definition(trials=16)).add_trials(trials(16))
    planned = registered(storage, top=3, seeds=3)
    level = dict(zip((leader.params["lr"] for leader in planned.leaders), (29.0, 28.98, 22.0), strict=True))
    luck = {seed: 0.4 * index for index, seed in enumerate(planned.seeds)}

    def value(params: dict[str, Any]) -> float:
        wobble = 0.1 * ((params["seed"] + int(1e6 * params["lr"])) % 3 - 1)
        return level[params["lr"]] + luck[params["seed"]] + wobble

    run_all(storage, "made-up.confirm", value)
    made = part(storage, tmp_path)
    assert not made.facts["is_open"]
    text = sentences(made.facts)
    assert "not confirmed" not in text
    assert "9 of 9 runs have ended" in text
    behind = {line.split(":")[0]: line for line in text.splitlines() if "behind the first" in line}
    first, *_, last = (f"Trial {leader.trials[0]}" for leader in planned.leaders)
    assert behind[last].endswith("which is more than noise explains.")
    near = next(line for name, line in behind.items() if name != last)
    assert near.endswith("which is within noise.")
    assert first in text


def test_an_effect_is_within_noise_unless_it_was_planted(storage: Storage, tmp_path: Path) -> None:
    create_or_open(storage, definition(trials=60)).add_trials(trials(60))  # the value falls by 4 dB from tfr 0 to 1
    made = part(storage, tmp_path)
    judged = {one["name"]: one["within_noise"] for one in made.facts["importance"]}
    assert judged == {"lr": True, "tfr": False, "kl_anneal_type": True}
    text = sentences(made.facts)
    assert "The setting with the largest share of the differences is tfr" in text
    (line,) = (line for line in text.splitlines() if line.startswith("For tfr,"))
    assert line.endswith("which is more than its noise explains.")
    (line,) = (line for line in text.splitlines() if line.startswith("For kl_anneal_type,"))
    assert line.endswith("which is within noise: the search cannot tell which value is better.")


def grid() -> Definition:
    """An ablation of the KL weight with two claims about its arms."""
    arms = ["cyclical", "monotonic", "none"]
    claims = [
        {"text": "annealing helps", "better": {"kl_anneal_type": "cyclical"}, "worse": {"kl_anneal_type": "none"}},
        {"text": "cyclical wins", "better": {"kl_anneal_type": "cyclical"}, "worse": {"kl_anneal_type": "monotonic"}},
    ]
    tables = {
        "budget": {"trials": 3, "epochs": 10},
        "fixed": {"F_dim": 8, "L_dim": 4, "N_dim": 4, "D_out_dim": 8},
        "search": {"kl_anneal_type": {"type": "categorical", "choices": arms}},
        "sampler": {"kind": "grid"},
        "claims": claims,
    }
    return Definition.parse(tables, "made-up", "test")


def test_arms_are_not_ranked_and_claims_have_their_verdicts(storage: Storage, tmp_path: Path) -> None:
    study = create_or_open(storage, grid())
    of(study).claim(tmp_path / "artifacts")
    for trial in [one for one in trials(4) if one.state == TrialState.COMPLETE]:
        trial.params = {"kl_anneal_type": trial.params["kl_anneal_type"]}
        trial.distributions = {"kl_anneal_type": trial.distributions["kl_anneal_type"]}
        study.add_trial(trial)
        run_folder(tmp_path / "artifacts", study.get_trials()[-1])
    stored.record(storage, grid())
    register(storage, stored.plan(storage, grid(), 5))
    names = [name for name in storage.get_all_studies() if name.study_name != "made-up"]
    opened, _ = open_existing(storage, names[0].study_name)
    seeds: list[int] = []
    for _ in opened.get_trials():
        trial = opened.ask()
        point = opened.get_trials()[trial.number].system_attrs["fixed_params"]
        seeds += [] if point["seed"] in seeds else [point["seed"]]
        wobble = 0.1 * ((seeds.index(point["seed"]) * (2 if point["kl_anneal_type"] == "monotonic" else 3)) % 5)
        value = (25.0 if point["kl_anneal_type"] == "none" else 29.0) + wobble
        trial.set_user_attr(MEASURES, {"final_psnr": value})
        opened.tell(trial, value)
    made = part(storage, tmp_path)
    assert "arms_loss" in made.charts
    text = sentences(made.facts)
    assert "no row is called better here" in text
    assert "Claim 'annealing helps': holds; compared over 5 seeds." in text
    assert "Claim 'cyclical wins': cannot be told; compared over 5 seeds." in text
    assert re.search(r"The difference is 4 dB \(95 % interval \S+ to \S+ dB\)\.", text)


def test_every_chart_of_a_study_can_be_drawn(storage: Storage, tmp_path: Path) -> None:
    create_or_open(storage, definition(trials=16)).add_trials(trials(16))
    charts = part(storage, tmp_path).charts
    assert charts.keys() == {"search", "importance"}
    assert all(draw().startswith(b"\x89PNG") for draw in charts.values())
