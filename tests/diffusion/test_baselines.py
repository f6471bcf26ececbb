"""Next-token prediction and full-sequence diffusion: training shows what sampling shows, and exact denoisers have the losses of theory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from diffusion_forcing.algorithms.objectives import teacher_forcing_loss
from diffusion_forcing.diffusion import (
    DiffusionForcing,
    GradientGuidance,
    Sampler,
    build_parameterization,
    build_schedule,
    draw_noise_levels,
    loss_mask,
)
from diffusion_forcing.errors import UserError
from diffusion_forcing.networks import Transformer
from diffusion_forcing.networks.recurrent import recurrent_mlp, recurrent_unet
from tests.diffusion.gaussian import RandomWalk, levels, randn, walk_of

CPU, K = torch.device("cpu"), 1000
NETWORKS = ("transformer", "rnn", "rnn_self_condition", "rnn_start", "rnn_images")


def forcing_over(kind: str, **settings: Any) -> DiffusionForcing:
    """The method over a network with random weights, told conditions of 2 numbers."""
    torch.manual_seed(0)
    told: dict[str, Any] = {"external_cond_dim": 2}
    match kind:
        case "transformer":
            network: Any = Transformer(3, network_size=16, num_layers=2, attn_heads=2, causal=True, **told)
        case "rnn_images":
            network = recurrent_unet(3, (4, 8, 8), network_size=8, learnable_init_z=True, **told)
        case _:
            how: dict[str, Any] = {"rnn_self_condition": {"self_condition": True}, "rnn_start": {"start_dim": 2}}
            network = recurrent_mlp(3, 8, network_size=4, num_mlp_layers=1, **told, **how.get(kind, {}))
    schedule = build_schedule("cosine")
    return DiffusionForcing(network.eval(), schedule, build_parameterization("pred_v", clip_noise=20.0), **settings)


def tokens_for(kind: str) -> tuple[Tensor, Tensor, Tensor]:
    """Clean tokens, noise like them, conditions."""
    shape = (2, 4, 3, 8, 8) if kind == "rnn_images" else (2, 4, 3)
    return randn(*shape, seed=1), randn(*shape, seed=2), randn(2, 4, 2, seed=3)


@pytest.mark.parametrize("kind", NETWORKS)
def test_a_token_trained_behind_a_clean_past_sees_what_sampling_shows_it(kind: str) -> None:
    forcing = forcing_over(kind)
    x, noise, conditions = tokens_for(kind)
    network: Any = forcing.network
    start = network.starting(randn(2, 2, seed=5)) if kind == "rnn_start" else None
    k = levels(700, 20, 999, 3).expand(2, 4)
    trained = teacher_forcing_loss(forcing, x, k, noise=noise, conditions=conditions, memory=start)
    for token in range(4):
        memory = start
        if token:
            memory = forcing.prefill(x[:, :token], conditions=conditions[:, :token], memory=start)
        one = slice(token, token + 1)
        alone = forcing.loss(x[:, one], k[:, one], noise=noise[:, one], conditions=conditions[:, one], memory=memory)
        torch.testing.assert_close(trained.x0[:, one], alone.x0, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(trained.per_element[:, one], alone.per_element, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("weighting", ["uniform", "min_snr", "fused_snr", "cum_snr"])
def test_one_token_of_a_sequence_or_all_at_once_have_the_same_errors(weighting: Any) -> None:
    forcing = forcing_over("transformer", weighting=weighting, cum_snr_decay=0.9)
    x, noise, conditions = tokens_for("transformer")
    own = (700, 20, 999, 3)
    at_once = teacher_forcing_loss(forcing, x, levels(*own).expand(2, 4), noise=noise, conditions=conditions)
    for token in range(4):
        k = levels(*[-1] * token, own[token], *[K - 1] * (3 - token)).expand(2, 4)
        one = forcing.loss(x, k, noise=noise, conditions=conditions)
        torch.testing.assert_close(one.per_element[:, token], at_once.per_element[:, token], atol=1e-5, rtol=1e-4)
        mean = (one.per_element * loss_mask("teacher_forcing", k)[..., None]).mean()
        torch.testing.assert_close(mean, one.per_element[:, token].mean())


def test_a_clean_token_is_trained_as_sampling_shows_its_past() -> None:
    forcing = walk_of(stabilization_level=10)
    network: Any = forcing.network
    x = randn(2, 3, 1)
    forcing.loss(x, levels(-1, -1, 400).expand(2, 3), noise=randn(2, 3, 1, seed=1))
    shown, k, _ = network.calls[-1]
    context, context_k = forcing.stabilize(x[:, :2], levels(-1, -1).expand(2, 2))
    assert torch.equal(shown[:, :2], context)
    assert torch.equal(k[:, :2], context_k)


def test_a_network_that_sees_the_future_has_no_clean_past_beside() -> None:
    network = Transformer(3, network_size=16, num_layers=1, attn_heads=2, causal=False)
    x, k = randn(1, 2, 3), levels(3, 3)
    with pytest.raises(UserError, match="is for causal networks"):
        network.teacher_forced(x, k, x, k)


# --------------------------------------------------------------------------------------- exact denoisers of random walks

STEPS = 5


def expected_error(power: Tensor, clean: Tensor | None = None) -> Tensor:
    """(t,): mean squared error of the exact denoiser of a random walk seen at signal powers `power`: (t,). It reckons with noise of
    1 − power everywhere; where `clean` there is none. With none clean, this is the posterior variance."""
    power = power.double()
    t = torch.arange(1, len(power) + 1, dtype=torch.float64)
    covariance, signal, noise = torch.minimum(t[:, None], t), power.sqrt(), torch.diag(1 - power)
    gain = torch.linalg.solve(signal[:, None] * covariance * signal + noise, signal[:, None] * covariance).T
    missed = torch.eye(len(power), dtype=torch.float64) - gain * signal
    really = noise if clean is None else noise * ~clean
    return (missed @ covariance @ missed.T + gain @ really @ gain.T).diagonal()


@pytest.mark.parametrize("kind", ["random_all", "shared", "full_sequence", "teacher_forcing"])
def test_the_loss_of_an_exact_denoiser_is_the_error_of_theory_at_its_levels(kind: str) -> None:
    timesteps = 4
    schedule = build_schedule("cosine", timesteps=timesteps)
    forcing = DiffusionForcing(
        RandomWalk(schedule),
        schedule,
        build_parameterization("pred_x0", clip_noise=20.0),
        weighting="uniform",
        stabilization_level=1,
    )
    count = 20_000
    drawn = torch.Generator().manual_seed(0)
    x = torch.randn(count, STEPS, 1, generator=drawn).cumsum(dim=1)
    k = draw_noise_levels(kind, count, STEPS, timesteps=timesteps, generator=drawn, device=CPU)
    error = forcing.loss(x, k, generator=drawn).per_element[..., 0] / (schedule.snr_clip / 2)
    weight = loss_mask(kind, k)
    rows, index = torch.unique(k, dim=0, return_inverse=True)
    theory = torch.stack([expected_error(schedule.alphas_cumprod[row.clamp(min=0)], row < 0) for row in rows])[index]
    difference = ((error - theory) * weight).mean(dim=1)
    assert difference.mean().abs() < 4 * difference.std() / count**0.5


def test_a_clean_past_leaves_the_least_error_and_a_shared_level_the_most() -> None:
    """Theory, for the last token at one level: a step's variance behind a clean past, more behind one as noisy as itself."""
    power = build_schedule("cosine").alphas_cumprod[600]
    snr = power / (1 - power)
    clean = expected_error(torch.cat([torch.ones(STEPS - 1) - 1e-9, power[None]]))[-1]
    shared = expected_error(power.expand(STEPS))[-1]
    assert clean == pytest.approx(float(1 / (1 + snr)), rel=1e-4)
    assert clean < 0.7 * shared


