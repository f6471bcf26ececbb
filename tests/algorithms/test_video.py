"""The video adapter: frames and tokens, actions and conditions, padding, and options that cannot be."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from diffusion_forcing.algorithms.video import (
    Clips,
    UNetOptions,
    Video,
    VideoDiffusionOptions,
    VideoDraws,
    VideoOptions,
)
from diffusion_forcing.datasets.batch import VideoBatch
from diffusion_forcing.errors import UserError

SIZE, ACTIONS = 8, 3


def options(*, architecture: dict[str, Any] | None = None, **changes: Any) -> VideoOptions:
    sizes: dict[str, Any] = {
        "network_size": 8,
        "dim_mults": (1,),
        "attn_resolutions": (),
        "attn_heads": 1,
        "attn_dim_head": 4,
        "use_init_temporal_attn": False,
    }
    diffusion: dict[str, Any] = {"sampling_timesteps": 2} | changes.pop("diffusion", {})
    small: dict[str, Any] = {
        "observation_shape": (3, SIZE, SIZE),
        "n_frames": 6,
        "context_frames": 2,
        "frame_skip": 1,
        "ema_decay": 0.0,
    }
    return VideoOptions(
        **small | changes,
        diffusion=VideoDiffusionOptions(**diffusion, architecture=UNetOptions(**sizes | (architecture or {}))),
    )


def video(**changes: Any) -> Video:
    torch.manual_seed(0)
    made = Video(options(**changes)).eval()
    with torch.no_grad():
        for parameter in made.network.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return made


def batch(b: int = 2, t: int = 6) -> VideoBatch:
    generator = torch.Generator().manual_seed(0)
    frames = torch.randint(0, 256, (b, t, 3, SIZE, SIZE), generator=generator, dtype=torch.uint8)
    actions = torch.nn.functional.one_hot(torch.randint(ACTIONS, (b, t), generator=generator), ACTIONS).float()
    known = torch.ones(b, t, dtype=torch.bool)
    known[:, 0] = False
    return VideoBatch(frames, actions * known[..., None], known, torch.ones(b, t, dtype=torch.bool))


# ------------------------------------------------------------------------------------------------ frames and tokens


@pytest.mark.parametrize("stack", [1, 2, 3])
def test_frames_become_tokens_and_the_same_frames_again(stack: int) -> None:
    model = video(frame_stack=stack, n_frames=6, context_frames=0, data_mean=(0.1, 0.2, 0.3), data_std=(0.5, 1.0, 2.0))
    frames = batch().frames
    tokens = model.tokens(frames)
    assert tokens.shape == (2, 6 // stack, 3 * stack, SIZE, SIZE)
    # frame-major: the first three channels of the second token are frame `stack`
    first = (frames[:, stack].float() / 255 - torch.tensor([0.1, 0.2, 0.3])[:, None, None]) / torch.tensor(
        [0.5, 1.0, 2.0]
    )[:, None, None]
    torch.testing.assert_close(tokens[:, 1, :3], first)
    torch.testing.assert_close(model.frames(tokens), frames.float() / 255)
    torch.testing.assert_close(model.tokens(frames.float() / 255), tokens)


def test_frames_of_another_shape_or_number_are_refused() -> None:
    model = video(frame_stack=2)
    with pytest.raises(UserError, match=r"5 frames do not fit algorithm\.frame_stack 2"):
        model.tokens(batch(t=5).frames)
    with pytest.raises(UserError, match=r"shape \(3, 4, 8\).* the model takes \(3, 8, 8\); set dataset\.resolution"):
        model.tokens(batch().frames[..., :4, :])


# ------------------------------------------------------------------------------------------------ actions


def test_a_token_s_condition_is_its_frames_actions_and_what_is_known_of_them() -> None:
    model = video(external_cond_dim=ACTIONS, frame_stack=2)
    conditions = model.encode(batch()).conditions
    assert conditions is not None and conditions.shape == (2, 3, 2 * (ACTIONS + 1))
    given = batch()
    assert torch.equal(conditions[:, 1, :ACTIONS], given.actions[:, 2])
    assert torch.equal(conditions[:, 1, ACTIONS : 2 * ACTIONS], given.actions[:, 3])
    assert conditions[:, 0, -2:].tolist() == [[0, 1], [0, 1]]  # what led to the first frame is not known
    assert conditions[:, 1:, -2:].min() == 1


def test_a_model_without_actions_is_told_none_and_one_with_them_wants_theirs() -> None:
    assert video().encode(batch()).conditions is None
    told = video(external_cond_dim=ACTIONS)
    with pytest.raises(UserError, match=r"takes actions of 3 numbers a frame .*got none; use data with such actions"):
        told.conditions(None)
    with pytest.raises(UserError, match="got 2 numbers a frame"):
        told.conditions(torch.zeros(2, 6, 2))
    with pytest.raises(UserError, match=r"actions for 4 of 6 frames"):
        list(told.stream(batch().frames[:, :2], 6, actions=torch.zeros(2, 4, ACTIONS)))


def test_skipped_discrete_actions_lie_side_by_side_and_continuous_ones_are_summed() -> None:
    assert options(external_cond_dim=ACTIONS, frame_skip=4).action_width == 12
    assert options(external_cond_dim=ACTIONS, frame_skip=4, action_kind="continuous").action_width == 3


# ------------------------------------------------------------------------------------------------ the loss


def test_what_lies_in_padding_changes_no_bit_of_loss_or_gradient() -> None:
    model = video(external_cond_dim=ACTIONS)
    found = []
    for fill in (0, 255):
        given = batch()
        given.valid[0, 4:] = False
        given.frames[0, 4:] = fill
        clips = model.encode(given)
        draws = model.draw(clips, generator=torch.Generator().manual_seed(3))
        loss, _ = model.loss(clips, draws._replace(dropped=None))
        gradients = torch.autograd.grad(loss, list(model.network.parameters()), allow_unused=True)
        found.append((loss, [g for g in gradients if g is not None]))
    (loss, gradients), (other, others) = found
    assert torch.equal(loss, other)
    assert all(torch.equal(a, b) for a, b in zip(gradients, others, strict=True))


def test_dropped_conditions_are_conditions_of_zeros() -> None:
    model = video(external_cond_dim=ACTIONS, condition_dropout=0.5)
    clips = model.encode(batch(b=64))
    draws = model.draw(clips, generator=torch.Generator().manual_seed(0))
    assert draws.dropped is not None and 0.3 < draws.dropped.float().mean() < 0.7
    assert clips.conditions is not None
    kept = torch.where(draws.dropped[:, None, None], torch.zeros(()), clips.conditions)
    with torch.no_grad():
        by_draw, _ = model.loss(clips, draws)
        by_hand, _ = model.loss(clips._replace(conditions=kept), draws._replace(dropped=None))
        without, _ = model.loss(clips, draws._replace(dropped=None))
    assert torch.equal(by_draw, by_hand) and not torch.equal(by_draw, without)


def test_a_model_that_knows_the_clip_loses_nothing() -> None:
    """pred_x0 of the truth: the loss is 0, whatever the levels."""
    model = video(diffusion={"objective": "pred_x0"})
    clips = model.encode(batch())

    class Truth(torch.nn.Module):
        def forward(self, x: Tensor, k: Tensor, *_: Any, **__: Any) -> tuple[Tensor, None]:
            return clips.tokens, None

    model.forcing.network = Truth()
    loss, x0 = model.loss(clips, model.draw(clips))
    assert loss == 0 and torch.equal(x0, clips.tokens)
    wrong = Clips(clips.tokens + 1, clips.mask, None)
    assert model.loss(wrong, VideoDraws(torch.full((2, 6), 500), torch.zeros_like(clips.tokens), None))[0] > 0


# ------------------------------------------------------------------------------------------------ rolling out


@pytest.mark.parametrize("stack", [1, 2])
@pytest.mark.parametrize(("chunk", "length"), [(1, 9), (2, 9), (-1, 5)])
def test_a_rollout_keeps_its_context_and_ends_where_it_should(chunk: int, length: int, stack: int) -> None:
    model = video(chunk_size=chunk, frame_stack=stack, n_frames=6)
    context = batch().frames[:, :2]
    rolled = model.predict(context, length)
    assert rolled.shape == (2, length, 3, SIZE, SIZE)
    assert torch.equal(rolled[:, :2], context.float() / 255)
    assert rolled.min() >= 0 and rolled.max() <= 1 and rolled[:, 2:].std() > 0


# ------------------------------------------------------------------------------------------------ options


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"observation_shape": (3, 8, 16)}, r"dataset\.observation_shape is \[3, 8, 16\]; frames are square"),
    ({"data_mean": (0.1, 0.2)}, r"dataset\.data_mean has 2 numbers; give one, or one for each of 3 channels"),
    ({"data_std": 0.0}, r"dataset\.data_std is 0\.0; every standard deviation must be above 0"),
    ({"external_cond_dim": -1}, r"dataset\.external_cond_dim is -1"),
    ({"n_frames": 5, "frame_stack": 2}, r"dataset\.n_frames 5 is no multiple of algorithm\.frame_stack 2"),
    ({"context_frames": 6}, r"dataset\.context_length 6 leaves no room in the window of 6 frames"),
    ({"chunk_size": 0}, r"algorithm\.chunk_size is 0; it must be 1 or more, or -1"),
    ({"chunk_size": 7}, r"algorithm\.chunk_size 7 exceeds the window of 6 tokens"),
    ({"sink_frames": 6}, r"algorithm\.sink_frames is 6"),
    ({"norm": "clip"}, r"algorithm\.cache=exact with norm=clip.*pass algorithm\.cache=none"),
    ({"cache": "streaming", "causal": False}, r"algorithm\.cache=streaming with causal=False"),
    ({"condition_dropout": 1.5}, r"algorithm\.condition_dropout is 1\.5"),
    ({"condition_scale": 2.0}, r"there are no actions to guide by"),
    ({"history_level": 999}, r"algorithm\.history_level is 999; it must lie in 0…998"),
    ({"guidance_scale": 1.0}, r"algorithm\.guidance_scale is 1\.0"),
    ({"metrics": ("fdv",)}, r"algorithm\.metrics 'fdv' is unknown.*fvd"),
    ({"architecture": {"dim_mults": ()}}, r"architecture\.dim_mults is empty"),
    ({"architecture": {"dim_mults": (1, 2, 4, 8, 16)}}, r"dataset\.resolution 8 cannot be divided by 16"),
    ({"architecture": {"network_size": 12}}, r"all must be multiples of 8"),
    ({"architecture": {"attn_dim_head": 3}}, r"rotary positions turn pairs: an even number"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED, ids=lambda value: str(value)[:40])
def test_options_that_cannot_be_are_refused_by_their_key(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        options(**changes)
    assert "\n" not in str(caught.value)
