"""Walking matrices and rolling out: the order of levels, and a hand-written loop. (What a rollout keeps: test_history.py.)"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from diffusion_forcing.diffusion import (
    DiffusionForcing,
    GradientGuidance,
    Sampler,
    build_parameterization,
    build_schedule,
)
from diffusion_forcing.diffusion.scheduling import SCHEDULING_MATRICES
from diffusion_forcing.errors import UserError
from diffusion_forcing.networks import Transformer
from tests.diffusion.gaussian import ExactGaussian, forcing_of, randn

WIDTH, CONDITIONS = 3, 2


def transformer(*, causal: bool = True, conditioned: bool = False) -> DiffusionForcing:
    """A small network with random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = Transformer(
            WIDTH,
            network_size=16,
            num_layers=2,
            attn_heads=2,
            dim_feedforward=32,
            causal=causal,
            external_cond_dim=CONDITIONS if conditioned else 0,
        ).eval()
    return DiffusionForcing(network, build_schedule("cosine"), build_parameterization("pred_v", clip_noise=6.0))


def sampler_of(forcing: DiffusionForcing, kind: str = "pyramid", *, steps: int = 4, **settings: Any) -> Sampler:
    return Sampler(forcing, sampling_timesteps=steps, scheduling_matrix=kind, **settings)


# ------------------------------------------------------------------------------------------------------------- walking


@pytest.mark.parametrize("kind", SCHEDULING_MATRICES)
def test_a_walk_visits_every_row_of_the_matrix_in_order(kind: str) -> None:
    forcing = forcing_of(std=0.5)
    network = forcing.network
    assert isinstance(network, ExactGaussian)
    sampler = sampler_of(forcing, kind, uncertainty_scale=2.0)
    matrix = sampler.matrix(3)
    seen: list[tuple[int, Tensor, Tensor]] = []
    x = randn(2, 3, WIDTH)
    out = sampler.denoise(x, matrix, on_row=lambda row, tokens, levels: seen.append((row, tokens, levels)))
    j = forcing.stabilization_level - 1
    # shown to the network: the level of each row but the last, clean tokens at the stabilization level
    shown = torch.stack([k for _, k, _ in network.calls])
    expected = sampler.levels[matrix[:-1]]
    assert torch.equal(shown, torch.where(expected < 0, j, expected)[:, None].expand(-1, 2, -1))
    assert [row for row, _, _ in seen] == list(range(len(matrix) - 1))
    assert torch.equal(torch.stack([levels for _, _, levels in seen]), matrix[1:])
    assert torch.equal(seen[-1][1], out)


def test_a_walk_is_its_steps_one_after_the_other() -> None:
    forcing = transformer()
    sampler = sampler_of(forcing, steps=3)
    x = expected = randn(2, 3, WIDTH)
    matrix = torch.tensor([[3, 3, 3], [1, 2, 3], [0, 2, 2], [0, 0, 0]])
    for now, then in ((0, 1), (1, 2), (2, 3)):
        expected = forcing.step(
            expected, sampler.levels[matrix[now]].expand(2, 3), sampler.levels[matrix[then]].expand(2, 3)
        )
    assert torch.equal(sampler.denoise(x, matrix), expected)


def test_rows_that_change_nothing_cost_nothing() -> None:
    forcing = forcing_of(std=0.5)
    network = forcing.network
    assert isinstance(network, ExactGaussian)
    matrix = torch.tensor([[4, 4], [4, 4], [2, 4], [2, 4], [0, 0]])
    rows: list[int] = []
    sampler_of(forcing).denoise(randn(1, 2, WIDTH), matrix, on_row=lambda row, tokens, levels: rows.append(row))
    assert len(network.calls) == 2
    assert rows == [1, 3]


def test_context_and_absent_tokens_come_back_bit_for_bit() -> None:
    sampler = sampler_of(transformer(causal=False))
    x = randn(2, 4, WIDTH)
    rows = sampler.matrix(2)
    matrix = torch.cat([torch.zeros(len(rows), 1).long(), rows, torch.full((len(rows), 1), 4)], dim=1)
    out = sampler.denoise(x, matrix)
    assert torch.equal(out[:, [0, 3]], x[:, [0, 3]])
    assert (out[:, 1:3] != x[:, 1:3]).all()


def test_a_matrix_needs_a_column_a_token() -> None:
    sampler = sampler_of(forcing_of())
    with pytest.raises(UserError, match="3 columns for 2 tokens"):
        sampler.denoise(randn(1, 2, WIDTH), sampler.matrix(3))


