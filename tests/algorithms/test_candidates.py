"""Goal tokens and candidates: what training shows, what sampling holds, and which plan wins."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from diffusion_forcing.algorithms.planning.algorithm import Planning
from diffusion_forcing.algorithms.planning.candidates import DRAWS, SLACK, CandidatePlanner, Drafts, Support, Verdict
from diffusion_forcing.errors import UserError
from tests.algorithms.small import batch, options, planning, randn

F, T = 3, 5  # of `small`: frames a token, tokens


def everywhere(longest_step: float = 1e9) -> Support:
    return Support(torch.ones(200, 200, dtype=torch.bool), (-1000.0, -1000.0), 10.0, longest_step)


def searching(support: Support | None = None, **changes: Any) -> CandidatePlanner:
    built = planning(goal_token=True, search="candidates", **{"candidates": 6, **changes})
    built.support = support or everywhere()
    planner = built.planner()
    assert isinstance(planner, CandidatePlanner)
    return planner


def problem(count: int = 3) -> tuple[Tensor, Tensor]:
    return randn(count, 2, seed=1), randn(count, 2, seed=2)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# ---------------------------------------------------------------------------------------------------- training


def test_a_goal_is_the_state_before_the_drawn_end_shown_nearly_clean() -> None:
    built = planning(goal_token=True)
    tokens, mask = built.encode(batch(1))
    draws = built.draw(1, T, generator=seeded())
    shown: list[tuple[Tensor, Tensor]] = []
    built.forcing.register_forward_pre_hook(lambda module, inputs: shown.append(inputs[:2]))
    quiet = draws._replace(
        end=torch.tensor([3]), goal_levels=torch.tensor([0]), noise=torch.zeros_like(draws.noise), levels=draws.levels
    )
    built.loss(tokens, mask, quiet)
    (x, k), signal = shown[0], built.forcing.schedule.signal(torch.tensor([[0]]), tokens)[:, 0]
    last_frame = tokens[:, 2].unflatten(-1, (F, -1))[:, -1]
    torch.testing.assert_close(x[:, 3], signal * built.bundle.present_normalized(last_frame)[:, 0])
    assert k[0, 3] == 0
    assert k[0, 4] == 999  # absent


def test_half_of_the_sequences_have_a_goal_and_half_of_these_one_level() -> None:
    draws = planning(goal_token=True).draw(4000, T, generator=seeded())
    assert draws.goal_levels is not None and draws.end is not None and draws.first_levels is not None
    has_goal, one_level = draws.goal_levels >= 0, (draws.levels == draws.levels[:, :1]).all(1)
    assert abs(has_goal.float().mean() - 0.5) < 0.03
    assert abs(one_level.float().mean() - 0.25) < 0.03
    assert bool(has_goal[one_level].all())
    assert draws.end[has_goal].max() == T - 1  # there is room for the goal
    assert draws.first_levels[has_goal].max() < 250


def test_a_sequence_that_stops_before_its_end_has_no_goal() -> None:
    built = planning(goal_token=True)
    tokens, mask = built.encode(batch(3))  # the third stops after 8 of 12 steps
    draws = built.draw(3, T, generator=seeded())._replace(
        end=torch.full((3,), 4), goal_levels=torch.zeros(3, dtype=torch.long)
    )
    _, shown = built._with_goals(tokens, mask.unflatten(1, (-1, F)).any(-1), draws)
    whole = mask.unflatten(1, (-1, F)).any(-1)[:, 3]
    assert torch.equal(shown[:, 4], whole)
    assert not shown[:, :4].any()


def test_without_goal_tokens_training_draws_what_it_always_drew() -> None:
    plain, with_goal = (planning(goal_token=on).draw(8, T, generator=seeded()) for on in (False, True))
    assert plain.goal_levels is None
    assert torch.equal(plain.noise, with_goal.noise)


# ---------------------------------------------------------------------------------------------------- sampling


@pytest.mark.parametrize("kind", ["full_sequence", "pyramid", "trapezoid"])
def test_start_and_goal_are_held_in_every_row_and_what_follows_stays_noise(kind: str) -> None:
    planner, (start, goal) = searching(scheduling_matrix=kind), problem()
    drafts = planner.begin(start, goal, torch.tensor([1, 2, 3]), generator=seeded())
    rows: list[tuple[Tensor, Tensor]] = []
    done = planner.denoise(drafts, on_row=lambda row, x, levels: rows.append((x, levels)))
    present = planner.bundle.present_normalized
    for x, _ in rows:
        assert torch.equal(x[:, :1], present(start))
        for plan, end in enumerate((1, 2, 3)):
            assert torch.equal(x[plan, end + 1], present(goal)[plan, 0])
            assert torch.equal(x[plan, end + 2 :], drafts.x[plan, end + 2 :])
    assert (done.matrix[-1] > 0).sum() == 2 + 1 + 0


def test_drafts_of_different_ends_in_one_batch_are_what_each_is_alone() -> None:
    planner, (start, goal) = searching(scheduling_matrix="pyramid"), problem()
    ends, noise = torch.tensor([1, 3, 2]), randn(3, T - 1, planner.bundle.token_width, seed=3)

    def frames(index: list[int]) -> Tensor:
        drafts = planner.begin(start[index], goal[index], ends[index], noise=noise[index])
        return planner.frames_of(planner.denoise(drafts))

    together = frames([0, 1, 2])
    for one in range(3):
        torch.testing.assert_close(frames([one])[0], together[one], atol=1e-4, rtol=1e-4)


def test_a_pause_between_rows_changes_nothing() -> None:
    planner, (start, goal) = searching(), problem()
    drafts = planner.begin(start, goal, torch.tensor([1, 2, 3]), generator=seeded())
    halves = planner.denoise(planner.denoise(drafts, 2))
    assert torch.equal(halves.x, planner.denoise(drafts).x)


def test_a_plan_stands_at_the_goal_from_its_end_on() -> None:
    planner, (start, goal) = searching(), problem()
    frames = planner.plan_normalized(start, goal, 12, generator=seeded())
    torch.testing.assert_close(frames[:, -1], goal)


@pytest.mark.parametrize("roots", [0, 3])
def test_a_problem_is_solved_the_same_whoever_is_in_its_batch(roots: int) -> None:
    planner, (start, goal) = searching(roots=roots), problem()
    noise = randn(3, *planner.noise_shape(12), seed=4)
    together = planner.plan_normalized(start, goal, 12, noise=noise, generator=seeded())
    for one in range(3):
        pick = slice(one, one + 1)
        alone = planner.plan_normalized(start[pick], goal[pick], 12, noise=noise[pick], generator=seeded())
        torch.testing.assert_close(alone[0], together[one], atol=1e-3, rtol=1e-3)


def test_branches_begin_as_the_better_roots_noised_anew() -> None:
    planner, (start, goal) = searching(roots=2, candidates=4), problem(1)
    noise = randn(1, *planner.noise_shape(12), seed=4)
    pair = [point.repeat(2, 1) for point in (start, goal)]
    drafts = planner.denoise(planner.begin(*pair, torch.tensor([2, 2]), noise=noise[0, :2]), 2)
    branched = planner._branched(drafts, noise)
    assert len(branched.x) == 4
    root = [bool(torch.equal(branched.x[0], x)) for x in drafts.x]
    assert sum(root) == 1  # the first goes on as it was
    assert len({tuple(x[1].tolist()) for x in branched.x}) == 4  # the others differ
    held = branched.matrix[0] == branched.matrix[-1]
    torch.testing.assert_close(
        branched.x[held], branched.x[:1].expand(4, -1, -1)[held]
    )  # start, goal and absent tokens


class Chosen(CandidatePlanner):
    """Draws the plans that it is given."""

    drawn: Drafts

    def _drawn(self, *inputs: Any) -> Drafts:
        return self.drawn


def choosing(paths: list[list[float]], support: Support) -> Tensor:
    """Which of straight plans along x, each a list of frames' positions, is chosen from 0 to the last: its positions."""
    own = planning(goal_token=True, search="candidates", candidates=len(paths), frame_stack=1, episode_len=T - 1)
    own.support = support
    planner = own.planner()
    planner.__class__ = Chosen
    ends = torch.tensor([len(path) for path in paths])
    to_frames = lambda x: (torch.tensor([[x, 0.0]]) - planner.bundle.mean) / planner.bundle.std  # noqa: E731
    start, goal = to_frames(0.0).expand(len(paths), 2), to_frames(3.0).expand(len(paths), 2)
    drafts = planner.begin(start, goal, ends, generator=seeded())
    for row, path in enumerate(paths):
        for step, x in enumerate(path):
            drafts.x[row, 1 + step] = to_frames(x)[0]
    planner.drawn = drafts
    frames = planner.plan_normalized(start[:1], goal[:1], T - 1, generator=seeded())
    return (frames * planner.bundle.std + planner.bundle.mean)[0, :, 0]


