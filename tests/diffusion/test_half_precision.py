"""Under autocast the network alone computes in half precision: schedule, weights, losses and steps stay in float32."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from diffusion_forcing.diffusion import DiffusionForcing, Sampler, build_parameterization, build_schedule

OBJECTIVES = ("pred_noise", "pred_x0", "pred_v")


class Half(nn.Module):
    """Exact in both precisions, and answers in the one it is called in."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4, bias=False)
        nn.init.eye_(self.linear.weight)

    def forward(self, x: Tensor, k: Tensor, conditions: Any = None, memory: Any = None) -> tuple[Tensor, None]:
        return self.linear((x * 4).round() / 4), None


def forcing(objective: str) -> DiffusionForcing:
    return DiffusionForcing(
        Half(), build_schedule("cosine", 100), build_parameterization(objective, clip_noise=6.0), weighting="fused_snr"
    )


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_loss_under_autocast_is_the_loss_without(objective: str) -> None:
    model, x, k = forcing(objective), torch.randn(3, 5, 4).clamp(-4, 4), torch.randint(0, 100, (3, 5))
    noise = torch.randn(3, 5, 4)
    plain = model.loss(x, k, noise=noise)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model.network(x, k)[0].dtype == torch.bfloat16
        half = model.loss(x, k, noise=noise)
    assert half.per_element.dtype == half.x0.dtype == torch.float32
    assert torch.equal(half.per_element, plain.per_element)
    assert torch.equal(half.x0, plain.x0)


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_rollout_under_autocast_is_the_rollout_without(objective: str, guided: bool) -> None:
    sampler = Sampler(forcing(objective), sampling_timesteps=4, history_scale=1.5 if guided else 1.0)
    context = torch.randn(2, 2, 4).clamp(-4, 4)

    def frames() -> Tensor:
        return sampler.rollout(context, 5, window=4, generator=torch.Generator().manual_seed(0))

    plain = frames()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(frames(), plain)
