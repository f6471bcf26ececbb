"""The Fréchet distance between two sets of features, each taken for a Gaussian, with its floor and interval.

    d(a, b) = |m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)),   m the means, C the covariances (n - 1)

With C = X^T X / (n - 1), X the centred features, tr (C_a C_b)^(1/2) is the sum of the singular values of
X_a X_b^T / sqrt((n_a - 1)(n_b - 1)): no square root of a matrix, no complex numbers, and exact also where there are
fewer samples than dimensions and both covariances are singular. Everything is computed in float64.

At few samples the value is far too high: two sets of 64 real clips are hundreds apart in 400 dimensions. It means
something only beside the same distance between two real sets of the same size (the floor), and only values at the
same n are comparable. The interval is one for the mean of the value at this n over other samples, not for n to
infinity: the bootstrap's spread around its own mean, moved to the value (value + resampled - mean of the resampled).
Resampling repeats samples, which raises the distance as a smaller n does, so plain percentiles never hold that mean.
Two corrections widen the interval: for few resampled sets (the quantile of rank p (B + 1) instead of p (B - 1) + 1)
and for few samples (`_widening`). docs/metrics.md has the measured coverage.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from diffusion_forcing.errors import UserError, require

BOOTSTRAP = 500
"""Resampled sets: each end of a 95 % interval then rests on a dozen of them."""
LEVEL = 0.95
SPLITS = 16
"""Random halvings of the real set whose mean is the floor where no second real set is given."""

Features = NDArray[np.float64]


class Estimate(NamedTuple):
    """A value and its interval, `low` to `high`."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class FrechetReport:
    """A distance between `real` and `fake` samples (counts), its interval and its floor."""

    name: str
    value: float
    low: float
    high: float
    real: int
    fake: int
    floor: float
    floor_samples: int
    halves: bool
    """The floor is between halves of the real set."""

    def metrics(self) -> dict[str, float]:
        """Flat numbers for metrics.json; keys begin with the name in lower case."""
        key = self.name.lower()
        return {
            key: self.value,
            f"{key}_low": self.low,
            f"{key}_high": self.high,
            f"{key}_samples": self.fake,
            f"{key}_floor": self.floor,
            f"{key}_floor_samples": self.floor_samples,
        }

    def __str__(self) -> str:
        sizes = f"N {self.fake}" if self.real == self.fake else f"N {self.fake} against {self.real} real"
        floor = f"real against real {self.floor:.1f} at N {self.floor_samples}"
        if self.halves:
            floor += ", halves of the real set and so too high"
        return f"{self.name} {self.value:.1f} (95 % interval {self.low:.1f} to {self.high:.1f}, {sizes}; {floor})"


def frechet_distance(a: ArrayLike, b: ArrayLike) -> float:
    """Distance between samples `a: (n, d)` and `b: (m, d)`, or (n, f, d): n clips whose f frames are all samples.

    UserError for fewer than 2 samples, ValueError for another shape or values that are not finite.
    """
    (mean_a, root_a), (mean_b, root_b) = _moments(_samples(a, "a")), _moments(_samples(b, "b"))
    common = np.linalg.svd(root_a @ root_b.T, compute_uv=False).sum()
    shift = mean_a - mean_b
    return max(0.0, float(shift @ shift) + float((root_a**2).sum() + (root_b**2).sum() - 2 * common))


def frechet_report(
    real: ArrayLike,
    fake: ArrayLike,
    *,
    name: str = "FVD",
    floor_features: ArrayLike | None = None,
    paired: bool = False,
    bootstrap: int = BOOTSTRAP,
    seed: int = 0,
) -> FrechetReport:
    """The distance of `fake: (n, d)` from `real: (m, d)`, its 95 % interval and its floor.

    `floor_features: (at least n, d)`: other real samples; the floor is the distance of the first n from `real`, at the
    same sizes as the value. Without them it is the mean distance between random halves of the real set, which has fewer
    samples than the value and so is too high. `paired`: sample i of both belongs to the same episode (a prediction and
    its truth), so both are resampled together.
    """
    a, b = _samples(real, "real"), _samples(fake, "fake")
    rng = np.random.default_rng(seed)
    value, low, high = _interval(frechet_distance, (a, b), paired=paired, bootstrap=bootstrap, rng=rng)
    if floor_features is None:
        floor, floor_samples = _distance_of_halves(a, rng), len(a) // 2
    else:
        other = _samples(floor_features, "floor_features")
        if len(other) < len(b):
            raise UserError(f"floor_features must hold at least as many samples as fake, got {len(other)} < {len(b)}")
        floor, floor_samples = frechet_distance(a, other[: len(b)]), len(b)
    return FrechetReport(
        name=name,
        value=value,
        low=low,
        high=high,
        real=len(a),
        fake=len(b),
        floor=floor,
        floor_samples=floor_samples,
        halves=floor_features is None,
    )


