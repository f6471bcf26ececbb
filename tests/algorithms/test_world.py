"""The world model's adapter: what it draws, what it scores, how a rollout treats its past, checkpoints, options that cannot be."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from diffusion_forcing.algorithms.objectives import Distillation
from diffusion_forcing.algorithms.world import (
    LevelDensity,
    WarmupAndDecay,
    World,
    WorldDiffusionOptions,
    WorldNetworkOptions,
    WorldOptions,
    warp_error,
)
from diffusion_forcing.checkpoints import load, save
from diffusion_forcing.datasets.batch import VideoBatch
from diffusion_forcing.errors import UserError
from diffusion_forcing.launch.structure import check_task
from diffusion_forcing.networks.world import SIZES, WorldSize
from diffusion_forcing.networks.world_layers import Warped

SIDE, ACTIONS = 16, 3


@pytest.fixture(autouse=True)
def small_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SIZES, "A", WorldSize(widths=(8, 16, 32, 32), blocks=(0, 1, 1, 1), layers=2, embedding=16))


def options(**changes: Any) -> WorldOptions:
    architecture = {"window": 4} | changes.pop("architecture", {})
    diffusion = {"timesteps": 100, "stabilization_level": 20} | changes.pop("diffusion", {})
    small: dict[str, Any] = {
        "observation_shape": (3, SIDE, SIDE),
        "n_frames": 6,
        "context_frames": 2,
        "frame_skip": 1,
        "external_cond_dim": ACTIONS,
        "ema_decay": 0.0,
    }
    return WorldOptions(
        **small | changes,
        diffusion=WorldDiffusionOptions(**diffusion, architecture=WorldNetworkOptions(**architecture)),
    )


def world(**changes: Any) -> World:
    torch.manual_seed(0)
    made = World(options(**changes)).eval()
    with torch.no_grad():
        for parameter in made.network.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    return made


def batch(b: int = 2, t: int = 6) -> VideoBatch:
    generator = torch.Generator().manual_seed(0)
    frames = torch.randint(0, 256, (b, t, 3, SIDE, SIDE), generator=generator, dtype=torch.uint8)
    actions = torch.nn.functional.one_hot(torch.randint(ACTIONS, (b, t), generator=generator), ACTIONS).float()
    known = torch.ones(b, t, dtype=torch.bool)
    return VideoBatch(frames, actions, known, torch.ones(b, t, dtype=torch.bool))


@pytest.mark.parametrize("noise_level", ["noisy_past", "mixture"])
@pytest.mark.parametrize("objective", ["pred_edm", "pred_v"])
def test_training_lowers_the_loss(noise_level: str, objective: str) -> None:
    model = world(noise_level=noise_level, diffusion={"objective": objective})
    clips = model.encode(batch())
    draws = model.draw(clips, generator=torch.Generator().manual_seed(1))
    optimizer = torch.optim.Adam(model.network.parameters(), lr=3e-3)
    errors = []
    for _ in range(12):
        optimizer.zero_grad()
        losses = model.losses(clips, draws)
        (losses.error + model.options.warp_loss * losses.warp).backward()
        optimizer.step()
        errors.append(losses.error.item())
    assert errors[-1] < 0.9 * errors[0]
    assert losses.x0.shape == clips.tokens.shape


def test_a_noisy_past_is_drawn_apart_from_what_is_denoised() -> None:
    model = world()
    clips = model.encode(batch())
    draws = model.draw(clips, generator=torch.Generator().manual_seed(1))
    assert draws.past_levels is not None
    assert draws.past_noise is not None
    assert model.forcing.schedule.sigmas[draws.past_levels].max() < 0.35
    assert not torch.equal(draws.noise, draws.past_noise)
    again = model.draw(clips, generator=torch.Generator().manual_seed(1))
    assert torch.equal(draws.noise, again.noise)
    assert model.draw(clips)._replace(past_levels=None).past_levels is None
    assert world(noise_level="mixture").draw(clips).past_levels is None


def test_the_first_frames_and_those_that_are_not_there_do_not_count() -> None:
    model = world(unscored_frames=2)
    clips = model.encode(batch())
    clips.mask[:, 4:] = False
    draws = model.draw(clips, generator=torch.Generator().manual_seed(1))
    error, warp, _ = model.losses(clips, draws)
    noise = draws.noise.clone()
    noise[:, :2] += 1
    noise[:, 4:] += 1
    # Each frame is denoised by itself behind the past, so other noise on uncounted frames changes nothing.
    other_error, other_warp, _ = model.losses(clips, draws._replace(noise=noise))
    assert torch.equal(error, other_error)
    assert torch.equal(warp, other_warp)
    noise[:, 2] += 1
    assert not torch.equal(error, model.losses(clips, draws._replace(noise=noise)).error)


def test_the_warp_is_scored_where_it_shows_anything() -> None:
    x = torch.randn(1, 2, 3, 8, 8)
    exact = Warped(x[:, :, None].repeat(1, 1, 2, 1, 1, 1), torch.ones(1, 2, 2, 1, 8, 8), x)
    weight = torch.ones(1, 2)
    assert warp_error(exact, x, weight) == 0
    wrong = exact.frames.clone()
    wrong[:, :, 0] += 1
    assert warp_error(exact._replace(frames=wrong), x, weight) > 0
    unseen = exact.inside.clone()
    unseen[:, :, 0] = 0
    assert warp_error(exact._replace(frames=wrong, inside=unseen), x, weight) == 0


def test_the_rate_rises_stays_and_falls_to_nothing() -> None:
    factor = WarmupAndDecay(10, 0, decay=0.25, total=100)
    assert [factor(step) for step in (0, 9, 50, 75)] == [0.1, 1.0, 1.0, 1.0]
    assert factor(90) == pytest.approx(0.4)
    assert factor(100) == 0
    assert set(vars(factor)) == {
        "steps",
        "before",
    }  # what a checkpoint keeps: a resumed run has its own number of steps


# ------------------------------------------------------------------------------------------------ rollouts


@torch.no_grad()
def test_frames_of_a_rollout_are_8_bits_and_follow_from_the_seed() -> None:
    model = world()
    clip = batch(1, 14)

    def roll(seed: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        return model.predict(clip.frames[:, :2], 14, actions=clip.actions, generator=generator)

    frames = roll(0)
    assert frames.shape == (1, 14, 3, SIDE, SIDE)
    assert torch.allclose(frames * 255, (frames * 255).round(), atol=1e-3)
    assert torch.equal(frames, roll(0))
    assert not torch.equal(frames, roll(1))


@torch.no_grad()
def test_a_rollout_is_denoising_behind_a_noisy_memory() -> None:
    model = world(diffusion={"noisy_context": False})
    clip = batch(1, 9)
    cached = model.predict(clip.frames[:, :2], 9, actions=clip.actions, generator=torch.Generator().manual_seed(0))
    plain = World(options(cache="none", n_frames=9, diffusion={"noisy_context": False})).eval()
    plain.network.load_state_dict(model.network.state_dict())
    shown = plain.predict(clip.frames[:, :2], 9, actions=clip.actions, generator=torch.Generator().manual_seed(0))
    # Rounding to 8 bits may fall to the other side.
    assert (cached - shown).abs().max() <= 2.1 / 255


def test_offset_and_context_noise_reach_the_network_that_samples() -> None:
    model = World(options(ema_decay=0.9))
    forcing = model.sampling_forcing()
    assert model.sampler().noisy_context
    assert forcing.offset_noise == 0.2
    assert forcing.network is not model.network


# ------------------------------------------------------------------------------------------------ checkpoints and options


def test_its_checkpoint_comes_back_and_is_not_taken_for_another_networks(tmp_path: Path) -> None:
    model = world()
    save(tmp_path / "world", None, metadata=model.describe(), model=model.sampling_weights(), step=3)
    other = World(options())
    other.load_weights(load(tmp_path / "world"))
    mine, theirs = model.network.state_dict(), other.network.state_dict()
    assert all(torch.equal(mine[key], theirs[key]) for key in mine)
    longer = World(options(architecture={"window": 6}))
    longer.load_weights(load(tmp_path / "world"))
    with pytest.raises(UserError, match=r"window is 6.*window of 4"):
        longer.sampler()
    longer.on_train_start()
    longer.sampler()
    config = {"algorithm": {"_target_": "diffusion_forcing.algorithms.video.Video"}, "dataset": {}}
    with pytest.raises(UserError, match=r"world.*df_world"):
        check_task(config, tmp_path / "world")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"frame_stack": 2}, r"frame_stack.*2"),
        ({"norm": "clip", "cache": "none"}, r"norm.*clip"),
        ({"causal": False, "cache": "none"}, r"causal.*False"),
        ({"sink_frames": 1}, r"sink_frames.*1"),
        ({"unscored_frames": 6}, r"unscored_frames.*6"),
        ({"scheduling_matrix": "pyramid"}, r"noisy_past.*pyramid"),
        ({"observation_shape": (3, 20, 20)}, r"resolution 20"),
        ({"architecture": {"window": 2}}, r"window.*2"),
        ({"warp_loss": -1.0}, r"warp_loss.*-1"),
    ],
)
def test_what_cannot_be_is_refused(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(UserError, match=named):
        options(**changes)


def test_levels_that_cannot_be_are_refused() -> None:
    with pytest.raises(UserError, match=r"pure.*2"):
        LevelDensity(pure=2.0)
    with pytest.raises(UserError, match=r"target.*-1"):
        LevelDensity(target=(0.0, -1.0))


# ------------------------------------------------------------------------------------------------ students and their own past


def test_a_student_starts_as_its_teacher_and_its_checkpoint_says_how_few_steps_it_takes() -> None:
    model = world(ema_decay=0.5)
    before = {name: value.clone() for name, value in model.sampling_weights().items()}
    assert "sampling" not in model.metadata()
    model.distill(grid=8, steps=2)
    assert isinstance(model.forcing, Distillation)
    assert model.forcing.offset_noise == 0.2
    assert all(torch.equal(value, before[name]) for name, value in model.network.state_dict().items())
    settings = model.metadata()["sampling"]["algorithm"]["diffusion"]
    assert settings == {"distilled_steps": 2, "sampling_timesteps": 2, "ddim_sampling_eta": 1.0}
    assert not [name for name in model.state_dict() if "teacher" in name]
    saved: dict[str, Any] = {}
    model.on_save_checkpoint(saved)
    assert saved["teacher"].keys() == before.keys()
    with pytest.raises(UserError, match="no teacher"):
        model.on_load_checkpoint({})
    with pytest.raises(UserError, match=r"sampling_timesteps is 10.*at most 2"):
        options(diffusion={"distilled_steps": 2, "sampling_timesteps": 10})


def test_a_student_learns_from_its_teacher_behind_a_past() -> None:
    model = world(ema_decay=0.5)  # the average, which is the target, stands still here
    clips = model.encode(batch())
    draws = model.draw(clips, generator=torch.Generator().manual_seed(1))
    model.distill(grid=8, steps=1)
    (teacher,) = model.teachers
    weights = [value.clone() for value in teacher.state_dict().values()]
    optimizer = torch.optim.Adam(model.network.parameters(), lr=3e-4)
    errors = []
    for _ in range(20):
        optimizer.zero_grad()
        error, _, x0 = model.losses(clips, draws)
        error.backward()
        optimizer.step()
        errors.append(error.item())
    assert errors[-1] < 0.9 * errors[0]
    assert x0.shape == clips.tokens.shape
    assert all(torch.equal(a, b) for a, b in zip(weights, teacher.state_dict().values(), strict=True))


def test_the_networks_own_past_is_what_it_predicts_in_one_step_where_it_is_asked_for() -> None:
    model = world(self_rollout=0.5, self_rollout_rounds=1)
    clips = model.encode(batch())
    draws = model.draw(clips, generator=torch.Generator().manual_seed(1))
    assert draws.past_levels is not None
    nowhere, everywhere = torch.zeros(2, 6, dtype=torch.bool), torch.ones(2, 6, dtype=torch.bool)
    inputs = (draws.past_levels, clips.conditions, model.forcing)
    assert torch.equal(model._own_past(clips, draws._replace(replaced=nowhere), *inputs), clips.tokens)
    own = model._own_past(clips, draws._replace(replaced=everywhere), *inputs)
    pixels = model.frames(own) * 255
    assert torch.allclose(pixels, pixels.round(), atol=1e-3)
    plain, same, other = (
        model.losses(clips, draws._replace(replaced=replaced)).error for replaced in (None, nowhere, everywhere)
    )
    assert torch.equal(plain, same)
    assert not torch.equal(plain, other)


def test_only_the_last_part_of_training_rolls_out_itself() -> None:
    model = world(self_rollout=0.5, self_rollout_start=0.5)
    model.__dict__["_trainer"] = SimpleNamespace(max_steps=10, global_step=4)
    assert not model._rolls_out()
    model.__dict__["_trainer"] = SimpleNamespace(max_steps=10, global_step=5)
    assert model._rolls_out()
    with pytest.raises(UserError, match=r"self_rollout=0.5.*mixture"):
        options(self_rollout=0.5, noise_level="mixture")
