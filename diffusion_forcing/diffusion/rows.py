"""Random numbers for some rows of a batch that several processes share.

Whatever the method draws for a batch is drawn here. With an ordinary generator these are torch's own functions; with `Rows` the numbers of
the whole batch are drawn and those of its rows kept, so a process has exactly what a single one would have drawn for the same rows. It costs
the drawing of the whole batch in each process.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor


class Rows(torch.Generator):
    """A generator that knows which rows of a whole batch its process has. Seed it as any other."""

    total: int
    """Rows of the whole batch."""
    rows: tuple[int, ...]
    """Those that are here, in the order of the process's own batch."""

    @classmethod
    def of(cls, total: int, rows: Sequence[int], *, device: torch.device) -> Rows:
        """The generator of `rows` out of `total`."""
        made = cls(device)
        made.total, made.rows = total, tuple(rows)
        return made


def normal(
    shape: Sequence[int], *, generator: torch.Generator | None, device: torch.device, dtype: torch.dtype | None = None
) -> Tensor:
    """Standard normal numbers of `shape` (b, …)."""
    return _drawn(torch.randn, shape, generator, device=device, dtype=dtype)


def uniform(shape: Sequence[int], *, generator: torch.Generator | None, device: torch.device) -> Tensor:
    """Numbers in [0, 1) of `shape` (b, …); shape () is one number for the whole batch."""
    return _drawn(torch.rand, shape, generator, device=device)


def integers(
    low: int, high: int, shape: Sequence[int], *, generator: torch.Generator | None, device: torch.device
) -> Tensor:
    """Whole numbers from `low` up to, not with, `high`, of `shape` (b, …)."""
    return _drawn(partial(torch.randint, low, high), shape, generator, device=device)


def _drawn(draw: Callable[..., Tensor], shape: Sequence[int], generator: torch.Generator | None, **how: Any) -> Tensor:
    shape = tuple(shape)
    if not isinstance(generator, Rows) or not shape:
        return draw(shape, generator=generator, **how)
    # a row of the batch may stand for several in a row, as the paths of a forecast do
    each, left = divmod(shape[0], len(generator.rows))
    assert left == 0, f"{shape[0]} rows are drawn for a batch of {len(generator.rows)}"
    whole = draw((generator.total * each, *shape[1:]), generator=generator, **how)
    return whole[[row * each + copy for row in generator.rows for copy in range(each)]]
