"""Memory: what a causal network keeps of the tokens before x, so that it need not see them again.

One protocol for every network: `network(x, k, conditions, memory) -> (output, memory)`; the memory returned covers the old tokens
and x. It is a value: calling twice with the same memory gives the same output, and a returned memory may be dropped.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class KVCache:
    """Keys and values of the tokens so far, one pair a layer, each (b, heads, t, d)."""

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]

    @property
    def length(self) -> int:
        """How many tokens it stands for."""
        return self.keys[0].shape[2]