def test_pure_noise_is_clamped_and_a_function_of_the_seed() -> None:
    sampler = sampler_of(forcing_of(clip_noise=0.3))

    def noise(seed: int) -> Tensor:
        return sampler.noise((2, 50, WIDTH), torch.device("cpu"), torch.Generator().manual_seed(seed))

    assert noise(0).abs().max() == pytest.approx(0.3)
    assert torch.equal(noise(0), noise(0))
    assert not torch.equal(noise(0), noise(1))


# ------------------------------------------------------------------------------------------------------------- rolling out


def by_hand(
    sampler: Sampler,
    context: Tensor,
    length: int,
    *,
    window: int,
    chunk_size: int,
    conditions: Tensor | None,
    generator: torch.Generator,
) -> Tensor:
    """docs/method.md §7 word by word."""
    forcing, tokens = sampler.forcing, list(context.unbind(1))
    while len(tokens) < length:
        chunk = length - len(tokens) if chunk_size == -1 else min(chunk_size, length - len(tokens))
        noise = torch.randn(len(context), chunk, WIDTH, generator=generator).clamp(
            -forcing.clip_noise, forcing.clip_noise
        )
        tokens += noise.unbind(1)
        first = max(0, len(tokens) - window)
        x = torch.stack(tokens[first:], dim=1)
        past = x.shape[1] - chunk
        rows = [[0] * past + row for row in sampler.matrix(chunk).tolist()]
        for m in range(len(rows) - 1):
            now, then = (torch.stack([sampler.levels[s] for s in rows[i]]).expand(x.shape[:2]) for i in (m, m + 1))
            drawn = torch.zeros_like(x)  # the noise of DDIM with eta > 0, for the chunk
            if sampler.eta:
                drawn[:, past:] = torch.randn(len(context), chunk, WIDTH, generator=generator)
            x = forcing.step(
                x,
                now,
                then,
                eta=sampler.eta,
                conditions=None if conditions is None else conditions[:, first : len(tokens)],
                noise=drawn,
            )
        tokens[-chunk:] = x[:, -chunk:].unbind(1)
    return torch.stack(tokens, dim=1)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(
    ("kind", "chunk_size", "window", "eta"),
    [
        ("autoregressive", 1, 7, 0.0),
        ("autoregressive", 1, 3, 0.5),
        ("pyramid", 2, 4, 0.0),
        ("full_sequence", 3, 3, 1.0),
        ("trapezoid", -1, 8, 0.3),
    ],
)
def test_a_rollout_is_the_loop_of_the_paper(kind: str, chunk_size: int, window: int, eta: float, causal: bool) -> None:
    sampler = sampler_of(transformer(causal=causal, conditioned=True), kind, steps=3, eta=eta)
    context, conditions = randn(2, 2, WIDTH), randn(2, 7, CONDITIONS, seed=1)
    how = {"window": window, "chunk_size": chunk_size, "conditions": conditions}
    out = sampler.rollout(context, 7, **how, generator=torch.Generator().manual_seed(5))
    expected = by_hand(sampler, context, 7, **how, generator=torch.Generator().manual_seed(5))
    assert out.shape == (2, 7, WIDTH)
    assert torch.equal(out, expected)
    assert torch.equal(out[:, :2], context)


def test_a_rollout_no_longer_than_its_context_is_the_context() -> None:
    context = randn(2, 3, WIDTH)
    assert torch.equal(sampler_of(transformer()).rollout(context, 3, window=4), context)


def test_every_chunk_is_guided() -> None:
    sampler = sampler_of(forcing_of(std=0.5), "pyramid", steps=20)
    context, goal = randn(2, 1, WIDTH), 1.0
    free, guided = (
        sampler.rollout(
            context, 5, window=5, chunk_size=2, guidance=guidance, generator=torch.Generator().manual_seed(0)
        )
        for guidance in (None, GradientGuidance(lambda x0: -5 * ((x0 - goal) ** 2).sum(dim=(1, 2))))
    )
    assert torch.equal(guided[:, :1], context)
    for chunk in (slice(1, 3), slice(3, 5)):
        assert (guided[:, chunk] - goal).abs().mean() < 0.5 * (free[:, chunk] - goal).abs().mean()


def test_sampling_keeps_no_graph() -> None:
    sampler = sampler_of(transformer())
    assert any(p.requires_grad for p in sampler.forcing.network.parameters())
    x = randn(1, 2, WIDTH)
    assert not sampler.denoise(x, sampler.matrix(2)).requires_grad
    for cache in ("none", "exact"):
        assert not sampler.rollout(x, 4, window=4, cache=cache).requires_grad
