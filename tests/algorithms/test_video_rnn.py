"""Video with the recurrent network: what training shows clean, rollouts longer than any window, checkpoints of the other line."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from diffusion_forcing.algorithms.video import Clips, RecurrentUNetOptions, RecurrentVideo, RecurrentVideoOptions
from diffusion_forcing.checkpoints import load, save
from diffusion_forcing.errors import UserError
from diffusion_forcing.launch.structure import check_task


def options(**changes: Any) -> RecurrentVideoOptions:
    diffusion = {"network_size": 8, "sampling_timesteps": 2, **changes.pop("diffusion", {})}
    settings = {
        "observation_shape": (3, 8, 8),
        "z_shape": (4, 8, 8),
        "n_frames": 8,
        "context_frames": 4,
        "frame_stack": 2,
        "frame_skip": 1,
        "external_cond_dim": 3,
        "ema_decay": 0.0,
        "lr": 1e-2,
    }
    return RecurrentVideoOptions(**{**settings, **changes}, diffusion=RecurrentUNetOptions(**diffusion))


def clips(video: RecurrentVideo, frames: int = 8) -> Clips:
    generator = torch.Generator().manual_seed(1)
    pixels = torch.rand(2, frames, 3, 8, 8, generator=generator)
    actions = torch.eye(3)[torch.randint(3, (2, frames), generator=generator)]
    return Clips(video.tokens(pixels), torch.ones(2, frames, dtype=torch.bool), video.conditions(actions))


def build(**changes: Any) -> RecurrentVideo:
    torch.manual_seed(0)
    return RecurrentVideo(options(**changes))


@pytest.mark.parametrize(("use_snr", "use_cum_snr"), [(False, False), (True, False), (False, True), (True, True)])
def test_training_lowers_the_loss_under_every_weighting(use_snr: bool, use_cum_snr: bool) -> None:
    video = build(n_frames=4, context_frames=2, diffusion={"use_snr": use_snr, "use_cum_snr": use_cum_snr})
    batch = clips(video, frames=4)
    draws = video.draw(batch, generator=torch.Generator().manual_seed(2))
    optimizer = torch.optim.Adam(video.network.parameters(), lr=1e-2)
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        loss, _ = video.loss(batch, draws)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.95 * losses[0]


def test_skipped_frames_do_not_weaken_the_history_s_weight_as_in_the_attention_line() -> None:
    assert build(frame_skip=3, external_cond_dim=0).forcing.cum_snr_decay == pytest.approx(0.9**2)


def test_padded_frames_are_predicted_at_their_own_level_and_count_nothing() -> None:
    video = build()
    batch = clips(video)
    mask = batch.mask.clone()
    mask[:, 4:] = False
    draws = video.draw(batch, generator=torch.Generator().manual_seed(2))
    loss, x0 = video.loss(batch._replace(mask=mask), draws)
    assert torch.equal(x0, video.loss(batch, draws)[1])  # as recorded of the released code
    other = batch.tokens.clone()
    other[:, 2:] += 1
    assert torch.equal(video.loss(batch._replace(mask=mask, tokens=other), draws)[0], loss)


def test_as_many_tokens_are_shown_clean_as_asked() -> None:
    video = build(gt_cond_prob=0.25, gt_first_frame=0.5)
    batch = clips(video)
    many = Clips(batch.tokens.repeat(500, 1, 1, 1, 1), batch.mask.repeat(500, 1), None)
    clean = (video.draw(many, generator=torch.Generator().manual_seed(3)).levels == 0).float().mean(0)
    assert abs(clean[0].item() - (1 - 0.75 * 0.5)) < 0.06
    assert (clean[1:] - 0.25).abs().max() < 0.06
    assert not (build().draw(many, generator=torch.Generator().manual_seed(3)).levels == 0).float().mean() > 0.01


def test_a_rollout_goes_on_past_the_training_clip_and_listens_to_actions() -> None:
    video = build().eval()
    generator = torch.Generator().manual_seed(4)
    context = torch.rand(1, 4, 3, 8, 8, generator=generator)
    actions = torch.eye(3)[torch.randint(3, (1, 31), generator=generator)]

    def roll(told: Tensor) -> Tensor:
        return video.predict(context, 31, actions=told, generator=torch.Generator().manual_seed(5))

    whole = roll(actions)
    assert whole.shape == (1, 31, 3, 8, 8)
    assert torch.equal(whole[:, :4], context)
    changed = actions.clone()
    changed[:, 20] = changed[:, 20].roll(1, dims=-1)
    other = roll(changed)
    assert torch.equal(other[:, :20], whole[:, :20])
    assert not torch.equal(other[:, 20:], whole[:, 20:])


def test_its_checkpoint_comes_back_and_is_not_taken_for_one_of_the_attention_line(tmp_path: Path) -> None:
    video = build()
    save(tmp_path / "rnn", None, metadata=video.describe(), model=video.sampling_weights(), step=3)
    torch.manual_seed(7)
    other = RecurrentVideo(options())
    other.load_weights(load(tmp_path / "rnn"))
    mine, theirs = video.network.state_dict(), other.network.state_dict()
    assert all(torch.equal(mine[key], theirs[key]) for key in mine)
    config = {"algorithm": {"_target_": "diffusion_forcing.algorithms.video.Video"}, "dataset": {}}
    with pytest.raises(
        UserError, match=r"of the rnn line, the algorithm is of the v1.5 line: choose algorithm=df_video_rnn"
    ):
        check_task(config, tmp_path / "rnn")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"z_shape": (4, 16, 16)}, "z_shape is [4, 16, 16]; its sides must be the frame's, dataset.resolution 8"),
        ({"causal": False}, "algorithm.causal is False, but a recurrent network needs True"),
        ({"sink_frames": 2}, "algorithm.sink_frames is"),
        ({"norm": "clip"}, "algorithm.norm is 'clip', but a recurrent network"),
        ({"gt_cond_prob": 1.5}, "algorithm.gt_cond_prob is 1.5; it must lie in 0…1"),
        ({"observation_shape": (3, 12, 12), "z_shape": (4, 12, 12)}, "dataset.resolution 12 cannot be divided by 8"),
        ({"diffusion": {"network_size": 12}}, "network_size is 12"),
        ({"diffusion": {"num_gru_layers": 2}}, "num_gru_layers 2"),
        ({"diffusion": {"use_fused_snr": True}}, "use_snr=True use_cum_snr=True"),
    ],
)
def test_what_cannot_be_is_one_line(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        options(**changes)
