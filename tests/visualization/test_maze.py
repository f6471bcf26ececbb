"""Pictures of mazes: the geometry is D4RL's, inputs are left alone, films have the frames they should."""

from __future__ import annotations

import time
from itertools import pairwise

import numpy as np
import pytest

from diffusion_forcing.visualization import maze as canvas
from diffusion_forcing.visualization.maze import (
    FLOOR,
    FRAMES,
    HOLD,
    WALL,
    MazeFigure,
    cell_pixels,
    draw_plan,
    draw_plans,
    film_of_execution,
    film_of_plan,
)

MEDIUM = r"########\#OO##OO#\#OO#OOO#\##OOO###\#OO#OOO#\#O#OO#O#\#OOO#OG#\########"
WALLS = np.array([[letter == "#" for letter in row] for row in MEDIUM.split("\\")])
WIDE = np.ones((4, 7), bool)
WIDE[1:3, 1:6] = False
PLAN = np.linspace([1.0, 1.0], [2.0, 2.0], 40)
GOAL = (6.0, 6.0)


def rgb(colour: str) -> np.ndarray:
    return np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])


def figure_of(walls: np.ndarray) -> MazeFigure:
    return MazeFigure(walls, cell=cell_pixels(walls, 300))


@pytest.mark.parametrize("walls", [WALLS, WIDE])
def test_walls_are_where_d4rl_has_them(walls: np.ndarray) -> None:
    """The box of cell (i, j) is the square of side 1 around (i - 0.2, j - 0.2): looked up at its centre and near its corners."""
    picture, layout = draw_plan(walls, None, pixels=300), figure_of(walls)
    for (i, j), wall in np.ndenumerate(walls):
        for di, dj in [(0, 0), (-0.42, -0.42), (0.42, 0.42), (-0.42, 0.42), (0.42, -0.42)]:
            row, column = layout.pixel((i - 0.2 + di, j - 0.2 + dj))
            assert np.abs(picture[row, column] - rgb(WALL if wall else FLOOR)).max() <= 2, (i, j, di, dj)


def test_rows_go_down_and_columns_go_right() -> None:
    layout = figure_of(WIDE)
    (row, column), (lower, same), (level, further) = (layout.pixel(p) for p in ((1, 1), (2, 1), (1, 2)))
    assert (lower > row, same, level, further > column) == (True, column, row, True)


def test_the_plan_is_drawn_where_it_goes() -> None:
    with_plan, without = (
        draw_plan(WALLS, PLAN, start=(1, 1), pixels=400),
        draw_plan(WALLS, None, start=(1, 1), pixels=400),
    )
    layout = MazeFigure(WALLS, cell=cell_pixels(WALLS, 400))
    changed = (with_plan != without).any(axis=2)
    for point in PLAN[8:]:
        row, column = layout.pixel(point)
        assert changed[row, column]
    maze_area = changed[layout.title : layout.title + 8 * layout.cell]
    assert maze_area.mean() < 0.05


def test_start_and_goal_are_marked_at_their_places() -> None:
    picture = draw_plan(WALLS, None, start=(1.0, 1.0), goal=GOAL, pixels=400)
    layout = MazeFigure(WALLS, cell=cell_pixels(WALLS, 400))
    for position, colour in (((1.0, 1.0), canvas.START), (GOAL, canvas.GOAL)):
        row, column = layout.pixel(position)
        assert np.abs(picture[row, column].astype(int) - rgb(colour)).max() <= 3


def test_pictures_are_uint8_and_inputs_are_left_as_they_were() -> None:
    walls, plan, trajectory = WALLS.copy(), np.hstack([PLAN, PLAN]), PLAN + 0.1
    copies = [array.copy() for array in (walls, plan, trajectory)]
    picture = draw_plan(walls, plan, trajectory, plan[0], np.array(GOAL), title="score $155_2$ 100 %")
    sheet = draw_plans(walls, [plan] * 3, [trajectory, None, trajectory], None, [GOAL] * 3, titles=["a", "b", "c"])
    film = film_of_plan(walls, np.stack([plan] * 3), plan[0], GOAL, levels=np.arange(12).reshape(3, 4))
    run = film_of_execution(walls, np.stack([plan] * 2), trajectory, GOAL)
    for array, copy in zip((walls, plan, trajectory), copies, strict=True):
        assert (array == copy).all()
    for made, axes in ((picture, 3), (sheet, 3), (film, 4), (run, 4)):
        assert made.dtype == np.uint8 and made.ndim == axes and made.shape[-1] == 3


