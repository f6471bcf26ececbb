from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from diffusion_forcing.algorithms.planning import Planning
from diffusion_forcing.algorithms.released import planning_options_from_released, released_guidance_scale
from diffusion_forcing.errors import UserError
from tests.parity.recorded import recording


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
