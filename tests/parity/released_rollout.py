"""Rolling out as the released RNN line does: the specification its recordings are held against (docs/method.md §9).

`Sampler` rolls the same networks out without what this loop wastes. Here every row of a chunk steps every token, those that have not started
(index 0 again) and those that are finished (the last index again) too, and the latent that goes on to the next chunk is that of the last
row, which saw its tokens at the last level and not clean. A chunk of one costs S + 1 calls of the network, a chunk of H tokens
H·(S + ⌊H·u⌋). Ours steps a token S times and looks at it once more when it is clean.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from diffusion_forcing.diffusion.forcing import DiffusionForcing
from diffusion_forcing.diffusion.parameterization import add_noise
from diffusion_forcing.diffusion.scheduling import sampling_levels
from diffusion_forcing.errors import UserError


def ddim_row(
    forcing: DiffusionForcing,
    x: Tensor,
    index: int,
    *,
    sampling_timesteps: int,
    eta: float,
    conditions: Tensor | None = None,
    memory: Any = None,
    noise: Tensor | None = None,
) -> tuple[Tensor, Any]:
    """One token x: (b, 1, *c) by DDIM index `index` (0: from pure noise, S − 1: to clean), and the memory after it.

    At index 0, x is clamped to ±clip_noise. noise: standard normal, used where eta > 0 and the step is not the last.
    """
    levels = sampling_levels(forcing.schedule.timesteps, sampling_timesteps)
    s = sampling_timesteps - index
    if index == 0:
        x = forcing.clamp_noise(x)
    k = levels[s].expand(x.shape[:2]).to(x.device)
    k_to = levels[s - 1].expand(x.shape[:2]).to(x.device)
    prediction, memory = forcing(x, k, conditions, memory)
    return forcing.ddim(prediction.x0, prediction.eps, k, k_to, eta, noise, None), memory


def released_rollout(
    forcing: DiffusionForcing,
    context: Tensor,
    length: int,
    *,
    sampling_timesteps: int,
    chunk_size: int,
    uncertainty_scale: float,
    eta: float = 0.0,
    conditions: Tensor | None = None,
    memory: Any = None,
    chunk_noise: Iterable[Tensor] | None = None,
    noise: Iterable[Tensor] | None = None,
) -> tuple[Tensor, list[int]]:
    """`length` tokens (b, length, *c) that begin with what the model makes of `context`: (b, t₀, *c), each context token noised at level 0.

    chunk_noise: one (b, *c) a new token, noise: one (b, *c) a draw (each context token, then each DDIM step that draws), standard normal,
    instead of draws. conditions: (b, length, d); as released, the first token does not see its own. Returns the tokens, and the DDIM indices
    in the order they were run.
    """
    if chunk_size == 0 or chunk_size < -1:
        raise UserError(f"chunk_size is {chunk_size}; it must be 1 or more, or -1 for all that remain")
    network: Any = forcing.network
    if conditions is not None:
        conditions = torch.cat([torch.zeros_like(conditions[:, :1]), conditions[:, 1:]], dim=1)
    latent = network.begin(len(context), context) if memory is None else memory
    shape = (len(context), *context.shape[2:])
    fresh = iter(noise) if noise is not None else _draws(shape, context.device)
    starts = iter(chunk_noise) if chunk_noise is not None else _draws(shape, context.device)

    def conditions_of(token: int) -> Tensor | None:
        return None if conditions is None else conditions[:, token : token + 1]

    zero = torch.zeros(len(context), context.shape[1], dtype=torch.long, device=context.device)
    eps = forcing.clamp_noise(torch.stack([next(fresh) for _ in range(context.shape[1])], dim=1))
    shown = add_noise(forcing.schedule, context, zero, eps)
    seen = None if conditions is None else conditions[:, : context.shape[1]]
    prediction, latent = forcing(shown, zero, seen, latent)
    tokens, indices = [prediction.x0], list[int]()
    done = context.shape[1]
    while done < length:
        chunk = min(chunk_size, length - done) if chunk_size > 0 else length - done
        x = torch.stack([next(starts) for _ in range(chunk)], dim=1)
        waits = [int(token * uncertainty_scale) for token in range(chunk)]
        for row in range(sampling_timesteps + int(chunk * uncertainty_scale)):
            running, moved = latent, []
            for token in range(chunk):
                index = min(max(row - waits[token], 0), sampling_timesteps - 1)
                draw = next(fresh)[:, None] if eta > 0 and index < sampling_timesteps - 1 else None
                one, running = ddim_row(
                    forcing,
                    x[:, token : token + 1],
                    index,
                    sampling_timesteps=sampling_timesteps,
                    eta=eta,
                    conditions=conditions_of(done + token),
                    memory=running,
                    noise=draw,
                )
                moved.append(one)
                indices.append(index)
            x = torch.cat(moved, dim=1)
        latent = running
        tokens.append(x)
        done += chunk
    return torch.cat(tokens, dim=1), indices


def _draws(shape: tuple[int, ...], device: torch.device) -> Iterator[Tensor]:
    while True:
        yield torch.randn(shape, device=device)
