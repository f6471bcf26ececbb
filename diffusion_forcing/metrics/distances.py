"""Fréchet video distance (Unterthiner et al. 2018, arXiv:1812.01717): the Fréchet distance between I3D's 400 logits.

Each clip of t frames (at least 9; the number compared in papers is 16) is one sample. Preprocessing, as TECO and the
released code do it: every frame is resized to 224 x 224, bilinear with half-pixel centres and without antialiasing,
the aspect ratio not kept, then scaled from [0, 1] to [-1, 1]. (The first implementation, on TensorFlow 1, put pixel
centres on the corners: a shift by less than a pixel.) Grey frames are repeated to three channels. Features are the
averaged logits; covariances divide by n - 1. Values of other clip lengths, resolutions or sample counts are not
comparable, so every report carries N and the floor at that N.

`fvd_report(real, fake)` takes features, so that the real ones are computed once: `i3d_features(frames, load_i3d())`.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.nn import functional as F

from diffusion_forcing.errors import UserError
from diffusion_forcing.metrics.frechet import BOOTSTRAP, FrechetReport, frechet_distance, frechet_report
from diffusion_forcing.metrics.i3d import CLASSES, I3D, MIN_FRAMES, RESOLUTION
from diffusion_forcing.metrics.inception import Inception
from diffusion_forcing.metrics.video import checked_frames
from diffusion_forcing.metrics.weights import content_digest, write_whole

# Fréchet inception distance (Heusel et al. 2017, arXiv:1706.08500) between single frames: no motion, only looks.
#
# Every frame is a sample, (n clips) x (t frames) of them; the interval draws whole clips, because the frames of a clip
# are much alike. Papers count 50,000 frames; at the hundreds of an evaluation here the value is far too high, as the
# floor beside it shows, so compare only at the same number of clips and frames.

FID_BATCH = 16
"""Frames at once."""
FID_BOOTSTRAP = 60
"""Resampled sets: fewer than of FVD, each costs singular values of a matrix of up to 2048 x 2048."""


def inception_features(
    frames: Tensor,
    network: Inception,
    *,
    batch: int = FID_BATCH,
    progress: Callable[[int, int], None] | None = None,
) -> NDArray[np.float32]:
    """`frames: (n, t, 1 or 3, h, w)` in [0, 1] to features (n, t, 2048), on the network's device.

    `progress(done, n t)` is called after each batch.
    """
    checked = checked_frames(frames)
    n, t, c = checked.shape[:3]
    if c not in (1, 3):
        raise UserError(f"FID needs frames of 1 or 3 channels, got {c}")
    where = next(network.parameters()).device
    found = []
    with torch.inference_mode():
        for part in checked.flatten(0, 1).split(batch):
            found.append(network(part.to(where)).float().cpu())
            if progress is not None:
                progress(sum(map(len, found)), n * t)
    features: NDArray[np.float32] = torch.cat(found).view(n, t, -1).numpy()
    return features


def fid_report(
    real: ArrayLike, fake: ArrayLike, *, paired: bool = False, bootstrap: int = FID_BOOTSTRAP, seed: int = 0
) -> FrechetReport:
    """FID of `fake` features (n, t, 2048) from `real` ones, with N (clips), floor and interval: see `frechet_report`."""
    return frechet_report(real, fake, name="FID", paired=paired, bootstrap=bootstrap, seed=seed)


FVD_BATCH = 4
"""Clips at once: about 0.6 GB for 16 frames. On a CPU more are not faster; on a GPU 16 or 32 are."""


def i3d_features(
    frames: Tensor,
    network: I3D,
    *,
    batch: int = FVD_BATCH,
    progress: Callable[[int, int], None] | None = None,
    cache: Path | None = None,
) -> NDArray[np.float32]:
    """`frames: (n, t, c, h, w)` in [0, 1], c 1 or 3, t at least 9, to the logits (n, 400), on the network's device.

    `progress(done, n)` is called after each batch. `cache`: a folder where the features of exactly these frames and
    this network are kept and found again.
    """
    checked = checked_clips(frames)
    kept = cache / f"i3d-{_fingerprint(checked, network)}.npy" if cache is not None else None
    if kept is not None and (found := _read_features(kept, len(checked))) is not None:
        if progress is not None:
            progress(len(checked), len(checked))
        return found
    features = []
    device = next(network.parameters()).device
    with torch.inference_mode():
        for start in range(0, len(checked), batch):
            clips = checked[start : start + batch]
            features.append(network(i3d_input(clips.to(device))).float().cpu().numpy())
            if progress is not None:
                progress(start + len(clips), len(checked))
    logits: NDArray[np.float32] = np.concatenate(features)
    if kept is not None:
        buffer = io.BytesIO()
        np.save(buffer, logits)
        write_whole(kept, buffer.getvalue())
    return logits


def i3d_input(frames: Tensor) -> Tensor:
    """(b, t, 1 or 3, h, w) in [0, 1] to the network's (b, 3, t, 224, 224) in [-1, 1]."""
    b, t, c = frames.shape[:3]
    side = (RESOLUTION, RESOLUTION)
    resized = F.interpolate(frames.flatten(0, 1), side, mode="bilinear", align_corners=False)
    return (resized.clamp(0, 1) * 2 - 1).view(b, t, c, *side).transpose(1, 2).expand(b, 3, t, *side)


def checked_clips(frames: Tensor) -> Tensor:
    """`frames` as float32, fit for I3D: 1 or 3 channels in [0, 1], at least 9 frames; UserError otherwise."""
    checked = checked_frames(frames)
    t, c = checked.shape[1:3]
    if t < MIN_FRAMES:
        raise UserError(f"FVD needs clips of at least {MIN_FRAMES} frames, got {t}; predict more (dataset.n_frames)")
    if c not in (1, 3):
        raise UserError(f"FVD needs frames of 1 or 3 channels, got {c}")
    return checked


def fvd(real: ArrayLike, fake: ArrayLike) -> float:
    """FVD of features (n, 400) alone; read it beside `fvd_report`'s floor."""
    return frechet_distance(real, fake)


def fvd_report(
    real: ArrayLike,
    fake: ArrayLike,
    *,
    floor_features: ArrayLike | None = None,
    paired: bool = False,
    bootstrap: int = BOOTSTRAP,
    seed: int = 0,
) -> FrechetReport:
    """FVD of `fake` features (n, 400) from `real` ones, with N, floor and interval: see `frechet_report`."""

    return frechet_report(
        real, fake, name="FVD", floor_features=floor_features, paired=paired, bootstrap=bootstrap, seed=seed
    )


def _fingerprint(frames: Tensor, network: I3D) -> str:
    """Of the frames and the network's weights, in 32 hex digits."""
    digest = hashlib.sha256(
        content_digest({name: value.cpu() for name, value in network.state_dict().items()}).encode()
    )
    digest.update(str(tuple(frames.shape)).encode())
    digest.update(frames.contiguous().cpu().numpy().tobytes())
    return digest.hexdigest()[:32]


def _read_features(path: Path, count: int) -> NDArray[np.float32] | None:
    try:
        found = np.load(io.BytesIO(path.read_bytes()), allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return found if found.shape == (count, CLASSES) and found.dtype == np.float32 else None
