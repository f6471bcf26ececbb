"""The Fréchet distance between two sets of features, as of two Gaussians, and what can honestly be said of it.

    d(a, b) = |m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)),   m the means, C the covariances (n - 1)

With C = X^T X / (n - 1), X the centred features, tr (C_a C_b)^(1/2) is the sum of the singular values of
X_a X_b^T / sqrt((n_a - 1)(n_b - 1)): no square root of a matrix, no complex numbers, and exact also where there are
fewer samples than dimensions and both covariances are singular. Everything in float64.

At few samples the value is far too high: two sets of 64 real clips are hundreds apart in 400 dimensions. So it means
something only beside the same distance between two real sets of the same size (the floor), and all comparisons are at
the same n. The interval is one for the mean of the value at this n over other samples, not for n to infinity. It is
the bootstrap's spread moved so that its centre is the value (value + resampled - mean of the resampled): resampling
repeats samples, which raises the distance again as a smaller n does, so percentiles as they are miss that mean always.
Two things make a bootstrap's interval too short, and are undone: few resampled sets (the quantile of rank p (B + 1)
instead of p (B - 1) + 1) and few samples (`_widening`). docs/metrics.md has how often intervals held what they should.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from diffusion_forcing.errors import UserError

BOOTSTRAP = 500
"""Resampled sets: the ends of a 95 % interval then rest on a dozen of them each."""
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
    """A distance between `real` and `fake` samples and what it has to be read beside."""

    name: str
    value: float
    low: float
    high: float
    real: int
    fake: int
    floor: float
    floor_samples: int
    halves: bool

    def metrics(self, prefix: str = "") -> dict[str, float]:
        """Flat numbers for metrics.json, keys `prefix` + name in small letters + …"""
        key = prefix + self.name.lower()
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
    """Distance between samples `a: (n, d)` and `b: (m, d)`, or (n, f, d): n clips of f frames, all frames counted."""
    return _distance(_samples(a, "a"), _samples(b, "b"))


def gaussian_distance(mean_a: ArrayLike, cov_a: ArrayLike, mean_b: ArrayLike, cov_b: ArrayLike) -> float:
    """Distance between two Gaussians given by means (d,) and covariances (d, d), symmetric and not negative."""
    roots = []
    for covariance in (cov_a, cov_b):
        values, vectors = np.linalg.eigh(np.asarray(covariance, np.float64))
        roots.append(np.sqrt(values.clip(0))[:, None] * vectors.T)
    shift = np.asarray(mean_a, np.float64) - np.asarray(mean_b, np.float64)
    return _of_roots(float(shift @ shift), *roots)


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

    `floor_features: (at least n, d)`: other real samples; the floor is the distance of the first n from `real`, the
    same sizes as the value's. Without them the real set is halved (16 times at random, the mean), which is at fewer
    samples than the value and reads too high; the report says so. `paired`: sample i of both is of the same episode
    (a prediction and its truth), so both are drawn together.
    """
    a, b = _samples(real, "real"), _samples(fake, "fake")
    rng = np.random.default_rng(seed)
    value, low, high = _interval(_distance, (a, b), tied=paired, bootstrap=bootstrap, rng=rng)
    if floor_features is not None:
        other = _samples(floor_features, "floor_features")
        if len(other) < len(b):
            raise UserError(f"floor_features must hold at least as many samples as fake, got {len(other)} < {len(b)}")
        floor, samples = _distance(a, other[: len(b)]), len(b)
    else:
        floor, samples = _halves(a, rng), len(a) // 2
    return FrechetReport(
        name=name,
        value=value,
        low=low,
        high=high,
        real=len(a),
        fake=len(b),
        floor=floor,
        floor_samples=samples,
        halves=floor_features is None,
    )


