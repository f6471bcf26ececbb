"""A training killed at random moments, again and again, and resumed each time, ends as one that was never killed.

    python -m tests.soak [--kills 20] [--seed 0] [--steps 1200] [--fork] [--no-mount] [--keep FOLDER]

The training is a small world model, through the command line, with validations that roll out and draw, and a checkpoint every few steps, on a
small disk. It is ended by SIGKILL, SIGTERM, Ctrl-C (once, or twice at once) and by filling the disk, at moments anywhere between its start and
its end, start-up included. After each, every file of its folder is read. At the end weights, optimiser and random state must equal the bytes of
the training that was left alone, and every step's loss be there once. `--fork` starts from a process that has imported everything, so that a
start takes a tenth of a second. `--no-mount`, and where no tmpfs can be mounted: a limit on the size of files stands for the full disk.
Prints a line a kill and, last, one line of JSON; exit code 1 if anything is wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from diffusion_forcing.checkpoints import format as native  # noqa: E402
from tests.checkpoints.same import same  # noqa: E402
from tests.datasets.video_makers import moving_pattern, write_npz  # noqa: E402
from tests.soak.disks import small_disk  # noqa: E402
from tests.soak.processes import Command, Fork, ended  # noqa: E402
from tests.soak.whole import leftovers, torn  # noqa: E402

WAYS = ("SIGKILL", "SIGTERM", "Ctrl-C", "disk full")
IN_START_UP = 0.2  # share of the kills that come before the first step of their session
LONGEST_RESUME = (
    10.0  # seconds of processor time beyond what starting anew takes to the first step; wall time belongs to others too
)
LONGEST_STEP = 0.1  # seconds, about: a kill comes anywhere in one
NEAR_THE_END = 15  # steps before the end that no kill is meant for: a full disk is noticed at the next checkpoint
PATIENCE = 120.0  # seconds that a process may take to make a step, or to end once it should
MEGABYTES = 12
SIZES = "algorithm.diffusion.architecture"
WORDS = [
    "dataset=video_folder",
    "dataset.resolution=8",
    "dataset.n_frames=4",
    "dataset.context_length=1",
    "dataset.frame_skip=1",
    "dataset.external_cond_dim=3",
    f"{SIZES}.network_size=16",
    f"{SIZES}.dim_mults=[1]",
    f"{SIZES}.attn_resolutions=[8]",
    f"{SIZES}.attn_heads=1",
    f"{SIZES}.attn_dim_head=8",
    f"{SIZES}.use_init_temporal_attn=False",
    "algorithm.diffusion.sampling_timesteps=2",
    "algorithm.warmup_steps=100",
    "experiment.training.batch_size=2",
    "experiment.training.log_every_n_steps=1",
    "experiment.training.checkpointing.every_n_train_steps=7",
    "experiment.validation.batch_size=2",
    "experiment.validation.val_every_n_step=25",
    "+name=soak",
]


class First(NamedTuple):
    """When a session's first step was written down: seconds from its start, and seconds of processor time."""

    wall: float
    processor: float


@dataclass
class Kill:
    """One end of the training, and what was found after it. seconds: from its start; first: None where it did not come to a step."""

    way: str
    seconds: float
    code: int | None
    step: int
    first: First | None
    wrong: list[str] = field(default_factory=list)


