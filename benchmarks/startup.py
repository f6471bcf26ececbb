"""How long one waits: `--help`, an error, and from the command to the run's folder, the first training step, the first picture.

    python -m benchmarks.startup [--repeat 3]

The first step is taken in tiny configurations of three tasks, each in its own process and folder: forecasting (a CSV of 400 days), video
(films of 8x8 pixels) and a project of one's own as `diffusion-forcing new` writes it; the first picture is of a validation of the shipped
planner of maze2d's medium maze. Each counts when its file is there, and the command is then ended. The run's folder is there once everything
is imported and checked. Wall seconds, and seconds of processor time (user and system), which other work on the machine disturbs less; the
smallest of the repeats counts. Ends with one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date, timedelta
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
POLL_SECONDS = 0.01
LONGEST = 300.0  # seconds that a command may take to its first step
GOALS = {"help": 0.5, "error": 0.5, "checked": 3.0, "first_step": 3.0, "first_picture": 4.0}
ENDLESS = "experiment.tasks=[training] experiment.training.max_steps=1000000 experiment.training.log_every_n_steps=1"
FORECASTING = (
    "dataset=ts_csv dataset.path=days.csv dataset.prediction_length=5 dataset.freq=D algorithm=df_prediction_small algorithm.z_shape=[8] "
    "experiment.training.batch_size=4"
)
VIDEO = (
    "dataset=video_folder dataset.path=clips dataset.resolution=8 dataset.n_frames=6 dataset.frame_skip=1 experiment.training.batch_size=2 "
    "algorithm.diffusion.architecture.network_size=8 algorithm.diffusion.architecture.dim_mults=[1] "
    "algorithm.diffusion.architecture.attn_resolutions=[8] algorithm.diffusion.architecture.attn_heads=1 "
    "algorithm.diffusion.architecture.attn_dim_head=8"
)
PLANNING = (
    "experiment=exp_planning dataset=maze2d_medium load=maze2d_medium_goal experiment.tasks=[validation] experiment.episodes=1 "
    "algorithm.goal=random"
)
OWN = "dataset=my_dataset algorithm=my_algorithm experiment=my_experiment"

Seconds = tuple[float, float]
"""Wall seconds and processor seconds."""


def write_days(folder: Path) -> None:
    """days.csv: two series of 400 days."""
    begin = date(2020, 1, 1)
    rows = [f"{begin + timedelta(i)},{10 + 3 * math.sin(i / 7):.3f},{20 + 3 * math.cos(i / 7):.3f}" for i in range(400)]
    (folder / "days.csv").write_text("\n".join(["time,a,b", *rows]) + "\n")


def write_clips(folder: Path) -> None:
    """clips/: eight films of 24 frames of 8x8 pixels."""
    (folder / "clips").mkdir()
    for number in range(8):
        video = np.random.default_rng(number).integers(0, 256, (24, 8, 8, 3), dtype=np.uint8)
        np.savez(folder / "clips" / f"{number}.npz", video=video)


def write_project(folder: Path) -> None:
    """A project of one's own, where the command then stands."""
    words = [sys.executable, "-m", "diffusion_forcing", "new", "my_project"]
    subprocess.run(words, cwd=folder, env=environment(), check=True, stdout=subprocess.DEVNULL)


STEP, PICTURE = "metrics.jsonl", "pictures/*.png"
CASES: dict[str, tuple[Callable[[Path], None], str, str, str]] = {
    "forecasting": (write_days, ".", f"{FORECASTING} {ENDLESS}", STEP),
    "video": (write_clips, ".", f"{VIDEO} {ENDLESS}", STEP),
    "own_project": (write_project, "my_project", f"{OWN} {ENDLESS}", STEP),
    "planning": (lambda folder: None, ".", PLANNING, PICTURE),
}
"""What is written first, where the command stands, its words, and the file in the run's folder that is waited for."""


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}


def to_the_end(words: list[str], folder: Path, *, code: int = 0) -> Seconds:
    """A command, from its start to its end with the exit code `code`."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(words, cwd=folder, env=environment(), check=False, capture_output=True)
    assert done.returncode == code, done.stderr.decode()
    return time.perf_counter() - began, _processor_seconds_since(before)


def to_the_file(words: list[str], folder: Path, pattern: str) -> Seconds:
    """A command, from its start to a new file `pattern` in its run's folder; it is then killed."""
    known = set(folder.glob(f"outputs/*/*/{pattern}"))
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    log = folder / "stderr.txt"
    with log.open("wb") as errors:
        process = subprocess.Popen(words, cwd=folder, env=environment(), stdout=subprocess.DEVNULL, stderr=errors)
        try:
            while not any(file.stat().st_size for file in set(folder.glob(f"outputs/*/*/{pattern}")) - known):
                if process.poll() is not None or time.perf_counter() - began > LONGEST:
                    raise SystemExit(f"{shlex.join(words)} made no {pattern}: {log.read_text()[-2000:]}")
                time.sleep(POLL_SECONDS)
            wall = time.perf_counter() - began
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
    return wall, _processor_seconds_since(before)


def _processor_seconds_since(before: resource.struct_rusage) -> float:
    now = resource.getrusage(resource.RUSAGE_CHILDREN)
    return now.ru_utime - before.ru_utime + now.ru_stime - before.ru_stime


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeat", type=int, default=3)
    repeat = parser.parse_args().repeat
    command = [sys.executable, "-m", "diffusion_forcing"]
    results: dict[str, list[Seconds]] = {
        "help": [to_the_end([*command, "--help"], ROOT) for _ in range(repeat)],
        "error": [to_the_end([*command, "sed=3"], ROOT, code=2) for _ in range(repeat)],
    }
    with tempfile.TemporaryDirectory() as temporary:
        for name, (prepare, inside, words, file) in CASES.items():
            folder = Path(temporary) / name
            folder.mkdir()
            prepare(folder)
            line = [*command, *shlex.split(words)]
            for stage, pattern in (("checked", "run.json"), ("first_step" if file == STEP else "first_picture", file)):
                results[f"{stage}_{name}"] = [to_the_file(line, folder / inside, pattern) for _ in range(repeat)]
    table = Table(title=f"start-up, smallest of {repeat}, seconds")
    for column in ("", "wall", "processor", "goal (wall)"):
        table.add_column(column, justify="right")
    line_of_json = {}
    for name, times in results.items():
        wall, processor = (min(values) for values in zip(*times, strict=True))
        goal = next(value for start, value in GOALS.items() if name.startswith(start))
        table.add_row(name, f"{wall:.2f}", f"{processor:.2f}", f"{goal:g}")
        line_of_json |= {f"seconds_{name}": round(wall, 3), f"processor_seconds_{name}": round(processor, 3)}
    Console(width=120).print(table)
    print(json.dumps(line_of_json))


if __name__ == "__main__":
    main()
