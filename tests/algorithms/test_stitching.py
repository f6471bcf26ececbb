"""Plans joined from overlapping windows: every token counts once, and chains are put together as they are."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from diffusion_forcing.algorithms.planning.stitching import ABSENT, StitchedNetwork, windows_of
from diffusion_forcing.diffusion import DiffusionForcing, NoiseSchedule, Sampler, build_parameterization, build_schedule
from diffusion_forcing.errors import UserError
from tests.algorithms.small import planning, randn
from tests.algorithms.test_candidates import everywhere

RHO, TOKENS, OVERLAP = 0.8, 8, 3


class Chain(nn.Module):
    """The exact denoiser of stationary chains with covariance ρ^|i−j|, every channel by itself: ΣA(AΣA + N)⁻¹x_k."""

    def __init__(self, schedule: NoiseSchedule) -> None:
        super().__init__()
        self.schedule = schedule
        self.longest = 0

    def forward(
        self, x: Tensor, k: Tensor, conditions: Tensor | None = None, memory: Any = None
    ) -> tuple[Tensor, None]:
        self.longest = max(self.longest, x.shape[1])
        power = self.schedule.alphas_cumprod.double()[k]
        t = torch.arange(x.shape[1], dtype=torch.float64)
        covariance, signal = RHO ** (t[:, None] - t).abs(), power.sqrt()
        seen = signal[:, :, None] * covariance * signal[:, None, :] + torch.diag_embed(1 - power)
        answer = covariance @ (signal[..., None] * torch.linalg.solve(seen, x.double()))
        return answer.to(x.dtype), None


def chain(stitched: bool) -> DiffusionForcing:
    schedule = build_schedule("cosine")
    network: nn.Module = Chain(schedule)
    if stitched:
        network = StitchedNetwork(network, tokens=TOKENS, width=1, overlap=OVERLAP, timesteps=schedule.timesteps)
    return DiffusionForcing(
        network, schedule, build_parameterization("pred_x0", clip_noise=20.0), stabilization_level=1
    )


def levels_of(length: int, total: int, level: int) -> Tensor:
    """[start, plan, goal, absent …]: (1, total)."""
    k = torch.full((1, total), 999)
    k[0, : length + 2] = level
    k[0, [0, length + 1]] = 0
    return k


@pytest.mark.parametrize("length", range(1, 30))
def test_every_token_counts_once(length: int) -> None:
    index, sign = windows_of(length, TOKENS, OVERLAP)
    counts = torch.zeros(length + 2, dtype=torch.long)
    for row, one in zip(index, sign, strict=True):
        own = row[row != ABSENT]
        assert (own.diff() == 1).all()  # neighbours stay neighbours
        counts[own] += one
    assert (counts == 1).all()
    windows = index[sign == 1]
    assert windows[0, 0] == 0 and (windows[1:, 0] == ABSENT).all()  # the start is in the first window, in its place
    assert (windows == length + 1).sum() == 1  # the goal in one
    assert len(windows) == 1 + max(0, -(-(length - TOKENS + 2) // (TOKENS - 2 - OVERLAP)))


def test_nearly_clean_chains_are_denoised_as_the_whole_chain_is() -> None:
    whole, stitched = chain(False), chain(True)
    length, total = 17, 22
    errors = []
    for level in (100, 300, 500, 800):
        k = levels_of(length, total, level)
        x = randn(1, total, 3, seed=1)
        stitched.network.noise = torch.zeros(TOKENS, 3)
        want, got = (forcing.network(x, k)[0][:, : length + 2] for forcing in (whole, stitched))
        errors.append(float((want - got).abs().max() / (want - x[:, : length + 2]).abs().max()))
    assert errors[0] < 0.002 and errors == sorted(errors) and errors[-1] < 0.5
    assert stitched.network.network.longest == TOKENS


def test_sampled_chains_hang_together_across_windows() -> None:
    stitched, length, count = chain(True), 14, 4000
    stitched.network.noise = torch.zeros(TOKENS, 1)
    sampler = Sampler(stitched, sampling_timesteps=30, scheduling_matrix="full_sequence")
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, length + 2, 1, generator=generator)
    x[:, 0], x[:, -1] = 1.5, -1.0
    rows = sampler.matrix(length)
    matrix = torch.cat([rows.new_zeros(len(rows), 1), rows, rows.new_zeros(len(rows), 1)], dim=1)
    plans = sampler.denoise(x, matrix, generator=generator)[..., 0].double()
    # The chain between its known ends.
    t = torch.arange(length + 2, dtype=torch.float64)
    covariance = RHO ** (t[:, None] - t).abs()
    ends, inner = [0, length + 1], list(range(1, length + 1))
    gain = covariance[inner][:, ends] @ torch.linalg.inv(covariance[ends][:, ends])
    mean = gain @ torch.tensor([1.5, -1.0], dtype=torch.float64)
    spread = covariance[inner][:, inner] - gain @ covariance[ends][:, inner]
    assert (plans[:, 1:-1].mean(0) - mean).abs().max() < 0.12
    found = torch.cov(plans[:, 1:-1].T)
    assert (found - spread).abs().max() < 0.2
    step = (plans.diff(dim=1)[:, 1:-1] ** 2).mean(0)  # no seam: a step is as long everywhere
    assert step.max() / step.min() < 1.35


@pytest.mark.parametrize("search", ["none", "candidates"])
def test_a_planner_plans_further_than_its_window(search: str) -> None:
    built = planning(goal_token=True, search=search, candidates=4, frame_stack=2, episode_len=12, stitched_len=40)
    built.support = everywhere()
    planner = built.planner()
    start, goal = randn(2, 2, seed=1), randn(2, 2, seed=2)
    frames = planner.plan_normalized(start, goal, 40, generator=torch.Generator().manual_seed(0))
    assert frames.shape[:2] == (2, 40) and frames.isfinite().all()
    torch.testing.assert_close(frames[:, -1, :2], goal)
    with pytest.raises(UserError, match="horizon 41 exceeds the window of 40"):
        planner.plan_normalized(start, goal, 41)


@pytest.mark.parametrize(
    "changes", [{"stitched_len": 40, "goal_token": False}, {"stitched_len": 7}, {"stitched_len": 12}]
)
def test_what_cannot_be_stitched_is_one_line(changes: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"algorithm\.stitched_len is"):
        planning(**{"goal_token": True, "frame_stack": 2, "episode_len": 12, **changes})
