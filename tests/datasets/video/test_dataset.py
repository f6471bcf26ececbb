"""The data set as the launcher builds it: public layouts found, files that cannot be used left out, mistakes said in one line."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diffusion_forcing.datasets.video import dataset as video_sources
from diffusion_forcing.datasets.video.dataset import VideoDataset, VideoDatasetOptions
from diffusion_forcing.errors import UserError
from diffusion_forcing.experiments.loader import BatchLoader, ResumableLoader
from tests.datasets.video.test_cache import everything_below, small_disk
from tests.datasets.video_makers import cut, decode, moving_pattern, noise, write_npz, write_video


def data(folder: Path, **changes: Any) -> VideoDataset:
    plain = {"save_dir": str(folder), "resolution": 16, "n_frames": 4, "frame_skip": 1, "workers": 1, **changes}
    size = plain["resolution"]
    return VideoDataset(VideoDatasetOptions(observation_shape=(3, size, size), **plain))


def dmlab(
    folder: Path, *, clips: int = 3, frames: int = 12, packed: bool = True, **splits: str
) -> dict[str, np.ndarray]:
    """TECO's DMLab layout; the pixels by file."""
    names = splits or {"training": "training", "validation": "validation"}
    found = {}
    for place, split in enumerate(names.values()):
        for i in range(clips):
            video, path = noise(frames, seed=100 * place + i), folder / split / f"{i % 2}" / f"{i:03d}.npz"
            write_npz(path, video, (np.arange(frames) + i) % 3, packed=packed)
            found[path.relative_to(folder).as_posix()] = video
    return found


def minecraft(folder: Path, *, clips: int = 3, frames: int = 12, size: int = 16) -> None:
    """TECO's Minecraft layout: mp4 with a npz of actions beside it, one more than frames lead anywhere, folders train and test."""
    for split in ("train", "test"):
        for i in range(clips):
            write_video(
                folder / split / "3" / f"{i:06d}.mp4",
                moving_pattern(frames, size, seed=i),
                actions=np.arange(frames) % 4,
            )


@pytest.mark.parametrize("cache", ["auto", "none", "memmap"])
@pytest.mark.parametrize("packed", [False, True])
def test_tecos_dmlab_is_read_as_it_lies_there(tmp_path: Path, packed: bool, cache: str) -> None:
    files = dmlab(tmp_path, packed=packed)
    lab = data(tmp_path, external_cond_dim=3, frame_skip=2, action_shift=0, cache=cache)
    assert not (tmp_path / ".cache").exists()  # building looks at nothing
    lab.prepare(progress=False)
    training = lab.training()
    assert len(training) == 3 * (12 - 8 + 1) and len(lab.validation()) == len(lab.test()) == 3
    batch = training.__getitems__([7])  # clip 2 of episode 1
    video = files[training.episodes[1].file]
    assert (batch.frames[0].permute(0, 2, 3, 1).numpy() == video[2:10:2]).all()
    first = int(training.episodes[1].stem[-1])
    expected = [(frame + first) % 3 for row in (2, 4, 6, 8) for frame in (row - 1, row)]
    assert batch.actions[0].reshape(8, 3).argmax(1).tolist() == expected and batch.known.all()
    copies = list((tmp_path / ".cache").rglob("*.npy"))
    assert len(copies) == (6 if packed and cache != "none" else 0)


@pytest.mark.parametrize("cache", ["auto", "none"])
def test_tecos_minecraft_is_read_as_it_lies_there(tmp_path: Path, cache: str) -> None:
    minecraft(tmp_path)
    craft = data(tmp_path, external_cond_dim=4, cache=cache, validation_multiplier=2)
    craft.prepare(progress=False)
    training, validation = craft.training(), craft.validation()
    assert len(training) == 27 and len(validation) == 3 and len(craft.test()) == 3
    every = decode(tmp_path / training.episodes[1].file)
    assert (training[9 + 5].frames[0].permute(0, 2, 3, 1).numpy() == every[5:9]).all()
    assert training[9 + 5].actions[0].argmax(1).tolist() == [0, 1, 2, 3]
    assert validation[0].frames.shape == (1, 8, 3, 16, 16)


