from __future__ import annotations

import pytest
import torch

from diffusion_forcing.diffusion import add_noise, build_parameterization, build_schedule
from diffusion_forcing.diffusion.parameterization import OBJECTIVES, eps_from_x0, x0_from_eps
from diffusion_forcing.errors import UserError
from tests.diffusion.gaussian import levels, randn

SCHEDULE = build_schedule("linear")
K = levels(0, 20, 300, 700)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_network_that_says_its_target_gives_back_the_token_and_its_noise(objective: str) -> None:
    parameterization = build_parameterization(objective, clip_noise=20.0)
    assert parameterization.name == objective
    x, eps = randn(1, 4, 3), randn(1, 4, 3, seed=1)
    x_k = add_noise(SCHEDULE, x, K, eps)
    target = parameterization.target(SCHEDULE, x, K, eps)
    found = parameterization.resolve(SCHEDULE, x_k, K, target)
    assert torch.allclose(found.x0, x, atol=2e-5)
    assert torch.allclose(found.eps, eps, atol=2e-4)  # at level 0 the noise is 1 % of the token
    assert torch.equal(found.output, target)


def test_targets_are_the_noise_the_token_and_their_rotation() -> None:
    x, eps = randn(1, 4, 3), randn(1, 4, 3, seed=1)
    signal, noise = SCHEDULE.sqrt_alphas_cumprod[K][..., None], SCHEDULE.sqrt_one_minus_alphas_cumprod[K][..., None]
    targets = {name: build_parameterization(name, clip_noise=20.0).target(SCHEDULE, x, K, eps) for name in OBJECTIVES}
    assert torch.equal(targets["pred_noise"], eps)
    assert torch.equal(targets["pred_x0"], x)
    assert torch.allclose(targets["pred_v"], signal * eps - noise * x)
    # v stands at a right angle to x_k
    x_k = add_noise(SCHEDULE, x, K, eps)
    assert torch.allclose(x_k**2 + targets["pred_v"] ** 2, x**2 + eps**2, rtol=1e-4, atol=1e-5)


def test_the_edm_target_has_unit_variance_and_its_ends_are_token_and_noise() -> None:
    schedule = build_schedule("edm", 1000)
    parameterization = build_parameterization("pred_edm", clip_noise=20.0)
    k = torch.arange(0, 1000, 111)[None]
    x, eps = 0.5 * randn(1, k.shape[1], 20000), randn(1, k.shape[1], 20000, seed=1)  # data of deviation sigma_data
    target = parameterization.target(schedule, x, k, eps)
    assert torch.allclose(target.std(-1), torch.ones(1, k.shape[1]), atol=0.02)
    assert torch.corrcoef(torch.stack([target[0, 0], eps[0, 0]]))[0, 1] < -0.99  # σ 0.002: the noise is asked for
    assert torch.corrcoef(torch.stack([target[0, -1], x[0, -1]]))[0, 1] > 0.99  # σ 5: the token


def test_tokens_of_any_shape_are_noised_at_their_own_levels() -> None:
    x, eps = randn(2, 3, 4, 5, 5), randn(2, 3, 4, 5, 5, seed=1)
    k = torch.tensor([[0, 500, 999], [999, 0, 10]])
    x_k = add_noise(SCHEDULE, x, k, eps)
    for b in range(2):
        for t in range(3):
            # the tables are float64's, rounded: 1 − ᾱ of a rounded ᾱ is good to 3e-4 at level 0
            power = SCHEDULE.alphas_cumprod[k[b, t]]
            expected = power.sqrt() * x[b, t] + (1 - power).sqrt() * eps[b, t]
            assert torch.allclose(x_k[b, t], expected, atol=2e-5)


def test_the_noise_and_the_token_say_the_same() -> None:
    x_k, eps = randn(1, 4, 3), randn(1, 4, 3, seed=1)
    assert torch.allclose(eps_from_x0(SCHEDULE, x_k, K, x0_from_eps(SCHEDULE, x_k, K, eps)), eps, atol=1e-4)


def test_a_predicted_noise_is_clamped_where_it_is_used() -> None:
    parameterization = build_parameterization("pred_noise", clip_noise=2.0)
    output = torch.tensor([[[-5.0], [0.5], [5.0]]])
    found = parameterization.resolve(SCHEDULE, torch.zeros(1, 3, 1), levels(10, 10, 10), output)
    assert found.eps.flatten().tolist() == [-2.0, 0.5, 2.0]
    assert torch.equal(found.x0, x0_from_eps(SCHEDULE, torch.zeros(1, 3, 1), levels(10, 10, 10), found.eps))
    assert torch.equal(found.output, output)  # the loss sees what the network said


def test_an_unknown_objective_is_refused() -> None:
    with pytest.raises(UserError, match=r"objective 'pred_xo' is unknown.*did you mean 'pred_x0'"):
        build_parameterization("pred_xo", clip_noise=20.0)