def test_a_single_position_is_a_plan_too() -> None:
    assert draw_plan(WALLS, PLAN[:1], PLAN[:1], pixels=200).ndim == 3
    assert film_of_plan(WALLS, PLAN[None, :1], pixels=200).shape[0] == 1 + HOLD


@pytest.mark.parametrize(("count", "columns"), [(1, None), (5, 2), (8, 4)])
def test_a_sheet_shows_every_episode(count: int, columns: int | None) -> None:
    sheet = draw_plans(WALLS, [PLAN] * count, columns=columns, pixels=120)
    width = columns or 1
    cell = cell_pixels(WALLS, 120)
    assert sheet.shape[1] == width * (8 * cell + canvas.GAP) + canvas.GAP
    assert sheet.shape[0] >= -(-count // width) * 8 * cell


def test_films_have_their_frames_rest_at_the_end_and_have_even_sides() -> None:
    rows = np.stack([PLAN + shift for shift in np.linspace(1, 0, 7)])
    film = film_of_plan(WALLS, rows, PLAN[0], GOAL, pixels=200)
    assert film.shape[0] == 7 + HOLD
    assert film.shape[1] % 2 == film.shape[2] % 2 == 0
    assert (film[7:] == film[6]).all()
    assert all((a != b).any() for a, b in pairwise(film[:7]))


def test_long_films_are_thinned_and_keep_their_last_row() -> None:
    rows = np.repeat(PLAN[None, :5], 1000, axis=0)
    rows[-1] += 3.0
    film = film_of_plan(WALLS, rows, pixels=100)
    assert film.shape[0] == FRAMES + HOLD
    assert (film[-1] == film_of_plan(WALLS, rows, pixels=100)[-1]).all()
    assert (film[FRAMES - 1] != film[FRAMES - 2]).mean() > 0.001


def test_noise_levels_colour_the_tokens_they_belong_to() -> None:
    """Two tokens, one at the greatest level and one clean: the first half is drawn in the noise's colour, the second in the other."""
    plan = np.concatenate([np.full((5, 2), (1.0, 1.0)), np.full((5, 2), (4.0, 4.6))])
    film = film_of_plan(WALLS, plan[None], levels=[[50, 0]], pixels=400)
    layout = MazeFigure(WALLS, cell=cell_pixels(WALLS, 400))
    for position, level in (((1.0, 1.0), 1.0), ((4.0, 4.6), 0.0)):
        row, column = layout.pixel(position)
        expected = 255 * np.array(canvas.NOISE(level)[:3])
        assert np.abs(film[0, row, column] - expected).max() < 12


def test_the_execution_film_shows_the_plan_in_force_and_the_reached_goal() -> None:
    plans = np.stack([PLAN, PLAN + np.array([3.0, 0.0])])
    trajectory = np.concatenate([PLAN, np.full((1, 2), GOAL)])
    film = film_of_execution(WALLS, plans, trajectory, GOAL, replan_every=20, pixels=400)
    layout = MazeFigure(WALLS, cell=cell_pixels(WALLS, 400))
    row, column = layout.pixel(PLAN[30] + np.array([3.0, 0.0]))
    assert (film[19, row, column] != film[20, row, column]).any()
    ring = layout.pixel((GOAL[0] - 0.5, GOAL[1]))
    assert np.abs(film[-1][ring].astype(int) - rgb(canvas.START)).max() < 30
    assert np.abs(film[0][ring].astype(int) - rgb(canvas.START)).max() > 30


def test_a_film_of_110_rows_takes_less_than_6_seconds() -> None:
    rows = np.random.default_rng(0).normal(3, 1, (110, 600, 2))
    began = time.perf_counter()
    film_of_plan(WALLS, rows, PLAN[0], GOAL, levels=np.zeros((110, 60)))
    assert time.perf_counter() - began < 6


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: draw_plan(np.zeros(4), PLAN), "walls"),
        (lambda: draw_plan(WALLS, np.zeros((4, 1))), "plan"),
        (lambda: draw_plan(WALLS, PLAN, goal=(1.0,)), "goal"),
        (lambda: draw_plans(WALLS, []), "equally long"),
        (lambda: draw_plans(WALLS, [PLAN], titles=["a", "b"]), "equally long"),
        (lambda: film_of_plan(WALLS, PLAN), "rows"),
        (lambda: film_of_plan(WALLS, PLAN[None], levels=np.zeros((2, 4))), "levels"),
    ],
)
def test_arrays_of_another_shape_are_refused_by_name(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
