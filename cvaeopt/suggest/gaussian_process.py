"""A Gaussian process over settings. It estimates the value at every point, and its standard error, from noisy trials.

Inputs lie in the unit cube. Every observation has its own standard error. The forecast of a pruned trial usually has a
larger error than the value of a complete trial, so the forecast has less influence. Two trainings of the same settings
have more influence than one training. The hyperparameters have the highest posterior density.

Sources: Rasmussen and Williams, Gaussian Processes for Machine Learning (2006), chapters 2 and 5. Expected improvement:
Jones, Schonlau and Welch (1998). Its logarithm: Ament et al. (2023).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.linalg import cho_solve, cholesky, solve_triangular
from scipy.optimize import minimize
from scipy.special import erfcx, ndtr

_ROOT5 = math.sqrt(5.0)
_STARTS = (0.6, 0.25)  # correlation lengths at which the fits start
_JITTER = 1e-6  # relative variance on the diagonal, without which equal points could make the covariance singular


@dataclass(frozen=True)
class Posterior:
    """A fitted process with a constant mean. Its Matern 5/2 covariance has one correlation length per dimension.

    inputs    (n, d) in [0, 1]
    lengths   (d,) correlation lengths
    signal    variance of the function, in squares of the observations' unit
    mean      the constant mean
    noise     (n,) noise variance of each observation
    """

    inputs: np.ndarray
    lengths: np.ndarray
    signal: float
    mean: float
    noise: np.ndarray
    _factor: np.ndarray
    _weights: np.ndarray

    def at(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of the function at (m, d) points: (m,) each."""
        cross = self.signal * matern(points, self.inputs, self.lengths)
        mean = self.mean + cross @ self._weights
        half = solve_triangular(self._factor, cross.T, lower=True, check_finite=False)
        return mean, np.sqrt(np.maximum(self.signal - (half * half).sum(0), 1e-12))

    def averages(self, groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean (g,) and covariance (g, g) of the function's averages over groups of points (g, m, d)."""
        count, size, width = groups.shape
        points = groups.reshape(-1, width)
        cross = self.signal * matern(points, self.inputs, self.lengths).reshape(count, size, -1).mean(1)
        before = self.signal * matern(points, points, self.lengths).reshape(count, size, count, size).mean((1, 3))
        half = solve_triangular(self._factor, cross.T, lower=True, check_finite=False)
        return self.mean + cross @ self._weights, before - half.T @ half

    def believing(self, points: np.ndarray, errors: np.ndarray) -> Posterior:
        """A copy of the process that has also observed its own mean at (m, d) points.

        Its standard errors near these points are smaller. `errors` (m,) are the observations' standard errors.
        """
        values = self.at(points)[0]
        known = self.mean + (self._factor @ (self._factor.T @ self._weights))
        return _posterior(
            np.vstack([self.inputs, points]),
            np.concatenate([known, values]),
            np.concatenate([self.noise, errors**2]),
            self.lengths,
            self.signal,
            self.mean,
        )


def matern(a: np.ndarray, b: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Matern 5/2 correlations of (m, d) and (n, d) points: (m, n)."""
    scaled = _ROOT5 * distances(a, b, lengths)
    return (1 + scaled + scaled * scaled / 3) * np.exp(-scaled)


def distances(a: np.ndarray, b: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Distances of (m, d) and (n, d) points, in correlation lengths: (m, n)."""
    a, b = a / lengths, b / lengths
    squares = (a * a).sum(1)[:, None] + (b * b).sum(1) - 2 * a @ b.T
    return np.sqrt(np.maximum(squares, 0.0))  # type: ignore[no-any-return]


def fit(
    inputs: np.ndarray, values: np.ndarray, errors: np.ndarray, learned_from: np.ndarray | None = None
) -> Posterior:
    """The process with the highest posterior density for `values` (n,) at `inputs` (n, d); n at least 2.

    errors         (n,) standard error of each value, in the unit of the values; a common factor of them is learned too
    learned_from   indices of the observations from which lengths and variances are learned; None: all observations
    """
    centre, scale = float(np.median(values)), float(values.std()) or 1.0
    y, e = (values - centre) / scale, np.maximum(errors / scale, 0.02)
    dimensions = inputs.shape[1]
    few = slice(None) if learned_from is None else learned_from
    differences = (inputs[few, None, :] - inputs[None, few, :]) ** 2  # (n, n, d)
    data = differences, y[few], e[few]
    best, lowest = np.array([_LENGTH[0]] * dimensions + [_SIGNAL[0], _NOISE[0]]), math.inf
    for length in _STARTS:
        start = np.array([math.log(length)] * dimensions + [0.0, 0.0])
        options = {"maxiter": 40}
        found = minimize(
            _objective, start, data, method="L-BFGS-B", jac=True, bounds=[_BOUNDS] * len(start), options=options
        )
        if found.fun < lowest:  # False if the loss is NaN
            best, lowest = found.x, float(found.fun)
    lengths, signal, noise = _natural(best, dimensions)
    variances = noise * e * e
    covariance = signal * matern(inputs, inputs, lengths) + np.diag(variances + _JITTER * signal)
    solved = cho_solve((cholesky(covariance, lower=True), True), np.column_stack([y, np.ones(len(y))]))
    mean = float(solved[:, 0].sum() / (solved[:, 1].sum() + 1.0))
    return _posterior(inputs, values, variances * scale**2, lengths, signal * scale**2, centre + scale * mean)


def log_expected_improvement(mean: np.ndarray, deviation: np.ndarray, best: float | np.ndarray) -> np.ndarray:
    """Logarithm of the expected improvement over `best` at each point. It is accurate for improvements near 0 too."""
    z = (mean - best) / deviation
    log_density = -0.5 * z * z - 0.5 * math.log(2 * math.pi)
    # The improvement is deviation * (density + z ndtr(z)). Below z = -1 the two terms nearly cancel, so the density is
    # factored out: ndtr / density = sqrt(pi / 2) erfcx(-z / sqrt 2). For z far below -1 the other factor is 1 / z^2.
    low = np.minimum(z, -1.0)
    ratio = 1 + low * math.sqrt(math.pi / 2) * erfcx(-low / math.sqrt(2))
    tail = np.where(low < -1e5, -2 * np.log(-low), np.log(np.maximum(ratio, 1e-12)))
    high = np.maximum(z, -1.0)
    near = np.log(np.exp(-0.5 * high * high) / math.sqrt(2 * math.pi) + high * ndtr(high))
    return np.log(deviation) + np.where(z < -1, log_density + tail, near)  # type: ignore[no-any-return]


def log_news(deviation: np.ndarray, noise: float) -> np.ndarray:
    """Logarithm of the fraction by which one noisy observation of a point would reduce its standard deviation.

    The fraction is 1 - noise / sqrt(deviation^2 + noise^2), in (0, 1). It is almost 0 if the value is known well.
    Source: Huang, Allen, Notz and Zeng (2006), Global optimization of stochastic black-box systems.
    """
    # 1 - n / h = d^2 / (h (h + n)) has no cancellation for small d; n: noise, d: deviation, h: whole
    whole = np.hypot(deviation, noise)
    return 2 * np.log(deviation) - np.log(whole) - np.log(whole + noise)  # type: ignore[no-any-return]


def _posterior(
    inputs: np.ndarray, values: np.ndarray, noise: np.ndarray, lengths: np.ndarray, signal: float, mean: float
) -> Posterior:
    covariance = signal * matern(inputs, inputs, lengths)
    covariance[np.diag_indices_from(covariance)] += noise + _JITTER * signal
    factor = cholesky(covariance, lower=True, check_finite=False)
    weights = cho_solve((factor, True), values - mean, check_finite=False)
    return Posterior(inputs, lengths, signal, mean, noise, factor, weights)


def _natural(theta: np.ndarray, dimensions: int) -> tuple[np.ndarray, float, float]:
    """Lengths, signal variance and the common factor of the noise variances, from their logarithms `theta`."""
    return np.exp(theta[:dimensions]), math.exp(theta[dimensions]), math.exp(theta[dimensions + 1])


# Normal priors of the logarithms, for values of unit variance: (mean, standard deviation).
_LENGTH = (math.log(0.7), 0.8)
_SIGNAL = (0.0, 1.0)
_NOISE = (0.0, 0.7)
_BOUNDS = (-8.0, 8.0)  # lower and upper bound of every logarithm


def _objective(
    theta: np.ndarray, differences: np.ndarray, y: np.ndarray, errors: np.ndarray
) -> tuple[float, np.ndarray]:
    """Minus the log posterior density (up to a constant) and its gradient.

    theta         (d + 2,) logarithms of d lengths, the signal variance and the noise factor
    differences   (n, n, d) squared differences of the inputs
    y             (n,) values of zero median and unit variance; the mean of the process has a standard normal prior
    """
    count, dimensions = len(y), differences.shape[2]
    lengths, signal, factor = _natural(theta, dimensions)
    flat = differences.reshape(-1, dimensions)
    r = _ROOT5 * np.sqrt(flat @ lengths**-2.0).reshape(count, count)
    decay = np.exp(-r)
    kernel = signal * (1 + r + r * r / 3) * decay
    noise = factor * errors * errors
    covariance = kernel + 1.0  # 1.0 is the prior variance of the constant mean, which is integrated out
    covariance[np.diag_indices(count)] += noise + _JITTER
    lower = cholesky(covariance, lower=True, check_finite=False)
    inverse = cho_solve((lower, True), np.eye(count), check_finite=False)
    alpha = inverse @ y
    loss = 0.5 * float(y @ alpha) + float(np.log(np.diag(lower)).sum())
    weight = 0.5 * (inverse - np.outer(alpha, alpha))  # d loss / d covariance
    gradient = np.empty_like(theta)
    slope = weight * (signal * (5 / 3) * (1 + r) * decay)  # times differences_k / l_k^2: d loss / d log l_k
    gradient[:dimensions] = slope.ravel() @ flat / lengths**2
    gradient[dimensions] = float((weight * kernel).sum())
    gradient[dimensions + 1] = float((np.diag(weight) * noise).sum())
    widths = np.array([_LENGTH] * dimensions + [_SIGNAL, _NOISE])
    shift = (theta - widths[:, 0]) / widths[:, 1]
    loss += 0.5 * float(shift @ shift)
    gradient += shift / widths[:, 1]
    return loss, gradient
