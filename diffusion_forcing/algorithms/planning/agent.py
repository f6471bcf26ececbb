"""A planner as an agent that is asked for one action at a time, as OGBench's evaluation does."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from diffusion_forcing.algorithms.planning.algorithm import Planning
from diffusion_forcing.algorithms.planning.controllers import DRIVES, PlanFollower, each_step
from diffusion_forcing.errors import UserError, check_choice


class PlanningAgent:
    """Follows plans of `planning`, a trained planner of positions or of actions too. body: `point` or `ball`.

    It plans again after `open_loop_horizon` steps, for another goal, and where the body has jumped: a new episode.
    """

    def __init__(self, planning: Planning, body: str = "point") -> None:
        check_choice("body", body, DRIVES)
        self.options, self.drive = planning.options, DRIVES[body]
        self.planner, self._device = planning.eval().planner(), planning.device
        self.plans = 0
        """Plans drawn so far."""
        self._generator = torch.Generator(self._device).manual_seed(0)
        self._follower: PlanFollower | None = None
        self._goals = self._last = np.zeros((0, 2))

    def sample_actions(
        self, observations: ArrayLike, goals: ArrayLike, seed: Any = None, temperature: float = 1.0
    ) -> NDArray[np.float64]:
        """Actions in [-1, 1], (2,) or (n, 2), at observations (≥2,) or (n, ≥2) on the way to `goals` of that shape.

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
        return self._follower.act(now)[0 if np.ndim(observations) == 1 else slice(None)]

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
            steps, _ = self.planner.plan(start, target, options.episode_len, generator=self._generator)
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