def test_the_shortest_supported_plan_wins() -> None:
    long, short, too_fast = [1.0, -1.0, 1.5], [1.0, 2.0, 3.0], [3.0]
    chosen = choosing([long, short, too_fast], everywhere(longest_step=2.6 / SLACK))
    torch.testing.assert_close(chosen, torch.tensor([1.0, 2.0, 3.0, 3.0]), atol=1e-5, rtol=0)


def test_where_none_is_supported_the_least_wrong_wins() -> None:
    chosen = choosing([[9.0, -9.0, 9.0], [1.0, 9.0, 3.0]], everywhere(longest_step=2.6 / SLACK))
    torch.testing.assert_close(chosen, torch.tensor([1.0, 9.0, 3.0, 3.0]), atol=1e-5, rtol=0)


def test_a_continued_plan_is_kept_where_it_is_supported_and_drawn_anew_where_not() -> None:
    (start, goal), generator = problem(), seeded()
    planner = searching(candidates=8)
    first = planner.plan_normalized(start, goal, 12, generator=generator)
    calls: list[int] = []
    drawn = planner._drawn
    planner._drawn = lambda start, *rest: calls.append(len(start)) or drawn(start, *rest)  # type: ignore[method-assign, func-returns-value]
    kept = planner.plan_normalized(start, goal, 12, previous=first[:, 3:], restart=1, generator=generator)
    assert calls == []
    assert (kept[:, :6] - first[:, 3:9]).abs().mean() < (kept[:, :6] - first[:, 3:9].roll(1, 0)).abs().mean()
    planner.support = everywhere(longest_step=1e-9)
    planner.plan_normalized(start, goal, 12, previous=first[:, 3:], restart=1, generator=generator)
    assert calls == [3] * DRAWS  # nothing is supported


