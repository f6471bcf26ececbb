"""Whether a plan is one that the data could show: where the data has been, and how far it moves in a frame. No map is read."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from diffusion_forcing.errors import UserError

FINEST = 128  # cells along the longer side of what the data covers, at most
COARSEST = 16  # and at least
LEAST_VISITS = 8  # typical number of positions in a visited cell, for a cell without any to mean something
SLACK = 1.5  # a plan's step may be so much longer than the data's longest: joints between tokens are wider
BETWEEN = 6  # points looked at from one frame to the next


class Verdict(NamedTuple):
    """supported: (m,) bool; first: (m,) the first frame that is not supported, h where all are; unvisited: (m,) length of the way where the
    data has never been; excess: (m,) by how much steps are too long (by over SLACK), in all. Lengths in data units."""

    supported: Tensor
    first: Tensor
    unvisited: Tensor
    excess: Tensor


class Support:
    """A grid of the places that the data has visited, each grown by one cell, and the longest step the data takes.

    grid: (H, W) bool over positions origin + cell·(i, j); longest_step: the 99.9 % quantile, from one frame of a plan to the next. Positions
    in data units.
    """

    def __init__(self, grid: Tensor, origin: tuple[float, float], cell: float, longest_step: float) -> None:
        self.grid = grid
        self.origin = origin
        self.cell = cell
        self.longest_step = longest_step

    @classmethod
    def of(cls, positions: ArrayLike, episodes: NDArray[np.int64], *, frame_skip: int = 1) -> Support:
        """From positions (N, 2) of whole episodes, (E, 2) their first and one past their last step. UserError for too little data."""
        points = np.asarray(positions)[:, :2].astype(np.float64)
        low, high = (points.min(0), points.max(0)) if len(points) else (np.zeros(2), np.zeros(2))
        steps = np.concatenate(
            [np.linalg.norm(points[begin + frame_skip : end] - points[begin : end - frame_skip], axis=1)
             for begin, end in episodes if end - begin > frame_skip] or [np.zeros(0)]
        )  # fmt: skip
        cells = FINEST
        while cells >= COARSEST and len(steps) and (high > low).any():
            cell = float((high - low).max()) / cells
            index = ((points - low) / cell).astype(int) + 1
            visits = np.zeros(index.max(0) + 2, dtype=np.int64)
            np.add.at(visits, tuple(index.T), 1)
            if np.median(visits[visits > 0]) >= LEAST_VISITS:
                grown = F.max_pool2d(torch.from_numpy(visits > 0).float()[None], 3, stride=1, padding=1)[0] > 0
                x, y = (low - cell).tolist()
                return cls(grown, (x, y), cell, float(np.quantile(steps, 0.999)))
            cells //= 2
        raise UserError(
            f"{len(points):,} positions are too few to tell where a plan may go: on a grid of {COARSEST} cells a visited "
            f"cell has fewer than {LEAST_VISITS}; use more data, or algorithm.search=none"
        )

    def judge(self, paths: Tensor) -> Verdict:
        """Paths (m, 1 + h, 2), the start and the positions of h frames, in data units."""
        paths = paths.detach()
        grid = self.grid.to(paths.device)
        share = torch.arange(1, BETWEEN + 1, device=paths.device)[:, None] / BETWEEN
        points = torch.lerp(paths[:, :-1, None], paths[:, 1:, None], share.to(paths.dtype))
        index = ((points - points.new_tensor(self.origin)) / self.cell).floor().long()
        size = torch.tensor(grid.shape, device=paths.device)
        inside = ((index >= 0) & (index < size)).all(-1)
        i, j = torch.where(inside[..., None], index, 0).unbind(-1)
        visited, steps = inside & grid[i, j], paths.diff(dim=1).norm(dim=-1)
        excess = (steps - SLACK * self.longest_step).clamp(min=0)
        good = visited.all(-1) & (excess == 0)
        first = torch.where(good.all(1), good.shape[1], (~good).int().argmax(1))
        unvisited = steps * (~visited).to(steps.dtype).mean(-1)
        return Verdict(good.all(1), first, unvisited.sum(1), excess.sum(1))

    # ------------------------------------------------------------------------------------------------ checkpoints

    def statistics(self) -> dict[str, list[float]]:
        """As lists of numbers for a checkpoint's metadata: the grid packed into bytes."""
        packed = np.packbits(self.grid.cpu().numpy()).astype(float).tolist()
        return {
            "support": packed,
            "support_frame": [*self.origin, self.cell, self.longest_step, *map(float, self.grid.shape)],
        }

    @classmethod
    def from_statistics(cls, statistics: dict[str, Tensor]) -> Support | None:
        """What `statistics` described; None where a checkpoint has none. UserError where it is damaged."""
        if "support" not in statistics:
            return None
        frame = statistics.get("support_frame", torch.zeros(0)).tolist()
        packed = statistics["support"].numpy()
        size = int(frame[4]) * int(frame[5]) if len(frame) == 6 else 0
        if not 0 < size <= 8 * len(packed) < size + 8 or not min(frame[2:]) > 0:
            raise UserError("the checkpoint's support grid is damaged; train again, or use algorithm.search=none")
        bits = np.unpackbits(packed.astype(np.uint8))[:size].astype(bool)
        grid = torch.from_numpy(bits).reshape(int(frame[4]), int(frame[5]))
        return cls(grid, (frame[0], frame[1]), frame[2], frame[3])
