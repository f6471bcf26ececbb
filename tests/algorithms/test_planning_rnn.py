"""Planning with the recurrent network: any horizon, the start in the latent, the released guidance, a past that is looked back on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from diffusion_forcing.algorithms.base import RecurrentMLPOptions
from diffusion_forcing.algorithms.planning.guidance import RowGuidance, position_return
from diffusion_forcing.algorithms.planning.planner import Planner
from diffusion_forcing.algorithms.planning.recurrent import (
    LOSS_SCALE,
    RecurrentPlanning,
    RecurrentPlanningOptions,
    after,
)
from diffusion_forcing.algorithms.planning.tokens import Steps
from diffusion_forcing.checkpoints import load, save
from diffusion_forcing.diffusion import DiffusionForcing, build_parameterization, build_schedule
from diffusion_forcing.errors import UserError
from tests.algorithms.small import STATISTICS, batch, randn
from tests.diffusion.gaussian import ExactGaussian

F = 3


def options(variant: str = "x", *, diffusion: dict[str, Any] | None = None, **changes: Any) -> RecurrentPlanningOptions:
    sizes = {"network_size": 4, "num_mlp_layers": 1, "sampling_timesteps": 4, **(diffusion or {})}
    common: dict[str, Any] = {
        "episode_len": 12,
        "frame_stack": F,
        "open_loop_horizon": 5,
        "z_shape": (8,),
        "ema_decay": 0.0,
    }
    return RecurrentPlanningOptions(
        **{**STATISTICS[variant], **common, **changes}, diffusion=RecurrentMLPOptions(**sizes)
    )


def planning(variant: str = "x", **changes: Any) -> RecurrentPlanning:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return RecurrentPlanning(options(variant, **changes))


def plan(planner: Planner, horizon: int, *, size: int = 3, **how: Any) -> Tensor:
    o = planner.bundle.observation_dim
    goal = randn(size, o, seed=2)
    noise = randn(size, -(-horizon // F), planner.bundle.token_width, seed=3)
    return planner.plan_normalized(randn(size, o, seed=1), goal, horizon, noise=noise, **how)


# ------------------------------------------------------------------------------------------------------- training


@pytest.mark.parametrize("variant", ["x", "xv", "xva"])
def test_training_lowers_the_loss(variant: str) -> None:
    built = planning(variant)
    tokens, mask = built.encode(batch())
    draws = built.draw(*tokens.shape[:2], generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.Adam(built.network.parameters(), lr=1e-2)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss, x0 = built.loss(tokens, mask, draws)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert x0.shape == tokens[:, 1:].shape
    assert losses[-1] < 0.8 * losses[0]
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in built.network.init_encoder.parameters())


def test_the_loss_counts_real_frames_alone_and_reads_of_the_present_its_observation() -> None:
    built = planning("xva", diffusion={"use_snr": True})
    tokens, mask = built.encode(batch())
    draws = built.draw(*tokens.shape[:2], generator=torch.Generator().manual_seed(0))
    loss, _ = built.loss(tokens, mask, draws)
    frames = built.bundle.unstack(tokens).clone()
    frames[:, : F - 1] = 7.0  # of the present only the last frame's observation is read
    frames[:, F - 1, 4:] = 7.0
    frames[~mask] = 7.0
    # a network that sees no later token: what is past a sequence's end changes nothing before it
    other = built.bundle.stack(frames)
    present = mask.unflatten(1, (-1, F)).all(-1)
    again, _ = built.loss(torch.where(present[..., None], other, tokens), mask, draws)
    assert torch.allclose(loss, again)
    whole = mask.clone()
    whole[:] = False
    assert built.loss(tokens, whole, draws)[0] == 0


def test_the_loss_of_a_known_answer_is_the_weighted_error_ten_times() -> None:
    built = planning("x")
    tokens, mask = built.encode(batch(1))
    draws = built.draw(1, tokens.shape[1], generator=torch.Generator().manual_seed(0))
    for parameter in built.network.x_from_z.parameters():
        torch.nn.init.zeros_(parameter)
    loss, x0 = built.loss(tokens, mask, draws)
    assert (x0 == 0).all()
    assert loss.item() == pytest.approx(LOSS_SCALE * 2.5 * (tokens[:, 1:] ** 2).mean().item(), rel=1e-5)  # snr_clip/2


@pytest.mark.parametrize(("name", "where"), [("gt_cond_prob", slice(None)), ("gt_first_frame", slice(0, 1))])
def test_tokens_shown_clean_are_at_level_0(name: str, where: slice) -> None:
    drawn = planning(**{name: 1.0}).draw(64, 5, generator=torch.Generator().manual_seed(0))
    assert (drawn.levels[:, where] == 0).all()
    assert drawn.levels.shape == (64, 4)
    if name == "gt_first_frame":
        assert (drawn.levels[:, 1:] > 0).float().mean() > 0.9


# ------------------------------------------------------------------------------------------------------- planning


@pytest.mark.parametrize("horizon", [1, 3, 4, 12, 40])
def test_a_plan_is_as_long_as_asked_for(horizon: int) -> None:
    planner = planning("xva").planner()
    levels: list[Tensor] = []
    found = plan(planner, horizon, on_row=lambda row, x, now: levels.append(now))
    assert found.shape == (3, horizon, 6)
    assert found.isfinite().all()
    assert (levels[-1] == 0).all()
    assert len(levels[-1]) == -(-horizon // F)


def test_no_step_is_no_plan() -> None:
    with pytest.raises(UserError, match="horizon 0 is no plan; plan for 1 step or more"):
        plan(planning().planner(), 0)


def test_a_plan_does_not_depend_on_who_else_is_in_its_batch() -> None:
    planner = planning("xv", guidance_scale=1.0, mcg_samples=1).planner()
    start, goal, noise = randn(3, 4, seed=1), randn(3, 4, seed=2), randn(3, 3, planner.bundle.token_width, seed=3)
    together = planner.plan_normalized(start, goal, 9, noise=noise)
    for i in range(3):
        alone = planner.plan_normalized(start[i : i + 1], goal[i : i + 1], 9, noise=noise[i : i + 1])
        assert torch.allclose(alone[0], together[i], atol=1e-4)


def test_what_a_plan_does_next_does_not_depend_on_how_far_it_goes_unless_it_is_guided() -> None:
    """No token sees a later one; a return of the whole plan makes the end speak at the beginning."""
    planner, guided = planning(guidance_scale=0.0).planner(), planning(guidance_scale=5.0).planner()
    noise = randn(2, 4, planner.bundle.token_width, seed=3)
    start, goal = randn(2, 2, seed=1), randn(2, 2, seed=2)
    for one, same in ((planner, True), (guided, False)):
        near, far = (one.plan_normalized(start, goal, h, noise=noise[:, : h // F]) for h in (6, 12))
        assert torch.allclose(near, far[:, :6], atol=1e-5) is same


def test_the_start_decides_the_plan() -> None:
    planner = planning(guidance_scale=0.0).planner()
    noise, goal = randn(2, 4, planner.bundle.token_width, seed=3), torch.zeros(2, 2)
    one, other = (
        planner.plan_normalized(start, goal, 12, noise=noise) for start in (torch.zeros(2, 2), torch.ones(2, 2))
    )
    assert not torch.allclose(one, other)


# ------------------------------------------------------------------------------------------------------- guidance


def test_the_return_is_the_summed_distance_in_metres() -> None:
    bundle = planning("xva").bundle
    x0, goal = randn(2, 4, bundle.token_width, seed=4), randn(2, 4, seed=5)
    found = position_return(bundle, goal, planned=10, scale=0.5)(x0)
    frames, mean, std = bundle.unstack(x0).double(), bundle.mean[:2].double(), bundle.std[:2].double()
    for sample in range(2):
        total = sum(
            torch.dist(frames[sample, h, :2] * std + mean, goal[sample, :2].double() * std + mean).item()
            for h in range(10)
        )
        assert found[sample].item() == pytest.approx(-0.5 * total, rel=1e-5)


@pytest.mark.parametrize("ancestral", [False, True], ids=["ddim", "ddpm"])
@pytest.mark.parametrize("eta", [0.0, 0.7, 1.0])
def test_the_gradient_is_added_after_the_row_times_the_ddim_constant(eta: float, ancestral: bool) -> None:
    """For a network with a known Jacobian: x̂₀ of an exact Gaussian denoiser is linear in x."""
    schedule = build_schedule("linear", 1000)
    network = ExactGaussian(schedule, 0.3, 0.8)
    forcing = DiffusionForcing(network, schedule, build_parameterization("pred_x0", clip_noise=20.0))
    x, noise = randn(2, 3, 4, seed=1), randn(2, 3, 4, seed=2)
    k, k_to = torch.tensor([[900, 500, 20]]).expand(2, 3), torch.tensor([[700, 500, -1]]).expand(2, 3)
    guidance = RowGuidance(lambda x0: 2.0 * x0.sum(dim=(1, 2)))
    plain = forcing.step(x, k, k_to, eta=eta, ancestral=ancestral, noise=noise)
    wrapped = guidance.wrap(forcing, forcing, ancestral=ancestral)
    guided = forcing.step(x, k, k_to, eta=eta, ancestral=ancestral, noise=noise, denoise=wrapped)
    eta = 1.0 if ancestral else eta
    abar = schedule.alphas_cumprod.double()
    for token, (high, low) in enumerate([(900, 700), (500, 500), (20, -1)]):
        a, b = abar[high], torch.ones(()).double() if low < 0 else abar[low]
        slope = (
            network(torch.ones(1, 1, 1), torch.tensor([[high]]), None, None)[0]
            - network(torch.zeros(1, 1, 1), torch.tensor([[high]]), None, None)[0]
        )
        sigma2 = eta**2 * (1 - a / b) * (1 - b) / (1 - a)
        constant = (1 - a) - torch.sqrt(1 - b - sigma2) * torch.sqrt(1 - a)
        moved = 0.0 if high == low else constant.item() * 2.0 * slope.item()
        expected = torch.full((2, 4), moved)
        assert torch.allclose(guided[:, token] - plain[:, token], expected, atol=1e-5), token


class Known(ExactGaussian):
    """The denoiser of independent Gaussian steps, as a network that a recurrent planner can ask."""

    def starting(self, start: Tensor) -> None:
        return None


def test_a_stronger_pull_brings_the_plan_nearer_to_the_goal() -> None:
    distances = []
    for scale in (0.0, 0.2, 1.0):
        planner = planning(guidance_scale=scale, diffusion={"sampling_timesteps": 20}).planner()
        planner.forcing.network = Known(planner.forcing.schedule, 0.0, 0.5)
        distances.append((plan(planner, 12) - randn(3, 2, seed=2)[:, None]).norm(dim=-1).mean().item())
    assert distances[2] < distances[1] < distances[0]


def test_monte_carlo_guidance_averages_continuations_and_has_its_old_name() -> None:
    old, new = (options(**{name: 3}) for name in ("ddim_repeats", "mcg_samples"))
    assert old.mcg_samples == new.mcg_samples == 3
    assert options(ddim_repeats=0).mcg_samples == 1
    planner = planning(ddim_repeats=3, guidance_scale=3.0).planner()
    seeds = [plan(planner, 12, generator=torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert torch.equal(seeds[0], seeds[1])
    assert not torch.equal(seeds[0], seeds[2])
    one = plan(planning(guidance_scale=3.0).planner(), 12)
    assert not torch.allclose(one, seeds[0])


# -------------------------------------------------------------------------------------------------------- context


def test_the_past_is_what_the_latent_has_seen() -> None:
    planner = planning("xva", context_frames=6, guidance_scale=0.0).planner()
    bundle = planner.bundle
    seen = 3 + torch.randn(2, 7, 4, generator=torch.Generator().manual_seed(0))
    pushes = torch.randn(2, 6, 2, generator=torch.Generator().manual_seed(1))
    past = Steps(seen[:, :6], pushes, torch.zeros(2, 6, 1))
    now = (seen[:, 6] - bundle.mean[:4]) / bundle.std[:4]
    noise, goal = randn(2, 2, bundle.token_width, seed=3), torch.zeros(2, 4)
    found = planner.plan_normalized(now, goal, 6, noise=noise, past=past)
    tokens, _ = bundle.encode(seen, torch.cat([pushes, pushes[:, :1]], 1), torch.zeros(2, 7), torch.ones(2, 6).bool())
    with torch.no_grad():
        latent = planner.forcing.prefill(
            tokens[:, 1:], memory=after(planner.forcing, (seen[:, 0] - bundle.mean[:4]) / bundle.std[:4])
        )
        x = planner.sampler.denoise(noise, planner.sampler.matrix(2), memory=latent)
    assert latent.length == 2
    assert torch.allclose(found, bundle.unstack(x), atol=1e-6)
    assert not torch.allclose(found, planner.plan_normalized(now, goal, 6, noise=noise))


def test_a_past_of_half_a_token_is_refused() -> None:
    planner = planning("xva", context_frames=6).planner()
    past = Steps(torch.zeros(1, 4, 4), torch.zeros(1, 4, 2), torch.zeros(1, 4, 1))
    with pytest.raises(UserError, match=r"the past has 4 steps; algorithm\.frame_stack 3 must divide them"):
        planner.plan_normalized(torch.zeros(1, 4), torch.zeros(1, 4), 6, past=past)


# -------------------------------------------------------------------------------------------- options, checkpoints


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"context_frames": 4}, "algorithm.context_frames is 4; it must be a multiple of frame_stack 3"),
        ({"causal": False}, "algorithm.causal is False, but df_planning_rnn needs True"),
        ({"z_shape": (8, 8)}, r"a plan's latent is a vector, as \[128\]"),
        ({"learnable_init_z": True}, "algorithm.learnable_init_z is True"),
        ({"ddim_repeats": 4, "mcg_samples": 2}, "they are the old and the new name of one number"),
        ({"guidance_weights": "source"}, "algorithm.guidance_weights is"),
        ({"padding_mode": "zero"}, "algorithm.padding_mode is"),
        ({"diffusion": {"network_size": 5}}, "it must be even and at least 4"),
        ({"diffusion": {"num_gru_layers": 3}}, "a multiple of algorithm.diffusion.num_gru_layers 3"),
        ({"diffusion": {"use_fused_snr": True}}, "here it is use_snr=True use_cum_snr=True"),
    ],
)
def test_what_cannot_be_is_one_line(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        options(**changes)
    assert "\n" not in str(caught.value)


def test_a_checkpoint_brings_its_sizes_and_the_same_plan(tmp_path: Path) -> None:
    built = planning("xva")
    save(tmp_path / "rnn", None, metadata=built.describe(), model=built.sampling_weights(), step=5)
    loaded = load(tmp_path / "rnn")
    facts = json.loads(json.dumps(loaded.metadata))
    assert (facts["task"], facts["line"]) == ("planning", "rnn")
    assert facts["structure"]["algorithm"]["z_shape"] == [8]
    assert facts["structure"]["algorithm"]["diffusion"]["num_mlp_layers"] == 1
    torch.manual_seed(5)
    other = RecurrentPlanning(options("xva"))
    other.load_weights(loaded)
    assert torch.equal(plan(built.planner(), 9), plan(other.planner(), 9))
    with pytest.raises(UserError, match=r"algorithm\.diffusion as it was trained"):
        planning("xva", z_shape=(16,)).load_weights(loaded)
