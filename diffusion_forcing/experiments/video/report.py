"""The scores of rollouts as numbers for metrics.json, rows of a table, lines for the terminal, and curves.

Keys are a metric's name, followed by `_<predictor>` for another predictor than the model.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from diffusion_forcing.experiments.video.rollouts import (
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
from diffusion_forcing.visualization.curves import Panel, draw_horizon

SHOWN = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
"""Predicted frames that are printed, beside the last one."""
CHECKED = (1, 4, 8, 16)
"""Predicted frames with numbers of their own in metrics.json."""
NAMES = {
    MODEL: "model",
    COPY: "last frame, repeated",
    MEAN: "mean of the context",
    BLEND: "blend of both ends",
    SHUFFLED: "model, other clips' actions",
}
"""Predictors as a legend names them."""
COLUMNS = {
    "psnr": "PSNR",
    "psnr_copy_last": "copy last",
    "psnr_mean_frame": "mean frame",
    "psnr_linear_blend": "linear blend",
    "psnr_shuffled_actions": "other actions",
    "ssim": "SSIM",
    "pixel_variance": "variance",
    "pixel_variance_truth": "truth's",
}
"""Columns of the terminal's table."""


def rows(scores: Scores) -> list[dict[str, float | int]]:
    """One row for each predicted frame, from 1.

    Each metric's mean over clips for every predictor, with the model's 95 % interval; the number of clips; the mean and
    variance of the pixels and of the truth's. Values that are not finite are left out.
    """
    columns: dict[str, Curve] = {}
    for metric in scores.metrics:
        for who in NAMES:
            if (who, metric) in scores.curves:
                mean, low, high = mean_and_interval(scores.curve(who, metric))
                columns[_key(metric, who)] = mean
                if who == MODEL:
                    columns[f"{metric}_low"], columns[f"{metric}_high"] = low, high
    for who, suffix in ((MODEL, ""), (TRUTH, "_truth")):
        columns[f"pixel_mean{suffix}"], columns[f"pixel_variance{suffix}"] = scores.pixels(who)
    table: list[dict[str, float | int]] = []
    for index, clips in enumerate(np.isfinite(scores.curve(MODEL, scores.metrics[0])).sum(axis=0)):
        table.append({"frame": index + 1, "clips": int(clips)})
        for name, values in columns.items():
            if index < len(values) and np.isfinite(values[index]):
                table[-1][name] = float(values[index])
    return table


def summary(scores: Scores) -> dict[str, float | int]:
    """Each metric's mean over the horizon and at `CHECKED` frames for every predictor; the pixels' drift; the speed."""
    numbers: dict[str, float | int] = {"clips": scores.clips}
    for who in (MODEL, COPY, MEAN, BLEND):
        for metric in scores.metrics:
            if (who, metric) not in scores.curves:
                continue
            curve = mean_of(scores.curve(who, metric))
            if np.isfinite(curve).any():
                numbers[_key(metric, who)] = float(np.nanmean(curve))
            for frame in CHECKED:
                if frame <= len(curve) and np.isfinite(curve[frame - 1]):
                    numbers[f"{_key(metric, who)}_frame_{frame}"] = float(curve[frame - 1])
    for who, suffix in ((MODEL, ""), (TRUTH, "_truth")):
        for name, values in zip(("mean", "variance"), scores.pixels(who), strict=True):
            finite = values[np.isfinite(values)].tolist()
            if finite:
                numbers[f"pixel_{name}{suffix}_first"], numbers[f"pixel_{name}{suffix}_last"] = finite[0], finite[-1]
    numbers["frames_predicted"] = scores.frames
    numbers["seconds_per_frame"] = scores.seconds / max(1, scores.frames)
    return numbers


def in_training(scores: Scores) -> dict[str, float]:
    """Numbers of a validation during training: means over the horizon of the model and copy-last, and the speed."""
    kept = [_key(metric, who) for who in (MODEL, COPY) for metric in scores.metrics]
    return {name: float(value) for name, value in summary(scores).items() if name in (*kept, "seconds_per_frame")}


def action_gain(scores: Scores) -> dict[str, float]:
    """How much better the true actions are than other clips', in dB of PSNR, paired by clip and noise.

    With 95 % intervals, at `CHECKED` frames and over all compared ones. Empty where they were not compared.
    """
    if (SHUFFLED, "psnr") not in scores.curves:
        return {}
    other = scores.curve(SHUFFLED, "psnr")
    gain = scores.curve(MODEL, "psnr")[:, : other.shape[1]] - other
    if not np.isfinite(gain).any():
        return {}
    numbers: dict[str, float] = {}

    def keep(name: str, values: Curve, index: int) -> None:
        mean, low, high = (float(curve[index]) for curve in mean_and_interval(values))
        numbers.update({name: mean, f"{name}_low": low, f"{name}_high": high})

    for frame in CHECKED:
        if frame <= gain.shape[1] and np.isfinite(gain[:, frame - 1]).any():
            keep(f"actions_gain_frame_{frame}", gain, frame - 1)
    keep("actions_gain", mean_of(gain.T)[:, None], 0)
    return numbers


def lines(scores: Scores, gain: dict[str, float]) -> list[str]:
    """The table of the terminal at a few frames, and the gain of the true actions."""
    table = rows(scores)
    shown = sorted({frame for frame in SHOWN if frame <= len(table)} | {len(table)})
    present = {key: title for key, title in COLUMNS.items() if any(key in row for row in table)}
    text = ["  frame  " + "  ".join(f"{title:>13s}" for title in present.values())]
    for frame in shown:
        cells = [f"{table[frame - 1][key]:13.4g}" if key in table[frame - 1] else f"{'–':>13s}" for key in present]
        text.append(f"  {frame:5d}  " + "  ".join(cells))
    for frame in CHECKED:
        name = f"actions_gain_frame_{frame}"
        if name in gain:
            interval = f"95 % {gain[f'{name}_low']:+.3f} to {gain[f'{name}_high']:+.3f}"
            text.append(f"  true actions over other clips' at frame {frame}: {gain[name]:+.3f} dB ({interval})")
    return text


def draw_curves(run: Any, task: str, scores: Scores) -> None:
    """Keep the scores over the horizon as <task>_curves, and the pixels' statistics as <task>_pixels, in `run`."""
    panels = []
    for metric, title in (("psnr", "PSNR, dB"), ("ssim", "SSIM")):
        if metric in scores.metrics:
            means = {NAMES[who]: mean_of(scores.curve(who, metric)) for who in NAMES if (who, metric) in scores.curves}
            finite = {name: mean for name, mean in means.items() if np.isfinite(mean).any()}
            _, low, high = mean_and_interval(scores.curve(MODEL, metric))
            panels.append(Panel(title=title, lines=finite, band=(low, high), band_name="its 95 % interval"))
    run.image(
        f"{task}_curves",
        draw_horizon(panels),
        caption=f"Each predicted frame compared with the truth: mean of {scores.clips} clips, {task}",
    )
    model, truth = scores.pixels(MODEL), scores.pixels(TRUTH)
    panels = [
        Panel(title=title, lines={"model": ours, "real video": real})
        for title, ours, real in zip(("pixel mean", "pixel variance"), model, truth, strict=True)
    ]
    run.image(
        f"{task}_pixels",
        draw_horizon(panels),
        caption=f"Mean and variance of the pixels in [0, 1] beside real video's: {scores.clips} clips, {task}",
    )


def _key(metric: str, who: str) -> str:
    return metric if who == MODEL else f"{metric}_{who}"
