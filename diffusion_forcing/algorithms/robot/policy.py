"""The trained model as a policy: it observes, remembers, and samples the next actions.

The past is kept as the network allows (`diffusion.history`): as one latent, or as the keys and values of a window. A
noisy or blocked camera is shown as noise of the level that the network is conditioned on.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from diffusion_forcing.algorithms.robot.algorithm import Robot
from diffusion_forcing.algorithms.robot.augmentation import is_blocked
from diffusion_forcing.diffusion.history import History, OnRow, Tokens, build_history
from diffusion_forcing.errors import UserError


class RobotPolicy:
    """Acts for b robots in step: `observe` after the last actions, then `act`; `reset` before an episode.

    generator: of the random numbers drawn while acting.
    """

    def __init__(self, robot: Robot, *, generator: torch.Generator | None = None) -> None:
        self.robot = robot
        self.sampler = robot.sampler()
        self.generator = generator
        self._executed: Tensor | None = None
        self._history: History | None = None
        self._batch = 0
        self.blocked: Tensor | None = None
        """(b, cameras) bool: cameras that showed nothing at the last observation."""

    def reset(self) -> None:
        self._history = self._executed = self.blocked = None

    @torch.no_grad()
    def observe(self, frames: Tensor, *, state: Tensor | None = None, executed: Tensor | None = None) -> None:
        """Remember frames (b, cameras, 3, h, w), uint8 or in [0, 1], seen after the actions `executed` (b, n, 8).

        executed: by default the last output of `act`. state: (b, 8) or (8,), the grippers' state as an action; needed
        at the first observation, before which the arms stood still.
        """
        robot, options = self.robot, self.robot.options
        frames = frames.to(robot.device)
        executed = self._executed if executed is None else executed.to(robot.device)
        if executed is None or not options.memory:
            executed = self._waiting(len(frames), state)
        self.blocked = is_blocked(frames, options.blocked_contrast)
        token = self._noised(robot.tokens(frames[:, None], executed[:, None]))
        if self._history is None or not options.memory:
            self._history = build_history(
                "streaming",
                self.sampler.forcing.network,
                chunk=max(1, options.chunk_size),
                window=options.n_frames,
                prefill=self._prefill,
                whole_rows=True,
            )
        self._history.append(token)
        self._batch = len(frames)

    @torch.no_grad()
    def act(self) -> tuple[Tensor, Tensor]:
        """The next actions (b, n, 8), and the frames expected after them (b, cameras, 3, h, w) in [0, 1]."""
        if self._history is None:
            raise UserError("the policy has observed nothing yet; call observe(frames) before act()")
        robot, options = self.robot, self.robot.options
        shape = (self._batch, max(1, options.chunk_size), *robot.layout.shape)
        noise = self.sampler.noise(shape, robot.device, self.generator)
        conditions = noise.new_zeros(*shape[:2], options.parts) if options.part_noise else None
        x = self._history.denoise(Tokens(noise, conditions), self.sampler.matrix(shape[1]), self._denoise_rows)
        frames, actions = robot.decode(x[:, :1])
        self._executed = actions[:, 0]
        return actions[:, 0], frames[:, 0].clamp(0, 1)

    def _waiting(self, batch: int, state: Tensor | None) -> Tensor:
        """(b, n, 8): actions that keep the grippers where they are."""
        if state is None:
            raise UserError("the policy does not know the gripper's state; pass state, (8,) as an action")
        state = state.to(self.robot.device, torch.float32)
        return state.expand(batch, 8)[:, None].expand(batch, self.robot.options.action_stack, 8).clone()

    def _noised(self, x: Tensor) -> Tokens:
        """A clean token x: (b, 1, *shape) with noisy parts noised. Its conditions are the levels (b, 1, parts), −1
        for clean."""
        options, last = self.robot.options, self.robot.options.diffusion.timesteps - 1
        levels = torch.tensor((*options.observation_noise_levels, 0)).to(x.device, non_blocking=True)
        levels = levels.repeat(len(x), 1, 1)
        if options.detect_blocked and self.blocked is not None:
            levels[:, 0, :-1] = torch.where(self.blocked, last, levels[:, 0, :-1])
        if options.part_noise and not options.memory:
            levels[:, 0, -1] = last  # the actions that led here are forgotten too
        if not options.part_noise:
            levels = levels.amax(dim=-1, keepdim=True).expand_as(levels)  # a token has the level of its noisiest part
        levels = torch.where(levels >= self.sampler.forcing.stabilization_level, levels, -1)
        noise = self.sampler.noise(x.shape, x.device, self.generator)
        clean = torch.full(x.shape[:2], -1, device=x.device)
        return Tokens(self.robot.noise_parts(x, clean, levels, noise), levels.float())

    def _prefill(self, tokens: Tokens, memory: Any) -> Any:
        """The network's memory after tokens from `_noised`."""
        forcing = self.sampler.forcing
        assert tokens.conditions is not None
        levels = tokens.conditions.long()
        if self.robot.options.part_noise:
            shown = torch.full(levels.shape[:2], forcing.stabilization_level - 1, device=levels.device)
            conditions = self.robot.part_conditions(torch.maximum(levels, shown[..., None]), shown)
            return forcing.prefill(tokens.x, conditions=conditions, memory=memory)
        x, k = forcing.stabilize(tokens.x, levels[..., 0])
        return forcing(x, k, None, memory)[1]

    def _denoise_rows(self, tokens: Tokens, matrix: Tensor, memory: Any = None, on_row: OnRow | None = None) -> Tensor:
        return self.sampler.denoise(
            tokens.x, matrix, conditions=tokens.conditions, memory=memory, generator=self.generator, on_row=on_row
        )


class LeRobotPolicy:
    """A `RobotPolicy` with the methods of LeRobot's policies: `reset` before an episode, `select_action` in every step.

    cameras: the names of the images, in the order of the training data. The network is asked once for `action_stack`
    actions; what the cameras see in between is not read, as in training.
    """

    def __init__(
        self, robot: Robot, *, cameras: Sequence[str] = ("front", "over"), generator: torch.Generator | None = None
    ) -> None:
        expected = robot.options.n_cameras
        if len(cameras) != expected:
            raise UserError(f"cameras names {len(cameras)} of them, the policy was trained with {expected}; name each")
        self.policy = RobotPolicy(robot, generator=generator)
        self._images = [f"observation.images.{camera}" for camera in cameras]
        self._actions: deque[Tensor] = deque()

    def reset(self) -> None:
        """Forget the last episode."""
        self.policy.reset()
        self._actions.clear()

    def select_action(self, batch: Mapping[str, Tensor]) -> Tensor:
        """The next actions (b, 8) of b robots, [x, y, z, qx, qy, qz, qw, grasp].

        batch: "observation.images.<camera>" (b, 3, h, w), uint8 or in [0, 1], and "observation.state" (b, 8).
        UserError where one is missing.
        """
        if not self._actions:
            for key in (*self._images, "observation.state"):
                if key not in batch:
                    raise UserError(f"the batch has no {key!r}, only {sorted(batch)}; rename its keys or pass cameras=")
            frames = torch.stack([batch[key] for key in self._images], dim=1)
            self.policy.observe(frames, state=batch["observation.state"])
            self._actions.extend(self.policy.act()[0].unbind(dim=1))
        return self._actions.popleft()
