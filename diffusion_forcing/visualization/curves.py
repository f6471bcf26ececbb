"""Curves: a loss over training steps, and scores over the horizon of a rollout."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike, NDArray

from diffusion_forcing.visualization.canvas import COLOURS, INK, Pixels, new_figure, style, to_array

SMOOTHING_SHARE = 0.03
"""The smoothed value is a mean over this share of the curve, around each point."""
FEW = 30
"""Curves of fewer points get a dot at each."""


def draw_loss_curve(
    steps: ArrayLike, values: ArrayLike, *, name: str = "training loss", width: int = 900, height: int = 480
) -> Pixels:
    """`values: (n,)` at `steps: (n,)`, light, and their smoothed course, strong: (height, width, 3) uint8.

    Values that are not finite are left out; the axis is logarithmic if the others are positive. ValueError if none is
    left or if steps and values are not equally long.
    """
    x, y = np.asarray(steps, dtype=np.float64).ravel(), np.asarray(values, dtype=np.float64).ravel()
    if x.shape != y.shape:
        raise ValueError(f"steps and values must be equally long, got {x.size} and {y.size}")
    x, y = x[np.isfinite(y)], y[np.isfinite(y)]
    if not y.size:
        raise ValueError("no finite value to draw")
    figure = new_figure(width, height)
    axes = figure.add_subplot()
    smooth = smoothed(y)
    if y.size > FEW:
        axes.plot(x, y, color=COLOURS[0], lw=0.8, alpha=0.3)
        axes.plot(x, smooth, color=COLOURS[0], lw=2, label=f"{name}, now {smooth[-1]:.4g}")
    else:
        axes.plot(x, y, color=COLOURS[0], lw=1.8, marker="o", ms=4, label=f"{name}, now {smooth[-1]:.4g}")
    if (y > 0).all():
        axes.set_yscale("log")
    style(axes, xlabel="step")
    axes.legend(frameon=False, labelcolor=INK, loc="upper right")
    return to_array(figure)


def smoothed(values: ArrayLike) -> NDArray[np.float64]:
    """Mean of the values around each one, over 3 % of `values: (n,)` (half of it at the ends); as long as `values`."""
    y = np.asarray(values, dtype=np.float64)
    half = int(SMOOTHING_SHARE * y.size / 2)
    first, last = np.arange(y.size) - half, np.arange(y.size) + half + 1
    first, last = first.clip(0), last.clip(max=y.size)
    total = np.concatenate([[0.0], np.cumsum(y)])
    return (total[last] - total[first]) / (last - first)


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One quantity over the horizon.

    lines: (n,) by name, NaN where there is no value; band: lower and upper end, (n,) each, around the first line.
    """

    title: str
    lines: Mapping[str, ArrayLike]
    band: tuple[ArrayLike, ArrayLike] | None = None
    band_name: str = ""


def draw_horizon(panels: Sequence[Panel], *, width: int = 560, height: int = 400) -> Pixels:
    """`panels` side by side, each `width` by `height` pixels: (height, panels x width, 3) uint8. The first frame is 1.

    Lines of one name have the same colour in every panel. ValueError if a panel has no finite value.
    """
    figure = new_figure(len(panels) * width, height)
    names = list(dict.fromkeys(name for panel in panels for name in panel.lines))
    colours = {name: COLOURS[index % len(COLOURS)] for index, name in enumerate(names)}
    for panel, axes in zip(panels, figure.subplots(1, len(panels), squeeze=False)[0], strict=True):
        if not any(np.isfinite(np.asarray(values, dtype=np.float64)).any() for values in panel.lines.values()):
            raise ValueError(f"no finite value to draw in '{panel.title}'")
        for index, (name, values) in enumerate(panel.lines.items()):
            y = np.asarray(values, dtype=np.float64)
            x = np.arange(1, len(y) + 1)
            # The first line is the model's.
            width_, size, order = (2.4, 4, 3) if index == 0 else (1.6, 3, 2)
            marker = "o" if len(y) < FEW else ""
            axes.plot(x, y, color=colours[name], lw=width_, marker=marker, ms=size, label=name, zorder=order)
            if index == 0 and panel.band is not None:
                low, high = (np.asarray(end, dtype=np.float64) for end in panel.band)
                label = panel.band_name if np.isfinite(low).any() else None
                axes.fill_between(x, low, high, color=colours[name], alpha=0.18, lw=0, label=label)
        style(axes, title=panel.title, xlabel="predicted frame")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.margins(y=0.12)
        axes.legend(frameon=False, labelcolor=INK, fontsize=9, loc="best")
    return to_array(figure)
