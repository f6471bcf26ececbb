"""Playing mazes: plan, follow the plan for a while, look where the ball is, plan again.

All episodes of a group run side by side in one vectorised environment and are planned for in one batch. The noise of a plan belongs to
(seed, episode, replanning), so episode 7 of seed 0 is the same whatever else is played beside it (with ddim_sampling_eta 0 and
mcg_samples 1; what those draw on the way belongs to the group: seed, first episode, replanning).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from diffusion_forcing.algorithms.bundle import Steps
from diffusion_forcing.algorithms.controllers import PlanFollower, hold
from diffusion_forcing.algorithms.planner import Planner
from diffusion_forcing.environments.vector import VectorMaze2d

Array = NDArray[np.float64]
NOISE_STREAM = 3  # third number of a plan's seed; the environments draw from streams 0 to 2
STUCK_PACE = 0.01  # metres a step, a fifth of full speed: a ball this near to where it was planned for before was led in a circle, or into a wall
LEAST_PULL = 0.125  # of the guidance scale


@dataclass(frozen=True, kw_only=True)
class Episodes:
    """What was played. rewards: (n, T) 0 or 1; trajectories: (n, T+1, 4) observations; goals: (n, 2); plans: the positions (n, h, 2) of
    each planning, one an entry, with the step it was made at; seconds: wall time of each planning call over the plans in it."""

    rewards: Array
    trajectories: Array
    goals: Array
    plans: list[tuple[int, Array]]
    seconds: Array


@dataclass(frozen=True, kw_only=True)
class PlayOptions:
    """How plans are carried out; the options of `algorithm=df_planning` of the same names."""

    open_loop_horizon: int
    episode_len: int
    controller: str
    stay_at_goal: bool
    warm_start: float
    ease_when_stuck: bool = False


def play(
    env: VectorMaze2d,
    planner: Planner,
    options: PlayOptions,
    *,
    seed: int,
    first_episode: int = 0,
    device: torch.device,
    on_step: Callable[[int, int], None] | None = None,
) -> Episodes:
    """Episodes first_episode… of `seed`, one an environment. on_step(done, all) is told after each step."""
    n, steps = env.num_envs, env.max_steps
    observations, _ = env.reset(seed=seed, options={"first_episode": first_episode})
    trajectory, rewards = [observations.copy()], np.zeros((n, steps))
    pushes: list[Array] = []
    reached = np.zeros(n, dtype=bool)
    plans: list[tuple[int, Array]] = []
    seconds: list[float] = []
    frames: torch.Tensor | None = None
    follower: PlanFollower | None = None
    pull, seen = np.ones(n), list[Array]()
    for step in range(steps):
        waiting = ~reached if options.stay_at_goal else np.ones(n, dtype=bool)
        if step % options.open_loop_horizon == 0 and waiting.any():
            horizon = min(options.episode_len, steps - step)
            index = np.flatnonzero(waiting)
            numbers = [first_episode + int(i) for i in index]
            noise = _noise(planner, horizon, [(seed, number, NOISE_STREAM, step) for number in numbers]).to(device)
            again = None
            if planner.options.refine > 0:
                again = _noise(planner, horizon, [(seed, number, NOISE_STREAM, step, 1) for number in numbers]).to(
                    device
                )
            if options.ease_when_stuck:
                here = observations[:, :2]
                back = np.zeros(n, dtype=bool)
                for place in seen:
                    back |= np.linalg.norm(here - place, axis=1) < STUCK_PACE * options.open_loop_horizon
                pull = np.where(back, np.maximum(pull / 2, LEAST_PULL), 1.0)
                seen.append(here.copy())
            previous, restart = None, None
            if frames is not None and options.warm_start > 0:
                previous = frames[torch.from_numpy(index)][:, options.open_loop_horizon :][:, :horizon]
                restart = max(1, round(options.warm_start * planner.sampler.sampling_timesteps))
                previous = None if previous.shape[1] == 0 else previous
            began = time.perf_counter()
            planned, new_frames = planner.plan(
                torch.tensor(observations[index], dtype=torch.float32, device=device),
                torch.tensor(env.goals[index], dtype=torch.float32, device=device),
                horizon,
                noise=noise,
                refine_noise=again,
                pull=torch.tensor(pull[index], dtype=torch.float32, device=device) if options.ease_when_stuck else None,
                previous=previous,
                restart=restart,
                past=_past(planner, index, trajectory, pushes, rewards[:, :step], device),
                generator=_generator(device, (seed, first_episode, NOISE_STREAM, step, 2)),
            )
            positions = planned.observations[..., :2].cpu().numpy().astype(np.float64)
            seconds.append((time.perf_counter() - began) / len(index))
            whole = np.repeat(env.goals[:, None], horizon, axis=1)
            whole[index] = positions
            actions = None
            if planner.bundle.action_dim:
                actions = np.zeros((n, horizon, 2))
                actions[index] = planned.actions.cpu().numpy()
            if options.warm_start > 0:
                kept = new_frames.new_zeros(n, *new_frames.shape[1:])
                kept[torch.from_numpy(index)] = new_frames
                frames = kept
            plans.append((step, whole))
            follower = PlanFollower(whole, "execute" if actions is not None else options.controller, actions)
        action = np.zeros((n, 2)) if follower is None else follower.act(observations)
        if options.stay_at_goal:
            action = np.where(reached[:, None], hold(observations, env.goals), action)
        observations, reward, *_ = env.step(action)
        pushes.append(np.clip(action, -1, 1))
        rewards[:, step] = reward
        reached |= reward > 0
        trajectory.append(observations.copy())
        if on_step is not None:
            on_step(step + 1, steps)
    return Episodes(
        rewards=rewards,
        trajectories=np.stack(trajectory, axis=1),
        goals=env.goals.copy(),
        plans=plans,
        seconds=np.array(seconds),
    )


def _past(
    planner: Planner,
    index: NDArray[np.int64],
    trajectory: list[Array],
    pushes: list[Array],
    rewards: Array,
    device: torch.device,
) -> Steps | None:
    """The last steps before the present of episodes `index`, as many whole tokens as the planner looks back on; None: none."""
    f = planner.bundle.frame_stack
    count = min(planner.context_frames, len(pushes)) // f * f
    if not count:
        return None
    parts = [
        np.stack(trajectory[-count - 1 : -1], axis=1),
        np.stack(pushes[-count:], axis=1),
        rewards[:, -count:, None],
    ]
    return Steps(*(torch.tensor(part[index], dtype=torch.float32, device=device) for part in parts))


def _noise(planner: Planner, horizon: int, seeds: list[tuple[int, ...]]) -> torch.Tensor:
    """Standard normal tokens (n, ⌈horizon/f⌉, f·c), each sample from its own seed."""
    bundle = planner.bundle
    shape = (-(-horizon // bundle.frame_stack), bundle.token_width)
    return torch.stack(
        [torch.from_numpy(np.random.default_rng(s).standard_normal(shape, dtype=np.float32)) for s in seeds]
    )


def _generator(device: torch.device, seeds: tuple[int, ...]) -> torch.Generator:
    """For what a planning call draws beside its first noise: rows with eta, Monte Carlo continuations."""
    word = np.random.SeedSequence(seeds).generate_state(1, np.uint64)[0]
    return torch.Generator(device).manual_seed(int(word) % 2**63)