class Soak:
    """The training on its small disk, and the one that is left alone."""

    def __init__(self, folder: Path, *, steps: int, seed: int, fork: bool, mount: bool = True) -> None:
        self.folder = folder
        self.random = random.Random(seed)
        self.steps = steps
        self.start = Fork if fork else Command
        self.disk = small_disk(folder / "disk", MEGABYTES, mount=mount)
        self.outputs = folder / "disk" / "outputs"
        self.sessions = 0
        self._write_clips()
        self.words = [*WORDS, f"dataset.path={folder / 'clips'}", f"dataset.save_dir={folder / 'data'}"]
        self.words.append(f"experiment.training.max_steps={steps}")

    def _write_clips(self) -> None:
        for split, count in (("training", 5), ("validation", 2)):
            for number in range(count):
                clip = moving_pattern(13, 8, seed=10 * len(split) + number)
                write_npz(self.folder / "clips" / split / f"{number}.npz", clip, [t % 3 for t in range(13)])

    def begin(self, words: list[str]) -> Command | Fork:
        """A session of the command."""
        self.sessions += 1
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        return self.start(words, folder=self.folder, log=self.log, environment=environment)

    @property
    def log(self) -> Path:
        """What the newest session says."""
        return self.folder / f"session-{self.sessions:02d}.txt"

    def left_alone(self) -> tuple[Path, First, float]:
        """Train in one go elsewhere. Its folder, its first step, and seconds of training."""
        outputs = self.folder / "left_alone"
        began = time.time()
        process = self.begin([*self.words, f"outputs={outputs}"])
        first = self.first_step(process, outputs, began)
        if ended(process, 20 * PATIENCE) != 0 or first is None:
            raise SystemExit(f"the training that is left alone fails: {self.log.read_text()[-2000:]}")
        return newest_run(outputs) or outputs, first, time.time() - began - first.wall

    def first_step(
        self, process: Command | Fork, outputs: Path, began: float, *, until: float = PATIENCE
    ) -> First | None:
        """The first step that a session begun at `began` has made and written down; None where it ends or `until` passes."""
        while process.code() is None and time.time() - began < until:
            run = newest_run(outputs)
            if run is not None and last_line(run / "metrics.jsonl").get("time", 0) >= began:
                return First(time.time() - began, processor_seconds(process.pid))
            time.sleep(0.01)
        return None

    def kill(self, way: str, start_up: float, kills_left: int) -> Kill:
        """A session of the training, ended in this way at a random moment; `kills_left`: this and those to come."""
        run = newest_run(self.outputs)
        can_resume = run is not None and any((run / "checkpoints").glob("step-*/checkpoint.json"))
        words = [f"resume={run_id(run)}"] if run is not None and can_resume else self.words
        began = time.time()
        process = self.begin([*words, f"outputs={self.outputs}"])
        first = None
        if self.random.random() < IN_START_UP:
            time.sleep(self.random.uniform(0, start_up))
        else:
            first = self.first_step(process, self.outputs, began)
            self._wait_until_step(process, self._moment(kills_left))
            time.sleep(self.random.uniform(0, LONGEST_STEP))
        after = time.time() - began
        code = self._end(process, way)
        result = Kill(way, after, code, self.step(), first)
        result.wrong = torn(self.outputs) if self.outputs.exists() else []
        if self.disk.kind == "tmpfs":
            self.disk.free()
        said = self.log.read_text(errors="replace")
        allowed = {"SIGKILL": {-9}, "SIGTERM": {143, -15}, "Ctrl-C": {130, -2, 1}, "disk full": {2}}[way]
        if code not in allowed:
            result.wrong.append(f"exit code {code}")
        if "Traceback" in said and first is not None:
            result.wrong.append("a traceback")
        if way == "disk full" and sum(line.startswith("error: ") for line in said.splitlines()) != 1:
            result.wrong.append("no clear line")
        if result.wrong:
            result.wrong.append(f"{self.log} says: {said[-1500:]}")
        return result

    def _moment(self, kills_left: int) -> int:
        """A random step from here on, early enough that the training does not end before the last kill."""
        left = self.steps - self.step()
        return self.step() + int(self.random.uniform(0, min(0.9 * left / kills_left, max(0, left - NEAR_THE_END))))

    def _wait_until_step(self, process: Command | Fork, step: int) -> None:
        until = time.monotonic() + PATIENCE
        while process.code() is None and self.step() < step and time.monotonic() < until:
            time.sleep(0.005)

    def step(self) -> int:
        """The newest step that is written down."""
        run = newest_run(self.outputs)
        return int(last_line(run / "metrics.jsonl").get("step", 0)) if run else 0

    def _end(self, process: Command | Fork, way: str) -> int | None:
        match way:
            case "SIGKILL":
                send(process, signal.SIGKILL)
            case "SIGTERM":
                send(process, signal.SIGTERM)
            case "Ctrl-C":
                send(process, signal.SIGINT)
                if self.random.random() < 0.3:
                    time.sleep(self.random.uniform(0, 0.05))
                    send(process, signal.SIGINT)
            case "disk full":
                self.disk.fill(process.pid)
        code = ended(process, PATIENCE)
        if code is None:
            send(process, signal.SIGKILL)
            ended(process, PATIENCE)
        return code

    def to_the_end(self) -> tuple[Path | None, First | None]:
        """Resume a last time and let it end. The run, and its first step."""
        run = newest_run(self.outputs)
        words = self.words if run is None else [f"resume={run_id(run)}"]
        began = time.time()
        process = self.begin([*words, f"outputs={self.outputs}"])
        first = self.first_step(process, self.outputs, began)
        return (newest_run(self.outputs) if ended(process, 20 * PATIENCE) == 0 else None), first


def send(process: Command | Fork, number: int) -> None:
    if process.code() is None:
        os.kill(process.pid, number)


def processor_seconds(pid: int) -> float:
    """User and system time that a process has taken; 0 for one that is gone."""
    try:
        words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def newest_run(outputs: Path) -> Path | None:
    runs = [file.parent for file in outputs.glob("*/*/run.json")]
    return max(runs, key=lambda run: (json.loads((run / "run.json").read_text())["started"], run.name), default=None)


def run_id(run: Path) -> str:
    return str(json.loads((run / "run.json").read_text())["id"])


def last_line(log: Path) -> dict[str, Any]:
    """The last whole line of metrics.jsonl."""
    try:
        lines = log.read_bytes().splitlines()
        found = json.loads(lines[-1])
    except (OSError, ValueError, IndexError):
        return {}
    return found if isinstance(found, dict) else {}


