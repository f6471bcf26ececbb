"""Planning, its training and a real checkpoint of the released code: the recorded numbers again."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from diffusion_forcing.algorithms.planning.algorithm import Draws, Planning
from diffusion_forcing.algorithms.planning.guidance import goal_return
from diffusion_forcing.checkpoints import load
from diffusion_forcing.diffusion import GradientGuidance
from diffusion_forcing.released.options import planning_options_from_released, released_guidance_scale
from tests.parity.recorded import DATA, NETWORK, Recording, flip, norm, recording

TRAININGS = ("plan_train_x", "plan_train_x_causal", "plan_train_xva")
PLANS = ("planning_x_h25_pad", "planning_x_h40", "planning_xva_h40", "planning_x_causal_h30", "planning_x_h40_noguide")
GUIDED = tuple(name for name in PLANS if not name.endswith("noguide"))
READINGS = {"released": "", "source": "asread_"}


def scale(recorded: Recording) -> float:
    """Our guidance scale for the recorded one: the released strength was divided by its batch."""
    return released_guidance_scale(recorded.options.guidance_scale, recorded.meta["batch"])


def returns(recorded: Recording, planning: Planning, reading: str = "released") -> Any:
    return goal_return(
        planning.bundle,
        recorded["start"],
        recorded["goal"],
        planned=recorded.meta["horizon"],
        scale=scale(recorded),
        weights=reading,
    )


# -------------------------------------------------------------------------------------------------------------- training


@pytest.mark.parametrize("name", TRAININGS)
def test_a_batch_becomes_the_recorded_tokens_and_mask(name: str) -> None:
    recorded = recording(name)
    tokens, mask = recorded.planning().bundle.encode(
        recorded["observations"], recorded["actions"], recorded["rewards"], recorded["nonterminals"]
    )
    recorded.agrees(flip(tokens), "preprocess_bundles")
    assert torch.equal(flip(mask).long(), recorded["preprocess_masks"])
    assert not mask.all()


@pytest.mark.parametrize("draw", ["draw0", "draw1"])
@pytest.mark.parametrize("name", TRAININGS)
def test_a_training_step_with_the_recorded_draws_gives_the_recorded_loss(name: str, draw: str) -> None:
    recorded = recording(name)
    planning = recorded.planning()
    tokens, mask = planning.bundle.encode(
        recorded["observations"], recorded["actions"], recorded["rewards"], recorded["nonterminals"]
    )
    drawn = recorded.below(f"{draw}.")
    assert ("random_terminal" in drawn) != planning.options.causal
    loss, x0 = planning.loss(
        tokens,
        mask,
        Draws(
            end=drawn.get("random_terminal"),
            levels=flip(drawn["noise_levels_raw"]),
            first_levels=drawn.get("first_token_levels"),
            noise=flip(drawn["noise_raw"]),
        ),
    )
    loss.backward()
    recorded.agrees(loss, f"{draw}.loss")
    recorded.agrees(norm([p.grad for p in planning.network.parameters() if p.grad is not None]), f"{draw}.grad_norm")
    predicted = torch.cat(planning.bundle.decode(planning.bundle.unstack(x0)), dim=-1)
    # recorded from the last frame of token 0 on
    recorded.agrees(flip(predicted[:, planning.options.frame_stack - 1 :]), f"{draw}.xs_pred")


# -------------------------------------------------------------------------------------------------------------- plans


@pytest.mark.parametrize("name", PLANS)
def test_a_whole_plan_is_the_recorded_one(name: str) -> None:
    recorded = recording(name)
    planner = recorded.planning().planner(guidance_scale=scale(recorded))
    plan = planner.plan_normalized(
        recorded["start"], recorded["goal"], recorded.meta["horizon"], noise=flip(recorded["chunk_noise_raw"])
    )
    recorded.agrees(flip(plan), "plan_final", relative=1e-4)


@pytest.mark.parametrize("name", GUIDED)
def test_a_whole_plan_with_the_weights_of_the_source_text_is_the_recorded_one(name: str) -> None:
    recorded = recording(name)
    planner = recorded.planning(guidance_weights="source").planner(guidance_scale=scale(recorded))
    plan = planner.plan_normalized(
        recorded["start"], recorded["goal"], recorded.meta["horizon"], noise=flip(recorded["chunk_noise_raw"])
    )
    recorded.agrees(flip(plan), "asread_plan_final", relative=1e-4, known_error="plan_final")
    assert (flip(plan) - recorded["plan_final"]).abs().max() > 0.01


@pytest.mark.parametrize("name", PLANS)
def test_every_row_of_a_plan_is_the_recorded_one(name: str) -> None:
    recorded = recording(name)
    planning = recorded.planning()
    guidance = GradientGuidance(returns(recorded, planning)) if recorded.options.guidance_scale else None
    denoise = None if guidance is None else guidance.wrap(planning.forcing, planning.forcing)
    levels = planning.planner().sampler.levels
    rows = []
    for step_in, now, then in zip(
        recorded["step_in"], recorded["levels_curr"].long(), recorded["levels_next"].long(), strict=True
    ):
        x = flip(step_in)
        shape = x.shape[:2]
        rows.append(
            flip(planning.forcing.step(x, levels[now].expand(shape), levels[then].expand(shape), denoise=denoise))
        )
    # a guided row reaches 100 times the plan's own size, as ∇J is large where levels are high
    recorded.agrees(torch.stack(rows), "step_out")


@pytest.mark.parametrize("name", PLANS)
def test_a_plan_walks_the_recorded_levels(name: str) -> None:
    recorded = recording(name)
    planner = recorded.planning().planner(guidance_scale=scale(recorded))
    seen: list[Tensor] = []
    planner.plan_normalized(
        recorded["start"],
        recorded["goal"],
        recorded.meta["horizon"],
        noise=flip(recorded["chunk_noise_raw"]),
        on_row=lambda row, x, levels: seen.append(levels),
    )
    assert torch.equal(torch.stack(seen), recorded["levels_next"].long())


@pytest.mark.parametrize("reading", READINGS)
@pytest.mark.parametrize("name", GUIDED)
def test_the_return_and_its_gradient_are_the_recorded_ones(name: str, reading: str) -> None:
    recorded = recording(name)
    x0 = flip(recorded["guidance_x0"]).clone().requires_grad_()
    value = returns(recorded, recorded.planning(), reading)(x0).sum()
    (gradient,) = torch.autograd.grad(value, x0)
    recorded.agrees(value, f"{READINGS[reading]}guidance_value")
    recorded.agrees(flip(gradient), f"{READINGS[reading]}guidance_grad")


# -------------------------------------------------------------------------------------------------------------- checkpoint

CHECKPOINT = DATA / "ckpt_planning.ckpt"


@pytest.fixture(scope="module")
def expected() -> Recording:
    return recording("ckpt_planning_expect")


@pytest.fixture(scope="module")
def loaded(expected: Recording) -> Planning:
    planning = Planning(planning_options_from_released(expected.meta["config"]))
    planning.load_weights(load(CHECKPOINT))
    return planning


def test_a_released_checkpoint_gives_the_recorded_output(expected: Recording, loaded: Planning) -> None:
    output, _ = loaded.sampling_network(flip(expected["x"]), flip(expected["k"]))
    expected.agrees(flip(output), "out")


def test_a_released_checkpoint_plans_the_recorded_plan(expected: Recording, loaded: Planning) -> None:
    start, goal, noise = (expected[f"plan.{name}"] for name in ("start", "goal", "chunk_noise_raw"))
    strength = released_guidance_scale(loaded.options.guidance_scale, len(start))
    plan = loaded.planner(guidance_scale=strength).plan_normalized(
        start, goal, len(expected["plan.final"]), noise=flip(noise)
    )
    expected.agrees(flip(plan), "plan.final", relative=1e-4)


def test_three_training_steps_end_in_the_released_weights_and_optimiser_state(expected: Recording) -> None:
    planning = Planning(planning_options_from_released(expected.meta["config"]))
    planning.network.load_state_dict(expected.below(f"init.{NETWORK}"))
    optimizer = planning.configure_optimizers()["optimizer"]
    losses = []
    for step, rate in enumerate(expected["lrs"].tolist()):
        recorded = expected.below(f"step{step}.")
        tokens, mask = planning.bundle.encode(*(recorded[f"batch.{i}"] for i in range(4)))
        draws = Draws(
            end=recorded["randint.0"],
            levels=flip(recorded["randint.1"]),
            first_levels=recorded.get("randint.2"),
            noise=flip(recorded["noise_raw"]),
        )
        assert (draws.first_levels is not None) == (expected.meta["python_random"][step] < 0.5)
        for group in optimizer.param_groups:
            group["lr"] = rate  # the released warm-up starts at the full rate by mistake; ours does not
        optimizer.zero_grad()
        loss, _ = planning.loss(tokens, mask, draws)
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    expected.agrees(torch.stack(losses), "losses")

    released = torch.load(CHECKPOINT, weights_only=True)
    start = expected.below(f"init.{NETWORK}")
    for name, value in planning.network.state_dict().items():
        end, moved = released["state_dict"][NETWORK + name], released["state_dict"][NETWORK + name] - start[name]
        meant = torch.ones_like(value, dtype=torch.bool)
        if name.endswith("in_proj_bias"):
            # a bias of the keys moves all scores of a query alike: its gradient is 0, and Adam makes steps out of the rounding
            third = len(value) // 3
            meant[third : 2 * third] = False
            assert (value - end).abs().max() <= 2 * expected["lrs"].sum(), name
        # Adam's first step is g/(|g| + 1e-8): where g itself is near 1e-8 its rounding shows, in a few elements of thousands
        difference, size = (value - end)[meant].abs(), end.abs().max()
        assert difference.max() <= 5e-5 * size, name
        assert (difference > 1e-5 * size).float().mean() <= 1e-3, name
        assert difference.max() <= 1e-2 * moved[meant].abs().max(), name  # of the steps, too: the first moves by 5e-4
    moments = released["optimizer_states"][0]["state"]
    for index, parameter in enumerate(planning.network.parameters()):
        for moment in ("exp_avg", "exp_avg_sq"):
            end = moments[index][moment]
            assert torch.allclose(
                optimizer.state[parameter][moment], end, rtol=1e-4, atol=1e-5 * end.abs().max().item()
            ), (index, moment)


def test_the_optimiser_is_the_released_one(expected: Recording) -> None:
    planning = Planning(planning_options_from_released(expected.meta["config"]))
    released = torch.load(CHECKPOINT, weights_only=True)["optimizer_states"][0]["param_groups"][0]
    (group,) = planning.configure_optimizers()["optimizer"].param_groups
    assert len(group["params"]) == len(released["params"])
    for name in ("betas", "eps", "weight_decay", "amsgrad"):
        assert group[name] == released[name], name
