"""What long rollouts are judged by, without a network: texture, motion, survival, and intervals from resampled episodes.

Frames are (b, t, c, h, w) in [0, 1]; numbers are one for each frame or for each rollout.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

Curve = NDArray[np.float64]
RESAMPLES = 1000
SEED = 0
THUMBNAIL = 8
"""Side of the thumbnails by which frames are compared with all real ones: colours and layout, no texture."""
LEAST, FAR = 0.5, 1.5
"""A rollout is alive if it moves, and has contrast, at least LEAST times as much as the real clip with the least, and lies at most FAR times as far
from the nearest frame of any real clip as real clips do from one another (99 % of them)."""


def laplacian_energy(frames: Tensor) -> Tensor:
    """(b, t): mean square of the discrete Laplacian of the brightness (mean of the channels), without the border. Texture; noise has much."""
    grey = frames.flatten(0, 1).mean(dim=1)
    middle = grey[:, 1:-1, 1:-1]
    around = grey[:, :-2, 1:-1] + grey[:, 2:, 1:-1] + grey[:, 1:-1, :-2] + grey[:, 1:-1, 2:]
    return (around - 4 * middle).square().mean(dim=(1, 2)).unflatten(0, frames.shape[:2])


def motion(frames: Tensor) -> Tensor:
    """(b, t − 1): mean absolute difference of neighbouring frames."""
    return (frames[:, 1:] - frames[:, :-1]).abs().mean(dim=(2, 3, 4))


def thumbnails(frames: Tensor) -> Tensor:
    """(b, t, d): averages over the cells of a grid of at most `THUMBNAIL` a side."""
    side = min(THUMBNAIL, *frames.shape[-2:])
    return F.adaptive_avg_pool2d(frames.flatten(0, 1), side).flatten(1).unflatten(0, frames.shape[:2])


def nearest(frames: Tensor, real: Tensor, *, same: bool = False) -> Tensor:
    """(b,): how far the thumbnails (b, t, d) of each rollout are from the nearest of all `real` ones (n, m, d), median over t.

    Distances are root mean squares. same: rollout i is real clip i, and is compared with the other clips.
    """
    found = []
    for number, own in enumerate(frames):
        others = torch.cat([real[:number], real[number + 1 :]]) if same else real
        distance = torch.cdist(own, others.flatten(0, 1)).min(dim=1).values
        found.append(distance.median() / frames.shape[-1] ** 0.5)
    return torch.stack(found)


class Life(NamedTuple):
    """Signs of life of clips, (b,) each. motion: mean of `motion`; contrast: deviation within their thumbnails; distance: from `nearest`."""

    motion: Tensor
    contrast: Tensor
    distance: Tensor


def contrast(frames: Tensor) -> Tensor:
    """(b,): deviation within each of the thumbnails (b, t, d), mean over t: a grey fog has little."""
    return frames.std(dim=-1).mean(dim=1)


def alive(rollouts: Life, real: Life) -> Tensor:
    """(b,) bool: which rollouts still show what real video could."""
    lively = (rollouts.motion >= LEAST * real.motion.min()) & (rollouts.contrast >= LEAST * real.contrast.min())
    return lively & (rollouts.distance <= FAR * real.distance.quantile(0.99))


class Interval(NamedTuple):
    """A statistic of all episodes, (n,), and the ends of its 95 % interval."""

    value: Curve
    low: Curve
    high: Curve

    def numbers(self, name: str, index: int = 0) -> dict[str, float]:
        """Number `index` as `name`, `name_low` and `name_high`, as far as they are finite."""
        found = {f"{name}{end}": float(curve[index]) for end, curve in zip(("", "_low", "_high"), self, strict=True)}
        return {key: value for key, value in found.items() if np.isfinite(value)}


def mean_of(values: Curve) -> Curve:
    """Mean over the first axis, ignoring NaN; NaN, without a warning, where nothing else is there."""
    count = np.isfinite(values).sum(axis=0)
    total = np.nansum(values, axis=0)
    return np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)


def mean_interval(values: Curve) -> Interval:
    """Mean over episodes of (episodes, n), ignoring NaN, with its bootstrap interval."""
    return bootstrap(lambda mean: mean, values)


def ratio_interval(values: Curve, other: Curve) -> Interval:
    """Mean of `values` over the mean of `other`, both (episodes, n), such as generated over real texture, with its bootstrap interval."""
    return bootstrap(np.true_divide, values, other)


def bootstrap(statistic: Callable[..., Curve], *samples: Curve) -> Interval:
    """`statistic` of the means over episodes of `samples`: (episodes, n) each, NaN where an episode has no value, and its 95 % interval.

    Episodes are resampled, those of all samples together. The percentiles are widened for few episodes by √(n/(n − 1)); the ends are NaN where
    fewer than two episodes have a value.
    """
    count = len(samples[0])
    enough = np.isfinite(samples[0]).sum(axis=0) > 1
    with np.errstate(divide="ignore", invalid="ignore"):
        value = statistic(*map(mean_of, samples))
        if count < 2:
            return Interval(value, np.full_like(value, np.nan), np.full_like(value, np.nan))
        draws = np.random.default_rng(SEED).multinomial(count, np.full(count, 1 / count), size=RESAMPLES)
        resampled = statistic(*(_weighted_mean(draws.astype(np.float64), sample) for sample in samples))
        ends = np.nanquantile(np.where(enough, resampled, 0), [0.025, 0.975], axis=0)
    wider = (count / (count - 1)) ** 0.5
    low, high = (np.where(enough, value + wider * (end - value), np.nan) for end in ends)
    return Interval(value, low, high)


def _weighted_mean(weights: Curve, values: Curve) -> Curve:
    """weights: (resamples, episodes), values: (episodes, n) with NaN where there is none → (resamples, n)."""
    known = np.isfinite(values)
    mean: Curve = (weights @ np.where(known, values, 0.0)) / (weights @ known.astype(np.float64))
    return mean
