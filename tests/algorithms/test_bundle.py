from __future__ import annotations

import pytest
import torch

from diffusion_forcing.algorithms.planning.tokens import Bundle
from diffusion_forcing.errors import UserError
from tests.algorithms.small import STATISTICS, batch, randn

WIDTHS = {"x": 2, "xv": 4, "xva": 6}


def bundle(variant: str = "xva", **changes: object) -> Bundle:
    return Bundle(**{**STATISTICS[variant], "frame_stack": 3, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize("variant", WIDTHS)
def test_decoding_gives_back_the_steps_that_were_encoded(variant: str) -> None:
    made, packed = batch(), bundle(variant)
    tokens, _ = packed.encode(made.observations, made.actions, made.rewards, made.valid[:, 1:])
    assert packed.width == WIDTHS[variant]
    assert tokens.shape == (3, 5, packed.token_width) == (3, 5, 3 * WIDTHS[variant])
    steps = packed.decode(packed.unstack(tokens[:, 1:]))
    o, a = packed.observation_dim, packed.action_dim
    # future step i is the observation it leads to and the action that led there
    assert torch.allclose(steps.observations, made.observations[:, 1:, :o], atol=1e-5)
    assert torch.allclose(steps.actions, made.actions[:, :-1, :a], atol=1e-5)
    assert steps.rewards.shape == (3, 12, 0)


def test_a_reward_is_the_last_of_a_step() -> None:
    made, packed = batch(), bundle("xva", reward=(0.5, 2.0))
    tokens, _ = packed.encode(made.observations, made.actions, made.rewards, made.valid[:, 1:])
    assert packed.width == 7
    frames = packed.unstack(tokens)
    assert torch.allclose(frames[:, 3:, -1], (made.rewards[:, :-1] - 0.5) / 2.0)
    assert (frames[:, :3, -1] == 0).all()
    assert torch.allclose(packed.decode(frames[:, 3:]).rewards[..., 0], made.rewards[:, :-1], atol=1e-6)


@pytest.mark.parametrize(("padding_mode", "repeated"), [("same", [1, 1, 1]), ("zero", [0, 0, 1])])
def test_token_zero_is_the_present_without_action(padding_mode: str, repeated: list[int]) -> None:
    made, packed = batch(), bundle("xva", padding_mode=padding_mode)
    tokens, _ = packed.encode(made.observations, made.actions, made.rewards, made.valid[:, 1:])
    first = packed.unstack(tokens[:, :1])
    normalised = (made.observations[:, 0] - packed.mean[:4]) / packed.std[:4]
    for frame, factor in enumerate(repeated):
        assert torch.equal(first[:, frame, :4], factor * normalised)
    assert (first[..., 4:] == 0).all()
    assert torch.equal(packed.present(made.observations[:, 0]), tokens[:, :1])
    assert torch.equal(packed.present_normalized(normalised), tokens[:, :1])


def test_stacking_is_frame_major_and_undone() -> None:
    packed = bundle("x")
    frames = torch.arange(2 * 6 * 2.0).reshape(2, 6, 2)
    tokens = packed.stack(frames)
    assert tokens[0, 1].tolist() == [6, 7, 8, 9, 10, 11]  # steps 3, 4 and 5, each (x, y)
    assert torch.equal(packed.unstack(tokens), frames)


def test_frames_are_real_until_the_first_step_that_leads_nowhere() -> None:
    packed = bundle("x")
    nonterminal = torch.ones(3, 12, dtype=torch.bool)
    nonterminal[1, 4] = False
    nonterminal[2, 0] = False
    nonterminal[1, 6:] = True  # after an end nothing is real again
    _, mask = packed.encode(randn(3, 13, 4), randn(3, 13, 2), randn(3, 13), nonterminal)
    assert mask.dtype == torch.bool
    assert mask.sum(dim=1).tolist() == [15, 3 + 4, 3]
    assert (mask.long().diff(dim=1) <= 0).all()


def test_packing_leaves_its_inputs_alone() -> None:
    made = batch()
    kept = [part.clone() for part in made]
    bundle("xva", padding_mode="zero").encode(made.observations, made.actions, made.rewards, made.valid[:, 1:])
    assert all(torch.equal(a, b) for a, b in zip(kept, made, strict=True))


def test_statistics_move_with_the_module_but_are_not_its_state() -> None:
    packed = bundle("xva")
    assert not packed.state_dict()
    assert packed.double().mean.dtype == torch.float64


@pytest.mark.parametrize("length", [1, 3, 14])
def test_trajectories_that_do_not_fit_the_stack_are_refused(length: int) -> None:
    made = batch(length=length)
    with pytest.raises(UserError, match=rf"trajectories of {length} steps do not fit frame_stack 3"):
        bundle("x").encode(made.observations, made.actions, made.rewards, made.valid[:, 1:])


@pytest.mark.parametrize(("name", "observed", "acted"), [("observations", 3, 2), ("actions", 4, 1)])
def test_data_with_fewer_numbers_than_the_means_is_refused(name: str, observed: int, acted: int) -> None:
    with pytest.raises(UserError, match=rf"{min(observed, acted) if acted == 1 else observed} {name}"):
        bundle("xva").encode(
            randn(1, 13, observed), randn(1, 13, acted), randn(1, 13), torch.ones(1, 12, dtype=torch.bool)
        )
