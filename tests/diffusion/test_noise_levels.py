from __future__ import annotations

import pytest
import torch

from diffusion_forcing.diffusion import draw_noise_levels, mask_absent
from diffusion_forcing.errors import UserError

CPU = torch.device("cpu")


def draw(kind: str, batch: int, time: int, *, timesteps: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return draw_noise_levels(kind, batch, time, timesteps=timesteps, generator=generator, device=CPU)


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


@pytest.mark.parametrize("kind", ["random_all", "shared"])
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
