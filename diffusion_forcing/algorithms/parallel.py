"""One batch in several processes: what of it is here, and numbers that all of them have to agree on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor


class SharedGenerator(torch.Generator):
    """A generator for some rows of a batch that several processes share. Seed it as any other.

    It draws the numbers of the whole batch and keeps those of its rows, so that a process has exactly what a single one would have drawn
    for the same rows.
    """

    total: int
    """Rows of the whole batch."""
    rows: tuple[int, ...]
    """Those that are here, in the order of the process's own batch."""

    @classmethod
    def of(cls, total: int, rows: Sequence[int], *, device: torch.device) -> SharedGenerator:
        """The generator of `rows` out of `total`."""
        made = cls(device)
        made.total, made.rows = total, tuple(rows)
        return made

    def draw(self, function: Callable[..., Tensor], shape: tuple[int, ...], **options: Any) -> Tensor:
        """`function(shape)` for this process's rows; shape () is one number for the whole batch."""
        if not shape:
            return function(shape, generator=self, **options)
        # a row of the batch may stand for several in a row, as the paths of a forecast do
        copies, left = divmod(shape[0], len(self.rows))
        assert left == 0, f"{shape[0]} rows are drawn for a batch of {len(self.rows)}"
        whole = function((self.total * copies, *shape[1:]), generator=self, **options)
        return whole[[row * copies + copy for row in self.rows for copy in range(copies)]]


class Share(NamedTuple):
    """What of a batch this process has. total: the batch's rows in all processes; rows: those here, by their place in it; counted: how many
    of these count, the first ones. What is behind them fills up a process that would have none, and stands in another one too."""

    total: int
    rows: tuple[int, ...]
    counted: int


def share_of(total: int, rank: int, processes: int, *, even: bool) -> Share:
    """Process `rank` has the rows rank, rank + processes, … of `total`.

    even: all processes have as many rows, the first ones again where it does not divide, and all of them count (gradients are averaged over
    processes). Else a row counts in one process only, and a process has at least one row, though none may count.
    """
    own = len(range(rank, total, processes))
    here = -(-total // processes) if even else max(1, own)
    rows = tuple((rank + i * processes) % total for i in range(here))
    return Share(total, rows, here if even else own)


def mean_of_processes(value: Tensor) -> Tensor:
    """The mean of `value`, like-shaped in all processes; no gradient flows."""
    value = value.detach().clone()
    torch.distributed.all_reduce(value)
    return value / torch.distributed.get_world_size()


def gathered(values: Iterable[Any]) -> list[Any]:
    """The `values` of all processes, those of process 0 first; tensors on the CPU."""
    found: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(found, list(values))
    return [value for part in found for value in part]
