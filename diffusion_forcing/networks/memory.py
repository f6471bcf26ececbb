"""Memory: what a causal network keeps of the tokens before x, so that it need not see them again.

One protocol for every network: `network(x, k, conditions, memory) -> (output, memory)`; the memory returned covers the old tokens
and x. It is a value: calling twice with the same memory gives the same output, and a returned memory may be dropped.

A network says by `keeps_memory` whether a call on the last tokens with the memory of the earlier ones equals a call on all of them,
and by `why_no_memory` what stands in the way ("" where nothing does). `memory_slides`: positions are relative, so that the memory may be
`trimmed` and go on. `recurrent`: the memory has one size whatever it stands for, and a call costs one step a token, so that no window is
needed and no token should be shown in vain.

A network may also have `behind_clean(clean, clean_k, x, k, conditions, memory) -> output`: each noised token of x behind the clean tokens
before it, all in one call, for next-token prediction.
"""

from __future__ import annotations

import torch
from torch import Tensor


class KVCache:
    """Keys and values of the tokens so far, one pair a layer, each (…, t, d): time is the last axis but one."""

    def __init__(self, keys: tuple[Tensor, ...], values: tuple[Tensor, ...]) -> None:
        self._parts = [(keys, values)]

    @property
    def keys(self) -> tuple[Tensor, ...]:
        """Of each layer."""
        return self._joined()[0]

    @property
    def values(self) -> tuple[Tensor, ...]:
        """Of each layer."""
        return self._joined()[1]

    def then(self, later: KVCache) -> KVCache:
        """This and `later` behind it. Joined when it is looked at: most memories that a row of sampling makes are dropped unseen."""
        both = KVCache((), ())
        both._parts = [*self._parts, *later._parts]
        return both

    def _joined(self) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        if len(self._parts) > 1:
            keys, values = zip(*self._parts, strict=True)
            self._parts = [
                tuple(tuple(torch.cat(one, dim=-2) for one in zip(*parts, strict=True)) for parts in (keys, values))  # type: ignore[list-item]
            ]
        return self._parts[0]

    @property
    def length(self) -> int:
        """How many tokens it stands for."""
        return sum(keys[0].shape[-2] for keys, _ in self._parts)

    def trimmed(self, last: int, sinks: int = 0) -> KVCache:
        """The first `sinks` and the last `last` tokens of it (Xiao et al. 2024: attention leans on the very first tokens, so a
        window that slides keeps them); itself where there are no more than that."""
        if last < 0 or sinks < 0:
            raise ValueError(f"cannot keep {last} last and {sinks} first tokens")
        if self.length <= last + sinks:
            return self
        return KVCache(
            tuple(_trim(key, last, sinks) for key in self.keys), tuple(_trim(v, last, sinks) for v in self.values)
        )


def _trim(x: Tensor, last: int, sinks: int) -> Tensor:
    """x: (…, t, d) → (…, sinks + last, d)."""
    recent = x[..., x.shape[-2] - last :, :]
    return torch.cat([x[..., :sinks, :], recent], dim=-2) if sinks else recent
