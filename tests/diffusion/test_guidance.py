"""Guided steps against an affine denoiser x̂₀ = slope·x_k + offset and simple returns, where every gradient is known."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from diffusion_forcing.diffusion import DiffusionForcing, GradientGuidance
from diffusion_forcing.errors import UserError
from tests.diffusion.gaussian import ExactGaussian, forcing_of, levels, randn

MEAN, STD = 0.7, 0.5
STRENGTH, GOAL = 3.0, 2.0


def near_goal(x0: Tensor) -> Tensor:
    """J = −½·STRENGTH·‖x̂₀ − GOAL‖², so ∇J = −STRENGTH·(x̂₀ − GOAL)."""
    return -0.5 * STRENGTH * ((x0 - GOAL) ** 2).sum(dim=(1, 2))


def along(x0: Tensor) -> Tensor:
    """J = STRENGTH·Σx̂₀."""
    return STRENGTH * x0.sum(dim=(1, 2))


def guided_step(
    forcing: DiffusionForcing, guidance: GradientGuidance | None, x: Tensor, k: Tensor, k_to: Tensor
) -> Tensor:
    return forcing.step(x, k, k_to, denoise=None if guidance is None else guidance.wrap(forcing, forcing))


def affine(forcing: DiffusionForcing, k: Tensor) -> tuple[Tensor, Tensor]:
    network = forcing.network
    assert isinstance(network, ExactGaussian)
    return network.slope(k)[..., None], network.offset(k)[..., None]


@pytest.mark.parametrize("objective", ["pred_x0", "pred_noise", "pred_v"])
@pytest.mark.parametrize(("now", "then"), [(600, 300), (500, 20), (20, -1)])
def test_a_guided_step_is_the_formula(now: int, then: int, objective: str) -> None:
    # ε̂ ← ε̂ − √(1−ᾱ')·∇J with respect to x_k, x̂₀ again from ε̂, then DDIM
    forcing = forcing_of(MEAN, STD, objective=objective)
    x = randn(2, 3, 4)
    k, k_to = torch.full((2, 3), now), torch.full((2, 3), then)
    out = guided_step(forcing, GradientGuidance(near_goal), x, k, k_to)

    x64, power = x.double(), forcing.schedule.alphas_cumprod[now].double()
    power_to = torch.ones(()).double() if then < 0 else forcing.schedule.alphas_cumprod[then].double()
    slope, offset = (part.double() for part in affine(forcing, k))
    x0 = slope * x64 + offset
    gradient = -STRENGTH * (x0 - GOAL) * slope
    eps = (x64 - power.sqrt() * x0) / (1 - power).sqrt() - (1 - power_to).sqrt() * gradient
    x0 = (x64 - (1 - power).sqrt() * eps) / power.sqrt()
    expected = power_to.sqrt() * x0 + (1 - power_to).sqrt() * eps
    assert torch.allclose(out.double(), expected, rtol=1e-5, atol=2e-5)


def test_guidance_raises_the_return_of_what_is_sampled() -> None:
    forcing = forcing_of(MEAN, STD)
    ends = []
    for guidance in (None, GradientGuidance(near_goal)):
        x = randn(4, 2, 3)
        for k in range(999, -1, -111):
            x = guided_step(forcing, guidance, x, torch.full((4, 2), k), torch.full((4, 2), max(k - 111, -1)))
        ends.append(near_goal(x))
    assert (ends[1] > ends[0] + 0.5).all()


def test_guidance_leaves_the_step_to_clean_alone() -> None:
    # as released: its strength is √(1−ᾱ'), 0 on the way to k = −1
    forcing = forcing_of(MEAN, STD)
    x = randn(2, 3, 4)
    now, then = torch.full((2, 3), 50), torch.full((2, 3), -1)
    assert torch.allclose(
        guided_step(forcing, GradientGuidance(near_goal), x, now, then), forcing.step(x, now, then), atol=1e-5
    )


def test_no_graph_is_left_behind() -> None:
    forcing = forcing_of(MEAN, STD)
    out = guided_step(forcing, GradientGuidance(along), randn(1, 2, 3), levels(500, 500), levels(20, 20))
    assert not out.requires_grad
    with torch.no_grad():
        again = guided_step(forcing, GradientGuidance(along), randn(1, 2, 3), levels(500, 500), levels(20, 20))
    assert torch.equal(out, again)


def test_the_gradient_is_with_respect_to_the_noisy_tokens() -> None:
    forcing, k = forcing_of(MEAN, STD), levels(900, 400, 10)
    x = randn(1, 3, 2)
    prediction, gradient, _ = GradientGuidance(near_goal).gradient(forcing, forcing, x, k)
    slope, offset = affine(forcing, k)
    assert torch.allclose(prediction.x0, slope * x + offset, atol=1e-6)
    assert torch.allclose(gradient, -STRENGTH * (prediction.x0 - GOAL) * slope, rtol=1e-5, atol=1e-6)


# ------------------------------------------------------------------------------------------------------- Monte Carlo


def gradients(samples: int, *, draws: int = 4000, k: int = 400) -> tuple[Tensor, float, float, float]:
    """Gradients of the quadratic return at the same x in `draws` sequences, and what theory says: of the plain prediction, of a
    continuation on average, and its standard deviation."""
    forcing = forcing_of(MEAN, STD)
    x, at = torch.full((draws, 1, 1), 0.3), torch.full((draws, 1), k)
    guidance = GradientGuidance(near_goal, samples=samples)
    _, gradient, _ = guidance.gradient(forcing, forcing, x, at, generator=torch.Generator().manual_seed(samples))
    slope, offset = (part[0, 0, 0].item() for part in affine(forcing, at))
    power = forcing.schedule.alphas_cumprod[k].item()
    x0 = slope * 0.3 + offset
    # a continuation is x̃ = √ᾱ·x̂₀ + √(1−ᾱ)·ε, denoised again: dJ/dx = −STRENGTH·(slope·x̃ + offset − GOAL)·slope·√ᾱ·slope
    chain = slope * power**0.5 * slope
    continued = -STRENGTH * (slope * power**0.5 * x0 + offset - GOAL) * chain
    spread = STRENGTH * slope * (1 - power) ** 0.5 * chain
    return gradient.flatten(), -STRENGTH * (x0 - GOAL) * slope, continued, spread


@pytest.mark.parametrize("samples", [2, 3, 8])
def test_monte_carlo_guidance_is_the_mean_over_the_prediction_and_its_continuations(samples: int) -> None:
    found, plain, continued, spread = gradients(samples)
    expected = (plain + (samples - 1) * continued) / samples
    # independent draws: the variance of the mean of n−1 continuations and one certain prediction is (n−1)/n²
    deviation = spread * (samples - 1) ** 0.5 / samples
    assert found.mean().item() == pytest.approx(expected, abs=5 * deviation / len(found) ** 0.5)
    assert found.std().item() == pytest.approx(deviation, rel=0.1)


def test_more_continuations_make_the_gradient_steadier() -> None:
    spreads = [gradients(samples)[0].std().item() for samples in (2, 5, 17, 65)]
    assert spreads == sorted(spreads, reverse=True)
    assert spreads[-1] == pytest.approx(spreads[1] * (64 / 65**2) ** 0.5 / (4 / 5**2) ** 0.5, rel=0.1)


def test_one_sample_is_plain_guidance_and_draws_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    before = generator.get_state()
    forcing, k = forcing_of(MEAN, STD), levels(900, 400, 10)
    x = randn(1, 3, 2)
    _, plain, _ = GradientGuidance(near_goal).gradient(forcing, forcing, x, k)
    _, one, _ = GradientGuidance(near_goal, samples=1).gradient(forcing, forcing, x, k, generator=generator)
    assert torch.equal(plain, one)
    assert torch.equal(generator.get_state(), before)
    network = forcing.network
    assert isinstance(network, ExactGaussian)
    assert len(network.calls) == 2


def test_a_continuation_keeps_the_context_and_renoises_the_rest_at_its_own_levels() -> None:
    forcing = forcing_of(MEAN, STD)
    network = forcing.network
    assert isinstance(network, ExactGaussian)
    n = 4000
    k, shown_as = torch.tensor([[-1, 500, 100]]).expand(n, 3), torch.tensor([[9, 500, 100]]).expand(n, 3)
    x = randn(1, 3, 1).expand(n, 3, 1)
    conditions = randn(n, 3, 2)
    generator = torch.Generator().manual_seed(0)
    GradientGuidance(along, samples=3).gradient(forcing, forcing, x, k, conditions, generator=generator)
    first, *continuations = network.calls
    assert len(continuations) == 2
    assert torch.equal(first[0][:, 1:], x[:, 1:])
    slope, offset = affine(forcing, shown_as)
    x0 = slope * x + offset
    for shown, shown_k, shown_conditions in continuations:
        assert torch.equal(shown_k, shown_as)
        assert shown_conditions is conditions
        assert torch.equal(shown[:, 0], first[0][:, 0])
        for t in (1, 2):
            power = forcing.schedule.alphas_cumprod[k[0, t]].item()
            noise = (shown[:, t] - power**0.5 * x0[:, t]) / (1 - power) ** 0.5
            assert noise.mean().item() == pytest.approx(0, abs=5 / n**0.5)
            assert noise.std().item() == pytest.approx(1, rel=0.1)
    assert not torch.equal(continuations[0][0][:, 1:], continuations[1][0][:, 1:])


def test_guidance_needs_a_continuation() -> None:
    with pytest.raises(UserError, match="mcg_samples is 0"):
        GradientGuidance(along, samples=0)
