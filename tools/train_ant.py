"""Train the two networks that make OGBench's ant walk: the expert by soft actor-critic, the executor by cloning.

    python tools/train_ant.py expert pretrained/ogbench_ant_expert
    python -m main dataset=ogbench_antmaze_medium experiment.tasks=[generate_dataset]
    python tools/train_ant.py executor pretrained/ogbench_ant_executor data/ogbench/antmaze-medium-*.npz

The expert learns on open ground to walk in a given direction, which changes every 40 steps on average. A step's
reward is the speed in that direction (m/s), less a fifth of that aside and a little for torque. Critics have layer
normalisation. The executor is fitted to the actions of AntMaze data, OGBench's own or generated with the expert; the
subgoal of a step is where the ant was some steps later. Every batch is doubled by its mirror image. One core.
"""

from __future__ import annotations

import argparse
import itertools
import time
from pathlib import Path

import mujoco
import numpy as np
import torch
from torch import nn

from diffusion_forcing.checkpoints import save
from diffusion_forcing.datasets.mazes.antmaze import TASK, read_antmaze
from diffusion_forcing.environments.mazes.ant import (
    ACTION_SIZE,
    FEATURE_SIZE,
    Ant,
    ant_file,
    features,
    from_motors,
    to_motors,
)

ENVS, BATCH, WIDTH, CAPACITY = 8, 128, 256, 1_000_000
GAMMA, TAU, TARGET_ENTROPY, LEARNING_RATE = 0.98, 0.005, -6.0, 5e-4
UPDATES, WARMUP, EPISODE = 4, 4_000, 400
"""Updates for each step of all ants, random steps, steps of an episode."""
AHEAD = (5, 15)
"""Steps from a state to its subgoal, for the executor."""


