"""Metrics of single frames: (b, t, c, h, w) in [0, 1] to a value per frame, (b, t).

    mse     mean squared error over channels and pixels
    psnr    10 log10(1 / mse) dB, at most 100: a perfect frame scores 100, so that means stay finite
    ssim    structural similarity (Wang et al. 2004), Gaussian window with sigma 1.5, at most 1
    uiqi    universal image quality index (Wang and Bovik 2002), SSIM without its constants, same window, at most 1

PSNR, SSIM and UIQI are torchmetrics', with data_range 1 because frames are in [0, 1]; a range of 2 would add 6.02 dB.
Where both frames are flat, UIQI is 0 / 0 and counts as 0, so a perfect prediction of a clear sky does not score 1.
Everything is computed in float32, also where the caller runs under autocast. LPIPS is in `lpips.py`, FID and FVD are in
`frechet.py`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torchmetrics.functional.image import (
    peak_signal_noise_ratio,
    structural_similarity_index_measure,
    universal_image_quality_index,
)

from diffusion_forcing.errors import UserError, check_choice, first_line, require

SLACK = 1e-4
"""How far outside [0, 1] rounding may go (half precision rounds 1 to 1.0; a resize overshoots by less)."""
CHUNK_VALUES = 1 << 18
"""Pixel values scored at once: torchmetrics holds about a dozen copies, some 15 MB; the fastest measured size."""
PSNR_CAP = 100.0
"""PSNR in dB of a perfect frame, as if its mse were 1e-10. Rounding to 8 bits alone limits PSNR to 59 dB."""
WINDOW = 11
"""Side of SSIM's and UIQI's window in pixels."""


def _psnr(prediction: Tensor, truth: Tensor) -> Tensor:
    decibels = peak_signal_noise_ratio(prediction, truth, data_range=1.0, reduction="none", dim=(1, 2, 3))
    return decibels.clamp(max=PSNR_CAP)


def _ssim(prediction: Tensor, truth: Tensor) -> Tensor:
    similarity = structural_similarity_index_measure(prediction, truth, data_range=1.0, reduction="none")
    assert isinstance(similarity, Tensor)  # it is a pair only if the full image is requested
    return similarity.reshape(len(prediction))


FRAME_METRICS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mse": lambda prediction, truth: (prediction - truth).square().mean(dim=(1, 2, 3)),
    "psnr": _psnr,
    "ssim": _ssim,
    "uiqi": lambda one, other: universal_image_quality_index(one, other, reduction="none").mean(dim=(1, 2, 3)),
}
"""Functions of predicted and true frames, (n, c, h, w) each, that return (n,)."""


def frame_curves(prediction: Tensor, truth: Tensor, metrics: Sequence[str] = tuple(FRAME_METRICS)) -> dict[str, Tensor]:
    """`metrics` of every frame of `prediction` and `truth: (b, t, c, h, w)` in [0, 1]: (b, t) float32 each, on the CPU.

    UserError for an unknown metric and for frames that `check_frames` refuses, such as ones too small for SSIM or UIQI.
    """
    for name in metrics:
        check_choice("metrics", name, FRAME_METRICS)
    windowed = next((name for name in metrics if name in ("ssim", "uiqi")), "")

    def score(prediction: Tensor, truth: Tensor) -> Tensor:
        return torch.stack([FRAME_METRICS[name](prediction, truth) for name in metrics])

    scores = compare_frames(score, prediction, truth, metric=windowed, side=WINDOW if windowed else 1)
    return dict(zip(metrics, scores.unbind(), strict=True))


def compare_frames(
    score: Callable[[Tensor, Tensor], Tensor], prediction: Tensor, truth: Tensor, **requirements: Any
) -> Tensor:
    """Apply `score(prediction, truth)`, frames (n, c, h, w) to (…, n), to clips (b, t, c, h, w): (…, b, t) on the CPU.

    Frames are scored in chunks, so the memory needed beside the input does not grow with it. `requirements`: of
    `check_frames`.
    """
    prediction, truth = check_frames(prediction, "prediction"), check_frames(truth, "truth", **requirements)
    if prediction.shape != truth.shape:
        shapes = f"{tuple(prediction.shape)} and {tuple(truth.shape)}"
        raise UserError(f"prediction and truth must have the same shape, got {shapes}")
    truth = truth.to(prediction.device)
    per_chunk = max(1, CHUNK_VALUES // truth[0, 0].numel())
    chunks = zip(*(clips.flatten(0, 1).split(per_chunk) for clips in (prediction, truth)), strict=True)
    with torch.no_grad(), full_precision(prediction.device):
        scores = torch.cat([score(*chunk).float().cpu() for chunk in chunks], dim=-1)
    return scores.unflatten(-1, truth.shape[:2])


def check_frames(
    frames: Tensor,
    name: str = "frames",
    *,
    metric: str = "",
    side: int = 1,
    length: int = 1,
    grey_or_colour: bool = False,
) -> Tensor:
    """`frames: (b, t, c, h, w)` in [0, 1] as float32.

    UserError for another shape, type or range, and where `metric` requires at least `side` pixels a side, at least
    `length` frames, or 1 or 3 channels.
    """
    if not isinstance(frames, Tensor) or frames.ndim != 5 or 0 in frames.shape:
        found = f"shape {tuple(frames.shape)}" if isinstance(frames, Tensor) else type(frames).__name__
        raise UserError(f"{name} must be a tensor (clips, frames, channels, height, width), none 0, got {found}")
    if not frames.is_floating_point():
        raise UserError(f"{name} must be floating point in [0, 1], got {frames.dtype}; divide by 255 first")
    low, high = (float(value) for value in torch.aminmax(frames))
    if not (low >= -SLACK and high <= 1 + SLACK):  # also false for NaN
        advice = "divide by 255" if high > 2 else "use x / 2 + 1 / 2" if low < -0.5 else "clamp to [0, 1]"
        raise UserError(f"{name} must lie in [0, 1], found {low:.4g} to {high:.4g}; {advice} first")
    t, c, height, width = frames.shape[1:]
    require(min(height, width) >= side, f"{metric} needs frames of at least {side}x{side} pixels, got {height}x{width}")
    require(t >= length, f"{metric} needs clips of at least {length} frames, got {t}; predict more (dataset.n_frames)")
    if grey_or_colour and c not in (1, 3):
        raise UserError(f"{metric} needs frames of 1 or 3 channels, got {c}")
    return frames.float()


@contextlib.contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Disable autocast on `device`: half precision changes SSIM and UIQI in their second digit."""
    if torch.amp.is_autocast_available(device.type):
        with torch.autocast(device.type, enabled=False):
            yield
    else:
        yield


