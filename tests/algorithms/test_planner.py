from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from diffusion_forcing.algorithms.planning.planner import Planner
from diffusion_forcing.diffusion import add_noise
from diffusion_forcing.diffusion.scheduling import SCHEDULING_MATRICES
from diffusion_forcing.errors import UserError
from tests.algorithms.small import planning, randn

F, WINDOW = 3, 12


def problem(batch: int = 3, o: int = 2) -> tuple[Tensor, Tensor]:
    """Starts and goals, normalised."""
    goal = randn(batch, o, seed=2)
    goal[:, 2:] = 0
    return randn(batch, o, seed=1), goal


def plan(planner: Planner, horizon: int, *, batch: int = 3, **how: Any) -> Tensor:
    start, goal = problem(batch, planner.bundle.observation_dim)
    if "generator" not in how and "noise" not in how:
        how["generator"] = torch.Generator().manual_seed(5)
    return planner.plan_normalized(start, goal, horizon, **how)


@pytest.mark.parametrize("kind", SCHEDULING_MATRICES)
@pytest.mark.parametrize("causal", [False, True])
def test_the_present_is_held_whatever_guidance_wants(causal: bool, kind: str) -> None:
    planner = planning("xva", causal=causal, scheduling_matrix=kind, guidance_scale=50.0).planner()
    start, goal = problem(o=4)
    seen: list[Tensor] = []
    planner.plan_normalized(
        start, goal, 9, generator=torch.Generator().manual_seed(0), on_row=lambda row, x, levels: seen.append(x)
    )
    present = planner.bundle.present_normalized(start)
    assert len(seen) == len(planner.sampler.matrix(3)) - 1
    assert all(torch.equal(x[:, :1], present) for x in seen)


