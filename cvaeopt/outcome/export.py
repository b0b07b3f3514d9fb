"""Export of a study's best trial as a recipe with its provenance.

If the study's leaders were confirmed, their fresh runs decide which trial is the best. Otherwise the values of the
search decide, and the export has a warning about this.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from cvaeopt import __version__
from cvaeopt.config import Config
from cvaeopt.errors import StudyError
from cvaeopt.files import write_bytes
from cvaeopt.outcome import recipe
from cvaeopt.outcome.leaders import Confirmation, RankedLeader, confirmation
from cvaeopt.outcome.recipe import LONG_RUN_EPOCHS, Recipe
from cvaeopt.outcome.trials import TrialFacts, best_of, facts
from cvaeopt.pictures import curves
from cvaeopt.search.definition import Definition
from cvaeopt.search.space import params_to_config
from cvaeopt.store.damage import named
from cvaeopt.store.status import status
from cvaeopt.store.storage import Storage
from cvaeopt.store.study import open_existing
from cvaeopt.text import BASELINES, Advice

NOISE_DB: Final = 0.2
"""If the values of two single trials differ by at most NOISE_DB, the values are treated as equal. Unit: dB."""

_MOST_RUNNERS_UP: Final = 10


@dataclass(frozen=True)
class Export:
    """A recipe that was written, the picture of its schedules, and the warnings for its user.

    confirmed    the ranking that the recipe comes from; None if the values of the search decided
    """

    path: Path
    picture: Path
    recipe: Recipe
    warnings: tuple[str, ...]
    confirmed: Confirmation | None = None


@named
def export_best(storage: Storage, name: str, target: Path, *, now: datetime, lab: bool = False) -> Export:
    """Write the recipe of the best trial of study `name` to `target` (TOML). `target` is never written in part.

    A picture of the recipe's schedules is written beside `target`. The picture shows the schedules of the search and
    of a run of LONG_RUN_EPOCHS.

    now   the date in the provenance
    lab   set `output` to linear, because the lab's own tools apply no other output
    StudyError if there is no study `name`, or if the study has no complete trial.
    """
    fresh = confirmation(storage, name)
    chosen = _best_recipe(storage, name, now, fresh)
    warnings = list(_warnings(chosen, fresh))
    differences = lab_differences(chosen.settings)
    if lab and chosen.settings.output != "linear":
        chosen = replace(chosen, settings=chosen.settings.model_copy(update={"output": "linear"}))
        warnings.append("output is now 'linear' for the lab's tester: retrain before you compare values.")
    else:
        warnings += differences
    recipe.write(target, chosen)
    picture = target.with_suffix(".png")
    write_bytes(picture, curves.schedules(recipe.runs(chosen.settings, LONG_RUN_EPOCHS)))
    return Export(target, picture, chosen, tuple(warnings), fresh if fresh is not None and fresh.best else None)


def _best_recipe(storage: Storage, name: str, now: datetime, fresh: Confirmation | None) -> Recipe:
    """The recipe of the best trial of study `name`.

    If all `fresh` runs are over and have a best leader, they decide. Otherwise the values of the search decide.
    """
    study, definition = open_existing(storage, name)
    overview = status(storage, name)
    trials = facts(study.get_trials(deepcopy=False))
    best = best_of(trials)
    if best is None:
        found = ", ".join(f"{count} {state}" for state, count in overview["trials"].items() if count)
        raise StudyError(
            f"Study '{name}' has no complete trial ({found or 'no trial at all'}).",
            "Expected: at least one.",
            Advice("Let a worker finish one:", "worker", "--study", name, "--gpu", "0"),
        )
    first = fresh.best if fresh is not None else None
    if fresh is not None and first is not None:
        best = next(trial for trial in trials if trial.number == first.leader.trials[0])
        said = _confirmed(definition, fresh, first)
    else:
        said = _searched(definition, trials, best)
    runners_up = said.pop("runners_up")
    settings = params_to_config(definition, best.params, best.number, best.attributes.get("seed"))
    return Recipe(
        settings,
        {
            "study": name,
            "trial": best.number,
            "metric": definition.metric,
            **said,
            "search_epochs": definition.budget.epochs,
            "trials": {state: count for state, count in overview["trials"].items() if count},
            "storage": storage.url,
            "study_seed": definition.seed,
            "definition_digest": definition.digest(),
            "settings_digest": settings.digest(),
            "data_digest": best.attributes.get("data_digest"),
            "code_version": _version(best),
            "exported_by": __version__,
            "date": now.isoformat(timespec="seconds"),
            "baselines": {key: value for key, value in overview["baselines"].items() if value is not None},
            "runners_up": runners_up,
        },
    )


def _searched(definition: Definition, trials: list[TrialFacts], best: TrialFacts) -> dict[str, Any]:
    """The part of the provenance that comes from the search's values: the best trial, and the trials within noise."""
    near = _within(trials, best, NOISE_DB)
    return {
        "value": best.value,
        "standard_error": None,
        "estimated": estimator(definition),
        "confirmed": False,
        "noise_db": NOISE_DB,
        "within_noise": len(near),
        "runners_up": [
            {"trial": trial.number, "value": trial.value, "params": trial.params} for trial in near[:_MOST_RUNNERS_UP]
        ],
    }


