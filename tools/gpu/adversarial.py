"""Trains a one-step world model on its own long rollouts against a critic, on one GPU, in a given time: README.md beside this file.

    python tools/gpu/adversarial.py OUT --weights STUDENT [--anchor pretrained/labmaze64_world]

Chains of frames begin with true frames and go on with the model's own, each frame from pure noise in one step, up to hundreds of frames deep. A
critic compares windows of them with true video under the same actions (relativistic loss with gradient penalties at both, Huang et al. 2024).
Only the newest frame of a window passes its gradient to the model. So the model learns that a frame must look like video and follow the frames
and the action before it, wherever its own rollout has led. While a chain still follows its clip, the true frame, blurred, is a second target.

A critic that trains for long asks for patterns instead of textures. So the weights that are kept lie on the line between the average of the
trained ones and those of another checkpoint, `--anchor` (as in Wortsman et al. 2022): OUT/student, and OUT/trained is the average itself. Both
are written every minute; OUT/log.jsonl has every number.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffusion_forcing.algorithms.world import World
from diffusion_forcing.checkpoints import save
from diffusion_forcing.datasets.generate import worker_count
from diffusion_forcing.diffusion import add_noise
from diffusion_forcing.errors import UserError
from tools.gpu.world import Episodes, Log, check_made, generate, seconds

OFFSETS = (15, 8, 4, 2, 1, 0)
"""Frames of a window that the critic sees, counted back from the newest."""
PAST = max(OFFSETS)


class Block(nn.Module):
    """Two convolutions beside a skip connection; the condition scales and shifts between them."""

    def __init__(self, width: int, condition: int) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv2d(width, width, 3, padding=1) for _ in range(2))
        self.film = nn.Linear(condition, 2 * width)
        nn.init.zeros_(self.second.weight)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        scale, shift = self.film(condition)[..., None, None].chunk(2, dim=1)
        h = F.leaky_relu(self.first(F.leaky_relu(x, 0.2)) * (1 + scale) + shift, 0.2)
        return x + self.second(h)


class Critic(nn.Module):
    """How true a window looks: frames (b, len(OFFSETS)·c, h, w) and actions (b, a) → a score for each of 8×8 places and one for all, (b, 65)."""

    def __init__(self, channels: int, actions: int, widths: tuple[int, ...] = (48, 96, 192, 256, 256)) -> None:
        super().__init__()
        self.embed = nn.Sequential(nn.Linear(actions, 128), nn.SiLU(), nn.Linear(128, 128), nn.SiLU())
        self.stem = nn.Conv2d(channels, widths[0], 3, padding=1)
        self.blocks = nn.ModuleList(Block(width, 128) for width in widths)
        self.narrow = nn.ModuleList(nn.Conv2d(fine, coarse, 1) for fine, coarse in pairwise(widths))
        self.places = nn.Conv2d(widths[-2], 1, 1)
        self.whole = nn.Linear(widths[-1], 1)

    def forward(self, frames: Tensor, actions: Tensor) -> Tensor:
        condition = self.embed(actions)
        h = self.stem(frames.contiguous(memory_format=torch.channels_last))
        places = h.new_zeros(())
        for block, narrow in zip(self.blocks, [*self.narrow, None], strict=True):
            h = block(h, condition)
            if h.shape[-1] == 8:
                places = self.places(h).flatten(1)
            if narrow is not None:
                h = narrow(F.avg_pool2d(h, 2))
        whole = self.whole(F.leaky_relu(h, 0.2).mean((-2, -1)))
        return torch.cat([places, whole], dim=1).float()


def relativistic(higher: Tensor, lower: Tensor) -> Tensor:
    """The loss of scores (b, 65) of which `higher` shall exceed `lower`, pair by pair; the whole counts as much as all places."""
    loss = F.softplus(lower - higher)
    return loss[:, :-1].mean() + loss[:, -1].mean()


def penalty(critic: Critic, frames: Tensor, actions: Tensor) -> Tensor:
    """The squared norm of the score's gradient with respect to the frames, its mean over the batch."""
    frames = frames.detach().requires_grad_()
    scores = critic(frames, actions)
    total = scores[:, :-1].mean(dim=1).sum() + scores[:, -1].sum()
    (slope,) = torch.autograd.grad(total, frames, create_graph=True)
    return slope.square().sum((1, 2, 3)).mean()


