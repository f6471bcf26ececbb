"""The two lines at equal parameter count in the medium maze: seconds of a training step and of a plan.

    python -m benchmarks.lines [--threads 1] [--repeat 5]

The networks are those of the shipped `maze2d_medium_x` (attention) and `maze2d_medium_x_rnn` (recurrent), with fresh weights: costs, not
quality. Both take turns in one process, the smallest time counts. Ends with one line of JSON.
"""

from __future__ import annotations

import argparse
import json
from functools import partial
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.planning import seconds
from diffusion_forcing.algorithms.base import DiffusionOptions, RecurrentMLPOptions, TransformerOptions
from diffusion_forcing.algorithms.planning.algorithm import Planning, PlanningOptions
from diffusion_forcing.algorithms.planning.recurrent import RecurrentPlanning, RecurrentPlanningOptions
from diffusion_forcing.datasets.batch import SequenceBatch

COMMON: dict[str, Any] = {
    "observation_mean": (3.5, 3.5),
    "observation_std": (1.3, 1.5),
    "episode_len": 600,
    "frame_stack": 20,
    "scheduling_matrix": "full_sequence",
    "guidance_scale": 3.0,
    "guidance_stop": 0.5,
    "refine": 0.3,
}
BATCH, LEVELS = 64, 10


def both() -> dict[str, Planning]:
    """The planners of the two lines, with fresh weights."""
    torch.manual_seed(0)
    recurrent = RecurrentMLPOptions(network_size=12, num_mlp_layers=3, sampling_timesteps=LEVELS)
    attention = DiffusionOptions(architecture=TransformerOptions(num_layers=6), sampling_timesteps=LEVELS)
    return {
        "attention": Planning(PlanningOptions(**COMMON, diffusion=attention)),
        "recurrent": RecurrentPlanning(RecurrentPlanningOptions(**COMMON, z_shape=(96,), diffusion=recurrent)),
    }


def training_step(planning: Planning) -> None:
    length = planning.options.episode_len + 1
    valid = torch.ones(BATCH, length, dtype=torch.bool)
    batch = SequenceBatch(torch.rand(BATCH, length, 4), torch.rand(BATCH, length, 2), torch.zeros(BATCH, length), valid)
    tokens, mask = planning.encode(batch)
    loss, _ = planning.loss(tokens, mask, planning.draw(*tokens.shape[:2]))
    planning.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]


def plan(planning: Planning, count: int) -> None:
    with torch.no_grad():
        planning.planner().plan(torch.ones(count, 2), torch.full((count, 2), 6.0), planning.options.episode_len)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeat", type=int, default=5)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    planners = both()
    table, found = Table("", *planners), dict[str, dict[str, float]]()
    found["parameters"] = {name: sum(p.numel() for p in one.network.parameters()) for name, one in planners.items()}
    for what, run in (
        (f"training step of {BATCH} windows, s", training_step),
        ("a plan of 600 steps, s", lambda one: plan(one, 1)),
        ("16 plans of 600 steps, s", lambda one: plan(one, 16)),
    ):
        found[what] = seconds({name: partial(run, one) for name, one in planners.items()}, asked.repeat)
    for what, values in found.items():
        table.add_row(what, *(f"{values[name]:,.4g}" for name in planners))
    Console().print(table)
    print(json.dumps({"benchmark": "lines", "threads": asked.threads, **found}))


if __name__ == "__main__":
    main()
