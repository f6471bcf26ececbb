"""Tree search over half-denoised plans, against a plain one that keeps its nodes in a dictionary and denoises one plan at a time."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from diffusion_forcing.algorithms.planning.candidates import SLACK, Support
from diffusion_forcing.algorithms.planning.tree_search import Node, TreeOptions, TreeSearchPlanner
from diffusion_forcing.errors import UserError
from tests.algorithms.small import options, planning, randn

GUIDANCE = (0.0, 0.5, 2.0)
HORIZON = 9


def searching(kind: str = "mctd", tree: dict[str, Any] | None = None, **changes: Any) -> TreeSearchPlanner:
    asked = {"guidance": GUIDANCE, "rows": 2, "stride": 2, "expansions": 9, "parallel": 4, "goal_radius": 1.5}
    planner = planning(
        search=kind, guidance_scale=30.0, tree=TreeOptions(**{**asked, "longest_step": 1e9, **(tree or {})}), **changes
    ).planner()
    assert isinstance(planner, TreeSearchPlanner)
    return planner


def problem(count: int = 1) -> tuple[Tensor, Tensor]:
    return randn(count, 2, seed=1), randn(count, 2, seed=2)


def reference(planner: TreeSearchPlanner, start: Tensor, goal: Tensor, noise: Tensor, horizon: int) -> Tensor:
    """One worker, one plan at a time; a node is the tuple of the choices that lead to it."""
    tree, bundle = planner.tree, planner.bundle
    tokens, window = -(-horizon // bundle.frame_stack), planner.options.max_tokens
    padding = torch.zeros(1, window - 1 - tokens, bundle.token_width)
    columns = planner.sampler.matrix(tokens)
    clean, absent = torch.zeros(len(columns), 1), torch.full((len(columns), window - 1 - tokens), int(columns[0, 0]))
    matrix = torch.cat([clean, columns, absent], 1).long()
    x: dict[tuple[int, ...], Tensor] = {(): torch.cat([bundle.present_normalized(start), noise, padding], 1)}
    visits, value = {(): 0}, {(): 0.0}
    best: tuple[float, Tensor | None] = (-1.0, None)

    def down(plan: Tensor, rows: list[int], choice: int) -> Tensor:
        guidance = planner._guidance(start, goal, horizon, torch.tensor([tree.guidance[choice]]))
        return planner.sampler.denoise(plan, matrix[rows], guidance=guidance)

    for _ in range(tree.expansions):
        node: tuple[int, ...] = ()
        while all((*node, c) in x for c in range(len(tree.guidance))):
            children = [(*node, c) for c in range(len(tree.guidance))]
            open_ones = [child for child in children if len(child) * tree.rows < len(matrix) - 1]
            total = sum(visits[child] for child in open_ones)
            scores = [value[c] + math.sqrt(2) * math.sqrt(math.log(total) / visits[c]) for c in open_ones]
            node = open_ones[scores.index(max(scores))]
        choice = next(c for c in range(len(tree.guidance)) if (*node, c) not in x)
        child, begin = (*node, choice), len(node) * tree.rows
        end = min(begin + tree.rows, len(matrix) - 1)
        x[child] = down(x[node], list(range(begin, end + 1)), choice)
        plan = down(x[child], [*range(end, len(matrix) - 1, tree.stride), len(matrix) - 1], choice)
        positions = bundle.decode(bundle.unstack(plan[:, 1:])).observations[0, :horizon, :2]
        target = goal[0] * bundle.std[:2] + bundle.mean[:2]
        reward = 0.0
        for t, position in enumerate(positions):
            if (position - target).norm() <= tree.goal_radius:
                reward = (horizon - t) / horizon
                break
        visits[child], value[child] = 0, 0.0
        for depth in range(len(child) + 1):
            visits[child[:depth]] += 1
            value[child[:depth]] = max(value[child[:depth]], reward)
        if reward > best[0]:
            best = (reward, plan)
        if reward > 0 and end == len(matrix) - 1:
            break
    assert best[1] is not None
    return bundle.unstack(best[1][:, 1 : 1 + tokens])[:, :horizon]


@pytest.mark.parametrize("expansions", [1, 4, 9])
def test_one_worker_finds_what_the_plain_search_finds(expansions: int) -> None:
    planner, (start, goal) = searching(tree={"expansions": expansions}), problem()
    noise = randn(1, 3, planner.bundle.token_width, seed=3)
    found = planner.plan_normalized(start, goal, HORIZON, noise=noise)
    torch.testing.assert_close(found, reference(planner, start, goal, noise, HORIZON), atol=1e-4, rtol=1e-4)


def test_problems_in_a_batch_are_searched_as_each_alone() -> None:
    planner, (start, goal) = searching("fast_mctd"), problem(2)
    noise = randn(2, 3, planner.bundle.token_width, seed=3)
    together = planner.plan_normalized(start, goal, HORIZON, noise=noise)
    for one in range(2):
        pick = slice(one, one + 1)
        alone = planner.plan_normalized(start[pick], goal[pick], HORIZON, noise=noise[pick])
        torch.testing.assert_close(alone[0], together[one], atol=1e-4, rtol=1e-4)


def grown(*branching: int) -> Node:
    """A tree whose nodes have all children down to the given numbers of levels."""

    def node(depth: int, parent: Node | None) -> Node:
        new = Node(torch.zeros(1), depth, parent, [None] * len(GUIDANCE), visits=1)
        if depth < len(branching):
            new.children = [node(depth + 1, new) if i < branching[depth] else None for i in range(len(GUIDANCE))]
        return new

    return node(0, None)


def test_selections_on_a_frozen_tree_never_take_a_child_twice() -> None:
    planner, root = searching(), grown(3, 2)
    selected = planner.select(root, 6, 100)
    assert len({(id(node), child) for node, child in selected}) == len(selected)
    # One missing child below each of the 3 nodes, and 3 below each of the 6 leaves: all there is.
    assert len(selected) == 3 * 1 + 6 * 3


def test_virtual_visits_spread_the_selections() -> None:
    planner, root = searching(), grown(3)
    parents = [node for node, _ in planner.select(root, 6, 3)]
    assert len(set(map(id, parents))) == 3


def test_the_reward_is_for_arriving_early_by_possible_steps() -> None:
    planner = searching(tree={"goal_radius": 0.5, "longest_step": 1.2}, frame_stack=1, episode_len=4)
    at = lambda *x: (torch.tensor([[v, 0.0] for v in x]) - planner.bundle.mean) / planner.bundle.std  # noqa: E731
    start, goal = at(0.0), at(3.0)
    plans = torch.stack([at(0, 1, 2, 3, 3), at(0, 1, 1, 2, 2), at(0, 2.8, 3, 3, 3), at(0, 1, 2, 3, 9)])
    rewards = planner.reward(start, goal, plans, 4)
    # At frame 2 of 4; never; too long a step; and what follows the arrival does not matter.
    torch.testing.assert_close(rewards, torch.tensor([0.5, 0.0, 0.0, 0.5]))


def test_the_longest_step_is_that_of_the_data_unless_it_is_given() -> None:
    planner = searching(tree={"longest_step": None})
    assert planner.longest_step == 0.25
    known = Support(torch.ones(2, 2, dtype=torch.bool), (0.0, 0.0), 1.0, 2.0)
    for given, expected in ((None, SLACK * 2.0), (0.7, 0.7)):
        algorithm = planning(search="mctd", tree=TreeOptions(longest_step=given))
        algorithm.support = known
        assert algorithm.planner().longest_step == expected  # type: ignore[attr-defined]


def test_a_search_ends_when_the_tree_is_grown() -> None:
    planner, (start, goal) = searching(tree={"rows": 100, "expansions": 50, "goal_radius": 1e-9}), problem()
    calls: list[int] = []
    select = planner.select
    planner.select = lambda *asked: calls.append(1) or select(*asked)  # type: ignore[method-assign, func-returns-value]
    planner.plan_normalized(start, goal, HORIZON, generator=torch.Generator().manual_seed(0))
    assert len(calls) == len(GUIDANCE) + 1


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"search": "mctd", "guidance_scale": 0.0}, "algorithm.guidance_scale"),
        ({"search": "fast_mctd", "goal_token": True}, "algorithm.goal_token"),
    ],
)
def test_options_that_do_not_go_together_are_refused(changes: dict[str, Any], key: str) -> None:
    with pytest.raises(UserError, match=key):
        options(**changes)


@pytest.mark.parametrize(
    "tree", [{"rows": 0}, {"expansions": 0}, {"goal_radius": 0.0}, {"guidance": ()}, {"guidance": (-1.0,)}]
)
def test_a_tree_that_cannot_be_grown_is_refused(tree: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"algorithm.tree.{next(iter(tree))}"):
        TreeOptions(**tree)
