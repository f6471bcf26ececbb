"""Part of a token given: it comes back as it is, and the rest is drawn as conditional probability has it."""

from __future__ import annotations

import pytest
import torch

from diffusion_forcing.diffusion import Sampler, build_schedule
from diffusion_forcing.diffusion.parameterization import noise_further, with_observed
from diffusion_forcing.errors import UserError
from diffusion_forcing.networks.recurrent import recurrent_mlp
from tests.diffusion.gaussian import forcing_of, pair_of, randn

RHO, GIVEN = 0.9, 1.5
NAN = float("nan")


def drawn(resample: int, *, eta: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """The given and the other number of 4,000 tokens."""
    sampler = Sampler(pair_of(RHO), sampling_timesteps=200, eta=eta, resample=resample)
    x = randn(4000, 1, 2)
    given = torch.tensor([GIVEN, NAN]).expand(4000, 1, 2)
    walked = sampler.denoise(x, sampler.matrix(1), observed=given, generator=torch.Generator().manual_seed(1))
    return walked[:, 0, 0], walked[:, 0, 1]


@pytest.mark.slow
def test_the_rest_of_a_token_is_drawn_from_its_distribution_given_the_part() -> None:
    known, rest = drawn(resample=10)
    assert bool((known == GIVEN).all())
    assert float(rest.mean()) == pytest.approx(RHO * GIVEN, abs=0.05)
    assert float(rest.std()) == pytest.approx((1 - RHO**2) ** 0.5, abs=0.05)


@pytest.mark.slow
def test_walking_rows_again_is_what_brings_it_there() -> None:
    errors = [abs(float(drawn(resample=n)[1].mean()) - RHO * GIVEN) for n in (1, 3, 10)]
    assert errors[0] > 2 * errors[1] > 2 * errors[2]


def test_nothing_given_is_the_ordinary_walk_bit_for_bit() -> None:
    sampler = Sampler(pair_of(RHO), sampling_timesteps=5, resample=3)
    x = randn(3, 4, 2)
    assert torch.equal(sampler.denoise(x, sampler.matrix(4)), sampler.denoise(x, sampler.matrix(4), observed=None))
    everywhere = torch.full_like(x, NAN)
    once = Sampler(pair_of(RHO), sampling_timesteps=5)
    torch.testing.assert_close(once.denoise(x, once.matrix(4), observed=everywhere), once.denoise(x, once.matrix(4)))


@pytest.mark.parametrize("cache", ["none", "exact", "streaming"])
@pytest.mark.parametrize("chunk_size", [1, 3, -1])
def test_a_rollout_keeps_what_is_given_however_it_is_cached(cache: str, chunk_size: int) -> None:
    torch.manual_seed(0)
    forcing = forcing_of()
    forcing.network = recurrent_mlp(2, 8, network_size=4, num_mlp_layers=1).eval()
    given = torch.full((3, 7, 2), NAN)
    given[:, 3:, 0] = torch.arange(4.0)
    given[0, 5, 1] = 8.0
    how = {"window": 7, "cache": cache, "chunk_size": chunk_size, "observed": given}
    sampler = Sampler(forcing, sampling_timesteps=3, scheduling_matrix="pyramid", resample=2)
    rolled = sampler.rollout(randn(3, 2, 2), 7, **how, generator=torch.Generator().manual_seed(0))
    known = torch.isfinite(given)
    assert torch.equal(rolled[known], given[known])
    assert bool(torch.isfinite(rolled).all())
    assert len(set(rolled[~known].tolist())) == int((~known).sum())


def test_noise_is_added_to_the_level_that_is_asked_for() -> None:
    schedule = build_schedule("cosine")
    k, k_to = torch.tensor([[-1, 200, 300]]), torch.tensor([[400, 500, 300]])
    x = torch.ones(20000, 3, 1)
    noised = noise_further(schedule, x, k.expand(20000, 3), k_to.expand(20000, 3), randn(20000, 3, 1))
    ratio = (schedule.signal_power(k_to, x[:1]) / schedule.signal_power(k, x[:1]))[0, :, 0]
    torch.testing.assert_close(noised.mean(0)[:, 0], ratio.sqrt(), rtol=0, atol=0.02)
    torch.testing.assert_close(noised.var(0)[:, 0], 1 - ratio, rtol=0, atol=0.02)
    assert torch.equal(noised[:, 2], x[:, 2])


def test_what_is_given_is_as_noisy_as_its_token() -> None:
    schedule = build_schedule("cosine")
    x, noise, k = randn(1, 2, 2), randn(1, 2, 2, seed=1), torch.tensor([[-1, 500]])
    given = torch.tensor([[[2.0, NAN], [NAN, 3.0]]])
    shown = with_observed(schedule, x, given, k, noise)
    assert (shown[0, 0, 0], shown[0, 0, 1], shown[0, 1, 0]) == (2.0, x[0, 0, 1], x[0, 1, 0])
    power = schedule.alphas_cumprod[500]
    torch.testing.assert_close(shown[0, 1, 1], power.sqrt() * 3 + (1 - power).sqrt() * noise[0, 1, 1])


def test_bad_words_are_one_line() -> None:
    with pytest.raises(UserError, match="resample must be at least 1, got 0"):
        Sampler(pair_of(RHO), sampling_timesteps=3, resample=0)
    sampler = Sampler(pair_of(RHO), sampling_timesteps=3)
    with pytest.raises(UserError, match="observed has shape"):
        sampler.rollout(randn(2, 1, 2), 4, window=4, observed=torch.zeros(2, 3, 2))


def test_finishing_tokens_leaves_what_is_observed() -> None:
    sampler = Sampler(pair_of(RHO), sampling_timesteps=3, finish=torch.round)
    observed = torch.full((2, 4, 2), NAN)
    observed[:, 2, 0] = 0.37
    rolled = sampler.rollout(randn(2, 1, 2).round(), 4, window=4, observed=observed)
    assert (rolled[:, 2, 0] == torch.tensor(0.37)).all()
    rest = rolled[:, 1:][~torch.isfinite(observed[:, 1:])]
    assert torch.equal(rest, rest.round())
