"""Reading maps, refusing bad ones, and shortest ways through them."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from diffusion_forcing.environments.mazes.layout import MAZES, Maze, options_of_map
from diffusion_forcing.errors import UserError

SMALL = r"#####\#OOG#\#O#O#\#####"


def text_of(free: np.ndarray) -> str:
    return "\n".join("".join(".#"[1 - int(cell)] for cell in row) for row in free)


@st.composite
def closed_maps(draw: st.DrawFn) -> np.ndarray:
    """(H, W) bool, True where free; the border is wall, the rest anything."""
    height, width = draw(st.integers(3, 7)), draw(st.integers(3, 7))
    free = np.zeros((height, width), dtype=bool)
    free[1:-1, 1:-1] = draw(arrays(bool, (height - 2, width - 2)))
    return free


def reachable(free: np.ndarray, start: tuple[int, int]) -> np.ndarray:
    """Flood fill by repeated dilation: slow and obviously right."""
    filled = np.zeros_like(free)
    filled[start] = True
    while True:
        grown = filled.copy()
        for axis in (0, 1):
            for shift in (-1, 1):
                grown |= np.roll(filled, shift, axis)
        grown &= free
        if (grown == filled).all():
            return filled
        filled = grown


def test_the_three_mazes_have_d4rls_sizes_goals_and_episode_lengths() -> None:
    assert {name: maze.shape for name, maze in MAZES.items()} == {"umaze": (5, 5), "medium": (8, 8), "large": (9, 12)}
    assert {name: tuple(maze.fixed_goal) for name, maze in MAZES.items()} == {
        "umaze": (1, 1),
        "medium": (6, 6),
        "large": (7, 9),
    }
    assert {name: maze.max_steps for name, maze in MAZES.items()} == {"umaze": 300, "medium": 600, "large": 800}
    assert {name: len(maze.free_cells) for name, maze in MAZES.items()} == {"umaze": 7, "medium": 26, "large": 46}


def test_a_map_reads_the_same_with_backslashes_and_with_newlines_and_indentation() -> None:
    block = "\n    " + SMALL.replace("\\", "\n    ") + "\n"
    assert (
        Maze.from_ascii(block).rows == Maze.from_ascii(SMALL).rows == Maze.from_ascii(SMALL.replace("\\", "\\\\")).rows
    )


def test_a_blank_is_a_free_cell() -> None:
    assert len(Maze.from_ascii("#####\n#   #\n#####").free_cells) == 3


def test_starts_are_the_marked_cells_or_all_free_ones() -> None:
    assert Maze.from_ascii(r"#####\#SOG#\#####").start_cells.tolist() == [[1, 1]]
    assert Maze.from_ascii(r"#####\#OOG#\#####").start_cells.tolist() == [[1, 1], [1, 2], [1, 3]]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "too small"),
        ("###", "too small"),
        (r"####\#O#\####", "ragged: row 1 has 3"),
        (r"#####\#OXO#\#####", "'X' in row 1, column 2"),
        (r"#####\#GOG#\#####", "2 goals"),
        (r"###\###\###", "no free cell"),
        (r"#####\#OOO \#####", "not closed: the border cell in row 1, column 4"),
        (r"#####\#OOO#\##O##", "not closed: the border cell in row 2, column 2"),
        (r"#####\#O#O#\#####", "not connected: no path from cell (1, 1) to cell (1, 3)"),
        ("\n".join("#" * 101 for _ in range(100)), "too big"),
    ],
)
def test_a_bad_map_is_refused_in_one_line_that_says_where(text: str, words: str) -> None:
    with pytest.raises(UserError) as caught:
        Maze.from_ascii(text)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@settings(max_examples=60, deadline=None)
@given(closed_maps())
def test_a_map_is_accepted_exactly_when_every_free_cell_reaches_every_other(free: np.ndarray) -> None:
    assume(free.any())
    connected = (reachable(free, tuple(np.argwhere(free)[0])) == free).all()
    if connected:
        maze = Maze.from_ascii(text_of(free))
        assert (maze.walls == ~free).all()
    else:
        with pytest.raises(UserError, match="not connected"):
            Maze.from_ascii(text_of(free))


@settings(max_examples=30, deadline=None)
@given(closed_maps(), st.data())
def test_opening_any_border_cell_is_refused_as_not_closed(free: np.ndarray, data: st.DataObject) -> None:
    border = np.argwhere(np.pad(np.zeros((free.shape[0] - 2, free.shape[1] - 2)), 1, constant_values=1) > 0)
    i, j = border[data.draw(st.integers(0, len(border) - 1))]
    free[i, j] = True
    with pytest.raises(UserError, match=rf"not closed: the border cell in row {i}, column {j}"):
        Maze.from_ascii(text_of(free))


@settings(max_examples=40, deadline=None)
@given(closed_maps(), st.data())
def test_paths_walk_free_neighbours_and_no_shorter_one_exists(free: np.ndarray, data: st.DataObject) -> None:
    assume(free.any())
    keep = reachable(free, tuple(np.argwhere(free)[0]))
    maze = Maze.from_ascii(text_of(keep))
    cells = [(int(i), int(j)) for i, j in maze.free_cells]
    start, goal = data.draw(st.sampled_from(cells)), data.draw(st.sampled_from(cells))
    path = maze.shortest_path(start, goal)
    assert path[0] == start and path[-1] == goal
    assert all(abs(a[0] - b[0]) + abs(a[1] - b[1]) == 1 and maze.is_free(b) for a, b in pairwise(path))
    # powers of the adjacency matrix: a walk of n steps exists, none of fewer
    walk = np.array([[abs(a[0] - b[0]) + abs(a[1] - b[1]) == 1 for b in cells] for a in cells])
    reached = np.eye(len(cells), dtype=bool)
    for _ in range(len(path) - 1):
        assert not reached[cells.index(start), cells.index(goal)]
        reached = reached @ walk
    assert reached[cells.index(start), cells.index(goal)]


def test_of_equally_short_paths_the_one_of_d4rls_action_order_is_taken() -> None:
    room = Maze.from_ascii(r"#####\#OOO#\#OOO#\#OOO#\#####")
    assert room.shortest_path((1, 1), (3, 3)) == [(1, 1), (1, 2), (1, 3), (2, 3), (3, 3)]
    assert room.shortest_path((3, 3), (1, 1)) == [(3, 3), (3, 2), (3, 1), (2, 1), (1, 1)]


def test_a_path_to_a_wall_is_refused() -> None:
    with pytest.raises(UserError, match="not free"):
        MAZES["umaze"].shortest_path((1, 1), (0, 0))
    with pytest.raises(UserError, match="not free"):
        MAZES["umaze"].shortest_path((0, 0), (1, 1))


def test_a_position_belongs_to_the_cell_between_whose_walls_it_lies() -> None:
    maze = MAZES["umaze"]
    # the free band of cell (1, 1) is 0.4 to 1.2, walls of 0.1 m around it
    assert maze.cell_at((0.31, 1.29)) == (1, 1)
    assert maze.cell_at((0.29, 1.0)) == (0, 1)
    points = np.array([[0.31, 1.29], [0.29, 1.0], [2.0, 1.0], [-5.0, 1.0], [1.0, 99.0]])
    assert maze.contains(points).tolist() == [True, False, False, False, False]


def test_arrays_of_a_maze_cannot_be_written() -> None:
    with pytest.raises(ValueError, match="read-only"):
        MAZES["umaze"].walls[0, 0] = False


def test_the_longest_path_gives_a_custom_maze_its_episode_length() -> None:
    corridor = Maze.from_ascii("#" * 32 + "\n#" + "O" * 30 + "#\n" + "#" * 32)
    assert corridor.longest_path == 29
    assert corridor.max_steps == 50 * 29


def test_what_a_data_set_needs_follows_from_a_map_of_ones_own() -> None:
    corridor = r"#######\#OOOOO#\#######"
    ball, point = (options_of_map(corridor, body, skip) for body, skip in (("ball", 1), ("point", 5)))
    assert ball["episode_len"] == 300 and point["episode_len"] == 40
    # positions spread evenly over the corridor, 1 by 5 cells
    centre, spread = np.array([1.0, 3.0]), np.array([1, 5]) / np.sqrt(12)
    np.testing.assert_allclose([ball["observation_mean"], ball["observation_std"]], [centre - 0.2, spread], atol=1e-4)
    np.testing.assert_allclose(
        [point["observation_mean"], point["observation_std"]], [4 * centre - 4, 4 * spread], atol=1e-4
    )
    other = options_of_map(corridor.replace("OOOOO", "OOOO#"), "ball")
    assert ball["env_id"].startswith("maze2d-custom-") and ball["env_id"] != other["env_id"]


@pytest.mark.parametrize(("text", "message"), [(None, "has no value; give your maze"), (r"###\#O#", "too small")])
def test_a_data_set_of_no_maze_is_refused(text: object, message: str) -> None:
    with pytest.raises(UserError, match=f"dataset.maze_map.* {message}"):
        options_of_map(text, "ball")
