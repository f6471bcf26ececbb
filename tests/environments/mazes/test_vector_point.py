"""Episodes in PointMaze: OGBench's tasks under both protocols, what ends them, its own simulator, and the oracle."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from diffusion_forcing.environments.mazes.point import (
    POINT_MAZES,
    TASKS,
    VectorPointMaze,
    point_maze,
    point_oracle_rewards,
    task_numbers,
)
from diffusion_forcing.errors import UserError

MEDIUM, GIANT = POINT_MAZES["medium"], POINT_MAZES["giant"]


def test_episodes_play_the_five_tasks_in_turn_with_the_protocols_noise() -> None:
    cells = np.array([TASKS["giant"][episode % 5] for episode in range(40)])
    for protocol, noise in (("ogbench", 1.0), ("mctd", 0.0)):
        env = VectorPointMaze(GIANT, 40, protocol=protocol)  # type: ignore[arg-type]
        starts, info = env.reset(seed=3)
        off = np.abs(np.stack([starts, info["goal"]], axis=1) - GIANT.centre(cells))
        assert off.max() <= noise and off.max() >= 0.9 * noise
    assert task_numbers(GIANT, 7, "dataset").tolist() == [1, 2, 3, 4, 5, 1, 2]  # type: ignore[union-attr]
    assert (
        task_numbers(GIANT, 7, "random") is None and task_numbers(point_maze(r"####\#OO#\####"), 7, "dataset") is None
    )


def test_an_episode_is_the_same_in_every_group() -> None:
    together, _ = VectorPointMaze(MEDIUM, 4, goal="random").reset(seed=5)
    alone, _ = VectorPointMaze(MEDIUM, 1, goal="random").reset(seed=5, options={"first_episode": 2})
    assert np.array_equal(alone[0], together[2])


def test_lengths_of_episodes() -> None:
    steps = [VectorPointMaze(maze, 1, protocol="mctd").max_steps for maze in POINT_MAZES.values()]
    assert steps == [500, 500, 1000]
    assert all(VectorPointMaze(maze, 1).max_steps == 1000 for maze in POINT_MAZES.values())
    corridor = point_maze("#" * 52 + "\\#" + "O" * 50 + "#\\" + "#" * 52)
    assert VectorPointMaze(corridor, 1).max_steps == 32 * 49


def test_random_goals_lie_in_another_cell_and_a_maze_of_ones_own_has_its_fixed_goal() -> None:
    tiny = point_maze(r"#####\#SOG#\#####")
    env = VectorPointMaze(tiny, 30, goal="random")
    starts, info = env.reset(seed=0)
    assert {tiny.cell_at(start) for start in starts} == {(1, 1)}
    assert {tiny.cell_at(goal) for goal in info["goal"]} == {(1, 2), (1, 3)}
    _, info = VectorPointMaze(tiny, 30).reset(seed=0)
    assert {tiny.cell_at(goal) for goal in info["goal"]} == {(1, 3)}


def test_ogbenchs_environments_take_the_same_steps() -> None:
    pytest.importorskip("ogbench.locomaze")
    ours, theirs = (VectorPointMaze(MEDIUM, 2, simulator=simulator) for simulator in ("built_in", "ogbench"))  # type: ignore[arg-type]
    assert np.array_equal(ours.reset(seed=1)[0], theirs.reset(seed=1)[0])
    rng = np.random.default_rng(0)
    for actions in np.repeat(rng.uniform(-1.5, 1.5, (6, 2, 2)), 15, axis=0):
        for one, other in zip(ours.step(actions), theirs.step(actions), strict=True):
            assert (
                one["success"].tolist() == other["success"].tolist()
                if isinstance(one, dict)
                else np.array_equal(one, other)
            )


def test_the_oracle_reaches_every_goal_at_the_known_pace() -> None:
    rewards = point_oracle_rewards(VectorPointMaze(GIANT, 10), seed=0)
    assert (rewards.sum(axis=1) == 1).all()
    steps = rewards.argmax(axis=1).reshape(2, 5).mean(axis=0) + 1
    np.testing.assert_allclose(steps, [488, 437, 463, 422, 273], atol=15)  # OGBench's own oracle, goals without noise


@pytest.mark.parametrize(
    ("point", "message"),
    [
        ((0.0, 8.0), r"goals\[0\] \(0, 8\) lies in a wall of maze 'medium'; the nearest free place is \[0,4\]$"),
        (
            (0.0, 99.0),
            r"goals\[0\] \(0, 99\) lies outside maze 'medium': x is -6 to 26 m, y -6 to 26 m; the nearest .* \[0,20\]",
        ),
        ((np.nan, 0.0), r"goals\[0\] must be two finite numbers"),
    ],
)
def test_a_goal_that_cannot_be_reached_is_refused(point: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        VectorPointMaze(MEDIUM, 1).reset(options={"goals": [point]})


@pytest.mark.parametrize("changes", [{"protocol": "own"}, {"simulator": "mujoco"}, {"max_steps": 0}, {"goal": "far"}])
def test_unknown_ways_to_play_are_refused(changes: Any) -> None:
    with pytest.raises(UserError):
        VectorPointMaze(MEDIUM, 1, **changes)


def test_their_simulator_has_only_their_mazes() -> None:
    with pytest.raises(
        UserError, match="maze of simulator=ogbench 'custom' is unknown; choose one of medium, large, giant"
    ):
        VectorPointMaze(point_maze(r"####\#OO#\####"), 1, simulator="ogbench")
