"""Distances between distributions of videos, where they can be had: FVD of the first predicted frames, beside copying's.

Whatever is missing (weights, frames, clips) is a line that says so and how to get it; nothing stops for it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from diffusion_forcing.errors import UserError
from diffusion_forcing.experiments.rollouts import COPY, MODEL, OPENING, TRUTH, Scores
from diffusion_forcing.metrics.frechet import frechet_ratio
from diffusion_forcing.metrics.fvd import fvd_report, i3d_features
from diffusion_forcing.metrics.i3d import MIN_FRAMES
from diffusion_forcing.metrics.i3d_weights import cache_folder, load_i3d
from diffusion_forcing.metrics.unavailable import Unavailable

Say = Callable[[str], None]


def fvd_of(scores: Scores, *, where: torch.device, say: Say) -> dict[str, Any]:
    """FVD of the model and of copying the last frame, each with N, interval and floor, and their ratio: flat numbers, or the reason
    for their absence under `fvd`."""
    frames = scores.openings[TRUTH][0].shape[1] if scores.openings else 0
    if frames < MIN_FRAMES:
        missing = Unavailable(
            "FVD",
            f"it compares at least {MIN_FRAMES} predicted frames and there are {frames}",
            "rolling out further (dataset.validation_multiplier=2)",
        )
        return _absent(missing, say)
    network = load_i3d()
    if isinstance(network, Unavailable):
        return _absent(network, say)
    network.to(where)
    say(f"  FVD of {frames} predicted frames (at most {OPENING})")
    features = {}
    for who in (TRUTH, MODEL, COPY):
        if who in scores.openings:
            kept = cache_folder() if who == TRUTH else None
            features[who] = i3d_features(scores.opening(who), network, cache=kept)
    found: dict[str, Any] = {}
    try:
        for who in (MODEL, COPY):
            if who in features:
                report = fvd_report(features[TRUTH], features[who], paired=True)
                suffix = "" if who == MODEL else f"_{who}"
                found |= {f"{name}{suffix}": value for name, value in report.metrics().items()}
                say(f"    {who:12s} {report}")
        if COPY in features:
            ratio = frechet_ratio(features[TRUTH], features[MODEL], features[COPY])
            found |= {"fvd_ratio": ratio.value, "fvd_ratio_low": ratio.low, "fvd_ratio_high": ratio.high}
            say(f"    model over copy_last {ratio.value:.3f} (95 % interval {ratio.low:.3f} to {ratio.high:.3f})")
    except UserError as failure:  # too few clips
        return found | _absent(Unavailable("FVD", str(failure), "rolling out more clips (…limit_batch)"), say)
    return found


def _absent(missing: Unavailable, say: Say) -> dict[str, str]:
    say(f"  {missing.name}: {missing}")
    return {missing.name.lower(): str(missing)}
