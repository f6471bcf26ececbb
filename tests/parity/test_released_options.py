from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from diffusion_forcing.algorithms.planning.algorithm import Planning
from diffusion_forcing.checkpoints import load
from diffusion_forcing.errors import UserError
from diffusion_forcing.released.options import (
    planning_options_from_released,
    released_guidance_scale,
    released_video_structure,
    video_options_from_released,
)
from tests.parity.recorded import DATA, recording


@pytest.fixture
def config() -> dict[str, Any]:
    return copy.deepcopy(recording("planning_xva_h40").meta["config"])


def test_a_released_configuration_becomes_our_options(config: dict[str, Any]) -> None:
    before = copy.deepcopy(config)
    options = planning_options_from_released(config)
    assert config == before
    assert options.observation_std == (2.67, 3.04, 8, 8)
    assert options.diffusion.architecture.network_size == 32
    assert options.diffusion.sampling_timesteps == 5
    assert (options.chunk_size, options.ema_decay) == (-1, 0.0)
    assert Planning(options).ema is None


def test_statistics_written_as_whole_numbers_stay_real_numbers(config: dict[str, Any]) -> None:
    config |= {
        "observation_mean": [0, 0, 0, 0],
        "observation_std": [1, 1, 1, 1],
        "action_mean": [0, 0],
        "action_std": [1, 1],
    }
    bundle = Planning(planning_options_from_released(config)).bundle
    assert (bundle.mean.dtype, bundle.std.dtype) == (torch.float32, torch.float32)


def test_an_unknown_key_is_named_with_its_nearest(config: dict[str, Any]) -> None:
    config["diffusion"]["architecture"]["atn_heads"] = 4
    with pytest.raises(UserError, match=r"'diffusion\.architecture\.atn_heads'.*did you mean 'attn_heads'"):
        planning_options_from_released(config)


@pytest.mark.parametrize("key", ["observation_mean", "diffusion"])
def test_a_configuration_of_another_task_is_refused(config: dict[str, Any], key: str) -> None:
    del config[key]
    with pytest.raises(UserError, match="no released planning configuration"):
        planning_options_from_released(config)


def test_the_released_strength_is_per_batch() -> None:
    assert released_guidance_scale(2.0, 128) == 2.0
    assert released_guidance_scale(2.0, 1) == 256.0
    with pytest.raises(UserError, match="batch is 0"):
        released_guidance_scale(2.0, 0)


@pytest.fixture
def video_config() -> dict[str, Any]:
    return copy.deepcopy(recording("video_u3_causal").meta["config"])


def test_a_released_video_configuration_becomes_our_options(video_config: dict[str, Any]) -> None:
    before = copy.deepcopy(video_config)
    options = video_options_from_released(video_config)
    assert video_config == before
    assert (options.norm, options.cache, options.ema_decay) == ("clip", "none", 0.0)
    assert (options.frame_stack, options.frame_skip, options.n_frames) == (2, 2, 16)
    assert options.observation_shape == (3, 16, 16)
    assert options.diffusion.architecture.dim_mults == (1, 1, 2, 4)
    assert options.condition_width == 0


def test_a_released_mean_for_each_colour_is_read(video_config: dict[str, Any]) -> None:
    video_config["data_mean"] = [[[0.4]], [[0.5]], [[0.6]]]
    assert video_options_from_released(video_config).data_mean == (0.4, 0.5, 0.6)


@pytest.mark.parametrize("shape", [(), (3, 1, 1)])
@pytest.mark.parametrize("ending", ["npy", "pt"])
def test_a_released_mean_may_be_the_name_of_a_file(
    video_config: dict[str, Any], tmp_path: Path, shape: tuple[int, ...], ending: str
) -> None:
    numbers, file = torch.rand(shape, dtype=torch.float64), tmp_path / f"mean.{ending}"
    if ending == "npy":
        np.save(file, numbers.numpy())
    else:
        torch.save(numbers, file)
    mean = video_options_from_released(video_config | {"data_mean": str(file)}).data_mean
    assert mean == (tuple(numbers.flatten().tolist()) if shape else numbers.item())


@pytest.mark.parametrize("content", [None, b"no array", b"pickled"])
def test_a_file_of_statistics_that_cannot_be_read_is_named(
    video_config: dict[str, Any], tmp_path: Path, content: bytes | None
) -> None:
    file = tmp_path / "std.npy"
    if content == b"pickled":
        np.save(file, np.array([{}], dtype=object), allow_pickle=True)
    elif content is not None:
        file.write_bytes(content)
    with pytest.raises(UserError, match=rf"data_std.*{re.escape(str(file))}") as caught:
        video_options_from_released(video_config | {"data_std": str(file)})
    assert "\n" not in str(caught.value)


def test_released_frames_that_make_no_whole_token_are_dropped(video_config: dict[str, Any]) -> None:
    options = video_options_from_released(video_config | {"n_frames": 16, "context_frames": 4, "frame_stack": 3})
    assert (options.window, options.n_frames, options.context_frames) == (5, 15, 3)


def test_an_unknown_video_key_is_named_with_its_nearest(video_config: dict[str, Any]) -> None:
    video_config["diffusion"]["architecture"]["dim_mult"] = [1]
    with pytest.raises(UserError, match=r"'diffusion\.architecture\.dim_mult'.*did you mean 'dim_mults'"):
        video_options_from_released(video_config)
    with pytest.raises(UserError, match="no released video configuration"):
        video_options_from_released({"diffusion": {}})


def test_a_released_video_checkpoint_says_its_sizes_and_its_schedule() -> None:
    facts = load(DATA / "ckpt_video.ckpt").metadata
    assert released_video_structure(facts, 64) == {
        "norm": "clip",
        "cache": "none",
        "external_cond_dim": 0,
        "frame_stack": 1,
        "diffusion": {
            "timesteps": 1000,
            "beta_schedule": "sigmoid",
            "architecture": {
                "network_size": 8,
                "dim_mults": [1, 2],
                "attn_resolutions": [32, 64],
                "attn_heads": 2,
                "attn_dim_head": 8,
                "use_init_temporal_attn": True,
                "time_emb_type": "rotary",
            },
        },
    }
