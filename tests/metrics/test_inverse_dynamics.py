"""Inverse dynamics: learned from shifted frames, judged on pairs, and refused where frames or actions are others than it knows."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from diffusion_forcing.errors import UserError
from diffusion_forcing.metrics.video import InverseDynamics, actions_recognised, inverse_dynamics_loss


def shifting(clips: int, time: int, seed: int) -> tuple[Tensor, Tensor]:
    """Random frames (b, t + 1, 3, 16, 16) that stay or shift by four pixels to either side, and the actions (b, t, 3) that say which."""
    generator = torch.Generator().manual_seed(seed)
    scene = torch.rand(clips, 3, 4, 4, generator=generator).repeat_interleave(4, -1).repeat_interleave(4, -2)
    moves = torch.randint(3, (clips, time), generator=generator)
    frames = [scene]
    for move in moves.T:
        shifted = [frames[-1][i].roll(4 * (int(step) - 1), dims=-1) for i, step in enumerate(move)]
        frames.append(torch.stack(shifted))
    return torch.stack(frames, dim=1), torch.eye(3)[moves]


@pytest.fixture(scope="module")
def trained() -> InverseDynamics:
    torch.manual_seed(0)
    network = InverseDynamics(3, 16, 3, width=8)
    optimizer = torch.optim.Adam(network.parameters(), 5e-3)
    for step in range(60):
        loss = inverse_dynamics_loss(network, *shifting(16, 4, seed=step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network.eval()


def test_it_learns_which_way_a_frame_moved_and_sees_that_other_actions_were_not_obeyed(
    trained: InverseDynamics,
) -> None:
    frames, actions = shifting(16, 6, seed=1000)
    told = actions_recognised(frames, actions, trained)
    assert told.shape == (16, 6)
    assert told.mean() > 0.9
    assert actions_recognised(frames, actions.roll(1, dims=-1), trained).mean() < 0.1


def test_its_checkpoint_comes_back_and_another_kind_is_refused(trained: InverseDynamics) -> None:
    weights = {name: value.half() for name, value in trained.state_dict().items()}
    again = InverseDynamics.of(trained.describe(), weights)
    frames, actions = shifting(4, 3, seed=5)
    assert torch.equal(actions_recognised(frames, actions, again), actions_recognised(frames, actions, trained))
    with pytest.raises(UserError, match=r"video.*inverse dynamics|checkpoint for video"):
        InverseDynamics.of({"task": "video"}, {})
    for sizes in ({"width": 6}, {"resolution": "x"}, {"channels": 4}, {"depth": 3}, {"actions": None}):
        metadata = trained.describe()
        with pytest.raises(UserError, match="sizes and weights do not fit"):
            InverseDynamics.of(metadata | {"sizes": metadata["sizes"] | sizes}, weights)


def test_frames_and_actions_that_it_does_not_know_are_refused(trained: InverseDynamics) -> None:
    frames, actions = shifting(1, 2, seed=0)
    with pytest.raises(UserError, match=r"3, 16, 16.*3, 8, 8"):
        actions_recognised(frames[..., :8, :8], actions, trained)
    with pytest.raises(UserError, match=r"3 actions.*6 numbers"):
        actions_recognised(frames, actions.repeat(1, 1, 2), trained)
