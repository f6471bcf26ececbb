"""Planning speed: seconds a plan and a training step, ours beside the same mathematics written as the released code writes it.

    python -m benchmarks.planning [--threads 2] [--repeat 3]

The configuration is the released medium `_x` one: 2.4 M parameters, 61 tokens, a pyramid of 109 rows with guidance, training batches of
64. The reference is `torch.nn.TransformerEncoder`, time first, with its zero dropout, differentiated by autograd, through the same
sampler; `shipped` is the plan that `load=maze2d_medium_x` draws by default. Reference and ours take turns in one process; the smallest of
the repeats counts, since only disturbances add time. Ends with one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from diffusion_forcing.algorithms.planning.algorithm import Planning, PlanningOptions
from diffusion_forcing.networks.attention import sinusoidal

MEAN, STD = (3.5092521, 3.4765592), (1.3371079, 1.52102)


class ReleasedTransformer(nn.Module):
    """The released network as it is built there: time first, `torch.nn.TransformerEncoder`."""

    causal = False

    def __init__(self, x_dim: int, size: int = 128, layers: int = 12, heads: int = 4, feedforward: int = 512) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(size, heads, dim_feedforward=feedforward, dropout=0.0)
        self.size = size
        self.transformer = nn.TransformerEncoder(layer, layers)
        self.init_mlp = nn.Sequential(nn.Linear(x_dim + size // 2, size), nn.ReLU(), nn.Linear(size, size))
        self.out = nn.Linear(size, x_dim)

    def forward(self, x: Tensor, k: Tensor, conditions: Any = None, memory: Any = None) -> tuple[Tensor, None]:
        x, k = x.transpose(0, 1), k.transpose(0, 1)
        hidden = self.init_mlp(torch.cat([x, sinusoidal(k, self.size // 2)], dim=-1))
        hidden = hidden + sinusoidal(torch.arange(len(x))[:, None], self.size)
        return self.out(self.transformer(hidden)).transpose(0, 1), None


def seconds(functions: dict[str, Callable[[], object]], repeat: int) -> dict[str, float]:
    """The smallest wall time of each function over `repeat` turns, after one to warm up."""
    for function in functions.values():
        function()
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(repeat):
        for name, function in functions.items():
            began = time.perf_counter()
            function()
            times[name].append(time.perf_counter() - began)
    return {name: min(values) for name, values in times.items()}


def training_step(model: Planning, batch: int) -> Callable[[], None]:
    optimizer = model.configure_optimizers()["optimizer"]
    tokens = torch.randn(batch, model.options.max_tokens, model.bundle.token_width)
    mask = torch.ones(batch, model.options.max_tokens * model.bundle.frame_stack, dtype=torch.bool)

    def step() -> None:
        loss, _ = model.loss(tokens, mask, model.draw(*tokens.shape[:2]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def planning(model: Planning, batch: int) -> Callable[[], Tensor]:
    planner = model.planner()
    start = torch.randn(batch, model.bundle.observation_dim, generator=torch.Generator().manual_seed(0))
    return lambda: planner.plan_normalized(start, -start, model.options.episode_len)


def shipped() -> Planning:
    """The shipped medium planner with the settings its checkpoint brings."""
    from diffusion_forcing.launch.run import plan as checked

    words = ["experiment=exp_planning", "algorithm=df_planning", "dataset=maze2d_medium", "load=maze2d_medium_x"]
    options = checked(words).options["algorithm"]
    return Planning(options).eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    warnings.filterwarnings("ignore", message="enable_nested_tensor")
    options = PlanningOptions(observation_mean=MEAN, observation_std=STD, ema_decay=0.0)
    ours, reference = Planning(options), Planning(options)
    network = ReleasedTransformer(ours.bundle.token_width)
    network.load_state_dict(ours.network.state_dict())
    reference.forcing.network = network
    default = shipped()
    results: dict[str, dict[str, float]] = {}
    for batch in (1, 16):
        results[f"seconds_per_plan_b{batch}"] = seconds(
            {
                "reference": planning(reference, batch),
                "ours": planning(ours, batch),
                "shipped": planning(default, batch),
            },
            arguments.repeat,
        )
    results["seconds_train_step_b64"] = seconds(
        {"reference": training_step(reference, 64), "ours": training_step(ours, 64)}, arguments.repeat
    )
    table = Table(title=f"planning, {arguments.threads} threads, float32, seconds")
    for column in ("", "released way", "ours", "times faster", "shipped default", "times faster"):
        table.add_column(column, justify="right")
    for name, row in results.items():
        fast = row.get("shipped")
        table.add_row(
            name,
            f"{row['reference']:.3f}",
            f"{row['ours']:.3f}",
            f"{row['reference'] / row['ours']:.2f}",
            "" if fast is None else f"{fast:.4f}",
            "" if fast is None else f"{row['reference'] / fast:.1f}",
        )
    Console(width=120).print(table)
    line = {name: round(row["ours"], 4) for name, row in results.items()}
    line |= {f"{name}_released_way": round(row["reference"], 4) for name, row in results.items()}
    line |= {f"{name}_shipped": round(row["shipped"], 4) for name, row in results.items() if "shipped" in row}
    print(json.dumps(line))


if __name__ == "__main__":
    main()
