"""Consistency distillation as mathematics: exact curves have no loss, a student learns its teacher's curve, what is frozen stays frozen."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from diffusion_forcing.algorithms.objectives import Distillation
from diffusion_forcing.diffusion import (
    DiffusionForcing,
    Sampler,
    build_parameterization,
    build_schedule,
)
from diffusion_forcing.errors import UserError
from tests.diffusion.gaussian import Certain, ExactGaussian, randn

MEAN, STD = 0.3, 0.5


class Curve(nn.Module):
    """The end of the teacher's curve for data N(mean, std²): x₀ = mean + (x_σ − mean)·std/√(std² + σ²), x_σ = x_k·√(1 + σ²)."""

    def __init__(self, sigmas: Tensor) -> None:
        super().__init__()
        self.sigmas = sigmas

    def forward(self, x: Tensor, k: Tensor, conditions: Any = None, memory: Any = None) -> tuple[Tensor, None]:
        sigma = self.sigmas[k][..., None]
        return MEAN + (x * (1 + sigma**2).sqrt() - MEAN) * STD / (STD**2 + sigma**2).sqrt(), None


class Lines(nn.Module):
    """One slope and one offset a level."""

    def __init__(self, timesteps: int) -> None:
        super().__init__()
        self.slope, self.offset = (nn.Parameter(torch.zeros(timesteps)) for _ in range(2))

    def forward(self, x: Tensor, k: Tensor, conditions: Any = None, memory: Any = None) -> tuple[Tensor, None]:
        return self.slope[k][..., None] * x + self.offset[k][..., None], None


def forcing(network: nn.Module, name: str = "edm") -> DiffusionForcing:
    schedule = build_schedule(name)
    return DiffusionForcing(
        network, schedule, build_parameterization("pred_x0", clip_noise=20.0), stabilization_level=1
    )


def exact(name: str = "edm") -> ExactGaussian:
    return ExactGaussian(build_schedule(name), MEAN, STD)


def draws(name: str, tokens: int = 512, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Clean tokens (tokens, 2, 1), levels that differ from token to token, noise."""
    x = MEAN + STD * randn(tokens, 2, 1, seed=seed)
    k = torch.randint(0, 1000, (tokens, 2), generator=torch.Generator().manual_seed(seed))
    return x, k, randn(tokens, 2, 1, seed=seed + 1)


@pytest.mark.parametrize("name", ["edm", "cosine", "linear"])
def test_certain_data_has_no_loss(name: str) -> None:
    network = Certain(torch.full((1, 1, 1), MEAN))
    loss = Distillation(forcing(network, name), network).loss(
        torch.full((4, 3, 1), MEAN), torch.tensor([[0, 400, 999]] * 4)
    )
    assert loss.per_element.abs().max() < 1e-6


def test_the_loss_of_the_exact_curve_goes_to_zero_as_the_grid_grows_and_that_of_the_denoiser_does_not() -> None:
    x, k, noise = draws("edm")
    k = k.clamp(min=200)  # above the last stretch, whose target is the data
    sigmas = build_schedule("edm").sigmas

    def error(student: nn.Module, grid: int) -> float:
        return Distillation(forcing(student), exact(), grid=grid).loss(x, k, noise=noise).per_element.mean().item()

    coarse, middle, fine = (error(Curve(sigmas), grid) for grid in (10, 40, 160))
    assert coarse > 4 * middle > 16 * fine > 0
    assert error(exact(), 160) > 20 * fine


def test_a_student_learns_where_its_teachers_curve_ends() -> None:
    student = Lines(1000)
    made = Distillation(forcing(student), exact(), grid=8)
    optimizer = torch.optim.Adam(student.parameters(), 0.02)
    for step in range(900):
        for group in optimizer.param_groups:
            group["lr"] = 0.02 * (1 - step / 900)
        x, _, noise = draws("edm", tokens=256, seed=step)
        k = made.grid[1:][torch.randint(8, (256, 2), generator=torch.Generator().manual_seed(step))]
        optimizer.zero_grad()
        made.loss(x, k, noise=noise).per_element.mean().backward()
        optimizer.step()
    noise = randn(512, 1, 1)
    taught = Sampler(forcing(exact()), sampling_timesteps=8)
    learned = Sampler(forcing(student), sampling_timesteps=1)
    ends = [sampler.denoise(noise, sampler.matrix(1)) for sampler in (taught, learned)]
    assert ends[0].std() > 0.35
    # One step of the denoiser itself gives the mean of the data, whatever the noise.
    blurred = Sampler(forcing(exact()), sampling_timesteps=1).denoise(noise, learned.matrix(1))
    assert (ends[1] - ends[0]).abs().mean() < 0.1 * (blurred - ends[0]).abs().mean()


def test_clean_tokens_have_no_loss_and_each_level_goes_to_the_grid() -> None:
    made = Distillation(forcing(exact()), exact(), grid=4)
    x, _, noise = draws("edm", tokens=2)
    loss = made.loss(x, torch.tensor([[-1, 500], [-1, -1]]), noise=noise).per_element
    assert (loss[:, 0] == 0).all()
    assert loss[0, 1] > 0
    assert loss[1, 1] == 0
    assert made.grid.tolist() == [-1, 249, 499, 749, 999]
    seen = made.network.calls[0][1]
    assert seen[0, 1] == 749
    with pytest.raises(UserError, match="grid is 0"):
        Distillation(forcing(exact()), exact(), grid=0)


def test_the_teacher_and_the_target_are_neither_trained_nor_saved() -> None:
    student, teacher, target = Lines(1000), Lines(1000), Lines(1000)
    made = Distillation(forcing(student), teacher, target=target)
    x, k, noise = draws("edm", tokens=4)
    made.loss(x, k, noise=noise).per_element.mean().backward()
    assert student.slope.grad is not None
    assert teacher.slope.grad is None and target.slope.grad is None
    assert set(made.state_dict()) == {"network.slope", "network.offset"}
    assert list(made.parameters()) == list(student.parameters())
