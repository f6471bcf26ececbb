"""Diffusion Forcing in one file: sine waves, one causal transformer, four ways to sample it.

    python examples/minimal.py                 trains for about half a minute of one CPU core, then samples
    python examples/minimal.py --steps 3       a quick look at what is called, with a network that has learned nothing

A wave is cut into tokens of 8 samples. Training gives every token its own noise level. Sampling then chooses the levels: clean past
and one noisy token is next-token prediction, all tokens equally noisy is full-sequence diffusion, a slope between them is the
pyramid. The network is the same in all of them. The first two tokens of a wave decide the rest, so each sample has a truth to be
compared with.

Needs torch and this package's `diffusion` and `networks`, nothing else. Draws a picture where matplotlib is installed.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import torch
from torch import Tensor

from diffusion_forcing.diffusion import (
    DiffusionForcing,
    Sampler,
    build_parameterization,
    build_schedule,
    draw_noise_levels,
    ema_of,
)
from diffusion_forcing.networks import Transformer

SAMPLES = 8  # of the wave in one token
TOKENS = 8  # in a training sequence, and so the most the network may see at once: its window
CONTEXT = 2  # tokens that are given when sampling
PERIODS = (12, 24)  # of the waves, in samples
TIMESTEPS = 1000  # K, training noise levels
SAMPLING_TIMESTEPS = 20  # S, levels used when sampling


def waves(batch: int, generator: torch.Generator) -> Tensor:
    """Sine waves of random period, phase and amplitude (0.5 to 1) as tokens (b, TOKENS, SAMPLES)."""
    period = torch.tensor(PERIODS)[torch.randint(0, len(PERIODS), (batch, 1), generator=generator)]
    phase = torch.rand(batch, 1, generator=generator)
    amplitude = 0.5 + 0.5 * torch.rand(batch, 1, generator=generator)
    t = torch.arange(TOKENS * SAMPLES)
    return (amplitude * torch.sin(2 * math.pi * (t / period + phase))).reshape(batch, TOKENS, SAMPLES)


def build() -> DiffusionForcing:
    """The network, the noise schedule and what the network predicts: here the clean token itself."""
    return DiffusionForcing(
        Transformer(SAMPLES, network_size=64, num_layers=3, attn_heads=4, dim_feedforward=256, causal=True),
        build_schedule("cosine", TIMESTEPS),
        build_parameterization("pred_x0", clip_noise=20.0),
        weighting="fused_snr",  # a noisy token counts if its past was clean: that is where the next token is learned
        cum_snr_decay=0.9,
        stabilization_level=10,  # when sampling, finished tokens are shown as if very slightly noisy
    )


def train(forcing: DiffusionForcing, *, steps: int, batch: int, lr: float, generator: torch.Generator) -> None:
    """Algorithm 1. Leaves the averaged weights in the network: they sample better than the last ones."""
    optimizer = torch.optim.AdamW(forcing.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=lr, total_steps=steps)
    average = ema_of(forcing.network, decay=0.995)
    began = time.process_time()
    for step in range(1, steps + 1):
        x = waves(batch, generator)
        # the method in one line: a level for each token of each sequence, independently
        k = draw_noise_levels("random_all", batch, TOKENS, timesteps=TIMESTEPS, generator=generator, device=x.device)
        loss = forcing.loss(x, k, generator=generator).per_element.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        average.update_parameters(forcing.network)
        if step == 1 or step % 250 == 0:
            print(f"  step {step:5d}   loss {loss.item():.4f}   {time.process_time() - began:5.1f} s of CPU")
    forcing.network.load_state_dict(average.module.state_dict())


def sample(
    forcing: DiffusionForcing, context: Tensor, *, matrix: str, chunk: int, cache: str = "none", seed: int = 1
) -> tuple[Tensor, float]:
    """Algorithm 2. The waves (b, TOKENS, SAMPLES) that begin with `context`, and the seconds they took.

    matrix: the order in which the tokens of a chunk lose their noise. chunk: tokens denoised together, -1 for all that are missing.
    """
    sampler = Sampler(forcing, sampling_timesteps=SAMPLING_TIMESTEPS, scheduling_matrix=matrix)
    began = time.perf_counter()
    noise = torch.Generator().manual_seed(seed)
    x = sampler.rollout(context, TOKENS, window=TOKENS, chunk_size=chunk, cache=cache, generator=noise)
    return x, time.perf_counter() - began


def draw(path: str, truth: Tensor, results: dict[str, Tensor]) -> None:
    """One row a way of sampling, one column a wave: the truth dashed, the context thick, the sample thin."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print("no picture: matplotlib is not installed")
        return
    shown = min(4, len(truth))
    figure = Figure(figsize=(3.2 * shown, 1.7 * len(results)), layout="constrained")
    grid = figure.subplots(len(results), shown, sharex=True, sharey=True, squeeze=False)
    for row, (name, x) in zip(grid, results.items(), strict=True):
        row[0].set_ylabel(name, fontsize=8)
        for i, axes in enumerate(row):
            axes.plot(truth[i].flatten(), "--", color="0.6", linewidth=1)
            axes.plot(x[i].flatten(), color="tab:blue", linewidth=1.2)
            axes.plot(truth[i, :CONTEXT].flatten(), color="black", linewidth=2.5)
            axes.set_ylim(-1.4, 1.4)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    print(f"picture: {path} (dashed: truth, thick: context, blue: sampled)")


def main() -> None:
    parser = argparse.ArgumentParser(description="Diffusion Forcing on sine waves")
    parser.add_argument("--steps", type=int, default=1500, help="training steps")
    parser.add_argument("--batch", type=int, default=64, help="sequences a step")
    parser.add_argument("--picture", default="outputs/minimal.png", help="where the picture goes; '' for none")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    torch.manual_seed(arguments.seed)
    generator = torch.Generator().manual_seed(arguments.seed)
    forcing = build()
    parameters = sum(p.numel() for p in forcing.parameters())
    print(f"training a causal transformer of {parameters:,} parameters on sine waves")
    train(forcing, steps=arguments.steps, batch=arguments.batch, lr=2e-3, generator=generator)

    truth = waves(32, torch.Generator().manual_seed(10_000 + arguments.seed))
    context = truth[:, :CONTEXT]
    ways = {  # matrix, chunk, cache
        "next token": ("autoregressive", 1, "none"),
        "pyramid": ("pyramid", -1, "none"),
        "full sequence": ("full_sequence", -1, "none"),
        "next token, cached": ("autoregressive", 1, "exact"),
    }
    results = {}
    print(
        f"\n{len(truth)} new waves, {CONTEXT} of {TOKENS} tokens given; root mean square error of the rest against the truth"
    )
    for name, (matrix, chunk, cache) in ways.items():
        results[name], seconds = sample(forcing, context, matrix=matrix, chunk=chunk, cache=cache)
        error = (results[name] - truth)[:, CONTEXT:].square().mean().sqrt()
        print(f"  {name:20s} error {error:.3f}   {seconds:5.2f} s")
    silence = truth[:, CONTEXT:].square().mean().sqrt()
    print(f"  {'(a flat line)':20s} error {silence:.3f}")
    difference = (results["next token"] - results["next token, cached"]).abs().max()
    print(f"the cached rollout equals the plain one to {difference:.1e}")
    if arguments.picture:
        draw(arguments.picture, truth, results)


if __name__ == "__main__":
    main()
