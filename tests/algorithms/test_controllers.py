from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose

from diffusion_forcing.algorithms.planning.controllers import POINT, PlanFollower, each_step, hold
from diffusion_forcing.errors import UserError


def ball(x: float, y: float, vx: float = 0.0, vy: float = 0.0) -> np.ndarray:
    return np.array([[x, y, vx, vy]])


def line(steps: int, pace: float = 0.02) -> np.ndarray:
    """A plan (1, steps, 2) along the x axis, `pace` metres a step, step 0 being one step from now."""
    return np.stack([pace * np.arange(1, steps + 1), np.zeros(steps)], axis=-1)[None]


def test_pd_pulls_to_this_steps_position_and_damps_the_difference_of_velocities() -> None:
    follower = PlanFollower(np.array([[[0.02, -0.01], [0.05, -0.02], [0.05, -0.02]]]), "pd")
    # the first step has no planned position before it: the ball's own stands in
    assert_allclose(
        follower.act(ball(0.0, 0.0, 0.1, 0.2)),
        [[12.5 * 0.02 + 1.2 * (0.02 - 0.1), 12.5 * -0.01 + 1.2 * (-0.01 - 0.2)]],
    )
    assert_allclose(
        follower.act(ball(0.01, 0.0, 0.1, 0.2)),
        [[12.5 * 0.04 + 1.2 * (0.03 - 0.1), 12.5 * -0.02 + 1.2 * (-0.01 - 0.2)]],
    )


def test_pd_at_the_end_of_its_plan_stays_at_the_last_position() -> None:
    follower = PlanFollower(np.array([[[0.01, 0.0], [0.02, 0.0]]]), "pd")
    for _ in range(2):
        follower.act(ball(0.0, 0.0))
    assert_allclose(follower.act(ball(0.0, 0.0, 0.05)), [[12.5 * 0.02 + 1.2 * (0.0 - 0.05), 0.0]])


def test_pursuit_aims_at_the_first_point_beyond_its_reach() -> None:
    # a plan that climbs 1 m in 20: the 40th point is the first that lies 0.8 m from the start, 0.04 m up
    steps = np.arange(1, 201)
    follower = PlanFollower(np.stack([0.02 * steps, 0.001 * steps], axis=-1)[None], "pursuit")
    assert_allclose(follower.act(ball(0.0, 0.0, 0.3, 0.1)), [[1.0, 10 * 0.04 - 0.1]])
    # from the 50th point on, it is the 90th
    assert_allclose(follower.act(ball(1.0, 0.05, 0.3, 0.1)), [[1.0, 10 * 0.04 - 0.1]])
    # where the plan ends nearer than that, its end
    near = PlanFollower(line(4), "pursuit")
    assert_allclose(near.act(ball(0.0, 0.01, 0.3, 0.0)), [[10 * 0.08 - 0.3, 10 * -0.01]])


def test_pursuit_takes_the_way_from_the_plan_and_not_its_pace() -> None:
    fast, slow = (PlanFollower(line(steps, pace), "pursuit") for steps, pace in ((100, 0.02), (2000, 0.001)))
    assert_allclose(slow.act(ball(0.0, 0.02)), fast.act(ball(0.0, 0.02)), atol=1e-9)
    assert PlanFollower(line(2000, 0.001), "pd").act(ball(0.0, 0.0))[0, 0] < 0.02


def test_pursuit_does_not_cut_short_a_path_that_passes_a_place_twice() -> None:
    # east 2 m, and back west on a line 0.1 m north: at the start the way back is near, but far ahead in steps
    out = np.stack([0.02 * np.arange(1, 101), np.zeros(100)], axis=-1)
    back = np.stack([0.02 * np.arange(100, 0, -1), np.full(100, 0.1)], axis=-1)
    plan = np.concatenate([out, back])[None]
    follower = PlanFollower(plan, "pursuit")
    assert follower.act(ball(0.2, 0.06))[0, 0] == 1.0  # east
    # on its way back it goes west, though the way out lies as near
    returning = PlanFollower(plan, "pursuit")
    for x in np.arange(0.1, 2.0, 0.1):
        returning.act(ball(x, 0.0))
    for x in np.arange(2.0, 1.0, -0.1):
        action = returning.act(ball(x, 0.05))
    assert action[0, 0] == -1.0


def test_pursuit_never_goes_back_on_its_plan() -> None:
    follower = PlanFollower(line(200), "pursuit")
    seen = []
    for x in (0.0, 0.5, 1.0, 0.2, 0.2):
        follower.act(ball(x, 0.0))
        seen.append(int(follower.nearest[0]))
    assert seen == sorted(seen)
    assert seen[2] == 49  # 1 m is step 49's place


def test_planned_actions_are_sent_one_a_step_clipped_and_the_last_repeated() -> None:
    actions = np.array([[[0.5, -0.5], [3.0, -3.0]]])
    follower = PlanFollower(np.zeros((1, 2, 2)), "execute", actions)
    sent = [follower.act(ball(9.0, 9.0))[0].tolist() for _ in range(3)]
    assert sent == [[0.5, -0.5], [1.0, -1.0], [1.0, -1.0]]


@pytest.mark.parametrize("law", ["pd", "pursuit"])
def test_balls_do_not_see_each_other(law: str) -> None:
    plans = np.concatenate([line(100), -line(100), line(100)[..., ::-1]])
    balls = np.concatenate([ball(0.0, 0.1), ball(-0.3, 0.0, 0.2), ball(0.0, 0.5, 0.0, 0.3)])
    together = PlanFollower(plans, law)
    alone = [PlanFollower(plans[i : i + 1], law) for i in range(3)]
    for _ in range(3):
        found = together.act(balls)
        assert_allclose(found, np.concatenate([one.act(balls[i : i + 1]) for i, one in enumerate(alone)]))
        assert (np.abs(found) <= 1).all()
        balls = balls + 0.01


def test_holding_pulls_to_the_goal_and_damps_the_velocity() -> None:
    goals = np.array([[1.0, 2.0]])
    assert_allclose(hold(ball(0.98, 2.01, 0.1, -0.2), goals), [[0.0, 0.3]], atol=1e-12)
    assert_allclose(hold(ball(0.0, 5.0), goals), [[1.0, -1.0]])
    assert_allclose(hold(ball(1.0, 2.0), goals), [[0.0, 0.0]])


def test_an_unknown_law_is_refused_with_the_nearest() -> None:
    with pytest.raises(UserError, match=r"controller 'persuit'.*did you mean 'pursuit'"):
        PlanFollower(line(3), "persuit")


def test_a_point_is_moved_onto_the_plan_and_straight_to_an_aim_beyond_its_reach() -> None:
    here = np.array([[1.0, 2.0]])
    plan = np.array([[[1.1, 1.9], [1.2, 2.0]]])
    assert_allclose(here + 0.2 * PlanFollower(plan, "pd", drive=POINT).act(here), plan[:, 0])
    assert_allclose(PlanFollower(np.array([[[9.0, 4.0]]]), "pursuit", drive=POINT).act(here), [[1.0, 0.25]])
    assert_allclose(hold(here, np.array([[0.9, 2.0]]), POINT), [[-0.5, 0.0]])


def test_a_plan_of_every_few_steps_is_filled_up_on_straight_lines() -> None:
    plan, start = np.array([[[2.0, 0.0], [2.0, 4.0]]]), np.zeros((1, 2))
    assert_allclose(each_step(plan, start, 2), [[[1, 0], [2, 0], [2, 2], [2, 4]]])
    assert each_step(plan, start, 1) is plan
