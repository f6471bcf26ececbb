"""Rollouts of a recurrent network: seconds and network steps a token, ours beside the released loop, and memory against length.

    python -m benchmarks.recurrent [--threads 2] [--repeat 3] [--long 1000]

The network has the sizes of the released mazes' MLP (3.2 M parameters); four sequences at once, 10 DDIM steps.
The released loop (`diffusion.recurrent`) also steps tokens that wait or are finished; ours (`Sampler.stream`) does not. Both take turns in
one process, the smallest time counts.
Memory is the most that the process held so far, after a rollout of 100 tokens and after a long one. Ends with one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import resource
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.planning import seconds
from diffusion_forcing.diffusion import DiffusionForcing, Sampler, build_parameterization, build_schedule
from diffusion_forcing.networks.recurrent import Recurrent, recurrent_mlp
from tests.parity.released_rollout import released_rollout

STEPS, BATCH, X, NEW = 10, 4, 60, 12


def method() -> tuple[DiffusionForcing, Recurrent, list[int]]:
    """The method over a fresh network, and a list that grows by one with each of its steps."""
    torch.manual_seed(0)
    network = recurrent_mlp(X, 128, network_size=16, num_mlp_layers=4).eval()
    steps: list[int] = []
    inner = network.model.step

    def counted(*args: Any) -> Any:
        steps.append(1)
        return inner(*args)

    network.model.step = counted  # type: ignore[method-assign,assignment]
    forcing = DiffusionForcing(
        network,
        build_schedule("linear", 1000),
        build_parameterization("pred_x0", clip_noise=20.0),
        clip_noise=20.0,
        stabilization_level=1,
    )
    return forcing, network, steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--long", type=int, default=1000)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    forcing, _, steps = method()
    context = torch.randn(BATCH, 2, X)
    length = context.shape[1] + NEW

    def ours(chunk: int) -> None:
        sampler = Sampler(forcing, sampling_timesteps=STEPS, scheduling_matrix="pyramid", uncertainty_scale=1, eta=0.0)
        for _ in sampler.stream(context, length, chunk_size=chunk, cache="streaming"):
            pass

    @torch.no_grad()
    def released(chunk: int) -> None:
        released_rollout(
            forcing, context, length, sampling_timesteps=STEPS, chunk_size=chunk, uncertainty_scale=1, eta=0.0
        )

    table = Table(
        "tokens at once", "released, steps", "ours, steps", "released, ms a token", "ours, ms a token", "ratio"
    )
    figures: dict[str, float] = {}
    for chunk in (1, 4, NEW):
        counts = {}
        for name, roll in (("released", released), ("ours", ours)):
            steps.clear()
            roll(chunk)
            counts[name] = len(steps)
        took = seconds(
            {"released": lambda c=chunk: released(c), "ours": lambda c=chunk: ours(c)},  # type: ignore[misc]
            options.repeat,
        )
        ratio = took["released"] / took["ours"]
        table.add_row(
            str(chunk),
            str(counts["released"]),
            str(counts["ours"]),
            *(f"{1000 * took[name] / NEW:.2f}" for name in ("released", "ours")),
            f"{ratio:.2f}",
        )
        figures |= {
            f"steps_ratio_{chunk}": round(counts["released"] / counts["ours"], 3),
            f"ratio_{chunk}": round(ratio, 3),
        }
    held = []
    for tokens in (100, options.long):
        sampler = Sampler(forcing, sampling_timesteps=STEPS, scheduling_matrix="autoregressive", eta=0.0)
        for _ in sampler.stream(context, tokens, chunk_size=1, cache="streaming"):
            pass
        held.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    console = Console()
    console.print(table)
    console.print(f"held at most: {held[0]:.0f} MB after 100 tokens, {held[1]:.0f} MB after {options.long}")
    figures |= {"mb_after_100": round(held[0], 1), f"mb_after_{options.long}": round(held[1], 1)}
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
