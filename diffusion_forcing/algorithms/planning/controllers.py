"""From a plan to actions: what moves the body, once a plan says where it should be.

Three laws. `execute`: send the planned actions (plans with diffused actions). `pd`: the released law, which wants the body at the plan's
position of this very step. `pursuit`: aims at the point of the plan a little ahead of the body, wherever the body is on it, so the plan
gives the way and the body sets the pace; a plan as slow as the data it learned from no longer holds it back. Around them, `hold` keeps a
reached goal, which the data never shows (the released planner wanders off). A `Drive` has the gains for a body.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from diffusion_forcing.algorithms.planning.algorithm import Planning
from diffusion_forcing.errors import UserError, check_choice

CONTROLLERS = ("pd", "pursuit")
# plan steps ahead in which the nearest point is looked for: a path that passes a place twice is not cut short
SEARCH_STEPS = 60

Array = NDArray[np.float64]
Gains = tuple[float, float]
"""Action per metre to the aim, and per m/s of velocity against it."""


@dataclass(frozen=True, kw_only=True)
class Drive:
    """How a body is steered.

    look_ahead: metres between the body and the point of the plan it is pulled to, about a corridor's free width. stuck_pace: metres a
    step, a fifth of full speed; slower is stuck. jump: metres that no step moves. straight: an action past ±1 is scaled, not clipped, so
    that the body moves straight to its aim.
    """

    pd: Gains
    pursuit: Gains
    hold: Gains
    look_ahead: float
    stuck_pace: float
    jump: float
    straight: bool = False

    def action(self, gains: Gains, way: Array, velocity: Array | float) -> Array:
        """Actions (n, 2) in [−1, 1] for the way (n, 2) to the aims, in metres."""
        action = gains[0] * way - gains[1] * velocity
        if self.straight:
            action = action / np.maximum(np.abs(action).max(axis=-1, keepdims=True), 1)
        return np.clip(action, -1, 1)


BALL = Drive(
    pd=(12.5, 1.2),  # the released law (docs/method.md §10)
    pursuit=(10.0, 1.0),  # the data's own controller's
    hold=(10.0, 2.0),  # stiff, nearly critically damped
    look_ahead=0.8,
    stuck_pace=0.01,
    jump=0.2,
)
"""D4RL's ball, which is pushed."""
POINT = Drive(
    pd=(5.0, 0.0), pursuit=(5.0, 0.0), hold=(5.0, 0.0), look_ahead=1.3, stuck_pace=0.04, jump=1.0, straight=True
)
"""OGBench's point, which an action moves by 0.2 m."""
ANT = Drive(
    pd=(0.5, 0.0), pursuit=(0.5, 0.0), hold=(0.5, 0.0), look_ahead=1.5, stuck_pace=0.02, jump=1.0, straight=True
)
"""OGBench's ant, which an executor moves the way of the action."""
DRIVES = {"ball": BALL, "point": POINT, "ant": ANT}


@dataclass
class PlanFollower:
    """Follows plans for n bodies at once. positions: (n, h, 2) in data units, step 0 being one step from now; actions: (n, h, 2) or None.

    law: `pd`, `pursuit`, or `execute` (needs actions). Make a new one for every new plan.
    """

    positions: Array
    law: str
    actions: Array | None = None
    drive: Drive = BALL

    def __post_init__(self) -> None:
        check_choice("controller", self.law, (*CONTROLLERS, "execute"))
        self.step = 0
        self.previous: Array | None = None
        self.nearest = np.zeros(len(self.positions), dtype=np.int64)

    def act(self, observations: Array) -> Array:
        """Actions (n, 2) in [−1, 1] for bodies at observations (n, 4): x, y, vx, vy, or (n, 2 or 29): x, y, … Call once a step."""
        match self.law:
            case "execute":
                assert self.actions is not None
                action = self.actions[:, min(self.step, self.actions.shape[1] - 1)]
            case "pd":
                action = self._pd(observations)
            case _:
                action = self._pursuit(observations)
        self.step += 1
        return np.clip(action, -1, 1)

    def _pd(self, observations: Array) -> Array:
        """Gain·(p_t − p) + damping·((p_t − p_{t−1}) − v), p_t the planned position of this step."""
        position = observations[:, :2]
        target = self.positions[:, min(self.step, self.positions.shape[1] - 1)]
        previous = position if self.previous is None else self.previous
        self.previous = target
        return self.drive.action(self.drive.pd, target - position, _velocity(observations) - (target - previous))

    def _pursuit(self, observations: Array) -> Array:
        """Gain·(target − p) − damping·v, the target being the first plan point, past the nearest one, that lies `look_ahead` away."""
        position = observations[:, :2]
        horizon = self.positions.shape[1]
        distance = np.linalg.norm(self.positions - position[:, None], axis=-1)
        steps = np.arange(horizon)
        near = (steps >= self.nearest[:, None]) & (steps < self.nearest[:, None] + SEARCH_STEPS)
        self.nearest = np.where(near, distance, np.inf).argmin(axis=1)
        passed = steps < self.nearest[:, None]
        ahead = (distance > self.drive.look_ahead) & ~passed
        target = np.where(ahead.any(axis=1), ahead.argmax(axis=1), horizon - 1)
        aim = self.positions[np.arange(len(position)), target]
        return self.drive.action(self.drive.pursuit, aim - position, _velocity(observations))


