"""Options out of range are refused in one line before anything is looked at, and the yaml files say what people know."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from diffusion_forcing.datasets.video.dataset import VideoDatasetOptions
from diffusion_forcing.errors import UserError
from diffusion_forcing.options import build_options


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"n_frames": 0}, "dataset.n_frames must be at least 1"),
        ({"resolution": 4, "observation_shape": (3, 4, 4)}, "dataset.resolution must be at least 8"),
        ({"frame_skip": 0}, "dataset.frame_skip must be at least 1"),
        ({"validation_multiplier": 0}, "dataset.validation_multiplier must be at least 1"),
        ({"external_cond_dim": -1}, "dataset.external_cond_dim must be at least 0"),
        ({"observation_shape": (3, 64, 32)}, "set dataset.resolution alone"),
        ({"observation_shape": (1, 64, 64)}, "dataset.observation_shape is [1, 64, 64]"),
        ({"action_kind": "discreet"}, "did you mean 'discrete'?"),
        ({"action_shift": 2}, "dataset.action_shift must be 0 or 1"),
        ({"cache": "memap"}, "did you mean 'memmap'?"),
        ({"source": "downlod"}, "did you mean 'download'?"),
        ({"source": "path"}, "needs dataset.path=<folder of clips>"),
        ({"source": "download"}, "needs dataset.urls"),
        ({"source": "generate"}, "dataset=video_labmaze or dataset=video_voxel"),
        ({"source": "download", "urls": ("a",), "path": "x"}, "dataset.path is not used with dataset.source=download"),
        ({"urls": ("a", "b"), "sha256": ("c",)}, "dataset.sha256 has 1 sums for 2 dataset.urls"),
        ({"validation_fraction": 1.0}, "dataset.validation_fraction must be in [0, 1)"),
        ({"data_mean": (0.5, 0.5)}, "dataset.data_mean must be"),
        ({"data_std": 0.0}, "dataset.data_std must be one or three finite numbers"),
        ({"data_std": float("nan")}, "dataset.data_std must be"),
        ({"episode_frames": 1}, "dataset.episode_frames must be at least 2"),
        ({"workers": -1}, "dataset.workers must be at least 0"),
    ],
)
def test_an_option_out_of_range_is_refused_in_one_line(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as caught:
        VideoDatasetOptions(**changes)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_the_columns_of_a_row_follow_from_kind_and_skip() -> None:
    assert VideoDatasetOptions(external_cond_dim=3, frame_skip=2).num_action_columns == 6
    assert VideoDatasetOptions(external_cond_dim=3, frame_skip=2, action_kind="continuous").num_action_columns == 3
    assert VideoDatasetOptions().num_action_columns == 0


def composed(name: str) -> VideoDatasetOptions:
    from diffusion_forcing.launch.compose import compose, resolved

    section = resolved(compose([f"dataset={name}", "+name=x"]))["dataset"]
    return build_options(VideoDatasetOptions, {k: v for k, v in section.items() if k != "_target_"}, "dataset")


@pytest.mark.parametrize(
    ("name", "folder", "frames", "resolution"),
    [("minecraft", "data/minecraft", 10, 128), ("dmlab", "data/dmlab", 16, 64)],
)
def test_tecos_sets_have_the_settings_people_know(name: str, folder: str, frames: int, resolution: int) -> None:
    options = composed(f"video_{name}")
    assert (options.save_dir, options.n_frames, options.resolution) == (folder, frames, resolution)
    assert (options.context_length, options.frame_skip, options.validation_multiplier) == (2, 2, 1)
    assert (options.data_mean, options.data_std, options.external_cond_dim) == (0.5, 0.5, 0)
    assert options.observation_shape == (3, resolution, resolution) and options.root == Path(folder)
    assert len(options.urls) == (11 if name == "minecraft" else 3) and options.action_shift == 0


def test_every_option_is_in_the_yaml_with_the_same_default() -> None:
    options = composed("video_folder")
    defaults = VideoDatasetOptions(save_dir="data/videos")
    assert dataclasses.asdict(options) == dataclasses.asdict(defaults)
