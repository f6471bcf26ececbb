"""The voxel landscape: the walker, which walks are kept, how images are matched with moves, and errors without Minetest."""

from __future__ import annotations

import os
import pickle
import struct
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diffusion_forcing.environments import voxel
from diffusion_forcing.environments.voxel import (
    FORWARD,
    HEIGHT,
    LEFT,
    MARKS,
    RIGHT,
    SIZE,
    Lost,
    Server,
    Sight,
    VoxelEpisodes,
    Walker,
    faults,
    find_programs,
    from_gray,
    pixel_layout,
    read_mark,
    shrink,
    world_seed,
)
from diffusion_forcing.errors import UserError


def to_gray(number: int) -> int:
    """Gray code, as the mod has it: consecutive numbers differ in one bit, also 4095 and 0."""
    return number ^ (number >> 1)


def sight(**changes: Any) -> Sight:
    free: dict[str, Any] = {
        "moved": True, "x": 0.0, "y": 0.0, "z": 0.0, "yaw": 0.0, "ahead": 50, "left": 50, "right": 50, "inside": "clear"
    }  # fmt: skip
    return Sight(**free | changes)


def test_a_walker_s_choices_follow_from_its_seed_and_hold_all_three_actions() -> None:
    walks = [[walker.act(sight()) for _ in range(300)] for walker in (Walker(np.random.default_rng(3)) for _ in "ab")]
    assert walks[0] == walks[1]
    assert set(walks[0]) == {FORWARD, LEFT, RIGHT}
    assert walks[0].count(FORWARD) > 150


@pytest.mark.parametrize(("left", "right", "turn"), [(9, 1, LEFT), (1, 9, RIGHT)])
def test_a_walker_turns_to_the_freer_side_before_it_runs_into_something(left: int, right: int, turn: int) -> None:
    walker = Walker(np.random.default_rng(0))
    walker.act(sight())
    assert walker.act(sight(ahead=1, left=left, right=right)) == turn
    assert walker.act(sight(ahead=5, left=left, right=right)) == turn  # until the way is free
    assert walker.act(sight(ahead=40)) == FORWARD


def test_a_walker_walled_in_turns_once_around_and_tries() -> None:
    walker = Walker(np.random.default_rng(0))
    actions = [walker.act(sight(ahead=0, left=0, right=0)) for _ in range(200)]
    assert all(action != FORWARD for action in actions[1:40])


def good_walk(frames: int = 60) -> tuple[np.ndarray, np.ndarray, list[Sight]]:
    """A good one: forward, and a turn at every third frame."""
    video = np.random.default_rng(0).integers(0, 256, (frames, 8, 8, 3), dtype=np.uint8)
    actions = np.where(np.arange(frames) % 3 == 2, LEFT, FORWARD)
    return video, actions, [sight(x=0.3 * t, z=0.1 * t) for t in range(frames)]


def test_a_good_walk_has_no_faults() -> None:
    assert faults(*good_walk()) == []


