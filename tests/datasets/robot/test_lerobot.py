"""LeRobot's layout v3.0: what is written comes back bit for bit, what LeRobot wrote is read, and what is wrong is one line."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

pytest.importorskip("pyarrow", reason="the robot extra brings it")

import pyarrow as pa
import pyarrow.parquet as pq

from diffusion_forcing.datasets.robot.convert import (
    LeRobotOptions,
    image_statistics,
    join_statistics,
    row_statistics,
    write_lerobot,
)
from diffusion_forcing.datasets.robot.lerobot import LeRobotSet
from diffusion_forcing.datasets.robot.source import read_demonstration
from diffusion_forcing.datasets.video.container import CODECS, VideoWriter
from diffusion_forcing.errors import UserError
from tests.datasets.robot.makers import CAMERAS, demonstration

THEIRS = Path(__file__).parent / "data"
"""Written by lerobot 0.4.4's own recorder: 3 episodes of 5, 7 and 6 frames at 20 fps; see `frame_of`."""


def written(root: Path, **changes: Any) -> Path:
    """Three training demonstrations and one for validation."""
    made = [("training", demonstration(4 + number, seed=number)) for number in range(3)]
    return write_lerobot(root, [*made, ("validation", demonstration(9, seed=9))], LeRobotOptions(**changes))


@pytest.mark.parametrize(
    ("changes", "files"),
    [({}, 1), ({"data_files_size_in_mb": 1e-4, "video_files_size_in_mb": 1e-4, "chunks_size": 3, "fps": 30}, 4)],
    ids=["one file", "a file an episode"],
)
def test_what_is_written_comes_back_bit_for_bit(tmp_path: Path, changes: dict[str, Any], files: int) -> None:
    root = written(tmp_path / "set", **changes)
    assert [path.name for path in tmp_path.iterdir()] == ["set"]
    for folder in ("data", "meta/episodes", "videos/observation.images.over"):
        assert len([path for path in (root / folder).rglob("*") if path.is_file()]) == files
    if files > 1:
        assert (root / "data" / "chunk-001" / "file-000.parquet").exists()
    back = LeRobotSet(root)
    assert (back.fps, dict(back.counts)) == (changes.get("fps", 10), {"training": 3, "validation": 1})
    for split, index, seed in (("training", 0, 0), ("training", 2, 2), ("training", 1, 1), ("validation", 0, 9)):
        expected = demonstration(9 if seed == 9 else 4 + seed, seed=seed)
        found = read_demonstration(back, split, index, CAMERAS)
        assert found.keys() == expected.keys()
        for name, array in expected.items():
            assert found[name].dtype == array.dtype
            assert np.array_equal(found[name], array)


def test_the_files_are_as_lerobot_names_and_fills_them(tmp_path: Path) -> None:
    root = written(tmp_path / "set")
    info = json.loads((root / "meta" / "info.json").read_text())
    assert (info["codebase_version"], info["fps"], info["total_episodes"], info["total_frames"]) == ("v3.0", 10, 4, 28)
    assert info["splits"] == {"train": "0:3", "validation": "3:4"}
    assert info["features"]["action"] == {
        "dtype": "float32",
        "shape": [8],
        "names": ["x", "y", "z", "qx", "qy", "qz", "qw", "grasp"],
    }
    assert info["features"]["observation.images.front"]["info"]["video.codec"] == "h264"
    data = pq.read_table(root / info["data_path"].format(chunk_index=0, file_index=0))
    assert data["index"].to_pylist() == list(range(28))
    assert data["frame_index"].to_pylist()[:7] == [0, 1, 2, 3, 4, 0, 1]
    assert [at for at, done in enumerate(data["next.done"].to_pylist()) if done] == [4, 10, 17, 27]
    assert data["action"][4] == data["action"][3]  # the last action again
    rows = pq.read_table(root / "meta" / "episodes" / "chunk-000" / "file-000.parquet").to_pylist()
    at = [(row["dataset_from_index"], row["dataset_to_index"], row["length"]) for row in rows]
    assert at == [(0, 5, 5), (5, 11, 6), (11, 18, 7), (18, 28, 10)]
    key = "videos/observation.images.front"
    assert [(row[f"{key}/from_timestamp"], row[f"{key}/to_timestamp"]) for row in rows][1] == (0.5, 1.1)
    assert np.array(rows[0]["stats/observation.images.over/mean"]).shape == (3, 1, 1)
    assert rows[3]["stats/action/count"] == [10]
    pandas = pytest.importorskip("pandas", reason="reads tasks.parquet as LeRobot does")
    tasks = pandas.read_parquet(root / "meta" / "tasks.parquet")
    assert tasks.loc["Exchange the two fruits."].task_index == 0