def _confirmed(definition: Definition, fresh: Confirmation, first: RankedLeader) -> dict[str, Any]:
    """The part of the provenance that comes from fresh runs: the first leader, and the leaders tied with it."""
    tied = [one for one in fresh.ranked if one.tied]
    runs = len(first.values)
    return {
        "value": first.estimate,
        "standard_error": first.standard_error,
        "low": first.low,
        "high": first.high,
        "runs": runs,
        "runs_diverged": first.diverged,
        "estimated": f"{_measure(definition)}, {fresh_estimator(runs)}",
        "confirmed": True,
        "confirmed_by": list(fresh.studies),
        "leaders": len(fresh.ranked),
        "searched_value": first.leader.searched,
        "spread_db": fresh.spread,
        "within_noise": len(tied),
        "runners_up": [
            {
                "trial": one.leader.trials[0],
                "value": one.estimate,
                "low": one.low,
                "high": one.high,
                "runs": len(one.values),
                "runs_diverged": one.diverged,
                "params": one.leader.params,
            }
            for one in tied[:_MOST_RUNNERS_UP]
        ],
    }


def estimator(definition: Definition) -> str:
    """A description of how the study estimates a trial's value."""
    return f"{_measure(definition)}, one run"


def fresh_estimator(runs: int) -> str:
    """A description of how the value of a leader with `runs` fresh runs is estimated."""
    return f"estimated from {runs} fresh run{'' if runs == 1 else 's'}"


def _measure(definition: Definition) -> str:
    window, metric = definition.window, definition.metric
    return f"{metric} of the last epoch" if window == 1 else f"mean of {metric} over the last {window} epochs"


def lab_differences(config: Config) -> tuple[str, ...]:
    """Sentences about what the lab's own tester does differently with a checkpoint of these settings."""
    if config.output == "linear":
        return ()
    return (
        f"output = '{config.output}': the lab's tester applies no {config.output}; "
        "predict with `cvaeopt predict`, or export with --lab.",
    )


def beaten_baselines(value: float, baselines: Mapping[str, float]) -> list[str]:
    """The names of the baselines that `value` (dB) does not beat."""
    return [name for name, level in baselines.items() if value <= level]


def _warnings(chosen: Recipe, fresh: Confirmation | None) -> list[str]:
    said = chosen.provenance
    value, baselines = said["value"], said["baselines"]
    warnings: list[str] = []
    lost = beaten_baselines(value, baselines)
    if lost:
        # The nearest pose is not a trivial baseline: it finds the frame with the nearest pose in the training video.
        verdict = "copying the nearest training frame does" if lost == ["nearest_pose"] else "doing nothing would"
        warnings.append(
            f"The best trial ({value:.2f} dB) does not beat {_levels(lost, baselines)}: these settings predict worse "
            f"than {verdict}. Search longer, or wider (tfr from 0, another lr_scheduler, kl_norm = 'element')."
        )
    if not baselines:
        warnings.append("The study knows no baselines: compare the value with `cvaeopt check-data` first.")
    if said["confirmed"]:
        return warnings + _confirmed_warnings(said, lost)
    rivals = said["within_noise"]
    if rivals:
        warnings.append(
            f"{rivals} more trial{'s are' if rivals > 1 else ' is'} within {said['noise_db']:.2f} dB: "
            "one run each cannot tell them apart."
        )
    name = said["study"]
    if fresh is None:
        text = f"{value:.2f} dB is the highest of many single runs, so a fresh run is likely to reach less. "
        text += "Train the leaders again from fresh seeds:"
        warnings.append(Advice(text, "confirm", "--study", name))
    elif not fresh.over:
        text = f"{value:.2f} dB is one value of the search. Its confirmation has {fresh.ended} of {fresh.runs} runs; "
        text += "let a worker finish it, then export again:"
        warnings.append(Advice(text, "worker", "--study", name, "--gpu", "0"))
    else:
        text = f"None of the {fresh.runs} fresh runs came to its end, so {value:.2f} dB is one value of the search: "
        warnings.append(Advice(f"{text}see why with", "status", "--study", fresh.studies[-1]))
    return warnings


def _confirmed_warnings(said: dict[str, Any], lost: list[str]) -> list[str]:
    """The warnings about a confirmed value. `lost` are the baselines that earlier warnings name already."""
    warnings: list[str] = []
    low, baselines = said["low"], said["baselines"]
    unsure = [name for name in beaten_baselines(low, baselines) if name not in lost] if low is not None else []
    if unsure:
        warnings.append(
            f"The interval ({low:.2f} to {said['high']:.2f} dB) reaches down to {_levels(unsure, baselines)}: "
            "whether these settings have learnt anything is not settled."
        )
    if said["runs_diverged"]:
        count = said["runs"] + said["runs_diverged"]
        warnings.append(
            f"{said['runs_diverged']} of {count} fresh runs of the best settings diverged: expect that of a long run "
            "too, and lower lr, or set skip_steps."
        )
    if low is None:
        text = "One fresh run a leader has no interval: ask for more with"
        warnings.append(Advice(text, "confirm", "--study", said["study"], "--seeds", "3"))
    elif said["within_noise"]:
        rivals = said["within_noise"]
        warnings.append(
            f"{rivals} more of the {said['leaders']} leaders {'are' if rivals > 1 else 'is'} within noise: "
            f"{said['runs']} runs each cannot tell them apart."
        )
    return warnings


def _levels(names: list[str], baselines: Mapping[str, float]) -> str:
    return ", ".join(f"{BASELINES.get(name, name)} {baselines[name]:.2f} dB" for name in names)


def _within(trials: list[TrialFacts], best: TrialFacts, within: float) -> list[TrialFacts]:
    """The other complete trials whose value is at most `within` dB below the value of `best`, the highest first."""
    assert best.value is not None
    near = [
        trial
        for trial in trials
        if trial.value is not None and trial.number != best.number and best.value - trial.value <= within
    ]
    return sorted(near, key=lambda trial: (-(trial.value or 0.0), trial.number))


def _version(trial: TrialFacts) -> str:
    """The version of cvaeopt that trained the trial, or 'unknown'."""
    versions = trial.attributes.get("versions")
    return str(versions.get("cvaeopt", "unknown")) if isinstance(versions, dict) else "unknown"
