"""Scores over the horizon of a rollout."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from diffusion_forcing.visualization.canvas import COLOURS, INK, Pixels, new_figure, style, to_array

FEW = 30
"""Curves of fewer points get a dot at each."""


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
    from matplotlib.ticker import MaxNLocator

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