def frechet_ratio(
    real: ArrayLike, fake: ArrayLike, other: ArrayLike, *, bootstrap: int = BOOTSTRAP, seed: int = 0
) -> Estimate:
    """d(real, fake) / d(real, other), say a model's over copy-last-frame's, and its 95 % interval.

    All three hold sample i of the same episode i, and episodes are drawn: what the two distances share (the bias of
    n, the episodes that are hard) is in both and mostly falls out. The interval is centred as above, in the logarithm.
    """
    a, b, c = _samples(real, "real"), _samples(fake, "fake"), _samples(other, "other")

    def logarithm(a: Features, b: Features, c: Features) -> float:
        return float(np.log(max(_distance(a, b), 1e-300)) - np.log(max(_distance(a, c), 1e-300)))

    rng = np.random.default_rng(seed)
    found = _interval(logarithm, (a, b, c), tied=True, bootstrap=bootstrap, rng=rng)
    return Estimate(*(float(np.exp(each)) for each in found))


def _interval(
    statistic: Callable[..., float],
    sets: tuple[Features, ...],
    *,
    tied: bool,
    bootstrap: int,
    rng: np.random.Generator,
) -> Estimate:
    """`statistic` of the sets, and the centred bootstrap interval around it."""
    sizes = [len(each) for each in sets]
    if tied and len(set(sizes)) > 1:
        raise UserError(f"samples that are drawn together must be equally many, got {' and '.join(map(str, sizes))}")
    value = statistic(*sets)
    if bootstrap < 2:
        return Estimate(value, float("nan"), float("nan"))
    drawn = np.empty(bootstrap)
    for index in range(bootstrap):
        rows = rng.integers(sizes[0], size=sizes[0])
        picks = [rows if tied or not place else rng.integers(n, size=n) for place, n in enumerate(sizes)]
        drawn[index] = statistic(*(each[pick] for each, pick in zip(sets, picks, strict=True)))
    ends = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], method="weibull") - drawn.mean()
    low, high = value + ends * _widening(min(sizes))
    return Estimate(value, float(low), float(high))


def _widening(samples: int) -> float:
    """How much wider than the bootstrap's an interval from so few samples has to be (Hesterberg 2015, "expanded percentile"): resampled
    spread is too small by sqrt((n - 1)/n), and Student's t stands for the normal (its quantile to the first order in 1/n)."""
    z = NormalDist().inv_cdf((1 + LEVEL) / 2)
    return float(np.sqrt(samples / (samples - 1)) * (1 + (z**2 + 1) / (4 * (samples - 1))))


def _halves(samples: Features, rng: np.random.Generator) -> float:
    half = len(samples) // 2
    if half < 2:
        return float("nan")
    orders = [rng.permutation(len(samples)) for _ in range(SPLITS)]
    return float(np.mean([_distance(samples[order[:half]], samples[order[half : 2 * half]]) for order in orders]))


def _distance(a: Features, b: Features) -> float:
    (mean_a, root_a), (mean_b, root_b) = _moments(a), _moments(b)
    shift = mean_a - mean_b
    return _of_roots(float(shift @ shift), root_a, root_b)


def _moments(samples: Features) -> tuple[Features, Features]:
    """Mean (d,) and a root R (min(n, d), d) of the covariance: R^T R = C."""
    rows = samples.reshape(-1, samples.shape[-1])
    mean = rows.mean(axis=0)
    root = (rows - mean) / np.sqrt(len(rows) - 1)
    if len(rows) > rows.shape[1]:
        root = np.asarray(np.linalg.qr(root, mode="r"))
    return mean, root


def _of_roots(shift: float, root_a: Features, root_b: Features) -> float:
    common = np.linalg.svd(root_a @ root_b.T, compute_uv=False).sum()
    return max(0.0, shift + float((root_a**2).sum() + (root_b**2).sum() - 2 * common))


def _samples(values: Any, name: str) -> Features:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim not in (2, 3) or 0 in array.shape or not np.isfinite(array).all():
        raise ValueError(f"{name} must be finite features (n, d) or (n, f, d), got shape {array.shape}")
    if len(array) < 2:
        raise UserError(f"a Fréchet distance needs at least 2 samples of each kind, got {len(array)} of {name}")
    return array
