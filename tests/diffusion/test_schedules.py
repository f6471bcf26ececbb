from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusion_forcing.diffusion import build_schedule
from diffusion_forcing.errors import UserError

NAMES = ("linear", "cosine", "sigmoid")


@given(name=st.sampled_from((*NAMES, "edm")), timesteps=st.integers(2, 1000))
@settings(max_examples=40)
def test_signal_and_snr_fall_from_level_to_level(name: str, timesteps: int) -> None:
    schedule = build_schedule(name, timesteps)
    power = schedule.alphas_cumprod
    assert power.shape == (timesteps,)
    assert power.min() > 0
    assert power.max() < 1
    assert (power.diff() < 0).all()
    assert (schedule.snr.diff() < 0).all()
    assert (schedule.betas > 0).all()
    assert (schedule.betas <= 0.999).all()


@given(name=st.sampled_from(NAMES), timesteps=st.integers(2, 1000))
@settings(max_examples=40)
def test_the_posterior_keeps_the_marginals(name: str, timesteps: int) -> None:
    # x_{k−1} = coef1·x₀ + coef2·x_k + √variance·ε has signal √ᾱ_{k−1} and variance 1 − ᾱ_{k−1} when x_k is drawn at level k
    schedule = build_schedule(name, timesteps).double()
    before = torch.cat([torch.ones(1), schedule.alphas_cumprod[:-1]])
    signal = schedule.posterior_mean_coef1 + schedule.posterior_mean_coef2 * schedule.sqrt_alphas_cumprod
    noise = schedule.posterior_mean_coef2**2 * (1 - schedule.alphas_cumprod) + schedule.posterior_variance
    assert torch.allclose(signal, before.sqrt(), rtol=2e-6)
    assert torch.allclose(noise, 1 - before, rtol=2e-6, atol=5e-7)


@pytest.mark.parametrize("name", NAMES)
def test_every_table_follows_from_the_signal_power(name: str) -> None:
    schedule = build_schedule(name, 100, snr_clip=3.0).double()
    power = schedule.alphas_cumprod
    expected = {
        "alphas_cumprod": (1 - schedule.betas).cumprod(0),
        "sqrt_alphas_cumprod": power.sqrt(),
        "sqrt_one_minus_alphas_cumprod": (1 - power).sqrt(),
        "sqrt_recip_alphas_cumprod": power**-0.5,
        "sqrt_recipm1_alphas_cumprod": ((1 - power) / power).sqrt(),
        "snr": power / (1 - power),
        "clipped_snr": (power / (1 - power)).clamp(max=3.0),
    }
    for table, value in expected.items():
        assert torch.allclose(getattr(schedule, table), value, rtol=2e-4, atol=1e-6), table
    assert schedule.clipped_snr.max() == 3.0
    assert schedule.posterior_variance[0] == 0


@pytest.mark.parametrize("timesteps", [1000, 250])
def test_linear_betas_go_evenly_between_their_ends(timesteps: int) -> None:
    betas = build_schedule("linear", timesteps).betas
    scale = 1000 / timesteps
    assert betas[0].item() == pytest.approx(1e-4 * scale)
    assert betas[-1].item() == pytest.approx(2e-2 * scale)
    assert torch.allclose(betas.diff(), torch.tensor((2e-2 - 1e-4) * scale / (timesteps - 1)), rtol=1e-2)


def test_edm_levels_are_the_grid_of_karras() -> None:
    schedule = build_schedule("edm", 50, arguments={"sigma_min": 0.01, "sigma_max": 20.0})
    expected = torch.linspace(0.01 ** (1 / 7), 20.0 ** (1 / 7), 50).double() ** 7
    assert torch.allclose(schedule.sigmas.double(), expected, rtol=1e-5)
    with pytest.raises(UserError, match="sigma_max"):
        build_schedule("edm", 50, arguments={"sigma_min": 1.0, "sigma_max": 0.5})


def test_cosine_signal_is_a_squared_cosine() -> None:
    power = build_schedule("cosine", 200).alphas_cumprod.double()
    u = torch.arange(1, 201).double() / 200
    expected = ((u + 0.008) / 1.008 * math.pi / 2).cos() ** 2 / math.cos(0.008 / 1.008 * math.pi / 2) ** 2
    assert torch.allclose(power[:-1], expected[:-1], rtol=1e-6)
    # the curve ends at 0; no step may destroy everything
    assert power[-1] == pytest.approx(0.001 * power[-2].item(), rel=1e-6)


def test_sigmoid_signal_is_a_sigmoid() -> None:
    power = build_schedule("sigmoid", 200).alphas_cumprod.double()
    u = torch.arange(1, 201).double() / 200
    last, first = 1 / (1 + math.exp(-3)), 1 / (1 + math.exp(3))
    expected = (last - (6 * u - 3).sigmoid()) / (last - first)
    assert torch.allclose(power[:-1], expected[:-1], rtol=1e-4)


def test_arguments_reach_the_curve() -> None:
    plain, gentle = build_schedule("sigmoid", 50), build_schedule("sigmoid", 50, arguments={"tau": 0.3})
    assert (plain.alphas_cumprod - gentle.alphas_cumprod).abs().max() > 0.05
    shifted = build_schedule("cosine", 50, arguments={"s": 0.2})
    assert (shifted.alphas_cumprod - build_schedule("cosine", 50).alphas_cumprod).abs().max() > 0.05


def test_a_clean_token_has_all_its_signal() -> None:
    schedule = build_schedule("cosine", 10)
    k = torch.tensor([[-1, 0, 9]])
    power = schedule.signal_power(k, torch.zeros(1, 3, 2, 2))
    assert power.shape == (1, 3, 1, 1)
    assert power.flatten().tolist() == [1.0, schedule.alphas_cumprod[0].item(), schedule.alphas_cumprod[9].item()]


def test_tables_are_not_part_of_the_state() -> None:
    schedule = build_schedule("linear", 10)
    assert not schedule.state_dict()
    assert "betas" in dict(schedule.named_buffers())


@pytest.mark.parametrize(
    ("name", "timesteps", "arguments", "message"),
    [
        ("cosin", 10, {}, "did you mean 'cosine'"),
        ("linear", 0, {}, "timesteps must be at least 1, got 0"),
        ("cosine", 10, {"tau": 1.0}, "do not fit beta_schedule 'cosine'"),
    ],
)
def test_a_schedule_that_cannot_be_is_refused_in_one_line(
    name: str, timesteps: int, arguments: dict[str, float], message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        build_schedule(name, timesteps, arguments=arguments)
    assert "\n" not in str(caught.value)
