"""DDIM and DDPM rows against data whose every distribution is known: x ~ N(mean, std²), so that E[x | x_k] is exact."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from diffusion_forcing.diffusion import (
    DiffusionForcing,
    GradientGuidance,
    Sampler,
    build_parameterization,
    build_schedule,
    sampling_levels,
)
from tests.diffusion.gaussian import Certain, forcing_of, levels, randn

SCHEDULE = build_schedule("linear")
JUMPS = ((999, 500), (500, 499), (500, 20), (20, 0), (1, 0), (300, -1), (0, -1))
MEAN, STD = 0.7, 0.5


def coefficients(k_from: int, k_to: int, **how: Any) -> tuple[float, float, float]:
    """(a, b, c) of x' = a·x_k + b·x̂₀ + c·noise, one step being linear in the three."""

    def step(x: float, x0: float, noise: float) -> float:
        forcing = DiffusionForcing(
            Certain(torch.full((1, 1, 1), x0)), SCHEDULE, build_parameterization("pred_x0", clip_noise=20.0)
        )
        out = forcing.step(
            torch.full((1, 1, 1), x), levels(k_from), levels(k_to), noise=torch.full((1, 1, 1), noise), **how
        )
        return out.item()

    return step(1.0, 0.0, 0.0), step(0.0, 1.0, 0.0), step(0.0, 0.0, 1.0)


@pytest.mark.parametrize(
    "how", [{"eta": 0.0}, {"eta": 0.4}, {"eta": 1.0}, {"ancestral": True}], ids=["ddim", "eta 0.4", "eta 1", "ddpm"]
)
@pytest.mark.parametrize(("k_from", "k_to"), JUMPS)
def test_a_step_from_the_right_distribution_ends_in_the_right_distribution(
    k_from: int, k_to: int, how: dict[str, Any]
) -> None:
    # certain of x₀: x_k ~ N(√ᾱ·x₀, 1−ᾱ) must become N(√ᾱ'·x₀, 1−ᾱ'), whatever the jump and the noise on the way
    a, b, c = coefficients(k_from, k_to, **how)
    power = SCHEDULE.alphas_cumprod[k_from].item()
    power_to = 1.0 if k_to < 0 else SCHEDULE.alphas_cumprod[k_to].item()
    assert a * math.sqrt(power) + b == pytest.approx(math.sqrt(power_to), abs=1e-5)
    assert a**2 * (1 - power) + c**2 == pytest.approx(1 - power_to, rel=2e-3, abs=1e-6)


@pytest.mark.parametrize(("k_from", "k_to"), JUMPS)
def test_the_noise_of_a_step_grows_with_eta_up_to_ddpms(k_from: int, k_to: int) -> None:
    noises = [coefficients(k_from, k_to, eta=eta)[2] for eta in (0.0, 0.5, 1.0)]
    ddpm = coefficients(k_from, k_to, ancestral=True)
    assert noises[0] == 0
    assert noises[1] == pytest.approx(noises[2] / 2, abs=1e-6)
    assert noises[2] == pytest.approx(ddpm[2], rel=2e-3, abs=1e-6)
    # and the rest of the step is DDPM's too
    for ours, theirs in zip(coefficients(k_from, k_to, eta=1.0), ddpm, strict=True):
        assert ours == pytest.approx(theirs, rel=5e-3, abs=1e-5)
    if k_to >= 0:
        assert noises[2] > 0


def test_ddpm_uses_the_posterior_tables_for_the_next_level() -> None:
    a, b, c = coefficients(500, 499, ancestral=True)
    assert b == SCHEDULE.posterior_mean_coef1[500].item()
    assert a == SCHEDULE.posterior_mean_coef2[500].item()
    assert c == SCHEDULE.posterior_variance[500].sqrt().item()


def ddim_map(steps: int, name: str = "cosine") -> tuple[float, float]:
    """(slope, offset) of the whole walk from x_K to x₀ in `steps` DDIM steps with eta 0: exact, as the denoiser is affine."""
    schedule = build_schedule(name)
    forcing = forcing_of(MEAN, STD, schedule=schedule)
    x = torch.tensor([[[0.0, 1.0]]]).double()
    k = sampling_levels(schedule.timesteps, steps).flip(0)
    for now, then in pairwise(k):
        x = forcing.step(x, now.view(1, 1), then.view(1, 1))
    offset, end = x.flatten().tolist()
    return end - offset, offset


@pytest.mark.parametrize("name", ["linear", "sigmoid", "cosine"])
def test_ddim_with_many_steps_maps_noise_onto_the_data(name: str) -> None:
    # the probability flow takes N(√ᾱ_K·m, ᾱ_K·s² + 1 − ᾱ_K) onto N(m, s²), keeping the order of the samples
    power = build_schedule(name).alphas_cumprod[-1].item()
    slope, offset = ddim_map(250, name)
    exact = STD / math.sqrt(power * STD**2 + 1 - power)
    assert slope == pytest.approx(exact, rel=0.02)
    assert offset == pytest.approx(MEAN - exact * math.sqrt(power) * MEAN, rel=0.02)


def test_ddim_converges_with_first_order() -> None:
    power = build_schedule("cosine").alphas_cumprod[-1].item()
    exact = STD / math.sqrt(power * STD**2 + 1 - power)
    steps = np.array([25, 50, 100, 200])
    errors = [abs(ddim_map(int(n))[0] - exact) for n in steps]
    order = -np.polyfit(np.log(steps), np.log(errors), 1)[0]
    assert 0.8 < order < 1.3


