"""The training adapter: what is drawn, what the loss counts, and that a training step belongs to (seed, batch number)."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from torch import Tensor

from diffusion_forcing.algorithms.planning.algorithm import PADDING_WEIGHT, Draws, Planning
from diffusion_forcing.checkpoints import LoadedCheckpoint
from diffusion_forcing.diffusion import DiffusionForcing, build_parameterization
from diffusion_forcing.errors import UserError
from tests.algorithms.small import batch, planning, randn
from tests.diffusion.gaussian import Certain, ExactGaussian

K, F, TOKENS = 1000, 3, 5


def draws(built: Planning, *, end: list[int] | None = None, levels: int = 500, size: int = 3) -> Draws:
    return Draws(
        end=None if end is None else torch.tensor(end),
        levels=torch.full((size, TOKENS), levels),
        first_levels=None,
        noise=randn(size, TOKENS, built.bundle.token_width, seed=9),
    )


def answering(built: Planning, answer: float = 0.0) -> DiffusionForcing:
    """The method over a network that always says `answer`, so that the loss is known."""
    return DiffusionForcing(
        Certain(torch.full((1, 1, built.bundle.token_width), answer)),
        built.forcing.schedule,
        build_parameterization("pred_x0", clip_noise=20.0),
    )


# ------------------------------------------------------------------------------------------------------------ draws


def test_draws_lie_in_their_ranges_and_reach_their_ends() -> None:
    built = planning()
    generator = torch.Generator().manual_seed(0)
    drawn = [built.draw(64, TOKENS, generator=generator) for _ in range(60)]
    ends = torch.cat([d.end for d in drawn if d.end is not None])
    share = torch.bincount(ends, minlength=TOKENS + 1) / len(ends)
    assert (share[:2] == 0).all()
    assert torch.allclose(share[2:], torch.tensor(1 / 4), atol=0.03)  # uniform over 2…T
    levels = torch.cat([d.levels for d in drawn])
    assert levels.shape == (60 * 64, TOKENS)
    assert (levels.min(), levels.max()) == (0, K - 1)
    first = [d.first_levels for d in drawn if d.first_levels is not None and not d.first_levels.equal(d.levels[:, 0])]
    assert 0.3 < len(first) / 60 < 0.7  # half of the batches
    assert (torch.cat(first).min(), torch.cat(first).max()) == (0, K // 4 - 1)
    noise = torch.cat([d.noise for d in drawn])
    assert noise.shape[1:] == (TOKENS, built.bundle.token_width)
    assert noise.std() == pytest.approx(1, abs=0.01)


def test_a_causal_planner_draws_no_end() -> None:
    assert planning(causal=True).draw(4, TOKENS).end is None


def test_levels_follow_the_option() -> None:
    levels = planning(noise_level="shared").draw(8, TOKENS).levels
    assert (levels == levels[:, :1]).all()


def test_draws_fit_the_shortest_schedule() -> None:
    built = planning(sampling_timesteps=1, diffusion={"timesteps": 2, "stabilization_level": 1})
    for seed in range(8):
        drawn = built.draw(4, TOKENS, generator=torch.Generator().manual_seed(seed))
        assert drawn.levels.max() <= 1
        assert drawn.first_levels is not None
        assert drawn.first_levels.equal(drawn.levels[:, 0]) or (drawn.first_levels == 0).all()


# ------------------------------------------------------------------------------------------------------------ loss


@pytest.mark.parametrize("end", [None, [5, 3, 2]])
def test_the_loss_is_the_mean_over_frames_of_what_is_there(end: list[int] | None) -> None:
    built = planning()
    tokens, mask = built.encode(batch())
    loss, _ = built.loss(tokens, mask, draws(built, end=end), forcing=answering(built, 0.5))
    frames, total = built.bundle.unstack(tokens).double(), 0.0
    clip = built.forcing.schedule.clipped_snr
    for b in range(3):
        for h in range(TOKENS * F):
            token = h // F
            real = bool(mask[b, h])
            past_end = end is not None and token >= end[b]
            # a token of which no frame is there is pure noise to the network
            there = bool(mask[b, token * F : (token + 1) * F].any()) and not past_end
            weight = clip[500 if there else K - 1].item() * (PADDING_WEIGHT if past_end else 1.0) * real
            total += weight * ((frames[b, h] - 0.5) ** 2).sum().item()
    assert loss.item() == pytest.approx(total / frames.numel(), rel=1e-5)


def test_the_loss_ignores_frames_that_are_not_real() -> None:
    built = planning()
    made = batch()
    tokens, mask = built.encode(made)
    changed = made.observations.clone()
    changed[~made.valid] += 5.0
    others, same_mask = built.encode(made._replace(observations=changed))
    assert torch.equal(mask, same_mask)
    assert not torch.equal(tokens, others)
    one, other = (
        built.loss(x, mask, draws(built, end=[5, 5, 5]), forcing=answering(built))[0] for x in (tokens, others)
    )
    assert torch.equal(one, other)


def test_past_the_drawn_end_an_error_counts_a_twentieth() -> None:
    built = planning()
    tokens, mask = torch.zeros(1, TOKENS, 6), torch.ones(1, TOKENS * F, dtype=torch.bool)
    tokens[0, 4] = 1.0
    drawn = draws(built, end=[5], levels=K - 1, size=1)
    before, after = (
        built.loss(tokens, mask, drawn._replace(end=torch.tensor([end])), forcing=answering(built))[0] for end in (5, 4)
    )
    assert after.item() == pytest.approx(0.05 * before.item(), rel=1e-5)


def test_absent_tokens_are_shown_as_pure_noise_and_token_zero_nearly_clean() -> None:
    built = planning()
    network = ExactGaussian(built.forcing.schedule, 0.0, 1.0)
    forcing = DiffusionForcing(network, built.forcing.schedule, build_parameterization("pred_x0", clip_noise=20.0))
    tokens, mask = built.encode(batch())
    drawn = draws(built, end=[5, 2, 5])._replace(first_levels=torch.tensor([7, 8, 9]))
    built.loss(tokens, mask, drawn, forcing=forcing)
    ((_, k, _),) = network.calls
    # the second ends at its second token; the third's data ends after 9 of 13 steps: 8 frames of future, in tokens 1 to 3
    assert k.tolist() == [[7, 500, 500, 500, 500], [8, 500, 999, 999, 999], [9, 500, 500, 500, 999]]


def test_a_causal_loss_knows_no_end() -> None:
    built = planning(causal=True)
    tokens, mask = built.encode(batch())
    drawn = built.draw(3, TOKENS, generator=torch.Generator().manual_seed(0))
    loss, x0 = built.loss(tokens, mask, drawn)
    assert loss.isfinite()
    assert x0.shape == tokens.shape


def test_a_planner_is_distilled_by_its_own_loss() -> None:
    built = planning(ema_decay=0.5)
    tokens, mask = built.encode(batch())
    drawn = draws(built)
    built.distill(grid=4, steps=2)
    assert built.metadata()["sampling"]["algorithm"]["diffusion"]["distilled_steps"] == 2
    optimizer, losses = torch.optim.Adam(built.network.parameters(), lr=1e-3), []
    for _ in range(20):
        optimizer.zero_grad()
        loss, _ = built.loss(tokens, mask, drawn)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


def test_the_decay_of_fused_snr_counts_every_frame_of_a_token() -> None:
    fused = {"use_fused_snr": True, "cum_snr_decay": 0.9}
    for built in (planning(diffusion=fused), planning(diffusion=fused)):  # building twice changes nothing
        assert built.forcing.weighting == "fused_snr"
        assert built.forcing.cum_snr_decay == pytest.approx(0.9**F)


# ------------------------------------------------------------------------------------------------------------ training


class Recorder(Planning):
    """A planner that keeps what it drew."""

    drawn: list[Draws]

    def draw(self, batch: int, time: int, *, generator: torch.Generator | None = None) -> Draws:
        found = super().draw(batch, time, generator=generator)
        self.drawn = [*getattr(self, "drawn", []), found]
        return found


def trained(
    tmp_path: Path, *, seed: int = 0, steps: int = 4, shuffled_global_state: int = 0, **changes: Any
) -> Recorder:
    """A planner after `steps` steps of a trainer whose epochs have two batches."""
    built = Recorder(planning(**changes).options)
    built.network.load_state_dict(planning(**changes).network.state_dict())
    if built.ema is not None:
        built.ema.module.load_state_dict(built.network.state_dict())
    built.seed = seed
    torch.manual_seed(shuffled_global_state)
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_steps=steps,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    loader = torch.utils.data.DataLoader([batch(seed=0), batch(seed=1)], batch_size=None)  # type: ignore[arg-type]
    trainer.fit(built, loader)
    return built


def same(a: Draws, b: Draws) -> bool:
    return all(x is y is None or torch.equal(x, y) for x, y in zip(a, b, strict=True))  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore")
def test_a_training_step_is_a_function_of_the_seed_and_the_batch_number(tmp_path: Path) -> None:
    run, again, other = (
        trained(tmp_path, seed=seed, shuffled_global_state=state, warmup_steps=1)
        for seed, state in ((3, 0), (3, 1), (4, 0))
    )
    assert len(run.drawn) == 4
    assert all(same(a, b) for a, b in zip(run.drawn, again.drawn, strict=True))
    for a, b in zip(run.network.parameters(), again.network.parameters(), strict=True):
        assert torch.equal(a, b)
    # every batch has draws of its own, the third not those of the first though it opens an epoch too, and every seed
    everything = [*run.drawn, *other.drawn]
    assert not any(same(a, b) for i, a in enumerate(everything) for b in everything[:i])
    # the average has followed
    assert run.ema is not None
    assert int(run.ema.n_averaged) == 4
    before = planning().network.state_dict()
    for name, value in run.ema.module.state_dict().items():
        assert not torch.equal(value, before[name]), name
    assert not torch.equal(run.ema.module.out.weight, run.network.out.weight)


def test_validation_draws_belong_to_the_batchs_number_and_the_averaged_network(monkeypatch: pytest.MonkeyPatch) -> None:
    built = planning()
    logged: list[Tensor] = []
    monkeypatch.setattr(built, "log", lambda name, value, **how: logged.append(value))
    for number in (0, 1, 0):
        built.validation_step(batch(), number)
    assert torch.equal(logged[0], logged[2])
    assert not torch.equal(logged[0], logged[1])
    assert built.ema is not None
    with torch.no_grad():
        built.network.out.bias += 1.0
    built.validation_step(batch(), 0)
    assert torch.equal(logged[0], logged[3])
    with torch.no_grad():
        built.ema.module.out.bias += 1.0
    built.validation_step(batch(), 0)
    assert not torch.equal(logged[0], logged[4])


def test_the_rate_warms_up_from_its_first_step() -> None:
    built = planning(lr=1e-3, warmup_steps=4, weight_decay=0.01, optimizer_beta=(0.8, 0.9))
    configured: Any = built.configure_optimizers()
    optimizer, schedule = configured["optimizer"], configured["lr_scheduler"]["scheduler"]
    assert configured["lr_scheduler"]["interval"] == "step"
    rates = []
    for _ in range(6):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx([2.5e-4, 5e-4, 7.5e-4, 1e-3, 1e-3, 1e-3])
    assert isinstance(optimizer, torch.optim.AdamW)
    assert optimizer.defaults["betas"] == (0.8, 0.9)
    assert optimizer.defaults["weight_decay"] == 0.01
    # the average is not trained
    trained_ones = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert trained_ones == {id(p) for p in built.network.parameters()}


# ------------------------------------------------------------------------------------------------------------ checkpoints


def loaded(built: Planning, **changes: Any) -> LoadedCheckpoint:
    weights = {name: value + 1.0 for name, value in built.network.state_dict().items()}
    statistics = {"data_mean": torch.tensor([9.0, 8.0]), "data_std": torch.tensor([7.0, 6.0])}
    found = LoadedCheckpoint(
        path=Path("there.ckpt"), kind="released", metadata={}, weights=weights, statistics=statistics
    )
    return replace(found, **changes)


def test_loading_fills_the_network_its_average_and_the_statistics() -> None:
    built = planning()
    checkpoint = loaded(built)
    built.load_weights(checkpoint)
    assert built.ema is not None
    for network in (built.network, built.ema.module, built.sampling_network):
        assert all(torch.equal(value, checkpoint.weights[name]) for name, value in network.state_dict().items())
    assert built.bundle.mean.tolist() == [9.0, 8.0]
    assert built.bundle.std.tolist() == [7.0, 6.0]
    assert built.sampling_weights().keys() == checkpoint.weights.keys()


def test_a_checkpoint_that_does_not_fit_is_refused_by_its_first_difference_and_changes_nothing() -> None:
    built = planning()
    weights = loaded(built).weights
    fewer = {name: value for name, value in weights.items() if name != "out.bias"}
    wrong = {
        r"there\.ckpt lacks 'out\.bias' of shape \(6,\)": {"weights": fewer},
        r"'out\.bias' has shape \(5,\), this network's \(6,\)": {"weights": weights | {"out.bias": torch.zeros(5)}},
        r"'out\.scale' has no place": {"weights": weights | {"out.scale": torch.zeros(1)}},
        r"models 4 numbers a step \(data_mean\), the configuration 2": {"statistics": {"data_mean": torch.zeros(4)}},
    }
    before = {name: value.clone() for name, value in built.state_dict().items()}
    for message, changes in wrong.items():
        with pytest.raises(UserError, match=message) as caught:
            built.load_weights(loaded(built, **changes))
        assert "\n" not in str(caught.value)
    assert all(torch.equal(value, before[name]) for name, value in built.state_dict().items())
    assert built.bundle.mean.tolist() == pytest.approx([3.5, 3.4])


def test_one_samples_with_the_average_where_there_is_one() -> None:
    averaged, plain = planning(), planning(ema_decay=0.0)
    assert averaged.ema is not None
    assert averaged.sampling_network is averaged.ema.module
    assert averaged.planner().forcing.network is averaged.ema.module
    assert plain.ema is None
    assert plain.sampling_network is plain.network


def test_a_planner_describes_itself_in_json() -> None:
    built = planning("xva", causal=True, diffusion={"beta_schedule": "sigmoid", "schedule_fn_kwargs": {"tau": 0.9}})
    facts = json.loads(json.dumps(built.describe()))
    assert facts["task"] == "planning"
    assert facts["structure"]["dataset"]["action_std"] == [6.0, 5.0]
    assert facts["structure"]["algorithm"]["causal"] is True
    assert facts["structure"]["algorithm"]["diffusion"]["schedule_fn_kwargs"] == {"tau": 0.9}
    assert facts["structure"]["algorithm"]["diffusion"]["architecture"]["network_size"] == 16
