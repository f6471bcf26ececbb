"""Checks a GPU and measures its speed, for the networks that video models train: README.md beside this file.

    python tools/gpu/check.py OUT

Loss, gradients and a rollout on the device equal the CPU's; with bfloat16 and `torch.compile` they are close and finite. Then frames a second
of training, its share of the device's peak, and of a rollout. Everything is printed and written to OUT/check.jsonl; a part that fails is
reported, and the others go on.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from diffusion_forcing.datasets.batch import VideoBatch
from diffusion_forcing.launch.run import Plan, plan

MODELS = {
    "df_world": ("dataset=video_labmaze", "algorithm=df_world", "dataset.n_frames=24", "dataset.cache=none"),
    "df_video": ("dataset=video_labmaze", "algorithm=df_video", "dataset.n_frames=24", "dataset.cache=none"),
    "released": ("algorithm=df_video", "dataset=video_minecraft", "algorithm.norm=clip", "algorithm.cache=none"),
}
"""Words of the command line; `released` is the released Minecraft configuration."""
PEAK = 989e12
"""Operations a second of bfloat16 products on an H100 or H200, for the share of it that training reaches (MFU)."""

Log = Callable[..., None]


def build(words: list[str]) -> tuple[Plan, Any]:
    """The plan of a command line, and its algorithm with random weights."""
    ready = plan(words)
    torch.manual_seed(0)
    return ready, ready.classes["algorithm"](ready.options["algorithm"])


def random_batch(video: Any, batch: int, device: torch.device) -> VideoBatch:
    options = video.options
    shape, generator = (batch, options.n_frames), torch.Generator().manual_seed(0)
    frames = torch.randint(256, (*shape, *options.observation_shape), dtype=torch.uint8, generator=generator)
    known = torch.ones(shape, dtype=torch.bool)
    made = VideoBatch(frames, torch.zeros(*shape, options.action_width), known, known)
    return VideoBatch(*(part.to(device) for part in made))


class OneStream:
    """A generator that draws on the CPU, so that every device is given the same numbers."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def draw(self, function: Callable[..., Tensor], shape: tuple[int, ...], *, device: Any, **options: Any) -> Tensor:
        return function(shape, generator=self.generator, **options).to(device)


def check(words: list[str], device: torch.device, log: Log) -> None:
    """Network, loss, gradients and a rollout on the device equal the CPU's; with bfloat16 and `torch.compile` they are close and finite."""
    _, video = build(words)
    batch = random_batch(video, 2, torch.device("cpu"))
    for parameter in video.network.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)
    clips = video.encode(batch)
    draws = video.draw(clips, generator=torch.Generator().manual_seed(1))

    def step(where: torch.device, half: bool = False) -> tuple[float, Tensor]:
        video.to(where).zero_grad()
        moved = type(draws)(*(part.to(where) if isinstance(part, Tensor) else part for part in draws))
        on_device = type(clips)(*(part.to(where) if isinstance(part, Tensor) else part for part in clips))
        with torch.autocast(where.type, torch.bfloat16, enabled=half):
            loss = video.loss(on_device, moved)[0]
        loss.backward()
        gradients = [p.grad.flatten() for p in video.network.parameters() if p.grad is not None]
        return loss.item(), torch.cat(gradients).cpu()

    plain, gradients = step(torch.device("cpu"))
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):  # which keeps 10 bits of each factor
        there, there_gradients = step(device)
    cosine = torch.nn.functional.cosine_similarity(gradients, there_gradients, dim=0).item()
    half, half_gradients = step(device, half=True)
    video.network.compile(backend="inductor" if device.type == "cuda" else "eager")
    compiled, _ = step(device, half=True)
    log("check", loss_cpu=plain, loss_device=there, gradient_cosine=cosine, loss_bf16=half, loss_compiled=compiled)
    assert abs(there - plain) < 1e-3 * abs(plain), "the loss differs between CPU and device"
    assert cosine > 0.999, "the gradients differ between CPU and device"
    assert abs(half - plain) < 0.05 * abs(plain), "the loss in bfloat16 is far off"
    assert abs(compiled - half) < 0.02 * abs(half), "the compiled loss is far off"
    assert torch.isfinite(half_gradients).all(), "gradients in bfloat16 are not finite"

    # A rollout with the weights that were perturbed, in float32, from the same noise on both.
    video.take_weights({key: value.cpu() for key, value in video.network.state_dict().items()})
    context, length = video.options.context_frames, video.options.context_frames + 2

    def roll(where: torch.device) -> Tensor:
        video.to(where).eval()
        actions = batch.actions[:, :length].to(where) if video.options.condition_width else None
        generator: Any = OneStream(2)
        with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            frames = batch.frames[:, :context].to(where)
            return video.predict(frames, length, actions=actions, generator=generator).float().cpu()

    error = (roll(device) - roll(torch.device("cpu"))).abs().max().item()
    log("check", rollout_error=error)
    assert error <= 2 / 255, "a rollout differs between CPU and device by more than two grey levels"


