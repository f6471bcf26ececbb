"""The Gymnasium environment: its contract, its reward, its starts and goals."""

from __future__ import annotations

import subprocess
import sys
import warnings

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import diffusion_forcing.environments  # noqa: F401  registers the ids
from diffusion_forcing.environments.mazes.layout import MAZES, Maze
from diffusion_forcing.environments.mazes.maze2d import Maze2dEnv, episode_start, top_view
from diffusion_forcing.errors import UserError

CUSTOM = r"######\#OOOG#\#O##O#\#OOOO#\######"


@pytest.mark.parametrize("name", ["umaze", "medium", "large"])
def test_registered_environments_pass_gymnasiums_checker_without_a_warning(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(gymnasium.make(f"maze2d-{name}-v1", render_mode="rgb_array").unwrapped)


def test_a_custom_map_passes_gymnasiums_checker() -> None:
    env = gymnasium.make("maze2d-custom-v1", maze=CUSTOM, goal="random", max_episode_steps=7)
    check_env(env.unwrapped, skip_render_check=True)


def test_an_episode_is_truncated_at_d4rls_length_and_never_terminates() -> None:
    env = gymnasium.make("maze2d-umaze-v1")
    env.reset(seed=0)
    ends = [env.step(np.zeros(2, dtype=np.float32))[2:4] for _ in range(300)]
    assert not any(terminated for terminated, _ in ends)
    assert [truncated for _, truncated in ends] == [False] * 299 + [True]


def test_the_reward_is_one_within_half_a_metre_of_the_goal_and_the_episode_goes_on() -> None:
    env = Maze2dEnv("umaze")
    for distance, reward in ((0.49, 1.0), (0.51, 0.0)):
        env.reset(seed=0, options={"start": (1.0, 0.8 + distance), "goal": (1.0, 0.8), "velocity": (0.0, 0.0)})
        _, got, terminated, _, info = env.step(np.zeros(2))
        assert (got, terminated, info["success"]) == (reward, False, bool(reward))


def test_the_dataset_goal_is_exactly_the_marked_cell() -> None:
    env = Maze2dEnv("medium")
    goals = {tuple(env.reset(seed=seed)[1]["goal"]) for seed in range(3)}
    assert goals == {(6.0, 6.0)}


def test_starts_and_random_goals_are_near_integer_cells_and_reach_all_of_them() -> None:
    env = Maze2dEnv("umaze", goal="random")
    starts, goals = [], []
    for seed in range(150):
        observation, info = env.reset(seed=seed)
        starts.append(observation[:2])
        goals.append(info["goal"])
    for points in (np.array(starts), np.array(goals)):
        assert np.abs(points - points.round()).max() <= 0.1
        assert {tuple(cell) for cell in points.round().astype(int)} == {tuple(cell) for cell in env.maze.free_cells}


def test_the_start_velocity_has_a_tenth_of_a_metre_per_second() -> None:
    velocities = np.array([episode_start(MAZES["umaze"], seed=0, episode=i, goal="dataset")[1] for i in range(500)])
    assert velocities.std() == pytest.approx(0.1, rel=0.1)


def test_an_action_is_clipped_to_one() -> None:
    after = []
    for push in (1.0, 50.0):
        env = Maze2dEnv("umaze")
        env.reset(seed=0)
        after.append(env.step(np.array([push, 0.0]))[0])
    assert (after[0] == after[1]).all()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"start": (0.0, 0.0)}, "start (0, 0) lies in a wall of maze 'umaze'; the nearest free place is [0.8,0.8]"),
        ({"goal": (2.0, 2.0)}, "goal (2, 2) lies in a wall"),
        ({"goal": (1.0,)}, "two finite numbers"),
        ({"velocity": (np.nan, 0.0)}, "two finite numbers"),
        ({"gaol": (1.0, 1.0)}, "did you mean 'goal'?"),
    ],
)
def test_a_bad_reset_option_is_refused_in_one_line(options: dict, words: str) -> None:
    with pytest.raises(UserError) as caught:
        Maze2dEnv("umaze").reset(seed=0, options=options)
    assert words in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Maze2dEnv("maze2d-mediun-v1"), "did you mean 'medium'?"),
        (lambda: Maze2dEnv("umaze", goal="randm"), "did you mean 'random'?"),  # type: ignore[arg-type]
        (lambda: Maze2dEnv("umaze", render_mode="human"), "render_mode"),
        (lambda: Maze2dEnv(r"###\#O \###"), "not closed"),
    ],
)
def test_a_bad_environment_is_refused_in_one_line(make: object, words: str) -> None:
    with pytest.raises(UserError) as caught:
        make()  # type: ignore[operator]
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_an_action_that_is_not_finite_is_refused() -> None:
    env = Maze2dEnv("umaze")
    env.reset(seed=0)
    with pytest.raises(UserError, match="not finite"):
        env.step(np.array([np.nan, 0.0]))
    with pytest.raises(UserError, match="shape"):
        env.step(np.zeros(3))


def test_the_image_shows_walls_goal_and_ball_in_their_places() -> None:
    maze = Maze.from_ascii(CUSTOM)
    image = top_view(maze, np.array([0.8, 0.8]), np.array([0.8, 3.8]), pixels_per_metre=20)
    assert image.shape == (100, 120, 3)
    centre = {
        name: tuple(image[int((i + 0.5) * 20), int((j + 0.5) * 20)])
        for name, (i, j) in {"wall": (0, 0), "free": (3, 2), "ball": (1, 1), "goal": (1, 4)}.items()
    }
    assert len(set(centre.values())) == 4


def test_an_id_with_its_module_needs_no_import() -> None:
    code = (
        "import gymnasium; env = gymnasium.make('diffusion_forcing.environments:diffusion_forcing/maze2d-medium-v1'); "
        "print(env.spec.max_episode_steps, env.unwrapped.maze.name)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("600 medium\n", 0), done.stderr


@pytest.mark.parametrize("name", ["maze2d-umaze-v1", "maze2d-large-v1", "maze2d-custom-v1", "robot_swap"])
def test_an_id_means_the_same_in_our_namespace(name: str) -> None:
    specs = [gymnasium.spec(f"{space}{name}") for space in ("diffusion_forcing/", "")]
    assert len({(spec.entry_point, spec.max_episode_steps, str(spec.kwargs)) for spec in specs}) == 1
