"""From a plan to actions: what pushes the ball, once a plan says where it should be.

Three laws. `execute`: send the planned actions (plans with diffused actions). `pd`: the released law, which wants the ball at the plan's
position of this very step. `pursuit`: aims at the point of the plan a little ahead of the ball, wherever the ball is on it, so the plan
gives the way and the ball sets the pace; a plan as slow as the data it learned from no longer holds the ball back. Around them, `stay`
holds the goal once it has been reached, which the data never shows (the released planner wanders off).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diffusion_forcing.errors import UserError, did_you_mean

CONTROLLERS = ("pd", "pursuit")
PD_GAIN, PD_DAMPING = 12.5, 1.2  # the released law (docs/method.md §10)
HOLD_GAIN, HOLD_DAMPING = 10.0, 2.0  # at a reached goal: stiff, nearly critically damped for this ball
LOOK_AHEAD = 0.8  # metres between the ball and the point it is pulled to, about a corridor's width
PURSUIT_GAIN, PURSUIT_DAMPING = 10.0, 1.0  # the data's own controller's gains
# plan steps ahead in which the nearest point is looked for: a path that passes a place twice is not cut short
SEARCH_STEPS = 60

Array = NDArray[np.float64]


@dataclass
class PlanFollower:
    """Follows plans for n balls at once. positions: (n, h, 2) in data units, step 0 being one step from now; actions: (n, h, 2) or None.

    law: `pd`, `pursuit`, or `execute` (needs actions). Make a new one for every new plan.
    """

    positions: Array
    law: str
    actions: Array | None = None

    def __post_init__(self) -> None:
        if self.law not in (*CONTROLLERS, "execute"):
            raise UserError(
                f"controller '{self.law}' is not known; allowed: {', '.join(CONTROLLERS)}{did_you_mean(self.law, CONTROLLERS)}"
            )
        self.step = 0
        self.previous: Array | None = None
        self.nearest = np.zeros(len(self.positions), dtype=np.int64)

    def act(self, observations: Array) -> Array:
        """Actions (n, 2) in [−1, 1] for balls at observations (n, 4): x, y, vx, vy. Call once a step."""
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
        """12.5·(p_t − p) + 1.2·((p_t − p_{t−1}) − v), p_t the planned position of this step."""
        position, velocity = observations[:, :2], observations[:, 2:4]
        target = self.positions[:, min(self.step, self.positions.shape[1] - 1)]
        previous = position if self.previous is None else self.previous
        self.previous = target
        return PD_GAIN * (target - position) + PD_DAMPING * ((target - previous) - velocity)

    def _pursuit(self, observations: Array) -> Array:
        """10·(target − p) − v, the target being the first plan point, past the nearest one, that lies LOOK_AHEAD away."""
        position, velocity = observations[:, :2], observations[:, 2:4]
        horizon = self.positions.shape[1]
        distance = np.linalg.norm(self.positions - position[:, None], axis=-1)
        steps = np.arange(horizon)
        near = (steps >= self.nearest[:, None]) & (steps < self.nearest[:, None] + SEARCH_STEPS)
        self.nearest = np.where(near, distance, np.inf).argmin(axis=1)
        passed = steps < self.nearest[:, None]
        ahead = (distance > LOOK_AHEAD) & ~passed
        target = np.where(ahead.any(axis=1), ahead.argmax(axis=1), horizon - 1)
        aim = self.positions[np.arange(len(position)), target]
        return PURSUIT_GAIN * (aim - position) - PURSUIT_DAMPING * velocity


def hold(observations: Array, goals: Array) -> Array:
    """Actions (n, 2) that keep balls at observations (n, 4) on goals (n, 2)."""
    return np.clip(HOLD_GAIN * (goals - observations[:, :2]) - HOLD_DAMPING * observations[:, 2:4], -1, 1)
