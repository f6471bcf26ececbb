"""Lab mazes: layouts that keep to their split, exact moves, a walker that gets where it wants, and pictures that follow from the seed."""

from __future__ import annotations

import os
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from diffusion_forcing.environments.labmaze import (
    CELL,
    FORWARD,
    LEFT,
    RIGHT,
    SPLITS,
    STEP,
    LabMaze,
    LabMazeEpisodes,
    Walker,
    build_wad,
    cell_of,
    centre,
    draw_pose,
    draw_walls,
    move,
    screen_for,
    split_of,
)
from diffusion_forcing.environments.mazes.layout import breadth_first
from diffusion_forcing.errors import UserError

for _package in ("labmaze", "vizdoom", "PIL"):
    pytest.importorskip(_package)

HALL = np.array([[letter == "#" for letter in row] for row in ("#####", "#   #", "### #", "#####")])


def rng(*seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def drawn(split: str, count: int) -> list[NDArray[np.bool_]]:
    return [draw_walls(rng(5, k), split) for k in range(count)]


@pytest.mark.parametrize("split", SPLITS)
def test_a_drawn_layout_is_closed_connected_and_of_its_split(split: str) -> None:
    for walls in drawn(split, 20):
        assert walls.shape == (9, 9) and walls[[0, -1]].all() and walls[:, [0, -1]].all()
        i, j = np.argwhere(~walls)[0].tolist()
        assert (breadth_first(walls, (i, j)) >= 0).sum() == (~walls).sum() >= 20
        assert split_of(walls) == split


def test_no_rotation_or_mirror_image_of_a_layout_is_in_another_split() -> None:
    for walls in drawn("training", 10) + drawn("test", 10):
        views = [np.rot90(side, k) for side in (walls, walls.T, walls[::-1]) for k in range(4)]
        assert {split_of(view) for view in views} == {split_of(walls)}


def test_splits_take_their_shares_of_all_layouts() -> None:
    layouts = rng(0).random((2000, 9, 9)) < 0.5
    found = [split_of(walls) for walls in layouts]
    assert {split: found.count(split) / len(found) for split in SPLITS} == pytest.approx(SPLITS, abs=0.03)


@pytest.mark.slow
def test_layouts_and_looks_differ_from_episode_to_episode() -> None:
    walls = drawn("training", 60)
    assert len({layout.tobytes() for layout in walls}) > 20
    levels = {build_wad(walls[0], rng(k)) for k in range(10)}
    assert len(levels) == 10


def test_a_level_has_a_line_for_every_side_of_a_cell_that_faces_a_wall() -> None:
    wad = build_wad(HALL, rng(0))
    kind, count, place = struct.unpack_from("<4sii", wad)
    entries = [struct.unpack_from("<ii8s", wad, place + 16 * k) for k in range(count)]
    lumps = {name.rstrip(b"\0").decode(): wad[begin : begin + size] for begin, size, name in entries}
    assert kind == b"PWAD" and place + 16 * count == len(wad)
    assert len(lumps["PLAYPAL"]) == 14 * 768 and len(lumps["COLORMAP"]) == 34 * 256
    text = lumps["TEXTMAP"].decode()
    # four cells in a row with a corner have ten sides
    assert text.count("linedef{") == text.count("sidedef{") == 10 and text.count("vertex{") == 10
    assert lumps["DLW0"].startswith(b"\x89PNG") and "DLS0" in lumps


def test_moves_are_exact_and_turns_undo_each_other() -> None:
    x, y = centre((1, 1))
    assert move(HALL, (x, y, 0), FORWARD) == (x + STEP, y, 0)
    assert move(HALL, (x, y, 0), LEFT) == (x, y, 15)
    assert move(HALL, (x, y, 0), RIGHT) == (x, y, 345)
    assert move(HALL, move(HALL, (x, y, 345), LEFT), RIGHT) == (x, y, 345)
    with pytest.raises(UserError, match=r"0 \(forward\), 1 \(left\) or 2 \(right\), got 3"):
        move(HALL, (x, y, 0), 3)


def test_a_wall_stops_the_agent_and_lets_it_slide_along() -> None:
    pose = (*centre((1, 1)), 45)
    for _ in range(6):
        pose = move(HALL, pose, FORWARD)
    assert -CELL - 16 - STEP < pose[1] < -CELL - 16 + 1e-9  # as near to the northern wall as whole steps lead
    assert pose[0] == pytest.approx(centre((1, 1))[0] + 6 * STEP * np.cos(np.pi / 4))
    ahead = (*centre((1, 3)), 0)
    for _ in range(10):
        ahead = move(HALL, ahead, FORWARD)
    assert 4 * CELL - 16 - STEP <= ahead[0] <= 4 * CELL - 16 and ahead == move(HALL, ahead, FORWARD)


@pytest.mark.parametrize("seed", range(20))
def test_the_walker_never_hits_a_wall_and_sees_much_of_the_maze(seed: int) -> None:
    walls = draw_walls(rng(seed), "training")
    walker, pose = Walker(walls, rng(seed, 1)), draw_pose(walls, rng(seed, 2))
    seen, counts, still = set(), [0, 0, 0], 0
    for _ in range(300):
        action = walker.act(pose)
        after = move(walls, pose, action)
        still += after == pose
        counts[action] += 1
        pose = after
        seen.add(cell_of(*pose[:2]))
    assert still == 0 and len(seen) >= 10
    assert counts[FORWARD] > 100 and min(counts[LEFT], counts[RIGHT]) > 10


def test_the_walker_takes_a_shortest_path() -> None:
    walls = draw_walls(rng(1), "training")
    walker, pose = Walker(walls, rng(2)), draw_pose(walls, rng(3))
    walker.act(pose)
    away = [walker._distances[cell_of(*pose[:2])]]
    while away[-1] > 0:
        pose = move(walls, pose, walker.act(pose))
        away.append(walker._distances[cell_of(*pose[:2])])
        assert len(away) < 300
    assert away == sorted(away, reverse=True)


@pytest.fixture(scope="module")
def episode() -> dict[str, NDArray[np.generic]]:
    return LabMazeEpisodes(seed=3, frames=40).make("test", 0)


def test_an_episode_has_the_shapes_and_types_of_tecos_files(episode: dict[str, NDArray[np.generic]]) -> None:
    assert {key: (value.shape, str(value.dtype)) for key, value in episode.items()} == {
        "video": ((40, 64, 64, 3), "uint8"),
        "actions": ((40,), "int64"),
        "pose": ((40, 3), "float32"),
        "walls": ((9, 9), "bool"),
        "seed": ((), "int64"),
    }
    video = episode["video"].astype(np.float32)
    assert video.mean() > 40 and video.std(axis=(1, 2, 3)).min() > 5


def test_an_action_leads_to_the_next_pose(episode: dict[str, NDArray[np.generic]]) -> None:
    poses = episode["pose"].astype(np.float64)
    for t, action in enumerate(episode["actions"][:-1].tolist()):
        x, y, heading = poses[t].tolist()
        assert move(episode["walls"].astype(bool), (x, y, round(heading)), action) == pytest.approx(
            poses[t + 1], abs=1e-3
        )


@pytest.mark.slow
def test_an_episode_follows_from_seed_split_and_index(episode: dict[str, NDArray[np.generic]]) -> None:
    again = LabMazeEpisodes(seed=3, frames=40).make("test", 0)
    assert all((again[key] == episode[key]).all() for key in episode)
    others = [LabMazeEpisodes(seed=4, frames=2).make("test", 0), LabMazeEpisodes(seed=3, frames=2).make("test", 1)]
    assert all((other["video"][0] != episode["video"][0]).any() for other in others)


def test_left_moves_the_picture_right_and_forward_makes_the_wall_grow() -> None:
    walls = draw_walls(rng(3), "test")
    with LabMaze(walls, rng(0)) as world:
        first, left = world.reset(), world.step(LEFT)
        assert _shift(first, left) > 4
        assert _shift(left, world.step(RIGHT)) < -4
        assert (world.reset() == first).all()  # a turn back shows the same picture to the last bit


def _shift(before: NDArray[np.uint8], after: NDArray[np.uint8]) -> int:
    """Pixels by which the middle rows moved right."""
    old, new = (frame[10:30].astype(np.float32) for frame in (before, after))
    gaps = {
        s: np.abs(new[:, max(0, s) : 64 + min(0, s)] - old[:, max(0, -s) : 64 - max(0, s)]).mean()
        for s in range(-20, 21)
    }
    return min(gaps, key=gaps.__getitem__)


def test_painting_leaves_nothing_where_the_user_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "temporary").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    with LabMaze.random(0, size=40) as world:
        assert world.reset().shape == (40, 40, 3) and split_of(world.walls) == "test"
    world.close()
    assert os.getcwd() == str(tmp_path / "here")
    assert not list((tmp_path / "here").iterdir()) and not list((tmp_path / "temporary").iterdir())
    with pytest.raises(UserError, match="reset a LabMaze before its first step"):
        world.step(FORWARD)


@pytest.mark.parametrize("package", ["labmaze", "vizdoom", "PIL"])
def test_a_missing_package_is_named_with_the_extra_that_brings_it(
    package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=rf"need.* the package {package}.*pip install 'diffusion-forcing\[video\]'"):
        LabMazeEpisodes(frames=2).make("test", 0)


def test_options_out_of_range_are_refused_before_anything_is_painted() -> None:
    with pytest.raises(UserError, match=r"resolution 65 cannot be rendered; choose one of .*64"):
        LabMazeEpisodes(size=65)
    with pytest.raises(UserError, match="generate_seed must be at least 0"):
        LabMazeEpisodes(seed=-1)
    with pytest.raises(UserError, match="episode_frames must be at least 2"):
        LabMazeEpisodes(frames=1)
    with pytest.raises(UserError, match="split must be one of training, validation, test, got 'train'"):
        draw_walls(rng(0), "train")


@pytest.mark.parametrize(("size", "height"), [(40, 120), (64, 192), (128, 384), (32, 192), (256, 768)])
def test_a_frame_is_painted_from_whole_blocks_of_pixels(size: int, height: int) -> None:
    assert screen_for(size) == (height * 4 // 3, height)
