"""The robot's adapter and policy: tokens there and back, parts with levels of their own, memory, and what is not seen does not count."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor

from diffusion_forcing.algorithms.base import TransformerOptions
from diffusion_forcing.algorithms.robot.algorithm import (
    ImageEncoderOptions,
    Robot,
    RobotDiffusionOptions,
    RobotDraws,
    RobotPolicyOptions,
)
from diffusion_forcing.algorithms.robot.augmentation import is_blocked, jitter, paste_patches, random_shift
from diffusion_forcing.algorithms.robot.policy import LeRobotPolicy, RobotPolicy
from diffusion_forcing.algorithms.robot.tokens import Flat, Tiled
from diffusion_forcing.algorithms.video import UNetOptions
from diffusion_forcing.datasets.batch import RobotBatch
from diffusion_forcing.errors import UserError

STACK, SIZE, CAMERAS = 3, 8, 2
KINDS = [("rnn", "tiled"), ("attention", "tiled"), ("rnn", "vector"), ("attention", "vector")]
TRAINED = [pytest.param(*kind, marks=pytest.mark.slow) if kind[1] == "tiled" else kind for kind in KINDS]


def options(network: str = "attention", packing: str = "vector", **changes: Any) -> RobotPolicyOptions:
    diffusion = {
        "network_size": 8 if packing == "tiled" else 4,
        "sampling_timesteps": 3,
        "architecture": UNetOptions(
            network_size=8, attn_heads=2, attn_dim_head=8, dim_mults=(1, 2), attn_resolutions=(4,)
        ),
        "transformer": TransformerOptions(network_size=16, num_layers=2, attn_heads=2, dim_feedforward=16),
        "eyes": ImageEncoderOptions(features=8, width=8),
        **changes.pop("diffusion", {}),
    }
    settings = {
        "observation_shape": (3 * CAMERAS + STACK, SIZE, SIZE),
        "action_stack": STACK,
        "n_frames": 8,
        "action_mean": (1.2, 0.7, 0.6, *(0.0,) * 9, 0.5),
        "action_std": (0.2, 0.3, 0.2, *(1.0,) * 9, 0.5),
        "z_shape": (4, SIZE, SIZE) if packing == "tiled" else (12,),
        "network": network,
        "action_packing": packing,
        "ema_decay": 0.0,
        "crop": 1,
    }
    return RobotPolicyOptions(**{**settings, **changes}, diffusion=RobotDiffusionOptions(**diffusion))


def robot(network: str = "attention", packing: str = "vector", **changes: Any) -> Robot:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Robot(options(network, packing, **changes)).eval()


def batch(time: int = 4, size: int = 2) -> RobotBatch:
    drawn = torch.Generator().manual_seed(3)
    frames = torch.randint(0, 256, (size, time, CAMERAS, 3, SIZE, SIZE), generator=drawn, dtype=torch.uint8)
    actions = torch.rand(size, time, STACK, 8, generator=drawn)
    actions[..., 3:7] = torch.tensor([0.0, 0.5**0.5, 0.0, 0.5**0.5])
    valid = torch.ones(size, time, dtype=torch.bool)
    valid[-1, -1] = False
    return RobotBatch(frames, actions, valid)


@pytest.mark.parametrize(("network", "packing"), KINDS)
def test_tokens_come_back_as_what_they_were(network: str, packing: str) -> None:
    policy, data = robot(network, packing), batch()
    tokens = policy.tokens(data.frames, data.actions)
    assert tokens.shape == (2, 4, *policy.layout.shape)
    frames, actions = policy.decode(tokens)
    torch.testing.assert_close(frames, data.frames.float() / 255, rtol=0, atol=1e-6)
    torch.testing.assert_close(actions, data.actions, rtol=0, atol=1e-5)


@pytest.mark.parametrize("layout", [Tiled(2, 3, 8), Flat(2, 3, 8)])
def test_every_element_of_a_token_belongs_to_the_part_it_came_from(layout: Tiled | Flat) -> None:
    parts = layout.parts()
    for part in range(3):
        frames, numbers = torch.zeros(1, 1, 2, 3, 8, 8), torch.zeros(1, 1, 3, 13)
        if part < 2:
            frames[:, :, part] = 1
        else:
            numbers[:] = 1
        assert torch.equal(layout.pack(frames, numbers)[0, 0] == 1, parts == part)


@pytest.mark.slow
@pytest.mark.parametrize(("network", "packing"), TRAINED)
def test_training_lowers_the_loss(network: str, packing: str) -> None:
    policy, data = robot(network, packing, part_noise=0.3, random_start=0.3).train(), batch()
    tokens = policy.tokens(data.frames, data.actions)
    draws = policy.draw(tokens, torch.tensor([True, False]), generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.Adam(policy.network.parameters(), lr=3e-3)
    losses = []
    for _ in range(15):
        optimizer.zero_grad()
        loss, _ = policy.loss(tokens, data.valid, draws)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


def test_the_loss_is_the_share_of_actions_and_of_pictures_and_padding_counts_nothing() -> None:
    data = batch()
    tokens = robot().tokens(data.frames, data.actions)
    losses = {}
    for share in (0.0, 0.25, 1.0):
        policy = robot(action_share=share)
        draws = policy.draw(tokens, None, generator=torch.Generator().manual_seed(0))
        losses[share] = policy.loss(tokens, data.valid, draws)[0].item()
        other = tokens.clone()
        other[-1, -1] += 1.0
        assert policy.loss(other, data.valid, draws)[0].item() == pytest.approx(losses[share], rel=1e-6)
    assert losses[0.25] == pytest.approx(0.75 * losses[0.0] + 0.25 * losses[1.0], rel=1e-5)
    assert robot("rnn", "tiled").action_share == pytest.approx(STACK / (STACK + 6))


def test_a_part_is_never_cleaner_than_its_token_and_the_network_is_told_by_how_much() -> None:
    policy = robot(part_noise=0.5, random_start=1.0)
    tokens = torch.zeros(64, 6, *policy.layout.shape)
    begun = torch.arange(64) < 32
    draws = policy.draw(tokens, begun, generator=torch.Generator().manual_seed(0))
    assert draws.part_levels is not None
    assert (draws.part_levels >= draws.levels[..., None]).all()
    assert draws.part_levels.max() == 999
    changed = (draws.part_levels > draws.levels[..., None])[:, 1:].float().mean()
    assert 0.45 < changed < 0.55
    assert (draws.part_levels[begun, 0, -1] == 999).all()
    told = policy.part_conditions(draws.part_levels, draws.levels)
    assert told.min() == 0 and told.max() <= 1


def test_a_part_of_pure_noise_shows_the_network_nothing_of_the_data() -> None:
    policy, data = robot(part_noise=0.5), batch(time=1)
    x = policy.tokens(data.frames, data.actions)
    clean, noise = torch.full((2, 1), -1), torch.randn_like(x)
    levels = torch.tensor([999, -1, -1]).expand(2, 1, 3)
    shown = policy.noise_parts(x, clean, levels, noise)
    first = policy.part_of == 0
    torch.testing.assert_close(shown[..., first], noise[..., first], rtol=0, atol=1e-3)
    assert torch.equal(shown[..., ~first], x[..., ~first])


def test_the_draws_of_a_seed_are_the_same_and_without_part_noise_nothing_is_told() -> None:
    policy = robot(part_noise=0.5)
    tokens = torch.zeros(2, 3, *policy.layout.shape)
    first, again = (policy.draw(tokens, None, generator=torch.Generator().manual_seed(5)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))  # type: ignore[arg-type]
    plain: RobotDraws = robot().draw(tokens, None)
    assert plain.part_levels is None


def test_pictures_are_moved_together_and_nothing_else_happens_at_zero() -> None:
    frames = batch().frames
    assert torch.equal(random_shift(frames, 0), frames.float() / 255)
    found = random_shift(frames, 2, generator=torch.Generator().manual_seed(0))
    assert not torch.equal(found, frames.float() / 255)
    padded = torch.nn.functional.pad((frames.float() / 255).flatten(0, 2), (2,) * 4, mode="replicate")
    padded = padded.unflatten(0, frames.shape[:3])
    for row in range(2):
        for camera in range(CAMERAS):
            crops = [
                (down, across)
                for down in range(5)
                for across in range(5)
                if torch.equal(
                    padded[row, :, camera, :, down : down + SIZE, across : across + SIZE], found[row, :, camera]
                )
            ]
            assert len(crops) == 1  # one shift for all times


def test_jitter_and_patches_stay_in_range_and_do_not_edit_what_they_are_given() -> None:
    frames = batch().frames.float() / 255
    before = frames.clone()
    generator = torch.Generator().manual_seed(0)
    for changed in (jitter(frames, 0.3, generator=generator), paste_patches(frames, 3, generator=generator)):
        assert changed.min() >= 0 and changed.max() <= 1
        assert not torch.equal(changed, frames)
    assert torch.equal(frames, before)
    assert jitter(frames, 0.0) is frames and paste_patches(frames, 0) is frames


def test_patches_are_rectangles_that_stay_and_later_ones_lie_on_top() -> None:
    frames = torch.rand(8, 3, CAMERAS, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    changed = (paste_patches(frames, 1, generator=torch.Generator().manual_seed(1)) != frames).any(dim=3)
    assert torch.equal(changed[:, 0], changed[:, 2])
    count = 0
    for mask in changed[:, 0].flatten(0, 1):
        rows, columns = mask.any(dim=1), mask.any(dim=0)
        assert torch.equal(mask, rows[:, None] & columns[None])
        assert rows.sum() <= 5 and columns.sum() <= 5  # an eighth of the image, and one
        count += bool(rows.any())
    assert 2 <= count <= 14


def test_a_sequence_begun_later_is_the_rest_of_it() -> None:
    policy, data = robot(crop=0, jitter=0.0, random_start=1.0, part_noise=0.1), batch(time=6)
    later, begun = policy.augment(data, generator=torch.Generator().manual_seed(2))
    assert begun is not None and begun.all()
    for row in range(2):
        known = int(later.valid[row].sum())
        start = int(data.valid[row].sum()) - known
        assert torch.equal(later.actions[row, :known], data.actions[row, start : start + known])
        torch.testing.assert_close(later.frames[row, :known], data.frames[row, start : start + known].float() / 255)


def test_a_camera_that_shows_one_colour_is_blocked() -> None:
    frames = batch().frames[:, 0].clone()
    assert not is_blocked(frames, 0.02).any()
    frames[1, 0] = 40
    assert is_blocked(frames, 0.02).tolist() == [[False, False], [True, False]]


STATE = torch.tensor([1.2, 0.7, 0.6, 0.0, 0.5**0.5, 0.0, 0.5**0.5, 0.0])


def acted(policy: RobotPolicy, looks: Tensor) -> Tensor:
    """The actions after each of looks (n, 2, cameras, 3, h, w)."""
    policy.reset()
    found = []
    for frames in looks:
        policy.generator = torch.Generator().manual_seed(7)
        policy.observe(frames, state=STATE, executed=None if not found else found[-1])
        policy.generator = torch.Generator().manual_seed(8)
        found.append(policy.act()[0])
    return torch.stack(found)


@pytest.mark.parametrize(("network", "packing"), TRAINED)
def test_what_was_seen_before_changes_what_is_done_unless_nothing_is_remembered(network: str, packing: str) -> None:
    drawn = torch.Generator().manual_seed(1)
    looks = torch.randint(0, 256, (3, 2, CAMERAS, 3, SIZE, SIZE), generator=drawn, dtype=torch.uint8)
    other = looks.clone()
    other[0] = 255 - other[0]
    for memory, part_noise in ((True, 0.0), (True, 0.2), (False, 0.2)):
        policy = RobotPolicy(robot(network, packing, memory=memory, part_noise=part_noise))
        one, two = acted(policy, looks), acted(policy, other)
        assert one.shape == (3, 2, STACK, 8)
        assert torch.equal(one, acted(policy, looks))
        assert (one[0] - two[0]).abs().max() > 1e-5
        if memory:
            assert (one[2] - two[2]).abs().max() > 1e-7
        else:
            assert torch.equal(one[2], two[2])


@torch.no_grad()
def test_acting_is_sampling_the_next_token_behind_the_past() -> None:
    """The policy's memory, token by token, against the sampler's own rollout over the same tokens."""
    model = robot("rnn", "vector")
    data = batch(time=3, size=1)
    tokens = model.tokens(data.frames, data.actions)
    policy = RobotPolicy(model)
    for token in range(3):
        policy.observe(data.frames[:, token], executed=data.actions[:, token])
    policy.generator = torch.Generator().manual_seed(4)
    actions, frames = policy.act()
    chunks = model.sampler().stream(tokens, 4, cache="streaming", generator=torch.Generator().manual_seed(4))
    expected = model.decode(next(iter(chunks)))
    torch.testing.assert_close(actions, expected[1][:, 0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(frames, expected[0][:, 0].clamp(0, 1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("part_noise", [0.0, 0.2])
def test_a_blocked_camera_shows_nothing_and_the_other_still_counts(part_noise: float) -> None:
    looks = torch.randint(0, 256, (1, 2, CAMERAS, 3, SIZE, SIZE), dtype=torch.uint8)
    covered = looks.clone()
    covered[:, :, 0] = 40
    painted = covered.clone()
    painted[:, :, 0] = 200  # blocked by another colour
    other = covered.clone()
    other[:, :, 1] = 255 - other[:, :, 1]
    policy = RobotPolicy(robot(part_noise=part_noise))
    assert torch.allclose(acted(policy, covered), acted(policy, painted), atol=1e-2)
    difference = (acted(policy, covered) - acted(policy, other)).abs().max()
    if part_noise:
        assert difference > 1e-4
        trusting = RobotPolicy(robot(part_noise=part_noise, detect_blocked=False))
        assert (acted(trusting, covered) - acted(trusting, painted)).abs().max() > 1e-4
    else:  # the whole token is as noisy as its worst camera
        assert difference < 1e-2


def test_a_noise_level_of_a_camera_may_be_told() -> None:
    looks = torch.randint(0, 256, (1, 2, CAMERAS, 3, SIZE, SIZE), dtype=torch.uint8)
    other = looks.clone()
    other[:, :, 1] = 255 - other[:, :, 1]
    deaf = RobotPolicy(robot(part_noise=0.2, observation_noise_level=(0, 999)))
    assert torch.allclose(acted(deaf, looks), acted(deaf, other), atol=1e-2)
    half = RobotPolicy(robot(part_noise=0.2, observation_noise_level=(0, 300)))
    assert not torch.allclose(acted(half, looks), acted(half, other), atol=1e-4)


def test_a_window_that_is_full_slides() -> None:
    policy = RobotPolicy(robot(n_frames=3))
    looks = torch.randint(0, 256, (8, 2, CAMERAS, 3, SIZE, SIZE), dtype=torch.uint8)
    assert torch.isfinite(acted(policy, looks)).all()


def test_next_token_prediction_is_one_flag() -> None:
    for flag in ({"gt_cond_prob": 1.0}, {"noise_level": "teacher_forcing"}):
        policy, data = robot(part_noise=0.3, gt_first_frame=0.5, **flag), batch()
        assert policy.options.noise_level == "teacher_forcing" and policy.options.part_noise == 0
        tokens = policy.tokens(data.frames, data.actions)
        draws = policy.draw(tokens, None, generator=torch.Generator().manual_seed(0))
        one, _ = policy.loss(tokens, data.valid, draws)
        assert torch.isfinite(one)
        assert (draws.levels > 9).float().mean() > 0.9  # every token is noised; what it sees before it is clean


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"observation_shape": (9, 8, 16)}, "observation_shape"),
        ({"n_cameras": 3}, "observation_shape"),
        ({"observation_shape": (9, 12, 12)}, "a multiple of 8"),
        ({"action_mean": (0.0,) * 8}, "action_mean has 8 numbers"),
        ({"action_std": (0.0,) * 13}, "dataset.action_std"),
        ({"z_shape": (4, 8, 8), "network": "rnn"}, "algorithm.z_shape is [4, 8, 8]"),
        ({"packing": "tiled", "network": "rnn", "z_shape": (4, 16, 16)}, "[channels,8,8]"),
        ({"packing": "tiled", "network": "rnn", "diffusion": {"network_size": 12}}, "network_size is 12"),
        ({"network": "rnn", "diffusion": {"num_gru_layers": 5}}, "num_gru_layers=5"),
        ({"part_noise": 0.1, "diffusion": {"objective": "pred_v"}}, "pred_x0"),
        ({"part_noise": 1.5}, "0…1"),
        ({"observation_noise_level": (1, 2, 3)}, "one for each of 2 cameras"),
        ({"observation_noise_level": 1000}, "0…999"),
        ({"causal": False}, "algorithm.causal is False"),
        ({"guidance_scale": 1.0}, "guidance_scale is 1.0"),
        (
            {"noise_level": "full_sequence", "scheduling_matrix": "full_sequence", "gt_first_frame": 0.0},
            "noise_level=full_sequence",
        ),
        ({"crop": 4}, "algorithm.crop is 4"),
        ({"chunk_size": 0}, "chunk_size is 0"),
        ({"frame_stack": 2}, "frame_stack is 2"),
    ],
)
def test_what_cannot_be_is_one_line(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=re.escape(said)):
        options(**changes)


def test_pictures_of_another_size_and_a_policy_that_saw_nothing_are_one_line() -> None:
    policy = robot()
    with pytest.raises(UserError, match=r"dataset\.resolution"):
        policy.tokens(torch.zeros(1, 1, 2, 3, 16, 16), torch.zeros(1, 1, STACK, 8))
    with pytest.raises(UserError, match=r"dataset\.action_stack"):
        policy.tokens(torch.zeros(1, 1, 2, 3, SIZE, SIZE), torch.zeros(1, 1, 5, 8))
    with pytest.raises(UserError, match="observed nothing"):
        RobotPolicy(policy).act()
    with pytest.raises(UserError, match="pass state"):
        RobotPolicy(policy).observe(torch.zeros(1, 2, 3, SIZE, SIZE))


def test_the_policy_with_lerobots_methods_gives_the_same_actions_one_at_a_time() -> None:
    model, data = robot(), batch(time=2)
    state = data.actions[:, 0, 0]

    def seen(token: int) -> dict[str, Tensor]:
        left, right = data.frames[:, token].unbind(dim=1)
        return {"observation.images.left": left, "observation.images.right": right, "observation.state": state}

    ours = RobotPolicy(model, generator=torch.Generator().manual_seed(0))
    theirs = LeRobotPolicy(model, cameras=("left", "right"), generator=torch.Generator().manual_seed(0))
    for token in range(2):
        ours.observe(data.frames[:, token], state=state)
        expected, _ = ours.act()
        # between two questions to the network nothing is looked at
        actions = [theirs.select_action(seen(token) if n == 0 else {}) for n in range(STACK)]
        torch.testing.assert_close(torch.stack(actions, dim=1), expected, rtol=0, atol=0)
    theirs.select_action(seen(0))
    theirs.reset()
    with pytest.raises(UserError, match=re.escape("observation.images.left")):
        theirs.select_action({"observation.state": state})
    with pytest.raises(UserError, match="cameras"):
        LeRobotPolicy(model, cameras=("front",))