@pytest.mark.parametrize("horizon", [1, 2, 3, 4, 11, 12])
@pytest.mark.parametrize("causal", [False, True])
def test_a_plan_has_as_many_steps_as_asked_for(horizon: int, causal: bool) -> None:
    planner = planning(causal=causal).planner()
    levels: list[Tensor] = []
    found = plan(planner, horizon, on_row=lambda row, x, now: levels.append(now))
    assert found.shape == (3, horizon, 2)
    assert found.isfinite().all()
    tokens = -(-horizon // F)
    if causal:
        assert all(len(now) == 1 + tokens for now in levels)
    else:
        # what is past the horizon is there as pure noise: the network was trained on sequences that end anywhere
        assert all(len(now) == 1 + WINDOW // F for now in levels)
        assert all((now[1 + tokens :] == 4).all() for now in levels)
    assert all(now[0] == 0 for now in levels)
    assert (levels[-1][: 1 + tokens] == 0).all()


@pytest.mark.parametrize("horizon", [-3, 0, 13])
def test_a_horizon_outside_the_window_is_refused(horizon: int) -> None:
    with pytest.raises(UserError, match=rf"horizon {horizon} exceeds the window of 12 steps.*1…12") as caught:
        plan(planning().planner(), horizon)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("variant", ["x", "xva"])
def test_a_plan_does_not_depend_on_who_else_is_in_its_batch(variant: str) -> None:
    planner = planning(variant, guidance_scale=20.0).planner()
    start, goal = problem(3, planner.bundle.observation_dim)
    noise = randn(3, 3, planner.bundle.token_width, seed=7)
    together = planner.plan_normalized(start, goal, 9, noise=noise)
    for i in range(3):
        alone = planner.plan_normalized(start[i : i + 1], goal[i : i + 1], 9, noise=noise[i : i + 1])
        assert torch.allclose(alone[0], together[i], atol=1e-4 * together.abs().max().item()), i
    others = start.clone()
    others[1:] += 1
    assert torch.allclose(
        planner.plan_normalized(others, goal, 9, noise=noise)[0], together[0], atol=1e-4 * together.abs().max().item()
    )


def test_guidance_changes_the_plan_and_none_is_none() -> None:
    built = planning()
    start, goal = problem()
    noise = randn(3, 4, built.bundle.token_width, seed=7)
    plans = [
        built.planner(guidance_scale=scale).plan_normalized(start, towards, WINDOW, noise=noise)
        for scale, towards in ((0.0, goal), (0.0, -goal), (5.0, goal), (5.0, -goal))
    ]
    assert torch.equal(plans[0], plans[1])
    assert (plans[2] - plans[3]).abs().max() > 0.01


def test_noise_is_used_as_given_but_for_its_clamp() -> None:
    built = planning(diffusion={"clip_noise": 1.0})
    planner = built.planner()
    noise = randn(3, 4, built.bundle.token_width, seed=7)
    assert noise.abs().max() > 1
    assert torch.equal(plan(planner, WINDOW, noise=noise), plan(planner, WINDOW, noise=noise.clamp(-1, 1)))
    assert not torch.equal(plan(planner, WINDOW, noise=noise), plan(planner, WINDOW, noise=-noise))


def test_a_drawn_plan_is_a_function_of_the_generators_seed() -> None:
    planner = planning(mcg_samples=3, diffusion={"ddim_sampling_eta": 0.5}).planner()
    once, again, other = (plan(planner, WINDOW, generator=torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert torch.equal(once, again)
    assert not torch.equal(once, other)


def test_continuations_change_the_gradient() -> None:
    noise = randn(3, 4, 6, seed=7)
    one, many = (
        planning(mcg_samples=n)
        .planner()
        .plan_normalized(*problem(), WINDOW, noise=noise, generator=torch.Generator().manual_seed(0))
        for n in (1, 4)
    )
    assert (one - many).abs().max() > 1e-4


@pytest.mark.parametrize("variant", ["x", "xv", "xva"])
def test_a_plan_in_data_units_is_the_normalised_one_decoded(variant: str) -> None:
    built = planning(variant)
    planner, o = built.planner(), built.bundle.observation_dim
    mean, std = built.bundle.mean[:o], built.bundle.std[:o]
    start, goal = 3 + randn(2, 4, seed=1), 3 + randn(2, 2, seed=2)
    noise = randn(2, 3, built.bundle.token_width, seed=7)
    target = torch.zeros(2, o)  # a goal has no velocity
    target[:, :2] = (goal - mean[:2]) / std[:2]
    expected = planner.plan_normalized((start[:, :o] - mean) / std, target, 8, noise=noise)
    steps, frames = planner.plan(start, goal, 8, noise=noise)
    assert torch.equal(frames, expected)
    assert torch.allclose(steps.observations, expected[..., :o] * std + mean)
    assert steps.actions.shape == (2, 8, built.bundle.action_dim)


# ---------------------------------------------------------------------------------------------------------- warm start


@pytest.mark.parametrize("restart", [1, 3, 4])
def test_a_warm_start_walks_down_from_the_earlier_plan_noised(restart: int) -> None:
    built = planning(guidance_scale=0.0, scheduling_matrix="pyramid")
    planner, sampler = built.planner(), built.planner().sampler
    start, goal = problem()
    previous, noise = 0.3 * randn(3, 9, 2, seed=3), randn(3, 3, 6, seed=4)
    found = planner.plan_normalized(start, goal, 9, noise=noise, previous=previous, restart=restart)

    k = sampler.levels[torch.full((3, 3), restart)]
    x = add_noise(built.forcing.schedule, built.bundle.stack(previous), k, noise)
    x = torch.cat([built.bundle.present_normalized(start), x, torch.zeros(3, 1, 6)], dim=1)
    rows = sampler.matrix(3).clamp(max=restart)
    matrix = torch.cat([torch.zeros(len(rows), 1).long(), rows, torch.full((len(rows), 1), 4)], dim=1)
    assert torch.equal(found, built.bundle.unstack(sampler.denoise(x, matrix)[:, 1:4]))


def test_a_shorter_earlier_plan_goes_on_with_its_last_frame() -> None:
    planner = planning(guidance_scale=0.0).planner()
    noise, previous = randn(3, 3, 6, seed=4), randn(3, 5, 2, seed=3)
    longer = torch.cat([previous, previous[:, -1:].expand(-1, 4, -1)], dim=1)
    short, full = (plan(planner, 9, noise=noise, previous=earlier, restart=2) for earlier in (previous, longer))
    assert torch.equal(short, full)


def test_a_warm_start_costs_fewer_rows() -> None:
    planner = planning(scheduling_matrix="full_sequence").planner()
    rows: list[int] = []
    plan(planner, WINDOW, previous=randn(3, WINDOW, 2), restart=1, on_row=lambda row, x, levels: rows.append(row))
    assert len(rows) == 1


@pytest.mark.parametrize("restart", [0, 5])
def test_a_warm_start_outside_the_sampling_levels_is_refused(restart: int) -> None:
    with pytest.raises(UserError, match=rf"restart is {restart}.*1…4"):
        plan(planning().planner(), WINDOW, previous=randn(3, WINDOW, 2), restart=restart)


# ---------------------------------------------------------------------------------- the goal first, the data last


def test_guidance_that_stops_at_once_is_none_and_one_that_never_stops_is_all() -> None:
    noise = randn(3, 4, 6, seed=7)
    free = plan(planning(guidance_scale=0.0).planner(), WINDOW, noise=noise)
    guided = plan(planning(guidance_scale=5.0).planner(), WINDOW, noise=noise)
    assert torch.equal(plan(planning(guidance_scale=5.0, guidance_stop=1.0).planner(), WINDOW, noise=noise), free)
    assert torch.equal(plan(planning(guidance_scale=5.0, guidance_stop=0.0).planner(), WINDOW, noise=noise), guided)
    half = plan(planning(guidance_scale=5.0, guidance_stop=0.5).planner(), WINDOW, noise=noise)
    assert all((half - other).abs().max() > 0.001 for other in (free, guided))


@pytest.mark.parametrize("kind", ["full_sequence", "pyramid"])
def test_guidance_stops_at_the_first_row_whose_tokens_all_are_below_its_level(kind: str) -> None:
    how: dict[str, Any] = {"scheduling_matrix": kind, "guidance_scale": 5.0}
    built = planning(**how)
    sampler, noise = built.planner().sampler, randn(3, 3, 6, seed=7)
    rows = sampler.matrix(3)
    calls: list[tuple[Tensor, bool]] = []
    planner = planning(**how, guidance_stop=0.5).planner()  # level 2 of 4
    planner.forcing.network.register_forward_hook(
        lambda module, given, out: calls.append((given[1], given[0].requires_grad))
    )
    plan(planner, 9, noise=noise)
    expected = [bool((row > 2).any()) for row in rows[:-1]]
    assert [pulled for _, pulled in calls] == expected
    assert True in expected and False in expected
    for (k, _), row in zip(calls, rows, strict=False):
        shown = sampler.levels[row]
        assert torch.equal(k[0, 1:4], torch.where(shown < 0, 9, shown))


@pytest.mark.parametrize(("refine", "level"), [(0.01, 1), (0.5, 2), (1.0, 4)])
def test_refining_noises_the_plan_again_and_walks_it_down_unguided(refine: float, level: int) -> None:
    noise, again = randn(3, 3, 6, seed=7), randn(3, 3, 6, seed=8)
    built = planning(guidance_scale=5.0)
    first: list[Tensor] = []
    plan(built.planner(), 9, noise=noise, on_row=lambda row, x, levels: first.append(x))
    sampler = built.planner().sampler
    k = sampler.levels[torch.full((3, 3), level)]
    x = first[-1].clone()
    x[:, 1:4] = add_noise(built.forcing.schedule, x[:, 1:4], k, again)
    matrix = torch.tensor([[0, *[s] * 3, 4] for s in range(level, -1, -1)])
    expected = built.bundle.unstack(sampler.denoise(x, matrix)[:, 1:4])

    rows: list[int] = []
    refined = planning(guidance_scale=5.0, refine=refine).planner()
    found = plan(refined, 9, noise=noise, refine_noise=again, on_row=lambda row, x, levels: rows.append(row))
    assert torch.equal(found, expected)
    assert rows == list(range(len(first) + level))
