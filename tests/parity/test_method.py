"""Schedules, levels, weights, matrices, network, loss and single rows equal the released code's numbers."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from diffusion_forcing.diffusion import GradientGuidance, build_schedule, sampling_levels, scheduling_matrix
from diffusion_forcing.diffusion.loss_weighting import fused_snr_weight, min_snr_weight
from diffusion_forcing.networks import Transformer
from tests.parity.recorded import flip, recording, weights

SCHEDULES = ("linear", "cosine", "sigmoid")
OBJECTIVES = ("pred_noise", "pred_x0", "pred_v")
STEPS = ("sample_step_plan", "sample_step_plan_guided")
FORWARDS = ("train_forward_plan_pred_x0", "train_forward_plan_pred_v")


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_table_is_the_recorded_one(name: str) -> None:
    recorded = recording("diffusion_buffers")
    schedule = build_schedule(name)
    tables = recorded.below(f"{name}/")
    assert set(tables) == set(recorded.meta["buffer_order"])
    kept = {table for table in tables if hasattr(schedule, table)}
    assert {"betas", "alphas_cumprod", "posterior_mean_coef1", "clipped_snr"} <= kept and len(kept) == len(tables) - 3
    for table in kept:
        recorded.agrees(getattr(schedule, table), f"{name}/{table}", relative=1e-6)


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_signal_left_at_every_level_is_right_relative_to_itself(name: str) -> None:
    # against its largest value a table could be wrong where it is small, which is where noise is nearly pure
    recorded = recording("diffusion_buffers")
    schedule = build_schedule(name)
    for table in ("alphas_cumprod", "snr", "betas", "sqrt_recipm1_alphas_cumprod"):
        expected = recorded[f"{name}/{table}"]
        assert torch.allclose(getattr(schedule, table), expected, rtol=1e-5, atol=1e-30), table


def test_sampling_levels_stand_for_the_recorded_training_levels() -> None:
    cases = recording("real_steps").tensors
    for case, expected in cases.items():
        timesteps, sampling_timesteps = map(int, case.split("/"))
        assert torch.equal(sampling_levels(timesteps, sampling_timesteps), expected.long()), case
    assert len(cases) == 25


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("name", SCHEDULES)
def test_loss_weights_are_the_recorded_ones(name: str, objective: str) -> None:
    recorded = recording("loss_weights")
    schedule = build_schedule(name, recorded.meta["timesteps"], snr_clip=recorded.meta["snr_clip"])
    k, decay = flip(recorded["noise_levels"]), recorded.meta["cum_snr_decay_effective"]
    found = {
        "min_snr": min_snr_weight(schedule, k, objective),
        "fused": fused_snr_weight(schedule, k, objective, decay=decay),
    }
    for kind, weight in found.items():
        expected = flip(recorded[f"{name}/{objective}/{kind}"])
        finite = expected.isfinite()
        assert torch.allclose(weight[finite], expected[finite], rtol=1e-5, atol=1e-7), kind
        # the released code divides 0 by 0 at one level; the limit there is 1
        assert torch.equal(weight[~finite], torch.ones_like(weight[~finite])), kind
        assert finite.all() == (f"{name}/{objective}/{kind}" not in recorded.meta["nonfinite"])


def test_scheduling_matrices_are_the_recorded_ones() -> None:
    cases = {
        name: matrix for name, matrix in recording("scheduling_matrices").tensors.items() if "trapezoid" not in name
    }
    for case, expected in cases.items():
        kind, horizon, levels, uncertainty = case.split("/")
        ours = scheduling_matrix(kind, int(horizon[1:]), int(levels[1:]), uncertainty_scale=float(uncertainty[1:]))
        assert torch.equal(ours, expected.long()), case
    assert len(cases) == 84


@pytest.mark.parametrize("causal", [False, True])
def test_the_network_gives_the_recorded_output(causal: bool) -> None:
    recorded = recording("transformer_causal" if causal else "transformer_full")
    assert recorded.meta["is_causal"] == causal
    network = Transformer(20, network_size=32, num_layers=3, attn_heads=4, dim_feedforward=64, causal=causal)
    network.load_state_dict(weights("plan2_weights"))
    output, _ = network(flip(recorded["x"]), flip(recorded["k"]))
    recorded.agrees(flip(output), "out")


@pytest.mark.parametrize("causal", [False, True])
def test_the_network_with_conditions_gives_the_recorded_output(causal: bool) -> None:
    recorded = recording("transformer_extcond")
    sizes = recorded.meta["config"]
    network = Transformer(
        sizes["x_dim"],
        network_size=sizes["size"],
        num_layers=sizes["num_layers"],
        attn_heads=sizes["nhead"],
        dim_feedforward=sizes["dim_feedforward"],
        external_cond_dim=sizes["external_cond_dim"],
        causal=causal,
    )
    network.load_state_dict(recorded.below("w."))
    output, _ = network(flip(recorded["x"]), flip(recorded["k"]), flip(recorded["external_cond"]))
    recorded.agrees(flip(output), "out_causal" if causal else "out_full")


@pytest.mark.parametrize("name", FORWARDS)
def test_the_training_loss_and_its_gradients_are_the_recorded_ones(name: str) -> None:
    recorded = recording(name)
    planning = recorded.planning()
    # cum_snr_decay is raised to the power frame_stack·frame_skip, here and only once
    assert math.isclose(planning.forcing.cum_snr_decay, recorded.meta["cum_snr_decay_effective"])
    loss, x0, _ = planning.forcing.loss(
        flip(recorded["x"]), flip(recorded["noise_levels"]), noise=flip(recorded["noise_raw"])
    )
    recorded.agrees(flip(x0), "x_pred")
    recorded.agrees(flip(loss), "loss")
    recorded.agrees(loss.mean(), "loss_mean")
    loss.mean().backward()
    compared = set()
    for parameter, value in planning.network.named_parameters():
        assert value.grad is not None
        recorded.agrees(value.grad.norm(), f"gradnorm.model.{parameter}", known_error="grad.*")
        if f"grad.model.{parameter}" in recorded:
            recorded.agrees(value.grad, f"grad.model.{parameter}", known_error="grad.*")
        compared.add(parameter)
    assert compared == set(recorded.below("gradnorm.model."))


@pytest.mark.parametrize("name", STEPS)
def test_one_denoising_row_is_the_recorded_one(name: str) -> None:
    recorded = recording(name)
    planning = recorded.planning()
    sampler = planning.planner().sampler
    guidance = None
    if recorded.meta["guidance_coef"] is not None:
        target = flip(recorded["guidance_target"])

        def returns(x0: Tensor) -> Tensor:
            return -recorded.meta["guidance_coef"] * ((x0 - target) ** 2).sum(dim=(1, 2))

        guidance = GradientGuidance(returns)
    out = planning.forcing.step(
        flip(recorded["x"]),
        sampler.levels[flip(recorded["curr"])],
        sampler.levels[flip(recorded["next"])],
        denoise=None if guidance is None else guidance.wrap(planning.forcing, planning.forcing),
    )
    recorded.agrees(flip(out), "out")
    still = flip(recorded["curr"]) == flip(recorded["next"])
    assert still.any()
    assert torch.equal(out[still], flip(recorded["x"])[still])