def frame_of(episode: int, frame: int) -> np.ndarray:
    """What camera `top` of the sets in `THEIRS` showed; `wrist` showed it upside down."""
    y, x = np.mgrid[:48, :64]
    planes = [x * 3 + frame * 5, y * 4 + episode * 30, np.full_like(x, 40 * episode + 10 * frame)]
    return np.stack(planes, axis=-1).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize(("name", "apart"), [("lerobot_images", 0), ("lerobot_av1", 12)])
def test_a_set_that_lerobot_recorded_is_read(name: str, apart: float) -> None:
    found = LeRobotSet(THEIRS / name)
    assert (found.fps, found.cameras()) == (20, ["top", "wrist"])
    assert dict(found.counts) == {"training": 2, "validation": 1}  # the first twentieth, at least one
    for split, index, episode, length in (("validation", 0, 0, 5), ("training", 0, 1, 7), ("training", 1, 2, 6)):
        seen = read_demonstration(found, split, index, ["wrist", "top"])
        assert seen["actions"].shape == (length - 1, 8)
        assert seen["states"].shape == (length, 7)
        for frame, action in enumerate(seen["actions"]):  # theirs are qw qx qy qz x y z gripper
            turn = np.array([0.1 * frame, 0.2, 0.3, 1])
            assert action == pytest.approx(
                [episode, frame, 0.5, *turn / np.linalg.norm(turn), float(frame > 2)], abs=1e-6
            )
        for frame in range(length):
            expected = frame_of(episode, frame).astype(int)
            assert np.abs(seen["top"][frame] - expected).mean() <= apart
            assert np.abs(seen["wrist"][frame][::-1] - expected).mean() <= apart
    assert found.images("training", 0, "top", 16).shape == (7, 16, 16, 3)


def change_info(**changes: Any) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        file = root / "meta" / "info.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))

    return change


def change_action(**changes: Any) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        file = root / "meta" / "info.json"
        info = json.loads(file.read_text())
        info["features"]["action"].update(changes)
        file.write_text(json.dumps(info))

    return change


def rewrite(name: str, how: Callable[[pa.Table], pa.Table]) -> Callable[[Path], None]:
    return lambda root: pq.write_table(how(pq.read_table(root / name)), root / name)


def cut(name: str) -> Callable[[Path], None]:
    def cut_off(root: Path) -> None:
        file = root / name
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])

    return cut_off


def no_turns(table: pa.Table) -> pa.Table:
    joints = pa.array([[0.0] * 8] * table.num_rows, pa.list_(pa.float32(), 8))
    return table.set_column(table.column_names.index("action"), "action", joints)


DATA, FILM = "data/chunk-000/file-000.parquet", "videos/observation.images.front/chunk-000/file-000.mp4"


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda root: (root / "meta" / "info.json").unlink(), r"meta/info\.json is missing"),
        (lambda root: (root / "meta" / "info.json").write_text("{"), "cannot be read"),
        (change_info(codebase_version="v2.1"), "version v2.1.*convert_dataset_v21_to_v30"),
        (change_info(fps="many"), "cannot be read"),
        (change_info(fps=0), "fps is 0"),
        (change_info(data_path="data/{nothing}"), "data/{nothing}"),
        (change_info(video_path="../{video_key}/{chunk_index}"), "points outside"),
        (change_info(features={}), "'action' has shape"),
        (change_action(shape=[7]), r"shape \[7\].* x y z qx qy qz qw grasp"),
        (lambda root: shutil.rmtree(root / "meta" / "episodes"), "no parquet file"),
        (cut("meta/episodes/chunk-000/file-000.parquet"), "cannot be read"),
        (cut(DATA), "cannot be read"),
        (lambda root: (root / DATA).unlink(), "it does not exist"),
        (rewrite(DATA, lambda table: table.slice(0, 3)), "has 3 rows of episode 0, meta/episodes says 5"),
        (rewrite(DATA, lambda table: table.drop_columns(["action"])), "no column .action"),
        (rewrite(DATA, no_turns), "quaternion"),
        (lambda root: (root / FILM).unlink(), "it does not exist"),
        (cut(FILM), "cannot be read"),
    ],
)
def test_what_is_damaged_or_not_ours_is_one_line(tmp_path: Path, damage: Any, said: str) -> None:
    root = write_lerobot(tmp_path / "set", [("training", demonstration(4)), ("validation", demonstration(5))])
    damage(root)
    with pytest.raises(UserError, match=said) as told:
        read_demonstration(LeRobotSet(root), "training", 0, ["front"])
    assert "\n" not in str(told.value)


def reorder(order: list[int]) -> Callable[[pa.Table], pa.Table]:
    def change(table: pa.Table) -> pa.Table:
        rows = [[row[at] for at in order] for row in table["action"].to_pylist()]
        return table.set_column(table.column_names.index("action"), "action", pa.array(rows, pa.list_(pa.float32())))

    return change


