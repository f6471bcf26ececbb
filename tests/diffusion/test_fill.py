"""Filling in between given tokens: what is held, in which order the rest is sampled, and bridges of random walks, known in closed form."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from diffusion_forcing.diffusion import GradientGuidance, Sampler, build_schedule
from tests.diffusion.gaussian import forcing_of, randn, walk_of

WIDTH = 2
PATTERNS = torch.tensor(
    [
        [True, False, False, False, True],
        [False, True, False, True, False],
        [False, False, False, False, False],
        [True, True, True, True, True],
    ]
)


@pytest.mark.parametrize("kind", ["autoregressive", "pyramid", "full_sequence", "trapezoid"])
def test_unknown_tokens_go_down_the_matrix_in_their_order_and_the_known_stay_clean(kind: str) -> None:
    sampler = Sampler(walk_of(), sampling_timesteps=3, scheduling_matrix=kind)
    seen: list[Tensor] = []
    sampler.fill(randn(4, 5, WIDTH), PATTERNS, on_row=lambda row, tokens, levels: seen.append(levels))
    found = torch.stack(seen)  # (rows, b, t), the first row not among them
    for sequence, known in enumerate(PATTERNS):
        assert (found[:, sequence, known] == 0).all()
        unknown = found[:, sequence, ~known]
        if unknown.shape[1]:
            expected = sampler.matrix(unknown.shape[1])[1:]
            assert torch.equal(unknown[: len(expected)], expected)
            assert (unknown[len(expected) :] == 0).all()


@pytest.mark.parametrize("steps", [4, 100])
def test_known_tokens_are_held_bit_for_bit_and_unknown_ones_are_not_read(steps: int) -> None:
    sampler = Sampler(
        forcing_of(std=0.5, schedule=build_schedule("cosine", 100)),  # 100 of 100 steps: DDPM
        sampling_timesteps=steps,
        scheduling_matrix="full_sequence",
        eta=0.5,
    )
    x = randn(4, 5, WIDTH)
    x[~PATTERNS] = torch.nan
    out = sampler.fill(x, PATTERNS)
    assert torch.equal(out[PATTERNS], x[PATTERNS])
    assert out.isfinite().all()


def test_one_pattern_may_serve_all_sequences_and_is_a_walk() -> None:
    sampler = Sampler(walk_of(), sampling_timesteps=4, scheduling_matrix="pyramid")
    x, known = randn(3, 5, WIDTH), PATTERNS[0]
    out = sampler.fill(x, known, generator=torch.Generator().manual_seed(0))
    noise = sampler.noise((3, 5, WIDTH), x.device, torch.Generator().manual_seed(0))
    start = torch.where(known[:, None], x, noise)
    matrix = torch.zeros(len(sampler.matrix(3)), 5, dtype=torch.long)
    matrix[:, 1:4] = sampler.matrix(3)
    assert torch.allclose(out, sampler.denoise(start, matrix), atol=1e-6)
    each = sampler.fill(x, known.expand(3, 5), generator=torch.Generator().manual_seed(0))
    assert torch.equal(out, each)


def test_what_is_known_altogether_comes_back_and_costs_nothing() -> None:
    forcing = walk_of()
    x = randn(2, 5, WIDTH)
    assert torch.equal(Sampler(forcing, sampling_timesteps=4).fill(x, torch.ones(5).bool()), x)
    assert forcing.network.calls == []  # type: ignore[comparison-overlap]


def midpoints(*, causal: bool, kind: str) -> Tensor:
    """The middle of walks of 5 steps that begin at 0 and are said to end at 8, (n,)."""
    forcing = walk_of(causal=causal, stabilization_level=1)
    sampler = Sampler(forcing, sampling_timesteps=40, scheduling_matrix=kind)
    x = torch.zeros(1500, 5, 1)
    x[:, 4] = 8.0
    out = sampler.fill(x, PATTERNS[0], generator=torch.Generator().manual_seed(0))
    return out[:, 2, 0]


@pytest.mark.parametrize("kind", ["full_sequence", "autoregressive"])
def test_a_network_that_sees_both_ends_draws_a_bridge(kind: str) -> None:
    # from 0 at t = 1 to 8 at t = 5: mean 4 and variance 1 at t = 3
    found = midpoints(causal=False, kind=kind)
    assert found.mean().item() == pytest.approx(4, abs=0.1)
    assert found.var().item() == pytest.approx(1, abs=0.12)


def test_a_causal_network_walks_on_from_the_past_alone() -> None:
    # two steps after 0: mean 0 and variance 2
    found = midpoints(causal=True, kind="autoregressive")
    assert found.mean().item() == pytest.approx(0, abs=0.15)
    assert found.var().item() == pytest.approx(2, abs=0.25)


def test_what_is_filled_in_can_be_guided() -> None:
    sampler = Sampler(walk_of(), sampling_timesteps=20, scheduling_matrix="full_sequence")
    x, known = torch.zeros(4, 5, 1), PATTERNS[0]
    free, guided = (
        sampler.fill(x, known, guidance=guidance, generator=torch.Generator().manual_seed(0))
        for guidance in (None, GradientGuidance(lambda x0: x0[:, 1:4].sum(dim=(1, 2))))
    )
    assert (guided[:, 1:4] > free[:, 1:4]).all()
    assert torch.equal(guided[:, known], free[:, known])
