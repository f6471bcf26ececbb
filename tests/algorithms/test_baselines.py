"""`algorithm.noise_level` in every task: it trains, and sampling shows the network no levels but those of its training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from diffusion_forcing.algorithms.base import ForcingAlgorithm
from diffusion_forcing.errors import UserError
from tests.algorithms import small, test_forecasting, test_planning_rnn, test_video, test_video_rnn

K = 1000
MATRIX = {"full_sequence": "full_sequence", "teacher_forcing": "autoregressive"}
TASKS = ("planning", "planning_causal", "planning_rnn", "video", "video_rnn", "rnn", "transformer")
BASELINES = tuple(MATRIX)


def chosen(kind: str, chunk: int = 1) -> dict[str, Any]:
    return {
        "noise_level": kind,
        "scheduling_matrix": MATRIX[kind],
        "chunk_size": -1 if kind == "full_sequence" else chunk,
    }


def build(task: str, kind: str) -> ForcingAlgorithm:
    match task:
        case "planning" | "planning_causal":
            return small.planning(causal=task == "planning_causal", **chosen(kind, -1), guidance_scale=1.0)
        case "planning_rnn":
            return test_planning_rnn.planning(**chosen(kind, -1), guidance_scale=1.0)
        case "video":
            return test_video.video(**chosen(kind))
        case "video_rnn":
            return test_video_rnn.build(**chosen(kind))
    return test_forecasting.build(network=task, **chosen(kind))


def train(built: Any, task: str, generator: torch.Generator) -> Tensor:
    """The loss of a batch, as training_step has it."""
    if task.startswith("planning"):
        tokens, mask = built.encode(small.batch())
        loss: Tensor = built.loss(tokens, mask, built.draw(*tokens.shape[:2], generator=generator))[0]
        return loss
    if task.startswith("video"):
        clips = test_video_rnn.clips(built) if task == "video_rnn" else built.encode(test_video.batch())
        return built.loss(clips, built.draw(clips, generator=generator))[0]  # type: ignore[no-any-return]
    encoded = built.encode(test_forecasting.batch(), built.network)
    return built.loss(encoded, *built.draw(encoded.x, generator=generator))  # type: ignore[no-any-return]


def sample(built: Any, task: str) -> Tensor:
    """What it samples; of video beyond the window."""
    generator = torch.Generator().manual_seed(0)
    if task.startswith("planning"):
        planned: Tensor = built.planner().plan_normalized(
            small.randn(2, 2), small.randn(2, 2, seed=1), 9, generator=generator
        )
        return planned
    if task.startswith("video"):
        context, length = (4, 14) if task == "video_rnn" else (2, 11)
        actions = torch.eye(3)[torch.zeros(2, length, dtype=torch.long)] if task == "video_rnn" else None
        return built.predict(torch.rand(2, context, 3, 8, 8), length, actions=actions, generator=generator)  # type: ignore[no-any-return]
    return built.forecast(test_forecasting.batch(length=16), generator=generator)  # type: ignore[no-any-return]


def levels_shown(built: ForcingAlgorithm, call: Callable[[], Any]) -> list[Tensor]:
    """The levels (b, t) that the network is shown in `call`."""
    seen: list[Tensor] = []
    hook = built.sampling_network.register_forward_pre_hook(lambda _, args: seen.append(args[1].clone()))
    try:
        call()
    finally:
        hook.remove()
    return [k for k in seen if k.shape[1]]


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("kind", BASELINES)
def test_a_baseline_trains_and_samples_in_every_task(task: str, kind: str) -> None:
    built = build(task, kind)
    assert built.teacher_forced == (kind == "teacher_forcing" and task not in ("planning", "video"))
    loss = train(built, task, torch.Generator().manual_seed(0))
    loss.backward()
    gradients = [p.grad for p in built.network.parameters() if p.requires_grad and p.grad is not None]
    assert torch.isfinite(loss)
    assert sum(float(gradient.abs().sum()) for gradient in gradients) > 0
    out = sample(built, task)
    assert torch.isfinite(out).all()
    assert built.describe()["structure"]["algorithm"]["noise_level"] == kind


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("kind", BASELINES)
def test_sampling_shows_no_levels_but_those_of_training(task: str, kind: str) -> None:
    built = build(task, kind)
    clean = built.options.diffusion.stabilization_level - 1
    seen = levels_shown(built, lambda: sample(built, task))
    assert seen
    for k in seen:
        for row in k.tolist():
            if kind == "teacher_forcing":
                begun = [level for level in row if level not in (clean, K - 1)]
                assert len(begun) <= 1
                assert row == sorted(row)  # clean, the next token, pure noise
            else:
                given = row[:1] if task.startswith("planning") and task != "planning_rnn" else []
                absent = 1 if task == "planning" else 0  # 9 of 12 steps are planned: the last token is not there
                rest = row[len(given) : len(row) - absent]
                assert given in ([], [clean])
                assert len(set(rest)) == 1


@pytest.mark.parametrize("task", ["planning", "video"])
def test_only_the_next_token_moves_the_weights_where_one_is_trained(task: str) -> None:
    built = build(task, "teacher_forcing")
    drawn = built.draw_levels(64, 4, context=1, generator=torch.Generator().manual_seed(0))
    x = small.randn(64, 4, 6, seed=1) if task == "planning" else small.randn(64, 4, 3, 8, 8, seed=1)
    error = built.masked_loss(x, drawn, noise=torch.randn_like(x)).per_element.flatten(2).sum(-1)
    next_one = (drawn < 0).sum(dim=1)
    assert ((error > 0) == (torch.arange(4) == next_one[:, None])).all()


def test_the_method_and_a_shared_level_are_what_they_were() -> None:
    for kind in ("random_all", "shared"):
        built = small.planning(noise_level=kind)
        tokens, mask = built.encode(small.batch())
        draws = built.draw(*tokens.shape[:2], generator=torch.Generator().manual_seed(0))
        assert (draws.levels >= 0).all()
        assert torch.isfinite(built.loss(tokens, mask, draws)[0])
        assert built.options.past_shown == "clean"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: small.options(noise_level="full_sequence"),
            "scheduling_matrix=pyramid.*pass algorithm.scheduling_matrix=full_sequence",
        ),
        (
            lambda: test_forecasting.options(noise_level="teacher_forcing", scheduling_matrix="pyramid"),
            "trains no levels that .*pass algorithm.scheduling_matrix=autoregressive",
        ),
        (
            lambda: small.options(**chosen("teacher_forcing", -1), refine=0.3),
            "refine=0.3 noises a plan's tokens together",
        ),
        (lambda: small.options(**chosen("teacher_forcing", -1), warm_start=0.3), "warm_start=0.3 noises a plan's"),
        (
            lambda: test_planning_rnn.options(**chosen("full_sequence"), context_frames=6),
            "context_frames=6 looks back on clean steps",
        ),
        (
            lambda: test_forecasting.options(**chosen("teacher_forcing"), gt_cond_prob=0.5),
            "gt_cond_prob=0.5 shows some tokens at another level",
        ),
        (
            lambda: test_video_rnn.options(**chosen("full_sequence"), gt_first_frame=0.5),
            "gt_first_frame=0.5 shows some",
        ),
        (
            lambda: test_video.options(**chosen("full_sequence"), history_scale=2.0),
            "history_scale=2.0 needs a clean past",
        ),
    ],
)
def test_what_cannot_be_is_one_line(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)
