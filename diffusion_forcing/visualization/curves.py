"""A loss over training steps as one picture: the values light, their smoothed course strong, on a logarithmic axis."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

COLOURS = ("#1f6f8b", "#d4342c", "#8a4fc4", "#b9770e", "#1a8754")
INK, SOFT, LINE = "#222c37", "#66727f", "#dfe3e8"
SMOOTHING_SHARE = 0.03  # the smoothed value is a mean over about this share of the curve, before and after


def draw_loss_curve(
    steps: ArrayLike,
    values: ArrayLike,
    *,
    name: str = "training loss",
    others: Mapping[str, tuple[ArrayLike, ArrayLike]] | None = None,
    title: str = "",
    width: int = 900,
    height: int = 480,
) -> NDArray[np.uint8]:
    """`values: (n,)` at `steps: (n,)`, and `others` by name, → (height, width, 3) uint8, sizes in pixels.

    Values that are not finite are left out. The axis is logarithmic when all that is left is positive. ValueError
    when nothing is left or steps and values are not equally long.
    """
    series = {name: (steps, values), **(others or {})}
    figure = Figure(figsize=(width / 100, height / 100), dpi=100, facecolor="white", layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    positive, drawn = True, False
    for index, (label, (xs, ys)) in enumerate(series.items()):
        x, y = np.asarray(xs, dtype=np.float64).ravel(), np.asarray(ys, dtype=np.float64).ravel()
        if x.shape != y.shape:
            raise ValueError(f"steps and values of '{label}' must be equally long, got {x.size} and {y.size}")
        x, y = x[np.isfinite(y)], y[np.isfinite(y)]
        if not y.size:
            continue
        colour = COLOURS[index % len(COLOURS)]
        drawn, positive = True, positive and bool((y > 0).all())
        many = y.size > 30
        axes.plot(
            x, y, color=colour, lw=0.8 if many else 1.8, alpha=0.3 if many else 1, marker="" if many else "o", ms=4
        )
        axes.plot(x, smoothed(y) if many else y, color=colour, lw=2, label=f"{label}, now {smoothed(y)[-1]:.4g}")
    if not drawn:
        raise ValueError("no finite value to draw")
    if positive:
        axes.set_yscale("log")
    axes.set_xlabel("step", color=SOFT)
    axes.grid(color=LINE, lw=0.8)
    axes.tick_params(colors=SOFT, which="both", length=3)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(SOFT)
    axes.legend(frameon=False, labelcolor=INK, loc="upper right")
    if title:
        axes.set_title(title, loc="left", color=INK, fontsize=12, parse_math=False)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def smoothed(values: ArrayLike) -> NDArray[np.float64]:
    """Mean of the values around each one, over 3 % of `values: (n,)` (half of it at the ends); as long as `values`."""
    y = np.asarray(values, dtype=np.float64)
    half = int(SMOOTHING_SHARE * y.size / 2)
    first, last = np.arange(y.size) - half, np.arange(y.size) + half + 1
    first, last = first.clip(0), last.clip(max=y.size)
    total = np.concatenate([[0.0], np.cumsum(y)])
    return (total[last] - total[first]) / (last - first)
