"""What a rollout's scores say, as numbers for metrics.json, rows for a table, and a few lines for the terminal."""

from __future__ import annotations

from typing import Any

import numpy as np

from diffusion_forcing.experiments.rollouts import (
    BLEND,
    COPY,
    MEAN,
    MODEL,
    SHUFFLED,
    TRUTH,
    Curve,
    Scores,
    mean_and_interval,
    mean_of,
)
from diffusion_forcing.visualization.horizon import Panel

SHOWN = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
"""Predicted frames that are printed; the last of the horizon too."""
CHECKED = (1, 4, 8, 16)
"""Predicted frames with numbers of their own in metrics.json."""
NAMES = {
    MODEL: "model",
    COPY: "last frame again",
    MEAN: "mean of the context",
    BLEND: "blend of both ends",
    SHUFFLED: "model, other clips' actions",
}
"""Predictors as a legend calls them."""


def rows(scores: Scores) -> list[dict[str, float | int]]:
    """One row a predicted frame (the first is 1): each metric's mean over clips for every predictor, with the model's 95 % interval, the
    clips it is of, and the pixels' mean and variance beside the truth's."""
    columns: dict[str, Curve] = {}
    for metric in scores.metrics:
        for who in (MODEL, COPY, MEAN, BLEND, SHUFFLED):
            if metric in scores.curves.get(who, {}):
                mean, low, high = mean_and_interval(scores.curve(who, metric))
                columns[_name(metric, who)] = mean
                if who == MODEL:
                    columns[f"{metric}_low"], columns[f"{metric}_high"] = low, high
    columns["clips"] = np.isfinite(scores.curve(MODEL, scores.metrics[0])).sum(axis=0)
    for who, suffix in ((MODEL, ""), (TRUTH, "_truth")):
        columns[f"pixel_mean{suffix}"], columns[f"pixel_variance{suffix}"] = scores.pixels(who)
    found = []
    for index in range(len(columns["clips"])):
        row: dict[str, float | int] = {"frame": index + 1, "clips": int(columns["clips"][index])}
        for name, values in columns.items():
            if name != "clips" and index < len(values) and np.isfinite(values[index]):
                row[name] = float(values[index])
        found.append(row)
    return found


def summary(scores: Scores) -> dict[str, float | int]:
    """Headline numbers: each metric's mean over the horizon and at `CHECKED` frames, for every predictor; the pixels' drift; the speed."""
    found: dict[str, float | int] = {"clips": scores.clips}
    for who in (MODEL, COPY, MEAN, BLEND):
        if who not in scores.curves:
            continue
        for metric in scores.metrics:
            curve, _, _ = mean_and_interval(scores.curve(who, metric))
            if np.isfinite(curve).any():
                found[_name(metric, who)] = float(np.nanmean(curve))
            for frame in CHECKED:
                if frame <= len(curve) and np.isfinite(curve[frame - 1]):
                    found[f"{_name(metric, who)}_frame_{frame}"] = float(curve[frame - 1])
    for who, suffix in ((MODEL, ""), (TRUTH, "_truth")):
        for what, values in zip(("mean", "variance"), scores.pixels(who), strict=True):
            ends = values[np.isfinite(values)]
            if len(ends):
                found[f"pixel_{what}{suffix}_first"], found[f"pixel_{what}{suffix}_last"] = (
                    float(ends[0]),
                    float(ends[-1]),
                )
    found["frames_predicted"] = scores.frames
    found["seconds_per_frame"] = scores.seconds / max(1, scores.frames)
    return found


def in_training(scores: Scores) -> dict[str, float]:
    """The few numbers of a validation during training: each metric's mean over the horizon, and copying's."""
    kept = [_name(metric, who) for who in (MODEL, COPY) for metric in scores.metrics]
    return {name: float(value) for name, value in summary(scores).items() if name in (*kept, "seconds_per_frame")}


def of_actions(scores: Scores) -> dict[str, float]:
    """How much better the true actions are than other clips' (paired by clip, same noise), in dB of PSNR, with a 95 % interval, at
    `CHECKED` frames and over all that were compared. Nothing where they were not compared."""
    if SHUFFLED not in scores.curves:
        return {}
    other = scores.curve(SHUFFLED, "psnr")
    gain = scores.curve(MODEL, "psnr")[:, : other.shape[1]] - other
    if not np.isfinite(gain).any():
        return {}
    found: dict[str, float] = {}
    mean, low, high = mean_and_interval(gain)
    for frame in CHECKED:
        if frame <= len(mean) and np.isfinite(mean[frame - 1]):
            at = f"actions_gain_frame_{frame}"
            found |= {
                at: float(mean[frame - 1]),
                f"{at}_low": float(low[frame - 1]),
                f"{at}_high": float(high[frame - 1]),
            }
    of_clip = mean_of(gain.T)[:, None]
    (mean,), (low,), (high,) = mean_and_interval(of_clip)
    return found | {"actions_gain": float(mean), "actions_gain_low": float(low), "actions_gain_high": float(high)}


def lines(scores: Scores, actions: dict[str, float]) -> list[str]:
    """The table of the terminal: PSNR of every predictor and SSIM of the model at a few frames."""
    table = rows(scores)
    shown = sorted({frame for frame in SHOWN if frame <= len(table)} | {len(table)})
    columns = {
        "psnr": "PSNR",
        "psnr_copy_last": "copy last",
        "psnr_mean_frame": "mean frame",
        "psnr_linear_blend": "linear blend",
        "psnr_shuffled_actions": "other actions",
        "ssim": "SSIM",
        "pixel_variance": "variance",
        "pixel_variance_truth": "truth's",
    }
    present = {key: title for key, title in columns.items() if any(key in row for row in table)}
    text = ["  frame  " + "  ".join(f"{title:>13s}" for title in present.values())]
    for frame in shown:
        row = table[frame - 1]
        text.append(f"  {frame:5d}  " + "  ".join(_cell(row.get(key)) for key in present))
    for frame in CHECKED:
        at = f"actions_gain_frame_{frame}"
        if at in actions:
            low, high = actions[f"{at}_low"], actions[f"{at}_high"]
            text.append(
                f"  true actions over other clips' at frame {frame}: {actions[at]:+.3f} dB (95 % {low:+.3f} to {high:+.3f})"
            )
    return text


def metric_panels(scores: Scores) -> list[Panel]:
    """PSNR of every predictor over the horizon with the model's 95 % interval, and SSIM where there is."""
    found = []
    for metric, title in (("psnr", "PSNR, dB"), ("ssim", "SSIM")):
        if metric in scores.metrics:
            means = {NAMES[who]: mean_of(scores.curve(who, metric)) for who in NAMES if who in scores.curves}
            lines = {name: mean for name, mean in means.items() if np.isfinite(mean).any()}
            _, low, high = mean_and_interval(scores.curve(MODEL, metric))
            found.append(Panel(title=title, lines=lines, band=(low, high), band_name="its 95 % interval"))
    return found


def pixel_panels(scores: Scores) -> list[Panel]:
    """Mean and variance of the pixels over the horizon, the model's and the real video's."""
    model, truth = scores.pixels(MODEL), scores.pixels(TRUTH)
    return [
        Panel(title=title, lines={"model": ours, "real video": real})
        for title, ours, real in zip(("pixel mean", "pixel variance"), model, truth, strict=True)
    ]


def _name(metric: str, who: str) -> str:
    return metric if who == MODEL else f"{metric}_{who}"


def _cell(value: Any) -> str:
    return f"{'–':>13s}" if value is None else f"{value:13.4g}"