W_FIRST = [0, 1, 2, 6, 3, 4, 5, 7]


@pytest.mark.parametrize(
    "names",
    [
        ["x", "y", "z", "qw", "qx", "qy", "qz", "gripper"],
        ["ee.x", "ee.y", "ee.z", "ee.qw", "ee.qx", "ee.qy", "ee.qz", "gripper.pos"],
        ["EEF_POS_X", "EEF_POS_Y", "EEF_POS_Z", "EEF_QUAT_W", "EEF_QUAT_X", "EEF_QUAT_Y", "EEF_QUAT_Z", "GRIP"],
        {"position": ["x", "y", "z"], "orientation": ["w", "x", "y", "z"], "gripper": ["gripper_position"]},
        {"motors": ["posx", "posy", "posz", "quatw", "quatx", "quaty", "quatz", "grasp"]},
    ],
)
def test_actions_are_ordered_by_their_names_however_they_are_spelled(tmp_path: Path, names: Any) -> None:
    expected = demonstration(4)
    root = write_lerobot(tmp_path / "set", [("training", expected), ("training", demonstration(4, seed=1))])
    change_action(names=names)(root)
    rewrite(DATA, reorder(W_FIRST))(root)
    assert np.array_equal(LeRobotSet(root).arrays("validation", 0)["actions"], expected["actions"])


def test_names_that_are_no_order_of_ours_are_refused_and_missing_ones_are_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_lerobot(tmp_path / "set", [("training", demonstration(4))])
    for last in ("gripper_open", "rz", "qx"):  # the other way round, an angle, one twice
        change_action(names=["x", "y", "z", "qx", "qy", "qz", "qw", last])(root)
        with pytest.raises(UserError, match=rf"{last}.*features\.action\.names"):
            LeRobotSet(root)
    for names in (None, [], {"axes": None}, [f"motor_{number}" for number in range(8)]):
        change_action(names=names)(root)
        assert LeRobotSet(root)._orders["action"] == list(range(8))
        assert "x y z qx qy qz qw grasp" in capsys.readouterr().out


def test_rows_are_in_the_order_of_their_frames(tmp_path: Path) -> None:
    expected = demonstration(4)
    root = write_lerobot(tmp_path / "set", [("training", expected)])
    rewrite(DATA, lambda table: table.take(pa.array([3, 0, 4, 1, 2])))(root)
    found = LeRobotSet(root).arrays("training", 0)
    assert np.array_equal(found["actions"], expected["actions"])
    assert np.array_equal(found["states"], expected["states"])


PLACES = ["data/chunk_index", "data/file_index", "videos/observation.images.front/file_index"]
START = "videos/observation.images.front/from_timestamp"
EPISODES = "meta/episodes/chunk-000/file-000.parquet"


def column(name: str, change: Callable[[Any], Any] | None) -> Callable[[pa.Table], pa.Table]:
    """`name` with its values changed, or without it."""

    def changed(table: pa.Table) -> pa.Table:
        if change is None:
            return table.drop_columns([name])
        values = [change(value) for value in table[name].to_pylist()]
        return table.set_column(table.column_names.index(name), name, pa.array(values, pa.float64()))

    return changed


@pytest.mark.parametrize("name", PLACES)
def test_places_that_pandas_made_floats_are_read(tmp_path: Path, name: str) -> None:
    expected = demonstration(4)
    root = write_lerobot(tmp_path / "set", [("training", expected)])
    rewrite(EPISODES, column(name, float))(root)
    found = read_demonstration(LeRobotSet(root), "training", 0, ["front"])
    assert np.array_equal(found["front"], expected["front"])


@pytest.mark.parametrize("name", [*PLACES, START, "length", "episode_index"])
@pytest.mark.parametrize("change", [None, lambda value: None, lambda value: float("nan")])
def test_a_place_that_is_missing_is_one_line_that_names_it(tmp_path: Path, name: str, change: Any) -> None:
    root = write_lerobot(tmp_path / "set", [("training", demonstration(4)), ("training", demonstration(5))])
    rewrite(EPISODES, column(name, change))(root)
    with pytest.raises(UserError, match=re.escape(name)):
        read_demonstration(LeRobotSet(root), "training", 0, ["front"])


@pytest.mark.parametrize(("late", "is_read"), [(0.004, True), (-0.02, True), (0.06, False)])  # frames are 0.1 s apart
def test_a_start_that_is_rounded_is_read_and_one_between_two_frames_is_one_line(
    tmp_path: Path, late: float, is_read: bool
) -> None:
    first, second = demonstration(4), demonstration(5, seed=1)
    root = write_lerobot(tmp_path / "set", [("training", first), ("training", second)])
    rewrite(EPISODES, column(START, lambda value: max(0.0, value + late)))(root)
    with contextlib.nullcontext() if is_read else pytest.raises(UserError, match="has no frame at"):
        found = LeRobotSet(root).images("training", 0, "front")
        assert np.array_equal(found, second["front"])


