"""Pictures of mazes: the geometry is D4RL's, inputs are left alone, videos have the frames they should."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from diffusion_forcing.visualization import maze
from diffusion_forcing.visualization.maze import (
    FLOOR,
    HOLD,
    WALL,
    MazeFigure,
    draw_plans,
    video_of_execution,
    video_of_plan,
    video_of_tree,
)

MEDIUM = r"########\#OO##OO#\#OO#OOO#\##OOO###\#OO#OOO#\#O#OO#O#\#OOO#OG#\########"
WALLS = np.array([[letter == "#" for letter in row] for row in MEDIUM.split("\\")])
WIDE = np.ones((4, 7), bool)
WIDE[1:3, 1:6] = False
PLAN = np.linspace([1.0, 1.0], [2.0, 2.0], 40)
GOAL = (6.0, 6.0)


def rgb(colour: str) -> np.ndarray:
    return np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])


def figure_of(walls: np.ndarray, pixels: int = 300) -> MazeFigure:
    """The layout of an image of one plan."""
    return MazeFigure(walls, pixels, title=26)


def draw_plan(walls, plan, trajectory=None, start=None, goal=None, *, title: str = "", pixels: int = 300) -> np.ndarray:
    return draw_plans(walls, [plan], [trajectory], [start], [goal], titles=[title], pixels=pixels)


@pytest.mark.parametrize("walls", [WALLS, WIDE])
def test_walls_are_where_d4rl_has_them(walls: np.ndarray) -> None:
    """The box of cell (i, j) is the square of side 1 around (i - 0.2, j - 0.2): looked up at its centre and near its corners."""
    image, layout = draw_plan(walls, None, pixels=300), figure_of(walls)
    for (i, j), wall in np.ndenumerate(walls):
        for di, dj in [(0, 0), (-0.42, -0.42), (0.42, 0.42), (-0.42, 0.42), (0.42, -0.42)]:
            row, column = layout.pixel((i - 0.2 + di, j - 0.2 + dj))
            assert np.abs(image[row, column] - rgb(WALL if wall else FLOOR)).max() <= 2, (i, j, di, dj)


def test_rows_go_down_and_columns_go_right() -> None:
    layout = figure_of(WIDE)
    (row, column), (lower, same), (level, further) = (layout.pixel(p) for p in ((1, 1), (2, 1), (1, 2)))
    assert (lower > row, same, level, further > column) == (True, column, row, True)


def test_the_plan_is_drawn_where_it_goes() -> None:
    with_plan, without = (
        draw_plan(WALLS, PLAN, start=(1, 1), pixels=400),
        draw_plan(WALLS, None, start=(1, 1), pixels=400),
    )
    layout = figure_of(WALLS, 400)
    changed = (with_plan != without).any(axis=2)
    for point in PLAN[8:]:
        row, column = layout.pixel(point)
        assert changed[row, column]
    maze_area = changed[26 : 26 + 8 * layout.cell]
    assert maze_area.mean() < 0.05


def test_start_and_goal_are_marked_at_their_places() -> None:
    image = draw_plan(WALLS, None, start=(1.0, 1.0), goal=GOAL, pixels=400)
    layout = figure_of(WALLS, 400)
    for position, colour in (((1.0, 1.0), maze.START), (GOAL, maze.GOAL)):
        row, column = layout.pixel(position)
        assert np.abs(image[row, column].astype(int) - rgb(colour)).max() <= 3


def test_pictures_are_uint8_and_inputs_are_left_as_they_were() -> None:
    walls, plan, trajectory = WALLS.copy(), np.hstack([PLAN, PLAN]), PLAN + 0.1
    copies = [array.copy() for array in (walls, plan, trajectory)]
    image = draw_plan(walls, plan, trajectory, plan[0], np.array(GOAL), title="score $155_2$ 100 %")
    sheet = draw_plans(walls, [plan] * 3, [trajectory, None, trajectory], None, [GOAL] * 3, titles=["a", "b", "c"])
    video = video_of_plan(walls, np.stack([plan] * 3), plan[0], GOAL, levels=np.arange(12).reshape(3, 4))
    run = video_of_execution(walls, np.stack([plan] * 2), trajectory, GOAL, replan_every=20)
    for array, copy in zip((walls, plan, trajectory), copies, strict=True):
        assert (array == copy).all()
    for made, axes in ((image, 3), (sheet, 3), (video, 4), (run, 4)):
        assert made.dtype == np.uint8 and made.ndim == axes and made.shape[-1] == 3


def test_a_single_position_is_a_plan_too() -> None:
    assert draw_plan(WALLS, PLAN[:1], PLAN[:1], pixels=200).ndim == 3
    assert video_of_plan(WALLS, PLAN[None, :1], pixels=200).shape[0] == 1 + HOLD


@pytest.mark.parametrize(("count", "columns"), [(1, None), (5, 2), (8, 4)])
def test_a_sheet_shows_every_episode(count: int, columns: int | None) -> None:
    sheet = draw_plans(WALLS, [PLAN] * count, columns=columns, pixels=120)
    width = columns or 1
    cell = figure_of(WALLS, 120).cell
    assert sheet.shape[1] == width * (8 * cell + maze.GAP) + maze.GAP
    assert sheet.shape[0] >= -(-count // width) * 8 * cell


def test_films_have_their_frames_rest_at_the_end_and_have_even_sides() -> None:
    rows = np.stack([PLAN + shift for shift in np.linspace(1, 0, 7)])
    video = video_of_plan(WALLS, rows, PLAN[0], GOAL, pixels=200)
    assert video.shape[0] == 7 + HOLD
    assert video.shape[1] % 2 == video.shape[2] % 2 == 0
    assert (video[7:] == video[6]).all()
    assert all((a != b).any() for a, b in pairwise(video[:7]))


def test_a_tree_shows_its_newest_node_and_the_best_so_far() -> None:
    plans = np.stack([PLAN + shift for shift in (0.0, 0.6, 1.2)])
    video = video_of_tree(WALLS, plans, [0.0, 0.7, 0.2], PLAN[0], GOAL, pixels=200)
    assert video.shape[0] == 3 + HOLD and (video[3:] == video[2]).all()
    blue = np.array([255 * channel for channel in maze.TIME(0.0)[:3]])
    shown = [bool(np.abs(frame[: -MazeFigure.LEGEND] - blue).sum(-1).min() < 60) for frame in video[:3]]
    assert shown == [False, True, True]  # a plan without a reward is no best one


def test_long_films_are_thinned_and_keep_their_last_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maze, "FRAMES", 8)
    rows = np.repeat(PLAN[None, :5], 1000, axis=0)
    rows[-1] += 3.0
    video = video_of_plan(WALLS, rows, pixels=100)
    assert video.shape[0] == 8 + HOLD
    assert (video[-1] == video_of_plan(WALLS, rows, pixels=100)[-1]).all()
    assert (video[7] != video[6]).mean() > 0.001


def test_noise_levels_colour_the_tokens_they_belong_to() -> None:
    """Two tokens, one at the greatest level and one clean: the first half is drawn in the noise's colour, the second in the other."""
    plan = np.concatenate([np.full((5, 2), (1.0, 1.0)), np.full((5, 2), (4.0, 4.6))])
    video = video_of_plan(WALLS, plan[None], levels=[[50, 0]], pixels=400)
    layout = MazeFigure(WALLS, 400)
    for position, level in (((1.0, 1.0), 1.0), ((4.0, 4.6), 0.0)):
        row, column = layout.pixel(position)
        expected = 255 * np.array(maze.NOISE(level)[:3])
        assert np.abs(video[0, row, column] - expected).max() < 12


