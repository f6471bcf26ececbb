from __future__ import annotations

from dataclasses import FrozenInstanceError
from typing import Any

import numpy as np
import pytest

from diffusion_forcing.algorithms.base import DiffusionOptions, TransformerOptions
from diffusion_forcing.algorithms.video import UNetOptions
from diffusion_forcing.errors import UserError
from tests.algorithms.small import options

PLANNING: list[tuple[dict[str, Any], str]] = [
    ({"observation_std": (1.0,)}, r"dataset\.observation_mean has 2 numbers, dataset\.observation_std 1"),
    ({"action_mean": (0.0, 0.0)}, r"dataset\.action_mean has 2 numbers, dataset\.action_std 0"),
    ({"observation_std": (1.0, 0.0)}, r"dataset\.observation_std is \[1\.0, 0\.0\]; every standard deviation"),
    ({"observation_std": (1.0, float("nan"))}, r"every standard deviation must be above 0"),
    (
        {"observation_mean": (0.0, 0.0, 0.0), "observation_std": (1.0, 1.0, 1.0)},
        r"dataset\.observation_mean has 3 numbers; a maze plan has 2",
    ),
    ({"action_mean": (0.0,), "action_std": (1.0,)}, r"dataset\.action_mean has 1 numbers; a maze plan has 0"),
    ({"context_frames": 2}, r"algorithm\.context_frames is 2"),
    ({"external_cond_dim": 4}, r"algorithm\.external_cond_dim is 4"),
    ({"frame_stack": 0}, r"algorithm\.frame_stack .*got 0"),
    ({"episode_len": 0}, r"dataset\.episode_len is 0"),
    ({"episode_len": 13}, r"dataset\.episode_len 13 is no multiple of algorithm\.frame_stack 3"),
    ({"open_loop_horizon": 0}, r"algorithm\.open_loop_horizon is 0"),
    ({"mcg_samples": 0}, r"algorithm\.mcg_samples is 0"),
    ({"lr": 0.0}, r"algorithm\.lr is 0\.0"),
    ({"ema_decay": 1.0}, r"algorithm\.ema_decay is 1\.0"),
    ({"warm_start": 1.5}, r"algorithm\.warm_start is 1\.5"),
    ({"guidance_stop": -0.1}, r"algorithm\.guidance_stop is -0\.1"),
    ({"refine": 2.0}, r"algorithm\.refine is 2\.0"),
    ({"warm_start": 0.5, "open_loop_horizon": 12}, r"nothing of a plan of 12 steps is left when replanning"),
    ({"warm_start": 0.5, "open_loop_horizon": 12, "frame_skip": 5}, r"12, no multiple of dataset\.frame_skip 5"),
    ({"chunk_size": 3}, r"algorithm\.chunk_size is 3; a plan is drawn whole: dataset\.episode_len \(12\) or -1"),
]
DIFFUSION: list[tuple[dict[str, Any], str]] = [
    ({"timesteps": 0}, r"algorithm\.diffusion\.timesteps is 0"),
    ({"sampling_timesteps": 0}, r"algorithm\.diffusion\.sampling_timesteps is 0; it must lie in 1…1000"),
    ({"sampling_timesteps": 11, "timesteps": 10}, r"sampling_timesteps is 11; it must lie in 1…10"),
    ({"stabilization_level": 0}, r"algorithm\.diffusion\.stabilization_level is 0"),
    ({"cum_snr_decay": 1.1}, r"algorithm\.diffusion\.cum_snr_decay is 1\.1"),
    ({"ddim_sampling_eta": -0.1}, r"algorithm\.diffusion\.ddim_sampling_eta is -0\.1"),
    ({"clip_noise": 0.0}, r"algorithm\.diffusion\.clip_noise is 0\.0"),
    ({"snr_clip": float("nan")}, r"algorithm\.diffusion\.snr_clip is nan"),
]


@pytest.mark.parametrize(
    ("changes", "message"), PLANNING, ids=lambda value: next(iter(value), None) and str(value)[:40]
)
def test_planning_options_that_cannot_be_are_refused_by_their_key(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        options(**changes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("changes", "message"), DIFFUSION, ids=lambda value: str(value)[:40])
def test_diffusion_options_that_cannot_be_are_refused_by_their_key(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        DiffusionOptions(**changes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["network_size", "num_layers", "attn_heads", "dim_feedforward"])
def test_a_network_needs_sizes_above_zero(name: str) -> None:
    with pytest.raises(UserError, match=rf"algorithm\.diffusion\.architecture\.{name} .*got 0"):
        TransformerOptions(**{name: 0})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"guidance_scale": float("nan")}, r"algorithm\.guidance_scale is nan"),
        ({"guidance_scale": -3.0}, r"algorithm\.guidance_scale is -3\.0; it must be 0 or more"),
        ({"uncertainty_scale": -1.0}, r"algorithm\.uncertainty_scale is -1\.0"),
        ({"weight_decay": -1.0}, r"algorithm\.weight_decay is -1\.0"),
        ({"warmup_steps": -5}, r"algorithm\.warmup_steps .*got -5"),
        ({"optimizer_beta": (2.0, 3.0)}, r"algorithm\.optimizer_beta is \[2\.0, 3\.0\]"),
        ({"gamma": -1.0}, r"algorithm\.gamma is -1\.0"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_numbers_out_of_range_are_refused_before_anything_is_built(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        options(**changes)


def test_options_are_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        options().lr = 1.0  # type: ignore[misc]


def test_the_window_is_the_present_and_the_stacked_future() -> None:
    assert options().max_tokens == 1 + 12 // 3
    assert options(frame_stack=12, chunk_size=12).max_tokens == 2


@pytest.mark.parametrize("sizes", [[1, 0], (1, 0), [np.int64(0)]])
def test_limits_hold_for_lists_and_numpy_numbers(sizes: Any) -> None:
    with pytest.raises(UserError, match=r"dim_mults"):
        UNetOptions(dim_mults=sizes)
    assert UNetOptions(dim_mults=(1, 2)).dim_mults == (1, 2)
