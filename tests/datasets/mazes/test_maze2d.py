"""The data set as the launcher builds it: options checked, sources found or made, data of another maze refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import h5py
import numpy as np
import pytest

from diffusion_forcing.datasets.mazes.maze2d import Maze2d, Maze2dOptions
from diffusion_forcing.environments.mazes.layout import MAZES
from diffusion_forcing.errors import UserError
from tests.datasets.makers import steps, write_file

U = "maze2d-umaze-v1"
UMAZE_STATISTICS = {
    "observation_mean": (1.93, 2.37),
    "observation_std": (0.9, 0.71),
    "action_mean": (),
    "action_std": (),
}


def options(folder: Path, **changes: object) -> Maze2dOptions:
    plain = {"env_id": U, "episode_len": 20, "num_steps": 1000, "save_dir": str(folder), **UMAZE_STATISTICS}
    return Maze2dOptions(**{**plain, **changes})  # type: ignore[arg-type]


def test_building_does_nothing_and_preparing_generates_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "data"
    data = Maze2d(options(folder))
    assert not folder.exists()
    data.prepare()
    assert len(data.training()) == 980 - 20 and len(data.validation()) == 1
    out = capsys.readouterr().out
    assert "generating maze2d-umaze-1000-noise0.5-seed0.hdf5 (dataset.source=d4rl downloads D4RL's own)" in out
    batch = data.training().__getitems__([0, 1])
    assert tuple(batch.observations.shape) == (2, 21, 4)
    assert data.maze.contains(batch.observations[..., :2].reshape(-1, 2).numpy()).all()


def test_preparing_again_makes_nothing_again(tmp_path: Path) -> None:
    Maze2d(options(tmp_path)).prepare(progress=False)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    Maze2d(options(tmp_path)).prepare(progress=False)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_auto_prefers_d4rls_file_placed_by_hand(tmp_path: Path) -> None:
    write_file(tmp_path / "maze2d-umaze-sparse-v1.hdf5", steps(300))
    data = Maze2d(options(tmp_path))
    data.prepare(progress=False)
    assert len(data.store) == 300
    data = Maze2d(options(tmp_path, source="generate"))
    data.prepare(progress=False)
    assert len(data.store) == 1000


def test_other_generation_options_are_another_file(tmp_path: Path) -> None:
    names = {options(tmp_path, **change).generated_file for change in
             ({}, {"num_steps": 2000}, {"action_noise": 0.25}, {"generate_seed": 1}, {"env_id": "maze2d-large-v1"},
              {"maze_map": r"#####\#OOO#\#####"}, {"maze_map": r"#####\#OO##\#####"})}  # fmt: skip
    assert len(names) == 7


def test_a_file_elsewhere_is_read_and_its_cache_lies_in_save_dir(tmp_path: Path) -> None:
    path = write_file(tmp_path / "mine" / "walk.hdf5", steps(100))
    data = Maze2d(options(tmp_path / "data", source="path", path=str(path)))
    data.prepare(progress=False)
    assert len(data.store) == 100
    assert [file.name for file in path.parent.iterdir()] == ["walk.hdf5"]


def test_a_changed_file_is_read_anew(tmp_path: Path) -> None:
    path = tmp_path / "walk.hdf5"
    for count in (100, 130):
        write_file(path, steps(count))
        data = Maze2d(options(tmp_path, source="path", path=str(path)))
        data.prepare(progress=False)
        assert len(data.store) == count


def test_data_of_another_maze_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "walk.hdf5"
    arrays = steps(100)
    arrays["observations"][:, :2] = (6.0, 6.0)
    write_file(path, arrays)
    with pytest.raises(UserError, match="lie in walls of maze 'umaze'"):
        Maze2d(options(tmp_path, source="path", path=str(path))).prepare()
    Maze2d(options(tmp_path, env_id="maze2d-medium-v1", source="path", path=str(path))).prepare(progress=False)


def test_a_window_longer_than_the_data_is_padded(tmp_path: Path) -> None:
    path = write_file(tmp_path / "walk.hdf5", steps(100))
    data = Maze2d(options(tmp_path, source="path", path=str(path), episode_len=300, validation_fraction=0.0))
    batch = data.training()[0]
    assert len(data.training()) == 1 and batch.valid[0].sum() == 100
    assert (batch.observations[0, 99:] == batch.observations[0, 99]).all()


def test_without_a_validation_part_both_see_everything(tmp_path: Path) -> None:
    data = Maze2d(options(tmp_path, validation_fraction=0.0))
    assert len(data.training()) == len(data.validation()) == 980


def test_statistics_of_another_maze_are_mentioned_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Maze2d(options(tmp_path)).prepare()
    assert "note:" not in capsys.readouterr().out
    Maze2d(options(tmp_path, observation_mean=(3.7, 5.3), observation_std=(1.8, 2.6))).prepare()
    note = capsys.readouterr().out
    assert note.count("\n") == 1 and "dataset.observation_mean=[" in note


def test_generate_prints_the_statistics_as_overrides_and_makes_the_file_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = Maze2d(options(tmp_path, maze_map=r"#####\#OOG#\#####"))
    path = data.generate(progress=False)
    out = capsys.readouterr().out
    with h5py.File(path) as file:
        mean = file["observations"][:].mean(0)
    assert f"{path}: 1,000 steps" in out
    line = next(line for line in out.splitlines() if "dataset.observation_mean=" in line)
    assert np.array(eval(line.split("=")[1])) == pytest.approx(mean, abs=1e-3)
    before = path.stat().st_mtime_ns
    assert data.generate(progress=False) == path and path.stat().st_mtime_ns == before


def test_a_map_that_equals_a_known_maze_is_that_maze(tmp_path: Path) -> None:
    assert options(tmp_path, maze_map=MAZES["large"].text).maze is MAZES["large"]


def test_the_defaults_are_the_released_medium_settings() -> None:
    defaults = Maze2dOptions()
    assert defaults.maze is MAZES["medium"] and defaults.window == 601 and defaults.num_steps == 1_000_000
    assert dataclasses.is_dataclass(defaults) and Maze2d.Options is Maze2dOptions
    with pytest.raises(dataclasses.FrozenInstanceError):
        defaults.episode_len = 5  # type: ignore[misc]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"env_id": "maze2d-umaz-v1"}, "did you mean 'umaze'?"),
        ({"env_id": "antmaze"}, "dataset.env_id 'antmaze' is unknown"),
        ({"maze_map": r"###\#O \###"}, "dataset.maze_map: maze map is not closed"),
        ({"maze_map": r"#####\#O#O#\#####"}, "not connected"),
        ({"source": "d4r"}, "did you mean 'd4rl'?"),
        ({"source": "path"}, "needs dataset.path"),
        ({"source": "d4rl", "path": "x"}, "dataset.path is not used"),
        ({"source": "d4rl", "maze_map": r"#####\#OOO#\#####"}, "dataset.source=d4rl has no data"),
        ({"observation_mean": (1.0, 2.0, 3.0)}, "has 3 numbers"),
        ({"observation_mean": ()}, "has 0 numbers"),
        ({"observation_std": (1.0,)}, "dataset.observation_std 1"),
        ({"observation_std": (1.0, 0.0)}, "above 0"),
        ({"observation_mean": (float("nan"), 0.0)}, "finite"),
        ({"action_std": (1.0, 1.0)}, "dataset.action_mean has 0 numbers and dataset.action_std 2"),
        ({"reward_std": 0.0}, "reward_std"),
        ({"episode_len": 0}, "episode_len must be at least 1"),
        ({"num_steps": 1}, "num_steps must be at least 2"),
        ({"generate_seed": -1}, "generate_seed"),
        ({"action_noise": -0.1}, "action_noise"),
        ({"validation_fraction": 1.0}, "validation_fraction"),
    ],
)
def test_a_bad_option_is_refused_in_one_line(tmp_path: Path, changes: dict, words: str) -> None:
    with pytest.raises(UserError) as caught:
        options(tmp_path, **changes)
    assert words in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"source": "path", "path": "/nowhere/walk.hdf5"}, "/nowhere/walk.hdf5 does not exist"),
        ({"source": "minari", "path": "local/none-v0"}, "no Minari data set 'local/none-v0'"),
        ({"source": "d4rl", "d4rl_url": "http://127.0.0.1:9"}, "by hand"),
    ],
)
def test_data_that_cannot_be_had_is_said_in_one_line(
    tmp_path: Path, changes: dict, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("diffusion_forcing.datasets.download.time.sleep", lambda _: None)
    with pytest.raises(UserError) as caught:
        Maze2d(options(tmp_path, **changes)).prepare(progress=False)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_a_save_dir_that_is_a_file_is_said_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("")
    with pytest.raises(UserError, match="cannot write in"):
        Maze2d(options(tmp_path / "data")).prepare(progress=False)