class Steps(NamedTuple):
    """What a few steps of all chains give. fake, real: (n, PAST + f, c, h, w), the chain and the true video under the same last actions, tokens;
    new: (n, f, c, h, w), the newest frames of `fake` with their gradient; fake_actions, real_actions: (n, PAST + f, a) that led to each frame;
    truth: (n, f), the weight of the true frame as a target; depth: (n,), frames a chain had generated before."""

    fake: Tensor
    real: Tensor
    new: Tensor
    fake_actions: Tensor
    real_actions: Tensor
    truth: Tensor
    depth: Tensor


class Chains:
    """Rollouts that go on from one training step to the next. frames: (n, PAST, c, h, w) tokens, actions: (n, PAST), those that led to them; the
    next actions are those of `episode` from `place` on. depth: (n,), frames generated; follows: (n,), whether they are still those of one clip.

    steps: frames of a training step. life: mean number of frames after which a chain begins anew; half of all chains have 16. All of it stays
    at its place on the device, and nothing waits for the device, so that a training step can be recorded as one CUDA graph.
    """

    def __init__(self, world: World, episodes: Episodes, count: int, steps: int) -> None:
        self.world, self.episodes, self.count = world, episodes, count
        device = self.device = world.device
        channels, resolution, _ = world.options.observation_shape
        self.life = torch.full((count,), 16.0, device=device)
        self.episode_count = torch.tensor(float(episodes.count), device=device)
        self.length = episodes.frames.shape[1]
        self.one_hot = torch.eye(world.options.external_cond_dim, device=device)
        self.frames = torch.zeros(count, PAST, channels, resolution, resolution, device=device)
        self.actions = torch.zeros(count, PAST, dtype=torch.long, device=device)
        self.episode, self.place, self.depth = (torch.zeros(count, dtype=torch.long, device=device) for _ in range(3))
        self.follows = torch.ones(count, dtype=torch.bool, device=device)
        self._begin(torch.ones(count, dtype=torch.bool, device=device), steps)

    def set_life(self, life: float) -> None:
        self.life[self.count // 2 :] = life
        self.episode_count.fill_(self.episodes.count)

    def _random_episode(self) -> Tensor:
        return (torch.rand(self.count, device=self.device) * self.episode_count).long()

    def _clip(self, before: int, after: int) -> tuple[Tensor, Tensor]:
        """Tokens (n, before + after, c, h, w) around each chain's place, and the actions (n, before + after) that led to them."""
        where = self.place[:, None] + torch.arange(-before, after, device=self.device)
        frames = self.episodes.frames[self.episode[:, None], where].permute(0, 1, 4, 2, 3)
        return self.world.tokens(frames), self.episodes.actions[self.episode[:, None], where - 1]

    def _begin(self, anew: Tensor, steps: int) -> None:
        """New chains where `anew`: (n,) bool, from clips that go on for `steps` frames."""
        place = torch.randint(PAST + 1, self.length - steps, (self.count,), device=self.device)
        self.episode.copy_(torch.where(anew, self._random_episode(), self.episode))
        self.place.copy_(torch.where(anew, place, self.place))
        frames, actions = self._clip(PAST, 0)
        self.frames.copy_(torch.where(anew[:, None, None, None, None], frames, self.frames))
        self.actions.copy_(torch.where(anew[:, None], actions, self.actions))
        self.depth.copy_(self.depth * ~anew)
        self.follows.logical_or_(anew)

    def step(self, steps: int) -> Steps:
        """`steps` frames more of every chain."""
        world, n, device = self.world, self.count, self.device
        # Some begin anew; those whose episode ends go on with the actions of another one.
        over = self.place + steps > self.length
        self.episode.copy_(torch.where(over, self._random_episode(), self.episode))
        self.place.copy_(torch.where(over, torch.full_like(self.place, PAST + 1), self.place))
        self.follows.logical_and_(~over)
        self._begin(torch.rand(n, device=device) < steps / self.life, steps)
        real, real_actions = self._clip(PAST, steps)
        actions = torch.cat([self.actions, real_actions[:, PAST:]], dim=1)
        conditions = world.conditions(self.one_hot[actions])

        # The past as a rollout shows it, at a level of its own in each chain.
        schedule = world.forcing.schedule
        network: Any = world.network
        sigma = 0.02 * 7.5 ** torch.rand(n, device=device)
        level = torch.searchsorted(schedule.sigmas, sigma)[:, None]

        def noised(x: Tensor) -> tuple[Tensor, Tensor]:
            k = level.expand(-1, x.shape[1])
            return add_noise(schedule, x, k, world.forcing.draw_noise(x.shape, device=device)), k

        last = torch.full_like(level, schedule.timesteps - 1)
        new, known = [], [self.frames.clone()]
        with torch.autocast(device.type, torch.bfloat16, cache_enabled=False):
            with torch.no_grad():
                memory = network.remember(*noised(self.frames), conditions[:, :PAST], None)
            for i in range(PAST, PAST + steps):
                now = conditions[:, i : i + 1]
                noise = world.forcing.draw_noise((n, 1, *self.frames.shape[2:]), device=device)
                prediction, _ = world.forcing(noise, last, now, memory)
                x = prediction.x0
                shown = world.quantized(x.detach())
                new.append(x + (shown - x).detach())
                known.append(shown)
                if i + 1 < PAST + steps:
                    with torch.no_grad():
                        memory = network.remember(*noised(shown), now, memory)
        fake = torch.cat(known, dim=1)
        depth = self.depth.clone()
        after = depth[:, None] + torch.arange(steps, device=device)
        truth = self.follows[:, None] * torch.exp(-after / 8)
        self.frames.copy_(fake[:, -PAST:])
        self.actions.copy_(actions[:, -PAST:])
        self.depth.add_(steps)
        self.place.add_(steps)
        return Steps(fake, real, torch.cat(new, dim=1), self.one_hot[actions], self.one_hot[real_actions], truth, depth)


def windows(frames: Tensor, actions: Tensor, new: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """What the critic sees of (n, PAST + f, …): (n·f, len(OFFSETS)·c, h, w) and the actions (n·f, PAST·a). new: (n, f, …), in the place of the newest
    frame of each window."""
    steps = frames.shape[1] - PAST
    parts = [frames[:, PAST - offset : PAST - offset + steps] for offset in OFFSETS]
    if new is not None:
        parts[-1] = new
    seen = torch.stack(parts, dim=2)
    of_actions = actions.unfold(1, PAST, 1)[:, -steps:]
    return seen.flatten(2, 3).flatten(0, 1), of_actions.flatten(2).flatten(0, 1)


def blurred_error(x: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Absolute error of frames (n, f, c, h, w) and of their averages over 4 and 8 pixels; weight: (n, f)."""
    total = x.new_zeros(weight.shape)
    for pixels, share in ((1, 0.25), (4, 1.0), (8, 1.0)):
        error = F.avg_pool2d((x - target).flatten(0, 1), pixels).abs().mean((-3, -2, -1))
        total = total + share * error.unflatten(0, weight.shape)
    return (weight * total).mean()


def looks(steps: Steps) -> dict[str, list[float]]:
    """How the newest frames compare with true ones, by depth: sharpness, contrast (deviation within a frame) and the worst channel's mean."""
    kernel = steps.fake.new_tensor([[0, 1, 0], [1, -4, 1], [0, 1, 0]])[None, None]

    def numbers(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        frames = x.flatten(0, 1).float()
        sharp = F.conv2d(frames.mean(1, keepdim=True), kernel).square().mean((-3, -2, -1))
        contrast, mean = frames.std((-2, -1)).mean(1), frames.mean((-2, -1))
        return sharp.unflatten(0, x.shape[:2]), contrast.unflatten(0, x.shape[:2]), mean.unflatten(0, x.shape[:2])

    fake, real = numbers(steps.fake[:, PAST:]), numbers(steps.real[:, PAST:])
    rows = {}
    for low, high in ((0, 8), (8, 32), (32, 128), (128, 10**6)):
        chosen = (steps.depth >= low) & (steps.depth < high)
        if chosen.any():
            worst = (fake[2][chosen].mean((0, 1)) - real[2].mean((0, 1))).abs().max() / 2
            parts = [fake[0][chosen].mean() / real[0].mean(), fake[1][chosen].mean() / real[1].mean(), worst]
            rows[f"from_{low}"] = [round(float(part), 3) for part in parts] + [int(chosen.sum())]
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--weights", type=Path, required=True, help="the checkpoint to start from")
    parser.add_argument("--anchor", type=Path, help="a checkpoint of the same network to draw the weights to")
    parser.add_argument("--anchor-share", type=float, default=0.3, help="its share of the weights")
    parser.add_argument("--seconds", type=float, default=180, help="of training; the file OUT/seconds may change it")
    parser.add_argument("--chains", type=int, default=96)
    parser.add_argument("--steps", type=int, default=4, help="frames of each chain in one training step")
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--critic-lr", type=float, default=2e-4)
    parser.add_argument("--penalty", type=float, default=2.0, help="weight of the critic's squared gradients")
    parser.add_argument("--truth", type=float, default=2.0, help="weight of the true frame, blurred, as a target")
    parser.add_argument("--life", type=float, default=500.0, help="mean frames of the longer chains at the end")
    parser.add_argument(
        "--widths", type=int, nargs=5, default=(48, 96, 192, 256, 256), help="of the critic, fine to coarse"
    )
    parser.add_argument("--average", type=float, default=0.998)
    parser.add_argument("--episodes", type=int, default=3000)
    parser.add_argument("--first", type=int, default=64, help="episodes to wait for before training begins")
    parser.add_argument("--data", type=Path, help="a folder of episodes, instead of making them")
    arguments = parser.parse_args()
    out: Path = arguments.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    log = Log(out)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    log(
        device=str(device),
        torch=torch.__version__,
        arguments={key: str(value) for key, value in vars(arguments).items()},
    )
    torch.set_float32_matmul_precision("high")
    torch.manual_seed(0)
    (out / "seconds").unlink(missing_ok=True)
    data = arguments.data or out.parent / f"{out.name}-data"
    first = min(arguments.first, arguments.episodes)
    if arguments.data and (there := len(list((data / "training").glob("*.npz")))) < first:
        sys.exit(
            f"{data / 'training'} has {there} episodes; {first} are needed to begin with: pass --first, or generate more"
        )
    try:
        world = World.from_pretrained(arguments.weights)
        anchor = anchored(world, arguments.anchor)
    except UserError as error:
        sys.exit(str(error))
    making = None if arguments.data else generate(data, arguments.episodes, [], max(1, worker_count(0) - 2))

    def goes_on() -> None:
        if making is not None:
            check_made(making, episodes, first)

    try:
        episodes = Episodes(data / "training", arguments.episodes, device)
        episodes.wait(first, goes_on)
        train(arguments, world, anchor, episodes, out, device, log)
    finally:
        if making is not None:
            making.terminate()


def remaining(arguments: argparse.Namespace, out: Path) -> Iterator[float]:
    """The share of the time that is over, until all of it is."""
    begin = seconds()
    while True:
        with contextlib.suppress(OSError, ValueError):  # not there, or half written
            arguments.seconds = float((out / "seconds").read_text())
        share = (seconds() - begin) / max(arguments.seconds, 1e-9)
        if share >= 1:
            return
        yield share


class Adversaries:
    """Model and critic, and one training step of both. `numbers`: sums of what the steps since the last `read` measured."""

    NAMES = ("critic", "model", "truth", "slopes", "margin", "norm")

    def __init__(self, arguments: argparse.Namespace, chains: Chains, critic: Critic) -> None:
        self.arguments, self.chains, self.critic = arguments, chains, critic
        self.network, device = chains.world.network, chains.device
        self.rates = [torch.zeros((), device=device) for _ in range(2)]
        self.sides = [
            torch.optim.AdamW(
                module.parameters(),
                lr=rate,
                betas=(0.0, 0.99),
                weight_decay=0,
                fused=True,
                capturable=device.type == "cuda",
            )
            for module, rate in zip((self.network, critic), self.rates, strict=True)
        ]
        self.numbers = torch.zeros(len(self.NAMES), device=device)
        self.steps: Steps | None = None
        self.graph: torch.cuda.CUDAGraph | None = None

    def record(self) -> None:
        """Record a step as a CUDA graph: some 20,000 kernels would otherwise wait for Python."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                self._step()
        torch.cuda.current_stream().wait_stream(stream)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with self.chains.episodes.lock, torch.cuda.graph(graph, capture_error_mode="thread_local"):
            self._step()
        self.graph = graph
        self.numbers.zero_()

    def step(self, life: float, lr: float, critic_lr: float) -> None:
        self.chains.set_life(life)
        for rate, value in zip(self.rates, (lr, critic_lr), strict=True):
            rate.fill_(value)
        if self.graph is None:
            self._step()
        else:
            self.graph.replay()
        average = self.chains.world.ema
        assert average is not None
        average.update_parameters(self.network)

    def _step(self) -> None:
        critic, kind = self.critic, self.chains.device.type
        steps = self.steps = self.chains.step(self.arguments.steps)
        fake, real = windows(steps.fake, steps.fake_actions), windows(steps.real, steps.real_actions)

        # The critic: true windows above the model's, with a penalty on its slope at a fifth of both.
        critic.requires_grad_(True)
        with torch.autocast(kind, torch.bfloat16, cache_enabled=False):
            of_real, of_fake = critic(*real), critic(*fake)
        loss = relativistic(of_real, of_fake)
        slopes = sum((penalty(critic, frames[::5], acted[::5]) for frames, acted in (real, fake)), loss.new_zeros(()))
        (loss + self.arguments.penalty / 2 * slopes).backward()
        _clip(critic, 10.0)
        self.sides[1].step()
        self.sides[1].zero_grad()

        # The model.
        critic.requires_grad_(False)
        with torch.autocast(kind, torch.bfloat16, cache_enabled=False):
            judged = critic(*windows(steps.fake, steps.fake_actions, steps.new))
            with torch.no_grad():
                of_real = critic(*real)
        adversarial = relativistic(judged, of_real)
        truth = blurred_error(steps.new, steps.real[:, PAST:], steps.truth)
        (adversarial + self.arguments.truth * truth).backward()
        norm = _clip(self.network, 1.0)
        self.sides[0].step()
        self.sides[0].zero_grad()
        margin = (of_real - of_fake)[:, -1].mean()
        self.numbers.add_(torch.stack([loss, adversarial, truth, slopes, margin, norm]).detach())

    def read(self, steps: int) -> dict[str, float]:
        """Means of the numbers over the last `steps` steps."""
        values = (self.numbers / steps).tolist()
        self.numbers.zero_()
        return {name: float(f"{value:.4g}") for name, value in zip(self.NAMES, values, strict=True)}


def _clip(module: nn.Module, most: float) -> Tensor:
    """Gradients clipped to the norm `most`; one that is not finite counts as 0, without waiting for the GPU to look. The norm before."""
    norm = nn.utils.clip_grad_norm_(module.parameters(), most)
    for parameter in module.parameters():
        if parameter.grad is not None:
            parameter.grad.nan_to_num_(0.0, 0.0, 0.0)
    return norm


def train(
    arguments: argparse.Namespace,
    world: World,
    anchor: dict[str, Tensor],
    episodes: Episodes,
    out: Path,
    device: torch.device,
    log: Log,
) -> None:
    """Model and critic in turns, until the time is over."""
    world.to(device).train()
    world.network.requires_grad_()
    diffusion = replace(world.options.diffusion, distilled_steps=1, sampling_timesteps=1, ddim_sampling_eta=1.0)
    world.options = replace(world.options, diffusion=diffusion)
    assert world.ema is not None
    world.ema.decay = arguments.average
    channels, actions = world.options.observation_shape[0], world.options.external_cond_dim
    critic = Critic(len(OFFSETS) * channels, PAST * actions, tuple(arguments.widths))
    pair = Adversaries(
        arguments,
        Chains(world, episodes, arguments.chains, arguments.steps),
        critic.to(device).to(memory_format=torch.channels_last),
    )
    log(parameters=sum(p.numel() for p in critic.parameters()), episodes=episodes.count, stage="begin")
    if device.type == "cuda":
        try:
            pair.record()
            log(stage="recorded")
        except Exception as error:  # whatever a kernel or a synchronisation raises; slower, but the same
            log(not_recorded=f"{type(error).__name__}: {error}"[:800])
            torch.cuda.synchronize()
            for side in pair.sides:
                side.zero_grad()
    step = logged_step = 0
    logged = saved = seconds()
    for share in remaining(arguments, out):
        fall = min(1.0, (1 - share) / 0.3 + 0.02)
        life = 16 + (arguments.life - 16) * share
        lr = arguments.lr * min(1.0, step / 200) * fall
        pair.step(life, lr, arguments.critic_lr * min(1.0, (step + 1) / 50) * fall)
        step += 1
        if step % 5:
            continue
        if device.type == "cuda":
            torch.cuda.synchronize()
        now = seconds()
        if now - logged > 10:
            frames = (step - logged_step) * arguments.chains * arguments.steps / (now - logged)
            assert pair.steps is not None
            row = pair.read(step - logged_step) | looks(pair.steps)
            log(step=step, share=round(share, 3), **row, frames_per_second=round(frames), episodes=episodes.count)
            logged, logged_step = now, step
        if now - saved > 60:
            write(world, out, step, anchor, arguments.anchor_share)
            saved = now
    write(world, out, step, anchor, arguments.anchor_share)
    memory = round(torch.cuda.max_memory_allocated() / 2**30, 1) if device.type == "cuda" else None
    log(stage="end", steps=step, memory_gib=memory, unreadable=episodes.unreadable)


def anchored(world: World, path: Path | None) -> dict[str, Tensor]:
    """The weights of the checkpoint `path`, none without one; ends the program where they are not those of `world`'s network."""
    if path is None:
        return {}
    given, own = World.from_pretrained(path).sampling_weights(), world.sampling_weights()
    if {key: value.shape for key, value in given.items()} != {key: value.shape for key, value in own.items()}:
        sys.exit(f"--anchor {path} is another network than --weights: pass a checkpoint of the same size and options")
    return given


def write(world: World, out: Path, step: int, anchor: dict[str, Tensor], share: float) -> None:
    """The averaged weights as the checkpoint OUT/trained, and with `share` of `anchor` as OUT/student."""
    trained = {key: value.float() for key, value in world.sampling_weights().items()}
    student = {
        key: torch.lerp(value, anchor[key].to(value), share) if anchor else value for key, value in trained.items()
    }
    for name, weights in (("trained", trained), ("student", student)):
        half = {key: value.half() for key, value in weights.items()}
        save(out / name, None, metadata=world.metadata(), model=half, step=step)


if __name__ == "__main__":
    main()