def hold(observations: Array, goals: Array, drive: Drive = BALL) -> Array:
    """Actions (n, 2) that keep bodies at observations (n, 4) or (n, 2) on goals (n, 2)."""
    return drive.action(drive.hold, goals - observations[:, :2], _velocity(observations))


def _velocity(observations: Array) -> Array | float:
    return observations[:, 2:4] if observations.shape[1] == 4 else 0.0


def each_step(plan: Array, start: Array, every: int) -> Array:
    """Positions (n, h·every, 2) of each step on the straight lines through `start` (n, 2) and a plan (n, h, 2) of every so many steps."""
    if every == 1:
        return plan
    share = (np.arange(every) + 1)[:, None] / every
    before = np.concatenate([start[:, None], plan[:, :-1]], axis=1)
    fine = before[:, :, None] + share * (plan - before)[:, :, None]
    return fine.reshape(len(plan), -1, 2)


class PlanningAgent:
    """Follows plans of `planning`, a trained planner of positions or of actions too. body: `point`, `ball` or `ant`.
    executor: what turns observations (n, 29) and ways (n, 2) into an ant's actions (n, 8).

    It plans again after `open_loop_horizon` steps, for another goal, and where the body has jumped: a new episode.
    """

    def __init__(
        self, planning: Planning, body: str = "point", executor: Callable[[Array, Array], Array] | None = None
    ) -> None:
        check_choice("body", body, DRIVES)
        self.options, self.drive, self.executor = planning.options, DRIVES[body], executor
        self.planner, self._device = planning.eval().planner(), planning.device
        self.plans = 0
        """Plans drawn so far."""
        self._generator = torch.Generator(self._device).manual_seed(0)
        self._follower: PlanFollower | None = None
        self._goals = self._last = np.zeros((0, 2))

    def sample_actions(
        self, observations: ArrayLike, goals: ArrayLike, seed: Any = None, temperature: float = 1.0
    ) -> NDArray[np.float64]:
        """Actions in [-1, 1], (2,) or (n, 2), at observations (≥2,) or (n, ≥2) on the way to `goals` of that shape;
        (8,) or (n, 8) of ants.

        seed: an integer or a JAX key, from which a new plan's noise is drawn where `temperature` is above 0; otherwise
        the noise continues from the last plan's. `UserError` for other shapes and for values that are not finite.
        """
        now, wanted = (_rows(array, name) for array, name in ((observations, "observations"), (goals, "goals")))
        if len(now) != len(wanted):
            raise UserError(f"there are {len(now)} observations and {len(wanted)} goals; give one goal for each")
        if self._is_new(now, wanted):
            if seed is not None and temperature > 0:
                words = np.random.SeedSequence(np.asarray(seed).astype(np.uint32).ravel().tolist())
                self._generator.manual_seed(int(words.generate_state(1)[0]))
            self._follower = self._plan(now, wanted)
            self._goals = wanted
        assert self._follower is not None
        self._last = now[:, :2]
        action = self._follower.act(now)
        action = action if self.executor is None else self.executor(now, action)
        return action[0 if np.ndim(observations) == 1 else slice(None)]

    def _is_new(self, now: NDArray[np.float64], goals: NDArray[np.float64]) -> bool:
        follower = self._follower
        return (
            follower is None
            or follower.step >= self.options.open_loop_horizon
            or not np.array_equal(goals, self._goals)
            or bool((np.linalg.norm(now[:, :2] - self._last, axis=1) > self.drive.jump).any())
        )

    def _plan(self, now: NDArray[np.float64], goals: NDArray[np.float64]) -> PlanFollower:
        options, skip = self.options, self.options.frame_skip
        start, target = (torch.tensor(array, dtype=torch.float32, device=self._device) for array in (now, goals))
        with torch.no_grad():
            steps, _ = self.planner.plan(start, target, options.plan_len, generator=self._generator)
        self.plans += len(now)
        positions = each_step(steps.observations[..., :2].cpu().numpy().astype(np.float64), now[:, :2], skip)
        if self.planner.bundle.action_dim:
            actions = steps.actions.cpu().numpy().astype(np.float64).repeat(skip, axis=1)
            return PlanFollower(positions, "execute", actions, self.drive)
        return PlanFollower(positions, options.controller, None, self.drive)


def _rows(array: ArrayLike, name: str) -> NDArray[np.float64]:
    """(n, ≥2) finite floats."""
    rows = np.atleast_2d(np.asarray(array, dtype=np.float64))
    if rows.ndim != 2 or rows.shape[1] < 2 or not np.isfinite(rows).all():
        raise UserError(f"{name} must be (x, y, …) or rows of them, all finite; got shape {np.shape(array)}")
    return rows
