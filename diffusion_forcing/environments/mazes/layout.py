"""Maps of mazes, written as text: `#` wall; `O`, `0`, `.` and blank free; `G` the goal and `S` a start, both free.

Cell (i, j) is row i and column j of the text. Positions (x, y) are in metres, x along the rows (i) and y along the
columns (j), as in D4RL. A cell is `unit` metres wide and midway between its walls at `unit`·(i, j) + `offset`: in
OGBench's mazes at 4·(i - 1, j - 1). D4RL's cells of 1 m have two centres. The *nominal* one is the integer (i, j): D4RL
draws starts, goals and waypoints around it. The *true* one is (i - 0.2, j - 0.2), because D4RL's particle starts at
world (1.2, 1.2) while walls stand at integers + 1.

A maze must be closed, so that the agent cannot leave it, and connected, so that every goal can be reached.
"""

from __future__ import annotations

import hashlib
import re
from collections import deque
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_forcing.errors import UserError, did_you_mean, require

WALL = "#"
GOAL = "G"
START = "S"
FREE = "O0. "
CENTRE_OFFSET = -0.2
"""Metres from a D4RL cell's nominal centre (its integer index) to its true centre, on both axes."""
FRAMES = {"ball": (1.0, CENTRE_OFFSET), "point": (4.0, -4.0)}
"""Unit and offset, in metres, of the mazes of D4RL's ball and of OGBench's point."""
NEIGHBOURS = ((0, -1), (0, 1), (-1, 0), (1, 0))
"""Moves (di, dj), in the order in which D4RL prefers them among equally short paths."""
MAX_CELLS = 10_000
"""Largest map. Each wall is one geometry of the simulator, and larger models take too long to build."""
_MAX_FIELDS = 1000
"""Distance fields kept in memory: 40 MB for the largest map."""

Cell = tuple[int, int]


