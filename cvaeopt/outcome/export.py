"""The best trial of a study, as a recipe with its provenance."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Final

from cvaeopt import __version__
from cvaeopt.config import Config
from cvaeopt.errors import StudyError
from cvaeopt.files import write_bytes
from cvaeopt.outcome import charts, recipe
from cvaeopt.outcome.recipe import Recipe
from cvaeopt.outcome.trials import TrialFacts, best_of, facts
from cvaeopt.search.space import params_to_config
from cvaeopt.search.storage import Storage
from cvaeopt.search.study import Definition, open_existing, status

NOISE_DB: Final = 0.2
"""What two runs of equal settings may differ by when nothing better is known, dB."""

_MOST_RUNNERS_UP: Final = 10


@dataclass(frozen=True)
class Export:
    """A recipe that was written, the picture of its schedules, and what must be said loudly about it."""

    path: Path
    picture: Path
    recipe: Recipe
    warnings: tuple[str, ...]


def export_best(
    storage: Storage,
    name: str,
    target: Path,
    *,
    now: datetime,
    standard_error: float | None = None,
    lab: bool = False,
    long_run_epochs: int = 500,
) -> Export:
    """Write the recipe of the best trial of study `name` to `target` (TOML), whole or not at all.

    A picture of its schedules, as searched and in a run of `long_run_epochs`, is written beside it.

    now              goes into the provenance
    standard_error   of a trial's value, dB, where it was measured; None takes two runs within 0.2 dB as equal
    lab              keep to what the lab's own tools apply: `output` becomes linear
    StudyError when there is no such study or it has no complete trial.
    """
    chosen = best_recipe(storage, name, now=now, standard_error=standard_error)
    warnings = list(_warnings(chosen))
    differences = lab_differences(chosen.settings)
    if lab and chosen.settings.output != "linear":
        chosen = replace(chosen, settings=chosen.settings.model_copy(update={"output": "linear"}))
        warnings.append("output is now 'linear' for the lab's tester: retrain before you compare values.")
    else:
        warnings += differences
    recipe.write(target, chosen, long_run_epochs=long_run_epochs)
    picture = target.with_suffix(".png")
    write_bytes(picture, charts.schedules(recipe.runs(chosen.settings, long_run_epochs)))
    return Export(target, picture, chosen, tuple(warnings))


def best_recipe(storage: Storage, name: str, *, now: datetime, standard_error: float | None = None) -> Recipe:
    """The best trial of study `name` as a recipe; StudyError when no trial is complete."""
    study, definition = open_existing(storage, name)
    trials = facts(study.get_trials(deepcopy=False))
    best = best_of(trials)
    overview = status(storage, name)
    if best is None or best.value is None:
        found = ", ".join(f"{count} {state}" for state, count in overview["trials"].items() if count)
        raise StudyError(
            f"Study '{name}' has no complete trial ({found or 'no trial at all'}).",
            "Expected: at least one.",
            f"Let a worker finish one: cvaeopt worker --study {name} --gpu 0.",
        )
    settings = params_to_config(definition, best.params, best.number)
    # Two values differ by chance with sqrt(2) times the error of one; twice that is beyond noise.
    within = NOISE_DB if standard_error is None else 2 * math.sqrt(2) * standard_error
    near = _within(trials, best, within)
    return Recipe(
        settings,
        {
            "study": name,
            "trial": best.number,
            "value": best.value,
            "standard_error": standard_error,
            "metric": definition.metric,
            "estimated": estimator(definition),
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
            "noise_db": within,
            "baselines": {key: value for key, value in overview["baselines"].items() if value is not None},
            "within_noise": len(near),
            "runners_up": [
                {"trial": trial.number, "value": trial.value, "params": trial.params}
                for trial in near[:_MOST_RUNNERS_UP]
            ],
        },
    )


def estimator(definition: Definition) -> str:
    """How the study estimates a trial's value, in words."""
    window, metric = definition.window, definition.metric
    if window == 1:
        return f"{metric} of the last epoch, one run"
    return f"mean of {metric} over the last {window} epochs, one run"


def lab_differences(config: Config) -> tuple[str, ...]:
    """What the lab's own tester would do otherwise with a checkpoint of these settings, in words."""
    if config.output == "linear":
        return ()
    return (
        f"output = '{config.output}': the lab's tester applies no {config.output}; "
        "predict with `cvaeopt predict`, or export with --lab.",
    )


def beaten_baselines(value: float, baselines: Mapping[str, float]) -> list[str]:
    """The names of the baselines that `value` (dB) does not beat."""
    return [name for name, level in baselines.items() if value <= level]


def _warnings(chosen: Recipe) -> list[str]:
    value, baselines = chosen.provenance["value"], chosen.provenance["baselines"]
    warnings = []
    lost = beaten_baselines(value, baselines)
    if lost:
        levels = ", ".join(f"{charts.SHORT_NAMES.get(name, name)} {baselines[name]:.2f} dB" for name in lost)
        warnings.append(
            f"The best trial ({value:.2f} dB) does not beat {levels}: these settings have learnt less than doing "
            "nothing. Search longer, or wider (tfr from 0, another lr_scheduler, kl_norm = 'element')."
        )
    if not baselines:
        warnings.append("The study knows no baselines: compare the value with `cvaeopt check-data` first.")
    rivals = chosen.provenance["within_noise"]
    if rivals:
        warnings.append(
            f"{rivals} more trial{'s are' if rivals > 1 else ' is'} within {chosen.provenance['noise_db']:.2f} dB: "
            "one run each cannot tell them apart."
        )
    return warnings


def _within(trials: list[TrialFacts], best: TrialFacts, within: float) -> list[TrialFacts]:
    """The other complete trials whose value is at most `within` dB below the best one's, best first."""
    assert best.value is not None
    near = [
        trial
        for trial in trials
        if trial.value is not None and trial.number != best.number and best.value - trial.value <= within
    ]
    return sorted(near, key=lambda trial: (-(trial.value or 0.0), trial.number))


def _version(trial: TrialFacts) -> str:
    """Version of the program that trained the trial."""
    versions = trial.attributes.get("versions")
    return str(versions.get("cvaeopt", "unknown")) if isinstance(versions, dict) else "unknown"