def test_candidates_are_drawn_again_until_one_is_supported() -> None:
    planner, (start, goal) = searching(candidates=2), problem()
    judged, calls = planner._choose, []

    def second_time(drafts: Drafts, count: int) -> tuple[Drafts, Verdict]:
        """Problem 1 is solved at once, the others when they are drawn again."""
        calls.append(count)
        kept, verdict = judged(drafts, count)
        supported = torch.tensor([False, True, False]) if len(calls) == 1 else torch.ones(count, dtype=torch.bool)
        return kept, verdict._replace(supported=supported)

    planner._choose = second_time  # type: ignore[method-assign]
    noise = randn(3, *planner.noise_shape(12), seed=4)
    found = planner.plan_normalized(start, goal, 12, noise=noise, generator=seeded())
    assert calls == [3, 2]
    planner._choose = judged  # type: ignore[method-assign]
    again = planner.plan_normalized(start, goal, 12, noise=-noise.roll(1, 2), generator=seeded())
    torch.testing.assert_close(found[0], again[0], atol=1e-3, rtol=1e-3)


# ---------------------------------------------------------------------------------------------------- support


def corridor() -> tuple[np.ndarray, np.ndarray]:
    """A walk up and down an L of width 0.2: along x at y = 0, then along y at x = 10."""
    rng = np.random.default_rng(0)
    along = np.abs((np.arange(60_000) * 0.05) % 40 - 20)
    positions = np.stack([along.clip(max=10), (along - 10).clip(min=0)], 1) + rng.uniform(-0.1, 0.1, (60_000, 2))
    return positions, np.array([[0, 60_000]])