def test_an_unpacked_archive_placed_by_hand_is_found_below_its_own_folder(tmp_path: Path) -> None:
    dmlab(tmp_path / "dmlab", train="train", test="test")
    lab = data(tmp_path, urls=("http://127.0.0.1:9/x.tar",))
    lab.prepare(progress=False)
    assert len(lab.episodes["training"]) == len(lab.episodes["validation"]) == 3


def test_any_folder_of_videos_is_split_by_itself(tmp_path: Path) -> None:
    for i in range(4):
        write_video(tmp_path / "videos" / "holiday" / f"{i}.mp4", moving_pattern(10, (18, 24), seed=i))
    write_video(tmp_path / "videos" / "a.gif", moving_pattern(10, 18))
    write_video(tmp_path / "videos" / "b.webm", moving_pattern(10, 20), codec="libvpx", b="200000")
    np.save(tmp_path / "videos" / "c.npy", noise(10, 20))
    videos = data(tmp_path / "work", source="path", path=str(tmp_path / "videos"))
    videos.prepare(progress=False)
    counts = {split: len(episodes) for split, episodes in videos.episodes.items()}
    assert sum(counts.values()) == 7 and counts["validation"] >= 1 and counts["test"] == 0
    batch = videos.training().__getitems__(list(range(len(videos.training()))))
    assert batch.frames.shape[1:] == (4, 3, 16, 16) and batch.valid.all()
    assert not any(
        path.name.startswith(".") for path in (tmp_path / "videos").iterdir()
    )  # nothing is written beside the clips


def test_preparing_again_looks_into_nothing_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dmlab(tmp_path)
    data(tmp_path).prepare(progress=False)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    monkeypatch.setattr("diffusion_forcing.datasets.video.episode.inspect", None)
    again = data(tmp_path)
    again.prepare(progress=False)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    assert len(again.training()) == 27