def measure(name: str, words: list[str], device: torch.device, log: Log, *, batch: int, repeat: int) -> None:
    """Training steps a second with their operations and share of the peak, and frames a second of one rollout."""
    _, video = build(words)
    video.to(device)
    clips = random_batch(video, batch, device)
    optimizer = torch.optim.AdamW(video.network.parameters(), 1e-4)
    encoded = video.encode(clips)

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16):
            loss = video.loss(encoded, video.draw(encoded))[0]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    with FlopCounterMode(display=False) as counter:
        step()
    seconds = timed(step, device, repeat)
    flops = counter.get_total_flops()
    known = device.type == "cuda" and any(card in torch.cuda.get_device_name() for card in ("H100", "H200"))
    share = {"mfu": round(flops / seconds / PEAK, 3)} if known else {}
    options = video.options
    context, length = clips.frames[:1, : options.context_frames], options.n_frames + 4 * repeat
    actions = clips.actions[:1].repeat(1, 1 + length // options.n_frames, 1) if options.condition_width else None
    video.eval()
    with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16):
        rolled = timed(lambda: list(video.stream(context, length, actions=actions)), device, 1)
    frames = batch * options.n_frames / seconds
    rate = (length - options.context_frames) / rolled
    log(
        "measure",
        model=name,
        training_frames_per_second=round(frames, 1),
        tflops=round(flops / seconds / 1e12, 3),
        **share,
    )
    log("measure", model=name, rollout_frames_per_second=round(rate, 2))


def timed(function: Callable[[], object], device: torch.device, repeat: int) -> float:
    """Seconds of one call, the mean of `repeat` after one that warms up."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    function()
    wait()
    start = time.perf_counter()
    for _ in range(repeat):
        function()
    wait()
    return (time.perf_counter() - start) / repeat


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--toy", action="store_true", help="a rehearsal: small batches, one step")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("words", nargs="*", help="more words of the command line")
    arguments = parser.parse_intermixed_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    toy = arguments.toy or device.type == "cpu"

    def log(stage: str, **values: Any) -> None:
        row = json.dumps({"stage": stage, **values})
        print(row, flush=True)
        with (arguments.out / "check.jsonl").open("a") as file:
            file.write(row + "\n")

    log("start", device=torch.cuda.get_device_name() if device.type == "cuda" else "cpu", torch=torch.__version__)
    failed = []
    for name in arguments.models:
        words = [*MODELS[name], *arguments.words]
        batch = 2 if toy else 4 if name == "released" else 32
        for part in (
            lambda words=words: check(words, device, log),
            lambda name=name, words=words, batch=batch: measure(
                name, words, device, log, batch=batch, repeat=1 if toy else 10
            ),
        ):
            try:
                part()
            except Exception as error:  # the next part may still say something
                traceback.print_exc()
                failed.append(name)
                log("failed", model=name, error=f"{type(error).__name__}: {error}"[:400])
    log("end", failed=failed)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
