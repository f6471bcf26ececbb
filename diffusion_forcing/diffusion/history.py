"""What a rollout keeps of its finished tokens: never more than a window, so that it can go on for ever (docs/method.md §7, §12).

| cache | network | history | a row of a chunk costs |
|---|---|---|---|
| `none` | any | `SlidingWindow`: the last tokens, shown in every row | the window |
| `exact` | causal | `KVCache`: their keys and values, computed anew when the window slides | the chunk |
| `streaming` | causal, relative positions | `StreamingCache`: the oldest keys and values are dropped, the rest stay | the chunk |
| `streaming` | causal, absolute positions | `RestartedCache`: when full, computed anew from half a window | the chunk |
| `exact`, `streaming` | recurrent | `RecurrentState`: one latent for the whole past; no window is needed | the unfinished tokens |

`exact` always equals `none`. `streaming` equals it until the window slides. After that, what was computed for the kept tokens still knows
the dropped ones. Its first `sinks` tokens always stay, since attention relies on them (Xiao et al. 2024). Where a token's position is added
to it, a kept token cannot move to another place, so the cache is computed again from the sinks and the last half of the window.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from diffusion_forcing.errors import UserError, did_you_mean

Cache = Literal["none", "exact", "streaming"]
CACHES = ("none", "exact", "streaming")


@dataclass(frozen=True)
class Tokens:
    """Tokens x: (b, t, *c) and what belongs to each of them.

    conditions: (b, t, d). history_noise: like x, what history guidance noises them with. observed: like x, what is known of tokens that
    are sampled, NaN elsewhere.
    """

    x: Tensor
    conditions: Tensor | None = None
    history_noise: Tensor | None = None
    observed: Tensor | None = None

    def __len__(self) -> int:
        return self.x.shape[1]

    def __getitem__(self, where: slice) -> Tokens:
        parts = (self.conditions, self.history_noise, self.observed)
        return Tokens(self.x[:, where], *(None if part is None else part[:, where] for part in parts))

    def last(self, count: int) -> Tokens:
        """The last `count` tokens, or all where there are fewer."""
        return self[max(0, len(self) - count) :]

    def extended(self, later: Tokens) -> Tokens:
        """These tokens, followed by `later`."""
        if not len(self):
            return later
        observed = None
        if self.observed is not None or later.observed is not None:
            parts = (torch.full_like(t.x, torch.nan) if t.observed is None else t.observed for t in (self, later))
            observed = torch.cat(list(parts), dim=1)
        return Tokens(
            torch.cat([self.x, later.x], dim=1),
            _join(self.conditions, later.conditions),
            _join(self.history_noise, later.history_noise),
            observed,
        )


def _join(before: Tensor | None, after: Tensor | None) -> Tensor | None:
    return None if before is None or after is None else torch.cat([before, after], dim=1)


Prefill = Callable[[Tokens, Any], Any]
"""`prefill(tokens, memory) -> memory` after clean tokens."""
OnRow = Callable[[int, Tensor, Tensor], None]
"""`on_row(row, x, levels)` after each row: the tokens x: (b, t, *c) and their sampling levels, (t,) or (b, t)."""


class DenoiseRows(Protocol):
    """Takes tokens down the rows of a scheduling matrix, behind what `memory` holds. Returns (b, t, *c)."""

    def __call__(self, tokens: Tokens, matrix: Tensor, memory: Any = None, on_row: OnRow | None = None) -> Tensor: ...


class History(Protocol):
    """The finished tokens of a rollout. end: how many there are."""

    end: int

    def denoise(self, new: Tokens, matrix: Tensor, denoise_rows: DenoiseRows, on_row: OnRow | None = None) -> Tensor:
        """Tokens `new` taken down `matrix`: (rows, t), seeing this history. Returns (b, t, *c)."""
        ...

    def append(self, finished: Tokens) -> None:
        """Keep finished tokens, which follow all before."""
        ...


class SlidingWindow:
    """The last tokens of the past are shown clean in every row."""

    def __init__(self, context: Tokens, *, end: int, window: int) -> None:
        self.window = window
        self.tokens = context.last(window)
        self.end = end

    def append(self, finished: Tokens) -> None:
        self.tokens = self.tokens.extended(finished).last(self.window)
        self.end += len(finished)

    def denoise(self, new: Tokens, matrix: Tensor, denoise_rows: DenoiseRows, on_row: OnRow | None = None) -> Tensor:
        past = self.tokens.last(self.window - len(new))
        x = denoise_rows(past.extended(new), _with_past(matrix, self.level(matrix, len(past))), on_row=on_row)
        return x[:, len(past) :].clone()

    def level(self, matrix: Tensor, count: int) -> Tensor:
        """(rows, count): the sampling levels of the past."""
        return matrix.new_zeros(len(matrix), count)


class NoisyWindow(SlidingWindow):
    """The past is noised to the level of the chunk, and observed there: full-sequence diffusion, for networks that know one level for all."""

    def denoise(self, new: Tokens, matrix: Tensor, denoise_rows: DenoiseRows, on_row: OnRow | None = None) -> Tensor:
        kept = self.tokens
        self.tokens = replace(kept, observed=kept.x)
        x = super().denoise(new, matrix, denoise_rows, on_row)
        self.tokens = kept
        return x

    def level(self, matrix: Tensor, count: int) -> Tensor:
        return matrix[:, :1].expand(-1, count)


def _with_past(matrix: Tensor, past: Tensor) -> Tensor:
    return torch.cat([past, matrix], dim=1)


class CachedHistory:
    """A history that is kept as the memory of a network. Subclasses say what stays of it: `memory_before(chunk)`."""

    def __init__(self, context: Tokens, *, end: int, window: int, prefill: Prefill, sinks: int = 0) -> None:
        self.window, self.sinks, self.prefill = window, sinks, prefill
        self.tokens = context
        """Those that are not in `memory`, or all that it was made of."""
        self.memory: Any = None
        self.end = end

    def append(self, finished: Tokens) -> None:
        self.tokens = self.tokens.extended(finished)
        self.end += len(finished)

    def denoise(self, new: Tokens, matrix: Tensor, denoise_rows: DenoiseRows, on_row: OnRow | None = None) -> Tensor:
        return denoise_rows(new, matrix, self.memory_before(len(new)), on_row).clone()

    def memory_before(self, chunk: int) -> Any:
        """The memory that the next `chunk` tokens see."""
        raise NotImplementedError


class KVCache(CachedHistory):
    """cache=exact: the memory of the last tokens, computed anew where the window begins elsewhere than before."""

    start = computed = 0
    """Number of the first token in `memory`, and of the first after it."""

    def memory_before(self, chunk: int) -> Any:
        self.tokens = self.tokens.last(self.window)
        seen = self.tokens.last(self.window - chunk)
        if self.start != self.end - len(seen):
            # The window has slid: what was computed for its tokens knew those that left.
            self.start = self.computed = self.end - len(seen)
            self.memory = None
        if self.computed < self.end:
            self.memory = self.prefill(seen.last(self.end - self.computed), self.memory)
            self.computed = self.end
        return self.memory


class StreamingCache(CachedHistory):
    """cache=streaming, positions relative: the memory drops its oldest tokens, but never the first `sinks`."""

    length = 0
    """Tokens in `memory`."""

    def memory_before(self, chunk: int) -> Any:
        room = self.window - chunk
        fresh = self.tokens.last(room) if self.memory is None else self.tokens
        self.tokens = fresh[:0]
        if len(fresh):
            self.memory = self.prefill(fresh, self.memory)
            self.length += len(fresh)
        if self.length > room:
            self.memory = self.memory.trimmed(room - self.sinks, self.sinks)
            self.length = room
        return self.memory


class RestartedCache(CachedHistory):
    """cache=streaming, positions absolute: a full memory is computed again from the sinks and the last half of the window."""

    computed = 0
    """Tokens in `memory`."""

    def memory_before(self, chunk: int) -> Any:
        room = self.window - chunk
        if len(self.tokens) > room:
            half = max(self.window // 2, self.sinks + 1)
            # Half a window does not help where the next chunk would fill it again.
            kept = half if self.memory is not None and half + chunk <= room else room
            self.tokens = self.tokens[: self.sinks].extended(self.tokens.last(kept - self.sinks))
            self.memory, self.computed = None, 0
        fresh = self.tokens[self.computed :]
        if len(fresh):
            self.memory = self.prefill(fresh, self.memory)
            self.computed = len(self.tokens)
        return self.memory


class RecurrentState:
    """A recurrent network's latent: of one size, whatever it has seen.

    No token depends on a later one, and the past is a latent. So a row needs neither the tokens after the last one that moves, nor those
    before the first that is unfinished: a finished token is put into the latent once. Without noise (eta = 0) the numbers are those of whole
    rows. whole_rows: step all tokens of a chunk in every row, and leave the latent as it is: for guidance, whose return looks at all of
    them, and for tokens that are not appended afterwards.
    """

    def __init__(
        self, context: Tokens, *, end: int, prefill: Prefill, memory: Any = None, whole_rows: bool = False
    ) -> None:
        self.prefill, self.memory, self.whole_rows = prefill, memory, whole_rows
        self.fresh = context
        """Tokens that are not in `memory` yet."""
        self.end = end

    def append(self, finished: Tokens) -> None:
        # Those that the rows have put into the latent already are not kept.
        self.fresh = self.fresh.extended(finished[self._in_memory :])
        self._in_memory = 0
        self.end += len(finished)

    _in_memory = 0
    """How many of the chunk's first tokens the latent holds."""

    def denoise(self, new: Tokens, matrix: Tensor, denoise_rows: DenoiseRows, on_row: OnRow | None = None) -> Tensor:
        if len(self.fresh):
            self.memory = self.prefill(self.fresh, self.memory)
            self.fresh = self.fresh[:0]
        if self.whole_rows:
            return denoise_rows(new, matrix, self.memory, on_row).clone()
        x, done = new.x, 0
        for row, (now, after) in enumerate(pairwise(matrix)):
            moving = (now != after).nonzero()
            if not len(moving):
                continue
            first, end = int((now > 0).nonzero()[0]), int(moving[-1]) + 1
            # Finished tokens go into the latent.
            if first > done:
                self.memory = self.prefill(replace(new, x=x)[done:first], self.memory)
                done = first
            # One row for the tokens between the first unfinished and the last moving.
            moved = denoise_rows(replace(new, x=x)[first:end], matrix[row : row + 2, first:end], self.memory)
            x = torch.cat([x[:, :first], moved, x[:, end:]], dim=1)
            if on_row is not None:
                on_row(row, x, after)
        self._in_memory = done
        return x