def copy_last(context: Tensor, length: int) -> Tensor:
    """Baseline: the last frame of `context: (b, t, c, h, w)`, repeated: (b, length, c, h, w)."""
    return context[:, -1:].repeat(1, length, 1, 1, 1)


def mean_frame(context: Tensor, length: int) -> Tensor:
    """Baseline: the mean over time of each clip's `context: (b, t, c, h, w)`, repeated: (b, length, c, h, w)."""
    return context.mean(dim=1, keepdim=True).repeat(1, length, 1, 1, 1)


# -------------------------------------------------------------------------------------------------------- long rollouts
# What long rollouts are judged by, without a network: texture, motion, survival, and intervals from resampled episodes.
#
# Frames are (b, t, c, h, w) in [0, 1]; numbers are one for each frame or for each rollout.

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
    """Mean over episodes of (episodes, n), ignoring NaN, with its bootstrap interval, inside the range of the values."""
    value, low, high = bootstrap(lambda mean: mean, values)
    lowest, highest = (
        np.where(np.isnan(values), np.inf, values).min(0),
        np.where(np.isnan(values), -np.inf, values).max(0),
    )
    return Interval(value, np.maximum(low, lowest), np.minimum(high, highest))


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


# ----------------------------------------------------------------------------------------------------- inverse dynamics
# Inverse dynamics: which action led from one frame to the next, recognised by a small network that was trained on real video.
#
# Its accuracy on generated pairs of frames over that on real ones says whether a world model obeys its actions, whatever its frames look like
# pixel by pixel. Actions are discrete; a pair is two neighbouring frames in [0, 1].