def test_support_is_where_the_data_has_been_and_as_fast() -> None:
    support = Support.of(*corridor(), frame_skip=10)
    inside = torch.tensor([[4.0, 0.0], [4.4, 0.0], [4.8, 0.0]])
    across = torch.tensor([[9.0, 0.0], [9.3, 0.3], [9.6, 0.6]])
    jump = torch.tensor([[4.0, 0.0], [6.0, 0.0], [6.4, 0.0]])
    outside = torch.tensor([[4.0, 0.0], [4.0, 0.4], [4.0, -900.0]])
    verdict = support.judge(torch.stack([inside, across, jump, outside]))
    assert verdict.supported.tolist() == [True, False, False, False]
    assert verdict.first.tolist() == [2, 0, 0, 0]
    assert (verdict.unvisited > 0).tolist() == [False, True, False, True]
    torch.testing.assert_close(verdict.excess[2], torch.tensor(2.0 - SLACK * support.longest_step))


def test_support_survives_a_checkpoint() -> None:
    support = Support.of(*corridor(), frame_skip=10)
    again = Support.from_statistics({key: torch.tensor(value) for key, value in support.statistics().items()})
    assert again is not None
    assert torch.equal(again.grid, support.grid)
    assert again.cell == pytest.approx(support.cell) and again.longest_step == pytest.approx(support.longest_step)
    assert Support.from_statistics({}) is None


@pytest.mark.parametrize(
    "change",
    [
        {"support": [1.0]},
        {"support_frame": [0.0]},
        {"support_frame": [0, 0, -1, 1, 8, 8]},
        {"support_frame": [0, 0, 1, 1, -2, -4], "support": [1.0]},
    ],
)
def test_a_damaged_support_grid_is_refused(change: dict[str, list[float]]) -> None:
    statistics = Support.of(*corridor(), frame_skip=10).statistics() | change
    with pytest.raises(UserError, match="support grid is damaged"):
        Support.from_statistics({key: torch.tensor(value) for key, value in statistics.items()})


def test_too_little_data_is_refused() -> None:
    positions, _ = corridor()
    with pytest.raises(UserError, match=r"30 positions are too few.*algorithm\.search=none"):
        Support.of(positions[:3000:100], np.array([[0, 30]]))
    for nowhere in (np.zeros((0, 2)), np.ones((50, 2))):
        with pytest.raises(UserError, match="too few"):
            Support.of(nowhere, np.array([[0, len(nowhere)]]))


# ---------------------------------------------------------------------------------------------------- options


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"goal_token": True, "causal": True}, "algorithm.goal_token"),
        ({"goal_token": True, "noise_level": "shared"}, None),
        ({"goal_token": True, "noise_level": "full_sequence", "scheduling_matrix": "full_sequence"}, "goal_token"),
        ({"search": "candidates"}, "algorithm.search=candidates"),
        ({"candidates": 0}, "algorithm.candidates"),
        ({"candidates": 4, "roots": 5}, "algorithm.roots"),
        ({"branch_at": 1.5}, "algorithm.branch_at"),
    ],
)
def test_options_that_do_not_go_together_are_refused(changes: dict[str, Any], key: str | None) -> None:
    if key is None:
        options(**changes)
        return
    with pytest.raises(UserError, match=key):
        options(**changes)


def test_weights_without_support_cannot_be_searched() -> None:
    with pytest.raises(UserError, match="goal_token=True"):
        planning(goal_token=True, search="candidates").planner()


def test_a_checkpoint_says_where_its_data_has_been() -> None:
    built: Planning = planning(goal_token=True)
    assert "statistics" not in built.describe()
    built.support = Support.of(*corridor())
    assert set(built.describe()["statistics"]) == {"support", "support_frame"}
