"""A maze is a text: `#` is wall, `O`, `0`, `.` and a blank are free, `G` is the goal (free), `S` a start (free).

Cell (i, j) is row i, column j of the text, and position (x, y) of an agent follows it: x runs along the rows (i), y along the columns
(j), as in D4RL. Two points of a cell matter. The *nominal* centre is the integer (i, j) itself: starts, goals and waypoints of D4RL's
data are drawn around it. The *true* centre, in the middle between the walls, is (i - 0.2, j - 0.2), since the particle starts 1.2 m from
the corner of a maze whose walls are placed at i + 1. Both facts are kept, or the public data would not fit these mazes.

A maze must be closed (the agent could leave it otherwise) and connected (some goals could never be reached otherwise). This module knows
neither physics nor learning: it answers where walls are and which way is short.
"""

from __future__ import annotations

import re
from collections import deque
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_forcing.errors import UserError

WALL = "#"
GOAL = "G"
START = "S"
FREE = "O0. "
CENTRE_OFFSET = -0.2
"""Metres from a cell's nominal centre (its integer index) to its true centre, on both axes."""
NEIGHBOURS = ((0, -1), (0, 1), (-1, 0), (1, 0))
"""Steps (di, dj) in the order in which D4RL's argmax prefers them among equally short paths."""
MAX_CELLS = 10_000
"""Largest map: a wall cell is one geometry of the simulator, and past this its model no longer builds in seconds."""

_MAX_FIELDS = 1000
"""Distance fields kept at once: 40 MB for the largest map."""

Cell = tuple[int, int]


@dataclass(frozen=True)
class Maze:
    """A closed and connected maze of `rows` of equal length; build it with `Maze.from_ascii`."""

    rows: tuple[str, ...]
    name: str = "custom"

    def __post_init__(self) -> None:
        _check_shape(self.rows)
        _check_characters(self.rows)
        _check_closed(self.walls)
        _check_connected(self)

    @classmethod
    def from_ascii(cls, text: str, *, name: str = "custom") -> Maze:
        r"""Read a maze from rows separated by newlines or `\`. Blank lines around it are ignored.

        Raises `UserError` for a map that is empty, ragged, too big, not closed, not connected, or has an unknown character or two goals.
        """
        rows = [row for row in re.split(r"[\\\r\n]+", text) if row.strip()]
        indent = min((len(row) - len(row.lstrip()) for row in rows), default=0)
        return cls(rows=tuple(row[indent:] for row in rows), name=name)

    @property
    def text(self) -> str:
        r"""The rows joined by `\`, as D4RL writes a maze."""
        return "\\".join(self.rows)

    @property
    def shape(self) -> Cell:
        """(H, W): number of rows and columns, walls included."""
        return len(self.rows), len(self.rows[0])

    @cached_property
    def walls(self) -> NDArray[np.bool_]:
        """(H, W), True where a wall is."""
        return _frozen(np.array([[char == WALL for char in row] for row in self.rows], dtype=bool))

    @cached_property
    def free_cells(self) -> NDArray[np.int64]:
        """(n, 2) indices (i, j) of all cells without a wall, row by row."""
        return _frozen(np.argwhere(~self.walls))

    @cached_property
    def start_cells(self) -> NDArray[np.int64]:
        """(n, 2) cells an episode may start in: those marked `S`, or all free cells where none is."""
        marked = self._cells_of(START)
        return marked if len(marked) else self.free_cells

    @cached_property
    def goal(self) -> NDArray[np.int64] | None:
        """(2,) the cell marked `G`, or None."""
        marked = self._cells_of(GOAL)
        return _frozen(marked[0]) if len(marked) else None

    @property
    def fixed_goal(self) -> NDArray[np.int64]:
        """(2,) D4RL's fixed goal: the cell marked `G`, or the first free cell where none is."""
        return self.free_cells[0] if self.goal is None else self.goal

    @cached_property
    def longest_path(self) -> int:
        """Steps to the farthest cell from a cell that is itself farthest from the first: the longest shortest path of a maze
        without loops, and close to it with them."""
        first = self.distances(_cell(self.free_cells[0]))
        end = np.unravel_index(int(first.argmax()), self.shape)
        return int(self.distances((int(end[0]), int(end[1]))).max())

    @property
    def max_steps(self) -> int:
        """Length of an episode in steps of 0.01 s: D4RL's own for its mazes, else 50 per cell of the longest path, at least 300."""
        return D4RL_MAX_STEPS.get(self.rows, max(300, 50 * self.longest_path))

    def is_free(self, cell: Cell) -> bool:
        """Whether `cell` lies inside the map and has no wall."""
        i, j = cell
        return 0 <= i < self.shape[0] and 0 <= j < self.shape[1] and not bool(self.walls[i, j])

    def cell_at(self, position: NDArray[np.floating] | tuple[float, float]) -> Cell:
        """The cell whose walls surround `position` (x, y) in metres: it spans 0.5 m to each side of the true centre."""
        half = 0.5 - CENTRE_OFFSET
        return int(np.floor(position[0] + half)), int(np.floor(position[1] + half))

    def contains(self, positions: NDArray[np.floating]) -> NDArray[np.bool_]:
        """(n,) whether positions (n, 2) in metres lie in free cells."""
        cells = np.floor(np.asarray(positions) + (0.5 - CENTRE_OFFSET)).astype(np.int64)
        inside = np.asarray(((cells >= 0) & (cells < self.shape)).all(axis=-1))
        i, j = np.where(inside[:, None], cells, 0).T
        return np.asarray(inside & ~self.walls[i, j])

    def distances(self, goal: Cell) -> NDArray[np.int32]:
        """(H, W) steps from every cell to `goal` along free cells; -1 for walls."""
        fields = self._distance_fields
        if goal not in fields:
            if not self.is_free(goal):
                raise UserError(f"cell {goal} of maze '{self.name}' is not free; choose one of Maze.free_cells")
            if len(fields) >= _MAX_FIELDS:
                fields.clear()
            fields[goal] = _frozen(_breadth_first(self.walls, goal))
        return fields[goal]

    def shortest_path(self, start: Cell, goal: Cell) -> list[Cell]:
        """Cells of a shortest path, `start` and `goal` included; of equally short ones the one D4RL's controller takes."""
        distances = self.distances(goal)
        if not self.is_free(start):
            raise UserError(f"cell {start} of maze '{self.name}' is not free; choose one of Maze.free_cells")
        path = [start]
        while path[-1] != goal:
            i, j = path[-1]
            here = distances[i, j]
            path.append(next((i + di, j + dj) for di, dj in NEIGHBOURS if distances[i + di, j + dj] == here - 1))
        return path

    @cached_property
    def _distance_fields(self) -> dict[Cell, NDArray[np.int32]]:
        return {}

    def _cells_of(self, char: str) -> NDArray[np.int64]:
        found = [(i, j) for i, row in enumerate(self.rows) for j, c in enumerate(row) if c == char]
        return _frozen(np.array(found, dtype=np.int64).reshape(-1, 2))


