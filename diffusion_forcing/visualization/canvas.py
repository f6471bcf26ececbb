"""A maze laid out in pixels, to draw on.

D4RL's coordinates, as the environments observe them: position (p0, p1), p0 along the maze's rows, p1 along its
columns. The wall box of cell (i, j) is the square of side 1 around (i - 0.2, j - 0.2). Rows go down and columns go
right, as in the maze's ASCII map: a position is drawn at x = p1, y = p0, y downwards. Pictures are (h, w, 3) uint8.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.colors import Colormap, LinearSegmentedColormap, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Circle
from numpy.typing import NDArray

GOAL_RADIUS = 0.5  # the region that is rewarded (D4RL's sparse reward), in coordinates
CENTRE = 0.2  # cell (i, j) is centred at (i - 0.2, j - 0.2)
DPI = 100
GAP = 14  # pixels around each maze

FLOOR, WALL, EDGE, INK, SOFT = "#f8f6f1", "#a9b6c2", "#7d8c9a", "#222c37", "#66727f"
START, GOAL = "#1a8754", "#d4342c"
TIME: Colormap = LinearSegmentedColormap.from_list("time", ["#2b59c3", "#8a4fc4", "#e0598b", "#f08a24"])
NOISE: Colormap = LinearSegmentedColormap.from_list(
    "noise", ["#1d5fbf", "#6aa0cf", "#c9b79c", "#e39a3b"]
)  # clean … noise


class MazeFigure:
    """A figure of `columns x rows` mazes, each `cell` pixels a cell, a strip for a title above each and one for the legend below all."""

    def __init__(
        self,
        walls: NDArray[np.bool_],
        *,
        cell: int,
        columns: int = 1,
        rows: int = 1,
        title: int = 34,
        legend: int = 40,
    ) -> None:
        """`walls`: (H, W) bool. `cell`, `title` and `legend` in pixels."""
        gap = GAP
        height, width = (cell * side for side in walls.shape)
        self.cell, self.gap, self.title = cell, gap, title
        self.width = columns * (width + gap) + gap
        self.height = rows * (height + title) + (rows - 1) * gap + max(legend, gap)
        self.figure = Figure(figsize=(self.width / DPI, self.height / DPI), dpi=DPI, facecolor="white")
        self.canvas = FigureCanvasAgg(self.figure)
        self.axes: list[Axes] = []
        for index in range(rows * columns):
            row, column = divmod(index, columns)
            left, top = gap + column * (width + gap), title + row * (height + title + gap)
            box = (left / self.width, 1 - (top + height) / self.height, width / self.width, height / self.height)
            self.axes.append(self.figure.add_axes(box))
            draw_walls(self.axes[-1], walls)

    def pixel(self, position: Sequence[float]) -> tuple[int, int]:
        """(row, column) of the pixel of a position in the first maze."""
        row = self.title + (position[0] + CENTRE + 0.5) * self.cell
        column = self.gap + (position[1] + CENTRE + 0.5) * self.cell
        return int(row), int(column)

    def array(self) -> NDArray[np.uint8]:
        """The whole figure, drawn: (height, width, 3) uint8."""
        self.canvas.draw()
        return self.pixels()

    def pixels(self) -> NDArray[np.uint8]:
        """A copy of what is drawn so far."""
        return np.asarray(self.canvas.buffer_rgba())[..., :3].copy()


def cell_pixels(walls: NDArray[np.bool_], pixels: int) -> int:
    """Pixels a cell so that the maze's longer side is about `pixels`; even, so that films keep even sides."""
    return max(6, 2 * round(pixels / max(walls.shape) / 2))


def draw_walls(axes: Axes, walls: NDArray[np.bool_]) -> None:
    """Floor and walls with their true geometry, and the axes in the module's coordinates."""
    height, width = walls.shape
    low = -CENTRE - 0.5
    colours = np.where(walls[..., None], to_rgb(WALL), to_rgb(FLOOR))
    extent = (low, low + width, low + height, low)
    axes.imshow(colours, extent=extent, interpolation="nearest", aspect="auto", zorder=0)
    down = np.argwhere(walls[1:] != walls[:-1]) + np.array([1, 0])  # edges between a cell and the one above it
    right = np.argwhere(walls[:, 1:] != walls[:, :-1]) + np.array([0, 1])
    segments = [[(j + low, i + low), (j + low + 1, i + low)] for i, j in down]
    segments += [[(j + low, i + low), (j + low, i + low + 1)] for i, j in right]
    axes.add_collection(LineCollection(segments, colors=EDGE, linewidths=1.0, capstyle="projecting", zorder=1))
    axes.set_xlim(low, low + width)
    axes.set_ylim(low + height, low)
    axes.axis("off")


def draw_marks(axes: Axes, start: NDArray[Any] | None, goal: NDArray[Any] | None, *, cell: int) -> None:
    """The start as a dot, the goal as a star in the circle that is rewarded."""
    scale = cell / 60
    if goal is not None:
        axes.add_patch(Circle((goal[1], goal[0]), GOAL_RADIUS, facecolor=GOAL, alpha=0.12, zorder=2))
        axes.add_patch(
            Circle((goal[1], goal[0]), GOAL_RADIUS, fill=False, edgecolor=GOAL, ls=(0, (4, 3)), lw=1.2, zorder=3)
        )
        axes.plot(
            [goal[1]], [goal[0]], marker="*", ms=17 * scale + 3, color=GOAL, mec="white", mew=1, ls="none", zorder=8
        )
    if start is not None:
        axes.plot(
            [start[1]], [start[0]], marker="o", ms=9 * scale + 2, color=START, mec="white", mew=1.2, ls="none", zorder=8
        )


def coloured_line(points: NDArray[Any], colours: NDArray[Any], **options: Any) -> LineCollection:
    """The line through `points: (n, 2)`, its n - 1 pieces in `colours: (n - 1, 3 or 4)`."""
    return LineCollection(list(pieces(points)), colors=colours, capstyle="round", **options)


def pieces(points: NDArray[Any]) -> NDArray[np.float64]:
    """(n, 2) positions to the (n - 1, 2, 2) pieces of their line, as x, y."""
    xy = np.asarray(points, dtype=np.float64)[:, ::-1]
    return np.stack([xy[:-1], xy[1:]], axis=1)


def checked_walls(walls: Any) -> NDArray[np.bool_]:
    """`walls` as (H, W) bool; ValueError for another number of axes or an empty one."""
    array = np.asarray(walls, dtype=bool)
    if array.ndim != 2 or 0 in array.shape:
        raise ValueError(f"walls must be (H, W) bool, got shape {array.shape}")
    return array


def checked_path(path: Any, name: str, *, axes: int = 2) -> NDArray[np.float64]:
    """Positions as float64 of `axes` axes, the last at least 2 long, of which the first two are kept; ValueError otherwise."""
    array = np.asarray(path, dtype=np.float64)
    if array.ndim != axes or 0 in array.shape or array.shape[-1] < 2:
        shape = "(" + "…, " * (axes - 1) + "2)"
        raise ValueError(f"{name} must be {shape} positions, got shape {array.shape}")
    return array[..., :2]


def draw_title(axes: Axes, text: str, *, size: float = 11) -> None:
    """`text` in one line above the maze, as it is ($ and _ mean themselves)."""
    axes.text(
        0, 1.02, text, transform=axes.transAxes, ha="left", va="bottom", fontsize=size, color=INK, parse_math=False
    )
