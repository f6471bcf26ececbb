"""Rolling a recurrent network out: no window, no token stepped in vain, and the numbers of the plain walk."""

from __future__ import annotations

import itertools
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
from diffusion_forcing.networks.recurrent import Latent, Recurrent, recurrent_mlp
from tests.diffusion.gaussian import randn

WIDTH, STATE, CONDITIONS, STEPS = 3, 8, 2, 4


class Counted(DiffusionForcing):
    """Counts the tokens its network steps."""

    def __init__(self, network: Recurrent, timesteps: int = 1000) -> None:
        super().__init__(
            network.eval(), build_schedule("cosine", timesteps), build_parameterization("pred_v", clip_noise=6.0)
        )
        self.steps = 0

    def forward(self, x: Tensor, *others: Any, **options: Any) -> Any:
        self.steps += x.shape[1]
        return super().forward(x, *others, **options)


def forcing_of(*, timesteps: int = 1000) -> Counted:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = recurrent_mlp(WIDTH, STATE, network_size=4, external_cond_dim=CONDITIONS, learnable_init_z=True)
    return Counted(network, timesteps)


def sampler_of(kind: str = "pyramid", *, timesteps: int = 1000, steps: int = STEPS, **settings: Any) -> Sampler:
    return Sampler(forcing_of(timesteps=timesteps), sampling_timesteps=steps, scheduling_matrix=kind, **settings)


def steps_of(sampler: Sampler) -> int:
    assert isinstance(sampler.forcing, Counted)
    return sampler.forcing.steps


def rolled(sampler: Sampler, length: int, *, context: int = 2, seed: int = 1, **how: Any) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    conditions = randn(2, length, CONDITIONS, seed=5)
    return sampler.rollout(
        randn(2, context, WIDTH), length, conditions=conditions, generator=generator, **{"cache": "streaming", **how}
    )


def plain(sampler: Sampler, length: int, chunk_size: int, *, context: int = 2, seed: int = 1) -> Tensor:
    """The specification: every row of a chunk over all of its tokens, behind the latent of the finished ones."""
    forcing, generator = sampler.forcing, torch.Generator().manual_seed(seed)
    conditions, x = randn(2, length, CONDITIONS, seed=5), randn(2, context, WIDTH)
    while x.shape[1] < length:
        now, chunk = x.shape[1], min(chunk_size, length - x.shape[1])
        noise = sampler.noise((2, chunk, WIDTH), x.device, generator)
        memory = forcing.prefill(x, conditions=conditions[:, :now]) if now else None
        told = conditions[:, now : now + chunk]
        x = torch.cat([x, sampler.denoise(noise, sampler.matrix(chunk), conditions=told, memory=memory)], dim=1)
    return x