def test_the_execution_film_shows_the_plan_in_force_and_the_reached_goal() -> None:
    plans = np.stack([PLAN, PLAN + np.array([3.0, 0.0])])
    trajectory = np.concatenate([PLAN, np.full((1, 2), GOAL)])
    video = video_of_execution(WALLS, plans, trajectory, GOAL, replan_every=20, pixels=400)
    layout = MazeFigure(WALLS, 400)
    row, column = layout.pixel(PLAN[30] + np.array([3.0, 0.0]))
    assert (video[19, row, column] != video[20, row, column]).any()
    ring = layout.pixel((GOAL[0] - 0.5, GOAL[1]))
    assert np.abs(video[-1][ring].astype(int) - rgb(maze.START)).max() < 30
    assert np.abs(video[0][ring].astype(int) - rgb(maze.START)).max() > 30


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: draw_plan(np.zeros(4), PLAN), "walls"),
        (lambda: draw_plan(WALLS, np.zeros((4, 1))), "plan"),
        (lambda: draw_plan(WALLS, PLAN, goal=(1.0,)), "goal"),
        (lambda: draw_plans(WALLS, []), "equally long"),
        (lambda: draw_plans(WALLS, [PLAN], titles=["a", "b"]), "equally long"),
        (lambda: video_of_plan(WALLS, PLAN), "rows"),
        (lambda: video_of_plan(WALLS, PLAN[None], levels=np.zeros((2, 4))), "levels"),
    ],
)
def test_arrays_of_another_shape_are_refused_by_name(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
