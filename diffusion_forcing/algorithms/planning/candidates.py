"""Planning with the goal as a token, and many candidates at once: noise × horizon in one batch, the shortest supported plan wins.

Diffusion Forcing may hold any token clean. So the start is column 0, the goal column e + 1, and the e tokens between come out of noise:
no gradient, one network call a row. The end e is free, which makes the horizon one more axis to draw candidates along.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from diffusion_forcing.algorithms.planning.planner import PlanInputs, Planner
from diffusion_forcing.diffusion import add_noise
from diffusion_forcing.diffusion.sampler import OnRow
from diffusion_forcing.errors import UserError, check_minimum, check_range

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


DRAWS = 4
"""Times that candidates are drawn for a problem as long as none of them is supported."""
JUMP, WALL = 3.0, 30.0
"""Among plans without support: what a metre of too long a step counts, and one where the data has never been, in metres of way."""


class Drafts(NamedTuple):
    """m plans in the making. start, goal: (m, o), normalised; ends: (m,) tokens between them; x: (m, T, f·c) [start, plan, goal, noise];
    matrix: (rows, m, T), the rows that x has still to go down."""

    start: Tensor
    goal: Tensor
    ends: Tensor
    x: Tensor
    matrix: Tensor

    def take(self, index: Tensor) -> Drafts:
        """The drafts `index`: (n,), some of them perhaps several times."""
        own = self.matrix[:, index.to(self.matrix.device)]
        return Drafts(self.start[index], self.goal[index], self.ends[index.to(self.ends.device)], self.x[index], own)


class GoalTokenPlanner(Planner):
    """Plans that end at the goal, held as the token after their last. `plan` lets it come after the whole horizon."""

    @property
    def longest(self) -> int:
        """Tokens of the longest plan: all but the start's and the goal's."""
        return self.options.max_tokens - 2

    def draw(self, start: Tensor, goal: Tensor, horizon: int, given: PlanInputs) -> Tensor:
        """Nothing is guided, so what belongs to guidance (`pull`, `refine_noise`, `past`) is not used."""
        tokens = -(-horizon // self.bundle.frame_stack)
        self._absent(horizon, tokens)  # refuses a horizon outside the window
        ends = torch.full((len(start),), min(tokens, self.longest))
        drafts = self.begin(start, goal, ends, noise=given.noise, generator=given.generator)
        if given.previous is not None and given.restart is not None:
            present = self.bundle.unstack(drafts.x[:, :1])[:, -1:]
            drafts = self.begin_from(list(torch.cat([present, given.previous], dim=1)), drafts, given.restart)
        drafts = self.denoise(drafts, generator=given.generator, on_row=given.on_row)
        return self.frames_of(drafts)[:, :horizon]

    # ------------------------------------------------------------------------------------------------ drafts

    def begin(
        self,
        start: Tensor,
        goal: Tensor,
        ends: Tensor,
        *,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Drafts:
        """Plans of `ends`: (m,) tokens from start to goal, both (m, o), as pure noise. noise: (m, ≤T−1, f·c), instead of draws."""
        count, device = self.options.max_tokens - 1, start.device
        future = self.sampler.noise((len(start), count, self.bundle.token_width), device, generator)
        if noise is not None:
            future = torch.cat([self.forcing.clamp_noise(noise[:, :count]), future[:, noise.shape[1] :]], dim=1)
        at_goal = torch.arange(count, device=device) == ends[:, None].to(device)
        future = torch.where(at_goal[..., None], self.bundle.present_normalized(goal), future)
        x = torch.cat([self.bundle.present_normalized(start), future], dim=1)
        return Drafts(start, goal, ends, x, self._matrix(ends))

    def _matrix(self, ends: Tensor) -> Tensor:
        """(rows, m, T): start and goal stay at 0, the tokens between go down the scheduling matrix, those after the goal stay at S."""
        matrices = {int(end): self.sampler.matrix(int(end)) for end in ends.unique()}
        full = torch.zeros(max(map(len, matrices.values())), len(ends), self.options.max_tokens, dtype=torch.long)
        for end, rows in matrices.items():
            chosen = (ends == end).nonzero().flatten()
            full[: len(rows), chosen, 1 : end + 1] = rows[:, None]
            full[:, chosen, end + 2 :] = self.sampler.sampling_timesteps
        return full

    def begin_from(self, paths: Sequence[Tensor], drafts: Drafts, level: int) -> Drafts:
        """`drafts` that start from earlier plans, frames (n, c) each, the present first: stretched to their tokens, noised at `level`."""
        x, k = drafts.x.clone(), self.sampler.levels[level].to(drafts.x.device)
        for row, (path, end) in enumerate(zip(paths, drafts.ends.tolist(), strict=True)):
            frames = end * self.bundle.frame_stack
            stretched = F.interpolate(path.T[None], size=frames + 1, mode="linear", align_corners=True).mT[:, 1:]
            own = x[row : row + 1, 1 : end + 1]
            own.copy_(add_noise(self.forcing.schedule, self.bundle.stack(stretched), k.expand(1, end), own))
        moving = drafts.matrix[0] != drafts.matrix[-1]
        return drafts._replace(x=x, matrix=torch.where(moving, drafts.matrix.clamp(max=level), drafts.matrix))

    def denoise(
        self,
        drafts: Drafts,
        rows: int | None = None,
        *,
        generator: torch.Generator | None = None,
        on_row: OnRow | None = None,
    ) -> Drafts:
        """`drafts` taken down their next `rows` rows; None: all of them."""
        last = len(drafts.matrix) - 1 if rows is None else rows
        x = self.sampler.denoise(drafts.x, drafts.matrix[: last + 1], generator=generator, on_row=on_row)
        return drafts._replace(x=x, matrix=drafts.matrix[last:])

    def frames_of(self, drafts: Drafts, x: Tensor | None = None) -> Tensor:
        """The frames (m, (T−1)·f, c) of drafts, or of tokens `x` instead of theirs; from a plan's end on they are at the goal."""
        frames = self.bundle.unstack((drafts.x if x is None else x)[:, 1:])
        there = self.bundle.unstack(self.bundle.present_normalized(drafts.goal))[:, -1:]
        length = (drafts.ends * self.bundle.frame_stack).to(frames.device)
        ended = torch.arange(frames.shape[1], device=frames.device) >= length[:, None]
        return torch.where(ended[..., None], there, frames)


