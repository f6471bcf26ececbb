"""What becomes of a rollout over its horizon, as curves: one panel a quantity, one line a predictor, side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike, NDArray

from diffusion_forcing.visualization.curves import COLOURS, INK, LINE, SOFT

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
