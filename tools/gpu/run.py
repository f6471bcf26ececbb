"""Ten minutes of one GPU into a better model, on a bare machine: check, measure, make data, train, distil, judge, write the weights.

    python tools/gpu/run.py OUT [--model world] [--seconds 240] [--distil-seconds 90] [--episodes 3000] [words of the command line …]

Works in the folder that `tools/gpu/pack.py` made (README.md beside this file). Everything is printed with its time and written to OUT/run.jsonl;
a stage that fails is reported and the next ones go on as far as they can. On a CPU, or with --toy, it is a rehearsal at toy size.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import tarfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from torch.utils.flop_counter import FlopCounterMode

from diffusion_forcing.checkpoints import export, latest
from diffusion_forcing.datasets.batch import VideoBatch
from diffusion_forcing.launch.run import Plan, plan
from diffusion_forcing.tracking.run import Run

DATA = ("dataset.save_dir=data/labmaze", "dataset.cache=none")
MODELS: dict[str, tuple[str, ...]] = {
    "world": (
        *("dataset=video_labmaze", "algorithm=df_world", "dataset.n_frames=24", *DATA),
        *(
            "algorithm.diffusion.architecture.size=C",
            "experiment.training.batch_size=32",
            "experiment.training.lr=1e-3",
        ),
    ),
    "planner": ("dataset=maze2d_medium", "algorithm=df_planning", "experiment=exp_planning"),
    "forecaster": ("dataset=ts_load", "algorithm=df_prediction_small", "experiment=exp_prediction"),
}
"""Words of the command line by name; further ones may follow on this script's own."""
RELEASED = ("algorithm=df_video", "dataset=video_minecraft", "algorithm.norm=clip", "algorithm.cache=none")
"""The released Minecraft configuration, which ours is measured beside."""
PEAK = 989e12
"""Operations a second of bfloat16 products on an H100 or H200, for the share of it that training reaches (MFU)."""
PIECE = 16 << 20
"""Most bytes of one file of weights."""
TOY = (
    *(
        "experiment.training.batch_size=2",
        "experiment.test.batch_size=2",
        "experiment.films=1",
        "experiment.judge.frames=20",
    ),
    *("experiment.judge.rollouts=2", "experiment.judge.turns=[2]", "experiment.judge.speed_frames=2"),
)


