"""A loss over training steps as one picture: the values light, their smoothed course strong, on a logarithmic axis."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
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


# What becomes of a rollout over its horizon, as curves: one panel a quantity, one line a predictor, side by side.

FEW = 30  # points; below, each gets a dot


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One quantity over the horizon. lines: (n,) by name, NaN where there is nothing; band: lower and upper end, (n,) each, around the first."""

    title: str
    lines: Mapping[str, ArrayLike]
    band: tuple[ArrayLike, ArrayLike] | None = None
    band_name: str = ""
    styles: Mapping[str, str] = field(default_factory=dict)
    """matplotlib's line style by name; solid where there is none."""


def draw_horizon(
    panels: Sequence[Panel],
    *,
    title: str = "",
    xlabel: str = "predicted frame",
    width: int = 560,
    height: int = 400,
) -> NDArray[np.uint8]:
    """`panels` beside each other, each `width` by `height` pixels: (height, panels x width, 3) uint8. The first frame is 1.

    A line of the same name has the same colour in every panel. ValueError where there is no panel or no finite value in one.
    """
    if not panels:
        raise ValueError("no panel to draw")
    figure = Figure(figsize=(len(panels) * width / 100, height / 100), dpi=100, facecolor="white", layout="constrained")
    canvas = FigureCanvasAgg(figure)
    names = list(dict.fromkeys(name for panel in panels for name in panel.lines))
    colours = {name: COLOURS[index % len(COLOURS)] for index, name in enumerate(names)}
    for panel, axes in zip(panels, np.atleast_1d(figure.subplots(1, len(panels))), strict=True):
        if not any(np.isfinite(np.asarray(values, dtype=np.float64)).any() for values in panel.lines.values()):
            raise ValueError(f"no finite value to draw in '{panel.title}'")
        for index, (name, values) in enumerate(panel.lines.items()):
            y = np.asarray(values, dtype=np.float64)
            x = np.arange(1, len(y) + 1)
            axes.plot(
                x,
                y,
                color=colours[name],
                lw=2.4 if index == 0 else 1.6,
                ls=panel.styles.get(name, "-"),
                marker="o" if len(y) < FEW else "",
                ms=4 if index == 0 else 3,
                label=name,
                zorder=3 if index == 0 else 2,
            )
            if index == 0 and panel.band is not None:
                low, high = (np.asarray(end, dtype=np.float64) for end in panel.band)
                label = panel.band_name if np.isfinite(low).any() else None
                axes.fill_between(x, low, high, color=colours[name], alpha=0.18, lw=0, label=label)
        axes.set_title(panel.title, loc="left", color=INK, fontsize=11, parse_math=False)
        axes.set_xlabel(xlabel, color=SOFT)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.grid(color=LINE, lw=0.8)
        axes.tick_params(colors=SOFT, length=3)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.spines["bottom"].set_color(SOFT)
        axes.margins(y=0.12)
        axes.legend(frameon=False, labelcolor=INK, fontsize=9, loc="best")
    if title:
        figure.suptitle(title, x=0.01, ha="left", color=INK, fontsize=12, fontweight="bold", parse_math=False)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


# Histograms of many things at once, one a row: how large the values of every weight of a network are.

MOST_ROWS = 120
LONGEST_NAME = 48


def draw_histograms(
    counts: NDArray[np.integer], *, names: Sequence[str], edges: NDArray[np.floating], title: str, width: int = 1000
) -> NDArray[np.uint8]:
    """counts: (n, bins), edges: (bins + 1,) powers of ten → (H, width, 3) uint8: a row each, darker where more of its values are.

    Of more than 120 rows, the first and the last are drawn.
    """
    if len(counts) > MOST_ROWS:
        half = MOST_ROWS // 2
        counts = np.concatenate([counts[:half], counts[-half:]])
        names = [*names[:half], *names[-half:]]
    shares = counts / np.maximum(1, counts.sum(axis=1, keepdims=True))
    rows = len(counts)
    figure = Figure(figsize=(width / 100, 1.2 + 0.16 * rows), dpi=100, facecolor="white")
    high = figure.get_figheight()
    figure.subplots_adjust(left=0.3, right=0.98, bottom=0.4 / high, top=1 - 0.4 / high)
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.imshow(
        shares, aspect="auto", cmap="Blues", interpolation="none", extent=(edges[0], edges[-1], rows - 0.5, -0.5)
    )
    shared = [len(set(parts)) == 1 for parts in zip(*(name.split(".")[:-1] for name in names), strict=False)]
    common = [*shared, False].index(False)  # of all names, when there are several
    names = [".".join(name.split(".")[common:]) for name in names] if rows > 1 else names
    labels = [name if len(name) <= LONGEST_NAME else f"…{name[-LONGEST_NAME + 1 :]}" for name in names]
    axes.set_yticks(range(rows), labels, fontsize=6)
    axes.set_title(f"{title}: size of the values, log10", fontsize=10, color=INK)
    axes.tick_params(axis="x", labelsize=8)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