@dataclass(frozen=True, kw_only=True)
class CandidateOptions:
    """candidates: plans drawn for each problem, their horizons spread evenly over the window.

    roots: 0 takes all of them down every row. Otherwise so many are, until the share `branch_at` of the rows is left; the better half of
    them by the support goes on, and each branches: its prediction is noised again, until there are `candidates`.
    """

    candidates: int = 32
    roots: int = 0
    branch_at: float = 0.5

    def __post_init__(self) -> None:
        check_minimum("algorithm.candidates", self.candidates, 1)
        check_range("algorithm.branch_at", self.branch_at, 0, 1)
        check_range("algorithm.roots", self.roots, 0, self.candidates)


class CandidatePlanner(GoalTokenPlanner):
    """Draws `candidates` plans for each problem and takes the shortest that the data supports. Where none is, it draws again, up to `DRAWS`
    times, and at last takes the one that is least wrong."""

    def __init__(self, *args: Any, search: CandidateOptions, support: Support, **options: Any) -> None:
        super().__init__(*args, **options)
        self.search = search
        self.support = support

    def noise_shape(self, horizon: int) -> tuple[int, ...]:
        return self.search.candidates, self.options.max_tokens - 1, self.bundle.token_width

    def draw(self, start: Tensor, goal: Tensor, horizon: int, given: PlanInputs) -> Tensor:
        """noise: (b, candidates, T−1, f·c). Nothing is drawn where what is left of `previous` makes a supported plan."""
        noise, generator = given.noise, given.generator
        self._absent(horizon, -(-horizon // self.bundle.frame_stack))  # refuses a horizon outside the window
        if noise is None:
            shape = (len(start), *self.noise_shape(horizon))
            noise = self.sampler.noise(shape, start.device, generator)
        keep = torch.zeros(len(start), dtype=torch.bool, device=start.device)
        least = torch.full((len(start),), torch.inf, device=start.device)
        frames = start.new_empty(len(start), (self.options.max_tokens - 1) * self.bundle.frame_stack, self.bundle.width)
        if given.previous is not None and given.restart is not None:
            continued = self._continued(start, goal, given.previous, given.restart, noise, generator)
            kept, verdict = self._choose(continued, len(start))
            frames, keep = self.frames_of(kept), verdict.supported
        for draw in range(DRAWS):
            left = (~keep).nonzero().flatten()
            if not len(left):
                break
            # Noise that depends on the given noise alone: turned along the tokens, and with another sign.
            drawn = noise[left].roll(draw, dims=2) * (-1) ** draw
            kept, verdict = self._choose(
                self._drawn(start[left], goal[left], drawn, generator, given.on_row), len(left)
            )
            wrong = self._order(kept, verdict)
            better = (wrong < least[left]) | (draw == 0)
            frames[left[better]] = self.frames_of(kept)[better]
            least[left] = torch.minimum(wrong, least[left])
            keep[left] = verdict.supported
        return frames[:, :horizon]

    def _drawn(
        self, start: Tensor, goal: Tensor, noise: Tensor, generator: torch.Generator | None, on_row: OnRow | None
    ) -> Drafts:
        """Finished candidates, those of a problem beside each other."""
        search, count = self.search, len(start)
        drawn = search.roots or search.candidates
        ends = torch.linspace(1, self.longest, drawn).round().long().repeat(count)
        start, goal = (point.repeat_interleave(drawn, 0) for point in (start, goal))
        drafts = self.begin(start, goal, ends, noise=noise[:, :drawn].flatten(0, 1), generator=generator)
        if search.roots:
            rows = round((1 - search.branch_at) * (len(drafts.matrix) - 1))
            drafts = self._branched(self.denoise(drafts, rows, generator=generator, on_row=on_row), noise)
        return self.denoise(drafts, generator=generator, on_row=on_row)

    def _branched(self, drafts: Drafts, noise: Tensor) -> Drafts:
        """The better half of half-denoised drafts, each with branches: its predicted clean plan, noised again at the level it is at."""
        candidates, roots = self.search.candidates, self.search.roots
        levels = self.sampler.levels[drafts.matrix[0]].to(drafts.x.device)
        prediction, _ = self.forcing(drafts.x, levels, None, None)
        order = self._order(drafts, self._judge(drafts, prediction.x0)).unflatten(0, (-1, roots)).argsort(1)
        kept = -(-roots // 2)
        # Candidate j is a branch of the (j mod kept)-th best root; the first of each goes on as it is.
        best = order[:, torch.arange(candidates, device=order.device) % kept]
        index = (best + roots * torch.arange(len(best), device=best.device)[:, None]).flatten()
        fresh = add_noise(
            self.forcing.schedule,
            prediction.x0[index],
            levels[index].clamp(min=0),
            torch.cat([drafts.x[index, :1], noise.flatten(0, 1)], dim=1),
        )
        branch = torch.arange(candidates, device=index.device).repeat(len(best)) >= kept
        moving = (drafts.matrix[0] != drafts.matrix[-1])[index.cpu()].to(index.device)
        drafts = drafts.take(index)
        return drafts._replace(x=torch.where((branch[:, None] & moving)[..., None], fresh, drafts.x))

    def _continued(
        self,
        start: Tensor,
        goal: Tensor,
        previous: Tensor,
        restart: int,
        noise: Tensor,
        generator: torch.Generator | None,
    ) -> Drafts:
        """A quarter of the candidates from the rest of an earlier plan, noised at `restart`: 3 rows at level 3 instead of 10."""
        length, copies = self.bundle.frame_stack, max(1, self.search.candidates // 4)
        # What is left of each plan, from the frame nearest to where one is until it stands at the goal.
        present, there = (self.bundle.unstack(self.bundle.present_normalized(point))[:, -1:] for point in (start, goal))
        nearest = (previous - present)[..., :2].norm(dim=-1).argmin(1).tolist()
        until = (previous != there).any(-1).sum(1).tolist()
        paths = [torch.cat([present[i], previous[i, nearest[i] : until[i]], there[i]]) for i in range(len(start))]
        ends = torch.tensor([-(-(len(path) - 1) // length) for path in paths]).clamp(max=self.longest)
        index = torch.arange(len(start)).repeat_interleave(copies)
        own = index.to(start.device)
        drafts = self.begin(
            start[own], goal[own], ends[index], noise=noise[:, :copies].flatten(0, 1), generator=generator
        )
        drafts = self.begin_from([paths[i] for i in index.tolist()], drafts, restart)
        return self.denoise(drafts, generator=generator)

    # ------------------------------------------------------------------------------------------------ judging

    def _judge(self, drafts: Drafts, x: Tensor) -> Verdict:
        """What the support says of drafts whose tokens are x: (m, T, f·c)."""
        frames = torch.cat([self.bundle.unstack(x[:, :1])[:, -1:], self.frames_of(drafts, x)], dim=1)
        return self.support.judge(frames[..., :2] * self.bundle.std[:2] + self.bundle.mean[:2])

    def _order(self, drafts: Drafts, verdict: Verdict) -> Tensor:
        """(m,) less is better: supported plans by the length of their way, then the others, by what it would take to mend them too."""
        positions = self.frames_of(drafts)[..., :2] * self.bundle.std[:2] + self.bundle.mean[:2]
        way = positions.diff(dim=1).norm(dim=-1).sum(1)
        wrong = way + JUMP * verdict.excess + WALL * verdict.unvisited
        return torch.where(verdict.supported, way / (1 + way), 1 + wrong)

    def _choose(self, drafts: Drafts, count: int) -> tuple[Drafts, Verdict]:
        """The best of finished candidates for each of `count` problems, and what the support says of it."""
        verdict = self._judge(drafts, drafts.x)
        best = self._order(drafts, verdict).unflatten(0, (count, -1)).argmin(1)
        index = best + (len(drafts.ends) // count) * torch.arange(count, device=best.device)
        return drafts.take(index), Verdict(*(part[index] for part in verdict))
