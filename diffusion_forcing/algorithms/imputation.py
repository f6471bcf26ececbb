"""Filling the gaps of series: what was observed stays clean, what is missing is denoised between it.

Any token may be clean, before and behind a gap too (docs/method.md §6). A forecaster with `together=False` has one token
a value, so any values can be missing; to be steered by what follows a gap it needs `network=transformer causal=False`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from diffusion_forcing.algorithms.forecasting import Forecasting
from diffusion_forcing.datasets.batch import SeriesBatch
from diffusion_forcing.errors import UserError, check_positive


def check_can_impute(forecaster: Forecasting) -> None:
    """UserError unless each value has its own token and sees what follows it."""
    options = forecaster.options
    if options.together or options.causal:
        raise UserError(
            f"algorithm.together={options.together} algorithm.causal={options.causal}: to fill gaps, every value needs a token "
            "of its own that sees what follows; train with algorithm.network=transformer algorithm.causal=False "
            "algorithm.together=False"
        )


@torch.no_grad()
def impute(
    forecaster: Forecasting,
    batch: SeriesBatch,
    *,
    paths: int | None = None,
    generator: torch.Generator | None = None,
    on_step: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Sample paths (b, paths, L, V) float64 of whole windows, in data units; what was observed is the same in all paths.

    The missing values of a series go down `algorithm.scheduling_matrix`; `full_sequence` costs least. paths: algorithm.calc_crps_sum by default.
    on_step(done, all) is called after each part of the paths.
    """
    check_can_impute(forecaster)
    options = forecaster.options
    paths = options.calc_crps_sum if paths is None else paths
    check_positive("the number of sample paths", paths)
    # A missing value stands at its base forecast, where a token is 0; to the network it is one that will be observed.
    base = torch.where(batch.logarithm[:, None], batch.base.exp(), batch.base) if options.scaling == "base" else 0.0
    values = torch.where(batch.observed, batch.values, base)
    forcing = forecaster.sampling_forcing()
    encoded = forecaster.encode(
        batch._replace(values=values, observed=torch.ones_like(batch.observed)), forcing.network
    )
    known = batch.observed.transpose(1, 2).flatten(0, 1).to(encoded.x.device) & encoded.observed[..., 0]

    # Only series with a gap are sampled, `paths` times each.
    tokens = encoded.x[:, None].repeat(1, paths, 1, 1)
    rows = (~known).any(dim=1).nonzero()[:, 0].repeat_interleave(paths)
    sampler = forecaster.sampler(forcing)
    found = []
    for part in rows.split(options.paths_at_once):
        conditions = None if encoded.conditions is None else encoded.conditions[part]
        found.append(sampler.fill(encoded.x[part], known[part], conditions=conditions, generator=generator))
        if on_step is not None:
            on_step(sum(map(len, found)), len(rows))
    if found:
        tokens[rows[::paths]] = torch.cat(found).unflatten(0, (-1, paths))
    samples = forecaster.decode(tokens, encoded, batch)
    return torch.where(batch.observed[:, None], batch.values[:, None], samples)
