"""The agent that OGBench's evaluation asks: it follows its planner, and plans when it must."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from diffusion_forcing.algorithms.planning.controllers import PlanningAgent
from diffusion_forcing.datasets.mazes.antmaze import load_executor
from diffusion_forcing.environments.mazes.point import POINT_MAZES, TASKS, VectorPointMaze
from diffusion_forcing.errors import UserError
from tests.algorithms.small import planning

MEDIUM = POINT_MAZES["medium"]
EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "ogbench_evaluation.py"


def agent_that_knows_the_way(horizon: int = 40, **body: Any) -> tuple[PlanningAgent, list[np.ndarray]]:
    """An agent whose planner is replaced by the centres of the cells on the shortest way, and the starts it is asked for."""
    agent = PlanningAgent(
        planning(frame_skip=5, episode_len=60, frame_stack=3, open_loop_horizon=horizon, controller="pursuit"), **body
    )
    asked: list[np.ndarray] = []

    def plan(start: torch.Tensor, goal: torch.Tensor, steps: int, **_: Any) -> tuple[Any, None]:
        asked.append(start.numpy())
        here, there = start[:, :2].numpy(), goal[:, :2].numpy()
        cells = MEDIUM.shortest_path(MEDIUM.cell_at(here[0]), MEDIUM.cell_at(there[0]))[1:]
        corners = np.concatenate([here, MEDIUM.centre(np.array(cells).reshape(-1, 2)), there])
        at = np.linspace(0, len(corners) - 1, steps)
        way = np.stack([np.interp(at, np.arange(len(corners)), column) for column in corners.T], axis=1)
        return type("Steps", (), {"observations": torch.from_numpy(way[None])}), None

    agent.planner.plan = plan  # type: ignore[method-assign, assignment]
    return agent, asked


def test_ogbenchs_loop_reaches_its_goals() -> None:
    gymnasium = pytest.importorskip("gymnasium")
    pytest.importorskip("ogbench.locomaze")
    evaluate = runpy.run_path(str(EXAMPLE))["evaluate"]
    agent, asked = agent_that_knows_the_way()
    for task in (3, 5):
        plans = len(asked)
        success, steps = evaluate(agent, gymnasium.make("pointmaze-medium-v0"), task, 1)
        assert success == 1 and steps < 250
        assert np.abs(asked[plans][0] - MEDIUM.centre(TASKS["medium"][task - 1][0])).max() <= 1
        assert len(asked) - plans == -(-int(steps) // 40)


def test_in_ogbenchs_loop_an_ant_is_moved_by_its_executor() -> None:
    gymnasium = pytest.importorskip("gymnasium")
    pytest.importorskip("ogbench.locomaze")
    evaluate = runpy.run_path(str(EXAMPLE))["evaluate"]
    agent, _ = agent_that_knows_the_way(body="ant", executor=load_executor("ogbench_ant_executor"))
    success, steps = evaluate(agent, gymnasium.make("antmaze-medium-v0"), 3, 1)
    assert success == 1 and steps < 300


def test_it_plans_again_for_a_new_goal_and_a_new_place_and_not_otherwise() -> None:
    agent, asked = agent_that_knows_the_way(horizon=1000)
    here, there = MEDIUM.centre(TASKS["medium"][0][0]), MEDIUM.centre(TASKS["medium"][0][1])
    for observation, goal, plans in (
        (here, there, 1),
        (here + 0.2, there, 1),
        (here + 0.2, there + 0.1, 2),
        (there, there + 0.1, 3),
    ):
        agent.sample_actions(observation, goal)
        assert len(asked) == plans == agent.plans


def test_rows_give_rows_and_the_seed_decides_the_plan_above_temperature_0() -> None:
    def actions(seed: Any, temperature: float) -> np.ndarray:
        agent = PlanningAgent(planning(frame_skip=5, episode_len=60, frame_stack=3, scheduling_matrix="full_sequence"))
        return agent.sample_actions(np.zeros((3, 2)), np.ones((3, 2)), seed=seed, temperature=temperature)

    with torch.random.fork_rng():
        first, same, other, cold, colder = (
            actions(seed, heat) for seed, heat in ((1, 1.0), (1, 1.0), (2, 1.0), (1, 0.0), (2, 0.0))
        )
    assert first.shape == (3, 2)
    assert np.array_equal(first, same) and not np.array_equal(first, other) and np.array_equal(cold, colder)


@pytest.mark.parametrize(
    ("observations", "goals", "message"),
    [
        (np.zeros(1), np.zeros(2), "observations must be"),
        (np.zeros(2), np.full(2, np.nan), "goals must be"),
        (np.zeros((2, 2)), np.zeros(2), "2 observations and 1 goals"),
    ],
)
def test_what_it_cannot_act_on_is_refused(observations: Any, goals: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        PlanningAgent(planning()).sample_actions(observations, goals)


def test_it_also_plays_our_environments() -> None:
    agent, _ = agent_that_knows_the_way()
    env = VectorPointMaze(MEDIUM, 1)
    observations, info = env.reset(seed=0)
    for _ in range(400):
        observations, reward, *_ = env.step(agent.sample_actions(observations, info["goal"]))
        if reward.all():
            break
    assert reward.all()