def noisy_walk(timesteps: int, **how: Any) -> tuple[float, float]:
    """(mean, std) of what a walk down all `timesteps` levels draws: exact, as each step is affine in x and its noise."""
    schedule = build_schedule("linear", timesteps)
    forcing = forcing_of(MEAN, STD, schedule=schedule)
    x, noise = torch.tensor([[[0.0, 1.0, 0.0]]]), torch.tensor([[[0.0, 0.0, 1.0]]])
    mean, variance = 0.0, 1.0
    for k in range(timesteps - 1, -1, -1):
        offset, with_x, with_noise = forcing.step(x, levels(k), levels(k - 1), noise=noise, **how).flatten().tolist()
        mean = (with_x - offset) * mean + offset
        variance = (with_x - offset) ** 2 * variance + (with_noise - offset) ** 2
    return mean, math.sqrt(variance)


@pytest.mark.parametrize("how", [{"eta": 1.0}, {"ancestral": True}], ids=["eta 1", "ddpm"])
def test_noisy_sampling_draws_the_data_with_first_order_in_the_levels(how: dict[str, Any]) -> None:
    timesteps = np.array([25, 50, 100, 200])
    means, stds = np.array([noisy_walk(int(n), **how) for n in timesteps]).T
    assert means[-1] == pytest.approx(MEAN, rel=0.02)
    # the posterior's variance is that of certain data, so the spread is a little small, by less and less
    assert (stds < STD).all()
    order = -np.polyfit(np.log(timesteps), np.log(STD - stds), 1)[0]
    assert 0.8 < order < 1.3


@pytest.mark.parametrize("objective", ["pred_noise", "pred_v"])
def test_what_the_network_predicts_makes_no_difference(objective: str) -> None:
    x, now, then = (
        randn(2, 4, 3),
        torch.tensor([[900, 500, 20, -1]]).expand(2, 4),
        torch.tensor([[500, 20, -1, -1]]).expand(2, 4),
    )
    expected = forcing_of(MEAN, STD).step(x, now, then)
    assert torch.allclose(forcing_of(MEAN, STD, objective=objective).step(x, now, then), expected, atol=1e-4)


@pytest.mark.parametrize("how", [{"eta": 0.0}, {"eta": 0.7}, {"ancestral": True}], ids=["ddim", "eta 0.7", "ddpm"])
def test_every_token_walks_from_its_own_level(how: dict[str, Any]) -> None:
    forcing = forcing_of(MEAN, STD)
    x, noise = randn(2, 3, 4), randn(2, 3, 4, seed=1)
    now = torch.tensor([[999, 400, 3], [20, 700, 0]])
    then = torch.tensor([[998, 100, -1], [19, 300, -1]])
    together = forcing.step(x, now, then, noise=noise, **how)
    for b in range(2):
        for t in range(3):
            alone = forcing.step(
                x[b : b + 1, t : t + 1],
                now[b, t].view(1, 1),
                then[b, t].view(1, 1),
                noise=noise[b : b + 1, t : t + 1],
                **how,
            )
            assert torch.allclose(together[b, t], alone[0, 0], atol=1e-6), (b, t)


def push(x0: Tensor) -> Tensor:
    return 100 * x0.sum(dim=(1, 2))


@pytest.mark.parametrize(
    "how",
    [{"eta": 0.0}, {"eta": 1.0}, {"ancestral": True}, {"guided": True}],
    ids=["ddim", "eta 1", "ddpm", "guided"],
)
def test_a_token_whose_level_stays_comes_back_bit_for_bit(how: dict[str, Any]) -> None:
    forcing = forcing_of(MEAN, STD)
    x = randn(2, 4, 3)
    now = torch.tensor([[-1, 999, 300, 0], [300, -1, 0, 999]])
    then = torch.tensor([[-1, 999, 200, 0], [-1, -1, 0, 400]])
    before, how = x.clone(), dict(how)
    if how.pop("guided", False):
        how["denoise"] = GradientGuidance(push).wrap(forcing, forcing)
    out = forcing.step(x, now, then, generator=torch.Generator().manual_seed(0), **how)
    assert torch.equal(x, before)
    assert torch.equal(out[now == then], x[now == then])
    assert (out[now != then] != x[now != then]).all()
    assert out.isfinite().all()


def test_noise_on_the_way_is_a_function_of_the_generators_seed_and_clamped() -> None:
    forcing = forcing_of(MEAN, STD, clip_noise=0.1)
    x = randn(1, 1, 1000)

    def step(**drawn: Any) -> Tensor:
        return forcing.step(x, levels(900), levels(100), eta=1.0, **drawn)

    still = step(noise=torch.zeros_like(x))
    once, again, other = (step(generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(once, again)
    assert not torch.equal(once, other)
    _, _, c = coefficients(900, 100, eta=1.0)
    assert (once - still).abs().max() == pytest.approx(0.1 * c, rel=1e-3)


def test_as_many_sampling_as_training_levels_sample_with_ddpm() -> None:
    forcing = forcing_of(schedule=build_schedule("linear", 20))
    assert Sampler(forcing, sampling_timesteps=20).ancestral
    assert not Sampler(forcing, sampling_timesteps=19).ancestral
