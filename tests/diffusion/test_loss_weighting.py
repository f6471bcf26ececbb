from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from diffusion_forcing.diffusion import build_schedule
from diffusion_forcing.diffusion.loss_weighting import (
    fused_snr_weight,
    loss_weight,
    min_snr_weight,
    running_mean_of_history,
)
from diffusion_forcing.errors import UserError
from tests.diffusion.gaussian import forcing_of

OBJECTIVES = ("pred_noise", "pred_x0", "pred_v")
SCHEDULES = ("linear", "cosine", "sigmoid")
K = 1000

sequences = st.lists(st.integers(0, K - 1), min_size=1, max_size=8).map(lambda k: torch.tensor([k]))
decays = st.floats(0, 1)


def test_min_snr_weights_are_the_formulas() -> None:
    schedule = build_schedule("linear", snr_clip=5.0)
    k = torch.tensor([[0, 200, 999]])
    snr = schedule.snr[k]
    clipped = snr.clamp(max=5.0)
    assert torch.equal(min_snr_weight(schedule, k, "pred_noise"), clipped / snr)
    assert torch.equal(min_snr_weight(schedule, k, "pred_x0"), clipped)
    assert torch.equal(min_snr_weight(schedule, k, "pred_v"), clipped / (snr + 1))


def test_the_edm_target_is_weighed_alike_at_every_level() -> None:
    k = torch.tensor([[0, 200, 999]])
    for weighting in ("min_snr", "fused_snr"):
        weight = loss_weight(build_schedule("edm"), k, "pred_edm", weighting, decay=0.9)
        assert torch.equal(weight, torch.ones(1, 3))


@given(k=sequences, name=st.sampled_from(SCHEDULES))
@settings(max_examples=40)
def test_the_three_objectives_weigh_the_same_error_alike(k: Tensor, name: str) -> None:
    # an error δ of x̂₀ is √SNR·δ of ε̂ and √(SNR+1)·δ of v̂: weight · error² must not depend on which is predicted
    schedule = build_schedule(name)
    snr = schedule.snr[k]
    x0 = min_snr_weight(schedule, k, "pred_x0")
    assert torch.allclose(min_snr_weight(schedule, k, "pred_noise") * snr, x0, rtol=1e-5)
    assert torch.allclose(min_snr_weight(schedule, k, "pred_v") * (snr + 1), x0, rtol=1e-5)


@given(k=sequences, name=st.sampled_from(SCHEDULES), objective=st.sampled_from(OBJECTIVES))
@settings(max_examples=40)
def test_fused_snr_equals_min_snr_when_decay_is_zero(k: Tensor, name: str, objective: str) -> None:
    schedule = build_schedule(name)
    fused = fused_snr_weight(schedule, k, objective, decay=0.0)
    # fused works in units of the clip and as 1 − (1 − ·), which rounds small ratios to multiples of 6e-8
    assert torch.allclose(fused, min_snr_weight(schedule, k, objective), rtol=1e-5, atol=5 * 1.2e-7)


@given(k=sequences, name=st.sampled_from(SCHEDULES), objective=st.sampled_from(OBJECTIVES), decay=decays)
@settings(max_examples=40)
def test_a_first_token_has_no_history(k: Tensor, name: str, objective: str, decay: float) -> None:
    schedule = build_schedule(name)
    alone = min_snr_weight(schedule, k[:, :1], objective)
    assert torch.allclose(
        fused_snr_weight(schedule, k, objective, decay=decay)[:, :1], alone, rtol=1e-5, atol=5 * 1.2e-7
    )


@given(k=sequences, name=st.sampled_from(SCHEDULES), objective=st.sampled_from(OBJECTIVES), decay=decays)
@settings(max_examples=40)
def test_fused_weights_are_finite_and_within_the_clip(k: Tensor, name: str, objective: str, decay: float) -> None:
    weight = fused_snr_weight(build_schedule(name, snr_clip=5.0), k, objective, decay=decay)
    assert weight.isfinite().all()
    assert weight.min() >= 0
    assert weight.max() <= (1 if objective == "pred_noise" else 5) * (1 + 1e-5)