@dataclass(frozen=True)
class Maze:
    """A closed and connected maze, `rows` of text of equal length; build it with `Maze.from_ascii`.

    unit: side of a cell in metres. offset: metres on both axes of the true centre of cell (0, 0).
    """

    rows: tuple[str, ...]
    name: str = "custom"
    unit: float = 1.0
    offset: float = CENTRE_OFFSET

    def __post_init__(self) -> None:
        _check_text(self.rows)
        _check_closed(self.walls)
        _check_connected(self.walls)

    @classmethod
    def from_ascii(cls, text: str, *, name: str = "custom", unit: float = 1.0, offset: float = CENTRE_OFFSET) -> Maze:
        r"""Read a maze from rows separated by newlines or `\`; blank lines and a common indentation are ignored.

        Raises `UserError` for a map that is empty, ragged, too large, not closed, not connected, or has an unknown
        character or two goals.
        """
        rows = [row for row in re.split(r"[\\\r\n]+", text) if row.strip()]
        indent = min((len(row) - len(row.lstrip()) for row in rows), default=0)
        return cls(rows=tuple(row[indent:] for row in rows), name=name, unit=unit, offset=offset)

    @property
    def text(self) -> str:
        r"""The rows joined by `\`, as D4RL writes a maze."""
        return "\\".join(self.rows)

    @property
    def digest(self) -> str:
        """`custom-` and eight hexadecimal digits that stand for the map."""
        return f"custom-{hashlib.sha256(self.text.encode()).hexdigest()[:8]}"

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
        """(n, 2) cells (i, j) without a wall, row by row."""
        return _frozen(np.argwhere(~self.walls))

    @cached_property
    def start_cells(self) -> NDArray[np.int64]:
        """(n, 2) cells in which an episode may start: those marked `S`, or all free cells if none is."""
        marked = self._cells_of(START)
        return marked if len(marked) else self.free_cells

    @cached_property
    def goal(self) -> NDArray[np.int64] | None:
        """(2,) the cell marked `G`, or None."""
        marked = self._cells_of(GOAL)
        return _frozen(marked[0]) if len(marked) else None

    @property
    def fixed_goal(self) -> NDArray[np.int64]:
        """(2,) D4RL's fixed goal: the cell marked `G`, or the first free cell if none is."""
        return self.free_cells[0] if self.goal is None else self.goal

    @cached_property
    def longest_path(self) -> int:
        """Length of the longest shortest path, in cells: exact in a maze without loops, close to it otherwise."""
        # The cell farthest from any cell is one end of the longest path; the cell farthest from that end is the other.
        from_first = self.distances(_cell(self.free_cells[0]))
        end = np.unravel_index(int(from_first.argmax()), self.shape)
        return int(self.distances((int(end[0]), int(end[1]))).max())

    @property
    def max_steps(self) -> int:
        """Steps of an episode, 0.01 s each: D4RL's for its mazes, else 50 a cell of the longest path, at least 300."""
        return D4RL_MAX_STEPS.get(self.rows, max(300, 50 * self.longest_path))

    @property
    def spread(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Mean and standard deviation (2,) in metres of positions spread evenly over the free cells."""
        centres = self.centre(self.free_cells)
        return centres.mean(axis=0), np.sqrt(centres.var(axis=0) + self.unit**2 / 12)

    def is_free(self, cell: Cell) -> bool:
        """Whether `cell` lies inside the map and has no wall."""
        i, j = cell
        return 0 <= i < self.shape[0] and 0 <= j < self.shape[1] and not bool(self.walls[i, j])

    def centre(self, cell: Cell | NDArray[np.integer]) -> NDArray[np.float64]:
        """(..., 2) m: the true centres of cells (..., 2)."""
        return self.unit * np.asarray(cell, dtype=np.float64) + self.offset

    def in_cells(self, positions: NDArray[np.floating] | tuple[float, float]) -> NDArray[np.float64]:
        """(..., 2) positions in metres as cells: the true centre of cell (i, j) becomes (i, j)."""
        return (np.asarray(positions, dtype=np.float64) - self.offset) / self.unit

    def on_map(self, positions: NDArray[np.floating]) -> NDArray[np.float64]:
        """(..., 2) positions in metres as D4RL would have them in a maze of this map: cells of 1 m, for drawings."""
        return self.in_cells(positions) + CENTRE_OFFSET

    def cell_at(self, position: NDArray[np.floating] | tuple[float, float]) -> Cell:
        """The cell that contains `position` (x, y) in metres; it spans half a unit to each side of its true centre."""
        i, j = np.floor(self.in_cells(position) + 0.5)
        return int(i), int(j)

    def contains(self, positions: NDArray[np.floating]) -> NDArray[np.bool_]:
        """(n,) whether positions (n, 2) in metres lie in free cells."""
        cells = np.floor(self.in_cells(positions) + 0.5).astype(np.int64)
        inside = np.asarray(((cells >= 0) & (cells < self.shape)).all(axis=-1))
        i, j = np.where(inside[:, None], cells, 0).T
        return np.asarray(inside & ~self.walls[i, j])

    def distances(self, goal: Cell) -> NDArray[np.int32]:
        """(H, W) number of moves from every cell to `goal`; -1 for walls. `UserError` if `goal` is a wall."""
        fields = self._distance_fields
        if goal not in fields:
            self._check_free(goal)
            if len(fields) >= _MAX_FIELDS:
                fields.clear()
            fields[goal] = _frozen(breadth_first(self.walls, goal))
        return fields[goal]

    def shortest_path(self, start: Cell, goal: Cell) -> list[Cell]:
        """Cells of a shortest path, both ends included; of equally short ones the one of D4RL's controller."""
        distances = self.distances(goal)
        self._check_free(start)
        path = [start]
        while path[-1] != goal:
            i, j = path[-1]
            here = distances[i, j]
            path.append(next((i + di, j + dj) for di, dj in NEIGHBOURS if distances[i + di, j + dj] == here - 1))
        return path

    @cached_property
    def _distance_fields(self) -> dict[Cell, NDArray[np.int32]]:
        return {}

    def _check_free(self, cell: Cell) -> None:
        if not self.is_free(cell):
            raise UserError(f"cell {cell} of maze '{self.name}' is not free; choose one of Maze.free_cells")

    def _cells_of(self, char: str) -> NDArray[np.int64]:
        found = [(i, j) for i, row in enumerate(self.rows) for j, c in enumerate(row) if c == char]
        return _frozen(np.array(found, dtype=np.int64).reshape(-1, 2))


def options_of_map(text: Any, body: str, frame_skip: Any = 1) -> dict[str, Any]:
    """What a data set of a maze of one's own needs to know of its map: env_id, with a digest of the map; episode_len,
    enough planned steps for the longest way, in twenties; observation_mean and observation_std of positions.

    body: `ball` or `point`. `UserError` for a map that is no maze.
    """
    if not isinstance(text, str):
        raise UserError(r"dataset.maze_map has no value; give your maze as text: dataset.maze_map='#####\#OOG#\#####'")
    unit, offset = FRAMES[body]
    skip = frame_skip if isinstance(frame_skip, int) and frame_skip > 0 else 1  # another is refused later
    try:
        maze = Maze.from_ascii(text, unit=unit, offset=offset)
    except UserError as error:
        raise UserError(f"dataset.maze_map: {error}") from error
    steps = maze.max_steps if body == "ball" else 30 * maze.longest_path + 50
    mean, std = (np.round(values, 4).tolist() for values in maze.spread)
    return {
        "env_id": f"{'maze2d' if body == 'ball' else 'pointmaze'}-{maze.digest}-v1",
        "episode_len": -(-steps // (20 * skip)) * 20,
        "observation_mean": mean,
        "observation_std": std,
    }


def breadth_first(walls: NDArray[np.bool_], goal: Cell) -> NDArray[np.int32]:
    """(H, W) number of moves to `goal`, -1 where there is no path. The border of `walls` must be closed."""
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


def _check_text(rows: tuple[str, ...]) -> None:
    """Size and characters of a map."""
    if len(rows) < 3 or len(rows[0]) < 3:
        raise UserError(
            f"maze map is too small: {len(rows)}x{len(rows[0]) if rows else 0}, at least 3x3 with walls around; "
            r"separate rows by '\', like '#####\#OOG#\#####'"
        )
    for i, row in enumerate(rows):
        if len(row) != len(rows[0]):
            raise UserError(f"maze map is ragged: row {i} has {len(row)} characters, row 0 has {len(rows[0])}")
        for j, char in enumerate(row):
            if char not in WALL + GOAL + START + FREE:
                raise UserError(
                    f"maze map has {char!r} in row {i}, column {j}; allowed: # wall, O 0 . or blank, G goal, S start"
                )
    if len(rows) * len(rows[0]) > MAX_CELLS:
        raise UserError(f"maze map is too big: {len(rows)}x{len(rows[0])} cells, at most {MAX_CELLS} in all")
    goals = "".join(rows).count(GOAL)
    require(goals <= 1, f"maze map has {goals} goals (G), at most one is allowed; mark the others O")


def _check_closed(walls: NDArray[np.bool_]) -> None:
    border = walls.copy()
    border[1:-1, 1:-1] = True
    if not border.all():
        i, j = np.argwhere(~border)[0]
        raise UserError(f"maze map is not closed: the border cell in row {i}, column {j} is free; put # there")


def _check_connected(walls: NDArray[np.bool_]) -> None:
    free = np.argwhere(~walls)
    require(len(free) != 0, "maze map has no free cell; mark at least one O")
    unreachable = np.argwhere((breadth_first(walls, _cell(free[0])) < 0) & ~walls)
    if len(unreachable):
        start, end = _cell(free[0]), _cell(unreachable[0])
        raise UserError(f"maze map is not connected: no path from cell {start} to cell {end}; open a wall between them")


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


def maze_of_id(env_id: str) -> Maze:
    """The maze of an id like maze2d-medium-v1; `UserError` for another one."""
    if not (env_id.startswith("maze2d-") and env_id.endswith("-v1")):
        raise UserError(
            f"dataset.env_id {env_id!r} is unknown; give maze2d-{{umaze,medium,large}}-v1 or dataset.maze_map"
        )
    return as_maze(env_id)


def as_maze(maze: Maze | str) -> Maze:
    """The maze of a name in `MAZES`, an id like maze2d-medium-v1, or an ASCII map; otherwise `UserError`."""
    if isinstance(maze, Maze):
        return maze
    if WALL in maze:
        return Maze.from_ascii(maze)
    name = maze.removeprefix("maze2d-").removesuffix("-v1")
    if name not in MAZES:
        raise UserError(
            f"unknown maze {maze!r}; choose one of {', '.join(MAZES)} or give an ASCII map{did_you_mean(name, MAZES)}"
        )
    return MAZES[name]