def losses(run: Path) -> list[tuple[int, float]]:
    """(step, training loss) of every line that has one, in order."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["training/loss"]) for line in lines if "training/loss" in line]


def differences(run: Path, reference: Path) -> list[str]:
    """In what the ends of two runs differ: weights, optimiser and random state, bit for bit; losses."""
    found = []
    ours, theirs = ((folder / "checkpoints" / "latest").resolve() for folder in (run, reference))
    if ours.name != theirs.name:
        found.append(f"{ours.name} is not {theirs.name}")
    if (ours / native.MODEL).read_bytes() != (theirs / native.MODEL).read_bytes():
        found.append(f"{native.MODEL} differs")
    states = [native.load(folder, training=True).training for folder in (ours, theirs)]
    if not same(*(without_history(state) for state in states)):
        found.append(f"{native.TRAINING} differs")
    if losses(run) != losses(reference):
        found.append("losses differ")
    return found


def without_history(state: Any) -> dict[str, Any]:
    """`state` without what a kill may change: seconds of training, and names of checkpoints written on the way."""
    callbacks = {name: dict(kept) for name, kept in state["callbacks"].items()}
    for key in ("seconds", "written"):
        callbacks["Checkpoints"].pop(key)
    return {**state, "callbacks": callbacks}


def soak(folder: Path, *, kills: int, seed: int, steps: int, fork: bool, mount: bool = True) -> dict[str, Any]:
    """All of it in `folder`. Returns the figures, `wrong` among them: what is not as it should be."""
    if fork:
        from diffusion_forcing.launch.run import plan

        plan([*WORDS, "dataset.path=nowhere"])  # imports everything
    trial = Soak(folder, steps=steps, seed=seed, fork=fork, mount=mount)
    try:
        reference, start_up, training = trial.left_alone()
        print(
            f"left alone: first step after {start_up.wall:.1f} s ({start_up.processor:.1f} s of processor time), {steps} steps in "
            f"{training:.1f} s; disk: {trial.disk.kind}"
        )
        ways = [WAYS[i % len(WAYS)] for i in range(kills)]
        trial.random.shuffle(ways)
        results = []
        for number, way in enumerate(ways, 1):
            result = trial.kill(way, start_up.wall, kills - number + 1)
            results.append(result)
            first = "in start-up" if result.first is None else f"first step after {result.first.wall:.1f} s"
            print(
                f"{number:3d} {way:9s} after {result.seconds:5.1f} s ({first}), step {result.step}, exit code {result.code}"
                + "".join(f"\n    WRONG: {line}" for line in result.wrong),
                flush=True,
            )
        run, last_first = trial.to_the_end()
        wrong = [line for result in results for line in result.wrong]
        if run is None:
            wrong.append(f"the last session failed: {trial.log.read_text()[-2000:]}")
        else:
            wrong += torn(trial.outputs) + [f"left behind: {path}" for path in leftovers(run)]
            wrong += differences(run, reference)
        resumes = [first for first in (*(kill.first for kill in results), last_first) if first is not None]
        beyond = max((first.processor for first in resumes), default=0.0) - start_up.processor
        if beyond > LONGEST_RESUME:
            wrong.append(f"a resume took {beyond:.1f} s of processor time beyond start-up")
        return {
            "kills": kills,
            "ways": {way: ways.count(way) for way in WAYS},
            "in_start_up": sum(kill.first is None for kill in results),
            "disk": trial.disk.kind,
            "steps": steps,
            "seconds_start_up": round(start_up.wall, 2),
            "processor_seconds_start_up": round(start_up.processor, 2),
            "seconds_resume_at_most": round(max((first.wall for first in resumes), default=0.0), 2),
            "processor_seconds_resume_beyond_start_up": round(beyond, 2),
            "same_weights": run is not None and not differences(run, reference),
            "wrong": wrong,
        }
    finally:
        trial.disk.close()


def main(words: list[str] | None = None) -> int:
    """Run it and print; 0 if nothing is wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--fork", action="store_true")
    parser.add_argument("--no-mount", action="store_true")
    parser.add_argument("--keep", type=Path, default=None, help="a folder to work in, which stays")
    given = parser.parse_args(words)
    folder = given.keep or Path(tempfile.mkdtemp(prefix="soak-"))
    folder.mkdir(parents=True, exist_ok=True)
    try:
        figures = soak(
            folder.resolve(),
            kills=given.kills,
            seed=given.seed,
            steps=given.steps,
            fork=given.fork,
            mount=not given.no_mount,
        )
    finally:
        if given.keep is None:
            shutil.rmtree(folder, ignore_errors=True)
    for line in figures["wrong"]:
        print(f"WRONG: {line}")
    print(json.dumps(figures | {"wrong": len(figures["wrong"])}))
    return int(bool(figures["wrong"]))


if __name__ == "__main__":
    sys.exit(main())
