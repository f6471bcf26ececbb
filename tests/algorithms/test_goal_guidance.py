from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from diffusion_forcing.algorithms.planning.guidance import goal_distance_weights, goal_return, reward_return
from diffusion_forcing.algorithms.planning.tokens import Bundle
from diffusion_forcing.errors import UserError
from tests.algorithms.small import STATISTICS, randn

F, TOKENS, BATCH = 3, 4, 2


def bundle(variant: str, *, reward: tuple[float, float] | None = None) -> Bundle:
    return Bundle(**STATISTICS[variant], reward=reward, frame_stack=F)  # type: ignore[arg-type]


def ends(packed: Bundle) -> tuple[Tensor, Tensor]:
    o = packed.observation_dim
    goal = randn(BATCH, o, seed=2)
    goal[:, 2:] = 0
    return randn(BATCH, o, seed=1), goal


def by_hand(
    packed: Bundle, x0: Tensor, start: Tensor, goal: Tensor, *, planned: int, scale: float, source: bool
) -> list[float]:
    """docs/method.md §10, number by number, for every sample."""
    o, a, found = packed.observation_dim, packed.action_dim, []
    frames = x0.double().reshape(len(x0), TOKENS * F, -1)
    for sample, begin, end in zip(frames.tolist(), start.double().tolist(), goal.double().tolist(), strict=True):
        total, columns = 0.0, o // 2 + 1
        for h, frame in enumerate(sample):
            target = begin if h < F else end
            for pair in range(o // 2):
                dx, dy = (frame[2 * pair + i] - target[2 * pair + i] for i in (0, 1))
                weight = 2.0 if h < F else 8.0
                if source and pair == 0:
                    weight = 20.0 if h < F else 1.0 if h < F + planned else 0.0
                total += weight * math.tanh(math.sqrt(dx * dx + dy * dy) / 2)
            if a:
                total += (2.0 if h < F else 8.0) * math.sqrt(sum(v * v for v in frame[o : o + a]))
        found.append(-1000 * scale / 128 * total / (len(sample) * columns))
    return found


@pytest.mark.parametrize("weights", ["released", "source"])
@pytest.mark.parametrize("variant", ["x", "xv", "xva"])
def test_the_return_is_the_weighted_mean_distance_of_each_sample(variant: str, weights: str) -> None:
    packed = bundle(variant)
    start, goal = ends(packed)
    x0 = randn(BATCH, TOKENS, packed.token_width)
    returns = goal_return(packed, start, goal, planned=5, scale=3.0, weights=weights)(x0)
    expected = by_hand(packed, x0, start, goal, planned=5, scale=3.0, source=weights == "source")
    assert returns.tolist() == pytest.approx(expected, rel=1e-5)


def test_released_weights_are_two_on_the_present_and_eight_on_all_else() -> None:
    weights = goal_distance_weights(
        "released", frames=12, planned=5, frame_stack=F, positions=2, device=torch.device("cpu")
    )
    assert weights.shape == (12, 3)
    assert (weights[:F] == 2).all()
    assert (weights[F:] == 8).all()


def test_source_weights_leave_padding_out_of_the_position() -> None:
    weights = goal_distance_weights(
        "source", frames=12, planned=5, frame_stack=F, positions=1, device=torch.device("cpu")
    )
    assert weights[:, 0].tolist() == [20] * 3 + [1] * 5 + [0] * 4
    assert weights[:, 1].tolist() == [2] * 3 + [8] * 9


def test_the_return_is_highest_at_the_goal_and_its_slope_is_finite_there() -> None:
    packed = bundle("xva")
    start, goal = ends(packed)
    returns = goal_return(packed, start, goal, planned=9, scale=2.0)
    frames = torch.zeros(BATCH, TOKENS * F, packed.width)
    frames[:, :F, :4], frames[:, F:, :4] = start[:, None], goal[:, None]
    best = packed.stack(frames).requires_grad_()
    value = returns(best)
    assert value.tolist() == pytest.approx([0.0, 0.0], abs=1e-5)
    assert (returns(best + 0.1 * randn(*best.shape)) < value).all()
    (slope,) = torch.autograd.grad(value.sum(), best)
    assert slope.isfinite().all()


def test_a_samples_return_depends_on_that_sample_alone() -> None:
    packed = bundle("xv")
    start, goal = ends(packed)
    x0 = randn(BATCH, TOKENS, packed.token_width).requires_grad_()
    together = goal_return(packed, start, goal, planned=9, scale=2.0)(x0)
    (slope,) = torch.autograd.grad(together[0], x0)
    assert slope[0].abs().sum() > 0
    assert (slope[1] == 0).all()
    alone = goal_return(packed, start[:1], goal[:1], planned=9, scale=2.0)(x0[:1])
    assert torch.equal(alone, together[:1])


def test_the_scale_is_linear() -> None:
    packed = bundle("x")
    start, goal = ends(packed)
    x0 = randn(BATCH, TOKENS, packed.token_width)
    once, thrice = (goal_return(packed, start, goal, planned=9, scale=scale)(x0) for scale in (1.0, 3.0))
    assert torch.allclose(thrice, 3 * once)


def test_unknown_weights_are_refused_with_the_nearest() -> None:
    with pytest.raises(UserError, match=r"guidance_weights 'sauce'.*did you mean 'source'"):
        goal_distance_weights("sauce", frames=3, planned=1, frame_stack=1, positions=1, device=torch.device("cpu"))


def test_observations_must_come_in_pairs() -> None:
    odd = Bundle((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), frame_stack=F)
    with pytest.raises(UserError, match="got 3 observation columns"):
        goal_return(odd, randn(1, 3), randn(1, 3), planned=3, scale=1.0)


def test_the_reward_return_is_the_discounted_reward_of_the_planned_frames() -> None:
    packed = bundle("x", reward=(0.0, 1.0))
    x0 = randn(BATCH, TOKENS, packed.token_width)
    returns = reward_return(packed, planned=5, scale=2.0, gamma=0.9)(x0)
    rewards = packed.unstack(x0)[..., -1].double().tolist()
    for found, row in zip(returns.tolist(), rewards, strict=True):
        expected = sum(0.9**i * row[F + i] for i in range(5)) / 5
        assert found == pytest.approx(1000 * 2.0 / 128 * expected, rel=1e-5)


def test_a_reward_return_needs_a_reward() -> None:
    with pytest.raises(UserError, match="use_reward needs a reward in the bundle"):
        reward_return(bundle("x"), planned=5, scale=2.0)
