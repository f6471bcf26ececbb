"""The vectorised environment: the same balls as one by one, and episodes that do not depend on their batch."""

from __future__ import annotations

import numpy as np
import pytest

from diffusion_forcing.environments.mazes.maze2d import Maze2dEnv, VectorMaze2d
from diffusion_forcing.errors import UserError


def test_each_ball_moves_as_a_single_environment_does() -> None:
    vector = VectorMaze2d("umaze", 3, goal="random")
    observations, info = vector.reset(seed=5)
    singles = [Maze2dEnv("umaze") for _ in range(3)]
    for env, observation, goal in zip(singles, observations, info["goal"], strict=True):
        env.reset(seed=0, options={"start": observation[:2], "velocity": observation[2:], "goal": goal})
    rng = np.random.default_rng(0)
    for _ in range(100):
        actions = rng.uniform(-1, 1, (3, 2))
        observations, rewards, terminated, _, _ = vector.step(actions)
        for index, env in enumerate(singles):
            observation, reward, *_ = env.step(actions[index])
            assert (observation == observations[index]).all() and reward == rewards[index]
        assert not terminated.any()


def test_an_episode_is_the_same_whatever_batch_it_is_run_in() -> None:
    whole = VectorMaze2d("medium", 6, goal="random")
    observations, info = whole.reset(seed=7)
    for first in (0, 2, 4):
        part = VectorMaze2d("medium", 2, goal="random")
        some, some_info = part.reset(seed=7, options={"first_episode": first})
        assert (some == observations[first : first + 2]).all()
        assert (some_info["goal"] == info["goal"][first : first + 2]).all()


def test_a_reset_without_a_seed_goes_on_with_the_next_episodes() -> None:
    env = VectorMaze2d("umaze", 2)
    env.reset(seed=3)
    next_two, _ = env.reset()
    assert (next_two == VectorMaze2d("umaze", 4).reset(seed=3)[0][2:]).all()


def test_seeds_give_different_episodes_and_both_goal_kinds_the_same_starts() -> None:
    one, two = VectorMaze2d("umaze", 4), VectorMaze2d("umaze", 4, goal="random")
    starts = one.reset(seed=0)[0]
    assert (starts == two.reset(seed=0)[0]).all()
    assert not (starts == one.reset(seed=1)[0]).any()
    assert (one.goals == [1.0, 1.0]).all() and not (two.goals == one.goals).all()


def test_given_starts_and_goals_are_used() -> None:
    env = VectorMaze2d("umaze", 2)
    starts, goals = np.array([[1.0, 1.0], [3.0, 2.0]]), np.array([[1.0, 3.0], [1.0, 2.0]])
    observations, info = env.reset(seed=0, options={"starts": starts, "goals": goals})
    assert (observations[:, :2] == starts).all()
    assert (info["goal"] == goals).all() and (env.goals == goals).all()


def test_all_are_truncated_together_at_the_last_step() -> None:
    env = VectorMaze2d("umaze", 2, max_steps=3)
    env.reset(seed=0)
    assert [env.step(np.zeros((2, 2)))[3].tolist() for _ in range(3)] == [[False] * 2, [False] * 2, [True] * 2]
    env.reset(seed=0)
    assert env.steps == 0
    assert VectorMaze2d("large", 1).max_steps == 800


def test_spaces_hold_what_comes_and_goes() -> None:
    env = VectorMaze2d("umaze", 2)
    observations, _ = env.reset(seed=0)
    assert env.observation_space.contains(observations)
    assert env.step(env.action_space.sample())[0].shape == (2, 4)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda env: VectorMaze2d("umaze", 0), "num_envs"),
        (lambda env: VectorMaze2d("umaze", 1, max_steps=0), "max_steps"),
        (lambda env: env.reset(seed=-1), "seed"),
        (lambda env: env.reset(seed=0, options={"first_episode": -1}), "first_episode"),
        (lambda env: env.reset(seed=0, options={"goals": np.zeros((3, 2))}), "expected (2, 2)"),
        (
            lambda env: env.reset(seed=0, options={"starts": np.zeros((2, 2))}),
            "starts[0] (0, 0) lies in a wall of maze 'umaze'",
        ),
        (lambda env: env.reset(seed=0, options={"start": np.zeros((2, 2))}), "did you mean 'starts'?"),
        (lambda env: env.step(np.zeros((3, 2))), "shape (3, 2)"),
        (lambda env: env.step(np.full((2, 2), np.inf)), "not finite"),
    ],
)
def test_bad_calls_are_refused_in_one_line(call: object, words: str) -> None:
    env = VectorMaze2d("umaze", 2)
    env.reset(seed=0)
    with pytest.raises(UserError) as caught:
        call(env)  # type: ignore[operator]
    assert words in str(caught.value) and "\n" not in str(caught.value)
