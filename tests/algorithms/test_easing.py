"""Pulling some plans less than others, and stopping to pull before the end."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from diffusion_forcing.algorithms.planning.planner import Planner
from tests.algorithms.small import planning, randn


def planner(**changes: Any) -> Planner:
    return planning(**{"guidance_scale": 2.0, **changes}).eval().planner()


def plans(made: Planner, pull: torch.Tensor | None = None, *, refine_noise: torch.Tensor | None = None) -> torch.Tensor:
    start, goal = randn(3, 2), randn(3, 2, seed=1)
    return made.plan_normalized(start, goal, 12, noise=randn(3, 4, 6, seed=2), refine_noise=refine_noise, pull=pull)


def test_a_pull_of_one_changes_nothing() -> None:
    assert torch.equal(plans(planner(), torch.ones(3)), plans(planner()))


def test_a_pull_is_a_factor_of_the_guidance_scale() -> None:
    eased, weak = plans(planner(), torch.full((3,), 0.25)), plans(planner(guidance_scale=0.5))
    torch.testing.assert_close(eased, weak)


def test_no_pull_is_no_guidance() -> None:
    torch.testing.assert_close(plans(planner(), torch.zeros(3)), plans(planner(guidance_scale=0.0)))


def test_each_plan_is_pulled_by_its_own_factor() -> None:
    full, half = plans(planner()), plans(planner(), torch.full((3,), 0.5))
    mixed = plans(planner(), torch.tensor([1.0, 0.5, 1.0]))
    torch.testing.assert_close(mixed[[0, 2]], full[[0, 2]])
    torch.testing.assert_close(mixed[1], half[1])
    assert not torch.allclose(full[1], half[1], atol=1e-3)


def test_a_pull_reaches_the_reward_too() -> None:
    changes = {"use_reward": True}
    noise = randn(3, 4, 9, seed=2)
    start, goal = randn(3, 2), randn(3, 2, seed=1)
    eased = planner(**changes).plan_normalized(start, goal, 12, noise=noise, pull=torch.full((3,), 0.5))
    weak = planner(**changes, guidance_scale=1.0).plan_normalized(start, goal, 12, noise=noise)
    torch.testing.assert_close(eased, weak)


@pytest.mark.parametrize("changes", [{"guidance_stop": 1.0}, {"guidance_stop": 1.0, "refine": 0.5}])
def test_a_pull_has_no_say_where_guidance_never_starts(changes: dict[str, float]) -> None:
    again = randn(3, 4, 6, seed=3)
    strong = plans(planner(**changes), torch.full((3,), 8.0), refine_noise=again)
    torch.testing.assert_close(strong, plans(planner(**changes, guidance_scale=0.0), refine_noise=again))