def test_only_what_is_new_or_changed_is_looked_into(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from diffusion_forcing.datasets.video import episode as video_index

    dmlab(tmp_path, packed=False)
    data(tmp_path).prepare(progress=False)
    looked, inspect = [], video_index.inspect
    monkeypatch.setattr(video_index, "inspect", lambda root, group: looked.append(group.stem) or inspect(root, group))
    write_npz(tmp_path / "training" / "new.npz", noise(12))
    write_npz(tmp_path / "training" / "0" / "000.npz", noise(20), packed=True)
    (tmp_path / "training" / "1" / "001.npz").unlink()
    changed = data(tmp_path)
    changed.prepare(progress=False)
    assert sorted(looked) == ["training/0/000", "training/new"]
    assert [episode.frames for episode in changed.episodes["training"]] == [20, 12, 12]


def test_a_damaged_index_is_made_again(tmp_path: Path) -> None:
    dmlab(tmp_path)
    data(tmp_path).prepare(progress=False)
    (tmp_path / ".cache" / "index.npz").write_bytes(b"no index")
    again = data(tmp_path)
    again.prepare(progress=False)
    assert len(again.training()) == 27


def test_files_that_cannot_be_used_are_named_counted_and_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dmlab(tmp_path)
    cut(tmp_path / "training" / "0" / "000.npz", 40)
    raw = bytearray((tmp_path / "training" / "1" / "001.npz").read_bytes())
    raw[len(raw) // 2] ^= 0xFF  # its ends are whole: only decoding it shows
    (tmp_path / "training" / "1" / "001.npz").write_bytes(raw)
    write_npz(tmp_path / "training" / "small.npz", noise(12, 8))
    for _ in range(2):  # the second time the index knows
        lab = data(tmp_path)
        lab.prepare(progress=False)
        out = capsys.readouterr().out
        assert "left out: training/0/000.npz is not a readable npz file" in out
        assert "left out: training/1/001.npz is damaged or cut off" in out
        assert "left out: training/small.npz has frames of 8x8, smaller than dataset.resolution=16" in out
        assert "3 of 7 clips in" in out and len(lab.training()) == 9


def test_frames_that_are_larger_are_made_smaller_once(tmp_path: Path) -> None:
    write_npz(tmp_path / "training" / "a.npz", np.full((6, 40, 64, 3), 9, dtype=np.uint8))
    write_npz(tmp_path / "validation" / "a.npz", np.full((6, 40, 64, 3), 9, dtype=np.uint8))
    for cache in ("none", "auto"):
        clips = data(tmp_path, cache=cache).training()
        assert clips[0].frames.shape == (1, 4, 3, 16, 16) and (clips[0].frames == 9).all()
    assert len(list((tmp_path / ".cache" / "16").rglob("*.npy"))) == 2


def test_the_loader_hands_out_whole_batches_in_an_order_that_can_be_resumed(tmp_path: Path) -> None:
    dmlab(tmp_path, packed=False)
    clips = data(tmp_path, external_cond_dim=3).training()
    loader = ResumableLoader(clips, batch_size=4, shuffle=True, drop_last=True)
    batches = iter(loader)
    next(batches)
    state = loader.state_dict()
    expected = next(batches)
    later = ResumableLoader(clips, batch_size=4, shuffle=True, drop_last=True)
    later.load_state_dict(state)
    assert all((one == other).all() for one, other in zip(expected, next(iter(later)), strict=True))
    assert [len(batch.frames) for batch in BatchLoader(data(tmp_path).validation(), batch_size=2, shuffle=False)] == [
        2,
        2,
        2,
        2,
        1,
    ]


class Simulator:
    """Episodes of plain noise."""

    frames = 6
    recipe: Mapping[str, str | int | float] = {"simulator": "noise"}

    def make(self, split: str, index: int) -> dict[str, np.ndarray]:
        return {"video": noise(6, seed=index), "actions": np.zeros(6, dtype=np.uint8)}

    def close(self) -> None:
        """Nothing is open."""


@pytest.fixture
def simulated(monkeypatch: pytest.MonkeyPatch) -> list[Mapping[str, int]]:
    """Generates in this process; the list holds what was asked for."""
    asked: list[Mapping[str, int]] = []

    def generate(simulator: Any, folder: Path, counts: Mapping[str, int], **_: Any) -> list[Path]:
        asked.append(counts)
        every = [(split, i) for split, count in counts.items() for i in range(count)]
        files = [folder / split / f"{i:06d}.npz" for split, i in every]
        for (split, i), file in zip(every, files, strict=True):
            if not file.exists():
                write_npz(file, **simulator.make(split, i))
        (folder / "recipe.json").write_text("{}")
        return files

    monkeypatch.setattr(video_sources, "generate", generate)
    monkeypatch.setattr(video_sources, "_simulator", lambda options: Simulator())
    return asked


def test_a_generated_set_is_made_when_it_is_not_there_and_finished_when_it_was_begun(
    tmp_path: Path, simulated: list[Mapping[str, int]], capsys: pytest.CaptureFixture[str]
) -> None:
    words = {"generator": "labmaze", "num_episodes": 3, "num_validation_episodes": 2, "num_test_episodes": 1}
    made = data(tmp_path, **words)
    made.prepare()
    assert {split: len(episodes) for split, episodes in made.episodes.items()} == {
        "training": 3,
        "validation": 2,
        "test": 1,
    }
    assert "generating 6 episodes (labmaze)" in capsys.readouterr().out
    (tmp_path / "training" / "000001.npz").unlink()
    again = data(tmp_path, **words)
    again.prepare(progress=False)
    assert len(again.episodes["training"]) == 3 and len(simulated) == 2


def test_generating_says_where_and_how_much(
    tmp_path: Path, simulated: list[Mapping[str, int]], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = data(tmp_path, generator="voxel", num_episodes=2, episode_frames=6).generate(progress=False)
    assert folder == tmp_path and simulated == [{"training": 2}]
    assert capsys.readouterr().out == f"{tmp_path}: 2 episodes of 6 frames\n"


def test_clips_placed_by_hand_are_not_added_to(tmp_path: Path, simulated: list[Mapping[str, int]]) -> None:
    dmlab(tmp_path)
    data(tmp_path, generator="labmaze", num_episodes=3).prepare(progress=False)
    assert simulated == []


def test_a_data_set_without_a_simulator_cannot_be_generated(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no simulator; choose dataset=video_labmaze or dataset=video_voxel"):
        data(tmp_path, num_episodes=3).generate()
    with pytest.raises(UserError, match=r"set dataset\.num_episodes"):
        data(tmp_path, generator="labmaze").generate()


def wrong_actions(values: np.ndarray | None) -> Any:
    return lambda folder: write_npz(folder / "training" / "x.npz", noise(12), values)


@pytest.mark.parametrize(
    ("make", "changes", "words"),
    [
        (lambda folder: None, {}, "is not a folder; place clips there"),
        (lambda folder: folder.mkdir(), {}, "holds no clips (videos, npz or npy)"),
        (lambda folder: (folder.mkdir(), (folder / "a.mp4").write_bytes(b"x")), {}, "none of the clips in"),
        (dmlab, {"resolution": 32}, "6 found"),
        (dmlab, {"resolution": 32}, "frames of 16x16, smaller than dataset.resolution=32"),
        (wrong_actions(None), {"external_cond_dim": 3}, "training/x.npz has no actions"),
        (
            wrong_actions(np.arange(12) % 4),
            {"external_cond_dim": 3},
            "has actions from 0 to 3, but dataset.external_cond_dim=3",
        ),
        (wrong_actions(-np.arange(12)), {"external_cond_dim": 3}, "has actions from -11 to 0"),
        (wrong_actions(np.zeros((12, 2), dtype=int)), {"external_cond_dim": 3}, "actions of width 2"),
        (wrong_actions(np.linspace(0, 1, 12)), {"external_cond_dim": 3}, "set dataset.action_kind=continuous"),
        (
            wrong_actions(np.zeros((12, 2))),
            {"external_cond_dim": 3, "action_kind": "continuous"},
            "has actions of width 2; set dataset.external_cond_dim to it",
        ),
        (
            wrong_actions(np.zeros(7, dtype=int)),
            {"external_cond_dim": 3},
            "has 7 actions for 12 frames, at least 11 are needed",
        ),
        (wrong_actions(np.zeros((12, 2, 2))), {"external_cond_dim": 3}, "expected numbers (t,) or (t, a)"),
    ],
)
def test_data_that_cannot_serve_is_said_in_one_line(
    tmp_path: Path, make: Any, changes: dict[str, Any], words: str
) -> None:
    make(tmp_path / "data")
    with pytest.raises(UserError) as caught:
        data(tmp_path / "data", validation_fraction=0.0, **changes).training()
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_actions_nobody_asks_for_may_be_anything(tmp_path: Path) -> None:
    wrong_actions(np.zeros((12, 2, 2)))(tmp_path)
    assert data(tmp_path).training()[0].actions.shape == (1, 4, 0)


def test_a_split_without_clips_is_said(tmp_path: Path) -> None:
    write_npz(tmp_path / "validation" / "a.npz", noise(12))
    with pytest.raises(UserError, match="has no training clips; place some in"):
        data(tmp_path).training()


def test_a_full_disk_leaves_no_half_written_index(tmp_path: Path) -> None:
    dmlab(tmp_path, packed=False)
    with small_disk(100), pytest.raises(UserError, match="cannot write the index") as caught:
        data(tmp_path).prepare(progress=False)
    assert "\n" not in str(caught.value) and everything_below(tmp_path / ".cache") == set()


def test_a_save_dir_that_is_a_file_is_said_in_one_line(tmp_path: Path) -> None:
    dmlab(tmp_path / "clips")
    (tmp_path / "data").write_text("")
    with pytest.raises(UserError, match="cannot write in"):
        data(tmp_path / "data", source="path", path=str(tmp_path / "clips")).prepare(progress=False)


def test_a_data_set_that_cannot_be_downloaded_says_what_to_place_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("diffusion_forcing.datasets.download.time.sleep", lambda _: None)
    folder = tmp_path / "data"
    with pytest.raises(UserError) as caught:
        data(folder, urls=("http://127.0.0.1:9/download/dmlab_dataset_aa/dmlab.tar.partaa",)).prepare(progress=False)
    line = str(caught.value)
    assert "cannot download http://127.0.0.1:9" in line and "\n" not in line
    assert f"unpack the archive yourself so that {folder} contains training and validation" in line
    assert [path for path in folder.rglob("*") if path.suffix != ".lock"] == []


def test_a_clip_that_goes_away_while_training_is_named_and_another_taken(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dmlab(tmp_path, packed=False)
    clips = data(tmp_path).training()
    os.unlink(tmp_path / clips.episodes[0].file)
    batch = clips.__getitems__(list(range(len(clips))))
    assert batch.frames.shape[0] == len(clips) and clips.unreadable == {clips.episodes[0].file}
    assert "No such file" in capsys.readouterr().err
