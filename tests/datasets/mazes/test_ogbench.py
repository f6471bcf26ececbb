"""OGBench's files: made here as OGBench makes them, read by its loader, and everything else refused in a line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diffusion_forcing.datasets.mazes import pointmaze
from diffusion_forcing.datasets.mazes.pointmaze import PointMaze, PointMazeOptions
from diffusion_forcing.environments.mazes.point import POINT_MAZES, Point, build_point_model
from diffusion_forcing.errors import UserError

STATISTICS = {"observation_mean": (10.2, 9.6), "observation_std": (5.8, 5.2), "action_mean": (), "action_std": ()}
MEDIUM = POINT_MAZES["medium"]


def options(folder: Path, **changes: Any) -> PointMazeOptions:
    plain = {"episode_len": 4, "frame_skip": 5, "num_episodes": 12, "trajectory_len": 61, "save_dir": str(folder)}
    return PointMazeOptions(**{**plain, **STATISTICS, **changes})


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> PointMaze:
    """Twelve trajectories of 61 steps in the medium maze."""
    data = PointMaze(options(tmp_path_factory.mktemp("ogbench")))
    data.prepare(progress=False)
    return data


def test_generated_files_are_trajectories_of_the_physics(made: PointMaze) -> None:
    path = made.options.generated_file
    for file, count in ((path, 12), (pointmaze.validation_file(path), 1)):
        with np.load(file) as arrays:
            terminals, observations, actions = arrays["terminals"], arrays["observations"], arrays["actions"]
        assert np.array_equal(np.flatnonzero(terminals), 61 * np.arange(1, count + 1) - 1)
        point = Point(MEDIUM, build_point_model(MEDIUM))
        point.reset(observations[0], np.zeros(2))
        for t in range(60):
            point.step(actions[t])
            np.testing.assert_allclose(point.position, observations[t + 1], atol=1e-4)


def test_the_same_recipe_makes_the_same_bytes(made: PointMaze, tmp_path: Path) -> None:
    again = options(tmp_path)
    PointMaze(again).prepare(progress=False)
    assert again.generated_file.read_bytes() == made.options.generated_file.read_bytes()


def test_windows_hold_every_fifth_step_and_the_mean_of_the_actions_between(made: PointMaze) -> None:
    windows = made.training()
    assert len(windows) == 12 * (61 - 20)
    batch = windows.__getitems__([0, 40, 41])
    with np.load(made.options.generated_file) as arrays:
        observations, actions = arrays["observations"], arrays["actions"]
    for row, first in enumerate((0, 40, 61)):
        assert np.array_equal(batch.observations[row], observations[first : first + 21 : 5])
        np.testing.assert_allclose(batch.actions[row, 1], actions[first + 5 : first + 10].mean(0), rtol=1e-5)
    assert batch.valid.all() and not batch.rewards.any()
    assert len(made.validation()) == 41


def test_a_trajectory_shorter_than_the_window_is_one_padded_window(made: PointMaze) -> None:
    data = PointMaze(options(Path(made.options.save_dir), episode_len=20))
    batch = data.training().__getitems__([3])
    assert len(data.training()) == 12
    assert batch.valid[0].tolist() == [True] * 13 + [False] * 8
    assert np.array_equal(batch.observations[0, 13], data.store.observations[4 * 61 - 1])


def test_navigate_walks_to_vertices_and_stitch_four_cells(tmp_path: Path) -> None:
    corridors = {(1, 2), (2, 1)}
    spiral = PointMazeOptions(maze_map=r"#####\#OOO#\#O#O#\#OO##\#####", **STATISTICS).maze
    assert (
        set(map(tuple, pointmaze.vertices(spiral).tolist())) == set(map(tuple, spiral.free_cells.tolist())) - corridors
    )
    collector = pointmaze.Collector(MEDIUM, kind="stitch")
    for index in range(20):
        walk = collector.trajectory(np.random.default_rng(index), 201)["observations"]
        cells = [MEDIUM.cell_at(position) for position in walk]
        assert MEDIUM.distances(cells[0])[cells[-1]] == 4


def test_ogbench_reads_our_files_and_we_read_what_it_reads(made: PointMaze) -> None:
    theirs = pytest.importorskip("ogbench")
    pytest.importorskip("ogbench.locomaze")
    path = made.options.generated_file
    env, train, held_out = theirs.make_env_and_datasets("pointmaze-medium-navigate-v0", dataset_path=str(path))
    steps = pointmaze.read_ogbench(path)
    assert len(train["observations"]) == 12 * 60 and len(held_out["observations"]) == 60
    keep = ~steps["ends"]
    assert np.array_equal(train["observations"], steps["observations"][keep])
    assert np.array_equal(train["actions"], steps["actions"][keep])
    assert np.array_equal(train["next_observations"], steps["observations"][1:][keep[:-1]])
    assert env.observation_space.contains(train["observations"][0].astype(np.float64))


def _file(folder: Path, **changes: Any) -> Path:
    arrays: dict[str, Any] = {
        "observations": np.zeros((9, 2)),
        "actions": np.zeros((9, 2)),
        "terminals": np.arange(9) == 8,
    }
    arrays.update(changes)
    np.savez(folder / "walk.npz", **{key: value for key, value in arrays.items() if value is not None})
    return folder / "walk.npz"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"terminals": None}, "has no terminals; OGBench's PointMaze data has observations, actions, terminals"),
        ({"terminals": np.zeros(9)}, "terminals marks no step; the last step of every trajectory must be True"),
        ({"terminals": np.ones((9, 1))}, r"terminals has shape \(9, 1\).*OGBench's PointMaze data has \(9,\) numbers"),
        ({"observations": np.zeros((9, 29))}, r"observations has shape \(9, 29\).*OGBench's PointMaze data has \(9, 2\) numbers"),
        ({"observations": np.float64(1)}, r"observations has shape \(\)"),
        ({"observations": np.zeros((0, 2))}, "holds no steps"),
        ({"actions": np.zeros((8, 2))}, r"actions has shape \(8, 2\)"),
        ({"actions": np.full((9, 2), np.nan)}, "actions of step 0 is not finite"),
        ({"actions": np.full((9, 2), "a")}, "actions has shape .* and type <U1"),
        ({"actions": np.full((9, 2), None)}, "holds an array of object"),
        ({"observations": np.full((9, 2), -4.0)}, "100% of the positions lie in walls of maze 'medium'"),
    ],
)  # fmt: skip
def test_a_file_that_is_not_ogbenchs_is_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = _file(tmp_path, **changes)
    data = PointMaze(options(tmp_path / "data", source="path", path=str(path)))
    with pytest.raises(UserError, match=message) as caught:
        data.prepare(progress=False)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut", b"\x93NUMPY", b"text"])
def test_a_damaged_file_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "walk.npz").write_bytes(content)
    with pytest.raises(UserError, match="is not a readable npz file"):
        pointmaze.read_ogbench(tmp_path / "walk.npz")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "walk"}, "dataset.kind"),
        ({"source": "path"}, "needs dataset.path"),
        ({"path": "a.npz", "source": "generate"}, "dataset.path is not used"),
        ({"source": "ogbench", "maze_map": r"####\#OO#\####"}, "no data for a custom dataset.maze_map"),
        ({"maze_map": r"#####\#O#O#\#####"}, "dataset.maze_map: maze map is not connected"),
        ({"trajectory_len": 1}, "trajectory_len must be at least 2"),
        ({"observation_mean": (1.0,) * 4, "observation_std": (1.0,) * 4}, "give both 2"),
        ({"frame_skip": 0}, "frame_skip must be at least 1"),
    ],
)  # fmt: skip
def test_options_that_cannot_be_are_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        options(tmp_path, **changes)
