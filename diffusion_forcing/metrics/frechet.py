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

import contextlib
import functools
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from diffusion_forcing.arrays import read_npy, write_npy
from diffusion_forcing.errors import UserError, require
from diffusion_forcing.files import replacing
from diffusion_forcing.limits import Refused
from diffusion_forcing.metrics.i3d import CLASSES, I3D, I3D_RESOLUTION, MIN_FRAMES
from diffusion_forcing.metrics.inception import Inception
from diffusion_forcing.metrics.video import check_frames, full_precision

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


# ---------------------------------------------------------------------------------------------------------- FVD and FID
# FVD and FID: Fréchet distances between features of real and generated video.
#
# FVD (Unterthiner et al. 2018, arXiv:1812.01717) compares the 400 logits of I3D. Each clip of t frames (at least 9;
# papers use 16) is one sample. Frames are resized to 224 x 224, bilinear with half-pixel centres and without
# antialiasing, the aspect ratio not kept, and scaled from [0, 1] to [-1, 1], as in TECO and the released code. (The
# first implementation, on TensorFlow 1, put pixel centres on the corners: a shift by less than a pixel.)
#
# FID (Heusel et al. 2017, arXiv:1706.08500) compares the 2048 features of Inception-v3 and sees single frames, no motion.
# Each frame is a sample; the interval resamples whole clips, because the frames of a clip are much alike. Papers use
# 50,000 frames; at the hundreds of an evaluation here the value is far too high, as the floor beside it shows.
#
# Values at other clip lengths, resolutions or sample counts are not comparable, so every report has N and the floor at N.
# Features of real clips are computed once: `fvd_report(i3d_features(real, network), i3d_features(fake, network))`.

FVD_BATCH = 4
"""Clips at once: about 0.6 GB for 16 frames. A CPU gains nothing from more; on a GPU use 16 or 32."""
FID_BATCH = 16
"""Frames at once."""

fvd_report = functools.partial(frechet_report, name="FVD")
"""`frechet_report` of features (n, 400)."""
fid_report = functools.partial(frechet_report, name="FID", bootstrap=60)
"""`frechet_report` of features (n, t, 2048), with fewer resampled sets: each costs the SVD of a 2048 x 2048 matrix."""


def i3d_features(
    frames: Tensor, network: I3D, *, batch: int = FVD_BATCH, cache: Path | None = None
) -> NDArray[np.float32]:
    """Logits (n, 400) of clips `frames: (n, t, 1 or 3, h, w)` in [0, 1], t at least 9, on the network's device.

    `cache`: a folder where the features of exactly these frames and this network are kept. UserError for frames that
    `check_frames` refuses.
    """
    frames = check_frames(frames, metric="FVD", length=MIN_FRAMES, grey_or_colour=True)
    kept = None if cache is None else cache / f"i3d-{_fingerprint(frames, network)}.npy"
    if kept is not None:
        with contextlib.suppress(OSError, Refused):
            features: NDArray[np.float32] = read_npy(kept)
            if features.shape == (len(frames), CLASSES) and features.dtype == np.float32:
                return features
    features = _run(network, frames, batch, i3d_input)
    if kept is not None:
        with contextlib.suppress(OSError):  # then they are computed again next time
            kept.parent.mkdir(parents=True, exist_ok=True)
            with replacing(kept) as temporary:
                write_npy(temporary, features)
    return features


def inception_features(frames: Tensor, network: Inception, *, batch: int = FID_BATCH) -> NDArray[np.float32]:
    """Features (n, t, 2048) of `frames: (n, t, 1 or 3, h, w)` in [0, 1], on the network's device.

    UserError for frames that `check_frames` refuses.
    """
    frames = check_frames(frames, metric="FID", grey_or_colour=True)
    return _run(network, frames.flatten(0, 1), batch).reshape(*frames.shape[:2], -1)


def i3d_input(frames: Tensor) -> Tensor:
    """(b, t, 1 or 3, h, w) in [0, 1] to I3D's (b, 3, t, 224, 224) in [-1, 1]; grey is repeated to three channels."""
    b, t, c = frames.shape[:3]
    side = (I3D_RESOLUTION, I3D_RESOLUTION)
    resized = F.interpolate(frames.flatten(0, 1), side, mode="bilinear", align_corners=False)
    return (resized.clamp(0, 1) * 2 - 1).view(b, t, c, *side).transpose(1, 2).expand(b, 3, t, *side)


def _run(
    network: nn.Module, inputs: Tensor, batch: int, prepare: Callable[[Tensor], Tensor] = lambda x: x
) -> NDArray[np.float32]:
    """`network(prepare(part))` of all parts of `batch` rows, in float32."""
    device = next(network.parameters()).device
    with torch.inference_mode(), full_precision(device):
        parts = [network(prepare(part.to(device))).float().cpu() for part in inputs.split(batch)]
    features: NDArray[np.float32] = torch.cat(parts).numpy()
    return features


def _fingerprint(frames: Tensor, network: I3D) -> str:
    """SHA-256 of the network's weights and of the frames, in 32 hex digits."""
    digest = hashlib.sha256()
    for name, x in (*sorted(network.state_dict().items()), ("frames", frames)):
        digest.update(f"{name} {tuple(x.shape)}".encode())
        digest.update(x.contiguous().cpu().numpy().tobytes())
    return digest.hexdigest()[:32]
