"""Bundles: a step of a trajectory as one vector [observation, action, reward], f steps stacked as one token (docs/method.md §10).

Token 0 is the present: the current observation f times over (or zeros before it), its action and reward 0. Every later token holds f
future steps. The lengths of the configured means say what is in a bundle: position; position and velocity; actions too.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from diffusion_forcing.errors import UserError, require


class Steps(NamedTuple):
    """observations: (b, h, o), actions: (b, h, a), rewards: (b, h, 1 or 0), in data units unless said otherwise."""

    observations: Tensor
    actions: Tensor
    rewards: Tensor


class Bundle(nn.Module):
    """Packs steps into normalised tokens and back. `mean` and `std`: (c,) of [observation, action, reward]."""

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        observation_mean: tuple[float, ...],
        observation_std: tuple[float, ...],
        action_mean: tuple[float, ...] = (),
        action_std: tuple[float, ...] = (),
        reward: tuple[float, float] | None = None,
        *,
        frame_stack: int = 10,
        padding_mode: Literal["same", "zero"] = "same",
    ) -> None:
        super().__init__()
        self.observation_dim, self.action_dim = len(observation_mean), len(action_mean)
        self.reward_dim = 0 if reward is None else 1
        self.frame_stack = frame_stack
        self.padding_mode = padding_mode
        reward_mean, reward_std = ((), ()) if reward is None else ((reward[0],), (reward[1],))
        self.register_buffer("mean", _vector(*observation_mean, *action_mean, *reward_mean), persistent=False)
        self.register_buffer("std", _vector(*observation_std, *action_std, *reward_std), persistent=False)

    @property
    def width(self) -> int:
        """c: numbers in one step's bundle."""
        return self.observation_dim + self.action_dim + self.reward_dim

    @property
    def token_width(self) -> int:
        """f·c: numbers in one token."""
        return self.frame_stack * self.width

    def encode(
        self, observations: Tensor, actions: Tensor, rewards: Tensor, nonterminal: Tensor
    ) -> tuple[Tensor, Tensor]:
        """A trajectory of 1 + n·f steps as tokens (b, 1 + n, f·c) and the mask of real frames (b, (1 + n)·f) bool.

        observations: (b, L, ≥o), actions: (b, L, ≥a), rewards: (b, L); columns past o and a are not modelled. nonterminal: (b, ≥L−1)
        bool, whether step i leads on to step i+1; the first that does not ends the sequence. Future step i is [observation i+1,
        action i, reward i].
        """
        length = observations.shape[1]
        if (length - 1) % self.frame_stack or length < 1 + self.frame_stack:
            raise UserError(
                f"trajectories of {length} steps do not fit frame_stack {self.frame_stack}; "
                f"dataset.episode_len (here {length - 1}) must be a multiple of algorithm.frame_stack"
            )
        for name, got, needed in (
            ("observations", observations.shape[-1], self.observation_dim),
            ("actions", actions.shape[-1], self.action_dim),
        ):
            require(got >= needed, f"the data has {got} {name}, but dataset.{name[:-1]}_mean names {needed}")
        future = [observations[:, 1:, : self.observation_dim], actions[:, :-1, : self.action_dim]]
        if self.reward_dim:
            future.append(rewards[:, :-1, None])
        frames = (torch.cat(future, dim=-1) - self.mean) / self.std
        present = self.present(observations[:, 0])
        alive = nonterminal[:, : length - 1].cumprod(dim=1).bool()
        mask = torch.cat([alive.new_ones(len(alive), self.frame_stack), alive], dim=1)
        return torch.cat([present, self.stack(frames)], dim=1), mask

    def present(self, observation: Tensor) -> Tensor:
        """Token 0 of observations (b, ≥o) in data units: (b, 1, f·c), normalised."""
        o = self.observation_dim
        return self.present_normalized((observation[:, :o] - self.mean[:o]) / self.std[:o])

    def present_normalized(self, observation: Tensor) -> Tensor:
        """Token 0 of observations (b, o) that are normalised already: (b, 1, f·c)."""
        frame = torch.cat(
            [observation, observation.new_zeros(len(observation), self.width - self.observation_dim)], dim=-1
        )
        frames = frame[:, None].repeat(1, self.frame_stack, 1)
        if self.padding_mode == "zero":
            frames[:, :-1] = 0
        return self.stack(frames)

    def decode(self, frames: Tensor) -> Steps:
        """Normalised frames (b, h, c) as steps in data units."""
        steps = frames * self.std + self.mean
        o, a = self.observation_dim, self.action_dim
        return Steps(steps[..., :o], steps[..., o : o + a], steps[..., o + a :])

    def stack(self, frames: Tensor) -> Tensor:
        """(b, n·f, c) → (b, n, f·c), frame-major."""
        b, n, c = frames.shape
        return frames.reshape(b, n // self.frame_stack, self.frame_stack * c)

    def unstack(self, tokens: Tensor) -> Tensor:
        """(b, n, f·c) → (b, n·f, c)."""
        b, n, _ = tokens.shape
        return tokens.reshape(b, n * self.frame_stack, self.width)


def _vector(*numbers: float) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float32)
