"""FVD and FID: Fréchet distances between features of real and generated video. `frechet.py` has the statistics.

FVD (Unterthiner et al. 2018, arXiv:1812.01717) compares the 400 logits of I3D. Each clip of t frames (at least 9;
papers use 16) is one sample. Frames are resized to 224 x 224, bilinear with half-pixel centres and without
antialiasing, the aspect ratio not kept, and scaled from [0, 1] to [-1, 1], as in TECO and the released code. (The
first implementation, on TensorFlow 1, put pixel centres on the corners: a shift by less than a pixel.)

FID (Heusel et al. 2017, arXiv:1706.08500) compares the 2048 features of Inception-v3 and sees single frames, no motion.
Each frame is a sample; the interval resamples whole clips, because the frames of a clip are much alike. Papers use
50,000 frames; at the hundreds of an evaluation here the value is far too high, as the floor beside it shows.

Values at other clip lengths, resolutions or sample counts are not comparable, so every report has N and the floor at N.
Features of real clips are computed once: `fvd_report(i3d_features(real, network), i3d_features(fake, network))`.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from diffusion_forcing.arrays import read_npy, write_npy
from diffusion_forcing.files import replacing
from diffusion_forcing.limits import Refused
from diffusion_forcing.metrics.frechet import frechet_report
from diffusion_forcing.metrics.i3d import CLASSES, I3D, MIN_FRAMES, RESOLUTION
from diffusion_forcing.metrics.inception import Inception
from diffusion_forcing.metrics.video import check_frames, full_precision

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
    side = (RESOLUTION, RESOLUTION)
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
