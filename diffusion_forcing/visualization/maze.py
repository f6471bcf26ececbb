"""Plans and executed trajectories in a maze: a grid of episodes, and videos of a plan and of its execution.

Positions are in D4RL's coordinates, (…, 2) or wider (velocities and what follows are ignored): position (p0, p1) has
p0 along the maze's rows, which go down as in its ASCII map, and p1 along its columns, which go right. The wall box of
cell (i, j) is the square of side 1 around (i - 0.2, j - 0.2). A plan is coloured by its own time, from blue (now) to
orange (its end); the executed trajectory is the dark line over it; the start is a green dot, the goal a red star in
the circle that is rewarded, of radius 0.5 in D4RL's mazes; in a video of an execution a green ring lies around it while
the agent is inside. Images are uint8, (h, w, 3) or (t, h, w, 3). Inputs are never edited.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.colors import Colormap, LinearSegmentedColormap, to_rgb
from matplotlib.legend import Legend
from matplotlib.legend_handler import HandlerLineCollection
from matplotlib.lines import Line2D
from matplotlib.patches import Circle
from numpy.typing import ArrayLike, NDArray

from diffusion_forcing.visualization.canvas import INK, SOFT, Pixels, new_figure, to_array

Array = NDArray[np.float64]

GOAL_RADIUS = 0.5
"""Radius of the region that is rewarded (D4RL's sparse reward), in the maze's coordinates."""
CENTRE = 0.2
"""Cell (i, j) is centred at (i - 0.2, j - 0.2)."""
GAP = 14
"""Pixels around each maze."""
VIDEO_PIXELS, GRID_PIXELS = 480, 280
"""Approximate longer side of a maze in a video, in a grid."""
FRAMES = 150
"""Most moving frames of a video; longer ones are thinned evenly."""
HOLD = 15
"""Repetitions of a video's last frame, so that a loop rests on the result."""
FAR = 0.3
"""Neighbouring positions further apart than this are noise (a step moves at most 0.05)."""

FLOOR, WALL, EDGE = "#f8f6f1", "#a9b6c2", "#7d8c9a"
START, GOAL = "#1a8754", "#d4342c"
TIME: Colormap = LinearSegmentedColormap.from_list("time", ["#2b59c3", "#8a4fc4", "#e0598b", "#f08a24"])
NOISE: Colormap = LinearSegmentedColormap.from_list("noise", ["#1d5fbf", "#6aa0cf", "#c9b79c", "#e39a3b"])
"""From clean to noise."""


def draw_plans(
    walls: ArrayLike,
    plans: Sequence[ArrayLike | None],
    trajectories: Sequence[ArrayLike | None] | None = None,
    starts: Sequence[ArrayLike | None] | None = None,
    goals: Sequence[ArrayLike | None] | None = None,
    *,
    titles: Sequence[str] | None = None,
    columns: int | None = None,
    pixels: int = GRID_PIXELS,
    radius: float = GOAL_RADIUS,
) -> Pixels:
    """A grid of n episodes in a maze `walls: (H, W)`: each its plan (h, 2), executed trajectory (t, 2), start and goal.

    None is not drawn; a start that is None is the first position of the trajectory, else of the plan. All lists are n
    long. ValueError for arrays of another shape.
    """
    walls, count = _checked_walls(walls), len(plans)
    episodes = [plans, *([None] * count if each is None else each for each in (trajectories, starts, goals))]
    titles = [""] * count if titles is None else titles
    lengths = [len(each) for each in (*episodes, titles)]
    if set(lengths) != {count} or count == 0:
        raise ValueError(
            f"plans, trajectories, starts, goals and titles must be equally long, not empty, got {lengths}"
        )
    columns = min(count, columns or max(1, round((count * walls.shape[0] / walls.shape[1] * 1.4) ** 0.5)))
    maze = MazeFigure(walls, pixels, columns=columns, rows=-(-count // columns), title=26, radius=radius)
    for axes, title, plan, trajectory, start, goal in zip(maze.axes, titles, *episodes, strict=False):
        axes.text(0, 1.02, title, transform=axes.transAxes, va="bottom", fontsize=9, color=INK, parse_math=False)
        if plan is not None:
            points = _checked_path(plan, "plan")
            colours = _time_colours(len(points) - 1)
            line = LineCollection(_segments(points), colors=colours, lw=maze.cell / 14 + 1, capstyle="round", zorder=4)
            axes.add_collection(line)
            start = points[0] if start is None and trajectory is None else start
        if trajectory is not None:
            points = _checked_path(trajectory, "trajectory")
            axes.plot(points[:, 1], points[:, 0], color=INK, lw=maze.cell / 60 + 0.6, solid_joinstyle="round", zorder=6)
            start = points[0] if start is None else start
        maze.mark(axes, start, goal)
    for axes in maze.axes[count:]:
        axes.remove()
    plan_drawn, executed, _, goal_drawn = ([x for x in each if x is not None] != [] for each in episodes)
    maze.legend(plan=plan_drawn, executed=executed, goal=goal_drawn)
    return to_array(maze.figure)


def video_of_plan(
    walls: ArrayLike,
    rows: ArrayLike,
    start: ArrayLike | None = None,
    goal: ArrayLike | None = None,
    *,
    levels: ArrayLike | None = None,
    others: ArrayLike | None = None,
    pixels: int = VIDEO_PIXELS,
    radius: float = GOAL_RADIUS,
) -> Pixels:
    """A plan emerging from noise: `rows: (m, h, 2)`, the plan after each row of the scheduling matrix, to (t, h, w, 3).

    `levels: (m, tokens)`, the noise level of each token in each row (any scale from 0), colours its h / tokens
    positions from orange (the greatest level) to blue (0) and fades their line in as the noise goes. Without levels
    the colour is the plan's own time. `others: (m, n, h, 2)`, candidates that were not chosen, are thin lines. Long videos
    are thinned to 150 frames; the last frame is held for 15 more.
    """
    walls, path = _checked_walls(walls), _checked_path(rows, "rows", axes=3)
    beside = np.zeros((len(path), 0, 1, 2)) if others is None else np.asarray(others, dtype=np.float64)[..., :2]
    noise = _noise_of_positions(levels, path.shape[0], path.shape[1])
    maze = MazeFigure(walls, pixels, radius=radius)
    (axes,) = maze.axes
    maze.mark(axes, start, goal)
    maze.legend(plan=noise is None, noise=noise is not None, goal=goal is not None)
    line = LineCollection([], lw=1.4, capstyle="round", zorder=5)
    faint = LineCollection([], lw=0.9, zorder=4)
    axes.add_collection(faint)
    axes.add_collection(line)
    dots = axes.scatter([], [], s=max(2.6, maze.cell / 14) ** 2, linewidths=0, zorder=6)
    counter = maze.counter()

    def show(row: int) -> None:
        points = path[row]
        colours = TIME(np.linspace(0, 1, len(points))) if noise is None else NOISE(noise[row])
        # A segment is faint where its ends are noisy or, if no levels are known, far apart.
        if noise is None:
            clean = np.exp(-np.linalg.norm(np.diff(points, axis=0), axis=1) / FAR)
        else:
            clean = (1 - np.maximum(noise[row, 1:], noise[row, :-1])) ** 3
        line.set_segments(_segments(points))
        line.set_color(list(map(tuple, np.column_stack([colours[1:, :3], 0.05 + 0.75 * clean]))))
        pairs = np.stack([beside[row][:, :-1], beside[row][:, 1:]], axis=2).reshape(-1, 2, 2)
        near = np.exp(-np.linalg.norm(pairs[:, 1] - pairs[:, 0], axis=1) / FAR)
        faint.set_segments(list(pairs[..., ::-1]))
        faint.set_color([(*to_rgb(NOISE(0.9)), 0.4 * share) for share in near])
        dots.set_offsets(points[:, ::-1])
        dots.set_facecolor(list(map(tuple, colours)))
        counter.set_text(f"row {row + 1} of {len(path)}")

    return _animate(maze, [faint, line, dots, counter], len(path), show)


def video_of_tree(
    walls: ArrayLike,
    plans: ArrayLike,
    rewards: ArrayLike,
    start: ArrayLike | None = None,
    goal: ArrayLike | None = None,
    *,
    pixels: int = VIDEO_PIXELS,
    radius: float = GOAL_RADIUS,
) -> Pixels:
    """A tree search, node by node, to (t, h, w, 3): `plans: (n, h, 2)`, each node's simulated plan, and its `rewards: (n,)`.

    The new plan is orange, earlier ones are thin lines, grey without a reward and blue with one; the best so far is drawn
    as a plan. Thinned and held like `video_of_plan`.
    """
    walls, paths, earned = _checked_walls(walls), _checked_path(plans, "plans", axes=3), np.asarray(rewards, np.float64)
    maze = MazeFigure(walls, pixels, radius=radius)
    (axes,) = maze.axes
    maze.mark(axes, start, goal)
    maze.legend(plan=True, goal=goal is not None)
    earlier = LineCollection([], lw=0.8, zorder=3)
    newest = LineCollection([], lw=1.2, colors=[NOISE(1.0)], zorder=4)
    colours = _time_colours(paths.shape[1] - 1)
    best = LineCollection([], colors=colours, lw=maze.cell / 18 + 1, capstyle="round", zorder=5)
    for collection in (earlier, newest, best):
        axes.add_collection(collection)
    counter = maze.counter()
    lines = [path[:, ::-1] for path in paths]
    tones = [(*to_rgb(NOISE(0.0) if reward > 0 else EDGE), 0.25) for reward in earned]

    def show(node: int) -> None:
        earlier.set_segments(lines[:node])
        earlier.set_color(tones[:node])
        newest.set_segments(lines[node : node + 1])
        leader = int(earned[: node + 1].argmax())
        best.set_segments(_segments(paths[leader]) if earned[leader] > 0 else [])
        counter.set_text(f"node {node + 1} of {len(paths)}")

    return _animate(maze, [earlier, newest, best, counter], len(paths), show)


def video_of_execution(
    walls: ArrayLike,
    plans: ArrayLike,
    trajectory: ArrayLike,
    goal: ArrayLike | None = None,
    *,
    replan_every: int,
    pixels: int = VIDEO_PIXELS,
    radius: float = GOAL_RADIUS,
) -> Pixels:
    """The agent on its way: `trajectory: (n, 2)`, its position at each step, over the plan it follows, to (t, h, w, 3).

    `plans: (p, h, 2)`: plan s // replan_every is shown at step s, and the last one from then on. Thinned and held like
    `video_of_plan`.
    """
    walls, path = _checked_walls(walls), _checked_path(trajectory, "trajectory")
    followed = _checked_path(plans, "plans", axes=3)
    target = None if goal is None else _checked_path(goal, "goal", axes=1)
    maze = MazeFigure(walls, pixels, radius=radius)
    (axes,) = maze.axes
    maze.mark(axes, path[0], goal)
    maze.legend(plan=True, executed=True, goal=goal is not None, rewarded=target is not None)
    colours = _time_colours(followed.shape[1] - 1)
    plan = LineCollection([], colors=colours, lw=maze.cell / 18 + 1, alpha=0.75, capstyle="round", zorder=4)
    axes.add_collection(plan)
    centre = (0.0, 0.0) if target is None else (target[1], target[0])
    at_goal = axes.add_patch(Circle(centre, radius, fill=False, edgecolor=START, lw=maze.cell / 15, zorder=3))
    (trail,) = axes.plot([], [], color=INK, lw=1.4, zorder=6)
    (agent,) = axes.plot([], [], marker="o", ms=maze.cell / 6, color=INK, mec="white", mew=1.2, zorder=9)
    counter = maze.counter()

    def show(step: int) -> None:
        plan.set_segments(_segments(followed[min(step // replan_every, len(followed) - 1)]))
        trail.set_data(path[: step + 1, 1], path[: step + 1, 0])
        agent.set_data(path[step : step + 1, 1], path[step : step + 1, 0])
        at_goal.set_visible(target is not None and bool(np.linalg.norm(path[step] - target) <= radius))
        counter.set_text(f"step {step} of {len(path) - 1}")

    return _animate(maze, [at_goal, plan, trail, agent, counter], len(path), show)


class MazeFigure:
    """A grid of `columns` x `rows` drawings of one maze, with room for a title above each and a legend below all."""

    LEGEND = 40
    """Height of the legend's strip in pixels."""

    def __init__(
        self,
        walls: NDArray[np.bool_],
        pixels: int,
        *,
        columns: int = 1,
        rows: int = 1,
        title: int = 34,
        radius: float = GOAL_RADIUS,
    ) -> None:
        """walls: (H, W). pixels: approximate longer side of a maze. title: height of the strip above it, in pixels.
        radius: of the goal's circle."""
        self.radius = radius
        self.cell = max(6, 2 * round(pixels / max(walls.shape) / 2))  # even, so that videos have even sides
        self._title = title
        height, width = (self.cell * side for side in walls.shape)
        self.width = columns * (width + GAP) + GAP
        self.height = rows * (height + title) + (rows - 1) * GAP + self.LEGEND
        self.figure = new_figure(self.width, self.height, layout=None)
        self.axes: list[Axes] = []
        for index in range(rows * columns):
            row, column = divmod(index, columns)
            left, top = GAP + column * (width + GAP), title + row * (height + title + GAP)
            box = (left / self.width, 1 - (top + height) / self.height, width / self.width, height / self.height)
            self.axes.append(self.figure.add_axes(box))
            _draw_walls(self.axes[-1], walls)

    def pixel(self, position: Sequence[float]) -> tuple[int, int]:
        """(row, column) of the pixel of a position in the first maze."""
        row = self._title + (position[0] + CENTRE + 0.5) * self.cell
        column = GAP + (position[1] + CENTRE + 0.5) * self.cell
        return int(row), int(column)

    def mark(self, axes: Axes, start: ArrayLike | None, goal: ArrayLike | None) -> None:
        """The start as a dot, the goal as a star in the circle that is rewarded."""
        scale = self.cell / 60
        if goal is not None:
            y, x = _checked_path(goal, "goal", axes=1)
            axes.add_patch(Circle((x, y), self.radius, facecolor=GOAL, alpha=0.12, zorder=2))
            axes.add_patch(Circle((x, y), self.radius, fill=False, edgecolor=GOAL, ls=(0, (4, 3)), lw=1.2, zorder=3))
            axes.plot([x], [y], "*", ms=17 * scale + 3, color=GOAL, mec="white", mew=1, zorder=8)
        if start is not None:
            y, x = _checked_path(start, "start", axes=1)
            axes.plot([x], [y], "o", ms=9 * scale + 2, color=START, mec="white", mew=1.2, zorder=8)

    def counter(self) -> Any:
        """An empty text above the maze on the right."""
        axes = self.axes[0]
        return axes.text(1, 1.02, "", transform=axes.transAxes, ha="right", va="bottom", fontsize=9, color=SOFT)

    def legend(
        self,
        *,
        plan: bool = False,
        noise: bool = False,
        executed: bool = False,
        goal: bool = False,
        rewarded: bool = False,
    ) -> None:
        """The entries asked for, and the start, in one row at most as wide as the figure."""
        handles: list[Any] = []
        for wanted, colours, text in ((plan, TIME, "plan: start to end"), (noise, NOISE, "plan: clean to noise")):
            if wanted:
                handles.append(LineCollection([], cmap=colours, label=text))
        if executed:
            handles.append(Line2D([], [], color=INK, lw=1.6, label="executed"))
        handles.append(Line2D([], [], marker="o", color=START, ls="none", ms=7, mec="white", label="start"))
        if goal:
            text = "goal, rewarded in the circle" if self.width > 600 else "goal"
            handles.append(Line2D([], [], marker="*", color=GOAL, ls="none", ms=12, mec="white", label=text))
        if rewarded:
            ring = Line2D([], [], marker="o", ls="none", ms=9, mfc="none", mec=START, mew=2, label="goal reached")
            handles.append(ring)

        def draw(size: float) -> Legend:
            return self.figure.legend(
                handles=handles,
                handler_map={LineCollection: _GradientHandler()},
                loc="lower center",
                ncols=len(handles),
                frameon=False,
                fontsize=size,
                labelcolor=INK,
                borderaxespad=0.6,
                columnspacing=1.4,
                handletextpad=0.6,
            )

        legend, room = draw(9), self.width - 10
        wide = legend.get_window_extent().width
        if wide > room:
            legend.remove()
            draw(9 * room / wide)


class _GradientHandler(HandlerLineCollection):
    """A legend entry that shows a whole colour map."""

    def create_artists(self, *args: Any) -> list[Any]:
        """Short lines of many colours, in matplotlib's handle box."""
        _legend, handle, left, bottom, width, height, _size, transform = args
        x = np.linspace(0, width, 13) - left
        y = np.full_like(x, (height - bottom) / 2)
        line = LineCollection(
            _segments(np.stack([y, x], axis=1)), colors=handle.get_cmap()(np.linspace(0, 1, 12)), lw=4
        )
        line.set_transform(transform)
        return [line]


def _animate(maze: MazeFigure, moving: list[Any], count: int, show: Callable[[int], None]) -> Pixels:
    """Draw what stands still once, then only the `moving` artists for each frame."""
    canvas = maze.figure.canvas
    assert isinstance(canvas, FigureCanvasAgg)
    for artist in moving:
        artist.set_animated(True)
    canvas.draw()
    still = canvas.copy_from_bbox(maze.figure.bbox)
    chosen = np.unique(np.linspace(0, count - 1, min(count, FRAMES)).round().astype(int))
    frames = np.empty((len(chosen) + HOLD, maze.height, maze.width, 3), np.uint8)
    for index, number in enumerate(chosen):
        show(int(number))
        canvas.restore_region(still)
        for artist in moving:
            maze.figure.draw_artist(artist)
        frames[index] = np.asarray(canvas.buffer_rgba())[..., :3]
    frames[len(chosen) :] = frames[len(chosen) - 1]
    return frames


def _draw_walls(axes: Axes, walls: NDArray[np.bool_]) -> None:
    """Floor and walls with their true geometry, and the axes in the maze's coordinates."""
    height, width = walls.shape
    low = -CENTRE - 0.5
    colours = np.where(walls[..., None], to_rgb(WALL), to_rgb(FLOOR))
    extent = (low, low + width, low + height, low)
    axes.imshow(colours, extent=extent, interpolation="nearest", aspect="auto", zorder=0)
    down = np.argwhere(walls[1:] != walls[:-1]) + np.array([1, 0])  # edges between a cell and the one above it
    right = np.argwhere(walls[:, 1:] != walls[:, :-1]) + np.array([0, 1])
    edges = [[(j + low, i + low), (j + low + 1, i + low)] for i, j in down]
    edges += [[(j + low, i + low), (j + low, i + low + 1)] for i, j in right]
    axes.add_collection(LineCollection(edges, colors=EDGE, linewidths=1.0, capstyle="projecting", zorder=1))
    axes.set_xlim(low, low + width)
    axes.set_ylim(low + height, low)
    axes.axis("off")


def _segments(points: Array) -> list[Array]:
    """The n - 1 segments of the line through positions (n, 2), each (2, 2) as x, y."""
    xy = points[:, ::-1]
    return list(np.stack([xy[:-1], xy[1:]], axis=1))


def _time_colours(count: int) -> Array:
    return np.asarray(TIME(np.linspace(0, 1, max(1, count))))


def _noise_of_positions(levels: ArrayLike | None, rows: int, positions: int) -> Array | None:
    """`levels: (m, tokens)` to the noise of each position in [0, 1]: (m, h)."""
    if levels is None:
        return None
    array = np.asarray(levels, dtype=np.float64)
    if array.ndim != 2 or len(array) != rows or not 0 < array.shape[1] <= positions:
        raise ValueError(f"levels must be ({rows} rows, at most {positions} tokens), got shape {array.shape}")
    token = np.arange(positions) * array.shape[1] // positions
    return np.clip(array[:, token] / (array.max() or 1.0), 0, 1)


def _checked_walls(walls: ArrayLike) -> NDArray[np.bool_]:
    array = np.asarray(walls, dtype=bool)
    if array.ndim != 2 or 0 in array.shape:
        raise ValueError(f"walls must be (H, W) bool, got shape {array.shape}")
    return array


def _checked_path(path: ArrayLike, name: str, *, axes: int = 2) -> Array:
    """Positions as float64 of `axes` axes, the last at least 2 long, of which the first two are kept."""
    array = np.asarray(path, dtype=np.float64)
    if array.ndim != axes or 0 in array.shape or array.shape[-1] < 2:
        raise ValueError(f"{name} must be ({'…, ' * (axes - 1)}2) positions, got shape {array.shape}")
    return array[..., :2]
