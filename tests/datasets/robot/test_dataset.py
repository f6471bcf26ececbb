"""Demonstrations: kept without loss, whole or not at all, cut into tokens at every delay, made again from their seed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from diffusion_forcing.datasets.generate import generate
from diffusion_forcing.datasets.robot import source as robot_files
from diffusion_forcing.datasets.robot.dataset import Demonstrations, RobotDataset, RobotOptions, waiting_action
from diffusion_forcing.datasets.robot.source import RobotFiles, read_demonstration, save_demonstration, video_file
from diffusion_forcing.errors import UserError
from tests.datasets.robot import makers

CAMERAS = ("front", "over")
STACK = 5


def demonstration(actions: int = 12, size: int = 16, *, seed: int = 0) -> dict[str, NDArray[Any]]:
    """Every frame says its number in its first pixel, every action its number in x."""
    random = np.random.default_rng(seed)
    films = {name: random.integers(0, 256, (actions + 1, size, size, 3), np.uint8) for name in CAMERAS}
    for film in films.values():
        film[:, 0, 0, 0] = np.arange(actions + 1)
    done = random.random((actions, 8), np.float32)
    done[:, 0] = np.arange(actions)
    return {**films, "actions": done, "slots": np.array([0, 2])}


@dataclass(frozen=True)
class Toy:
    """Makes demonstrations of a length that follows from their number."""

    size: int = 16
    frames: int = 13
    recipe: Mapping[str, str | int | float] = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        object.__setattr__(self, "recipe", {"simulator": "toy", "size": self.size})

    def make(self, split: str, index: int) -> dict[str, NDArray[Any]]:
        return demonstration(10 + index, self.size, seed=index)

    def close(self) -> None: ...


def generated(folder: Path) -> RobotDataset:
    """A data set whose demonstrations `Toy` has made already."""
    for split, count in (("training", 3), ("validation", 1)):
        (folder / split).mkdir()
        for index in range(count):
            save_demonstration(folder / split / f"{index:06d}.npz", Toy().make(split, index))
    (folder / "recipe.json").write_text(json.dumps(Toy().recipe))
    return RobotDataset(options(folder))


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RobotDataset, "_simulator", lambda self: Toy())


def options(folder: Path, **changes: Any) -> RobotOptions:
    sizes = {"resolution": 16, "action_stack": STACK, "observation_shape": (6 + STACK, 16, 16), "workers": 1}
    return RobotOptions(
        **{"save_dir": str(folder), "num_episodes": 3, "num_validation_episodes": 1, **sizes, **changes}
    )


def saved(root: Path, episode: Mapping[str, NDArray[Any]]) -> Path:
    """A set of one demonstration; its npz."""
    path = root / "training" / "000000.npz"
    path.parent.mkdir()
    save_demonstration(path, episode)
    return path


def test_what_is_kept_comes_back_bit_for_bit(tmp_path: Path) -> None:
    episode = demonstration()
    folder = saved(tmp_path, episode).parent
    assert sorted(path.name for path in folder.iterdir()) == ["000000.front.mp4", "000000.npz", "000000.over.mp4"]
    read = read_demonstration(RobotFiles(tmp_path), "training", 0, CAMERAS)
    assert set(read) == set(episode)
    for name, array in episode.items():
        assert np.array_equal(read[name], array)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda path: video_file(path, "over").unlink(), r"over\.mp4 .* does not exist"),
        (lambda path: video_file(path, "over").write_bytes(b"nonsense"), "cannot be read"),
        (lambda path: path.write_bytes(path.read_bytes()[:100]), "cannot be read"),
        (lambda path: np.savez(path, actions=np.zeros((3, 8))), "or more for 3 actions"),
        (lambda path: np.savez(path, actions=np.zeros((12, 7))), r"\(n, 8\) finite numbers"),
        (lambda path: np.savez(path, actions=np.full((12, 8), np.nan)), "finite numbers"),
        (lambda path: np.savez(path, action=np.zeros((12, 8))), "lacks 'actions'"),
        (lambda path: np.savez(path, actions=np.array([object()])), "array of object"),
    ],
)
def test_what_is_damaged_is_one_line(tmp_path: Path, damage: Any, said: str) -> None:
    damage(saved(tmp_path, demonstration()))
    with pytest.raises(UserError, match=said):
        read_demonstration(RobotFiles(tmp_path), "training", 0, CAMERAS)


@pytest.mark.parametrize("delay", range(STACK))
def test_a_token_is_what_is_seen_and_the_actions_that_led_there(delay: int) -> None:
    episode = demonstration(12)
    batch = Demonstrations([episode], CAMERAS, range(STACK), stack=STACK, max_tokens=40)[delay]
    count = 1 + -(-(12 + delay) // STACK) + 1
    assert batch.frames.shape == (1, count, 2, 3, 16, 16)
    assert batch.actions.shape == (1, count, STACK, 8)
    assert batch.valid.all()
    for token in range(count):
        now = min(max(token * STACK - delay, 0), 12)
        assert batch.frames[0, token, :, 0, 0, 0].tolist() == [now, now]
        for step in range(STACK):
            number = (token - 1) * STACK + step - delay
            action = batch.actions[0, token, step]
            if 0 <= number < 12:
                assert action[0] == number
            else:  # it waits where it came to rest, open before it begins
                assert action[:7].tolist() == episode["actions"][-1][:7].tolist()
                assert number >= 0 or action[7] == 0


def test_batches_are_as_long_as_their_longest_and_say_what_is_padding() -> None:
    every = Demonstrations([demonstration(4), demonstration(17)], CAMERAS, (0,), stack=STACK, max_tokens=40)
    batch = every.__getitems__([0, 1])
    assert batch.valid.sum(1).tolist() == [3, 6]
    assert torch.equal(batch.frames[0, :3], every[0].frames[0])
    short = Demonstrations([demonstration(17)], CAMERAS, (0,), stack=STACK, max_tokens=3)
    assert short[0].valid.tolist() == [[True] * 3]


@pytest.mark.slow
def test_the_data_set_makes_what_is_missing_and_reads_it(tmp_path: Path, toy: None) -> None:
    data = generated(tmp_path)
    data.prepare(progress=False)
    assert len(data.training()) == 3 * STACK
    assert len(data.validation()) == 1
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.npz")}
    (tmp_path / "training" / "000001.npz").unlink()
    more = RobotDataset(options(tmp_path, num_episodes=4, workers=1))
    assert len(more.training()) == 4 * STACK
    assert {path: path.read_bytes() for path in before} == before
    one = RobotDataset(options(tmp_path, n_cameras=1, observation_shape=(3 + STACK, 16, 16)))
    assert one.training()[0].frames.shape[2] == 1


@pytest.mark.slow
def test_a_demonstration_of_the_expert_follows_from_its_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gymnasium_robotics")
    from diffusion_forcing.environments import swap

    SwapEpisodes = swap.SwapEpisodes

    made = [SwapEpisodes(seed=3, size=16, blocking=0.05).make("training", 5) for _ in range(2)]
    for name, array in made[0].items():
        assert np.array_equal(array, made[1][name])
    episode = made[0]
    count = len(episode["actions"])
    assert episode["front"].shape == (count + 1, 16, 16, 3)
    assert episode["states"].shape == (count + 1, 8)
    assert episode["blocked"].shape == (count + 1, 2)
    assert waiting_action(episode)[:3] == pytest.approx(episode["actions"][-1][:3])
    other = SwapEpisodes(seed=3, size=16).make("validation", 5)
    assert not np.array_equal(other["front"][0], episode["front"][0])
    monkeypatch.setattr(swap, "_ATTEMPTS", 1)  # one failure takes a second
    with pytest.raises(UserError, match=r"failed 1 times in a row with noise 0\.5"):
        SwapEpisodes(noise=0.5, size=16).make("training", 0)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"n_cameras": 3}, r"dataset\.n_cameras is 3"),
        ({"resolution": 20}, r"dataset\.resolution is 20"),
        ({"action_stack": 0}, r"dataset\.action_stack .* got 0"),
        ({"tail": -1}, r"dataset\.tail .* got -1"),
    ],
)
def test_bad_options_are_one_line(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        options(tmp_path, **changes)


def test_more_than_the_memory_holds_is_refused_before_it_is_made(tmp_path: Path, toy: None) -> None:
    with pytest.raises(UserError, match="GB of memory"):
        RobotDataset(options(tmp_path, num_episodes=1_000_000)).prepare(progress=False)


def test_pictures_of_another_size_are_one_line(tmp_path: Path, toy: None, monkeypatch: pytest.MonkeyPatch) -> None:
    generated(tmp_path)
    with pytest.raises(UserError, match=r"16 x 16.* dataset\.resolution"):
        RobotDataset(options(tmp_path, resolution=32, observation_shape=(6 + STACK, 32, 32))).prepare(progress=False)


def test_pictures_are_decoded_once_and_again_where_a_film_changed(
    tmp_path: Path, toy: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[str] = []
    read = robot_files.read_video

    def counting(path: Path, size: int | None = None, *, most: int | None = None) -> NDArray[np.uint8]:
        decoded.append(path.name)
        return read(path, size)

    monkeypatch.setattr(robot_files, "read_video", counting)
    first = generated(tmp_path).training()
    assert len(decoded) == 8
    again = RobotDataset(options(tmp_path)).training()
    assert len(decoded) == 8
    for item in (0, 7, 14):
        assert all(torch.equal(a, b) for a, b in zip(first[item], again[item], strict=True))
    kept = sorted((tmp_path / ".frames" / "16").glob("training-000001.over.*"))
    changed = demonstration(11, seed=77)
    save_demonstration(tmp_path / "training" / "000001.npz", changed)
    new = RobotDataset(options(tmp_path)).training()
    assert decoded[8:] == ["000001.front.mp4", "000001.over.mp4"]
    assert np.array_equal(new[STACK].frames[0, 1, 1].numpy().transpose(1, 2, 0), changed["over"][STACK])
    assert len(kept) == 1 and not kept[0].exists()  # the old one is gone
    damaged = next((tmp_path / ".frames" / "16").glob("training-000000.front.*"))
    damaged.write_bytes(damaged.read_bytes()[:500])
    RobotDataset(options(tmp_path)).prepare(progress=False)
    assert decoded[10:] == ["000000.front.mp4"]
    video_file(tmp_path / "training" / "000002.npz", "over").unlink()
    with pytest.raises(UserError, match=r"over\.mp4 .* does not exist"):
        RobotDataset(options(tmp_path)).prepare(progress=False)


def test_where_nothing_can_be_kept_pictures_are_read_all_the_same(
    tmp_path: Path, toy: None, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / ".frames").write_text("a file, where the folder should be")
    generated(tmp_path)
    expected = RobotDataset(options(tmp_path, cache=False)).training()
    assert capsys.readouterr().out == ""
    found = RobotDataset(options(tmp_path)).training()
    told = capsys.readouterr().out
    assert "kept in memory only" in told and told.count("\n") == 1
    assert torch.equal(found[3].frames, expected[3].frames)


@pytest.mark.slow
def test_a_killed_generation_leaves_whole_demonstrations_and_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    killed = tmp_path / "killed"
    script = str(Path(__file__).parent / "makers.py")
    process = subprocess.Popen([sys.executable, script, str(killed)], start_new_session=True, stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: len(list((killed / "training").glob("*.npz"))) >= 3)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    whole = sorted((killed / "training").glob("*.npz"))
    assert 3 <= len(whole) < 200
    for path in whole:  # two workers need not finish in order
        read_demonstration(RobotFiles(killed, {"training": 200}), "training", int(path.stem), CAMERAS)
    wait_until(lambda: nothing_changes(killed))  # its workers end when its pipes do
    (killed / "training" / ".000150.front.mp4.4194305-0a0a0a0a.tmp").write_bytes(b"half")
    counts = {"training": len(whole) + 2, "validation": 1}
    files = generate(makers.Slow(), killed, counts, workers=1, progress=False, save=save_demonstration)
    assert len(files) == len(whole) + 3
    assert not list(killed.rglob("*.tmp"))
    anew = tmp_path / "anew"
    generate(makers.Slow(), anew, counts, workers=1, progress=False, save=save_demonstration)
    for file in files:
        for path in (file, video_file(file, "front"), video_file(file, "over")):
            assert path.read_bytes() == (anew / path.relative_to(killed)).read_bytes()


def wait_until(true: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it takes too long"
        time.sleep(0.02)


def nothing_changes(folder: Path) -> bool:
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    time.sleep(0.3)
    return before == {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
