"""Metrics of single frames: (b, t, c, h, w) in [0, 1] to a value per frame, (b, t).

    mse     mean squared error over channels and pixels
    psnr    10 log10(1 / mse) dB, at most 100: a perfect frame scores 100, so that means stay finite
    ssim    structural similarity (Wang et al. 2004), Gaussian window with sigma 1.5, at most 1
    uiqi    universal image quality index (Wang and Bovik 2002), SSIM without its constants, same window, at most 1

PSNR, SSIM and UIQI are torchmetrics', with data_range 1 because frames are in [0, 1]; a range of 2 would add 6.02 dB.
Where both frames are flat, UIQI is 0 / 0 and counts as 0, so a perfect prediction of a clear sky does not score 1.
Everything is computed in float32, also where the caller runs under autocast. LPIPS is in `lpips.py`, FID and FVD are in
`distances.py`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics.functional.image import (
    peak_signal_noise_ratio,
    structural_similarity_index_measure,
    universal_image_quality_index,
)

from diffusion_forcing.errors import UserError, check_choice, require

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
