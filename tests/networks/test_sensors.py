"""The network with eyes: no token sees a later one, a remembered past is the past, a clean past beside noised tokens is one after the other."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from diffusion_forcing.errors import UserError
from diffusion_forcing.networks import Transformer
from diffusion_forcing.networks.recurrent import recurrent_mlp
from diffusion_forcing.networks.sensors import SensorNetwork

CHANNELS, SIZE, NUMBERS, FEATURES, TOLD = 2, 8, 5, 6, 3
WIDTH = CHANNELS * SIZE**2 + NUMBERS


def network(kind: str) -> SensorNetwork:
    torch.manual_seed(0)
    inner: nn.Module
    if kind == "attention":
        inner = Transformer(
            FEATURES + NUMBERS,
            network_size=16,
            num_layers=2,
            attn_heads=2,
            dim_feedforward=16,
            causal=True,
            external_cond_dim=TOLD,
        )
    else:
        inner = recurrent_mlp(FEATURES + NUMBERS, 12, network_size=4, external_cond_dim=TOLD)
    return SensorNetwork(inner, channels=CHANNELS, size=SIZE, numbers=NUMBERS, features=FEATURES, width=8)


def tokens(time: int = 5) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    drawn = torch.Generator().manual_seed(1)
    x = torch.randn(2, time, WIDTH, generator=drawn)
    return x, torch.randint(0, 1000, (2, time), generator=drawn), torch.rand(2, time, TOLD, generator=drawn)


@pytest.mark.parametrize("kind", ["attention", "rnn"])
@torch.no_grad()
def test_a_later_token_changes_nothing_before_it(kind: str) -> None:
    net, (x, k, told) = network(kind), tokens()
    before, _ = net(x, k, told)
    changed = x.clone()
    changed[:, 3] += 1
    after, _ = net(changed, k, told)
    torch.testing.assert_close(after[:, :3], before[:, :3], rtol=0, atol=1e-6)
    assert (after[:, 3:] - before[:, 3:]).abs().flatten(2).amax(-1).min() > 1e-4


@pytest.mark.parametrize("kind", ["attention", "rnn"])
@torch.no_grad()
def test_a_remembered_past_is_the_past(kind: str) -> None:
    net, (x, k, told) = network(kind), tokens()
    whole, _ = net(x, k, told)
    first, memory = net(x[:, :2], k[:, :2], told[:, :2])
    rest, _ = net(x[:, 2:], k[:, 2:], told[:, 2:], memory)
    torch.testing.assert_close(torch.cat([first, rest], dim=1), whole, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["attention", "rnn"])
@torch.no_grad()
def test_behind_a_clean_past_is_one_token_after_the_other(kind: str) -> None:
    net, (x, k, told) = network(kind), tokens()
    clean = torch.randn_like(x)
    clean_k = torch.full_like(k, 9)
    together = net.teacher_forced(clean, clean_k, x, k, told)
    for token in range(x.shape[1]):
        shown = torch.cat([clean[:, :token], x[:, token : token + 1]], dim=1)
        levels = torch.cat([clean_k[:, :token], k[:, token : token + 1]], dim=1)
        alone, _ = net(shown, levels, told[:, : token + 1])
        torch.testing.assert_close(together[:, token], alone[:, -1], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_the_pictures_reach_the_numbers_and_the_numbers_the_pictures() -> None:
    net, (x, k, told) = network("attention"), tokens()
    before, _ = net(x, k, told)
    for part, other in ((slice(0, 10), slice(WIDTH - NUMBERS, WIDTH)), (slice(WIDTH - NUMBERS, WIDTH), slice(0, 10))):
        changed = x.clone()
        changed[..., part] += 1
        after, _ = net(changed, k, told)
        assert (after[..., other] - before[..., other]).abs().max() > 1e-5


def test_sizes_that_cannot_be_are_one_line() -> None:
    with pytest.raises(UserError, match="multiples of 8"):
        SensorNetwork(nn.Identity(), channels=3, size=12, numbers=1)
