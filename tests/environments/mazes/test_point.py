"""OGBench's PointMaze rebuilt: maps, tasks, oracle and every step are those of its own environment."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from diffusion_forcing.environments.mazes.point import (
    POINT_MAZES,
    TASKS,
    Point,
    as_point_maze,
    build_point_model,
    next_centres,
)
from diffusion_forcing.errors import UserError

NAMES = tuple(POINT_MAZES)


def theirs(name: str) -> Any:
    """OGBench's own environment."""
    gymnasium = pytest.importorskip("gymnasium")
    pytest.importorskip("ogbench.locomaze")
    return gymnasium.make(f"pointmaze-{name}-v0", terminate_at_goal=False).unwrapped


@pytest.mark.parametrize("name", NAMES)
def test_maps_tasks_and_oracle_are_ogbenchs(name: str) -> None:
    env, maze = theirs(name), POINT_MAZES[name]
    assert np.array_equal(env.maze_map.T, maze.walls)
    assert [(info["init_ij"][::-1], info["goal_ij"][::-1]) for info in env.task_infos] == list(TASKS[name])
    for i, j in maze.free_cells[:: len(maze.free_cells) // 4].tolist():
        aims = next_centres(maze, (i, j))
        for cell in maze.free_cells.tolist():
            aim, _ = env.get_oracle_subgoal(maze.centre(cell), maze.centre((i, j)))
            assert tuple(aim) == aims[cell[0]][cell[1]]


@pytest.mark.parametrize("name", NAMES)
def test_every_step_is_ogbenchs_also_along_walls_and_in_corners(name: str) -> None:
    env, maze = theirs(name), POINT_MAZES[name]
    env.reset(seed=0, options={"task_id": 1})
    point, rng, action, touched = Point(maze, build_point_model(maze)), np.random.default_rng(0), np.zeros(2), 0
    point.reset(env.get_xy(), np.zeros(2))
    for _ in range(500):
        action = np.clip(0.9 * action + 0.5 * rng.standard_normal(2), -1, 1)
        before = point.position.copy()
        env.step(action)
        point.step(action)
        touched += not np.array_equal(point.position, before + 0.2 * action)
        assert np.array_equal(point.position, env.get_xy())
    assert touched > 50


def test_the_disc_stays_clear_of_walls() -> None:
    maze = POINT_MAZES["medium"]
    point, rng = Point(maze, build_point_model(maze)), np.random.default_rng(1)
    point.reset(maze.centre((1, 1)), np.zeros(2))
    for action in np.repeat(rng.uniform(-1, 1, (60, 2)), 20, axis=0):
        point.step(action)
        around = point.position + 0.6 * np.array([(1, 0), (-1, 0), (0, 1), (0, -1)])
        assert maze.contains(around).all()


@pytest.mark.parametrize("env_id", ["pointmaze-giants-v0", "giant", "maze2d-large-v1"])
def test_an_unknown_maze_is_refused(env_id: str) -> None:
    with pytest.raises(UserError, match=r"dataset\.env_id .* is unknown; give pointmaze-\{medium,large,giant\}-v0"):
        as_point_maze(env_id)