def test_a_walk_is_refused_for_what_is_wrong_with_it() -> None:
    video, actions, sights = good_walk()
    assert faults(video, np.full_like(actions, LEFT), sights) == ["turns on the spot"]
    assert "runs into walls" in faults(video, actions, [each._replace(moved=False) for each in sights])
    assert faults(video, actions, [each._replace(x=0.0, z=0.0) for each in sights]) == ["stays in one place"]
    assert faults(video, actions, [*sights[:-1], sights[-1]._replace(inside="water")]) == [
        "eyes in a block or in water"
    ]
    assert "dark" in faults(video // 16, actions, sights)
    assert "one surface" in faults((video // 64) + 100, actions, sights)
    stuck = video.copy()
    stuck[7] = stuck[6]  # a picture painted before the move
    assert faults(stuck, actions, sights) == ["an action without effect"]


def painted(mark: int, *, below: int | None = None) -> np.ndarray:
    screen = np.full((HEIGHT, SIZE, 3), 128, np.uint8)
    for rows, number in ((slice(0, 16), mark), (slice(HEIGHT - 16, HEIGHT), mark if below is None else below)):
        for bit in range(12):
            screen[rows, 2 + 10 * bit : 12 + 10 * bit] = 255 if to_gray(number) >> bit & 1 else 0
    return screen


@pytest.mark.parametrize("mark", [0, 1, 1234, MARKS - 1])
def test_a_mark_is_read_as_it_was_painted(mark: int) -> None:
    assert read_mark(painted(mark)) == mark


def test_a_picture_in_the_middle_of_painting_is_told_by_its_marks() -> None:
    assert read_mark(painted(7, below=8)) is None  # above new, below old
    half = painted(7)
    half[:16] = 128
    assert read_mark(half) is None


def test_marks_that_follow_each_other_differ_in_one_square() -> None:
    for number in range(MARKS):
        assert from_gray(to_gray(number)) == number
        assert (to_gray(number) ^ to_gray((number + 1) % MARKS)).bit_count() == 1


def test_a_screen_of_another_size_is_refused() -> None:
    fields = [0] * 25
    fields[0], fields[4], fields[5], fields[11], fields[12], fields[19] = 160, SIZE, HEIGHT, 32, 4 * SIZE, 256
    assert pixel_layout(struct.pack(">25I", *fields)) == (160 + 12 * 256, 4 * SIZE)
    fields[4] = 640
    with pytest.raises(UserError, match=r"Xvfb's screen is 640x160 .*expected 128x160"):
        pixel_layout(struct.pack(">25I", *fields))


def test_a_smaller_picture_holds_the_means_of_the_larger() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (2, SIZE, SIZE, 3), dtype=np.uint8)
    small = shrink(frames, 32)
    means = frames.reshape(2, 32, 4, 32, 4, 3).mean(axis=(2, 4))
    assert small.shape == (2, 32, 32, 3) and np.abs(small - means).max() <= 0.5
    with pytest.raises(UserError, match="resolution 48 cannot be averaged from 128 pixels"):
        VoxelEpisodes(size=48)


def test_no_world_is_in_two_splits_and_a_world_has_several_episodes() -> None:
    worlds = {split: [world_seed(0, split, index) for index in range(64)] for split in voxel.SPLITS}
    assert len(set(worlds["training"])) == 8
    for part, split in enumerate(voxel.SPLITS):
        assert {seed % 3 for seed in worlds[split]} == {part}
    assert world_seed(1, "training", 0) != world_seed(0, "training", 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"seed": -1}, "generate_seed must be at least 0"), ({"frames": 1}, "episode_frames must be")],
)
def test_options_that_cannot_be_are_refused(options: dict[str, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        VoxelEpisodes(**options)


class Lossy:
    """A world that is lost `losses` times, and then paints noise."""

    losses = 0
    closed = 0

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.sight: Sight | None = None
        self._rng = np.random.default_rng(seed)

    def visit(self, x: int, z: int, yaw: float) -> np.ndarray:
        self.sight = sight(yaw=7.0)
        return self._paint()

    def step(self, action: int) -> np.ndarray:
        if type(self).losses:
            type(self).losses -= 1
            raise Lost("no image of a move in 30 s")
        assert self.sight is not None
        self.sight = self.sight._replace(x=self.sight.x + 0.3)
        return self._paint()

    def _paint(self) -> np.ndarray:
        return self._rng.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)

    def close(self) -> None:
        type(self).closed += 1


def test_a_world_that_is_lost_is_started_again_and_given_up_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(voxel, "VoxelWorld", Lossy)
    monkeypatch.setattr(Lossy, "losses", 2)
    episodes = VoxelEpisodes(frames=40, size=16)
    made = episodes.make("training", 0)
    assert made["video"].shape == (40, 16, 16, 3) and Lossy.closed == 2
    assert (made["pose"][:, 3] == np.float32(7.0 % (2 * np.pi))).all()
    again = VoxelEpisodes(frames=40, size=16).make("training", 0)
    assert all(np.array_equal(made[key], again[key]) for key in ("actions", "pose", "world"))
    assert pickle.loads(pickle.dumps(episodes)) == episodes  # without its open world: it goes to workers
    episodes.close()
    monkeypatch.setattr(Lossy, "losses", 99)
    with pytest.raises(UserError, match=r"Minetest was lost 3 times in a row: no image of a move"):
        VoxelEpisodes(frames=40, size=16).make("training", 0)


def test_what_is_not_installed_is_named_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(voxel.shutil, "which", lambda *_, **__: None)
    with pytest.raises(
        UserError, match=r"need minetest and Xvfb, not found here; install with: apt-get install .*xvfb"
    ):
        find_programs()


@pytest.fixture
def impostors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Programs that stand in for minetest and Xvfb, both ending at once; temporary files under tmp_path."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("minetest", "Xvfb"):
        file = programs / name
        file.write_text(f"#!{sys.executable}\nimport sys\nprint('ERROR: no video')\nsys.exit(3)\n")
        file.chmod(0o755)
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(voxel.tempfile, "tempdir", str(temporary))
    return temporary


def test_a_simulator_that_does_not_start_is_one_line_and_leaves_nothing(impostors: Path) -> None:
    with pytest.raises(UserError, match=r"Minetest's world 5 does not start: Xvfb does not start; ERROR: no video"):
        Server(5)
    assert list(impostors.iterdir()) == []


def _installed() -> bool:
    try:
        find_programs()
    except UserError:
        return False
    return True


@pytest.mark.skipif(not _installed(), reason=f"Minetest is not installed: {voxel.INSTALL}")
def test_a_walk_in_the_real_simulator_shows_what_its_actions_do() -> None:
    episodes = VoxelEpisodes(frames=24, size=32)
    try:
        made = episodes.make("test", 0)
    finally:
        folder = episodes._world._server._folder if episodes._world else None
        episodes.close()
    video, actions, pose = made["video"], made["actions"][:-1], made["pose"]
    assert video.shape == (24, 32, 32, 3) and video.std() > 5
    turned = np.diff(np.unwrap(pose[:, 3]))
    np.testing.assert_allclose(turned[actions == FORWARD], 0, atol=1e-2)
    np.testing.assert_allclose(turned[actions == LEFT], np.radians(7.5), atol=2e-2)
    np.testing.assert_allclose(turned[actions == RIGHT], -np.radians(7.5), atol=2e-2)
    moved = np.hypot(*np.diff(pose[:, [0, 2]], axis=0).T)
    np.testing.assert_allclose(moved[(actions == FORWARD) & made["moved"][1:]], 0.3, atol=2e-2)
    assert (moved[actions != FORWARD] == 0).all()
    assert folder is not None
    end = time.monotonic() + 5
    while folder.exists() and time.monotonic() < end:
        time.sleep(0.1)
    assert not folder.exists()