def test_a_film_that_ends_early_and_a_camera_that_is_not_there_are_one_line(tmp_path: Path) -> None:
    root = write_lerobot(tmp_path / "set", [("training", demonstration(4))])
    short = write_lerobot(tmp_path / "short", [("training", demonstration(2))])
    shutil.copy(short / FILM, root / FILM)
    found = LeRobotSet(root)
    with pytest.raises(UserError, match="it ends after 3 of 5 frames"):
        found.images("training", 0, "front")
    with pytest.raises(UserError, match=r"no camera 'wrist'.* dataset\.cameras=\[front,over\] dataset\.n_cameras=2"):
        found.images("training", 0, "wrist")


def test_nothing_is_left_of_a_set_that_could_not_be_written(tmp_path: Path) -> None:
    odd = demonstration(4, 16)
    with pytest.raises(UserError, match=r"demonstration 1 .* observation\.images\.front"):
        write_lerobot(tmp_path / "set", [("training", odd), ("training", demonstration(4, 24))])
    with pytest.raises(UserError, match="has 6 rows for 5 frames"):
        write_lerobot(tmp_path / "set", [("training", {**odd, "front": np.zeros((6, 16, 16, 3), np.uint8)})])
    with pytest.raises(UserError, match="even sides"):
        write_lerobot(tmp_path / "set", [("training", demonstration(4, 17))], LeRobotOptions(codec="h264"))
    with pytest.raises(UserError, match="comes twice"):
        write_lerobot(tmp_path / "set", [("training", odd), ("validation", odd), ("training", odd)])
    with pytest.raises(UserError, match="no demonstrations"):
        write_lerobot(tmp_path / "set", [])
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "mine").touch()
    with pytest.raises(UserError, match="choose a new folder"):
        write_lerobot(tmp_path / "set", [("training", odd)])


def test_common_codecs_lose_little_of_smooth_pictures(tmp_path: Path) -> None:
    smooth = np.stack([frame_of(1, frame) for frame in range(5)])
    for codec in {"h264", "av1"} & {name for name, known in CODECS.items() if known.encoder in av.codecs_available}:
        root = write_lerobot(
            tmp_path / codec, [("training", {**demonstration(4), "front": smooth})], LeRobotOptions(codec=codec)
        )
        seen = LeRobotSet(root).images("training", 0, "front")
        assert 0 < np.abs(seen.astype(int) - smooth).mean() < 8


def test_an_encoder_that_pyav_lacks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(av, "codecs_available", av.codecs_available - {"libsvtav1"})
    with pytest.raises(UserError, match=r"'av1' needs .*libsvtav1.*lossless, h264"):
        VideoWriter(tmp_path / "a.mp4", (8, 8), 10, "av1")


def test_statistics_are_numpys_and_those_of_parts_join_to_the_whole() -> None:
    random = np.random.default_rng(0)
    pictures = random.integers(0, 256, (6, 5, 4, 3), np.uint8)
    found = image_statistics(pictures)
    for name, expected in (("mean", (pictures / 255).mean((0, 1, 2))), ("std", (pictures / 255).std((0, 1, 2)))):
        assert found[name].shape == (3, 1, 1)
        assert found[name].reshape(3) == pytest.approx(expected)
    assert found["q50"].reshape(3) == pytest.approx(np.quantile(pictures / 255, 0.5, axis=(0, 1, 2)), abs=1 / 255)
    rows = random.normal(size=(30, 4))
    whole, parts = row_statistics(rows), join_statistics([row_statistics(rows[:7]), row_statistics(rows[7:])])
    for name in ("min", "max", "mean", "std", "count"):
        assert parts[name] == pytest.approx(whole[name])


def test_lerobot_itself_reads_what_is_written(tmp_path: Path) -> None:
    reason = "lerobot is not installed: its pins (torch below 2.11, torchvision) are not ours"
    reader = pytest.importorskip("lerobot.datasets.lerobot_dataset", reason=reason)
    root = written(tmp_path / "set")
    theirs = reader.LeRobotDataset("ours/swap", root=root)
    assert (theirs.num_episodes, theirs.num_frames, theirs.fps) == (4, 28, 10)
    expected = demonstration(5, seed=1)
    item = theirs[5 + 2]
    assert np.array_equal(item["action"].numpy(), expected["actions"][2])
    picture = item["observation.images.over"].permute(1, 2, 0).numpy()
    assert picture == pytest.approx(expected["over"][2] / 255, abs=1e-3)
