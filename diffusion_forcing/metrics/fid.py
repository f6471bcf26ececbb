"""Fréchet inception distance (Heusel et al. 2017, arXiv:1706.08500) between single frames: no motion, only looks.

Every frame is a sample, (n clips) x (t frames) of them; the interval draws whole clips, because the frames of a clip
are much alike. Papers count 50,000 frames; at the hundreds of an evaluation here the value is far too high, as the
floor beside it shows, so compare only at the same number of clips and frames.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from diffusion_forcing.errors import UserError
from diffusion_forcing.metrics.frames import checked_frames
from diffusion_forcing.metrics.frechet import FrechetReport, frechet_report
from diffusion_forcing.metrics.inception import Inception

BATCH = 16
"""Frames at once."""
BOOTSTRAP = 60
"""Resampled sets: fewer than of FVD, each costs singular values of a matrix of up to 2048 x 2048."""


def inception_features(
    frames: Tensor,
    network: Inception,
    *,
    batch: int = BATCH,
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
    real: ArrayLike, fake: ArrayLike, *, paired: bool = False, bootstrap: int = BOOTSTRAP, seed: int = 0
) -> FrechetReport:
    """FID of `fake` features (n, t, 2048) from `real` ones, with N (clips), floor and interval: see `frechet_report`."""
    return frechet_report(real, fake, name="FID", paired=paired, bootstrap=bootstrap, seed=seed)