def is_recurrent(cache: Cache, network: Any) -> bool:
    """Whether the past is one latent that is carried along, so that no window limits it."""
    return cache != "none" and getattr(network, "recurrent", False)


def check_history(
    cache: Cache, network: Any, *, chunk: int, window: int | None, sinks: int, length: int | None
) -> None:
    """UserError where `cache` is impossible for chunks of `chunk` tokens, until there are `length` (None: for ever)."""
    if cache not in CACHES:
        raise UserError(f"cache '{cache}' is not known; allowed: {', '.join(CACHES)}{did_you_mean(str(cache), CACHES)}")
    if cache != "none" and not getattr(network, "keeps_memory", True):
        raise UserError(
            f"cache={cache} keeps the past as it was computed, but {network.why_no_memory}; pass cache=none"
        )
    if sinks < 0 or (sinks > 0 and cache != "streaming"):
        raise UserError(
            f"sinks is {sinks} with cache={cache}; cache=streaming keeps that many of the first tokens, 0 or more"
        )
    if is_recurrent(cache, network):
        if sinks:
            raise UserError(f"sinks is {sinks} for a recurrent network, whose memory is one latent; pass 0")
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


def build_history(
    cache: Cache,
    network: Any,
    context: Tokens,
    *,
    end: int,
    window: int | None,
    prefill: Prefill,
    sinks: int = 0,
    memory: Any = None,
    whole_rows: bool = False,
) -> History:
    """The history of a rollout whose first `end` tokens are finished, the last of them being `context`.

    window: the most tokens the network sees at once; a recurrent state needs none. memory: what a recurrent network holds before the
    context; None is its own beginning.
    """
    if is_recurrent(cache, network):
        return RecurrentState(context, end=end, prefill=prefill, memory=memory, whole_rows=whole_rows)
    assert window is not None
    match cache:
        case "none":
            return SlidingWindow(context, end=end, window=window)
        case "exact":
            return KVCache(context.last(window), end=end, window=window, prefill=prefill)
        case "streaming":
            kind = StreamingCache if getattr(network, "memory_slides", False) else RestartedCache
            return kind(context, end=end, window=window, prefill=prefill, sinks=sinks)
