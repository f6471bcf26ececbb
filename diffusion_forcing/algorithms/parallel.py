"""One batch shared by several processes: which rows are in this one, and values that all of them agree on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Share(NamedTuple):
    """The rows of a batch that are in this process."""

    total: int
    """Rows of the batch in all processes."""
    rows: tuple[int, ...]
    """Those in this process, by their place in the batch."""
    counted: int
    """How many of `rows`, the first ones, count. The rest are in another process too: they fill up one without any."""


def share_of(total: int, rank: int, processes: int, *, even: bool) -> Share:
    """Process `rank` has the rows rank, rank + processes, … of `total`.

    `even`: every process has as many rows, the first ones again where it does not divide, and all of them count, for
    training, which averages gradients over processes. Otherwise a row counts in one process only, and a process has at
    least one row, even if none counts.
    """
    own = len(range(rank, total, processes))
    here = -(-total // processes) if even else max(1, own)
    rows = tuple((rank + i * processes) % total for i in range(here))
    return Share(total, rows, here if even else own)


class SharedGenerator(torch.Generator):
    """A generator for the rows of a batch that are in this process. Seed it as any other, alike in all processes.

    It draws the numbers of the whole batch and keeps those of its rows, so each row gets the numbers that it would get
    in a single process.
    """

    total: int
    """Rows of the whole batch."""
    rows: tuple[int, ...]
    """Those in this process."""

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
        # One row of the batch may stand for several in sequence, as the sample paths of a forecast do.
        copies, left = divmod(shape[0], len(self.rows))
        assert left == 0, f"{shape[0]} rows are drawn for a batch of {len(self.rows)}"
        whole = function((self.total * copies, *shape[1:]), generator=self, **options)
        return whole[[row * copies + copy for row in self.rows for copy in range(copies)]]


def mean_of_processes(value: Tensor) -> Tensor:
    """The mean over processes of `value`, a tensor of the same shape in each; no gradient flows."""
    value = value.detach().clone()
    torch.distributed.all_reduce(value)
    return value / torch.distributed.get_world_size()


def gathered(values: Iterable[Any]) -> list[Any]:
    """The `values` of all processes, those of process 0 first; tensors on the CPU."""
    found: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(found, list(values))
    return [value for part in found for value in part]
