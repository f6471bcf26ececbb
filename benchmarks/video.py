"""Video speed: seconds a generated frame, a forward call and a training step; clips read a second; the memory of a rollout.

    python -m benchmarks.video [--threads 2] [--repeat 2] [--frames 8] [--parts network,memory,reading,world]

The network is that of DMLab in the README (18.65 M parameters, 64x64, window 16, 10 sampling steps, float32, batch 1), random. `cached` rolls
out frame by frame with `algorithm.cache=exact`, `plain` with `none`, from 16 - FRAMES frames of context until the window is full. `released way`
is the same network with every convolution as the released code has it: three-dimensional, over (b, c, t, h, w) that lies so in memory.
All take turns in one process and the smallest of the repeats counts. Memory is the process's peak after rolling out 24, then 48 frames with
`streaming`, the window sliding. `world`: frames a second of `df_world` in one and two steps, beside the network of `labmaze64` with its four and a
streaming cache, random weights, all included, from frame WARM on, when every window is full; p95 is the rate that 19 of 20 frames keep. Ends
with one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks import video_reading
from benchmarks.planning import seconds
from diffusion_forcing.algorithms.video import Clips, Video
from diffusion_forcing.experiments.devices import peak_memory
from diffusion_forcing.launch.cli import keep_freed_memory
from diffusion_forcing.launch.run import plan
from diffusion_forcing.networks.unet3d import FrameConv

WINDOW = 16
WARM = 32
WORLD = ("dataset=video_labmaze", "algorithm=df_world", "dataset.n_frames=24")
WORLDS = {
    "world": (*WORLD, "algorithm.diffusion.sampling_timesteps=2"),
    "world_1_step": (*WORLD, "algorithm.diffusion.sampling_timesteps=1"),
    "labmaze64": ("dataset=video_labmaze", "load=labmaze64", "algorithm.cache=streaming"),
}
README = (
    "algorithm=df_video",
    "dataset=video_dmlab",
    "dataset.external_cond_dim=0",
    "algorithm.weight_decay=1e-3",
    "algorithm.diffusion.architecture.network_size=48",
    "algorithm.diffusion.architecture.attn_dim_head=32",
    "algorithm.diffusion.architecture.attn_resolutions=[8,16,32,64]",
    "algorithm.diffusion.beta_schedule=cosine",
    "algorithm.diffusion.sampling_timesteps=10",
    "algorithm.scheduling_matrix=autoregressive",
    "algorithm.chunk_size=1",
)


def build(cache: str) -> Video:
    """The README's DMLab network with weights of seed 0."""
    torch.manual_seed(0)
    return Video(plan([*README, f"algorithm.cache={cache}"]).options["algorithm"]).eval()


@contextmanager
def released_convolutions(batch: int) -> Iterator[None]:
    """Inside, convolutions are three-dimensional ones over `batch` clips (b, c, t, h, w)."""

    def forward(self: FrameConv, x: Tensor) -> Tensor:
        clips = x.unflatten(0, (batch, -1)).transpose(1, 2).contiguous()
        y = F.conv3d(clips, self.weight.contiguous(), self.bias, self.stride, self.padding)
        return y.transpose(1, 2).flatten(0, 1)

    with mock.patch.object(FrameConv, "forward", forward):
        yield


def rollout(video: Video, frames: int) -> Callable[[], object]:
    """Predict the last `frames` frames of a full window."""
    context = torch.rand(1, WINDOW - frames, 3, 64, 64, generator=torch.Generator().manual_seed(0))

    def roll() -> None:
        with torch.inference_mode():
            for _ in video.stream(context, WINDOW, generator=torch.Generator().manual_seed(1)):
                pass

    return roll


def forward_16(video: Video) -> Callable[[], object]:
    x, k = torch.randn(1, WINDOW, 3, 64, 64), torch.randint(0, 1000, (1, WINDOW))

    def call() -> None:
        with torch.inference_mode():
            video.network(x, k)

    return call


