"""Minari data sets of PointMaze, seen from D4RL's corner."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium
import h5py
import numpy as np
import pytest

from diffusion_forcing.datasets.mazes.maze2d import Maze2d, Maze2dOptions, find_minari, read_minari, to_d4rl
from diffusion_forcing.environments.mazes.layout import MAZES
from diffusion_forcing.environments.mazes.maze2d import Maze2dEnv
from diffusion_forcing.errors import UserError
from diffusion_forcing.experiments.planning import PlanningExperiment, PlanningExperimentOptions
from diffusion_forcing.tracking.run import NullRun

UMAZE = MAZES["umaze"]


def record(folder: Path, lengths: tuple[int, ...], *, nested: bool = True) -> Path:
    """A data set in Minari's HDF5 layout, made by PointMaze itself: episode 1 goes on from episode 0, episode 2 begins anew."""
    robotics = pytest.importorskip("gymnasium_robotics")
    gymnasium.register_envs(robotics)
    env = gymnasium.make("PointMaze_UMaze-v3", continuing_task=True, reset_target=False, max_episode_steps=10**9)
    rng = np.random.default_rng(0)
    (folder / "data").mkdir(parents=True)
    state, _ = env.reset(seed=0)
    with h5py.File(folder / "data" / "main_data.hdf5", "w") as file:
        for index, length in enumerate(lengths):
            if index == 2:
                state, _ = env.reset(seed=5)
            states, actions = [state["observation"]], []
            for _ in range(length):
                actions.append(rng.uniform(-1, 1, 2))
                state, *_ = env.step(actions[-1])
                states.append(state["observation"])
            group = file.create_group(f"episode_{index}")
            group["observations/observation" if nested else "observations"] = np.array(states)
            group["actions"] = np.array(actions)
    return folder


def options(folder: Path, path: str | None, **changes: Any) -> Maze2dOptions:
    return Maze2dOptions(
        **{
            "env_id": "maze2d-umaze-v1",
            "episode_len": 10,
            "save_dir": str(folder),
            "source": "minari",
            "path": path,
            **changes,
        }
    )


def test_mapped_steps_are_ones_our_physics_makes(tmp_path: Path) -> None:
    part = read_minari(record(tmp_path / "set-v0", (60,)), UMAZE)
    env = Maze2dEnv("umaze")
    for now, action, after in zip(part["observations"], part["actions"], part["observations"][1:], strict=False):
        env.reset(options={"start": now[:2], "velocity": now[2:]})
        assert env.step(action)[0] == pytest.approx(after, abs=1e-9)


def test_episodes_that_go_on_are_joined_and_others_are_not(tmp_path: Path) -> None:
    folder = record(tmp_path / "set-v0", (15, 20, 30))
    data = Maze2d(options(tmp_path / "data", str(folder), validation_fraction=0.0))
    data.prepare(progress=False)
    assert data.store.episodes.tolist() == [[0, 35], [35, 65]]
    assert len(data.training()) == 25 + 20
    assert [file.name for file in (folder / "data").iterdir()] == ["main_data.hdf5"], (
        "nothing is written into Minari's folder"
    )


def test_a_data_set_is_found_by_its_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = record(tmp_path / "local" / "pm-v0", (5,), nested=False)
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    assert find_minari("local/pm-v0") == find_minari(str(folder)) == folder
    assert len(read_minari(folder, UMAZE)["actions"]) == 5


def test_the_rewards_are_those_of_the_fixed_goal(tmp_path: Path) -> None:
    part = read_minari(record(tmp_path / "set-v0", (200,)), UMAZE)
    near = np.linalg.norm(part["observations"][:, :2] - [1.0, 1.0], axis=1) <= 0.5
    assert (part["rewards"] == near).all()


def test_the_map_puts_the_middle_of_point_maze_in_the_middle_of_the_map() -> None:
    observations, actions = to_d4rl(np.array([[0.0, 0.0, 1.0, 2.0]]), np.array([[0.25, 0.5]]), (9, 12))
    assert observations[0] == pytest.approx([3.8, 5.3, -2.0, 1.0]) and actions[0] == pytest.approx([-0.5, 0.25])


@pytest.mark.filterwarnings("ignore")  # Minari asks for an author and a description
@pytest.mark.parametrize("data_format", ["hdf5", "arrow"])
def test_a_data_set_that_minari_itself_wrote_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data_format: str
) -> None:
    minari = pytest.importorskip("minari")
    pytest.importorskip("pyarrow")
    robotics = pytest.importorskip("gymnasium_robotics")
    gymnasium.register_envs(robotics)
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    env = gymnasium.make("PointMaze_UMaze-v3", max_episode_steps=25)
    episodes = []
    for seed in range(2):
        states, actions, is_over = [env.reset(seed=seed)[0]], [], False
        while not is_over:
            actions.append(env.action_space.sample())
            state, _, *ends, _ = env.step(actions[-1])
            states.append(state)
            is_over = any(ends)
        ended = np.arange(25) == 24
        observations = {key: np.array([state[key] for state in states]) for key in states[0]}
        episodes.append(
            minari.data_collector.EpisodeBuffer(
                observations=observations,
                actions=np.array(actions),
                rewards=np.zeros(25),
                terminations=np.zeros(25, bool),
                truncations=ended,
            )
        )
    minari.create_dataset_from_buffers("local/pm-v0", episodes, env=env, data_format=data_format)
    found = read_minari(find_minari("local/pm-v0"), UMAZE)
    assert np.flatnonzero(found["ends"]).tolist() == [24, 49]
    assert UMAZE.contains(found["observations"][:, :2]).all()


