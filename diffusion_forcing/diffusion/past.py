"""What a rollout keeps of its finished tokens (docs/method.md §7, §12): never more than a window, so that it may go on for ever.

`none` keeps the tokens and shows them to the network in every row. `exact` keeps a causal network's memory of them too, so that a row
costs the chunk alone. While the window is not full that is all. Then the oldest token leaves, and what was computed for the others knew
it: `exact` computes the memory of the window again, once a chunk, and equals `none` always.

`streaming` does not. Where the network's positions are relative (`network.memory_slides`), the oldest keys and values are dropped and the
rest stays as it was computed; `sinks` of the very first tokens stay too, since attention leans on them (Xiao et al. 2024). Where
positions enter with the token, a kept token cannot move to its new place; samples fell apart within a window when it was tried
(docs/concepts.md). There the memory is computed again from the sinks and the last half of the window, once in half a window.

A recurrent network (`network.recurrent`) needs no window: its memory is one latent, whatever it has seen. Both caches carry it along and
compute nothing again, for as long as one likes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from diffusion_forcing.errors import UserError, did_you_mean

Cache = Literal["none", "exact", "streaming"]
CACHES = ("none", "exact", "streaming")


@dataclass(frozen=True)
class Tokens:
    """Tokens x: (b, t, *c) and what belongs to each: conditions (b, t, d), what history guidance noises them with, like x, and what is
    given of tokens that are to be sampled, like x, NaN where nothing is."""

    x: Tensor
    conditions: Tensor | None = None
    history_noise: Tensor | None = None
    given: Tensor | None = None

    @property
    def count(self) -> int:
        return self.x.shape[1]

    def first(self, count: int) -> Tokens:
        """The first `count` of them."""
        return self._at(slice(None, count))

    def last(self, count: int) -> Tokens:
        """The last `count` of them, or all where there are fewer."""
        return self._at(slice(max(0, self.count - count), None))

    def between(self, first: int, end: int) -> Tokens:
        """Number `first` to `end` − 1 of them."""
        return self._at(slice(first, end))

    def then(self, later: Tokens) -> Tokens:
        """These, and `later` behind them."""
        if self.count == 0:
            return later
        return Tokens(
            torch.cat([self.x, later.x], dim=1),
            _join(self.conditions, later.conditions),
            _join(self.history_noise, later.history_noise),
            self._given_with(later),
        )

    def _at(self, where: slice) -> Tokens:
        parts = (self.conditions, self.history_noise, self.given)
        return Tokens(self.x[:, where], *(None if part is None else part[:, where] for part in parts))

    def _given_with(self, later: Tokens) -> Tensor | None:
        if self.given is None and later.given is None:
            return None
        parts = (torch.full_like(t.x, torch.nan) if t.given is None else t.given for t in (self, later))
        return torch.cat(list(parts), dim=1)


def _join(before: Tensor | None, after: Tensor | None) -> Tensor | None:
    return None if before is None or after is None else torch.cat([before, after], dim=1)


Remember = Callable[[Tokens, Any], Any]
"""`remember(tokens, memory) -> memory` after clean tokens."""


class Past(Protocol):
    """`add` finished tokens, with the memory of all before them where the walk came by one; `before(chunk)`: what a chunk of that many
    tokens is to see before it, tokens and memory."""

    def add(self, finished: Tokens, memory: Any = None) -> None: ...

    def before(self, chunk: int) -> tuple[Tokens, Any]: ...


def check_cache(cache: Cache, network: Any, *, chunk: int, window: int | None, sinks: int, length: int | None) -> None:
    """UserError where `cache` cannot be: chunks of `chunk` tokens, until there are `length` (None: for ever)."""
    if cache not in CACHES:
        raise UserError(f"cache '{cache}' is not known; allowed: {', '.join(CACHES)}{did_you_mean(str(cache), CACHES)}")
    if cache != "none" and not getattr(network, "keeps_memory", True):
        raise UserError(
            f"cache={cache} keeps the past as it was computed, but {network.why_no_memory}; pass cache=none"
        )
    if sinks < 0 or (sinks > 0 and cache != "streaming"):
        raise UserError(
            f"{sinks} sinks with cache={cache}; sinks are how many of the first tokens cache=streaming keeps for ever, 0 or more"
        )
    if carries(cache, network):
        if sinks:
            raise UserError(
                f"{sinks} sinks for a recurrent network, whose memory is one latent and holds no tokens; pass 0"
            )
        return
    if window is None:
        raise UserError(
            "only a recurrent network under cache=exact or streaming rolls out without a window; pass window, the most tokens this one "
            "is to see at once"
        )
    if chunk > window:
        raise UserError(
            f"a chunk of {chunk} tokens exceeds the window of {window}; "
            f"pass algorithm.chunk_size<={window} or train with more frames"
        )
    if sinks and (length is None or length > window) and sinks + chunk >= window:
        raise UserError(
            f"{sinks} sinks and a chunk of {chunk} tokens leave nothing of the window of {window} for the recent past; "
            "pass fewer sinks or a smaller chunk_size"
        )


def carries(cache: Cache, network: Any) -> bool:
    """Whether the past is one latent that is carried along, so that no window limits it."""
    return cache != "none" and getattr(network, "recurrent", False)


def past_of(
    cache: Cache,
    network: Any,
    context: Tokens,
    *,
    window: int | None,
    sinks: int,
    remember: Remember,
    memory: Any = None,
) -> Past:
    """The past of a rollout that begins with `context`, kept as `cache` says and `network` can. window: None where it is carried.

    memory: what a recurrent network holds before the context; None is its own beginning.
    """
    if carries(cache, network):
        return Carried(context, remember, memory)
    assert window is not None
    match cache:
        case "none":
            return Shown(context, window)
        case "exact":
            return Remembered(context, window, remember)
        case "streaming":
            kind = Streamed if getattr(network, "memory_slides", False) else Restarted
            return kind(context, window, sinks, remember)


class Shown:
    """cache=none: the last tokens, to be shown in every row."""

    def __init__(self, context: Tokens, window: int) -> None:
        self.window = window
        self.tokens = context.last(window)
        self.end = self.tokens.count

    def add(self, finished: Tokens, memory: Any = None) -> None:
        self.tokens = self.tokens.then(finished).last(self.window)
        self.end += finished.count

    def before(self, chunk: int) -> tuple[Tokens, Any]:
        return self.tokens.last(self.window - chunk), None


class Remembered(Shown):
    """cache=exact: the memory of tokens `start` … `end` − 1, computed anew where the window begins elsewhere."""

    def __init__(self, context: Tokens, window: int, remember: Remember) -> None:
        super().__init__(context, window)
        self.remember = remember
        self.memory: Any = None
        self.start = self.remembered = 0

    def before(self, chunk: int) -> tuple[Tokens, Any]:
        seen, _ = super().before(chunk)
        start = self.end - seen.count
        if start != self.start:
            self.memory = None
            self.start = self.remembered = start
        if self.remembered < self.end:
            self.memory = self.remember(seen.last(self.end - self.remembered), self.memory)
            self.remembered = self.end
        return seen.last(0), self.memory


class Streamed:
    """cache=streaming, positions relative: a memory that drops its oldest tokens but the first `sinks`."""

    def __init__(self, context: Tokens, window: int, sinks: int, remember: Remember) -> None:
        self.window, self.sinks, self.remember = window, sinks, remember
        self.fresh = context
        self.memory: Any = None
        self.length = 0

    def add(self, finished: Tokens, memory: Any = None) -> None:
        self.fresh = self.fresh.then(finished)

    def before(self, chunk: int) -> tuple[Tokens, Any]:
        room = self.window - chunk
        fresh = self.fresh.last(room) if self.memory is None else self.fresh
        self.fresh = fresh.last(0)
        if fresh.count:
            self.memory = self.remember(fresh, self.memory)
            self.length += fresh.count
        if self.length > room:
            self.memory = self.memory.trimmed(room - self.sinks, self.sinks)
            self.length = room
        return self.fresh, self.memory


class Restarted:
    """cache=streaming, positions fixed: a memory that, when it is full, is computed again from the sinks and the last half window."""

    def __init__(self, context: Tokens, window: int, sinks: int, remember: Remember) -> None:
        self.window, self.sinks, self.remember = window, sinks, remember
        self.tokens = context
        self.memory: Any = None
        self.remembered = 0

    def add(self, finished: Tokens, memory: Any = None) -> None:
        self.tokens = self.tokens.then(finished)

    def before(self, chunk: int) -> tuple[Tokens, Any]:
        room = self.window - chunk
        if self.tokens.count > room:
            half = max(self.window // 2, self.sinks + 1)
            # half a window does not help where the next chunk would fill it again
            kept = half if self.memory is not None and half + chunk <= room else room
            self.tokens = self.tokens.first(self.sinks).then(self.tokens.last(kept - self.sinks))
            self.memory, self.remembered = None, 0
        fresh = self.tokens.last(self.tokens.count - self.remembered)
        if fresh.count:
            self.memory = self.remember(fresh, self.memory)
            self.remembered = self.tokens.count
        return self.tokens.last(0), self.memory


class Carried:
    """A recurrent network's latent: of one size, stepped once a finished token, never computed again. `add` only what it does not hold."""

    def __init__(self, context: Tokens, remember: Remember, memory: Any = None) -> None:
        self.remember = remember
        self.fresh = context
        self.memory = memory

    def add(self, finished: Tokens, memory: Any = None) -> None:
        self.fresh = self.fresh.then(finished)
        self.memory = self.memory if memory is None else memory

    def before(self, chunk: int) -> tuple[Tokens, Any]:
        if self.fresh.count:
            self.memory = self.remember(self.fresh, self.memory)
            self.fresh = self.fresh.last(0)
        return self.fresh, self.memory
