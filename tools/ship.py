"""From a training run to a shipped checkpoint: weights, the settings to sample with, and a card with what was measured.

    python tools/ship.py outputs/<date>/<time>-maze2d_medium_x pretrained/maze2d_medium_x \\
        --sampling algorithm.guidance_scale=3 algorithm.diffusion.sampling_timesteps=10 … \\
        --scores "D4RL's goal"=outputs/<date>/<time>-medium_dataset "random goals"=outputs/<date>/<time>-medium_random

What was trained and measured is read from the runs' own files; `--note` adds a line. Run it on the machine that trained.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import shlex
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

from diffusion_forcing.checkpoints import export, latest
from diffusion_forcing.errors import UserError

PAUSE = 300
"""Seconds between two lines of metrics.jsonl from which on the run counts as paused."""
ROWS = (
    ("success_rate", "success rate"),
    ("normalized_score", "normalised score"),
    ("oracle_normalized_score", "the oracle's normalised score"),
    ("oracle_ratio", "oracle ratio"),
    ("episode_reward", "episode reward"),
    ("first_reach", "first reach (steps)"),
    ("seconds_per_plan", "seconds a plan"),
)


def nested(words: list[str]) -> dict[str, Any]:
    """`a.b=1` words as a nested mapping."""
    tree: dict[str, Any] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals:
            raise UserError(f"--sampling takes KEY=VALUE words, got '{word}'")
        *path, last = key.split(".")
        branch = tree
        for name in path:
            branch = branch.setdefault(name, {})
        branch[last] = yaml.safe_load(value)
    return tree


def command(run: Path) -> str:
    """The command line that started a run, as one types it."""
    words = json.loads((run / "run.json").read_text())["command"]
    return "python -m main " + " ".join(shlex.quote(word) for word in words[1:])


def score_table(runs: dict[str, Path]) -> str:
    """One column an evaluation run, from its metrics.json."""
    metrics = {name: json.loads((run / "metrics.json").read_text()) for name, run in runs.items()}
    lines = ["| | " + " | ".join(metrics) + " |", "|---" * (len(metrics) + 1) + "|"]
    for key, label in ROWS:
        cells = []
        for values in metrics.values():
            value, error = values.get(f"planning/{key}"), values.get(f"planning/{key}_stderr")
            cells.append("" if value is None else f"{value:.4g}" + ("" if error is None else f" ± {error:.2g}"))
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def minutes_of_training(run: Path) -> float:
    """Wall time between the lines of metrics.jsonl, without pauses."""
    times = [json.loads(line)["time"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    return sum(b - a for a, b in itertools.pairwise(times) if b - a < PAUSE) / 60


def card(name: str, run: Path, step: int, sampling: list[str], scores: dict[str, Path], notes: list[str]) -> str:
    """The text of README.md beside the weights."""
    facts = json.loads((run / "run.json").read_text())
    minutes = minutes_of_training(run)
    episodes = [json.loads((path / "metrics.json").read_text())["planning/episodes"] for path in scores.values()]
    evaluations = "\n".join(command(path) for path in scores.values())
    extra = "".join(f"\n{note}\n" for note in notes)
    return f"""# {name}

A maze2d planner, positions only. Weights: the exponential moving average (0.999) after {step} steps.

Trained by run {facts["id"]} (commit {facts["commit"][:10]}), {minutes:.0f} minutes of wall time on
{platform.machine()} with {os.cpu_count()} cores, one thread, other work beside it (pauses of over {PAUSE} s not counted):
```
{command(run)}
```
Data: one million steps made here by the waypoint controller with action noise 0.5 (`experiment.tasks=[generate_dataset]`, seed 0).
{extra}
## Settings it brings
What `load={name}` samples with unless the command line says otherwise:
```
{chr(10).join(sampling)}
```

## Scores
{" and ".join(str(count) for count in dict.fromkeys(episodes))} episodes each; mean ± standard error. docs/planning.md says how each is computed.

{score_table(scores)}

```
{evaluations}
```
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--sampling", nargs="*", default=[], metavar="KEY=VALUE")
    parser.add_argument("--scores", nargs="*", default=[], metavar="NAME=RUN")
    parser.add_argument("--note", action="append", default=[])
    arguments = parser.parse_args()
    scores = {name: Path(path) for name, _, path in (word.partition("=") for word in arguments.scores)}
    try:
        checkpoint = latest(arguments.run)
        if checkpoint is None:
            raise UserError(f"{arguments.run} has no checkpoint to ship; give a training run's folder")
        step = json.loads((checkpoint / "checkpoint.json").read_text())["step"]
        text = card(arguments.out.name, arguments.run, step, arguments.sampling, scores, arguments.note)
        with tempfile.TemporaryDirectory(dir=arguments.out.parent, prefix=".ship-") as folder:
            made = export(checkpoint, Path(folder) / "new", card=text, sampling=nested(arguments.sampling))
            if arguments.out.exists():
                shutil.rmtree(arguments.out)
            made.rename(arguments.out)
    except UserError as mistake:
        print(f"error: {mistake}", file=sys.stderr)
        return 2
    print(f"{arguments.out}: step {step}, card {arguments.out / 'README.md'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
