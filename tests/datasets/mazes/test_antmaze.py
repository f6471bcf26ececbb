"""AntMaze's data: made as OGBench makes it, read by its loader; and the executor that the data set brings."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diffusion_forcing.checkpoints import resolve
from diffusion_forcing.datasets.mazes.antmaze import AntMaze, AntMazeOptions, load_executor, read_antmaze
from diffusion_forcing.environments.mazes.ant import Ant, build_ant_model
from diffusion_forcing.errors import UserError

STATISTICS = {"observation_mean": (10.2, 9.6), "observation_std": (5.8, 5.2), "action_mean": (), "action_std": ()}


def options(folder: Path, **changes: Any) -> AntMazeOptions:
    plain = {"episode_len": 4, "frame_skip": 5, "num_episodes": 3, "trajectory_len": 41, "save_dir": str(folder)}
    return AntMazeOptions(**{**plain, **STATISTICS, **changes})


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> AntMaze:
    """Three trajectories of 41 steps in the medium maze."""
    pytest.importorskip("ogbench.locomaze")
    data = AntMaze(options(tmp_path_factory.mktemp("antmaze")))
    data.prepare(progress=False)
    return data


def test_trajectories_are_walks_of_the_physics_and_windows_their_positions(made: AntMaze) -> None:
    steps = read_antmaze(made.options.generated_file)
    states, actions = steps["observations"].astype(np.float64), steps["actions"]
    ant = Ant(build_ant_model(made.maze))
    ant.data.qpos[:], ant.data.qvel[:] = states[0, :15], states[0, 15:]
    for step in range(5):
        ant.step(actions[step])
        np.testing.assert_allclose(ant.state, states[step + 1], atol=1e-2)
    assert np.linalg.norm(states[40, :2] - states[0, :2]) > 1
    batch = made.training().__getitems__([0])
    assert np.array_equal(batch.observations[0], steps["observations"][:21:5, :2])


def test_walks_of_another_expert_are_another_file_by_its_weights(tmp_path: Path) -> None:
    def name(**changes: Any) -> str:
        return options(tmp_path, **changes).generated_file.name

    walks = [name(), name(expert="ogbench_ant_executor")]
    mine = tmp_path / "mine"
    for shipped in ("ogbench_ant_executor", "ogbench_ant_expert"):  # trained again in the same folder
        shutil.copytree(resolve(shipped), mine, dirs_exist_ok=True)
        walks.append(name(expert=str(mine)))
    assert walks[1] == walks[2]
    assert len(set(walks)) == 3
    with pytest.raises(UserError, match=r"^dataset.expert=ogbench_ant_exprt is neither a folder"):
        name(expert="ogbench_ant_exprt")


def test_ogbench_reads_our_file_and_the_recipe_makes_it_again(made: AntMaze, tmp_path: Path) -> None:
    import ogbench

    path = made.options.generated_file
    env, train, _ = ogbench.make_env_and_datasets("antmaze-medium-navigate-v0", dataset_path=str(path))
    steps = read_antmaze(path)
    assert np.array_equal(train["observations"], steps["observations"][~steps["ends"]])
    assert np.array_equal(train["actions"], steps["actions"][~steps["ends"]])
    assert env.observation_space.contains(train["observations"][0].astype(np.float64))
    assert env.action_space.contains(train["actions"][0])
    again = AntMaze(options(tmp_path))
    again.prepare(progress=False)
    assert again.options.generated_file.read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"env_id": "pointmaze-medium-v0"}, r"give antmaze-\{medium,large,giant\}-v0"),
        ({"simulator": "ogbench"}, "dataset.simulator is ogbench; AntMaze always runs OGBench's model"),
        ({"action_mean": (0.0, 0.0), "action_std": (1.0, 1.0)}, "action_mean has 2 numbers"),
    ],
)  # fmt: skip
def test_options_that_cannot_be_are_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        options(tmp_path, **changes)


def test_a_file_of_points_and_weights_that_are_no_executors_are_refused(tmp_path: Path) -> None:
    arrays = {"observations": np.zeros((9, 2)), "actions": np.zeros((9, 2)), "terminals": np.arange(9) == 8}
    np.savez(tmp_path / "walk.npz", **arrays)
    with pytest.raises(UserError, match=r"observations has shape \(9, 2\).*OGBench's AntMaze data has \(9, 29\) numb"):
        read_antmaze(tmp_path / "walk.npz")
    with pytest.raises(UserError, match="ogbench_medium_goal: a checkpoint for planning, not an ant's"):
        load_executor("ogbench_medium_goal")
    with pytest.raises(UserError, match=r"^dataset.executor=ogbench_ant_executr is neither.*shipped: ogbench_ant_exec"):
        load_executor("ogbench_ant_executr")
