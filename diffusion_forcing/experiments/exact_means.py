"""Means over processes that come out right where they do not divide.

A metric's mean is its weighted sum over the sum of its weights, the batches' sizes. Lightning (2.6) averages both over processes, the second
as a whole number: 5 samples in 2 processes count as 2 each, and the metric is a quarter too high.
"""

from __future__ import annotations

from typing import Any

import torch


class ExactMeans:
    """In front of a Lightning strategy: whole numbers are averaged as real ones."""

    def reduce(self, tensor: Any, group: Any | None = None, reduce_op: Any = "mean") -> Any:
        mean = reduce_op is None or str(reduce_op).lower() in ("mean", "avg")
        if mean and isinstance(tensor, torch.Tensor) and not tensor.is_floating_point():
            tensor = tensor.double()
        return super().reduce(tensor, group, reduce_op)  # type: ignore[misc]
