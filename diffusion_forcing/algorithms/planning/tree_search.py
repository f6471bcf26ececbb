"""Monte Carlo tree diffusion: a tree over half-denoised plans (MCTD, Yoon et al. 2025; in parallel, Fast-MCTD, Yoon et al. 2025).

A node is the whole noisy plan some rows further down the scheduling matrix; its children differ in how strongly the goal guides these rows.
A new node is simulated: taken down the remaining rows in long strides, and rewarded for how early that plan arrives. UCT chooses where to
expand. In parallel, many nodes are selected on the tree as it stands, and expanded and simulated as one batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from diffusion_forcing.algorithms.planning.candidates import SLACK, Support
from diffusion_forcing.algorithms.planning.planner import PlanInputs, Planner
from diffusion_forcing.diffusion.sampler import OnRow
from diffusion_forcing.errors import check_minimum, check_positive, require


@dataclass(frozen=True, kw_only=True)
class TreeOptions:
    """`algorithm.tree`. guidance: of a node's children, as multiples of algorithm.guidance_scale. rows: what a node adds. stride: rows that a
    step of the simulation takes at once. expansions: nodes at most. parallel: nodes selected at once by search=fast_mctd; mctd selects one.
    goal_radius: how near a plan arrives. longest_step: between two frames; a plan with a longer one is worth nothing; None: half as long again as
    the data's longest, where the weights know it, else 0.25. Both in data units.
    """

    guidance: tuple[float, ...] = (0.0, 0.1, 0.5, 1.0, 2.0)
    rows: int = 20
    stride: int = 10
    expansions: int = 500
    parallel: int = 200
    goal_radius: float = 0.5
    longest_step: float | None = None

    def __post_init__(self) -> None:
        for name in ("rows", "stride", "expansions", "parallel"):
            check_minimum(f"algorithm.tree.{name}", getattr(self, name), 1)
        for name in ("goal_radius", "longest_step"):
            if (value := getattr(self, name)) is not None:
                check_positive(f"algorithm.tree.{name}", value)
        require(
            bool(self.guidance) and all(scale >= 0 for scale in self.guidance),
            f"algorithm.tree.guidance is {list(self.guidance)}; give one multiple of the guidance or more, none below 0",
        )


@dataclass(eq=False)
class Node:
    """x: (T, f·c) after `depth`·rows rows. value: the best reward of its simulations and of those below it."""

    x: Tensor
    depth: int
    parent: Node | None = None
    children: list[Node | None] = field(default_factory=list)
    visits: int = 0
    value: float = 0.0

    def path(self) -> list[Node]:
        """This node and those above it."""
        return [self, *([] if self.parent is None else self.parent.path())]


class TreeSearchPlanner(Planner):
    """Plans by tree search with gradient guidance. It needs no training of its own. Problems are searched one after the other."""

    def __init__(
        self, *args: Any, tree: TreeOptions, parallel: bool, support: Support | None = None, **options: Any
    ) -> None:
        super().__init__(*args, **options)
        self.tree = tree
        self.longest_step = tree.longest_step or (SLACK * support.longest_step if support else 0.25)
        self.parallel = tree.parallel if parallel else 1
        self.on_node: Callable[[Tensor, float, int], None] | None = None
        """`on_node(plan, reward, depth)` sees the simulated plan (horizon, c) of each new node, normalised."""

    def draw(self, start: Tensor, goal: Tensor, horizon: int, given: PlanInputs) -> Tensor:
        """A tree is always grown from pure noise, whatever came before."""
        problems = zip(
            start.split(1),
            goal.split(1),
            [None] * len(start) if given.noise is None else given.noise.split(1),
            strict=True,
        )
        return torch.cat([self.search(*problem, horizon, given.generator, given.on_row) for problem in problems])

    def search(
        self,
        start: Tensor,
        goal: Tensor,
        noise: Tensor | None,
        horizon: int,
        generator: torch.Generator | None = None,
        on_row: OnRow | None = None,
    ) -> Tensor:
        """The frames (1, horizon, c) of the best plan that is found from start to goal, both (1, o) and normalised."""
        bundle, tree = self.bundle, self.tree
        tokens = -(-horizon // bundle.frame_stack)
        absent = self._absent(horizon, tokens)
        before, _ = self._opening(start, None)
        future = self._noise((1, tokens, bundle.token_width), noise, start.device, generator)
        x = torch.cat([before, future, start.new_zeros(1, absent, bundle.token_width)], dim=1)
        rows = self.sampler.matrix(tokens)
        held = (rows.new_zeros(len(rows), self.present_tokens), rows.new_full((len(rows), absent), int(rows[0, 0])))
        matrix = torch.cat([held[0], rows, held[1]], dim=1)
        root = Node(x[0], 0, children=[None] * len(tree.guidance))
        best_reward, best_plan, expanded = -1.0, x, 0
        while expanded < tree.expansions:
            selected = self.select(root, len(matrix) - 1, min(self.parallel, tree.expansions - expanded))
            if not selected:
                break  # the whole tree is grown
            expanded += len(selected)
            scales = start.new_tensor([tree.guidance[child] for _, child in selected])

            def denoise(x: Tensor, parts: Sequence[Tensor], scales: Tensor = scales) -> Tensor:
                # Nodes of different depths have rows of their own, and as many as the longest: the last is repeated.
                longest = max(map(len, parts))
                stacked = [torch.cat([part, part[-1:].expand(longest - len(part), -1)]) for part in parts]
                guidance = self._guidance(start.expand(len(x), -1), goal.expand(len(x), -1), horizon, scales)
                return self.sampler.denoise(
                    x, torch.stack(stacked, 1), guidance=guidance, generator=generator, on_row=on_row
                )

            # Expansion: the next rows. Simulation: the remaining ones, in strides, the last always among them.
            begins = [node.depth * tree.rows for node, _ in selected]
            x = torch.stack([node.x for node, _ in selected])
            x = denoise(x, [matrix[begin : begin + tree.rows + 1] for begin in begins])
            ends = [min(begin + tree.rows, len(matrix) - 1) for begin in begins]
            plans = denoise(x, [matrix[[*range(end, len(matrix) - 1, tree.stride), -1]] for end in ends])
            rewards = self.reward(start, goal, plans, horizon)
            arrived = False
            grown = zip(selected, x, rewards.tolist(), ends, strict=True)
            for number, ((node, child), own, reward, end) in enumerate(grown):
                new = Node(own, node.depth + 1, node, [None] * (len(tree.guidance) if end < len(matrix) - 1 else 0))
                node.children[child] = new
                # Backup by the best.
                for above in new.path():
                    above.visits += 1
                    above.value = max(above.value, reward)
                arrived |= reward > 0 and not new.children
                if self.on_node is not None:
                    self.on_node(self.frames(plans[number, None], horizon)[0], reward, new.depth)
            if rewards.max() > best_reward:
                best_reward, best_plan = float(rewards.max()), plans[rewards.argmax()][None]
            if arrived:
                break
        return self.frames(best_plan, horizon)

    def frames(self, x: Tensor, horizon: int) -> Tensor:
        """The future of plans x: (m, T, f·c) as frames (m, horizon, c)."""
        return self.bundle.unstack(x[:, self.present_tokens :])[:, :horizon]

    def select(self, root: Node, rows: int, count: int) -> list[tuple[Node, int]]:
        """Up to `count` pairs of a node and the number of a child it does not have yet, by UCT on the tree as it stands.

        What was selected counts as visited for those that follow, and no child is selected twice.
        """
        taken: dict[Node, set[int]] = {}
        virtual: dict[Node, int] = {}
        full: set[Node] = set()  # nothing left to expand below
        selected: list[tuple[Node, int]] = []
        while len(selected) < count and root not in full:
            node = root
            while True:
                free = [i for i, child in enumerate(node.children) if child is None and i not in taken.get(node, ())]
                if free:
                    break
                below = [child for child in node.children if child is not None and child not in full]
                if not below:
                    break
                total = sum(child.visits + virtual.get(child, 0) for child in below)
                node = max(below, key=lambda child: uct(child.value, child.visits + virtual.get(child, 0), total))
            if not free:
                full.add(node)
                continue
            selected.append((node, free[0]))
            taken.setdefault(node, set()).add(free[0])
            for above in node.path():
                virtual[above] = virtual.get(above, 0) + 1
        return selected

    def reward(self, start: Tensor, goal: Tensor, x: Tensor, horizon: int) -> Tensor:
        """(H − t)/H of plans x: (m, T, f·c) that arrive at frame t < H; 0 for those that do not, or step too far before."""
        mean, std = self.bundle.mean[:2], self.bundle.std[:2]
        frames = self.frames(x, horizon)[..., :2]
        path = torch.cat([start[:, None, :2].expand(len(x), -1, -1), frames], dim=1) * std + mean
        near = (path[:, 1:] - (goal[:, None, :2] * std + mean)).norm(dim=-1) <= self.tree.goal_radius
        when = torch.where(near.any(1), near.int().argmax(1), horizon)
        too_far = path.diff(dim=1).norm(dim=-1) > self.longest_step
        before = torch.arange(horizon, device=x.device) <= when[:, None]
        return torch.where((too_far & before).any(1), 0.0, (horizon - when) / horizon)


def uct(value: float, visits: int, total: int) -> float:
    """V + √2·√(ln ΣN / N)."""
    return value + math.sqrt(2) * math.sqrt(math.log(max(total, 1)) / visits) if visits else math.inf
