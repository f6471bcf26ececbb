"""Which files of a folder are one episode, and on which side of the split a clip is."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from diffusion_forcing.datasets.video.episode import find_groups, has_clips, place_of, splits_of
from diffusion_forcing.errors import UserError


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)


def test_files_of_one_stem_are_one_episode_and_others_are_not_looked_at(tmp_path: Path) -> None:
    touch(
        tmp_path,
        "a/x.mp4",
        "a/x.npz",
        "a/y.npz",
        "a/y.tmp",
        "b.GIF",
        "b.actions.csv",
        "notes.txt",
        "only.csv",
        ".cache/z.npz",
    )
    groups = {group.stem: sorted(group.endings) for group in find_groups(tmp_path)}
    assert groups == {"a/x": [".mp4", ".npz"], "a/y": [".npz"], "b": [".actions.csv", ".gif"]}


def test_a_path_keeps_the_ending_as_it_is_written(tmp_path: Path) -> None:
    touch(tmp_path, "Clip.MP4")
    (group,) = find_groups(tmp_path)
    assert group.path(tmp_path, ".mp4").is_file()


def test_the_stamp_changes_when_any_file_of_the_episode_does(tmp_path: Path) -> None:
    touch(tmp_path, "x.mp4", "x.npz", "other.mp4")
    before = {group.stem: group.stamp for group in find_groups(tmp_path)}
    (tmp_path / "x.npz").write_text("longer than before")
    after = {group.stem: group.stamp for group in find_groups(tmp_path)}
    assert after["x"] != before["x"] and after["other"] == before["other"]


def test_a_link_to_a_folder_is_followed_and_a_ring_of_links_ends(tmp_path: Path) -> None:
    touch(tmp_path / "elsewhere", "x.mp4")
    (tmp_path / "data").mkdir()
    os.symlink(tmp_path / "elsewhere", tmp_path / "data" / "training")
    os.symlink(tmp_path / "data", tmp_path / "data" / "ring")
    assert [group.stem for group in find_groups(tmp_path / "data")] == ["training/x"]
    assert has_clips(tmp_path / "data")


def test_a_folder_that_is_not_there_is_said(tmp_path: Path) -> None:
    assert not has_clips(tmp_path / "none")
    with pytest.raises(UserError, match="is not a folder; place clips there, or give"):
        find_groups(tmp_path / "none")


@pytest.mark.parametrize("top", ["", "dmlab/", "my/own/"])
def test_split_folders_are_found_at_the_top_or_below_the_one_folder_of_all(top: str) -> None:
    stems = [f"{top}{name}" for name in ("train/0/a", "training/b", "val/c", "test/d", "test/1/e")]
    assert splits_of(stems, 0.1) == {"training": [0, 1], "validation": [2], "test": [3, 4]}


def test_tecos_test_folder_is_validation_too_where_there_is_no_other() -> None:
    places = splits_of(["train/a", "train/b", "test/c"], 0.5)
    assert places == {"training": [0, 1], "validation": [2], "test": [2]}


def test_without_folders_a_clip_stays_on_its_side_when_others_come() -> None:
    few = [f"clip{i}" for i in range(50)]
    many = [f"clip{i}" for i in range(500)]
    first, later = splits_of(few, 0.2), splits_of(many, 0.2)
    assert {few[i] for i in first["validation"]} <= {many[i] for i in later["validation"]}
    assert {few[i] for i in first["training"]} <= {many[i] for i in later["training"]}
    assert 60 < len(later["validation"]) < 140 and later["test"] == []
    assert all(place_of(many[i]) < 0.2 for i in later["validation"])


def test_both_sides_have_a_clip_where_there_are_two() -> None:
    places = splits_of(["a", "b"], 0.001)
    assert len(places["training"]) == len(places["validation"]) == 1
    assert places["training"] != places["validation"]


@pytest.mark.parametrize(("stems", "fraction"), [(["a"], 0.1), (["a", "b", "c"], 0.0)])
def test_one_clip_or_no_fraction_is_training_and_validation_both(stems: list[str], fraction: float) -> None:
    every = list(range(len(stems)))
    assert splits_of(stems, fraction) == {"training": every, "validation": every, "test": []}


def test_a_training_folder_alone_is_split_by_hash() -> None:
    places = splits_of([f"training/{i}" for i in range(20)] + ["elsewhere"], 0.2)
    assert 20 not in places["training"] + places["validation"]
    assert sorted(places["training"] + places["validation"]) == list(range(20)) and places["validation"]
