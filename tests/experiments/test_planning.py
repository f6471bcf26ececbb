"""Playing episodes: who is planned for, what is followed, and that nobody depends on who plays beside."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal

from diffusion_forcing.algorithms.base import DiffusionOptions, TransformerOptions
from diffusion_forcing.algorithms.planning.algorithm import Planning, PlanningOptions
from diffusion_forcing.algorithms.planning.candidates import Support
from diffusion_forcing.algorithms.planning.controllers import hold
from diffusion_forcing.algorithms.planning.planner import PlannerOptions
from diffusion_forcing.algorithms.planning.tokens import Bundle, Steps
from diffusion_forcing.algorithms.planning.tree_search import TreeOptions
from diffusion_forcing.environments.mazes.layout import Maze
from diffusion_forcing.environments.mazes.maze2d import VectorMaze2d
from diffusion_forcing.environments.mazes.point import VectorPointMaze, point_maze
from diffusion_forcing.experiments.planning import LEAST_PULL, Episodes, play, rows_of_plan

MAZE = Maze.from_ascii(r"#######\#OOOOO#\#O###O#\#OOOOG#\#######")
CPU = torch.device("cpu")
PLAY = PlanningOptions(
    observation_mean=(0.0, 0.0),
    observation_std=(1.0, 1.0),
    open_loop_horizon=10,
    episode_len=40,
    controller="pd",
    stay_at_goal=True,
)


def untrained(*, actions: bool = False, sampling_timesteps: int = 3, eta: float = 0.0, **changes: Any) -> Planning:
    statistics: dict[str, Any] = {"observation_mean": (2.0, 3.0), "observation_std": (0.8, 1.4)}
    if actions:
        statistics = {
            "observation_mean": (2.0, 3.0, 0.0, 0.0),
            "observation_std": (0.8, 1.4, 2.0, 2.0),
            "action_mean": (0.0, 0.0),
            "action_std": (0.7, 0.7),
        }
    small = TransformerOptions(network_size=16, num_layers=1, attn_heads=2, dim_feedforward=16)
    diffusion = DiffusionOptions(architecture=small, sampling_timesteps=sampling_timesteps, ddim_sampling_eta=eta)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        options = PlanningOptions(
            **statistics,
            **{"episode_len": 40, "scheduling_matrix": "full_sequence", "open_loop_horizon": 10, **changes},
            diffusion=diffusion,
        )
        return Planning(options).eval()


def played(
    planner: Any, count: int, options: PlanningOptions = PLAY, *, first: int = 0, steps: int = 40, goal: Any = "random"
) -> Episodes:
    env = VectorMaze2d(MAZE, count, goal=goal, max_steps=steps)
    with torch.no_grad():
        return play(env, planner, options, seed=3, first_episode=first, device=CPU)


class Script:
    """A planner that notes what it is asked and plans to stay where the ball is, moved by `pace` metres a step along y."""

    def __init__(self, pace: float = 0.0) -> None:
        self.bundle = Bundle((0.0, 0.0), (1.0, 1.0), frame_stack=10)
        self.options = PlannerOptions(max_tokens=5)
        self.context_frames = 0
        self.pace = pace
        self.starts: list[np.ndarray] = []
        self.pulls: list[list[float] | None] = []

    def noise_shape(self, horizon: int) -> tuple[int, ...]:
        return -(-horizon // 10), self.bundle.token_width

    def plan(self, start: torch.Tensor, goal: torch.Tensor, horizon: int, **asked: Any) -> tuple[Steps, torch.Tensor]:
        self.starts.append(start.numpy().copy())
        self.pulls.append(None if asked["pull"] is None else asked["pull"].tolist())
        ahead = torch.arange(1, horizon + 1)[:, None] * torch.tensor([0.0, self.pace])
        frames = start[:, None, :2] + ahead
        return self.bundle.decode(frames), frames


# ---------------------------------------------------------------------------------------------- who plays beside whom


@pytest.mark.parametrize("changes", [{}, {"refine": 0.5, "guidance_stop": 0.5}], ids=["plain", "refined"])
@pytest.mark.slow
def test_an_episode_is_the_same_whatever_is_played_beside_it(changes: dict[str, Any]) -> None:
    planner = untrained(**changes).planner()
    options = replace(PLAY, ease_when_stuck=True, controller="pursuit")
    together = played(planner, 3, options)
    for number in range(3):
        alone = played(planner, 1, options, first=number)
        assert_allclose(alone.trajectories[0], together.trajectories[number], atol=1e-3)
        assert_array_equal(alone.goals[0], together.goals[number])


@pytest.mark.parametrize("changes", [{"eta": 1.0}, {"mcg_samples": 2}], ids=["eta", "monte carlo"])
def test_what_is_drawn_on_the_way_follows_from_the_episodes_seed_alone(changes: dict[str, Any]) -> None:
    planner = untrained(**changes).planner()
    runs = []
    for seed in (0, 1):  # the training's seed: it changes no episode
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            runs.append(played(planner, 2, steps=12).plans)
    for (_, one), (_, other) in zip(*runs, strict=True):
        assert_array_equal(one, other)


def test_goals_are_the_mazes_own_or_drawn_for_each_episode() -> None:
    fixed, drawn = (played(Script(), 3, goal=goal, steps=2).goals for goal in ("dataset", "random"))
    assert len(np.unique(fixed.round(), axis=0)) == 1
    assert_allclose(fixed[0], MAZE.fixed_goal, atol=0.2)
    assert len(np.unique(drawn, axis=0)) == 3


# ---------------------------------------------------------------------------------------------------- a reached goal


def starting_at(points: list[list[float]], goals: list[list[float]], steps: int) -> VectorMaze2d:
    """Balls that start and finish where they are told, however `play` resets."""
    env = VectorMaze2d(MAZE, len(points), max_steps=steps)
    reset = env.reset

    def placed(*, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        return reset(seed=seed, options={**(options or {}), "starts": points, "goals": goals})

    env.reset = placed  # type: ignore[method-assign]
    return env


def test_a_reached_goal_is_held_and_that_ball_is_planned_for_no_more() -> None:
    def run(stay: bool) -> tuple[Script, Episodes]:
        script = Script(pace=0.02)  # away along y
        env = starting_at([[1.0, 1.0], [1.0, 3.0]], [[1.0, 1.2], [3.0, 5.0]], steps=60)
        return script, play(env, script, replace(PLAY, stay_at_goal=stay, controller="pursuit"), seed=0, device=CPU)  # type: ignore[arg-type]

    script, stayed = run(True)
    assert stayed.rewards[0].all()
    assert [len(start) for start in script.starts] == [2, 1, 1, 1, 1, 1]
    assert np.linalg.norm(stayed.trajectories[0, -1, :2] - stayed.goals[0]) < 0.05
    assert_array_equal(stayed.plans[1][1][0], np.repeat(stayed.goals[:1], 40, axis=0))
    script, left = run(False)
    assert 0 < left.rewards[0].sum() < 60
    assert [len(start) for start in script.starts] == [2] * 6
    # the ball that never reaches its goal is played the same both ways
    assert_array_equal(stayed.trajectories[1], left.trajectories[1])


def test_when_all_have_reached_their_goals_nothing_is_planned() -> None:
    script = Script()
    env = starting_at([[1.0, 1.0]], [[1.0, 1.0]], steps=35)
    result = play(env, script, PLAY, seed=0, device=CPU)  # type: ignore[arg-type]
    assert len(script.starts) == len(result.plans) == len(result.seconds) == 1
    assert_allclose(hold(result.trajectories[:, -1], result.goals), 0, atol=0.05)


# -------------------------------------------------------------------------------------------------------- stuck balls


def test_only_a_stuck_ball_is_pulled_half_as_hard_each_time_down_to_the_least() -> None:
    # one starts at a wall that its plan crosses, the other has 4 m of corridor
    script = Script(pace=0.03)
    env = starting_at([[2.0, 5.1], [1.0, 1.0]], [[3.0, 1.0], [3.0, 1.0]], steps=100)
    options = replace(PLAY, open_loop_horizon=20, ease_when_stuck=True)
    play(env, script, options, seed=0, device=CPU)  # type: ignore[arg-type]
    stuck, moving = zip(*script.pulls, strict=True)  # type: ignore[arg-type]
    assert stuck == (1.0, 0.5, 0.25, LEAST_PULL, LEAST_PULL)
    assert moving == (1.0,) * 5


def test_a_ball_that_gets_going_again_is_pulled_harder_again() -> None:
    class Waits(Script):
        def plan(self, *args: Any, **asked: Any) -> Any:
            self.pace = 0.03 if len(self.starts) >= 2 else 0.0
            return super().plan(*args, **asked)

    script = Waits()
    env = starting_at([[1.0, 1.0]], [[3.0, 1.0]], steps=80)
    play(env, script, replace(PLAY, open_loop_horizon=20, ease_when_stuck=True), seed=0, device=CPU)  # type: ignore[arg-type]
    assert script.pulls[:3] == [[1.0], [0.5], [0.25]]
    assert 0.25 < script.pulls[3][0] <= 1.0  # type: ignore[index]


def test_a_ball_is_not_stuck_because_it_is_planned_for_often() -> None:
    script = Script(pace=0.03)
    env = starting_at([[1.0, 1.0]], [[3.0, 1.0]], steps=90)
    options = replace(PLAY, open_loop_horizon=5, controller="pursuit", ease_when_stuck=True)
    play(env, script, options, seed=0, device=CPU)  # type: ignore[arg-type]
    assert script.pulls[3:] == [[1.0]] * (len(script.pulls) - 3)  # after the standing start


def test_without_easing_every_plan_is_pulled_as_configured() -> None:
    script = Script()
    played(script, 2)
    assert script.pulls == [None] * 4


# ------------------------------------------------------------------------------------------------------------- actions


def test_plans_with_actions_are_carried_out_by_their_actions() -> None:
    planner = untrained(actions=True).planner()
    made: list[np.ndarray] = []
    plan = planner.plan

    def keep(*args: Any, **asked: Any) -> Any:
        steps, frames = plan(*args, **asked)
        made.append(steps.actions.numpy())
        return steps, frames

    planner.plan = keep  # type: ignore[method-assign]
    env = VectorMaze2d(MAZE, 2, goal="random", max_steps=20)
    sent: list[np.ndarray] = []
    step = env.step

    def push(actions: Any) -> Any:
        sent.append(np.array(actions))
        return step(actions)

    env.step = push  # type: ignore[method-assign]
    play(env, planner, replace(PLAY, stay_at_goal=False), seed=3, device=CPU)
    expected = np.concatenate([plans[:, :10] for plans in made], axis=1).clip(-1, 1)
    assert_allclose(np.stack(sent, axis=1), expected, atol=1e-6)


def test_a_horizon_ends_with_the_episode() -> None:
    result = played(untrained().planner(), 2, replace(PLAY, warm_start=0.5, stay_at_goal=False), steps=25)
    assert [(step, plan.shape) for step, plan in result.plans] == [(0, (2, 25, 2)), (10, (2, 15, 2)), (20, (2, 5, 2))]
    assert result.rewards.shape == (2, 25) and result.trajectories.shape == (2, 26, 4)


# ------------------------------------------------------------------------------------------- a point, every few steps


def crossing(starts: list[list[float]], goals: list[list[float]], steps: int) -> VectorPointMaze:
    """Points in a corridor along x, from y = 0."""
    env = VectorPointMaze(point_maze(r"###\#O#\#O#\#O#\###"), len(starts), max_steps=steps)
    reset = env.reset
    env.reset = lambda **asked: reset(  # type: ignore[method-assign]
        seed=asked["seed"], options={**asked["options"], "starts": starts, "goals": goals}
    )
    return env


class East(Script):
    """Plans 1 m along x for each planned step."""

    def plan(self, start: torch.Tensor, goal: torch.Tensor, horizon: int, **asked: Any) -> tuple[Steps, torch.Tensor]:
        self.starts.append(start.numpy().copy())
        frames = start[:, None] + torch.arange(1.0, horizon + 1)[:, None] * torch.tensor([1.0, 0.0])
        return self.bundle.decode(frames), frames


def test_a_plan_of_every_fifth_step_is_followed_step_by_step() -> None:
    script, options = (
        East(),
        replace(PLAY, frame_skip=5, frame_stack=2, open_loop_horizon=10, episode_len=4, stay_at_goal=False),
    )
    env = crossing([[0.0, 0.0]], [[8.0, 0.0]], steps=22)
    result = play(env, script, options, seed=0, device=CPU)  # type: ignore[arg-type]
    assert [(step, plan.shape) for step, plan in result.plans] == [(0, (1, 20, 2)), (10, (1, 15, 2)), (20, (1, 5, 2))]
    assert_allclose(result.trajectories[0, :, 0], 0.2 * np.arange(23), atol=1e-5)


def test_an_episode_that_ends_at_its_goal_is_over_there() -> None:
    script, options = East(), replace(PLAY, frame_skip=5, open_loop_horizon=10, episode_len=10, stay_at_goal=False)
    env = crossing([[0.0, 0.0], [0.0, 0.0]], [[2.1, 0.0], [5.1, 0.0]], steps=60)
    stepped: list[int] = []
    result = play(env, script, options, seed=0, device=CPU, on_step=stepped.append)  # type: ignore[arg-type]
    assert result.rewards.sum(axis=1).tolist() == [1, 1]
    assert (result.rewards.argmax(axis=1) + 1).tolist() == [6, 21]  # the first steps within 1 m of the goals
    assert [len(start) for start in script.starts] == [2, 1, 1]
    assert env.steps == 21 and sum(stepped) == 2 * 60
    assert result.trajectories.shape == (2, 61, 2)


def test_the_history_of_coarse_steps_is_every_fifth_observation_and_the_mean_of_the_actions() -> None:
    class Remembering(East):
        def __init__(self) -> None:
            super().__init__()
            self.bundle = Bundle((0.0, 0.0), (1.0, 1.0), frame_stack=2)
            self.context_frames = 4
            self.pasts: list[Any] = []

        def plan(self, *args: Any, **asked: Any) -> Any:
            self.pasts.append(asked["past"])
            return super().plan(*args, **asked)

    script, options = Remembering(), replace(PLAY, frame_skip=5, open_loop_horizon=10, episode_len=10)
    play(crossing([[0.0, 0.0]], [[8.0, 0.0]], steps=40), script, options, seed=0, device=CPU)  # type: ignore[arg-type]
    assert script.pasts[0] is None
    assert_allclose(script.pasts[1].observations[0, :, 0], [0, 1], atol=1e-5)
    assert_allclose(script.pasts[3].observations[0, :, 0], [2, 3, 4, 5], atol=1e-5)
    assert_allclose(script.pasts[3].actions[0], [[1, 0]] * 4, atol=1e-5)


# ----------------------------------------------------------------------------------------- the film of the first plan

TREE = {"guidance": (0.0, 1.0), "rows": 2, "stride": 2, "expansions": 6, "parallel": 3, "longest_step": 9.0}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"refine": 0.5, "guidance_stop": 0.5},
        {"goal_token": True},
        {"goal_token": True, "search": "candidates", "candidates": 3},
        {"goal_token": True, "search": "candidates", "candidates": 4, "roots": 2},
        {"search": "fast_mctd", "tree": TreeOptions(**TREE)},
    ],
    ids=["plain", "refined", "goal", "candidates", "branches", "tree"],
)
def test_the_film_of_a_plan_ends_with_the_plan_that_was_followed(changes: dict[str, Any]) -> None:
    built = untrained(**changes)
    built.support = Support(torch.zeros(4, 4, dtype=torch.bool), (0.0, 0.0), 1.0, 1.0)  # supports nothing: four draws
    planner = built.planner()
    result = played(planner, 2, steps=40)
    for episode in range(2):
        rows, levels, others = rows_of_plan(planner, built.options, result, episode, seed=3, device=CPU)
        assert_allclose(rows[-1], result.plans[0][1][episode], atol=1e-3)
        assert len(rows) == len(levels) == len(others) <= 5 and (levels[-1] == 0).all()
        if changes.get("candidates") == 3:
            assert len(rows) == 3 and others.shape == (3, 2, 40, 2)  # one draw of the four, of three rows each
