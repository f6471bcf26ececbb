"""Generated data: D4RL's statistics, exact counts, and seeds."""

from __future__ import annotations

import itertools
from pathlib import Path

import h5py
import numpy as np
import pytest

from diffusion_forcing.datasets.mazes import maze2d
from diffusion_forcing.datasets.mazes.maze2d import Collector, generate
from diffusion_forcing.environments.mazes.layout import MAZES, Maze
from diffusion_forcing.environments.mazes.maze2d import PointMass, build_model
from diffusion_forcing.errors import UserError

UMAZE = MAZES["umaze"]
WIDTHS: dict[str, tuple[int, ...]] = {
    **{"observations": (4,), "actions": (2,), "rewards": (), "terminals": (), "timeouts": ()},
    **{"infos/goal": (2,), "infos/qpos": (2,), "infos/qvel": (2,)},
}


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(maze2d, "SHARD_STEPS", 500)
    return 500


def test_the_file_has_exactly_the_steps_asked_for_in_d4rls_schema(tmp_path: Path, small_shards: int) -> None:
    generate(UMAZE, tmp_path / "a.hdf5", num_steps=1234, progress=False)
    with h5py.File(tmp_path / "a.hdf5") as file:
        for key, width in WIDTHS.items():
            assert file[key].shape == (1234, *width)
            assert file[key].dtype == (np.bool_ if key in ("terminals", "timeouts") else np.float32)
        assert not file["terminals"][:].any() and file["timeouts"][:].any()
        assert (file["infos/qpos"][:] == file["observations"][:, :2]).all()
        assert (file["infos/qvel"][:] == file["observations"][:, 2:]).all()
        assert np.abs(file["actions"][:]).max() == 1.0
        assert file.attrs["maze"] == UMAZE.text
    assert [file.name for file in tmp_path.iterdir()] == ["a.hdf5"]


def test_the_data_are_one_walk_the_physics_can_make(tmp_path: Path) -> None:
    steps = Collector(UMAZE, seed=3).collect(0, num_steps=400)
    ball = PointMass(build_model(UMAZE))
    for now, push, after in zip(steps["observations"], steps["actions"], steps["observations"][1:], strict=False):
        ball.reset(now[:2], now[2:])
        ball.step(push)
        assert np.concatenate([ball.position, ball.velocity]) == pytest.approx(after, abs=2e-4)


@pytest.mark.slow
def test_the_statistics_equal_d4rls_published_ones_with_noise_and_not_without() -> None:
    noisy = Collector(UMAZE)
    observations = np.concatenate([noisy.collect(shard)["observations"] for shard in range(3)])
    assert observations.std(0) == pytest.approx([0.8997, 0.7093, 2.2129, 2.4682], rel=0.05)
    assert observations[:, :2].mean(0) == pytest.approx([1.933, 2.374], abs=0.08)
    still = Collector(UMAZE, action_noise=0.0).collect(0)["observations"]
    assert still[:, 0].min() > 0.65 > observations[:, 0].min()


def test_a_goal_changes_where_timeouts_say_and_when_it_is_reached() -> None:
    steps = Collector(UMAZE).collect(0, num_steps=5000)
    goals, positions = steps["infos/goal"], steps["observations"][:, :2]
    changed = (goals[1:] != goals[:-1]).any(axis=1)
    assert (changed == steps["timeouts"][:-1]).all()
    at_goal = np.linalg.norm(positions - goals.round(), axis=1) < 0.1
    lengths = np.diff(np.flatnonzero(np.concatenate([[True], changed])))
    assert at_goal[:-1][changed].mean() > 0.95 and lengths.max() <= UMAZE.max_steps + 1


def test_rewards_are_those_of_the_fixed_goal() -> None:
    steps = Collector(UMAZE).collect(0, num_steps=3000)
    near = np.linalg.norm(steps["observations"][:, :2] - [1.0, 1.0], axis=1) <= 0.5
    assert (steps["rewards"] == near).all() and 0 < near.mean() < 1


def test_the_first_steps_are_the_same_however_many_are_asked_for(tmp_path: Path, small_shards: int) -> None:
    for name, count in (("short", 777), ("long", 1600)):
        generate(UMAZE, tmp_path / f"{name}.hdf5", num_steps=count, progress=False)
    with h5py.File(tmp_path / "short.hdf5") as short, h5py.File(tmp_path / "long.hdf5") as long:
        assert all((short[key][:] == long[key][:777]).all() for key in WIDTHS)


def test_seeds_and_noise_change_the_data_and_repeat_it(tmp_path: Path) -> None:
    def walk(seed: int, noise: float) -> np.ndarray:
        return np.asarray(Collector(UMAZE, seed=seed, action_noise=noise).collect(0, num_steps=200)["observations"])

    assert (walk(0, 0.5) == walk(0, 0.5)).all()
    for a, b in itertools.pairwise([walk(0, 0.5), walk(1, 0.5), walk(1, 0.4)]):
        assert not (a == b).all()


def test_an_interrupted_generation_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(self: Collector, shard: int, **options: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Collector, "collect", interrupted)
    with pytest.raises(KeyboardInterrupt):
        generate(UMAZE, tmp_path / "a.hdf5", num_steps=100, progress=False)
    assert not list(tmp_path.iterdir())


def test_any_map_makes_data(tmp_path: Path) -> None:
    maze = Maze.from_ascii(r"######\#OOOO#\#O##O#\#OOOO#\######")
    steps = Collector(maze).collect(0, num_steps=2000)
    assert maze.contains(steps["observations"][:, :2]).all()


def test_a_folder_that_cannot_be_written_is_said_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        generate(UMAZE, tmp_path / "file" / "a.hdf5", num_steps=10, progress=False)
