"""The strip below the mazes: what the colours mean."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.collections import LineCollection
from matplotlib.legend import Legend
from matplotlib.legend_handler import HandlerLineCollection
from matplotlib.lines import Line2D

from diffusion_forcing.visualization.canvas import GOAL, INK, NOISE, START, TIME, MazeFigure

PIECES = 12  # of a gradient in the legend
FONT = 9.0  # points, smaller where the row would not fit
MARGIN = 10  # pixels left free beside the row


class GradientHandler(HandlerLineCollection):
    """A legend entry that shows a whole colour map."""

    def create_artists(self, *args: Any) -> list[Any]:
        """One line of many colours, in matplotlib's handle box."""
        _legend, handle, left, bottom, width, height, _size, transform = args
        x = np.linspace(0, width, PIECES + 1) - left
        y = np.full_like(x, (height - bottom) / 2)
        line = LineCollection(
            list(np.stack([np.stack([x[:-1], y[:-1]], 1), np.stack([x[1:], y[1:]], 1)], 1)),
            colors=handle.get_cmap()(np.linspace(0, 1, PIECES)),
            linewidths=4,
        )
        line.set_transform(transform)
        return [line]


def draw_legend(
    maze: MazeFigure, *, plan: bool = False, noise: bool = False, trajectory: bool = False, goal: bool = False
) -> None:
    """The entries asked for, and the start, in one row as wide as the figure at most."""
    handles: list[Any] = []
    for wanted, colours, text in ((plan, TIME, "plan: now to its end"), (noise, NOISE, "plan: clean to noise")):
        if wanted:
            handles.append(LineCollection([], cmap=colours, label=text))
    if trajectory:
        handles.append(Line2D([], [], color=INK, lw=1.6, label="executed"))
    handles.append(Line2D([], [], marker="o", color=START, ls="none", ms=7, mec="white", label="start"))
    if goal:
        text = "goal, rewarded in the circle" if maze.width > 600 else "goal"
        handles.append(Line2D([], [], marker="*", color=GOAL, ls="none", ms=12, mec="white", label=text))
    legend = _row(maze, handles, FONT)
    wide = legend.get_window_extent(maze.canvas.get_renderer()).width
    if wide > maze.width - MARGIN:
        legend.remove()
        _row(maze, handles, FONT * (maze.width - MARGIN) / wide)


def _row(maze: MazeFigure, handles: list[Any], size: float) -> Legend:
    return maze.figure.legend(
        handles=handles,
        handler_map={LineCollection: GradientHandler()},
        loc="lower center",
        ncols=len(handles),
        frameon=False,
        fontsize=size,
        labelcolor=INK,
        borderaxespad=0.6,
        columnspacing=1.4,
        handletextpad=0.6,
    )
