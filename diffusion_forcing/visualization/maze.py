"""Plans and executed trajectories in a maze: one picture, a contact sheet, two films.

Positions are in D4RL's coordinates, (…, 2) or longer rows (velocities and what follows are ignored); rows of the maze
go down, columns right, as in its ASCII map (`canvas.py` has the geometry). A plan is coloured by its own time, from
blue (now) to orange (its end); the executed trajectory is the dark line over it; the start is a green dot, the goal a
red star inside the circle of radius 0.5 that is rewarded. Everything returned is uint8, (h, w, 3) or (t, h, w, 3).
Inputs are never edited.
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
from matplotlib.legend import Legend
from matplotlib.legend_handler import HandlerLineCollection
from matplotlib.lines import Line2D
from matplotlib.patches import Circle
from numpy.typing import ArrayLike, NDArray

# A maze laid out in pixels, to draw on.
#
# D4RL's coordinates, as the environments observe them: position (p0, p1), p0 along the maze's rows, p1 along its
# columns. The wall box of cell (i, j) is the square of side 1 around (i - 0.2, j - 0.2). Rows go down and columns go
# right, as in the maze's ASCII map: a position is drawn at x = p1, y = p0, y downwards. Pictures are (h, w, 3) uint8.

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


# The strip below the mazes: what the colours mean.

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


Picture = NDArray[np.uint8]
PIXELS = 600  # about the longer side of the maze in a picture
FILM_PIXELS = 480
FRAMES = 150  # most moving frames of a film: longer ones are thinned evenly
FAR = 0.3  # two neighbouring positions further apart than this are noise (a step moves at most 0.05)
HOLD = 15  # times the last frame is repeated, so that a loop rests on the result


def draw_plan(
    walls: ArrayLike,
    plan: ArrayLike | None,
    trajectory: ArrayLike | None = None,
    start: ArrayLike | None = None,
    goal: ArrayLike | None = None,
    *,
    title: str = "",
    pixels: int = PIXELS,
) -> Picture:
    """One maze `walls: (H, W)` with `plan: (h, 2)`, the executed `trajectory: (n, 2)`, `start: (2,)` and `goal:
    (2,)`; None: not drawn.

    `title`: one line above, such as the score. The start is the trajectory's (else the plan's) first position unless
    given.
    """
    walls = checked_walls(walls)
    maze = MazeFigure(walls, cell=cell_pixels(walls, pixels))
    _draw_episode(maze.axes[0], plan, trajectory, start, goal, cell=maze.cell)
    draw_title(maze.axes[0], title)
    draw_legend(maze, plan=plan is not None, trajectory=trajectory is not None, goal=goal is not None)
    return maze.array()


def draw_plans(
    walls: ArrayLike,
    plans: Sequence[ArrayLike | None],
    trajectories: Sequence[ArrayLike | None] | None = None,
    starts: Sequence[ArrayLike | None] | None = None,
    goals: Sequence[ArrayLike | None] | None = None,
    *,
    titles: Sequence[str] | None = None,
    columns: int | None = None,
    pixels: int = 280,
) -> Picture:
    """A contact sheet: n episodes of one maze in a grid, each as in `draw_plan`, one legend. All lists are n long."""
    walls = checked_walls(walls)
    count = len(plans)
    nothing: list[Any] = [None] * count
    lists = [plans, trajectories or nothing, nothing if starts is None else starts, nothing if goals is None else goals]
    lists.append(titles or [""] * count)
    if count == 0 or any(len(each) != count for each in lists):
        lengths = [len(each) for each in lists]
        raise ValueError(
            f"plans, trajectories, starts, goals and titles must be equally long and not empty, got {lengths}"
        )
    columns = min(count, columns or max(1, round((count * walls.shape[0] / walls.shape[1] * 1.4) ** 0.5)))
    maze = MazeFigure(walls, cell=cell_pixels(walls, pixels), columns=columns, rows=-(-count // columns), title=26)
    for axes, plan, trajectory, start, goal, title in zip(maze.axes, *lists, strict=False):
        _draw_episode(axes, plan, trajectory, start, goal, cell=maze.cell)
        draw_title(axes, title, size=9)
    for axes in maze.axes[count:]:
        axes.remove()
    seen = [any(x is not None for x in each) for each in (plans, lists[1], lists[3])]
    draw_legend(maze, plan=seen[0], trajectory=seen[1], goal=seen[2])
    return maze.array()


def film_of_plan(
    walls: ArrayLike,
    rows: ArrayLike,
    start: ArrayLike | None = None,
    goal: ArrayLike | None = None,
    *,
    levels: ArrayLike | None = None,
    title: str = "",
    pixels: int = FILM_PIXELS,
) -> Picture:
    """A plan emerging from noise: `rows: (m, h, 2)`, the plan after each row of the scheduling matrix → (t, h, w, 3)
    uint8.

    `levels: (m, tokens)`, each token's noise level in each row (any scale from 0 up), colours its h / tokens
    positions from orange (the greatest level there is) to blue (0), and lets their line appear as the noise goes.
    Without, the colour is the plan's own time. Long films are thinned to 150 frames; the last frame is held for 15
    more.
    """
    walls, path = checked_walls(walls), checked_path(rows, "rows", axes=3)
    noise = _noise_of_positions(levels, path.shape[0], path.shape[1])
    maze = MazeFigure(walls, cell=cell_pixels(walls, pixels))
    axes = maze.axes[0]
    draw_marks(axes, _position(start), _position(goal), cell=maze.cell)
    draw_title(axes, title)
    entries = {"noise": True} if noise is not None else {"plan": True}
    draw_legend(maze, goal=goal is not None, **entries)
    positions = path.shape[1]
    line = coloured_line(path[0], _line_colours(noise, 0, path[0]), linewidths=1.4, zorder=5)
    axes.add_collection(line)
    size = (max(2.6, maze.cell / 14)) ** 2
    dots = axes.scatter([], [], s=size, linewidths=0, zorder=6)
    counter = axes.text(1, 1.02, "", transform=axes.transAxes, ha="right", va="bottom", fontsize=9, color=SOFT)

    def show(row: int) -> None:
        line.set_segments(list(pieces(path[row])))
        line.set_color(_line_colours(noise, row, path[row]))  # type: ignore[arg-type]
        dots.set_offsets(path[row, :, ::-1])
        dots.set_facecolor(_dot_colours(noise, row, positions))  # type: ignore[arg-type]
        counter.set_text(f"row {row + 1} of {len(path)}")

    return _film(maze, [line, dots, counter], len(path), show)


def film_of_execution(
    walls: ArrayLike,
    plans: ArrayLike,
    trajectory: ArrayLike,
    goal: ArrayLike | None = None,
    *,
    replan_every: int | None = None,
    title: str = "",
    pixels: int = FILM_PIXELS,
) -> Picture:
    """The agent on its way: `trajectory: (n, 2)`, its position at each step, over the plan it follows → (t, h, w, 3)
    uint8.

    `plans: (p, h, 2)` or `(h, 2)`: plan number s // replan_every is the one shown at step s (the last one from there
    on); unless given, the plans share the trajectory evenly. Thinned and held like `film_of_plan`.
    """
    walls, path = checked_walls(walls), checked_path(trajectory, "trajectory")
    array = np.asarray(plans, dtype=np.float64)
    followed = checked_path(array[None] if array.ndim == 2 else array, "plans", axes=3)
    every = replan_every or -(-len(path) // len(followed))
    maze = MazeFigure(walls, cell=cell_pixels(walls, pixels))
    axes = maze.axes[0]
    target = _position(goal)
    draw_marks(axes, path[0], target, cell=maze.cell)
    draw_title(axes, title)
    draw_legend(maze, plan=True, trajectory=True, goal=goal is not None)
    colours = _time_colours(followed.shape[1] - 1)
    plan = coloured_line(followed[0], colours, linewidths=maze.cell / 18 + 1, alpha=0.75, zorder=4)
    axes.add_collection(plan)
    centre = (0.0, 0.0) if target is None else (target[1], target[0])
    at_goal = Circle(centre, GOAL_RADIUS, fill=False, edgecolor=START, linewidth=maze.cell / 15, zorder=3)
    axes.add_patch(at_goal)
    (trail,) = axes.plot([], [], color=INK, lw=1.4, zorder=6)
    (agent,) = axes.plot([], [], marker="o", ms=maze.cell / 6, color=INK, mec="white", mew=1.2, zorder=9)
    counter = axes.text(1, 1.02, "", transform=axes.transAxes, ha="right", va="bottom", fontsize=9, color=SOFT)

    def show(step: int) -> None:
        plan.set_segments(list(pieces(followed[min(step // every, len(followed) - 1)])))
        trail.set_data(path[: step + 1, 1], path[: step + 1, 0])
        agent.set_data(path[step : step + 1, 1], path[step : step + 1, 0])
        at_goal.set_visible(target is not None and bool(np.linalg.norm(path[step] - target) <= GOAL_RADIUS))
        counter.set_text(f"step {step} of {len(path) - 1}")

    return _film(maze, [at_goal, plan, trail, agent, counter], len(path), show)


def _film(maze: MazeFigure, moving: list[Any], count: int, show: Any) -> Picture:
    """Draw what stands still once, then only the `moving` artists for each frame."""
    for artist in moving:
        artist.set_animated(True)
    maze.canvas.draw()
    still = maze.canvas.copy_from_bbox(maze.figure.bbox)
    chosen = np.unique(np.linspace(0, count - 1, min(count, FRAMES)).round().astype(int))
    frames = np.empty((len(chosen) + HOLD, maze.height, maze.width, 3), np.uint8)
    for index, number in enumerate(chosen):
        show(int(number))
        maze.canvas.restore_region(still)
        for artist in moving:
            maze.figure.draw_artist(artist)
        frames[index] = maze.pixels()
    frames[len(chosen) :] = frames[len(chosen) - 1]
    return frames


def _draw_episode(axes: Axes, plan: Any, trajectory: Any, start: Any, goal: Any, *, cell: int) -> None:
    first = _position(start)
    for path, name in ((plan, "plan"), (trajectory, "trajectory")):
        if path is None:
            continue
        points = checked_path(path, name)
        first = points[0] if start is None else first
        if name == "plan":
            colours = _time_colours(len(points) - 1)
            axes.add_collection(coloured_line(points, colours, linewidths=cell / 14 + 1, zorder=4))
        else:
            axes.plot(points[:, 1], points[:, 0], color=INK, lw=cell / 60 + 0.6, solid_joinstyle="round", zorder=6)
    draw_marks(axes, first, _position(goal), cell=cell)


def _noise_of_positions(levels: ArrayLike | None, rows: int, positions: int) -> NDArray[np.float64] | None:
    """`levels: (m, tokens)` to each position's noise in [0, 1]: (m, h)."""
    if levels is None:
        return None
    array = np.asarray(levels, dtype=np.float64)
    if array.ndim != 2 or len(array) != rows or not 0 < array.shape[1] <= positions:
        raise ValueError(f"levels must be ({rows} rows, at most {positions} tokens), got shape {array.shape}")
    token = np.arange(positions) * array.shape[1] // positions
    return np.clip(array[:, token] / (array.max() or 1.0), 0, 1)


def _dot_colours(noise: NDArray[np.float64] | None, row: int, positions: int) -> NDArray[np.float64]:
    return TIME(np.linspace(0, 1, positions)) if noise is None else NOISE(noise[row])


def _line_colours(noise: NDArray[np.float64] | None, row: int, points: NDArray[np.float64]) -> NDArray[np.float64]:
    """The dots' colours; a piece is faint where its ends are noisy, or, where no level is known, far apart."""
    colours = np.array(_dot_colours(noise, row, len(points))[1:])
    if noise is None:
        clean = np.exp(-np.linalg.norm(np.diff(points, axis=0), axis=1) / FAR)
    else:
        clean = (1 - np.maximum(noise[row, 1:], noise[row, :-1])) ** 3
    colours[:, 3] = 0.05 + 0.75 * clean
    return colours


def _time_colours(count: int) -> NDArray[np.float64]:
    return np.asarray(TIME(np.linspace(0, 1, max(1, count))))


def _position(point: ArrayLike | None) -> NDArray[np.float64] | None:
    return None if point is None else checked_path(point, "start and goal", axes=1)
