"""Classifier-free and history guidance against Gaussians, where their effect is known exactly."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from diffusion_forcing.diffusion import (
    DiffusionForcing,
    GradientGuidance,
    Sampler,
    classifier_free_guidance,
    history_guidance,
)
from diffusion_forcing.diffusion.guidance import WeightedBranches, Weights, combine
from diffusion_forcing.diffusion.parameterization import add_noise
from diffusion_forcing.errors import UserError
from tests.diffusion.gaussian import RandomWalk, forcing_of, randn, walk_of
from tests.diffusion.test_history import CONDITIONS, WIDTH, Diary, Relative, forcing_over, seeded, transformer

K = 1000
GUIDED: dict[str, dict[str, Any]] = {
    "conditions": {"condition_scale": 2.5},
    "unconditional": {"condition_scale": 0.0},
    "vanilla": {"history_scale": 1.7},
    "no history": {"history_scale": 0.0},
    "fractional": {"history_scale": 2.0, "history_level": 500},
    "both": {"condition_scale": 3.0, "history_scale": 1.5, "history_level": 300},
}


def branches(condition_scale: float = 1.0, history_scale: float = 1.0, history_level: int | None = None) -> Weights:
    return combine(classifier_free_guidance(condition_scale), history_guidance(history_scale, K, history_level))


def weights(**scales: Any) -> dict[tuple[bool, int | None], float]:
    return {(branch.conditions, branch.history): weight for branch, weight in branches(**scales).items()}


# ------------------------------------------------------------------------------------------------------- the branches


def test_the_branches_are_the_formulas() -> None:
    full, dropped, empty, partly = (True, None), (False, None), (True, K - 1), (True, 500)
    assert weights(condition_scale=3.0) == {full: 3, dropped: -2}
    assert weights(history_scale=2.5) == {full: 2.5, empty: -1.5}
    assert weights(history_scale=2.5, history_level=500) == {full: 1, partly: 1.5, empty: -1.5}
    assert weights(condition_scale=3.0, history_scale=2.0) == {full: 4, dropped: -2, empty: -1}
    # what has no weight is not computed
    assert weights(condition_scale=0.0) == {dropped: 1}
    assert weights(history_scale=0.0) == {empty: 1}


@pytest.mark.parametrize("how", GUIDED.values(), ids=GUIDED)
def test_weights_have_sum_one(how: dict[str, Any]) -> None:
    assert sum(weights(**how).values()) == pytest.approx(1)


def test_a_scale_of_one_is_no_guidance_bit_for_bit_and_costs_nothing() -> None:
    assert weights() == {(True, None): 1}
    assert weights(condition_scale=1.0, history_scale=1.0, history_level=500) == {(True, None): 1}
    conditions = randn(2, 7, CONDITIONS, seed=1)
    network, outs, calls = transformer(), [], []
    network.register_forward_hook(lambda module, given, out: calls.append(given[0].shape))
    for how in ({}, {"condition_scale": 1.0, "history_scale": 1.0, "history_level": 3}):
        sampler = Sampler(forcing_over(network), sampling_timesteps=3, eta=0.5, **how)  # type: ignore[arg-type]
        generator = torch.Generator().manual_seed(5)
        outs.append(
            sampler.rollout(randn(2, 2, WIDTH), 7, window=5, cache="exact", conditions=conditions, generator=generator)
        )
    assert torch.equal(*outs)
    assert calls[: len(calls) // 2] == calls[len(calls) // 2 :]


@pytest.mark.parametrize("name", ["condition_scale", "history_scale"])
@pytest.mark.parametrize("scale", [-0.1, float("nan"), float("inf")])
def test_a_scale_that_cannot_be_is_refused(name: str, scale: float) -> None:
    with pytest.raises(UserError, match=f"{name} is {scale}"):
        branches(**{name: scale})


@pytest.mark.parametrize("level", [-1, K - 1, K])
def test_a_history_level_that_cannot_be_is_refused(level: int) -> None:
    with pytest.raises(UserError, match=rf"history_level is {level}; it must lie in 0…998"):
        branches(history_scale=2.0, history_level=level)


def test_there_must_be_conditions_to_lean_on() -> None:
    sampler = Sampler(forcing_of(), sampling_timesteps=3, condition_scale=2.0)
    with pytest.raises(UserError, match="condition_scale needs conditions"):
        sampler.denoise(randn(1, 2, WIDTH), sampler.matrix(2))


# ------------------------------------------------------------------------------------------------------- conditions


@pytest.mark.parametrize("kind", ["autoregressive", "pyramid", "full_sequence"])
@pytest.mark.parametrize("scale", [0.0, 0.5, 2.0, 7.0])
def test_leaning_on_a_condition_that_is_the_mean_is_a_condition_as_many_times_as_large(scale: float, kind: str) -> None:
    # x₀ ~ N(c, Σ) and, not told, N(0, Σ): ε̂ is affine in c, so ε̂(0) + w·(ε̂(c) − ε̂(0)) = ε̂(w·c)
    context, c = randn(3, 2, 1), randn(3, 6, 1, seed=1)
    guided, expected = (
        Sampler(walk_of(), sampling_timesteps=8, scheduling_matrix=kind, condition_scale=w).rollout(
            context, 6, window=6, chunk_size=2, conditions=told, generator=torch.Generator().manual_seed(0)
        )
        for w, told in ((scale, c), (1.0, scale * c))
    )
    assert torch.allclose(guided, expected, atol=2e-4)
    assert torch.equal(guided[:, :2], context)


def test_the_unconditional_branch_alone_is_the_rollout_of_conditions_that_are_zero() -> None:
    c = randn(2, 6, CONDITIONS, seed=1)
    without, zero = (
        Sampler(forcing_over(transformer()), sampling_timesteps=3, condition_scale=scale).rollout(
            randn(2, 2, WIDTH), 6, window=6, conditions=told, generator=torch.Generator().manual_seed(0)
        )
        for scale, told in ((0.0, c), (1.0, torch.zeros_like(c)))
    )
    assert torch.allclose(without, zero, atol=1e-6)


# ------------------------------------------------------------------------------------------------------- history


def eps_of(forcing: DiffusionForcing, x: Tensor, k: Tensor) -> Tensor:
    return forcing(x, k)[0].eps


@pytest.mark.parametrize("objective", ["pred_x0", "pred_noise", "pred_v"])
@pytest.mark.parametrize("level", [None, 400])
def test_history_guidance_is_the_formula(level: int | None, objective: str) -> None:
    # two clean tokens, two on their way; the network is any
    network = seeded(lambda: Relative(conditioned=False))
    forcing = forcing_over(network, objective=objective)
    x, noise, scale = randn(2, 4, WIDTH), randn(2, 4, WIDTH, seed=2), 2.3
    k = torch.tensor([[-1, -1, 300, 800]]).expand(2, 4)
    k_to = torch.tensor([[-1, -1, 100, 800]]).expand(2, 4)
    scales = branches(history_scale=scale, history_level=level)
    out = forcing.step(x, k, k_to, denoise=WeightedBranches(forcing, forcing, scales, noise))

    def told(history: int | None) -> Tensor:
        """ε̂ of the last two tokens, their past noised to a level."""
        if history is None:
            return eps_of(forcing, x, k)[:, 2:]
        levels = torch.where(k < 0, history, k)
        past = add_noise(forcing.schedule, x, levels, noise)
        return eps_of(forcing, torch.cat([past[:, :2], x[:, 2:]], dim=1), levels)[:, 2:]

    nothing, all_of_it = told(K - 1), told(None)
    if level is None:
        eps = nothing + scale * (all_of_it - nothing)
    else:
        eps = all_of_it + (scale - 1) * (told(level) - nothing)
    power, power_to = (forcing.schedule.alphas_cumprod[at] for at in (300, 100))
    x0 = (x[:, 2] - (1 - power).sqrt() * eps[:, 0]) / power.sqrt()
    expected = power_to.sqrt() * x0 + (1 - power_to).sqrt() * eps[:, 0]
    assert torch.allclose(out[:, 2], expected, atol=1e-4)
    assert torch.equal(out[:, [0, 1, 3]], x[:, [0, 1, 3]])


def ends(scale: float, level: int | None) -> tuple[float, float]:
    """Mean and standard deviation of what follows a walk at 3."""
    forcing = walk_of(stabilization_level=1)
    sampler = Sampler(forcing, sampling_timesteps=50, history_scale=scale, history_level=level)
    out = sampler.rollout(torch.full((4000, 1, 1), 3.0), 2, window=2, generator=torch.Generator().manual_seed(0))
    return out[:, 1].mean().item(), out[:, 1].std().item()


def expected_ends(scale: float, level: int | None) -> tuple[float, float]:
    """The same in numbers: each DDIM step is affine in (x, past), and both branches' x̂₀ are known.

    Past h of variance 1 seen with power p: x₁ | h_p ~ N(√p·h_p, 2 − p); not seen: N(0, 2).
    """
    schedule = walk_of().schedule
    powers = [schedule.alphas_cumprod[int(k)].double().item() if k >= 0 else 1.0 for k in levels_of(50)]
    seen = 1.0 if level is None else schedule.alphas_cumprod[level].double().item()
    mean, variance = 0.0, 1.0  # of x_k; `carried` is its covariance with the noise that hides the past
    carried = 0.0

    def branch(power: float, centre: float, spread: float) -> tuple[float, float]:
        slope = power**0.5 * spread / (power * spread + 1 - power)
        return slope, centre * (1 - slope * power**0.5)

    for now, then in itertools.pairwise(powers):
        known, partly, unknown = (branch(now, *is_) for is_ in ((3.0, 1.0), (seen * 3.0, 2 - seen), (0.0, 2.0)))
        lean = partly if level is not None else known
        slope, offset = (known[i] + (scale - 1) * (lean[i] - unknown[i]) for i in (0, 1))
        # the part of the noised past's centre that is noise: √p·√(1−p)·ξ, of the fractional branch alone
        through_noise = 0.0 if level is None else (scale - 1) * branch(now, (seen * (1 - seen)) ** 0.5, 2 - seen)[1]
        keep = ((1 - then) / (1 - now)) ** 0.5
        gain = then**0.5 - keep * now**0.5
        a, b, c = keep + gain * slope, gain * offset, gain * through_noise
        mean, variance, carried = (
            a * mean + b,
            a**2 * variance + 2 * a * c * carried + c**2,
            a * carried + c,
        )
    return mean, variance**0.5


def levels_of(steps: int) -> list[int]:
    return Sampler(walk_of(), sampling_timesteps=steps).levels.flip(0).tolist()


@pytest.mark.parametrize(("scale", "level"), [(1.0, None), (0.0, None), (1.5, None), (2.0, None), (2.0, 300)])
def test_a_walk_that_leans_on_its_past_goes_where_gaussians_say(scale: float, level: int | None) -> None:
    mean, std = ends(scale, level)
    expected_mean, expected_std = expected_ends(scale, level)
    assert mean == pytest.approx(expected_mean, abs=0.08)
    assert std == pytest.approx(expected_std, rel=0.05)


def test_leaning_on_the_past_pulls_beyond_it_and_narrows() -> None:
    plain, vanilla, glance = ends(1.0, None), ends(2.0, None), ends(2.0, 300)
    assert plain == (pytest.approx(3, abs=0.08), pytest.approx(1, rel=0.05))
    assert vanilla[0] > glance[0] > plain[0] + 0.3
    assert vanilla[1] < plain[1]


# ------------------------------------------------------------------------------------------------------- how it is paid


def shown(**how: Any) -> list[tuple[Tensor, Tensor, Tensor | None]]:
    """What the network is called with in a rollout of three tokens after one."""
    forcing = walk_of()
    sampler = Sampler(forcing, sampling_timesteps=4, scheduling_matrix="autoregressive", **how)
    sampler.rollout(randn(2, 1, 1), 4, window=4, chunk_size=3, conditions=randn(2, 4, 1, seed=1))
    network = forcing.network
    assert isinstance(network, RandomWalk)
    return network.calls


@pytest.mark.parametrize(("name", "branches"), [("conditions", 2), ("vanilla", 2), ("fractional", 3), ("both", 4)])
def test_branches_are_rows_of_the_batch_of_one_call(name: str, branches: int) -> None:
    calls = shown(**GUIDED[name])
    assert len(calls) == len(shown()) == 12
    assert all(len(x) == len(k) == branches * 2 for x, k, _ in calls)


def test_the_past_is_hidden_by_the_same_noise_in_every_row() -> None:
    calls = shown(history_scale=2.0)
    for x, k, conditions in calls:
        assert conditions is not None and torch.equal(conditions[:2], conditions[2:])
        hidden = k[2:] != k[:2]
        assert hidden[:, 0].all()
        assert (k[2:][hidden] == K - 1).all()
        assert torch.equal(x[2:][~hidden], x[:2][~hidden])
    for first, second in itertools.pairwise(calls):
        both = (first[1][2:] != first[1][:2]) & (second[1][2:] != second[1][:2])
        assert torch.equal(first[0][2:][both], second[0][2:][both])


@pytest.mark.parametrize("name", GUIDED)
@pytest.mark.parametrize("window", [8, 4])
@pytest.mark.parametrize(("kind", "chunk_size"), [("autoregressive", 1), ("pyramid", 3), ("full_sequence", 2)])
def test_a_cache_changes_nothing(kind: str, chunk_size: int, window: int, name: str) -> None:
    network = transformer()
    sampler = Sampler(forcing_over(network), sampling_timesteps=3, scheduling_matrix=kind, eta=0.3, **GUIDED[name])
    outs = [
        sampler.rollout(
            randn(3, 2, WIDTH),
            8,
            window=window,
            chunk_size=chunk_size,
            cache=cache,
            conditions=randn(3, 8, CONDITIONS, seed=1),
            generator=torch.Generator().manual_seed(5),
        )
        for cache in (("none", "exact", "streaming") if window == 8 else ("none", "exact"))
    ]
    assert outs[0][:, 2:].std() > 0.1
    for out in outs[1:]:
        assert (out - outs[0]).abs().max() <= 1e-4


def test_each_branch_remembers_its_own_past() -> None:
    network = Diary()
    sampler = Sampler(forcing_over(network), sampling_timesteps=1, condition_scale=2.0)
    sizes: list[int] = []
    network.register_forward_hook(lambda module, given, out: sizes.append(len(out[1].keys[0])))
    sampler.rollout(randn(3, 2, WIDTH), 30, window=5, cache="streaming", sinks=1, conditions=torch.ones(3, 30, 1))
    assert set(sizes) == {6}
    assert max(len(old) + len(new) for old, new in network.pages) == 5


# ------------------------------------------------------------------------------------------------------- with a return


@pytest.mark.parametrize(("scale", "cache"), [(2.0, "none"), (2.0, "exact"), (0.0, "none")])
def test_a_return_is_climbed_on_the_composed_prediction(scale: float, cache: str) -> None:
    # as above: leaning on a mean is a larger mean, and so it is for a return's gradient
    def rollout(forcing: DiffusionForcing, w: float, told: Tensor) -> Tensor:
        sampler = Sampler(forcing, sampling_timesteps=8, scheduling_matrix="full_sequence", condition_scale=w)
        return sampler.rollout(
            randn(3, 2, 1),
            6,
            window=6,
            chunk_size=2,
            conditions=told,
            guidance=GradientGuidance(lambda x0: -((x0 - 2) ** 2).sum(dim=(1, 2))),
            generator=torch.Generator().manual_seed(0),
            cache=cache,  # type: ignore[arg-type]
        )

    c = randn(3, 6, 1, seed=1)
    forcing = walk_of() if cache == "none" else forcing_over(Mean(), objective="pred_x0")
    guided, expected = rollout(forcing, scale, c), rollout(forcing, 1.0, scale * c)
    assert torch.allclose(guided, expected, atol=1e-3)


class Mean(nn.Module):
    """x̂₀ is its condition and a tenth of x; it remembers nothing but that it could."""

    keeps_memory = True
    why_no_memory = ""

    def forward(self, x: Tensor, k: Tensor, conditions: Tensor | None = None, memory: Any = None) -> tuple[Tensor, Any]:
        assert conditions is not None
        return conditions + 0.1 * x, ()


@pytest.mark.parametrize("samples", [1, 3])
def test_history_guidance_and_a_return_go_together(samples: int) -> None:
    free, guided = (
        Sampler(walk_of(), sampling_timesteps=10, history_scale=1.5).rollout(
            randn(3, 2, 1), 5, window=5, guidance=guidance, generator=torch.Generator().manual_seed(0)
        )
        for guidance in (None, GradientGuidance(lambda x0: x0[:, -1].sum(dim=1), samples=samples))
    )
    assert torch.equal(guided[:, :2], free[:, :2])
    assert (guided[:, -1] > free[:, -1]).all()


def test_the_noise_that_branches_predict_is_clamped_after_it_is_summed() -> None:
    network = seeded(lambda: Relative(conditioned=False))
    forcing = forcing_over(network, objective="pred_noise")
    x, k = 50 * randn(2, 3, WIDTH), torch.tensor([[-1, 500, 800]]).expand(2, 3)
    guided = WeightedBranches(forcing, forcing, branches(history_scale=9.0), randn(2, 3, WIDTH, seed=1))
    prediction, _ = guided(x, k)
    assert prediction.output.abs().max() > 6.0
    assert prediction.eps.abs().max() <= 6.0
