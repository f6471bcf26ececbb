"""The metrics that need a network of somebody else's: LPIPS of single frames, FID and FVD between sets, each beside copying's.

All look at the first predicted frames of each clip (`OPENING` at most). Whatever is missing (weights, frames, clips) is a line that says
so and how to get it; nothing stops for it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from diffusion_forcing.errors import UserError
from diffusion_forcing.experiments.video.rollouts import COPY, MODEL, OPENING, TRUTH, Scores
from diffusion_forcing.metrics.distances import fid_report, fvd_report, i3d_features, inception_features
from diffusion_forcing.metrics.frechet import FrechetReport, frechet_ratio
from diffusion_forcing.metrics.i3d import MIN_FRAMES, load_i3d
from diffusion_forcing.metrics.inception import load_inception
from diffusion_forcing.metrics.lpips import load_lpips, lpips
from diffusion_forcing.metrics.weights import Unavailable, cache_folder

Say = Callable[[str], None]
Features = dict[str, NDArray[np.float32]]


def distances_of(scores: Scores, metrics: Sequence[str], *, where: torch.device, say: Say) -> dict[str, Any]:
    """Those of `metrics` that are lpips, fid or fvd, as flat numbers; under a metric's name the reason where it cannot be had.

    LPIPS is one more curve of `scores`, for every predictor, and so has no numbers here.
    """
    found: dict[str, Any] = {}
    for name, measure in (("lpips", _lpips), ("fid", _fid), ("fvd", _fvd)):
        if name not in metrics:
            continue
        try:
            result = measure(scores, where, say)
        except UserError as failure:  # too few clips, too small frames
            result = Unavailable(
                name.upper(),
                str(failure),
                "rolling out more, longer or larger clips (limit_batch, dataset.validation_multiplier, dataset.resolution)",
            )
        if isinstance(result, Unavailable):
            say(f"  {result.name}: {result}")
            result = {name: str(result)}
        found |= result
    return found


def _lpips(scores: Scores, where: torch.device, say: Say) -> dict[str, Any] | Unavailable:
    network = load_lpips()
    if isinstance(network, Unavailable):
        return network
    network.to(where)
    truth = scores.opening(TRUTH)
    curves = {who: lpips(scores.opening(who), truth, network) for who in scores.openings if who != TRUTH}
    for who, curve in curves.items():
        scores.curves[who]["lpips"] = [curve.double().numpy()]
        say(f"    LPIPS of {who:12s} {curve.mean():.4f} (first {curve.shape[1]} frames of {len(curve)} clips)")
    scores.metrics = [*scores.metrics, "lpips"]
    return {}


def _fid(scores: Scores, where: torch.device, say: Say) -> dict[str, Any] | Unavailable:
    network = load_inception()
    if isinstance(network, Unavailable):
        return network
    network.to(where)
    say(f"  FID of the first {_frames(scores)} predicted frames of each clip")
    features = {who: inception_features(scores.opening(who), network) for who in _compared(scores)}
    return _beside_copying(features, fid_report, say)


def _fvd(scores: Scores, where: torch.device, say: Say) -> dict[str, Any] | Unavailable:
    frames = _frames(scores)
    if frames < MIN_FRAMES:
        return Unavailable(
            "FVD",
            f"it compares at least {MIN_FRAMES} predicted frames and there are {frames}",
            "rolling out further (dataset.validation_multiplier=2)",
        )
    network = load_i3d()
    if isinstance(network, Unavailable):
        return network
    network.to(where)
    say(f"  FVD of {frames} predicted frames (at most {OPENING})")
    features: Features = {}
    for who in _compared(scores):
        features[who] = i3d_features(scores.opening(who), network, cache=cache_folder() if who == TRUTH else None)
    found = _beside_copying(features, fvd_report, say)
    if COPY in features:
        ratio = frechet_ratio(features[TRUTH], features[MODEL], features[COPY])
        found |= {"fvd_ratio": ratio.value, "fvd_ratio_low": ratio.low, "fvd_ratio_high": ratio.high}
        say(f"    model over copy_last {ratio.value:.3f} (95 % interval {ratio.low:.3f} to {ratio.high:.3f})")
    return found


def _frames(scores: Scores) -> int:
    """How many predicted frames of each clip are there."""
    return scores.openings[TRUTH][0].shape[1] if scores.openings else 0


def _compared(scores: Scores) -> list[str]:
    return [who for who in (TRUTH, MODEL, COPY) if who in scores.openings]


def _beside_copying(features: Features, report_of: Callable[..., FrechetReport], say: Say) -> dict[str, Any]:
    """The model's distance from the truth, and copying's under names that end in _copy_last."""
    found: dict[str, Any] = {}
    for who in (MODEL, COPY):
        if who in features:
            report = report_of(features[TRUTH], features[who], paired=True)
            found |= {f"{name}{'' if who == MODEL else f'_{who}'}": value for name, value in report.metrics().items()}
            say(f"    {who:12s} {report}")
    return found
