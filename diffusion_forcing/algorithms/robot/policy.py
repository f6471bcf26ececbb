"""The trained model as a policy: it is shown what was seen and done, remembers, and says what to do next.

The past is kept as the network keeps it (`diffusion.history`): one latent, or the keys and values of a window. A camera that is noisy, or blocked, is
shown as noise of the level that the network is told.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from diffusion_forcing.algorithms.robot.algorithm import Robot
from diffusion_forcing.algorithms.robot.tokens import blocked
from diffusion_forcing.diffusion.history import History, OnRow, Tokens, build_history
from diffusion_forcing.errors import UserError


class RobotPolicy:
    """`observe` what is seen after the actions last given out, then `act`; `reset` before an episode. b robots in step.

    generator: what acting draws from. wait: (8,) the action of an arm that has not begun; needed where `observe` is not told the state.
    """

    def __init__(self, robot: Robot, *, generator: torch.Generator | None = None, wait: Tensor | None = None) -> None:
        self.robot = robot
        self.sampler = robot.sampler()
        self.generator = generator
        self.wait = wait
        self._done: Tensor | None = None
        self._history: History | None = None
        self._batch = 0
        self.blocked: Tensor | None = None
        """(b, cameras) bool: cameras that showed nothing when last looked at."""

    def reset(self) -> None:
        """Forget everything."""
        self._history = self._done = self.blocked = None

    @torch.no_grad()
    def observe(self, frames: Tensor, *, state: Tensor | None = None, done: Tensor | None = None) -> None:
        """Remember frames (b, cameras, 3, h, w), uint8 or in [0, 1], seen after the actions `done`: (b, n, 8), by default those that `act` gave.

        state: (b, 8) or (8,), where the grippers are, as an action: what an arm that has done nothing has done.
        """
        robot, options = self.robot, self.robot.options
        frames = frames.to(robot.device)
        done = self._done if done is None else done.to(robot.device)
        if done is None or not options.memory:
            done = self._waiting(len(frames), state)
        self.blocked = blocked(frames, options.blocked_contrast)
        shown = self._shown(robot.tokens(frames[:, None], done[:, None]))
        if self._history is None or not options.memory:
            self._history = build_history(
                "streaming",
                self.sampler.forcing.network,
                shown[:0],
                end=0,
                window=options.n_frames,
                prefill=self._remember,
                whole_rows=True,
            )
        self._history.append(shown)
        self._batch = len(frames)

    @torch.no_grad()
    def act(self) -> tuple[Tensor, Tensor]:
        """The next actions (b, n, 8), and what the model expects to see after them, frames (b, cameras, 3, h, w) in [0, 1]."""
        if self._history is None:
            raise UserError("the policy has seen nothing yet; call observe(frames) before act()")
        robot, options = self.robot, self.robot.options
        ahead = max(1, options.chunk_size)
        batch = self._batch
        noise = self.sampler.noise((batch, ahead, *robot.layout.shape), device=robot.device, generator=self.generator)
        conditions = None
        if options.part_noise:
            conditions = noise.new_zeros(batch, ahead, options.parts)
        x = self._history.denoise(Tokens(noise, conditions), self.sampler.matrix(ahead), self._denoise_rows)
        frames, actions = robot.decode(x[:, :1])
        self._done = actions[:, 0]
        return actions[:, 0], frames[:, 0].clamp(0, 1)

    # ------------------------------------------------------------------------------------------------ how

    def _waiting(self, batch: int, state: Tensor | None) -> Tensor:
        """(b, n, 8): actions that stay where the grippers are."""
        options = self.robot.options
        if state is None:
            state = self.wait
        if state is None:
            raise UserError("the policy does not know where the gripper is; pass state, (8,) as an action")
        state = state.to(self.robot.device, torch.float32)
        return state.expand(batch, 8)[:, None].expand(batch, options.action_stack, 8).clone()

    def _shown(self, x: Tensor) -> Tokens:
        """A clean token x: (b, 1, *shape) as it is remembered: what is noisy noised, its conditions the level (b, 1, parts) of each part."""
        options, last = self.robot.options, self.robot.options.diffusion.timesteps - 1
        levels = torch.tensor((*options.observation_noise_levels, 0), device=x.device).repeat(len(x), 1, 1)
        if options.detect_blocked and self.blocked is not None:
            levels[:, 0, :-1] = torch.where(self.blocked, last, levels[:, 0, :-1])
        if options.part_noise and not options.memory:
            levels[:, 0, -1] = last  # what led here is forgotten too
        if not options.part_noise:  # a token has the level of its worst part
            levels = levels.amax(dim=-1, keepdim=True).expand_as(levels)
        base = self.sampler.forcing.stabilization_level - 1
        levels = torch.where(levels > base, levels, -1)
        noise = self.sampler.noise(tuple(x.shape), device=x.device, generator=self.generator)
        clean = torch.full(x.shape[:2], -1, device=x.device)
        return Tokens(self.robot.noised_parts(x, clean, levels, noise), levels.float())

    def _denoise_rows(self, tokens: Tokens, matrix: Tensor, memory: Any = None, on_row: OnRow | None = None) -> Tensor:
        return self.sampler.denoise(
            tokens.x, matrix, conditions=tokens.conditions, memory=memory, generator=self.generator, on_row=on_row
        )

    def _remember(self, tokens: Tokens, memory: Any) -> Any:
        """The memory after tokens as `_shown` made them."""
        forcing = self.sampler.forcing
        assert tokens.conditions is not None
        levels = tokens.conditions.long()
        base = torch.full(levels.shape[:2], forcing.stabilization_level - 1, device=levels.device)
        if self.robot.options.part_noise:
            told = self.robot.told(torch.maximum(levels, base[..., None]), base)
            return forcing.prefill(tokens.x, conditions=told, memory=memory)
        shown, k = forcing.stabilize(tokens.x, levels[..., 0])
        return forcing(shown, k, None, memory)[1]
