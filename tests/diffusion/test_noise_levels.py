from __future__ import annotations

from typing import Any

import pytest
import torch

from diffusion_forcing.algorithms.world import LevelDensity
from diffusion_forcing.diffusion import build_schedule, draw_noise_levels, loss_mask, mask_absent
from diffusion_forcing.diffusion.noise import offset_normal
from diffusion_forcing.errors import UserError

CPU = torch.device("cpu")


def draw(kind: str, batch: int, time: int, *, timesteps: int, seed: int = 0, **how: Any) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return draw_noise_levels(kind, batch, time, timesteps=timesteps, generator=generator, device=CPU, **how)


def test_every_token_draws_its_own_level_uniformly() -> None:
    k = draw("random_all", 4000, 3, timesteps=10)
    share = torch.stack([torch.bincount(k[:, t], minlength=10) for t in range(3)]) / 4000
    assert ((share - 0.1).abs() < 5 * (0.1 * 0.9 / 4000) ** 0.5).all()
    # independent: a token's level says nothing about its neighbour's
    pairs = torch.bincount(10 * k[:, 0] + k[:, 1], minlength=100) / 4000
    assert ((pairs - 0.01).abs() < 5 * (0.01 * 0.99 / 4000) ** 0.5).all()


def test_a_shared_level_is_one_a_sequence() -> None:
    k = draw("shared", 500, 4, timesteps=10)
    assert (k == k[:, :1]).all()
    assert len(k[:, 0].unique()) == 10
    k[0, 0] += 1  # a tensor of its own, not a view that writes everywhere
    assert k[0, 0] != k[0, 1]


@pytest.mark.parametrize("given", [0, 2])
def test_full_sequence_diffusion_is_one_level_and_what_is_given_clean(given: int) -> None:
    k = draw("full_sequence", 2000, 5, timesteps=10, context=given)
    assert (k[:, :given] == -1).all()
    assert (k[:, given:] == k[:, -1:]).all()
    share = torch.bincount(k[:, -1], minlength=10) / 2000
    assert ((share - 0.1).abs() < 5 * (0.1 * 0.9 / 2000) ** 0.5).all()
    assert torch.equal(loss_mask("full_sequence", k), (k >= 0).float())


@pytest.mark.parametrize("given", [0, 2])
def test_teacher_forcing_is_a_clean_past_one_noised_token_and_noise(given: int) -> None:
    k = draw("teacher_forcing", 4000, 6, timesteps=10, context=given)
    next_one = (k < 0).sum(dim=1)
    token = torch.arange(6)
    assert (k[token < next_one[:, None]] == -1).all()
    assert (k[token > next_one[:, None]] == 9).all()
    own = k.gather(1, next_one[:, None])[:, 0]
    for drawn, low, high in ((next_one, given, 6), (own, 0, 10)):
        share = torch.bincount(drawn, minlength=high).float() / 4000
        even = 1 / (high - low)
        assert (share[:low] == 0).all()
        assert ((share[low:] - even).abs() < 5 * (even * (1 - even) / 4000) ** 0.5).all()
    weight = loss_mask("teacher_forcing", k)
    assert torch.equal(
        weight, 6.0 * (token == next_one[:, None])
    )  # one counts for all: the mean over tokens is its error


def test_teacher_forcing_of_every_token_is_a_level_each_and_all_count() -> None:
    k = draw("teacher_forcing", 500, 4, timesteps=10, teacher_forced=True, context=1)
    assert (k[:, 0] == -1).all()
    assert k[:, 1:].min() == 0
    assert (k[:, 1] != k[:, 2]).any()
    assert torch.equal(loss_mask("teacher_forcing", k, teacher_forced=True), (k >= 0).float())


def test_the_method_counts_every_token() -> None:
    for kind in ("random_all", "shared"):
        assert (loss_mask(kind, draw(kind, 8, 4, timesteps=10)) == 1).all()


@pytest.mark.parametrize("kind", ["random_all", "shared", "full_sequence", "teacher_forcing"])
def test_levels_are_a_function_of_the_seed(kind: str) -> None:
    assert torch.equal(draw(kind, 8, 4, timesteps=1000, seed=3), draw(kind, 8, 4, timesteps=1000, seed=3))
    assert not torch.equal(draw(kind, 8, 4, timesteps=1000, seed=3), draw(kind, 8, 4, timesteps=1000, seed=4))


def test_an_unknown_kind_is_refused_with_the_nearest() -> None:
    with pytest.raises(UserError, match=r"noise_level 'random_al'.*did you mean 'random_all'"):
        draw("random_al", 1, 1, timesteps=10)


def test_absent_tokens_are_pure_noise() -> None:
    k = torch.tensor([[3, 4, 5]])
    assert mask_absent(k, torch.tensor([[True, False, True]]), 10).tolist() == [[3, 9, 5]]
    assert k.tolist() == [[3, 4, 5]]


def test_the_density_of_levels_is_log_normal_and_cut() -> None:
    sigmas = build_schedule("edm").sigmas
    density = LevelDensity(past=(-3.0, 1.0), past_max=0.3, target=(-0.4, 0.5), pure=0.2)
    generator = torch.Generator().manual_seed(0)
    past = sigmas[density.draw_past(sigmas, (20000, 1), generator=generator)]
    assert past.max() <= 0.31
    assert past.log().median().item() == pytest.approx(-3, abs=0.05)
    target = density.draw_target(sigmas, (20000, 1), generator=generator)
    assert (target == 999).float().mean().item() == pytest.approx(0.2, abs=0.015)
    assert sigmas[target[target < 999]].log().std().item() == pytest.approx(0.5, abs=0.03)


def test_a_mixture_of_levels_is_independent_from_frame_to_frame() -> None:
    sigmas = build_schedule("edm").sigmas
    levels = LevelDensity().draw_mixture(sigmas, (5000, 2), generator=torch.Generator().manual_seed(0))
    pure = (levels == 999).float()
    assert pure.mean().item() == pytest.approx(0.1 + 0.5 * 0.8 * 0.075, abs=0.02)  # and what a target's tail adds
    assert torch.corrcoef(levels.T.float())[0, 1].abs() < 0.05


def test_offset_noise_has_unit_variance_and_shifts_whole_frames() -> None:
    noise = offset_normal((64, 4, 3, 16, 16), 0.3, generator=torch.Generator().manual_seed(0), device=CPU)
    assert noise.var().item() == pytest.approx(1, abs=0.02)
    assert noise.mean((-2, -1)).std().item() == pytest.approx((0.3**2 / 1.09 + 1 / 256 / 1.09) ** 0.5, rel=0.1)
    plain = offset_normal((2, 1, 3, 4, 4), 0, generator=torch.Generator().manual_seed(0), device=CPU)
    assert torch.equal(plain, torch.randn(2, 1, 3, 4, 4, generator=torch.Generator().manual_seed(0)))
