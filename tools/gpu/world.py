"""Trains a world model and its student of two steps on one GPU, in a given time: README.md beside this file.

    python tools/gpu/world.py OUT --seconds 500 [--size B] [--student 0.35] [key=value of dataset or algorithm …]

Mazes are generated on all cores but two while the network compiles, and training begins with the first of them. Everything lies on the device,
and learning rates follow the clock, so that they end where the time does. OUT/teacher and OUT/student are checkpoints (averaged weights,
float16), written every minute and at the end; OUT/log.jsonl has every number.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffusion_forcing.algorithms.video import Clips
from diffusion_forcing.algorithms.world import World
from diffusion_forcing.checkpoints import save
from diffusion_forcing.datasets.generate import worker_count
from diffusion_forcing.launch.run import plan
from diffusion_forcing.networks.world import WorldNetwork
from diffusion_forcing.networks.world_layers import Warped

STARTED = time.monotonic()
CONFIGURATION = ("dataset=video_labmaze", "algorithm=df_world", "dataset.n_frames=24")
REFUSED = {
    "experiment.": "the options of this program set rates, batches and time",
    **dict.fromkeys(("algorithm.lr", "algorithm.warmup_steps", "algorithm.weight_decay"), "pass --lr and --student-lr"),
    "algorithm.optimizer_beta": "it is 0.9 and 0.95 here",
    "algorithm.self_rollout": "pass --own-past",
    "algorithm.diffusion.architecture.warp=": "the loss here is that of a network that warps",
    "dataset.frame_skip": "clips here have every frame",
    "dataset.action_shift": "an action here leads to the frame after it",
}
"""Overrides that this trainer would not follow, by how they begin, and what to do instead."""


def seconds() -> float:
    return time.monotonic() - STARTED


class Log:
    """Lines on stdout, and in OUT/log.jsonl, with the seconds since the start."""

    def __init__(self, out: Path) -> None:
        self.path = out / "log.jsonl"

    def __call__(self, **values: Any) -> None:
        row = json.dumps({"seconds": round(seconds(), 1), **values})
        print(row, flush=True)
        with self.path.open("a") as file:
            file.write(row + "\n")


def generate(folder: Path, episodes: int, words: list[str], workers: int) -> subprocess.Popen[bytes]:
    """Starts to generate `episodes` mazes in `folder`, in another process."""
    command = [
        sys.executable,
        "-m",
        "main",
        *CONFIGURATION,
        *words,
        "experiment.tasks=[generate_dataset]",
        "+name=data",
    ]
    command += [f"dataset.save_dir={folder}", f"dataset.num_episodes={episodes}", f"dataset.workers={workers}"]
    command += ["dataset.num_validation_episodes=1", "dataset.num_test_episodes=1", f"outputs={folder}-run"]
    return subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL)


class Episodes:
    """Episodes of a folder on the device; a thread adds those that are written later. frames: (n, t, h, w, c) uint8, actions: (n, t).

    A file that cannot be read is left out; unreadable: their names, and why.
    """

    def __init__(self, folder: Path, most: int, device: torch.device) -> None:
        self.folder, self.most, self.device = folder, most, device
        self.count = 0
        self.frames = self.actions = torch.empty(0)
        self.unreadable: dict[str, str] = {}
        self.lock = threading.Lock()
        """Held while an episode goes to the device."""
        threading.Thread(target=self._read, daemon=True).start()

    def wait(self, count: int, goes_on: Callable[[], None]) -> None:
        """Until there are `count` episodes; `goes_on` raises where no more will come."""
        while self.count < count:
            goes_on()
            time.sleep(0.1)

    def _read(self) -> None:
        seen = set[str]()
        while self.count < self.most:
            for path in sorted(self.folder.glob("*.npz")):
                if path.name in seen or self.count >= self.most:
                    continue
                seen.add(path.name)
                try:
                    with self.lock:
                        self._add(path)
                except Exception as error:  # the others still count
                    self.unreadable[path.name] = f"{type(error).__name__}: {error}"
            time.sleep(0.5)

    def _add(self, path: Path) -> None:
        with np.load(path) as episode:
            video, actions = torch.from_numpy(episode["video"]), torch.from_numpy(episode["actions"])
        if not self.frames.numel():
            self.actions = torch.empty(self.most, *actions.shape, dtype=torch.long, device=self.device)
            self.frames = torch.empty(self.most, *video.shape, dtype=torch.uint8, device=self.device)
        self.frames[self.count] = video.to(self.device)
        self.actions[self.count] = actions.to(self.device)
        self.count += 1

    def clips(self, world: World, batch: int) -> Clips:
        """`batch` random clips, as tokens and conditions."""
        length = world.options.n_frames
        episode = torch.randint(self.count, (batch, 1), device=self.device)
        start = torch.randint(1, self.frames.shape[1] - length + 1, (batch, 1), device=self.device)
        place = start + torch.arange(length, device=self.device)
        frames = self.frames[episode, place].permute(0, 1, 4, 2, 3)
        # An action leads to the frame after it.
        actions = F.one_hot(self.actions[episode, place - 1], world.options.external_cond_dim).float()
        present = torch.ones(batch, length, dtype=torch.bool, device=self.device)
        return Clips(world.tokens(frames), present, world.conditions(actions))


def check_made(making: subprocess.Popen[bytes], episodes: Episodes, first: int) -> None:
    """Ends the program where the `first` mazes that are waited for will not come."""
    if making.poll() is not None and (making.returncode or episodes.count < first):
        time.sleep(1.0)  # the last files may still be read
        if making.returncode or episodes.count < first:
            sys.exit(
                f"generating the mazes in {episodes.folder} ended with {making.returncode}: {episodes.count} episodes of "
                f"the {first} to begin with; unreadable: {episodes.unreadable}"
            )


Behind = Callable[..., tuple[Tensor, ...]]


def behind(network: WorldNetwork, *inputs: Any) -> tuple[Tensor, ...]:
    """What training uses of `WorldNetwork.behind`, as tensors alone: one function, compiled once for teacher, student and average."""
    output, memory = WorldNetwork.behind(network, *inputs)
    assert memory.warped is not None
    return output, *memory.warped


def answer_through(network: nn.Module, function: Behind) -> None:
    """Let `network` answer through `function`, with tensors of one layout: a compiled graph is made for each."""

    def answer(*inputs: Any) -> tuple[Tensor, Any]:
        output, *warped = function(network, *(tensor.contiguous() for tensor in inputs[:5]))
        return output, SimpleNamespace(warped=Warped(*warped))

    network.behind = answer  # type: ignore[assignment]


class Trainer:
    """What the training of teacher and student share."""

    def __init__(
        self,
        world: World,
        episodes: Episodes,
        making: subprocess.Popen[bytes],
        batch: int,
        compiled: Behind,
        out: Path,
        log: Log,
    ) -> None:
        self.world, self.episodes, self.making, self.batch = world, episodes, making, batch
        self.compiled, self.out, self.log = compiled, out, log

    def loss(self, own_past: float = 0.0) -> Tensor:
        """Of a random batch; own_past: share of the past that the network predicts itself."""
        world = self.world
        clips = self.episodes.clips(world, self.batch)
        draws = world.draw(clips)
        if own_past:
            draws = draws._replace(replaced=torch.rand(draws.levels.shape, device=world.device) < own_past)
        with torch.autocast(world.device.type, torch.bfloat16):
            error, warp, _ = world.losses(clips, draws)
        return error + world.options.warp_loss * warp

    def compile(self, *networks: nn.Module, own_past: float = 0.0) -> None:
        """Let `networks` answer through the compiled function; through the plain one where it does not compile."""
        for function in (self.compiled, behind):
            for network in networks:
                answer_through(network, function)
            try:
                self.loss(own_past).backward()
                self.log(compiled=function is not behind)
                return
            except Exception as error:  # whatever the compiler raises
                if function is behind:
                    raise
                self.log(not_compiled=f"{type(error).__name__}: {error}"[:800])
            finally:
                self.world.network.zero_grad()

    def train(
        self,
        name: str,
        lasts: Callable[[], float],
        *,
        lr: float,
        warmup: int,
        own_past: float = 0.0,
        own_past_from: float = 0.0,
    ) -> None:
        """For `lasts()` seconds; the rate falls to 0 over the last 40 % of the time. own_past: from the share own_past_from of the time on."""
        world, device, fused = self.world, self.world.device, self.world.device.type == "cuda"
        parameters = list(world.network.parameters())
        optimizer = torch.optim.AdamW(parameters, lr, betas=(0.9, 0.95), weight_decay=1e-2, fused=fused)
        begin = now = saved = logged = seconds()
        step = logged_step = 0
        total = torch.zeros((), device=device)
        while (share := (now - begin) / max(lasts(), 1e-9)) < 1:
            rate = lr * min(1.0, (step + 1) / warmup) * min(1.0, (1 - share) / 0.4 + 0.01)
            for group in optimizer.param_groups:
                group["lr"] = rate
            loss = self.loss(own_past if share >= own_past_from else 0.0)
            loss.backward()
            norm = nn.utils.clip_grad_norm_(parameters, 1.0)
            # A gradient that is not finite counts as 0, without waiting for the GPU to look.
            for parameter in parameters:
                if parameter.grad is not None:
                    parameter.grad.nan_to_num_(0.0, 0.0, 0.0)
            optimizer.step()
            optimizer.zero_grad()
            assert world.ema is not None
            world.ema.update_parameters(world.network)
            total += loss.detach()
            step += 1
            if step % 5:
                continue
            if fused:
                torch.cuda.synchronize()
            now = seconds()
            if now - logged > 10:
                frames = (step - logged_step) * self.batch * world.options.n_frames / (now - logged)
                row = {"loss": total.item() / (step - logged_step), "norm": norm.item(), "rate": rate}
                rounded = {key: float(f"{value:.4g}") for key, value in row.items()}
                there: dict[str, Any] = {"episodes": self.episodes.count}
                if self.episodes.unreadable:
                    there["unreadable"] = self.episodes.unreadable
                if self.making.poll():
                    there["generating_ended_with"] = self.making.returncode
                self.log(stage=name, step=step, **rounded, frames_per_second=round(frames), **there)
                logged, logged_step = now, step
                total.zero_()
            if now - saved > 60:
                self.save(name, step)
                saved = now
        self.save(name, step)
        self.log(stage=name, steps=step, frames=step * self.batch * world.options.n_frames)

    def save(self, name: str, step: int) -> None:
        """The averaged weights as the checkpoint OUT/<name>, in the place of an older one."""
        weights = {key: value.half() for key, value in self.world.sampling_weights().items()}
        metadata = self.world.metadata()
        if name == "teacher":  # a mean prediction in one step; a student's metadata say its steps
            metadata["sampling"] = {"algorithm": {"diffusion": {"sampling_timesteps": 1}}}
        save(self.out / name, None, metadata=metadata, model=weights, step=step)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument(
        "--seconds", type=float, default=500, help="of training, compiling aside; the file OUT/seconds may change it"
    )
    parser.add_argument("--student", type=float, default=0.35, help="share of the training time that the student gets")
    parser.add_argument(
        "--own-past", type=float, default=0.5, help="share of its past that the student predicts itself"
    )
    parser.add_argument("--size", default="B")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", type=float, default=1.2e-3)
    parser.add_argument("--student-lr", type=float, default=2e-4)
    parser.add_argument("--episodes", type=int, default=3000)
    parser.add_argument("--first", type=int, default=64, help="episodes to wait for before training begins")
    parser.add_argument("--weights", type=Path, help="a checkpoint to start from, as far as names and shapes agree")
    parser.add_argument("--backend", default="inductor", help="of torch.compile; none: without it")
    parser.add_argument("words", nargs="*", help="more words of the command line")
    arguments = parser.parse_intermixed_args()
    if not 0 < arguments.student < 1:
        parser.error(f"--student is {arguments.student}; it is a share between 0 and 1")
    for word in arguments.words:
        for beginning, instead in REFUSED.items():
            if word.lstrip("+").startswith(beginning):
                parser.error(f"{word} has no effect here: {instead}")
    out: Path = arguments.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    log = Log(out)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
    log(device=name, torch=torch.__version__, arguments={key: str(value) for key, value in vars(arguments).items()})
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True
    torch.manual_seed(0)

    data = out.parent / f"{out.name}-data"
    making = generate(data, arguments.episodes, arguments.words, max(1, worker_count(0) - 2))
    try:
        run(arguments, making, data, out, device, log)
    finally:
        making.terminate()


def run(
    arguments: argparse.Namespace,
    making: subprocess.Popen[bytes],
    data: Path,
    out: Path,
    device: torch.device,
    log: Log,
) -> None:
    """Teacher, then student, on the episodes that `making` writes to `data`."""
    if (data / "training").exists():
        log(continued=str(data))
    episodes = Episodes(data / "training", arguments.episodes, device)
    ready = plan([*CONFIGURATION, f"algorithm.diffusion.architecture.size={arguments.size}", *arguments.words])
    world: World = ready.classes["algorithm"](ready.options["algorithm"])
    if arguments.weights:
        given, own = World.from_pretrained(arguments.weights).sampling_weights(), world.network.state_dict()
        fitting = {key: value for key, value in given.items() if key in own and own[key].shape == value.shape}
        world.take_weights(own | fitting)
        log(weights_taken=len(fitting), of=len(own))
    world.to(device)
    assert world.ema is not None
    log(parameters=sum(p.numel() for p in world.network.parameters()))

    first = min(arguments.first, arguments.episodes)

    def goes_on() -> None:
        check_made(making, episodes, first)

    episodes.wait(first, goes_on)
    file = out / "seconds"
    file.unlink(missing_ok=True)

    def lasts(share: float) -> Callable[[], float]:
        """Seconds of a part of the training."""

        def now() -> float:
            with contextlib.suppress(OSError, ValueError):  # not there, or half written
                arguments.seconds = float(file.read_text())
            return share * float(arguments.seconds)

        return now

    compiled = (
        behind if arguments.backend == "none" else torch.compile(behind, dynamic=False, backend=arguments.backend)
    )
    trainer = Trainer(world, episodes, making, arguments.batch, compiled, out, log)
    trainer.compile(world.network)
    goes_on()
    trainer.train("teacher", lasts(1 - arguments.student), lr=arguments.lr, warmup=200)

    world.distill(grid=32, steps=2)
    world.ema.decay = 0.99
    networks = [world.network, world.ema.module, *world.teachers]
    for network in networks:  # alike in all that a compiled graph depends on, so that one serves all of them
        network.train().requires_grad_()
    trainer.compile(*networks, own_past=arguments.own_past)
    trainer.train(
        "student",
        lasts(arguments.student),
        lr=arguments.student_lr,
        warmup=50,
        own_past=arguments.own_past,
        own_past_from=0.5,
    )
    if device.type == "cuda":
        log(memory_gib=round(torch.cuda.max_memory_allocated() / 2**30, 1))


if __name__ == "__main__":
    main()
