"""How far predicted frames are from the true ones, frame by frame: (b, t, c, h, w) in [0, 1] to a curve (b, t) a clip.

    mse     mean squared difference over channels and pixels
    psnr    10 log10(1 / mse) dB, at most 100: a perfect frame scores 100, so that means stay finite
    ssim    structural similarity (Wang 2004), Gaussian window of sigma 1.5, at most 1
    uiqi    universal image quality index (Wang 2002), SSIM without its constants, same window, at most 1

All through torchmetrics, with data_range 1 because the frames are in [0, 1]; a range of 2 would give 6.02 dB too much.
Two habits of the last two: where both frames are flat UIQI is 0 / 0, counted as 0, so a perfect prediction of a clear
sky does not score 1; and both need frames of at least 11 by 11. Nothing here edits its input. LPIPS is in
`lpips.py`, FID in `fid.py`, FVD in `fvd.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torchmetrics.functional.image import (
    peak_signal_noise_ratio,
    structural_similarity_index_measure,
    universal_image_quality_index,
)

from diffusion_forcing.errors import UserError, did_you_mean
from diffusion_forcing.metrics.frames import CHUNK_VALUES, checked_pair, chunks

PSNR_CAP = 100.0
"""dB of a perfect frame, as if its mse were 1e-10. Rounding to 8 bits alone costs more: it leaves 59 dB."""
WINDOW = 11
"""Pixels of a side of the window of SSIM and UIQI."""


def mse(prediction: Tensor, truth: Tensor) -> Tensor:
    """Mean squared error of each frame, (b, t)."""
    return frame_curves(prediction, truth, ["mse"])["mse"]


def psnr(prediction: Tensor, truth: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each frame in dB, at most `PSNR_CAP`, (b, t)."""
    return frame_curves(prediction, truth, ["psnr"])["psnr"]


def ssim(prediction: Tensor, truth: Tensor) -> Tensor:
    """Structural similarity of each frame, (b, t)."""
    return frame_curves(prediction, truth, ["ssim"])["ssim"]


def uiqi(prediction: Tensor, truth: Tensor) -> Tensor:
    """Universal image quality index of each frame, (b, t)."""
    return frame_curves(prediction, truth, ["uiqi"])["uiqi"]


def frame_curves(
    prediction: Tensor, truth: Tensor, metrics: Sequence[str] = ("mse", "psnr", "ssim", "uiqi")
) -> dict[str, Tensor]:
    """Each of `metrics` (keys of `FRAME_METRICS`) of each frame, (b, t) float32 on the CPU.

    Frames are looked at some at a time, so the memory needed beside the input does not grow with it.
    """
    prediction, truth = checked_pair(prediction, truth)
    b, t, _, height, width = truth.shape
    for name in metrics:
        if name not in FRAME_METRICS:
            near = did_you_mean(name, FRAME_METRICS)
            raise UserError(f"'{name}' is not a metric of frames{near}; there are: {', '.join(FRAME_METRICS)}")
        if name in ("ssim", "uiqi") and min(height, width) < WINDOW:
            raise UserError(f"{name} needs frames of at least {WINDOW}x{WINDOW} pixels, got {height}x{width}")
    found: dict[str, list[Tensor]] = {name: [] for name in metrics}
    with torch.no_grad():
        for one, other in chunks(prediction, truth, values=CHUNK_VALUES):
            for name in metrics:
                found[name].append(FRAME_METRICS[name](one, other).cpu())
    return {name: torch.cat(values).view(b, t) for name, values in found.items()}


def _mse(prediction: Tensor, truth: Tensor) -> Tensor:
    return (prediction - truth).square().mean(dim=(1, 2, 3))


def _psnr(prediction: Tensor, truth: Tensor) -> Tensor:
    decibels = peak_signal_noise_ratio(prediction, truth, data_range=1.0, reduction="none", dim=(1, 2, 3))
    return decibels.clamp(max=PSNR_CAP)


def _ssim(prediction: Tensor, truth: Tensor) -> Tensor:
    similarity = structural_similarity_index_measure(prediction, truth, data_range=1.0, reduction="none")
    assert isinstance(similarity, Tensor)  # a pair only where the full image is asked for
    return similarity.reshape(len(prediction))


def _uiqi(prediction: Tensor, truth: Tensor) -> Tensor:
    return universal_image_quality_index(prediction, truth, reduction="none").mean(dim=(1, 2, 3))


FRAME_METRICS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mse": _mse,
    "psnr": _psnr,
    "ssim": _ssim,
    "uiqi": _uiqi,
}
"""Name: frames (n, c, h, w) and the true ones to (n,)."""
HIGHER_IS_BETTER = {"mse": False, "psnr": True, "ssim": True, "uiqi": True, "lpips": False}
