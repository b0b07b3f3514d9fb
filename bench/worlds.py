"""What answers a method's proposals in a replay: the nearest setting of the table, or a surrogate fitted to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from bench.tabled import Cube, Entry, truths
from cvaeopt.files import digest
from cvaeopt.search.space import Values

WINDOW = 3  # epochs whose mean is a training's value, as in bench/table.toml
NEIGHBOURS = 10  # settings with the nearest end, among which a residual is drawn
TREES = 200


@dataclass(frozen=True)
class Met:
    """What became of a proposal.

    params   the setting that was trained, which the method is told
    curve    (epochs,) dB, NaN from the epoch on in which it diverged
    truth    what the setting is worth, dB
    """

    params: Values
    curve: np.ndarray
    truth: float


class World(Protocol):
    """What a study is replayed on."""

    cube: Cube

    def meet(self, proposal: Values) -> Met | None:
        """The training of a proposal; None where nothing is left to train."""
        ...


class Nearest:
    """Every proposal is answered by the nearest setting that this study has not used.

    seed   whose trainings are seen
    """

    def __init__(self, of: Sequence[Entry], cube: Cube, seed: int) -> None:
        self.cube = cube
        self._seed = seed
        self._left = dict(enumerate(of))
        self._truths = truths(of)
        self._epochs = max(len(curve) for entry in of for curve in entry.curves.values())

    def meet(self, proposal: Values) -> Met | None:
        if not self._left:
            return None
        wanted = self.cube.active(proposal)
        place = min(self._left, key=lambda index: self.cube.distance(wanted, self._left[index].params))
        entry = self._left.pop(place)
        # What has no effect in the setting is not in the table: it stays as it was proposed.
        params = self.cube.active({**proposal, **entry.params})
        return Met(params, padded(entry.curves[self._seed], self._epochs), float(self._truths[place]))


class Surrogate:
    """The curve of the fitted trees, with the residual of a trained setting.

    repeat   decides, with the setting, which residual a training has
    """

    def __init__(self, fitted: Fitted, repeat: int) -> None:
        self.cube = fitted.cube
        self._fitted = fitted
        self._repeat = repeat

    def meet(self, proposal: Values) -> Met | None:
        params = self.cube.active(proposal)
        mean = self._fitted.curve(params)
        end = float(mean[-WINDOW:].mean())
        draw = np.random.default_rng([self._repeat, int(digest(params), 16)])
        near = np.argsort(np.abs(self._fitted.ends - end))[:NEIGHBOURS]
        residuals = [one for index in near for one in self._fitted.residuals[index]]
        curve = mean + residuals[int(draw.integers(len(residuals)))]
        nearest = min(self._fitted.of, key=lambda entry: self.cube.distance(params, entry.params))
        if not nearest.steady:
            lost = min(len(curve) for curve in nearest.curves.values())
            curve[lost:] = np.nan
            end = float(self._fitted.ends.min())
        return Met(params, curve, end)


class Fitted:
    """The trees of one half of the table, and the residuals of its settings: the same in all repeats."""

    def __init__(self, of: Sequence[Entry], cube: Cube) -> None:
        steady = [entry for entry in of if entry.steady]
        curves = [_less_seeds(entry) for entry in steady]
        means = np.array([several.mean(0) for several in curves])
        self.of = of
        self.cube = cube
        self.ends = means[:, -WINDOW:].mean(1)
        self.residuals = [
            (several - several.mean(0)) * np.sqrt(len(several) / (len(several) - 1)) for several in curves
        ]
        self._trees = trees().fit(np.array([cube.features(entry.params) for entry in steady]), means)

    def curve(self, params: Values) -> np.ndarray:
        """The mean curve that the trees foretell, (epochs,) dB."""
        found: np.ndarray = self._trees.predict(np.array([self.cube.features(params)]))[0]
        return found


def trees() -> Any:
    """The regression that is fitted; the same for the same settings."""
    from sklearn.ensemble import ExtraTreesRegressor

    return ExtraTreesRegressor(TREES, max_features=0.5, random_state=0, n_jobs=1)


def quality(of: Sequence[Entry], cube: Cube, folds: int = 10) -> tuple[float, float]:
    """(share of the ends' variance that the trees foretell for settings they have not seen, median error, dB)."""
    steady = [entry for entry in of if entry.steady]
    features = np.array([cube.features(entry.params) for entry in steady])
    ends = np.array([entry.mean for entry in steady])
    fold = np.random.default_rng(0).permutation(len(steady)) % folds
    guessed = np.empty(len(steady))
    for one in range(min(folds, len(steady))):
        guessed[fold == one] = trees().fit(features[fold != one], ends[fold != one]).predict(features[fold == one])
    missed = guessed - ends
    return 1 - float((missed**2).sum() / ((ends - ends.mean()) ** 2).sum()), float(np.median(np.abs(missed)))


def padded(curve: Sequence[float], epochs: int) -> np.ndarray:
    """The curve with NaN for the epochs that it does not have."""
    found = np.full(epochs, np.nan)
    found[: len(curve)] = curve
    return found


def _less_seeds(entry: Entry) -> np.ndarray:
    """(seeds, epochs) the curves less what their seed adds to all settings, dB."""
    found = []
    for seed, curve in entry.curves.items():
        value = entry.values[seed]
        assert value is not None  # the setting is a steady one
        found.append(np.asarray(curve) - (float(np.mean(curve[-WINDOW:])) - value))
    return np.array(found)