class Log:
    """Lines for people on stdout, and for programs in OUT/run.jsonl."""

    def __init__(self, out: Path) -> None:
        self.file, self.start, self.failed = out / "run.jsonl", time.monotonic(), list[str]()

    def __call__(self, stage: str, **values: Any) -> None:
        row = {"seconds": round(time.monotonic() - self.start, 1), "stage": stage, **values}
        print(json.dumps(row), flush=True)
        with self.file.open("a") as file:
            file.write(json.dumps(row) + "\n")

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Times a stage; an error is reported and does not go further."""
        began = time.monotonic()
        try:
            yield
            self(name, done=round(time.monotonic() - began, 1))
        except Exception as error:  # the next stage may still bring something home
            self.failed.append(name)
            traceback.print_exc()
            self(name, failed=f"{type(error).__name__}: {error}"[:400])


class OnCard(Dataset[VideoBatch]):
    """Clips of whole episodes that lie on the device: a batch is one indexing there, and nothing is loaded or copied in training."""

    on_device = True

    def __init__(self, episodes: VideoBatch, length: int, device: torch.device) -> None:
        self.episodes, self.length = VideoBatch(*(part.to(device) for part in episodes)), length
        self.starts = episodes.frames.shape[1] - length + 1

    def __len__(self) -> int:
        return len(self.episodes.frames) * self.starts

    def __getitems__(self, indices: list[int]) -> VideoBatch:
        place = torch.tensor(indices, device=self.episodes.frames.device)
        episode, start = place // self.starts, place % self.starts
        frames = start[:, None] + torch.arange(self.length, device=place.device)
        return VideoBatch(*(part[episode[:, None], frames] for part in self.episodes))


class CardData:
    """A video data set whose training clips are `OnCard`; validation and test are its own."""

    def __init__(self, dataset: Any, words: list[str], length: int, device: torch.device) -> None:
        self.dataset = dataset
        whole = plan([*words, f"dataset.n_frames={dataset.options.episode_frames}", "dataset.context_length=1"])
        source = whole.classes["dataset"](whole.options["dataset"])
        source.prepare()
        clips = source.training()
        parts = [clips.__getitems__(list(range(i, min(i + 64, len(clips))))) for i in range(0, len(clips), 64)]
        self.clips = OnCard(VideoBatch(*map(torch.cat, zip(*parts, strict=True))), length, device)  # type: ignore[arg-type]

    def training(self) -> OnCard:
        return self.clips

    def __getattr__(self, name: str) -> Any:
        return getattr(self.dataset, name)


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


# ---------------------------------------------------------------------------------------------------- stages


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
    with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16):
        context = batch.frames[:, : video.options.context_frames].to(device)
        actions = batch.actions.to(device) if video.options.condition_width else None
        rolled = video.eval().predict(context, video.options.n_frames, actions=actions)
    assert torch.isfinite(rolled).all(), "a rollout is not finite"


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
    share = {"mfu": round(flops / seconds / PEAK, 3)} if device.type == "cuda" else {}
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


def train(
    words: list[str], seconds: float, run: Run, log: Log, device: torch.device, *, task: str = "training"
) -> Path:
    """Run `task` for about `seconds`: a few steps are timed first, so that the learning rate ends where the time does."""
    ready = plan([*words, f"experiment.tasks=[{task}]"])
    dataset = ready.classes["dataset"](ready.options["dataset"])
    if ready.classes["algorithm"].task == "video":
        dataset = CardData(dataset, words, ready.options["dataset"].n_frames, device)

    def go(steps: int, where: Run) -> float:
        done = plan([*words, f"experiment.tasks=[{task}]", f"experiment.training.max_steps={steps}"])
        experiment = done.classes["experiment"](
            done.options["experiment"],
            dataset=dataset,
            algorithm=done.classes["algorithm"](done.options["algorithm"]),
            run=where,
            load=done.checkpoint,
        )
        start = time.monotonic()
        experiment.run_task(task)
        return time.monotonic() - start

    few = 1 if seconds < 10 else 40
    trial = Run.create(run.folder, "trial")
    go(few, trial)  # compiles and warms up
    pace = go(few, trial) / few
    steps = max(few, int(seconds / pace))
    log(task, seconds_per_step=round(pace, 4), steps=steps)
    go(steps, run)
    found = latest(run.folder)
    assert found is not None
    return found


def ship(checkpoint: Path, name: str, out: Path) -> None:
    """`checkpoint` in float16, as OUT/<name>.tar.00 … of at most 16 MiB; `cat <name>.tar.* | tar x` puts it together."""
    folder = export(
        checkpoint, out.parent / f"{out.name}-{name}", dtype="float16", card=f"# {name}\n\nMade by tools/gpu/run.py.\n"
    )
    whole = folder.with_suffix(".tar")
    with tarfile.open(whole, "w") as archive:
        archive.add(folder, arcname=name)
    content = whole.read_bytes()
    for number, start in enumerate(range(0, len(content), PIECE)):
        (out / f"{name}.tar.{number:02d}").write_bytes(content[start : start + PIECE])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", choices=MODELS, default="world")
    parser.add_argument("--seconds", type=float, default=240, help="of training")
    parser.add_argument("--distil-seconds", type=float, default=90, help="0: no student")
    parser.add_argument("--episodes", type=int, default=3000, help="training episodes of the lab mazes")
    parser.add_argument("--toy", action="store_true", help="a rehearsal: small batches, short rollouts")
    parser.add_argument(
        "words", nargs="*", help="more words of the command line, such as algorithm.diffusion.architecture.size=B"
    )
    arguments = parser.parse_intermixed_args()
    out = arguments.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    toy = arguments.toy or device.type == "cpu"
    log = Log(out)
    log(
        "start",
        device=torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        torch=torch.__version__,
        toy=toy,
    )

    precision = ["experiment.training.precision=bf16-mixed", "experiment.test.precision=bf16-mixed"]
    checkpointing = ["experiment.validation.val_every_n_step=null", "experiment.training.checkpointing.keep_last=1"]
    words = [*MODELS[arguments.model], *precision, *checkpointing, *(TOY if toy and arguments.model == "world" else ())]
    if device.type == "cuda":
        words += ["experiment.training.compile=true", "experiment.matmul_precision=high"]
    if arguments.model == "world":
        held_out = 4 if toy else 256
        words += [f"dataset.num_episodes={arguments.episodes}", f"dataset.num_test_episodes={held_out}"]
        words += [f"dataset.num_validation_episodes={4 if toy else 16}"]
    words += arguments.words

    # The data is made on all cores while the device is checked and measured.
    generate = [sys.executable, "-m", "main", *words, "experiment.tasks=[generate_dataset]", "+name=data"]
    making = subprocess.Popen(generate) if arguments.model == "world" else None
    if arguments.model == "world":
        with log.stage("check"):
            check(words, device, log)
        with log.stage("measure"):
            measure("ours", words, device, log, batch=2 if toy else 32, repeat=1 if toy else 20)
            if not toy:
                measure("released", list(RELEASED), device, log, batch=4, repeat=5)
    if making is not None:
        with log.stage("data"):
            if code := making.wait():
                raise RuntimeError(f"generating the data ended with {code}")

    teacher: Path | None = None
    with log.stage("train"):
        teacher = train(words, arguments.seconds, Run.create(out.parent / "runs", "teacher"), log, device)
        ship(teacher, f"{arguments.model}_teacher", out)
    student: Path | None = None
    if teacher is not None and arguments.distil_seconds:
        with log.stage("distil"):
            more = [*words, f"load={teacher}", "experiment.training.lr=1e-4"]
            run = Run.create(out.parent / "runs", "student")
            student = train(more, arguments.distil_seconds, run, log, device, task="distill")
            ship(student, f"{arguments.model}_student", out)
    for name, checkpoint in (("teacher", teacher), ("student", student)):
        if checkpoint is None:
            continue
        with log.stage(f"judge {name}"):
            judge = (
                ["experiment=exp_judge", "algorithm.metrics=[]", "experiment.films=0"]
                if arguments.model == "world"
                else ["experiment.tasks=[validation]"]
            )
            runs = out.parent / "runs" / f"judge_{name}"
            subprocess.run(
                [sys.executable, "-m", "main", *words, *judge, f"load={checkpoint}", f"outputs={runs}", "+name=judge"],
                check=True,
            )
            numbers = json.loads(next(runs.rglob("metrics.json")).read_text())
            (out / f"{name}.json").write_text(json.dumps(numbers, indent=2))
    log("end", failed=log.failed)
    return 1 if log.failed else 0


if __name__ == "__main__":
    sys.exit(main())
