"""A past that is shown with real noise, rounded before it is remembered, and remembered without an output."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from diffusion_forcing.diffusion import DiffusionForcing, Sampler, build_parameterization, build_schedule
from diffusion_forcing.networks import KVCache
from tests.diffusion.gaussian import forcing_of


def test_offset_noise_is_what_sampling_starts_from() -> None:
    forcing = forcing_of(offset_noise=1.0)
    noise = forcing.draw_noise((64, 1, 2, 8, 8), generator=torch.Generator().manual_seed(0), device=torch.device("cpu"))
    assert 0.6 < noise.mean((-2, -1)).std() < 0.8


class Counting(nn.Module):
    """Answers 0.3 for every token; its memory is the tokens it remembers, which `remember` adds without a call."""

    keeps_memory = True
    memory_slides = True
    why_no_memory = ""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(
        self, x: Tensor, k: Tensor, conditions: Tensor | None = None, memory: KVCache | None = None
    ) -> tuple[Tensor, KVCache]:
        self.calls += 1
        return torch.full_like(x, 0.3), self.remember(x, k, conditions, memory)

    def remember(self, x: Tensor, k: Tensor, conditions: Any = None, memory: KVCache | None = None) -> KVCache:
        fresh = KVCache((x,), (x,))
        return fresh if memory is None else memory.then(fresh)


def test_finished_tokens_are_rounded_handed_out_and_remembered_so() -> None:
    network = Counting()
    schedule = build_schedule("edm", 100)
    forcing = DiffusionForcing(
        network, schedule, build_parameterization("pred_x0", clip_noise=20), stabilization_level=1
    )
    sampler = Sampler(forcing, sampling_timesteps=2, finish=lambda x: (x * 2).round() / 2)
    made = sampler.rollout(torch.zeros(1, 1, 2), 4, window=4, cache="streaming")
    assert torch.equal(made[:, 1:], torch.full((1, 3, 2), 0.5))
    assert network.calls == 3 * 2  # two steps a token; remembering calls nothing


def test_a_noisy_context_is_remembered_with_noise_of_its_level() -> None:
    network = Counting()
    schedule = build_schedule("linear")
    parameterization = build_parameterization("pred_x0", clip_noise=20)
    forcing = DiffusionForcing(network, schedule, parameterization, stabilization_level=400)
    context = torch.ones(1, 1, 20000)
    kept: list[Tensor] = []
    network.remember = lambda x, k, conditions=None, memory=None: kept.append(x) or KVCache((x,), (x,))  # type: ignore[method-assign]
    for noisy in (True, False):
        sampler = Sampler(forcing, sampling_timesteps=2, noisy_context=noisy)
        generator = torch.Generator().manual_seed(0)
        sampler.rollout(context, 2, window=2, cache="streaming", generator=generator)
    # The first call of each rollout prefills the context, the others are those of its rows.
    noisy_past, clean_past = kept[0], kept[3]
    power = schedule.alphas_cumprod[399]
    assert torch.allclose(clean_past, power.sqrt() * context)
    assert (noisy_past - clean_past).std().item() == pytest.approx((1 - power).sqrt().item(), rel=0.05)