TASK = "inverse_dynamics"
"""What a checkpoint of such a network says it is for."""


class InverseDynamics(nn.Module):
    """Frames (n, 2, c, h, w) in [0, 1], the one before and the one after → (n, actions), logits of the action between them.

    Convolutions that halve the frames down to 4×4, over both frames and their difference.
    """

    def __init__(self, channels: int, resolution: int, actions: int, width: int = 24) -> None:
        super().__init__()
        self.channels, self.resolution, self.actions, self.width = channels, resolution, actions, width
        layers: list[nn.Module] = []
        size, now = resolution, 3 * channels
        while size > 4:
            wider = width * min(4, resolution // size)
            layers += [nn.Conv2d(now, wider, 3, stride=2, padding=1), nn.GroupNorm(4, wider), nn.SiLU()]
            size, now = (size + 1) // 2, wider
        self.layers = nn.Sequential(*layers, nn.Flatten(), nn.Linear(now * size * size, actions))

    def forward(self, pairs: Tensor) -> Tensor:
        before, after = (2 * pairs - 1).unbind(dim=1)
        logits: Tensor = self.layers(torch.cat([before, after, after - before], dim=1))
        return logits

    def describe(self) -> dict[str, Any]:
        """Metadata of its checkpoint."""
        sizes = {name: getattr(self, name) for name in ("channels", "resolution", "actions", "width")}
        return {"task": TASK, "line": "", "sizes": sizes}

    @classmethod
    def of(cls, metadata: Mapping[str, Any], weights: Mapping[str, Tensor]) -> InverseDynamics:
        """The network of a checkpoint's metadata and weights; UserError for another kind of checkpoint."""
        if metadata.get("task") != TASK or not isinstance(metadata.get("sizes"), Mapping):
            raise UserError(
                f"it is a checkpoint for {metadata.get('task') or 'an unknown task'}, not for {TASK}; train one with tools/train_inverse_dynamics.py"
            )
        try:
            network = cls(**{name: int(value) for name, value in metadata["sizes"].items()})
            network.load_state_dict({key: value.float() for key, value in weights.items()})
        except (ArithmeticError, RuntimeError, TypeError, ValueError) as error:
            raise UserError(
                f"its sizes and weights do not fit ({first_line(error)}); take another checkpoint"
            ) from error
        return network.eval().requires_grad_(False)


def actions_recognised(frames: Tensor, actions: Tensor, network: InverseDynamics) -> Tensor:
    """(b, t): 1 where the action between frames t and t + 1 of `frames`: (b, t + 1, c, h, w) in [0, 1] is recognised, 0 where not, on the CPU.

    actions: (b, t, a) one-hot. UserError for frames or actions that the network was not trained for.
    """
    frames = check_frames(frames, metric="inverse dynamics", length=2)
    again = "train it on them with tools/train_inverse_dynamics.py"
    size, trained = tuple(frames.shape[2:]), (network.channels, network.resolution, network.resolution)
    require(size == trained, f"inverse dynamics was trained on frames {trained}, these are {size}; {again}")
    numbers = f"{actions.shape[-1]} numbers (with frame_skip the actions of all skipped frames)"
    is_known = actions.shape[-1] == network.actions
    require(is_known, f"inverse dynamics tells {network.actions} actions apart, these have {numbers}; {again}")
    pairs = torch.stack([frames[:, :-1], frames[:, 1:]], dim=2).flatten(0, 1)
    with torch.no_grad(), full_precision(frames.device):
        recognised = torch.cat([network(part).argmax(dim=-1) for part in pairs.split(256)])
    right = recognised == actions.flatten(0, 1).argmax(dim=-1)
    return right.unflatten(0, actions.shape[:2]).float().cpu()


def inverse_dynamics_loss(network: InverseDynamics, frames: Tensor, actions: Tensor) -> Tensor:
    """Cross-entropy of the actions (b, t, a), one-hot, between neighbouring `frames`: (b, t + 1, c, h, w) in [0, 1]; a scalar."""
    pairs = torch.stack([frames[:, :-1], frames[:, 1:]], dim=2).flatten(0, 1)
    return F.cross_entropy(network(pairs), actions.flatten(0, 1).argmax(dim=-1))
