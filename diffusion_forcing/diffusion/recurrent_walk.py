"""Walking a scheduling matrix with a network that steps its tokens one after the other, so that every token shown is a step paid for.

No token knows of a later one, and the past is a latent. So a row needs neither the tokens behind the last one that moves, nor those before
the first that is not clean: such a token's latent is what it is, and is computed once. `Sampler.walk` over the whole chunk is the
specification; without noise (eta = 0) both give the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from diffusion_forcing.diffusion.past import Remember, Tokens


def walk_unfinished(
    new: Tokens,
    rows: Tensor,
    memory: Any,
    *,
    walk: Callable[..., Tensor],
    remember: Remember,
    on_row: Callable[[int, Tensor, Tensor], None] | None = None,
) -> tuple[Tensor, Tokens, Any]:
    """Tokens `new` (b, t, *c) taken down `rows`: (rows, t), behind what `memory` holds. `walk` is Sampler.walk.

    Returns the finished tokens, those of them that are not remembered yet, and the memory of all before those. on_row: as for
    `Sampler.walk`.
    """
    x, remembered = new.x, 0
    for row in range(len(rows) - 1):
        now, then = rows[row], rows[row + 1]
        moving = (now != then).nonzero()
        if not len(moving):
            continue
        first, end = int((now > 0).nonzero()[0]), int(moving[-1]) + 1
        if first > remembered:
            memory = remember(replace(new, x=x).between(remembered, first), memory)
            remembered = first
        shown = replace(new, x=x).between(first, end)
        moved = walk(
            shown.x,
            rows[row : row + 2, first:end],
            conditions=shown.conditions,
            memory=memory,
            history_noise=shown.history_noise,
            given=shown.given,
        )
        x = torch.cat([x[:, :first], moved, x[:, end:]], dim=1)
        if on_row is not None:
            on_row(row, x, then)
    return x, replace(new, x=x).between(remembered, new.count), memory
