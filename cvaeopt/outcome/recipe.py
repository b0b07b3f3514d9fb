"""A recipe: a TOML file with every setting of one run and the provenance of these settings.

[settings]                  every setting of the run; no setting has an implied default
[provenance]                study, trial, its value and how the value was estimated, data, code, date
[provenance.baselines]      PSNR of each baseline, dB
[[provenance.runners_up]]   the trials whose values differ from this trial's value by no more than noise
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import tomli_w

from cvaeopt import tomlfile
from cvaeopt.config import ADDED, Config, check_names
from cvaeopt.errors import SettingsError
from cvaeopt.files import write_text
from cvaeopt.outcome.transfer import Transfer, landmarks, transfer

_TRANSFERS: Final[tuple[Transfer, ...]] = ("proportional", "absolute")

LONG_RUN_EPOCHS: Final = 500
"""The length of the long run, in epochs. A recipe's comments and picture show its schedules and the searched ones."""


@dataclass(frozen=True)
class Recipe:
    """The settings of a run, and their provenance as plain TOML values."""

    settings: Config
    provenance: dict[str, Any] = field(default_factory=dict)

    @property
    def edited(self) -> bool:
        """Whether the settings were changed after their export."""
        stored = self.provenance.get("settings_digest")
        return stored is not None and stored != self.settings.digest()

    @property
    def origin(self) -> dict[str, Any]:
        """The part of the provenance that is stored in a checkpoint that was trained with this recipe."""
        named = {"settings_digest": "searched_settings_digest", "data_digest": "searched_data_digest"}
        kept = [
            "study",
            "trial",
            "value",
            "standard_error",
            "metric",
            "estimated",
            "search_epochs",
            "study_seed",
            "code_version",
        ]
        return {named.get(key, key): value for key, value in self.provenance.items() if key in kept or key in named}


def write(path: Path, recipe: Recipe, shown: str | None = None) -> None:
    """Write `recipe` as TOML. The file is never written in part.

    shown   the path in the comment that says how to train; default: `path`

    Comments in the file show the turning points of its schedules, as searched and in a run of LONG_RUN_EPOCHS.
    """
    provenance = {"settings_digest": recipe.settings.digest(), **_without_none(recipe.provenance)}
    tables = {"settings": recipe.settings.plain(), "provenance": provenance}
    head = (
        "# Settings of one training run of cvaeopt, and where they come from.\n"
        f"# Train with them:  cvaeopt retrain {shlex.quote(shown or str(path))} --epochs {LONG_RUN_EPOCHS}\n\n"
    )
    write_text(path, head + tomli_w.dumps(tables) + "\n" + _curves(recipe.settings, LONG_RUN_EPOCHS))


def read(path: Path, *, partial: bool = False) -> Recipe:
    """The recipe in the file `path`. SettingsError if the file cannot be read or is not a valid recipe.

    partial   if True, a missing setting has its default, which is the lab's template's value; if False, a missing
              setting is an error, unless it is newer than the first recipes (`config.ADDED`)
    """
    try:
        tables = tomlfile.read(path)
    except FileNotFoundError:
        near = sorted(p.stem for p in path.parent.glob("*.toml")) if path.parent.is_dir() else []
        todo = f"There: {', '.join(near)}." if near else "Write one with: cvaeopt export-best --study NAME."
        raise SettingsError(f"There is no recipe {path}.", todo=todo) from None
    except OSError as error:
        raise SettingsError(f"{path} cannot be read: {error}.", "Expected: a recipe (TOML).") from None
    return parse(tables, str(path), partial=partial)


def require_one_length(epochs: int | None, changes: dict[str, Any]) -> None:
    """Raise SettingsError if both `epochs` (the flag) and `changes` set the number of epochs."""
    if epochs is not None and "num_epoch" in changes:
        raise SettingsError(
            f"num_epoch = {changes['num_epoch']!r} is set beside --epochs {epochs}.",
            "Expected: the number of epochs once.",
            "Leave num_epoch out: --epochs sets it.",
        )


def parse(tables: dict[str, Any], where: str, *, partial: bool = False) -> Recipe:
    """The recipe in parsed TOML `tables`. SettingsError if the recipe is not valid; its message names `where`.

    partial   as in `read`
    """
    if "search" in tables or "fixed" in tables:
        raise SettingsError(
            f"{where} is the definition of a study.",
            "Expected: a recipe, with [settings] and [provenance].",
            "Export one with: cvaeopt export-best --study NAME.",
        )
    check_names(tables, ["settings", "provenance"], where, kind="table")
    settings, provenance = tables.get("settings"), tables.get("provenance", {})
    if not isinstance(settings, dict) or not isinstance(provenance, dict):
        raise SettingsError(
            f"{where} has no table [settings].",
            "Expected: every setting of a run in [settings].",
            "Export the recipe again.",
        )
    check_names(settings, list(Config.model_fields), f"{where}: [settings]")
    missing = [name for name in Config.model_fields if name not in settings and name not in ADDED]
    if missing and not partial:
        raise SettingsError(
            f"{where}: [settings] lacks {', '.join(missing)}.",
            "Expected: every setting, so that nothing is implied.",
            "Add what is missing, or export the recipe again; `cvaeopt train` takes the template's values instead.",
        )
    return Recipe(Config.parse(settings, f"{where}: [settings]"), provenance)


def runs(config: Config, epochs: int) -> dict[str, Config]:
    """Three runs, by name: the searched settings, and the settings of a run of `epochs` epochs under both transfers."""
    return {"as searched": config, **{mode: transfer(config, epochs, mode) for mode in _TRANSFERS}}


def _without_none(value: Any) -> Any:
    """`value` without the keys whose value is None, because TOML has no None."""
    if isinstance(value, dict):
        return {key: _without_none(inner) for key, inner in value.items() if inner is not None}
    if isinstance(value, list | tuple):
        return [_without_none(inner) for inner in value]
    return value


def _curves(config: Config, epochs: int) -> str:
    """A table in TOML comments: the turning points of the schedules, as searched and under both transfers."""
    columns = ("epochs", "decay_starts", "decay_ends", "beta_full", "cycle", "lr_end")
    lines = [
        "# Where the schedules turn, in finished epochs ('-': never):",
        "#   " + "run".ljust(14) + "".join(name.rjust(14) for name in columns),
    ]
    for name, run in runs(config, epochs).items():
        values = landmarks(run).plain()
        cells = ["-" if values[key] is None else f"{values[key]:g}" for key in columns]
        lines.append("#   " + name.ljust(14) + "".join(cell.rjust(14) for cell in cells))
    return "\n".join(lines) + "\n"
