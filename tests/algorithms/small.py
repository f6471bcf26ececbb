"""A planner small enough to run in milliseconds."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from diffusion_forcing.algorithms.base import DiffusionOptions, TransformerOptions
from diffusion_forcing.algorithms.planning.algorithm import Planning, PlanningOptions
from diffusion_forcing.datasets.batch import SequenceBatch

STATISTICS: dict[str, dict[str, tuple[float, ...]]] = {
    "x": {"observation_mean": (3.5, 3.4), "observation_std": (1.3, 1.5)},
    "xv": {"observation_mean": (3.5, 3.4, 0.1, -0.1), "observation_std": (1.3, 1.5, 9.0, 8.0)},
}
STATISTICS["xva"] = STATISTICS["xv"] | {"action_mean": (0.01, -0.02), "action_std": (6.0, 5.0)}
ARCHITECTURE = TransformerOptions(network_size=16, num_layers=2, attn_heads=2, dim_feedforward=24)


def options(
    variant: str = "x", *, sampling_timesteps: int = 4, diffusion: dict[str, Any] | None = None, **changes: Any
) -> PlanningOptions:
    """4 tokens of 3 steps after token 0."""
    return PlanningOptions(
        **{**STATISTICS[variant], "episode_len": 12, "frame_stack": 3, "open_loop_horizon": 5, **changes},
        diffusion=DiffusionOptions(
            **{"architecture": ARCHITECTURE, "sampling_timesteps": sampling_timesteps, **(diffusion or {})}
        ),
    )


def planning(variant: str = "x", **changes: Any) -> Planning:
    """Random weights, the same each time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Planning(options(variant, **changes))


def batch(size: int = 3, length: int = 13, *, seed: int = 0) -> SequenceBatch:
    """Windows of made-up data; the first is whole, the others end early."""
    generator = torch.Generator().manual_seed(seed)
    valid = torch.ones(size, length, dtype=torch.bool)
    for index in range(1, size):
        valid[index, length - 2 * index :] = False
    return SequenceBatch(
        observations=3 + torch.randn(size, length, 4, generator=generator),
        actions=torch.randn(size, length, 2, generator=generator),
        rewards=torch.rand(size, length, generator=generator),
        valid=valid,
    )


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))
