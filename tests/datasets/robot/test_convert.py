"""Demonstrations from one layout to another, the authors' included: nothing is lost, nothing half done stays, no pickle is executed."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("pyarrow", reason="the robot extra brings it")

from diffusion_forcing.datasets.robot import convert as robot_convert
from diffusion_forcing.datasets.robot.convert import ConvertOptions, convert_robot
from diffusion_forcing.datasets.robot.dataset import RobotDataset, RobotOptions
from diffusion_forcing.datasets.robot.lerobot import LeRobotSet
from diffusion_forcing.datasets.robot.source import Demonstration, RobotFiles, RobotSource, read_demonstration
from diffusion_forcing.datasets.video.container import read_video, squeeze
from diffusion_forcing.errors import UserError
from diffusion_forcing.launch.cli import main
from tests.datasets.robot.makers import CAMERAS, save_ours, save_released, save_trajectory, trajectory

PICKLES = ConvertOptions(allow_pickle=True)


def all_of(source: RobotSource) -> list[Demonstration]:
    return [
        read_demonstration(source, split, index, CAMERAS)
        for split, count in source.counts.items()
        for index in range(count)
    ]


def same(one: RobotSource, other: RobotSource) -> bool:
    assert dict(one.counts) == dict(other.counts)
    pairs = zip(all_of(one), all_of(other), strict=True)
    return all(a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a) for a, b in pairs)


def options(folder: Path, **changes: Any) -> RobotOptions:
    sizes = {"resolution": 16, "action_stack": 3, "observation_shape": (6 + 3, 16, 16)}
    return RobotOptions(**{"save_dir": str(folder), **sizes, **changes})


def test_ours_to_lerobot_and_back_loses_nothing_and_both_train(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ours = save_ours(tmp_path / "ours", {"training": 3, "validation": 1})
    assert main(["convert-robot", str(ours), str(tmp_path / "lerobot"), "--to", "lerobot"]) == 0
    told = capsys.readouterr().out
    assert "3 training, 1 validation" in told
    assert f"dataset.save_dir={tmp_path / 'lerobot'}" in told
    assert main(["convert-robot", str(tmp_path / "lerobot"), str(tmp_path / "back")]) == 0
    assert same(RobotFiles(ours), LeRobotSet(tmp_path / "lerobot"))
    assert same(RobotFiles(ours), RobotFiles(tmp_path / "back"))
    batches = []
    for folder in ("ours", "lerobot", "back", "lerobot"):
        data = RobotDataset(options(tmp_path / folder))
        data.prepare(progress=False)
        assert (len(data.training()), len(data.validation())) == (3 * 3, 1)
        batches.append(data.training().__getitems__([0, 4, 8]))
    for batch in batches[1:]:
        assert all(np.array_equal(a, b) for a, b in zip(batch, batches[0], strict=True))


def test_a_lerobot_set_of_another_rate_and_other_cameras_trains_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs = tmp_path / "theirs"
    theirs.symlink_to(Path(__file__).parent / "data" / "lerobot_images")
    with pytest.raises(UserError, match=r"no camera 'front'; it has top, wrist: set dataset\.cameras=\[top,wrist\]"):
        RobotDataset(options(theirs, cache=False)).prepare(progress=False)
    named = {"cameras": ("wrist", "top"), "n_cameras": 2, "cache": False}
    data = RobotDataset(options(theirs, **named))
    data.prepare(progress=False)
    assert "20 frames and actions per second" in capsys.readouterr().out
    assert data.training()[0].frames.shape == (1, 4, 2, 3, 16, 16)
    with pytest.raises(UserError, match="48 x 64"):
        RobotDataset(options(theirs, **named, resolution=64, observation_shape=(9, 64, 64))).prepare(progress=False)
    with pytest.raises(UserError, match="not generated"):
        data.generate()


@pytest.mark.parametrize("kind", ["npz", "json", "pkl"])
def test_the_released_layout_reads_with_every_kind_of_trajectory(tmp_path: Path, kind: str) -> None:
    released = save_released(tmp_path / "released", 3, kind=kind)
    assert convert_robot(released, tmp_path / "ours", PICKLES, progress=False) == {"training": 2, "validation": 1}
    found = RobotFiles(tmp_path / "ours")
    for split, index, number in (("validation", 0, 0), ("training", 0, 1), ("training", 1, 2)):
        given = trajectory(6, seed=number)
        episode = read_demonstration(found, split, index, CAMERAS)
        expected = np.concatenate(
            [given["ee_pos_target"], given["ee_quat_target"], np.array(given["grasp"])[:, None]], axis=1
        )
        assert episode["actions"] == pytest.approx(expected[:-1])  # what follows the last one was not filmed
        assert episode["states"][:, :3] == pytest.approx(np.stack(given["ee_pos"]))
        for camera, film in zip(CAMERAS, ("camera_0", "camera_1"), strict=True):
            source = released / f"episode_{number:03d}" / f"{film}.mp4"
            assert np.array_equal(episode[camera], read_video(source))
            assert (found.root / split / f"{index:06d}.{camera}.mp4").read_bytes() == source.read_bytes()
    data = RobotDataset(options(tmp_path / "ours"))
    seen = data.training()[0].frames[0, 1].numpy()  # pictures of 24 x 32 are squeezed
    source = read_video(released / "episode_001" / "camera_0.mp4")[3:4]
    assert np.array_equal(seen[0].transpose(1, 2, 0), squeeze(source, 16)[0])


def test_cameras_may_be_named_and_pictures_made_smaller(tmp_path: Path) -> None:
    released = save_released(tmp_path / "released", 1, kind="npz")
    words = ["--cameras", "over=camera_0,front=camera_1", "--resolution", "16", "--fps", "30"]
    assert main(["convert-robot", str(released), str(tmp_path / "ours"), *words]) == 0
    found = RobotFiles(tmp_path / "ours")
    assert (found.fps, found.cameras()) == (30, ["front", "over"])
    source = read_video(released / "episode_000" / "camera_0.mp4", 16)
    assert np.array_equal(found.images("training", 0, "over"), source)
    data = RobotDataset(options(tmp_path / "ours"))
    assert len(data.validation()) == 1  # of a single demonstration both


@pytest.mark.parametrize(("steps", "frames", "left"), [(6, 6, 5), (6, 7, 6), (6, 9, 6), (8, 6, 5)])
def test_films_and_trajectory_are_cut_to_what_both_have(tmp_path: Path, steps: int, frames: int, left: int) -> None:
    released = save_released(tmp_path / "released", 1, kind="npz", steps=steps, frames=frames)
    for to in ("ours", "lerobot"):
        convert_robot(released, tmp_path / to, ConvertOptions(to=to), progress=False)
    assert same(RobotFiles(tmp_path / "ours"), LeRobotSet(tmp_path / "lerobot"))
    episode = read_demonstration(RobotFiles(tmp_path / "ours"), "training", 0, CAMERAS)
    assert len(episode["actions"]) == left
    assert episode["front"].shape == (left + 1, 24, 32, 3)
    (tmp_path / "ours" / "training" / "000000.front.mp4").write_bytes(
        (tmp_path / "lerobot" / "videos/observation.images.front/chunk-000/file-000.mp4").read_bytes()[:-600]
    )
    with pytest.raises(UserError, match="cannot be read"):
        RobotFiles(tmp_path / "ours").images("training", 0, "front")


class Evil:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (f"touch {self.marker}",)


def test_pickles_are_refused_without_the_flag_and_never_executed_with_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    released, out = save_released(tmp_path / "released", 2), tmp_path / "out"
    words = ["convert-robot", str(released), str(out)]
    assert main(words) == 2
    assert "is a pickle" in capsys.readouterr().err
    assert not out.exists()
    assert main([*words, "--allow-pickle"]) == 0
    assert "warning: pickles in" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"convert-robot .* --allow-pickle"):
        RobotDataset(options(released)).prepare(progress=False)
    evil = released / "episode_001" / "traj.pkl"
    evil.write_bytes(pickle.dumps({**trajectory(6), "more": Evil(tmp_path / "marker")}))
    assert main(["convert-robot", str(released), str(tmp_path / "again"), "--allow-pickle"]) == 2
    error = capsys.readouterr().err
    assert "refused" in error and "posix.system" in error
    assert not (tmp_path / "marker").exists()
    assert not (tmp_path / "again").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda found: found.pop("grasp"), "lacks 'grasp'"),
        (lambda found: found.update(grasp=[0.0] * 3), "differ in length"),
        (lambda found: found.update(ee_quat_target=[np.zeros(4)] * 6), "quaternion"),
        (lambda found: found.update(ee_pos_target=[np.zeros(2)] * 6), r"\(n, 3\) finite numbers"),
        (lambda found: found.update(ee_pos_target=[np.full(3, np.nan)] * 6), "finite numbers"),
    ],
)
def test_a_trajectory_that_is_none_is_one_line(tmp_path: Path, change: Any, said: str) -> None:
    released = save_released(tmp_path / "released", 1, kind="npz")
    found = trajectory(6)
    change(found)
    save_trajectory(released / "episode_000" / "traj.npz", found)
    with pytest.raises(UserError, match=said):
        convert_robot(released, tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()


def test_sources_that_are_none_are_one_line(tmp_path: Path) -> None:
    released = save_released(tmp_path / "released", 1, kind="npz", frames=40)
    folder = released / "episode_000"
    with pytest.raises(UserError, match=r"traj\.npz has 6 steps, .*front.* 40"):
        convert_robot(released, tmp_path / "out", progress=False)
    (folder / "camera_1.mp4").unlink()
    with pytest.raises(UserError, match=r"camera_0 for the cameras front, over"):
        convert_robot(released, tmp_path / "out", progress=False)
    with pytest.raises(UserError, match=r"camera_0 for the cameras front=left"):
        convert_robot(released, tmp_path / "out", ConvertOptions(cameras={"front": "left"}), progress=False)
    (folder / "camera_0.mp4").write_bytes(b"nonsense")
    with pytest.raises(UserError, match=r"camera_0\.mp4 cannot be read"):
        convert_robot(released, tmp_path / "out", ConvertOptions(cameras={"front": "camera_0"}), progress=False)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no demonstrations"):
        convert_robot(tmp_path / "empty", tmp_path / "out", progress=False)
    with pytest.raises(UserError, match="is not a folder"):
        convert_robot(tmp_path / "nowhere", tmp_path / "out", progress=False)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["a"], "takes SRC and DST, got 1"),
        (["a", "b", "--to", "rlds"], "--to 'rlds' is unknown; choose one of ours, lerobot"),
        (["a", "b", "--allow-pickles"], "has no option '--allow-pickles' (did you mean"),
        (["a", "b", "--fps", "many"], "invalid float value"),
        (["a", "b", "--fps", "0"], "fps is 0.0"),
        (["a", "b", "--codec", "divx"], "lossless, h264, av1"),
        (["a", "b", "--cameras", "front=,over"], "give different names"),
        (["a", "b", "--resolution", "4"], "8…4096"),
    ],
)
def test_bad_words_are_one_line(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert-robot", *words]) == 2
    told = capsys.readouterr().err
    assert said in told
    assert told.count("\n") == 1


def test_an_interrupted_conversion_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    released = save_released(tmp_path / "released", 4, kind="npz")
    write = robot_convert._write_one

    def failing(source: RobotSource, split: str, index: int, *rest: Any) -> None:
        if index == 1:
            raise KeyboardInterrupt
        write(source, split, index, *rest)

    with monkeypatch.context() as patched:
        patched.setattr(robot_convert, "_write_one", failing)
        with pytest.raises(KeyboardInterrupt):
            convert_robot(released, tmp_path / "out", progress=False)
    assert [file.name for file in tmp_path.iterdir()] == ["released"]
    convert_robot(released, tmp_path / "out", progress=False)
    assert not list((tmp_path / "out").rglob(".*"))
    with pytest.raises(UserError, match="exists; choose a new folder"):
        convert_robot(released, tmp_path / "out", progress=False)
