"""A real checkpoint of the released video code: loaded, gone on with, rolled out."""

from __future__ import annotations

import json

import pytest
import torch

from diffusion_forcing.algorithms.video import Clips, Video, VideoDraws
from diffusion_forcing.checkpoints import load
from diffusion_forcing.released.importer import our_names
from diffusion_forcing.released.options import video_options_from_released
from tests.parity.recorded import DATA, NETWORK, Recording, flip, recording
from tests.parity.test_video_rollouts import rolled_out

CHECKPOINT = DATA / "ckpt_video.ckpt"


@pytest.fixture(scope="module")
def expected() -> Recording:
    return recording("ckpt_video_expect")


@pytest.fixture(scope="module")
def loaded(expected: Recording) -> Video:
    video = Video(video_options_from_released(expected.meta["config"]))
    video.load_weights(load(CHECKPOINT))
    return video


def test_a_released_checkpoint_gives_the_recorded_output(expected: Recording, loaded: Video) -> None:
    with torch.no_grad():
        output, _ = loaded.sampling_network(flip(expected["x"]), flip(expected["k"]))
    expected.agrees(flip(output), "out")


def test_a_released_checkpoint_rolls_out_the_recorded_frames(expected: Recording, loaded: Video) -> None:
    frames = rolled_out(expected, loaded, "rollout.")
    expected.agrees(flip(frames), "rollout.xs_pred", relative=1e-4)


def test_three_training_steps_end_in_the_released_weights_and_optimiser_state(expected: Recording) -> None:
    video = Video(video_options_from_released(expected.meta["config"]))
    video.network.load_state_dict(expected.below(f"init.{NETWORK}"))
    configured = video.configure_optimizers()
    optimizer = configured["optimizer"]
    scheduler = configured["lr_scheduler"]["scheduler"]  # type: ignore[index]
    losses, rates = [], []
    for step, rate in enumerate(expected["lrs"].tolist()):
        recorded = expected.below(f"step{step}.")
        tokens = video.tokens(recorded["batch.0"])
        clips = Clips(tokens, torch.ones(tokens.shape[:2], dtype=torch.bool), None)
        draws = VideoDraws(flip(recorded["randint.0"]), flip(recorded["noise_raw"]), None)
        rates.append(optimizer.param_groups[0]["lr"])
        for group in optimizer.param_groups:
            group["lr"] = rate  # the released warm-up starts at the full rate by mistake; ours does not
        optimizer.zero_grad()
        loss, _ = video.loss(clips, draws)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(video.network.parameters(), expected.meta["gradient_clip_val"])
        optimizer.step()
        scheduler.step()
        losses.append(loss.detach())
    expected.agrees(torch.stack(losses), "losses")
    # step i runs at (i + 1)/warmup: theirs, but for the first
    assert rates == pytest.approx([8e-9, 1.6e-8, 2.4e-8])
    assert rates[:2] == pytest.approx(expected["lrs"][1:].tolist())

    released = torch.load(CHECKPOINT, weights_only=True)
    theirs = our_names({k.removeprefix(NETWORK): v for k, v in released["state_dict"].items() if k.startswith(NETWORK)})
    start = our_names(expected.below(f"init.{NETWORK}"))
    facts = json.loads((DATA / "ckpt_video.json").read_text())
    rounding = our_names({name.removeprefix("model."): torch.empty(0) for name in facts["adam_noise_params"]})
    for name, value in video.network.state_dict().items():
        difference, moved = (value - theirs[name]).abs(), (theirs[name] - start[name]).abs().max()
        if name in rounding:
            # a bias before a normalisation moves nothing: its gradient is 0, and Adam makes steps out of the rounding
            assert difference.max() <= 2 * expected["lrs"].sum(), name
        else:
            # Adam's first step is g/(|g| + 1e-8): where g itself is near 1e-8 its rounding shows, in a few elements
            assert difference.max() <= 5e-2 * moved, name
            assert (difference > 1e-2 * moved).float().mean() <= 2e-3, name
    moments = released["optimizer_states"][0]["state"]
    ours = dict(video.network.named_parameters())
    for index, theirs_name in enumerate(facts["optimizer_param_names"]):
        if theirs_name.endswith("freqs"):
            continue
        (name,) = our_names({theirs_name.removeprefix("model."): torch.empty(0)})
        for moment in ("exp_avg", "exp_avg_sq"):
            end = moments[index][moment]
            assert torch.allclose(
                optimizer.state[ours[name]][moment], end, rtol=1e-4, atol=2e-5 * end.abs().max().item() + 1e-9
            ), (name, moment)


def test_the_optimiser_is_the_released_one(expected: Recording) -> None:
    video = Video(video_options_from_released(expected.meta["config"]))
    released = torch.load(CHECKPOINT, weights_only=True)
    theirs = released["optimizer_states"][0]["param_groups"][0]
    (group,) = video.configure_optimizers()["optimizer"].param_groups
    names = json.loads((DATA / "ckpt_video.json").read_text())["optimizer_param_names"]
    learnt = [name for name in names if not name.endswith("freqs")]
    assert len(group["params"]) == len(learnt)
    for name in ("betas", "eps", "weight_decay", "amsgrad"):
        assert group[name] == theirs[name], name