# ------------------------------------------------------------------------------------------------------------- sampling


def test_full_sequence_diffusion_shows_one_level_and_keeps_its_context() -> None:
    forcing = walk_of()
    network: Any = forcing.network
    sampler = Sampler(forcing, sampling_timesteps=5, scheduling_matrix="full_sequence", past_shown="same")
    context = randn(3, 2, 1)
    out = sampler.rollout(context, 6, window=4, chunk_size=2, generator=torch.Generator().manual_seed(0))
    assert out.shape == (3, 6, 1)
    assert torch.equal(out[:, :2], context)
    assert len(network.calls) == 2 * 5
    for shown, k, _ in network.calls:
        assert shown.shape[1] == 4
        assert (k == k[:, :1]).all()
    shown, k, _ = network.calls[
        5 + 4
    ]  # the second chunk's last row: the first chunk is its past, nearly as it came out
    power = forcing.schedule.alphas_cumprod[k[0, 0]]
    assert ((shown[:, :2] - power.sqrt() * out[:, 2:4]).abs() < 5 * (1 - power).sqrt()).all()
    assert not torch.equal(shown[:, :2], power.sqrt() * out[:, 2:4])


def test_full_sequence_diffusion_goes_on_from_its_context() -> None:
    """A random walk that stands at 4 goes on from there, when the rows are walked often enough to agree with what is given."""
    forcing = walk_of()
    sampler = Sampler(
        forcing, sampling_timesteps=40, scheduling_matrix="full_sequence", past_shown="same", resample=5, eta=1.0
    )
    context = torch.tensor([1.0, 2.0, 3.0, 4.0]).reshape(1, 4, 1).expand(400, 4, 1)
    out = sampler.rollout(context, 6, window=6, chunk_size=-1, generator=torch.Generator().manual_seed(0))
    assert out[:, 4].mean() == pytest.approx(4, abs=0.4)  # a first look alone forgets: 2.3 with resample=1
    assert out[:, 4].std() == pytest.approx(1, abs=0.2)
    assert out[:, 5].std() == pytest.approx(2**0.5, abs=0.25)


def test_sampling_that_shows_other_levels_is_refused() -> None:
    forcing = walk_of()
    with pytest.raises(UserError, match=r"scheduling_matrix=pyramid.*past_shown=same"):
        Sampler(forcing, sampling_timesteps=5, scheduling_matrix="pyramid", past_shown="same")
    sampler = Sampler(forcing, sampling_timesteps=5, scheduling_matrix="full_sequence", past_shown="same")
    with pytest.raises(UserError, match="pass cache=none"):
        sampler.rollout(randn(1, 2, 1), 4, window=4, cache="exact")


def test_tokens_that_wait_do_not_guide_where_the_network_foresees_nothing() -> None:
    forcing = walk_of(causal=True)
    x, k = randn(1, 3, 1), levels(3, 500, K - 1)
    last = lambda x0: x0[:, -1, 0]  # noqa: E731
    _, all_of_it, _ = GradientGuidance(last).gradient(forcing, forcing, x, k)
    _, of_begun, _ = GradientGuidance(last, started_only=True).gradient(forcing, forcing, x, k)
    assert all_of_it[0, 1].abs() > 0
    assert (of_begun == 0).all()
    _, of_next, _ = GradientGuidance(lambda x0: x0[:, 1, 0], started_only=True).gradient(forcing, forcing, x, k)
    assert of_next[0, 1].abs() > 0
