"""The loss, and what the network is shown."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from diffusion_forcing.diffusion import DiffusionForcing, add_noise, build_parameterization, build_schedule
from diffusion_forcing.diffusion.denoiser import NoisyContext, noisy_context
from diffusion_forcing.errors import UserError
from tests.diffusion.gaussian import Certain, ExactGaussian, forcing_of, randn

SCHEDULE = build_schedule("linear")


@pytest.mark.parametrize("objective", ["pred_noise", "pred_x0", "pred_v"])
def test_the_loss_is_the_weighted_squared_error_of_the_target(objective: str) -> None:
    x, eps, k, answer = (
        randn(2, 3, 4),
        randn(2, 3, 4, seed=1),
        torch.tensor([[0, 500, 999], [7, 7, 300]]),
        randn(1, 1, 4),
    )
    parameterization = build_parameterization(objective, clip_noise=20.0)
    forcing = DiffusionForcing(Certain(answer), SCHEDULE, parameterization)
    loss = forcing.loss(x, k, noise=eps)
    target = parameterization.target(SCHEDULE, x, k, eps)
    assert torch.allclose(loss.per_element, forcing.loss_weight(k)[..., None] * (answer - target) ** 2)
    assert loss.x0.shape == x.shape


def test_the_loss_shows_the_network_noised_tokens_at_their_levels_and_its_conditions() -> None:
    forcing = forcing_of(mean=0.5, std=0.7)
    x, eps, conditions = randn(2, 3, 4), randn(2, 3, 4, seed=1), randn(2, 3, 2, seed=2)
    k = torch.tensor([[0, 500, 999], [7, 7, 300]])
    loss = forcing.loss(x, k, noise=eps, conditions=conditions)
    network = forcing.network
    assert isinstance(network, ExactGaussian)
    ((shown, shown_k, shown_conditions),) = network.calls
    assert torch.equal(shown, add_noise(forcing.schedule, x, k, eps))
    assert torch.equal(shown_k, k)
    assert shown_conditions is conditions
    assert torch.allclose(loss.x0, network.slope(k)[..., None] * shown + network.offset(k)[..., None])


def test_the_exact_denoiser_has_the_least_loss() -> None:
    # the loss of x̂₀ = slope·x_k + offset is least where it is the conditional mean
    k = torch.full((4000, 1), 300)
    x, eps = 0.5 + 0.7 * randn(4000, 1, 1), randn(4000, 1, 1, seed=1)
    losses = [
        forcing_of(mean, std).loss(x, k, noise=eps).per_element.mean().item()
        for mean, std in ((0.5, 0.7), (0.5, 1.0), (0.5, 0.45), (0.8, 0.7), (0.2, 0.7))
    ]
    assert losses[0] == min(losses)


def test_noise_is_clamped_whether_drawn_or_given() -> None:
    forcing = forcing_of(clip_noise=0.5)
    network = forcing.network
    assert isinstance(network, ExactGaussian)
    x, k = torch.zeros(3, 50, 2), torch.full((3, 50), 999)
    forcing.loss(x, k, noise=10 * randn(3, 50, 2))
    forcing.loss(x, k, generator=torch.Generator().manual_seed(0))
    limit = 0.5 * SCHEDULE.sqrt_one_minus_alphas_cumprod[999]
    for shown, _, _ in network.calls:
        assert shown.abs().max() == limit
    assert not torch.equal(network.calls[0][0], network.calls[1][0])


def test_the_loss_is_a_function_of_the_generators_seed() -> None:
    x, k = randn(2, 3, 4), torch.full((2, 3), 500)

    def loss(seed: int) -> Tensor:
        return forcing_of(std=0.7).loss(x, k, generator=torch.Generator().manual_seed(seed)).per_element

    assert torch.equal(loss(1), loss(1))
    assert not torch.equal(loss(1), loss(2))


@pytest.mark.parametrize("stabilization_level", [1, 10, 100])
def test_clean_context_is_shown_as_slightly_noisy_without_noise(stabilization_level: int) -> None:
    forcing = forcing_of(stabilization_level=stabilization_level)
    x = randn(2, 4, 3)
    k = torch.tensor([[-1, -1, 0, 999], [-1, 5, -1, 5]])
    shown, shown_k = forcing.stabilize(x, k)
    j = stabilization_level - 1
    clean = k == -1
    assert torch.equal(shown_k, torch.where(clean, j, k))
    assert torch.allclose(shown[clean], forcing.schedule.alphas_cumprod[j].sqrt() * x[clean])
    assert torch.equal(shown[~clean], x[~clean])


def test_under_ddpm_the_noise_of_the_context_is_really_there() -> None:
    forcing = forcing_of(stabilization_level=200)
    x, k = torch.full((1, 4000, 1), 2.0), torch.full((1, 4000), -1)
    noise = randn(1, 4000, 1, seed=0)
    shown, shown_k = noisy_context(forcing.schedule, x, k, level=199, noise=noise)
    assert (shown_k == 199).all()
    power = forcing.schedule.alphas_cumprod[199]
    assert shown.mean() == pytest.approx(2 * power.sqrt().item(), abs=0.05)
    assert shown.var() == pytest.approx(1 - power.item(), rel=0.1)


@pytest.mark.parametrize("stabilization_level", [0, 1001])
def test_a_stabilization_level_outside_the_schedule_is_refused(stabilization_level: int) -> None:
    with pytest.raises(UserError, match=rf"stabilization_level is {stabilization_level}; it must lie in 1…1000"):
        forcing_of(stabilization_level=stabilization_level)


def test_the_noise_of_ddpms_context_may_be_given_and_is_clamped() -> None:
    forcing = forcing_of(stabilization_level=200, clip_noise=1.0)
    network = forcing.network
    assert isinstance(network, ExactGaussian)
    x, noise = randn(1, 3, 4), randn(1, 3, 4, seed=1)
    now, then = torch.tensor([[-1, 900, -1]]), torch.tensor([[-1, 899, -1]])
    context = NoisyContext(forcing, forcing.schedule, level=199, noise=forcing.clamp_noise(noise))
    out = forcing.step(x, now, then, ancestral=True, noise=noise, denoise=context)
    ((shown, shown_k, _),) = network.calls
    power = forcing.schedule.alphas_cumprod[199]
    assert shown_k.tolist() == [[199, 900, 199]]
    assert torch.allclose(
        shown[:, [0, 2]], power.sqrt() * x[:, [0, 2]] + (1 - power).sqrt() * noise[:, [0, 2]].clamp(-1, 1), atol=1e-6
    )
    assert torch.equal(shown[:, 1], x[:, 1])
    assert torch.equal(out[:, [0, 2]], x[:, [0, 2]])


@pytest.mark.parametrize("level", [-2, 1000])
def test_levels_outside_the_schedule_are_refused(level: int) -> None:
    forcing, x = forcing_of(mean=0.5, std=0.7), randn(2, 3, 4)
    wrong, right = torch.tensor([[5, level, 5]] * 2), torch.full((2, 3), 5)
    with pytest.raises(UserError, match=rf"{level}.*-1…999"):
        forcing.loss(x, wrong)
    for k, k_to in ((wrong, right), (right, wrong)):
        with pytest.raises(UserError, match=rf"{level}.*-1…999"):
            forcing.step(x, k, k_to)