@given(k=sequences, later=st.integers(0, K - 1), decay=decays)
@settings(max_examples=40)
def test_a_cleaner_history_never_lowers_the_weight_of_the_clean_token(k: Tensor, later: int, decay: float) -> None:
    schedule = build_schedule("linear")
    both = torch.cat([k, torch.tensor([[later]])], dim=1)
    cleaner = both.clone()
    cleaner[:, :-1] = cleaner[:, :-1] // 2
    weights = [fused_snr_weight(schedule, levels, "pred_x0", decay=decay)[0, -1] for levels in (both, cleaner)]
    assert weights[1] >= weights[0] - 1e-5


def test_fused_weights_follow_the_recursion_token_by_token() -> None:
    schedule, decay, clip = build_schedule("cosine", snr_clip=5.0), 0.8, 5.0
    k = torch.tensor([[100, 999, 300, 700, 0, 500]])
    snr = schedule.snr[k[0]].double().tolist()
    expected: dict[str, list[float]] = {objective: [] for objective in OBJECTIVES}
    history = 0.0  # h of the tokens before
    for t, own in enumerate(snr):
        c, n = min(own, clip) / clip, own / clip
        past = 0.0 if t == 0 else decay * history
        fused_c, fused_n = 1 - (1 - past) * (1 - c), 1 - (1 - past) * (1 - n)
        expected["pred_noise"].append(fused_c / fused_n)
        expected["pred_x0"].append(fused_c * clip)
        expected["pred_v"].append(fused_c * clip / (fused_n * clip + 1))
        history = c if t == 0 else decay * history + (1 - decay) * c
    for objective, values in expected.items():
        found = fused_snr_weight(schedule, k, objective, decay=decay)[0]
        assert torch.allclose(found, torch.tensor(values), rtol=1e-4), objective


def test_the_history_is_a_running_mean_of_what_came_before() -> None:
    values = torch.tensor([[4.0, 0.0, 8.0, 1.0]])
    assert running_mean_of_history(values, 0.5).tolist() == [[0.0, 4.0, 2.0, 5.0]]
    assert running_mean_of_history(values, 1.0).tolist() == [[0.0, 4.0, 4.0, 4.0]]
    assert running_mean_of_history(values, 0.0).tolist() == [[0.0, 4.0, 0.0, 8.0]]


def test_where_nothing_is_left_the_fused_weight_of_the_noise_takes_its_limit() -> None:
    schedule = build_schedule("cosine")
    assert 1 - (1 - schedule.snr[-1] / 5) == 0  # in float32: the released code divides 0 by 0 here
    assert fused_snr_weight(schedule, torch.tensor([[999]]), "pred_noise", decay=0.9).tolist() == [[1.0]]


@pytest.mark.parametrize("weighting", ["min_snr", "fused_snr"])
def test_the_configured_weighting_is_used(weighting: str) -> None:
    forcing = forcing_of(weighting=weighting, cum_snr_decay=0.7)
    k = torch.tensor([[10, 500, 900]])
    expected = {
        "min_snr": min_snr_weight(forcing.schedule, k, "pred_x0"),
        "fused_snr": fused_snr_weight(forcing.schedule, k, "pred_x0", decay=0.7),
    }
    assert torch.equal(forcing.loss_weight(k), expected[weighting])
    assert not torch.equal(expected["min_snr"], expected["fused_snr"])


def test_an_unknown_objective_has_no_weight() -> None:
    schedule, k = build_schedule("linear", 10), torch.zeros(1, 1, dtype=torch.long)
    with pytest.raises(UserError, match="objective 'pred_y'"):
        min_snr_weight(schedule, k, "pred_y")
    with pytest.raises(UserError, match="objective 'pred_y'"):
        fused_snr_weight(schedule, k, "pred_y", decay=0.9)