def training_step(video: Video, batch: int) -> Callable[[], object]:
    optimizer: Any = video.configure_optimizers()["optimizer"]
    clips = Clips(torch.randn(batch, WINDOW, 3, 64, 64), torch.ones(batch, WINDOW, dtype=torch.bool), None)

    def step() -> None:
        loss, _ = video.loss(clips, video.draw(clips))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def released_way(batch: int, function: Callable[[], object]) -> Callable[[], object]:
    def call() -> None:
        with released_convolutions(batch):
            function()

    return call


def network_speed(frames: int, repeat: int) -> dict[str, float]:
    """Seconds, smallest of `repeat` turns."""
    exact, none = build("exact"), build("none")
    step = training_step(none, 2)
    rolled = seconds({"cached": rollout(exact, frames), "plain": rollout(none, frames)}, repeat)
    calls = seconds(
        {"forward_16": forward_16(none), "forward_16_released_way": released_way(1, forward_16(none))}, repeat
    )
    steps = seconds({"train_step_b2": step, "train_step_b2_released_way": released_way(2, step)}, repeat)
    figures = {f"seconds_per_frame_{name}": value / frames for name, value in rolled.items()}
    return figures | {f"seconds_{name}": value for name, value in (calls | steps).items()}


def world_speed(frames: int) -> dict[str, float]:
    """Frames a second of rollouts of one clip, the median and the rate that all but the slowest twentieth keep."""
    figures = {}
    for name, words in WORLDS.items():
        ready = plan(list(words))
        torch.manual_seed(0)
        video = ready.classes["algorithm"](ready.options["algorithm"]).eval()
        context = torch.rand(1, 8, 3, 64, 64)
        length = WARM + frames
        actions = torch.eye(3)[torch.randint(3, (1, length))]
        times = []
        with torch.inference_mode():
            stream = video.stream(context, length, actions=actions, generator=torch.Generator().manual_seed(0))
            start = time.perf_counter()
            for _ in stream:
                times.append(time.perf_counter() - start)
                start = time.perf_counter()
        full = sorted(times[WARM - 8 :])
        figures[f"{name}_frames_per_second_p50"] = 1 / full[len(full) // 2]
        figures[f"{name}_frames_per_second_p95"] = 1 / full[int(0.95 * (len(full) - 1))]
    return figures


def memory() -> dict[str, float]:
    """Peak megabytes of this process after 24 and after 48 frames, in windows that slide."""
    video = build("streaming")
    context = torch.rand(1, WINDOW - 4, 3, 64, 64)
    figures = {}
    for length in (24, 48):
        with torch.inference_mode():
            for _ in video.stream(context, length, sampler=video.sampler()):
                pass
        figures[f"peak_megabytes_{length}_frames"] = peak_memory(torch.device("cpu"))
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=2)
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--parts", default="memory,network,world,reading")
    arguments = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(arguments.threads)
    parts = arguments.parts.split(",")
    figures: dict[str, float] = {}
    if "memory" in parts:  # first: a peak never goes down again
        figures |= memory()
    if "network" in parts:
        figures |= network_speed(arguments.frames, arguments.repeat)
    if "world" in parts:
        figures |= world_speed(10 * arguments.frames)
    if "reading" in parts:
        figures |= {name: value for name, value in video_reading.measure().items() if name.startswith("clips")}
    table = Table(title=f"video, {arguments.threads} threads, float32, batch 1")
    table.add_column("")
    table.add_column("", justify="right")
    for name, value in figures.items():
        table.add_row(name, f"{value:.3f}" if value < 100 else f"{value:,.0f}")
    Console(width=100).print(table)
    if "network" in parts:
        for ours, other in (
            ("seconds_per_frame_cached", "seconds_per_frame_plain"),
            ("seconds_forward_16", "seconds_forward_16_released_way"),
            ("seconds_train_step_b2", "seconds_train_step_b2_released_way"),
        ):
            print(f"{other} / {ours}: {figures[other] / figures[ours]:.2f}")
    print(json.dumps({name: round(value, 4) for name, value in figures.items()}))


if __name__ == "__main__":
    main()