def _breadth_first(walls: NDArray[np.bool_], goal: Cell) -> NDArray[np.int32]:
    """(H, W) distance to `goal`, -1 where it cannot be reached. The border of `walls` must be closed."""
    distances = np.full(walls.shape, -1, dtype=np.int32)
    distances[goal] = 0
    queue = deque([goal])
    while queue:
        i, j = queue.popleft()
        for di, dj in NEIGHBOURS:
            cell = (i + di, j + dj)
            if not walls[cell] and distances[cell] < 0:
                distances[cell] = distances[i, j] + 1
                queue.append(cell)
    return distances


def _check_shape(rows: tuple[str, ...]) -> None:
    if len(rows) < 3 or len(rows[0]) < 3:
        raise UserError(
            f"maze map is too small: {len(rows)} rows of {len(rows[0]) if rows else 0}, at least 3x3 with walls around; "
            r"write rows separated by '\', like '#####\#OOG#\#####'"
        )
    for index, row in enumerate(rows):
        if len(row) != len(rows[0]):
            raise UserError(
                f"maze map is ragged: row {index} has {len(row)} characters, row 0 has {len(rows[0])}; give all rows one length"
            )
    if len(rows) * len(rows[0]) > MAX_CELLS:
        raise UserError(f"maze map is too big: {len(rows)}x{len(rows[0])} cells, at most {MAX_CELLS} in all")


def _check_characters(rows: tuple[str, ...]) -> None:
    allowed = WALL + GOAL + START + FREE
    for i, row in enumerate(rows):
        for j, char in enumerate(row):
            if char not in allowed:
                raise UserError(
                    f"maze map has {char!r} in row {i}, column {j}; allowed: # wall, O 0 . or blank free, G goal, S start"
                )
    goals = sum(row.count(GOAL) for row in rows)
    if goals > 1:
        raise UserError(f"maze map has {goals} goals (G), at most one; mark the others O")


def _check_closed(walls: NDArray[np.bool_]) -> None:
    border = walls.copy()
    border[1:-1, 1:-1] = True
    if not border.all():
        i, j = np.argwhere(~border)[0]
        raise UserError(f"maze map is not closed: the border cell in row {i}, column {j} is free; put # there")


def _check_connected(maze: Maze) -> None:
    if len(maze.free_cells) == 0:
        raise UserError("maze map has no free cell; mark at least one O")
    lost = (_breadth_first(maze.walls, _cell(maze.free_cells[0])) < 0) & ~maze.walls
    if lost.any():
        i, j = np.argwhere(lost)[0]
        first = _cell(maze.free_cells[0])
        raise UserError(
            f"maze map is not connected: no way from cell {first} to cell ({i}, {j}); open a wall between them"
        )


def _cell(index: NDArray[np.integer]) -> Cell:
    return int(index[0]), int(index[1])


def _frozen(array: NDArray[Any]) -> NDArray[Any]:
    array.flags.writeable = False
    return array


_UMAZE = r"#####\#GOO#\###O#\#OOO#\#####"
_MEDIUM = r"########\#OO##OO#\#OO#OOO#\##OOO###\#OO#OOO#\#O#OO#O#\#OOO#OG#\########"
_LARGE = (
    r"############\#OOOO#OOOOO#\#O##O#O#O#O#\#OOOOOO#OOO#\#O####O###O#"
    r"\#OO#O#OOOOO#\##O#O#O#O###\#OO#OOO#OGO#\############"
)

D4RL_MAX_STEPS: dict[tuple[str, ...], int] = {
    tuple(_UMAZE.split("\\")): 300,
    tuple(_MEDIUM.split("\\")): 600,
    tuple(_LARGE.split("\\")): 800,
}

MAZES: dict[str, Maze] = {
    "umaze": Maze.from_ascii(_UMAZE, name="umaze"),
    "medium": Maze.from_ascii(_MEDIUM, name="medium"),
    "large": Maze.from_ascii(_LARGE, name="large"),
}
"""D4RL's three mazes by name."""