def mirrored(x: np.ndarray, torques: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Features and torques of the legs as a mirror along the ant's front shows them."""
    order, signs = np.arange(FEATURE_SIZE), np.ones(FEATURE_SIZE, np.float32)
    order[10:26] = order[10:26].reshape(4, 4)[:, ::-1].ravel()
    signs[[2, 5, 7, 9, 27, *range(10, 14), *range(18, 22)]] = -1
    return x[:, order] * signs, np.concatenate([-torques[:, 3::-1], torques[:, :3:-1]], axis=1)


def network(outputs: int) -> nn.Sequential:
    layers = (nn.Linear(FEATURE_SIZE, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, outputs))
    return nn.Sequential(*layers)


def write(folder: Path, net: nn.Module, step: int) -> None:
    """Write the means of actions as a checkpoint in half precision."""
    weights = {name: tensor.half() for name, tensor in net.state_dict().items()}
    weights |= {name: weights[name][:ACTION_SIZE] for name in ("4.weight", "4.bias")}
    card = folder / "README.md"
    text = card.read_text("utf-8") if card.exists() else None
    save(folder, None, metadata={"task": TASK, "line": ""}, model=weights, step=step, card=text)


# ----------------------------------------------------------------------------------------------------------- the expert


class Walkers:
    """A few ants on open ground, each with a direction."""

    def __init__(self, count: int, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        model = mujoco.MjModel.from_xml_path(str(ant_file()))
        self.ants = [Ant(model) for _ in range(count)]
        self.age, self.way = np.zeros(count, int), np.zeros((count, 2))
        for index in range(count):
            self.reset(index)

    def reset(self, index: int) -> None:
        ant = self.ants[index]
        ant.reset(np.zeros(2), self.random)
        half = self.random.uniform(0, np.pi)
        ant.data.qpos[3:7] += [np.cos(half) - 1, 0, 0, np.sin(half)]
        self.age[index] = 0
        self.turn(index)

    def turn(self, index: int) -> None:
        angle = self.random.uniform(0, 2 * np.pi)
        self.way[index] = np.cos(angle), np.sin(angle)

    def states(self) -> np.ndarray:
        return np.stack([ant.state for ant in self.ants])

    def step(self, motors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(n,) rewards and whether an ant has fallen."""
        before = self.states()[:, :2]
        for ant, torques in zip(self.ants, motors, strict=True):
            ant.step(torques)
        states = self.states()
        speed = (states[:, :2] - before) / 0.1
        forward = (speed * self.way).sum(1)
        aside = np.abs(speed[:, 0] * self.way[:, 1] - speed[:, 1] * self.way[:, 0])
        upright = 1 - 2 * (states[:, 4] ** 2 + states[:, 5] ** 2) / (states[:, 3:7] ** 2).sum(1)
        fallen = (upright < 0.2) | (states[:, 2] < 0.2) | (states[:, 2] > 1.2)
        self.age += 1
        return forward - 0.2 * aside - 0.02 * (motors**2).sum(1) + 0.2, fallen


class Critics(nn.Module):
    """Two critics as one batched network."""

    def __init__(self) -> None:
        super().__init__()
        sizes = [FEATURE_SIZE + ACTION_SIZE, WIDTH, WIDTH, 1]
        self.weights = nn.ParameterList(
            [nn.Parameter((torch.rand(2, a, b) * 2 - 1) / a**0.5) for a, b in itertools.pairwise(sizes)]
        )
        self.biases = nn.ParameterList([nn.Parameter(torch.zeros(2, 1, b)) for b in sizes[1:]])

    def forward(self, x: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        h = torch.cat([x, action], 1).expand(2, -1, -1)
        for depth, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            h = torch.baddbmm(bias, h, weight)
            if depth < 2:
                h = torch.relu(nn.functional.layer_norm(h, (WIDTH,)))
        return h[..., 0]


def sample(actor: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A squashed normal action and its log density."""
    mean, spread = actor(x).chunk(2, -1)
    spread = -5 + 3.5 * (torch.tanh(spread) + 1)
    noise = torch.randn_like(mean)
    raw = mean + noise * spread.exp()
    density = -0.5 * noise**2 - spread - 0.919 - 2 * (0.6931 - raw - nn.functional.softplus(-2 * raw))
    return torch.tanh(raw), density.sum(-1)


def train_expert(folder: Path, total: int) -> None:
    walkers, random = Walkers(ENVS, 0), np.random.default_rng(1)
    actor, critic, slow = network(2 * ACTION_SIZE), Critics(), Critics()
    slow.load_state_dict(critic.state_dict())
    slow.requires_grad_(False)
    log_alpha = torch.tensor(-2.0, requires_grad=True)
    policy = torch.optim.Adam([*actor.parameters(), log_alpha], LEARNING_RATE, fused=True)
    value = torch.optim.Adam(critic.parameters(), LEARNING_RATE, fused=True)
    memory = np.zeros((CAPACITY, 2 * FEATURE_SIZE + ACTION_SIZE + 2), np.float32)
    steps, updates, written, began, rewards = 0, 0, time.time(), time.time(), []
    x, turns = features(walkers.states(), walkers.way)
    while steps < total:
        with torch.no_grad():
            action = sample(actor, torch.from_numpy(x.astype(np.float32)))[0].numpy()
        if steps < WARMUP:
            action = random.uniform(-1, 1, action.shape).astype(np.float32)
        reward, fallen = walkers.step(to_motors(action, turns))
        # the direction may change before the next state is read: a state's value counts with that
        for index in np.flatnonzero(random.random(ENVS) < 1 / 40):
            walkers.turn(int(index))
        after, turns = features(walkers.states(), walkers.way)
        rows = np.concatenate([x, action, reward[:, None], 1.0 - fallen[:, None], after], axis=1)
        memory[np.arange(steps, steps + ENVS) % CAPACITY] = rows
        steps += ENVS
        rewards.append(reward.mean())
        ended = np.flatnonzero(fallen | (walkers.age >= EPISODE))
        for index in ended:
            walkers.reset(int(index))
        x, turns = features(walkers.states(), walkers.way) if len(ended) else (after, turns)
        for _ in range(UPDATES if steps >= WARMUP else 0):
            rows = memory[random.integers(0, min(steps, CAPACITY), BATCH)]
            s, a, r, alive, n = np.split(rows, np.cumsum([FEATURE_SIZE, ACTION_SIZE, 1, 1]), axis=1)
            (s2, a2), (n2, _) = mirrored(s, a), mirrored(n, a)
            pairs = ((s, s2), (a, a2), (n, n2), (r, r), (alive, alive))
            s, a, n, r, alive = (torch.from_numpy(np.concatenate(pair)) for pair in pairs)
            alpha = log_alpha.detach().exp()
            with torch.no_grad():
                next_action, density = sample(actor, n)
                later = slow(n, next_action).min(0).values - alpha * density
                target = r[:, 0] + GAMMA * alive[:, 0] * later
            value.zero_grad()
            ((critic(s, a) - target) ** 2).mean().backward()
            value.step()
            critic.requires_grad_(False)
            new_action, density = sample(actor, s)
            loss = (alpha * density - critic(s, new_action).min(0).values).mean()
            critic.requires_grad_(True)
            policy.zero_grad()
            (loss - log_alpha * (density.detach().mean() + TARGET_ENTROPY)).backward()
            policy.step()
            torch._foreach_lerp_(list(slow.parameters()), [p.detach() for p in critic.parameters()], TAU)
            updates += 1
        if time.time() - written > 60:
            written = time.time()
            write(folder, actor, updates)
            print(f"{(written - began) / 60:.1f} min, {steps} steps: reward {np.mean(rewards):.3f} a step", flush=True)
            rewards.clear()
    write(folder, actor, updates)


# --------------------------------------------------------------------------------------------------------- the executor


def train_executor(folder: Path, files: list[Path], updates: int) -> None:
    states, actions, ends = (np.concatenate(parts) for parts in zip(*map(trajectories, files), strict=True))
    random, net = np.random.default_rng(0), network(ACTION_SIZE)
    optimizer = torch.optim.Adam(net.parameters(), 1e-3, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, updates)
    usable, total = np.flatnonzero(np.arange(len(ends)) + AHEAD[0] <= ends), 0.0
    for update in range(1, updates + 1):
        rows = usable[random.integers(len(usable), size=512)]
        later = np.minimum(rows + random.integers(AHEAD[0], AHEAD[1] + 1, size=512), ends[rows])
        x, turns = features(states[rows].astype(np.float64), (states[later] - states[rows])[:, :2])
        pairs = zip((x, a := from_motors(actions[rows], turns)), mirrored(x, a), strict=True)
        inputs, wanted = (torch.from_numpy(np.concatenate(pair).astype(np.float32)) for pair in pairs)
        loss = ((torch.tanh(net(inputs)) - wanted) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        total += loss.item()
        if update % 500 == 0:
            print(f"{update} of {updates}: squared error {total / 500:.4f}", flush=True)
            total = 0.0
    write(folder, net, updates)


def trajectories(file: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """States (N, 29), actions (N, 8), and for each row the last one of its trajectory (N,)."""
    steps = read_antmaze(file)
    last = np.flatnonzero(steps["ends"])
    return steps["observations"], steps["actions"], last[np.searchsorted(last, np.arange(len(steps["ends"])))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("expert", "executor"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("files", type=Path, nargs="*", help="AntMaze data, for the executor")
    parser.add_argument("--steps", type=int, default=174_168, help="of the expert's ants, together")
    parser.add_argument("--updates", type=int, default=6000, help="of the executor")
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if given.what == "expert":
        train_expert(given.folder, given.steps)
    else:
        train_executor(given.folder, given.files or parser.error("give AntMaze files"), given.updates)


if __name__ == "__main__":
    main()
