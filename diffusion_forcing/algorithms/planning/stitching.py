"""Plans longer than any trajectory of the data, joined from overlapping windows.

Trajectories that are a chain in which the next step depends on the last few alone have p(plan) = Π p(window) / Π p(overlap of two windows),
so ε̂ = Σ ε̂(window) − Σ ε̂(overlap) (DiffCollage, Zhang et al. 2023). A network trained by Diffusion Forcing knows both: an overlap is a
window whose other tokens are pure noise. All windows are denoised together, as one batch, and agree through what they share.

It is exact for clean tokens and approximate before, since a noised chain is none.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

ABSENT = -1


class StitchedNetwork(nn.Module):
    """A goal-token planner's network on more tokens than it was trained on: x: (b, T, c) at levels k: (b, T) → (b, T, c).

    x is [start, plan, goal, absent …], where absent tokens are pure noise (k = timesteps − 1): the goal is the last that is not. tokens: of
    the trained window, the places of start and goal included; overlap: tokens that neighbouring windows share.
    """

    noise: Tensor

    def __init__(self, network: nn.Module, *, tokens: int, width: int, overlap: int, timesteps: int) -> None:
        super().__init__()
        self.network = network
        self.tokens, self.overlap, self.timesteps = tokens, overlap, timesteps
        # What stands in absent places; a network that was trained with noise there does not look at it.
        noise = torch.randn(tokens, width, generator=torch.Generator().manual_seed(0))
        self.register_buffer("noise", noise, persistent=False)

    def forward(
        self, x: Tensor, k: Tensor, conditions: Tensor | None = None, memory: Any = None
    ) -> tuple[Tensor, None]:
        place = torch.arange(x.shape[1], device=x.device)
        goals = torch.where(k < self.timesteps - 1, place, 0).amax(dim=1).tolist()
        pieces = [windows_of(max(goal - 1, 1), self.tokens, self.overlap) for goal in goals]
        # (m, tokens): for each window and each overlap of a plan, where its tokens are in the plan; + 1 or − 1, what it counts.
        index = torch.cat([index for index, _ in pieces]).to(x.device)
        sign = torch.cat([sign for _, sign in pieces]).to(x)
        plan = torch.arange(len(x)).repeat_interleave(torch.tensor([len(index) for index, _ in pieces])).to(x.device)
        plan, present = plan[:, None].expand_as(index), index != ABSENT
        own = index.clamp(min=0)
        tokens = torch.where(present[..., None], x[plan, own], self.noise)
        levels = torch.where(present, k[plan, own], self.timesteps - 1)
        output, _ = self.network(tokens, levels, None, None)
        # Outputs are affine in ε̂, and the signs of each token's windows have the sum 1.
        joined = torch.zeros(x.shape, dtype=output.dtype, device=x.device)
        weighted = (sign.to(output.dtype)[:, None, None] * output)[present]
        return joined.index_put((plan[present], own[present]), weighted, accumulate=True), None


@lru_cache(maxsize=1024)
def windows_of(length: int, tokens: int, overlap: int) -> tuple[Tensor, Tensor]:
    """Windows that cover a plan of `length` tokens, and their overlaps: where each of their tokens is in [start, plan, goal], (m, tokens),
    ABSENT for none; and + 1 for windows, − 1 for overlaps, (m,)."""
    most = tokens - 2
    starts = [1]
    while starts[-1] + most <= length:
        starts.append(starts[-1] + most - overlap)
    rows, signs = [], []
    for number, start in enumerate(starts):
        row = torch.full((tokens,), ABSENT)
        count = min(most, length + 1 - start)
        row[1 : count + 1] = torch.arange(start, start + count)
        if number == 0:
            row[0] = 0
        else:
            shared = torch.full((tokens,), ABSENT)
            shared[1 : overlap + 1] = torch.arange(start, start + overlap)
            rows.append(shared)
            signs.append(-1)
        if start + count > length:
            row[count + 1] = length + 1
        rows.append(row)
        signs.append(1)
    return torch.stack(rows), torch.tensor(signs)
