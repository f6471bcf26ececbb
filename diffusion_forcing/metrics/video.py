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

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor
from torchmetrics.functional.image import (
    peak_signal_noise_ratio,
    structural_similarity_index_measure,
    universal_image_quality_index,
)

from diffusion_forcing.errors import UserError, did_you_mean

# What every metric of frames asks of its input: (b, t, c, h, w), floating point, in [0, 1]. Checked once, at the door.

SLACK = 1e-4
"""How far outside [0, 1] rounding may go (half precision rounds 1 to 1.0; a resize overshoots by less)."""
CHUNK_VALUES = 1 << 18
"""Pixel values looked at together: the libraries hold about a dozen copies, some 15 MB, and the fastest of what was tried."""


def checked_frames(frames: Tensor, name: str = "frames") -> Tensor:
    """`frames: (b, t, c, h, w)` as float32, the same tensor where it already is; UserError for anything else."""
    if not isinstance(frames, Tensor) or frames.ndim != 5 or 0 in frames.shape:
        found = f"shape {tuple(frames.shape)}" if isinstance(frames, Tensor) else type(frames).__name__
        raise UserError(f"{name} must be a tensor (clips, frames, channels, height, width), none 0, got {found}")
    if not frames.is_floating_point():
        raise UserError(f"{name} must be floating point in [0, 1], got {frames.dtype}; divide by 255 first")
    low, high = (float(value) for value in torch.aminmax(frames))
    if not (low >= -SLACK and high <= 1 + SLACK):  # also false for NaN
        advice = "divide by 255" if high > 2 else "use x / 2 + 1 / 2" if low < -0.5 else "clamp to [0, 1]"
        raise UserError(f"{name} must lie in [0, 1], found {low:.4g} to {high:.4g}; {advice} first")
    return frames.float()


def checked_pair(prediction: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """Both checked, of the same shape, on the prediction's device."""
    prediction, truth = checked_frames(prediction, "prediction"), checked_frames(truth, "truth")
    if prediction.shape != truth.shape:
        raise UserError(
            f"prediction and truth must have the same shape, got {tuple(prediction.shape)} and {tuple(truth.shape)}"
        )
    return prediction, truth.to(prediction.device)


def chunks(*clips: Tensor, values: int = CHUNK_VALUES) -> Iterator[tuple[Tensor, ...]]:
    """Clips (b, t, c, h, w) of the same shape as frames (n, c, h, w), n such that about `values` values are in each."""
    flat = [each.flatten(0, 1) for each in clips]
    count = max(1, values // flat[0][0].numel())
    yield from zip(*(each.split(count) for each in flat), strict=True)


# Predictions that cost nothing, to stand beside a model's: the last frame again, or the mean frame.
#
# A model that has learnt anything beats the first while little moves and the second when everything has. Every frame is
# a copy of its own (nothing shares memory), in the context's range, type and device.


def copy_last(context: Tensor, length: int) -> Tensor:
    """The last frame of `context: (b, t, c, h, w)`, `length` times: (b, length, c, h, w)."""
    return context[:, -1:].repeat(1, length, 1, 1, 1)


def mean_frame(context: Tensor, length: int) -> Tensor:
    """The mean of each clip's own `context: (b, t, c, h, w)` over time, `length` times: (b, length, c, h, w)."""
    return context.mean(dim=1, keepdim=True).repeat(1, length, 1, 1, 1)


def dataset_mean_frame(clips: Iterable[Tensor]) -> Tensor:
    """The mean frame (c, h, w) of a whole data set, read once: every frame of `clips`, each (b, t, c, h, w) in [0, 1]."""
    total, count = torch.zeros(()), 0
    for each in clips:
        frames = checked_frames(each, "clips").flatten(0, 1)
        total = total + frames.sum(dim=0, dtype=torch.float64).cpu()
        count += len(frames)
    if count == 0:
        raise ValueError("no clip to take the mean frame of")
    return (total / count).float()


def repeat_frame(frame: Tensor, clips: int, length: int) -> Tensor:
    """`frame: (c, h, w)`, a data set's mean say, as the prediction (clips, length, c, h, w)."""
    return frame[None, None].repeat(clips, length, 1, 1, 1)


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
