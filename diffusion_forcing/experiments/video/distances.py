"""The metrics that need a pretrained network: LPIPS of single frames, FID and FVD of sets, each beside copy-last's.

All are computed on the first predicted frames of each clip (`OPENING` at most). A metric that cannot be computed
(weights, frames or clips are missing) becomes a line that says why and what to do; the others are computed all the
same.
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
from diffusion_forcing.metrics.i3d import load_i3d
from diffusion_forcing.metrics.inception import load_inception
from diffusion_forcing.metrics.lpips import load_lpips, lpips
from diffusion_forcing.metrics.weights import Unavailable, cache_folder

Say = Callable[[str], None]
Features = dict[str, NDArray[np.float32]]


def distances_of(scores: Scores, metrics: Sequence[str], *, device: torch.device, say: Say) -> dict[str, Any]:
    """Numbers of lpips, fid and fvd as far as `metrics` names them; the reason where one cannot be computed.

    LPIPS is added to `scores` as one more curve of every predictor, and so has no numbers here.
    """
    known = (("lpips", load_lpips, _lpips), ("fid", load_inception, _fid), ("fvd", load_i3d, _fvd))
    numbers: dict[str, Any] = {}
    for name, load, measure in known:
        if name not in metrics:
            continue
        network = load()
        if not isinstance(network, Unavailable):
            try:
                numbers |= measure(scores, network.to(device), say)
                continue
            except UserError as error:  # too few clips, too short ones, too small frames
                how = (
                    "rolling out more, longer or larger clips "
                    "(limit_batch, dataset.validation_multiplier, dataset.resolution)"
                )
                network = Unavailable(name.upper(), str(error), how)
        say(f"  {network.name}: {network}")
        numbers[name] = str(network)
    return numbers


def _lpips(scores: Scores, network: Any, say: Say) -> dict[str, Any]:
    truth = scores.opening(TRUTH)
    curves = {who: lpips(scores.opening(who), truth, network) for who in scores.openings if who != TRUTH}
    for who, curve in curves.items():
        scores.curves[who, "lpips"] = [curve.double().numpy()]
        say(f"    LPIPS of {who:12s} {curve.mean():.4f} (first {curve.shape[1]} frames of {len(curve)} clips)")
    scores.metrics = [*scores.metrics, "lpips"]
    return {}


def _fid(scores: Scores, network: Any, say: Say) -> dict[str, Any]:
    features = {who: inception_features(scores.opening(who), network) for who in _compared(scores)}
    say(f"  FID of the first {features[TRUTH].shape[1]} predicted frames of each clip")
    return _beside_copying(features, fid_report, say)


def _fvd(scores: Scores, network: Any, say: Say) -> dict[str, Any]:
    features: Features = {}
    for who in _compared(scores):
        features[who] = i3d_features(scores.opening(who), network, cache=cache_folder() if who == TRUTH else None)
    say(f"  FVD of {scores.opening(TRUTH).shape[1]} predicted frames (at most {OPENING})")
    numbers = _beside_copying(features, fvd_report, say)
    if COPY in features:
        ratio = frechet_ratio(features[TRUTH], features[MODEL], features[COPY])
        numbers |= {"fvd_ratio": ratio.value, "fvd_ratio_low": ratio.low, "fvd_ratio_high": ratio.high}
        say(f"    model over copy_last {ratio.value:.3f} (95 % interval {ratio.low:.3f} to {ratio.high:.3f})")
    return numbers


def _compared(scores: Scores) -> list[str]:
    return [who for who in (TRUTH, MODEL, COPY) if who in scores.openings]


def _beside_copying(features: Features, report_of: Callable[..., FrechetReport], say: Say) -> dict[str, Any]:
    """The model's distance from the truth, and copy-last's under names that end in _copy_last."""
    numbers: dict[str, Any] = {}
    for who, suffix in ((MODEL, ""), (COPY, f"_{COPY}")):
        if who in features:
            report = report_of(features[TRUTH], features[who], paired=True)
            numbers |= {f"{name}{suffix}": value for name, value in report.metrics().items()}
            say(f"    {who:12s} {report}")
    return numbers
