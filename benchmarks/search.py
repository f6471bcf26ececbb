"""Ways to search for a plan, with the same weights, side by side: guidance, a goal token, candidates, tree search.

    python -m benchmarks.search dataset=… load=… [key=value …] [--episodes 50] [--rows gradient,candidates_16] [--threads 2]

The weights must be trained with `algorithm.goal_token=True`; the gradient can guide them too. Success and first reach are of played
episodes, with their standard errors; seconds are of single plans (batch 1), the median of `--plans`; rows are calls of the network on one
sequence, so 16 candidates down one row are 16. Ends with one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from diffusion_forcing.algorithms.planning.algorithm import Planning
from diffusion_forcing.algorithms.planning.planner import Planner
from diffusion_forcing.checkpoints import format as checkpoints
from diffusion_forcing.experiments.planning import play
from diffusion_forcing.launch.run import plan as checked
from diffusion_forcing.metrics.planning import planning_report

CPU = torch.device("cpu")
GUIDED = ["algorithm.goal_token=False", "algorithm.guidance_scale=2", "algorithm.scheduling_matrix=pyramid"]
ROWS: dict[str, list[str]] = {
    "gradient": ["algorithm.search=none", "algorithm.guidance_stop=0.5", *GUIDED],
    "goal_token": ["algorithm.search=none"],
    "candidates_1": ["algorithm.search=candidates", "algorithm.candidates=1"],
    "candidates_4": ["algorithm.search=candidates", "algorithm.candidates=4"],
    "candidates_16": ["algorithm.search=candidates", "algorithm.candidates=16"],
    "candidates_64": ["algorithm.search=candidates", "algorithm.candidates=64"],
    "branched_16_to_64": ["algorithm.search=candidates", "algorithm.candidates=64", "algorithm.roots=16"],
    "mctd": ["algorithm.search=mctd", "algorithm.tree.expansions=100", *GUIDED],
    "fast_mctd": ["algorithm.search=fast_mctd", "algorithm.tree.expansions=200", *GUIDED],
}


class Counted:
    """Counts the sequences that a planner's network is called on."""

    def __init__(self, planner: Planner) -> None:
        self.sequences = 0
        planner.forcing.register_forward_pre_hook(self.add)

    def add(self, module: torch.nn.Module, inputs: tuple[Any, ...]) -> None:
        self.sequences += len(inputs[0])


def measure(words: list[str], episodes: int, plans: int) -> dict[str, float]:
    """One row of the table for the command line `words`."""
    chosen = checked(words)
    algorithm = Planning(chosen.options["algorithm"])
    algorithm.load_weights(checkpoints.load(chosen.checkpoint))
    dataset = chosen.classes["dataset"](chosen.options["dataset"])
    planner, options = algorithm.eval().planner(), algorithm.options
    env = dataset.environment(episodes, options.goal)
    with torch.no_grad():
        played = play(env, planner, options, seed=0, device=CPU)
        report = planning_report(played.rewards, maze=dataset.reference)
        counted, seconds = Counted(planner), []
        for index in range(plans):
            start, goal = (
                torch.tensor(points[index % episodes : index % episodes + 1], dtype=torch.float32)
                for points in (played.trajectories[:, 0], played.goals)
            )
            began = time.perf_counter()
            planner.plan(start, goal, options.plan_len, generator=torch.Generator().manual_seed(index))
            seconds.append(time.perf_counter() - began)
    keys = ("success_rate", "success_rate_stderr", "first_reach", "first_reach_stderr")
    numbers = {key: float(report[f"planning/{key}"]) for key in keys}
    return {**numbers, "seconds": float(np.median(seconds)), "rows": counted.sequences / plans}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("words", nargs="+", metavar="key=value", help="of the command line: dataset=…, load=…")
    parser.add_argument("--episodes", type=int, default=50)
    parser.add_argument("--plans", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rows", default=",".join(ROWS), help=f"of {', '.join(ROWS)}")
    arguments = parser.parse_intermixed_args()
    torch.set_num_threads(arguments.threads)
    table = Table(title=f"search, {arguments.episodes} episodes, {arguments.threads} threads")
    for column in ("", "success", "first reach", "seconds a plan", "network rows a plan"):
        table.add_column(column, justify="right")
    line: dict[str, Any] = {}
    for name in arguments.rows.split(","):
        row = measure([*arguments.words, *ROWS[name]], arguments.episodes, arguments.plans)
        line[name] = row
        table.add_row(
            name,
            f"{row['success_rate']:.3f} ± {row['success_rate_stderr']:.3f}",
            f"{row['first_reach']:.0f} ± {row['first_reach_stderr']:.0f}",
            f"{row['seconds']:.3f}",
            f"{row['rows']:.0f}",
        )
        print(name, json.dumps(row), flush=True)
    Console(width=120).print(table)
    print(json.dumps(line))


if __name__ == "__main__":
    main()