@pytest.mark.parametrize("maze_map", [None, r"#####\#OOG#\#O#O#\#####"])
def test_our_data_is_read_by_minari_with_its_environment_and_by_us_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, maze_map: str | None
) -> None:
    minari = pytest.importorskip("minari")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    made = {"maze_map": maze_map, "source": "generate", "num_steps": 700, "validation_fraction": 0.0}
    ours = Maze2d(options(tmp_path / "data", None, **made))
    name = "/".join(ours.export_minari().parts[-2:])
    theirs = minari.load_dataset(name)
    steps = ours.maze.max_steps
    assert [len(episode.actions) for episode in theirs] == [*[steps] * (699 // steps), 699 % steps]
    assert theirs.total_steps == 699

    env, episode = theirs.recover_environment().unwrapped, theirs[0]
    assert env.maze.rows == ours.maze.rows
    for step in range(0, 100, 9):
        now, after = episode.observations[step : step + 2]
        env.reset(options={"start": now[:2], "velocity": now[2:]})
        observation, reward, *_ = env.step(episode.actions[step])
        assert observation == pytest.approx(after, abs=1e-5)
        assert reward == episode.rewards[step]

    again = Maze2d(options(tmp_path / "again", name, maze_map=maze_map))
    for values in ("observations", "actions", "rewards"):
        assert np.array_equal(getattr(again.store, values), getattr(ours.store, values)[:-1]), values
    assert again.store.episodes.tolist() == [[0, 699]]
    with pytest.raises(UserError, match="minari delete"):
        ours.export_minari()
    chosen = PlanningExperimentOptions(minari_id="mine/own-v3")
    experiment = PlanningExperiment(chosen, algorithm=None, dataset=ours, run=NullRun())
    experiment.export_minari()
    assert minari.load_dataset("mine/own-v3").total_steps == 699


def test_an_export_that_fails_leaves_nothing_and_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("minari")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    ours = Maze2d(options(tmp_path / "data", None, source="generate", num_steps=50))
    for name in ("no version", "a/b", "../../x-v0"):
        with pytest.raises(UserError) as caught:
            ours.export_minari(name)
        assert name in str(caught.value) and "\n" not in str(caught.value)
        assert not (tmp_path / "minari" / name).exists()


def test_an_episode_without_its_last_observation_loses_its_last_action_and_spoils_no_other(tmp_path: Path) -> None:
    folder = record(tmp_path / "set-v0", (15, 12))
    whole = read_minari(folder, UMAZE)
    with h5py.File(folder / "data" / "main_data.hdf5", "a") as file:
        states = file["episode_1/observations/observation"][:-1]
        del file["episode_1/observations/observation"]
        file["episode_1/observations/observation"] = states
    short = read_minari(folder, UMAZE)
    for name in ("observations", "actions"):
        assert np.array_equal(short[name], whole[name][:-1])
    assert short["ends"][-1]


def spoil_width(file: h5py.File) -> None:
    del file["episode_0/actions"]
    file["episode_0/actions"] = np.zeros((15, 3))


def spoil_number(file: h5py.File) -> None:
    file["episode_0/observations/observation"][3, 0] = np.nan


def spoil_missing(file: h5py.File) -> None:
    del file["episode_0/actions"]


def spoil_all(file: h5py.File) -> None:
    for name in list(file):
        del file[name]


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (spoil_width, "expected (T + 1, 4)"),
        (spoil_number, "not finite"),
        (spoil_missing, "no observations or actions"),
        (spoil_all, "holds no episodes"),
    ],
)
def test_a_broken_data_set_is_refused_in_one_line(tmp_path: Path, spoil: Any, words: str) -> None:
    folder = record(tmp_path / "set-v0", (15,))
    with h5py.File(folder / "data" / "main_data.hdf5", "a") as file:
        spoil(file)
    with pytest.raises(UserError) as caught:
        Maze2d(options(tmp_path / "data", str(folder))).prepare(progress=False)
    assert words in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("damage", ["{", "[]", ""])
def test_damaged_metadata_which_would_say_the_frame_is_refused(tmp_path: Path, damage: str) -> None:
    folder = record(tmp_path / "set-v0", (15,))
    (folder / "data" / "metadata.json").write_text(damage)
    with pytest.raises(UserError, match=r"metadata\.json is damaged"):
        read_minari(folder, MAZES["umaze"])


def test_a_folder_in_another_format_without_metadata_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "set-v0" / "data").mkdir(parents=True)
    with pytest.raises(UserError) as caught:
        Maze2d(options(tmp_path / "data", str(tmp_path / "set-v0"))).prepare(progress=False)
    assert "\n" not in str(caught.value)
