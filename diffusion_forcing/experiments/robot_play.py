"""Playing robot_swap with a policy: look, decide for all episodes at once, carry a stack of actions out, look again."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from diffusion_forcing.algorithms.robot_policy import RobotPolicy
from diffusion_forcing.environments.swap import SwapEnv
from diffusion_forcing.environments.swap_batch import SwapBatch

Pictures = NDArray[np.uint8]


@dataclass
class Filmed:
    """An episode that is filmed. scene: after each action, the cameras' large pictures (cameras, H, W, 3) and whether each was blocked
    (cameras,); seen, expected: at each look, (cameras, h, w, 3) what the policy saw and what it had expected to see (None at the first)."""

    scene: list[Pictures] = field(default_factory=list)
    covered: list[NDArray[np.bool_]] = field(default_factory=list)
    looks: list[int] = field(default_factory=list)
    seen: list[Pictures] = field(default_factory=list)
    expected: list[Pictures | None] = field(default_factory=list)


@dataclass(frozen=True)
class Played:
    """success: (n,) bool; actions: (n,) how many were carried out; seconds: of each decision, all episodes together; films: of the first."""

    success: NDArray[np.bool_]
    actions: NDArray[np.int64]
    seconds: list[float]
    films: list[Filmed]


def play(
    batch: SwapBatch, policy: RobotPolicy, *, films: int = 0, on_look: Callable[[int], None] | None = None
) -> Played:
    """Play all episodes of `batch` to their end. films: how many are filmed; on_look(episodes that go on) is told before each decision."""
    policy.reset()
    filmed = [Filmed() for _ in range(min(films, len(batch.envs)))]
    expected: Pictures | None = None
    seconds: list[float] = []

    def watch(number: int, env: SwapEnv) -> None:
        if number < len(filmed):
            filmed[number].scene.append(np.stack([env.scene.look(camera, FILM_PIXELS) for camera in batch.cameras]))
            filmed[number].covered.append(env.covered[: len(batch.cameras)])

    for number in range(len(filmed)):
        watch(number, batch.envs[number])
    while not batch.over.all():
        if on_look is not None:
            on_look(int((~batch.over).sum()))
        pictures, states = batch.look()
        for number, one in enumerate(filmed):
            if not batch.over[number]:
                one.looks.append(int(batch.actions[number]))
                one.seen.append(pictures[number].transpose(0, 2, 3, 1))
                one.expected.append(None if expected is None else expected[number])
        began = time.perf_counter()
        policy.observe(torch.from_numpy(pictures), state=torch.from_numpy(states))
        actions, frames = policy.act()
        chosen = actions.cpu().numpy()
        seconds.append(time.perf_counter() - began)
        expected = (255 * frames.cpu().numpy()).round().astype(np.uint8).transpose(0, 1, 3, 4, 2)
        batch.move(chosen, watch if filmed else None)
    return Played(batch.success.copy(), batch.actions.copy(), seconds, filmed)


FILM_PIXELS = 192
"""A side of a camera's picture in a film."""