def frechet_ratio(
    real: ArrayLike, fake: ArrayLike, other: ArrayLike, *, bootstrap: int = BOOTSTRAP, seed: int = 0
) -> Estimate:
    """d(real, fake) / d(real, other), such as a model's distance over copy-last-frame's, and its 95 % interval.

    Sample i of all three belongs to the same episode, and episodes are resampled: what the two distances share (the
    bias at n, the hard episodes) mostly cancels. The interval is centred in the logarithm.
    """

    def log_ratio(a: Features, b: Features, c: Features) -> float:
        return float(np.log(max(frechet_distance(a, b), 1e-300)) - np.log(max(frechet_distance(a, c), 1e-300)))

    sets = _samples(real, "real"), _samples(fake, "fake"), _samples(other, "other")
    rng = np.random.default_rng(seed)
    estimate = _interval(log_ratio, sets, paired=True, bootstrap=bootstrap, rng=rng)
    return Estimate(*(float(np.exp(end)) for end in estimate))


def _interval(
    statistic: Callable[..., float],
    sets: tuple[Features, ...],
    *,
    paired: bool,
    bootstrap: int,
    rng: np.random.Generator,
) -> Estimate:
    """`statistic` of the sets, and the centred bootstrap interval around it."""
    sizes = [len(samples) for samples in sets]
    if paired and len(set(sizes)) > 1:
        raise UserError(f"paired samples must be equally many, got {' and '.join(map(str, sizes))}")
    value = statistic(*sets)
    if bootstrap < 2:
        return Estimate(value, float("nan"), float("nan"))
    resampled = np.empty(bootstrap)
    for index in range(bootstrap):
        rows = rng.integers(sizes[0], size=sizes[0])
        picks = [rows if paired or not place else rng.integers(n, size=n) for place, n in enumerate(sizes)]
        resampled[index] = statistic(*(samples[pick] for samples, pick in zip(sets, picks, strict=True)))
    ends = np.quantile(resampled, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], method="weibull") - resampled.mean()
    low, high = value + ends * _widening(min(sizes))
    return Estimate(value, float(low), float(high))


def _widening(samples: int) -> float:
    """Factor that widens an interval from few samples (Hesterberg 2015, "expanded percentile").

    The resampled spread is too small by sqrt((n - 1)/n), and Student's t replaces the normal (its quantile to first
    order in 1/n).
    """
    z = NormalDist().inv_cdf((1 + LEVEL) / 2)
    return float(np.sqrt(samples / (samples - 1)) * (1 + (z**2 + 1) / (4 * (samples - 1))))


def _distance_of_halves(samples: Features, rng: np.random.Generator) -> float:
    half = len(samples) // 2
    if half < 2:
        return float("nan")
    shuffled = [samples[rng.permutation(len(samples))] for _ in range(SPLITS)]
    return float(np.mean([frechet_distance(both[:half], both[half : 2 * half]) for both in shuffled]))


def _moments(samples: Features) -> tuple[Features, Features]:
    """Mean (d,) and a root R (min(n, d), d) of the covariance: R^T R = C."""
    rows = samples.reshape(-1, samples.shape[-1])
    mean = rows.mean(axis=0)
    root = (rows - mean) / np.sqrt(len(rows) - 1)
    if len(rows) > rows.shape[1]:
        root = np.asarray(np.linalg.qr(root, mode="r"))
    return mean, root


def _samples(values: ArrayLike, name: str) -> Features:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim not in (2, 3) or 0 in array.shape or not np.isfinite(array).all():
        raise ValueError(f"{name} must be finite features (n, d) or (n, f, d), got shape {array.shape}")
    require(len(array) >= 2, f"a Fréchet distance needs at least 2 samples of each kind, got {len(array)} of {name}")
    return array
