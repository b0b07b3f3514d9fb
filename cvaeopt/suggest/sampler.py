"""Samplers and pruners, built from a definition.

A suggestion depends on the study's seed, the trial's number and the other trials. It does not depend on the worker that
asks for it, because the samplers keep no random state between trials. Every trial has its own random stream.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler

from cvaeopt.errors import StudyError
from cvaeopt.search.definition import Definition
from cvaeopt.search.space import distribution, order, params_to_config, settled, stream
from cvaeopt.search.tables import (
    ForecastPruner,
    GpSampler,
    GridSampler,
    HalvingPruner,
    HyperbandPruner,
    MedianPruner,
    NoPruner,
    PercentilePruner,
    QmcSampler,
    TpeSampler,
)
from cvaeopt.suggest import pruner
from cvaeopt.suggest.cube import Cube
from cvaeopt.suggest.quasirandom import primes, radical_inverse, value_at

if TYPE_CHECKING:
    from optuna.study import Study
    from optuna.trial import FrozenTrial


def sampler_for(definition: Definition) -> BaseSampler:
    """The study's sampler. Every worker makes its own sampler, and all these samplers suggest the same values."""
    chosen = definition.sampler
    if isinstance(chosen, GridSampler):
        return _GridSampler(definition.name)
    if isinstance(chosen, QmcSampler):
        return _HaltonSampler(definition.seed, list(definition.search))
    if isinstance(chosen, GpSampler):
        process = _gaussian_process(definition, chosen)
        if not chosen.tpe_every:
            return process
        other = _StreamSampler(definition.seed, _tpe(TpeSampler(n_startup_trials=0), definition))
        return AlternatingSampler(process, other, chosen.tpe_every, chosen.n_startup_trials)
    return _StreamSampler(definition.seed, _maker(definition))


def pruner_for(definition: Definition) -> BasePruner:
    """The study's pruner. A step is the number of finished epochs, so the first report is step 1."""
    chosen = definition.pruner
    if isinstance(chosen, NoPruner):
        return optuna.pruners.NopPruner()
    if isinstance(chosen, HalvingPruner):
        return optuna.pruners.SuccessiveHalvingPruner(
            min_resource=chosen.warmup_epochs,
            reduction_factor=chosen.reduction_factor,
            min_early_stopping_rate=0,
            bootstrap_count=0,
        )
    if isinstance(chosen, HyperbandPruner):
        return optuna.pruners.HyperbandPruner(
            min_resource=chosen.warmup_epochs,
            max_resource=definition.epochs,
            reduction_factor=chosen.reduction_factor,
            bootstrap_count=0,
        )
    if isinstance(chosen, ForecastPruner):
        return pruner.ForecastPruner(
            window=definition.window,
            warmup_epochs=chosen.warmup_epochs,
            interval_epochs=chosen.interval_epochs,
            n_startup_trials=chosen.n_startup_trials,
            keep=chosen.keep,
            odds=chosen.odds,
            seed_noise_db=definition.seed_noise_db,
            shows_at=lambda trial: pruner.shows_at(params_to_config(definition, trial.params, trial.number)),
        )
    return optuna.pruners.PercentilePruner(
        _percentile(chosen),
        n_startup_trials=chosen.n_startup_trials,
        n_warmup_steps=chosen.warmup_epochs,
        interval_steps=chosen.interval_epochs,
        n_min_trials=chosen.n_min_trials,
    )


def _percentile(chosen: MedianPruner | PercentilePruner) -> float:
    return 50.0 if isinstance(chosen, MedianPruner) else chosen.percentile


def cube_of(definition: Definition) -> Cube:
    """The search space of a study, with its conditions, as the unit cube of the Gaussian process."""
    settings = settled(definition.search, definition.fixed)

    def active(values: Mapping[str, Any]) -> set[str]:
        known, names = dict(settings), set()
        for name in order(definition.search):
            if definition.search[name].active(known):
                names.add(name)
                known[name] = values[name]
        return names

    deciding = {other for dimension in definition.search.values() for other in dimension.when} & set(definition.search)
    conditional = any(dimension.when for dimension in definition.search.values())
    space = {name: distribution(dimension) for name, dimension in definition.search.items()}
    return Cube(space, active if conditional else None, sorted(deciding))