@pytest.mark.parametrize("kind", SCHEDULING_MATRICES)
@pytest.mark.parametrize(("chunk_size", "context"), [(1, 2), (3, 2), (5, 0)])
def test_a_rollout_is_the_plain_walk_over_every_token(kind: str, chunk_size: int, context: int) -> None:
    sampler = sampler_of(kind, uncertainty_scale=1.5)
    ours = rolled(sampler, 7, chunk_size=chunk_size, context=context)
    torch.testing.assert_close(ours, plain(sampler, 7, chunk_size, context=context), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("cache", ["exact", "streaming"])
def test_both_caches_are_the_same_and_read_no_window(cache: str) -> None:
    sampler = sampler_of()
    expected = rolled(sampler, 9, chunk_size=2)
    assert torch.equal(rolled(sampler, 9, chunk_size=2, cache=cache, window=3), expected)
    assert torch.equal(rolled(sampler, 9, chunk_size=2, cache=cache, window=1), expected)


def test_without_a_cache_the_whole_window_is_stepped_and_gives_the_same() -> None:
    sampler = sampler_of()
    shown = rolled(sampler, 6, chunk_size=2, cache="none", window=6)
    torch.testing.assert_close(rolled(sampler, 6, chunk_size=2), shown, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["autoregressive", "pyramid", "full_sequence"])
@pytest.mark.parametrize("chunk_size", [1, 2, 5])
def test_a_token_is_stepped_once_a_level_and_once_when_it_is_finished(kind: str, chunk_size: int) -> None:
    context, new = 3, 10
    sampler = sampler_of(kind, uncertainty_scale=2.0)
    rolled(sampler, context + new, chunk_size=chunk_size, context=context)
    # what nothing follows is not remembered: the last chunk's last token, all of them where they end together
    last = chunk_size if kind == "full_sequence" else 1
    assert steps_of(sampler) == context + new * STEPS + new - last


def test_pyramids_step_less_than_their_area() -> None:
    sampler = sampler_of("pyramid", uncertainty_scale=float(STEPS))
    rolled(sampler, 8, chunk_size=8, context=0)
    assert steps_of(sampler) == 8 * STEPS + 7
    area = 8 * (len(sampler.matrix(8)) - 1)
    assert steps_of(sampler) * 6 < area


@pytest.mark.slow
def test_a_thousand_tokens_cost_the_thousandth_what_the_first_cost_and_keep_one_latent() -> None:
    sampler = sampler_of(steps=1)
    memories: list[Latent] = []
    before = sampler.forcing.prefill

    def prefill(x: Tensor, **how: Any) -> Any:
        memories.append(before(x, **how))
        return memories[-1]

    sampler.forcing.prefill = prefill  # type: ignore[method-assign]
    with torch.no_grad():
        stream = sampler.stream(
            randn(2, 3, WIDTH), None, cache="streaming", conditions=lambda a, b: torch.zeros(2, b - a, CONDITIONS)
        )
        for _ in itertools.islice(stream, 1000):
            pass
    assert steps_of(sampler) == 3 + 2 * 1000 - 1
    assert {memory.z.untyped_storage().nbytes() for memory in memories} == {2 * STATE * 4}
    assert memories[-1].length == 3 + 999
    assert memories[-1].trimmed(1) is memories[-1]


def test_ddpm_rolls_out_too() -> None:
    sampler = sampler_of("autoregressive", timesteps=12, steps=12)
    assert sampler.ancestral
    x = rolled(sampler, 5, chunk_size=3)
    assert x.isfinite().all()
    assert torch.equal(x, rolled(sampler, 5, chunk_size=3))
    assert not torch.equal(x, rolled(sampler, 5, chunk_size=3, seed=2))


def test_eta_is_drawn_from_the_generator() -> None:
    noisy, still = sampler_of(eta=1.0), sampler_of()
    x = rolled(noisy, 6, chunk_size=4)
    assert torch.equal(x, rolled(noisy, 6, chunk_size=4))
    assert not torch.equal(x[:, 2:], rolled(still, 6, chunk_size=4)[:, 2:])


def test_rows_are_shown_whole() -> None:
    sampler = sampler_of("autoregressive")
    seen: list[tuple[int, Tensor, Tensor]] = []
    x = rolled(sampler, 5, chunk_size=3, on_row=lambda row, x, levels: seen.append((row, x.clone(), levels)))
    matrix = sampler.matrix(3)
    assert [row for row, _, _ in seen] == list(range(len(matrix) - 1))
    assert torch.equal(torch.stack([levels for _, _, levels in seen]), matrix[1:])
    assert all(tokens.shape == (2, 3, WIDTH) for _, tokens, _ in seen)
    assert torch.equal(seen[-1][1], x[:, 2:])


def test_a_return_sees_the_chunk() -> None:
    sampler = sampler_of()
    shapes = []

    def value(x0: Tensor) -> Tensor:
        shapes.append(tuple(x0.shape))
        return x0.flatten(1).sum(1)

    guided = rolled(sampler, 5, chunk_size=3, guidance=GradientGuidance(value))
    assert set(shapes) == {(2, 3, WIDTH)}
    assert not torch.equal(guided, rolled(sampler, 5, chunk_size=3))


@pytest.mark.parametrize("guided", [{"condition_scale": 2.0}, {"condition_scale": 2.0, "history_scale": 1.5}])
def test_guidance_by_composition_is_that_of_the_plain_walk(guided: dict[str, float]) -> None:
    sampler = sampler_of("autoregressive", **guided)
    how: dict[str, Any] = {"context": 0, "chunk_size": -1, "window": 5}
    shown = rolled(sampler, 5, cache="none", **how)
    torch.testing.assert_close(rolled(sampler, 5, **how), shown, rtol=1e-5, atol=1e-5)
    assert not torch.equal(shown, rolled(sampler_of("autoregressive"), 5, **how))


def test_a_latent_to_begin_with_is_where_the_rollout_stands() -> None:
    sampler = sampler_of()
    context = randn(2, 2, WIDTH)
    conditions = randn(2, 5, CONDITIONS, seed=5)
    memory = sampler.forcing.prefill(context, conditions=conditions[:, :2])
    ours = rolled(sampler, 5)[:, 2:]
    generator = torch.Generator().manual_seed(1)
    rest = sampler.rollout(
        context[:, :0], 3, cache="exact", memory=memory, conditions=conditions[:, 2:], generator=generator
    )
    assert torch.equal(rest, ours)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"cache": "none"}, "only a recurrent network under cache=exact or streaming rolls out without a window"),
        ({"cache": "none", "window": 6, "memory": Latent(torch.zeros(2, STATE), 0)}, "begins with a memory"),
        ({"sinks": 1}, "sinks is .* pass 0"),
    ],
)
def test_what_cannot_be_is_one_line(how: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        rolled(sampler_of(), 6, **how)


def test_what_the_latent_remembers_is_finished() -> None:
    sampler = sampler_of("autoregressive")
    sampler.finish = torch.round
    remembered: list[Tensor] = []
    before = sampler.forcing.prefill

    def prefill(x: Tensor, **how: Any) -> Any:
        remembered.append(x)
        return before(x, **how)

    sampler.forcing.prefill = prefill  # type: ignore[method-assign]
    rolled(sampler, 6, chunk_size=3)
    assert len(remembered) > 1
    assert all(torch.equal(x, x.round()) for x in remembered)


def test_a_start_memory_and_branches_are_refused_together() -> None:
    sampler = sampler_of(condition_scale=2.0)
    network: Any = sampler.forcing.network
    with pytest.raises(UserError, match=r"condition_scale and history_scale .* start memory"):
        rolled(sampler, 4, memory=network.begin(2, torch.zeros(2, 1, WIDTH)), cache="exact")