def _gaussian_process(definition: Definition, chosen: GpSampler) -> BaseSampler:
    from cvaeopt.suggest.bayesian import GaussianProcessSampler  # loads SciPy, which reading a study does not need

    return GaussianProcessSampler(
        cube_of(definition),
        seed=definition.seed,
        n_startup_trials=chosen.n_startup_trials,
        window=definition.window,
        seed_noise_db=definition.seed_noise_db,
    )


def _maker(definition: Definition) -> Callable[[int], BaseSampler]:
    """A function that makes the Optuna sampler for a stream's seed."""
    chosen = definition.sampler
    if isinstance(chosen, TpeSampler):
        return _tpe(chosen, definition)
    return lambda seed: optuna.samplers.RandomSampler(seed=seed)


def _tpe(chosen: TpeSampler, definition: Definition) -> Callable[[int], BaseSampler]:
    # Without group=True, TPE would model a setting that only some trials have independently of all other settings.
    conditional = any(dimension.when for dimension in definition.search.values())
    return lambda seed: optuna.samplers.TPESampler(
        n_startup_trials=chosen.n_startup_trials,
        n_ei_candidates=chosen.n_ei_candidates,
        multivariate=True,
        group=conditional,
        constant_liar=chosen.constant_liar,
        seed=seed,
    )


class AlternatingSampler(BaseSampler):
    """Uses sampler `other` for every `every`-th trial from number `first` on, and sampler `one` for all others."""

    def __init__(self, one: BaseSampler, other: BaseSampler, every: int, first: int) -> None:
        self._one = one
        self._other = other
        self._every = every
        self._first = first

    def _of(self, trial: FrozenTrial) -> BaseSampler:
        turn = trial.number >= self._first and trial.number % self._every == self._every - 1
        return self._other if turn else self._one

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self._of(trial).infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return self._of(trial).sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self._of(trial).sample_independent(study, trial, param_name, param_distribution)


class _StreamSampler(BaseSampler):
    """Makes a new Optuna sampler for every trial, and also for every parameter that is drawn independently.

    If a worker dies after the draw of some parameters, the worker that continues the trial draws the same values.
    """

    def __init__(self, seed: int, make: Callable[[int], BaseSampler]) -> None:
        self._seed = seed
        self._make = make
        self._thread = threading.local()
        self._fresh(0, "")  # a wrong option raises its error here, not in the first trial

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        # Optuna calls `sample_relative` next, in the same thread, and the inner sampler keeps its groups until then.
        self._thread.inner = self._fresh(trial.number, "together")
        return self._thread.inner.infer_relative_search_space(study, trial)  # type: ignore[no-any-return]

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return self._thread.inner.sample_relative(study, trial, search_space)  # type: ignore[no-any-return]

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        inner = self._fresh(trial.number, param_name)
        return inner.sample_independent(study, trial, param_name, param_distribution)

    def _fresh(self, number: int, purpose: str) -> BaseSampler:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return self._make(stream(self._seed, number, f"sampler {purpose}"))


class _IndependentSampler(BaseSampler):
    """A sampler that draws every parameter independently of the others."""

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return {}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return {}


class _GridSampler(_IndependentSampler):
    """Suggests nothing. All points of a grid are queued when the study is created, and one worker takes each point."""

    def __init__(self, name: str) -> None:
        self._name = name

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        raise StudyError(
            f"Study '{self._name}' has no point left: every point of its grid was taken.",
            todo="Read its result, or search more values under a new name.",
        )


class _HaltonSampler(_IndependentSampler):
    """Suggests to trial n point n of a Halton sequence with scrambled digits. Each setting has its own prime base."""

    def __init__(self, seed: int, names: list[str]) -> None:
        self._seed = seed
        self._bases = dict(zip(names, primes(len(names)), strict=True))

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        if param_name not in self._bases:  # a program of the user may suggest more than the study searches
            self._bases[param_name] = primes(len(self._bases) + 1)[-1]
        fraction = radical_inverse(trial.number, self._bases[param_name], self._seed)
        return value_at(param_distribution, fraction)
