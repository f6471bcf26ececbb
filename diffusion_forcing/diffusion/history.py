"""What a rollout keeps of its finished tokens: never more than a window, so that it can go on for ever (docs/method.md §7, §12).

| cache | network | history | a row of a chunk costs |
|---|---|---|---|
| `none` | any | `SlidingWindow`: the last tokens, shown in every row | the window |
| `exact` | causal | `ExactCache`: their keys and values, computed anew when the window slides | the chunk |
| `streaming` | causal, relative positions | `StreamingCache`: the oldest keys and values are dropped, the rest stay | the chunk |
| `streaming` | causal, absolute positions | `RestartedCache`: when full, computed anew from half a window | the chunk |
| `exact`, `streaming` | recurrent | `RecurrentState`: one latent for the whole past; no window is needed | the unfinished tokens |

`exact` always equals `none`, but for noise on the context (DDPM, `noisy_context`): `none` draws it in every row, a cache once or not at
all. `streaming` equals `exact` until the window slides. After that, what was computed for the kept tokens still knows
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

from diffusion_forcing.errors import UserError, check_choice, require

Cache = Literal["none", "exact", "streaming"]
Past = Literal["clean", "same"]
"""How a sliding window shows finished tokens."""
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

        def join(before: Tensor | None, after: Tensor | None) -> Tensor | None:
            return None if before is None or after is None else torch.cat([before, after], dim=1)

        # Of tokens for which nothing is said to be observed, nothing is.
        observed = [torch.full_like(t.x, torch.nan) if t.observed is None else t.observed for t in (self, later)]
        return Tokens(
            torch.cat([self.x, later.x], dim=1),
            join(self.conditions, later.conditions),
            join(self.history_noise, later.history_noise),
            None if self.observed is later.observed is None else join(*observed),
        )


Prefill = Callable[[Tokens, Any], Any]
"""`prefill(tokens, memory) -> memory` after clean tokens."""
OnRow = Callable[[int, Tensor, Tensor], None]
"""`on_row(row, x, levels)` after each row: the tokens x: (b, t, *c) and their sampling levels, (t,) or (b, t)."""


class DenoiseRows(Protocol):
    """Takes tokens down the rows of a scheduling matrix, behind what `memory` holds. Returns (b, t, *c)."""

    def __call__(self, tokens: Tokens, matrix: Tensor, memory: Any = None, on_row: OnRow | None = None) -> Tensor: ...


class History:
    """The finished tokens of a rollout. window: the most tokens the network sees at once (None: any); end: how many tokens are finished."""

    def __init__(self, window: int | None) -> None:
        self.window = window
        self.end = 0
        self.tokens: Tokens | None = None

    def append(self, finished: Tokens) -> None:
        """Keep finished tokens, which follow all before."""
        self.tokens = finished if self.tokens is None else self.tokens.extended(finished)
        self.end += len(finished)

    def denoise(self, new: Tokens, matrix: Tensor, denoise_rows: DenoiseRows, on_row: OnRow | None = None) -> Tensor:
        """Tokens `new` taken down `matrix`: (rows, t), seeing this history. Returns (b, t, *c)."""
        raise NotImplementedError


class SlidingWindow(History):
    """The last tokens of the past are shown in every row: clean, or, with past_shown=`same`, observed at the level of the chunk.

    The latter is full-sequence diffusion, for networks that know one level for all tokens.
    """

    def __init__(self, window: int, past_shown: Past = "clean") -> None:
        super().__init__(window)
        self.past_shown = past_shown

    def denoise(self, new: Tokens, matrix: Tensor, denoise_rows: DenoiseRows, on_row: OnRow | None = None) -> Tensor:
        assert self.window is not None and self.tokens is not None
        self.tokens = self.tokens.last(self.window)
        past = self.tokens.last(self.window - len(new))
        levels = matrix.new_zeros(len(matrix), len(past))
        if self.past_shown == "same":
            past, levels = replace(past, observed=past.x), matrix[:, :1].expand(-1, len(past))
        x = denoise_rows(past.extended(new), torch.cat([levels, matrix], dim=1), on_row=on_row)
        return x[:, len(past) :].clone()


class CachedHistory(History):
    """A history that is kept as the memory of a network. Subclasses say what stays of it."""

    def __init__(self, window: int, prefill: Prefill, sinks: int = 0) -> None:
        super().__init__(window)
        self.prefill, self.sinks = prefill, sinks
        self.memory: Any = None

    def denoise(self, new: Tokens, matrix: Tensor, denoise_rows: DenoiseRows, on_row: OnRow | None = None) -> Tensor:
        assert self.window is not None and self.tokens is not None
        self.tokens = self.update(self.tokens, self.window - len(new))
        return denoise_rows(new, matrix, self.memory, on_row).clone()

    def update(self, tokens: Tokens, room: int) -> Tokens:
        """Bring `memory` up to `tokens`. room: how many of them fit. Returns the tokens to keep."""
        raise NotImplementedError


class ExactCache(CachedHistory):
    """cache=exact: the memory of the last tokens, computed anew where the window begins elsewhere than before."""

    start = computed = 0
    """Number of the first token in `memory`, and of the first after it."""

    def update(self, tokens: Tokens, room: int) -> Tokens:
        seen = tokens.last(room)
        if self.start != self.end - len(seen):
            # The window has slid: what was computed for its tokens knew those that left.
            self.start = self.computed = self.end - len(seen)
            self.memory = None
        if self.computed < self.end:
            self.memory = self.prefill(seen.last(self.end - self.computed), self.memory)
            self.computed = self.end
        return seen


class StreamingCache(CachedHistory):
    """cache=streaming, positions relative: the memory drops its oldest tokens, but never the first `sinks`."""

    length = 0
    """Tokens in `memory`; those that are not in it are kept."""

    def update(self, tokens: Tokens, room: int) -> Tokens:
        fresh = tokens.last(room) if self.memory is None else tokens
        if len(fresh):
            self.memory = self.prefill(fresh, self.memory)
            self.length += len(fresh)
        if self.length > room:
            self.memory = self.memory.trimmed(room - self.sinks, self.sinks)
            self.length = room
        return fresh[:0]


class RestartedCache(CachedHistory):
    """cache=streaming, positions absolute: a full memory is computed again from the sinks and the last half of the window."""

    computed = 0
    """Tokens in `memory`."""

    def update(self, tokens: Tokens, room: int) -> Tokens:
        assert self.window is not None
        if len(tokens) > room:
            half, chunk = max(self.window // 2, self.sinks + 1), self.window - room
            # Half a window does not help where the next chunk would fill it again.
            kept = half if self.memory is not None and half + chunk <= room else room
            tokens = tokens[: self.sinks].extended(tokens.last(kept - self.sinks))
            self.memory, self.computed = None, 0
        if self.computed < len(tokens):
            self.memory = self.prefill(tokens[self.computed :], self.memory)
            self.computed = len(tokens)
        return tokens


class RecurrentState(History):
    """A recurrent network's latent: of one size, whatever it has seen.

    No token depends on a later one, and the past is a latent. So a row needs neither the tokens after the last one that moves, nor those
    before the first that is unfinished: a finished token is put into the latent once. Without noise (eta = 0) the numbers are those of whole
    rows. whole_rows: step all tokens of a chunk in every row, and leave the latent as it is: for guidance, whose return looks at all of
    them, and for tokens that are not appended afterwards.
    """

    def __init__(self, prefill: Prefill, memory: Any = None, *, whole_rows: bool = False) -> None:
        super().__init__(None)
        self.prefill, self.memory, self.whole_rows = prefill, memory, whole_rows
        self.in_memory = 0
        """How many tokens of the chunk at hand the latent holds already."""

    def append(self, finished: Tokens) -> None:
        super().append(finished[self.in_memory :])
        self.end += self.in_memory
        self.in_memory = 0

    def denoise(self, new: Tokens, matrix: Tensor, denoise_rows: DenoiseRows, on_row: OnRow | None = None) -> Tensor:
        if self.tokens is not None and len(self.tokens):
            self.memory = self.prefill(self.tokens, self.memory)
        self.tokens = None
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
        self.in_memory = done
        return x


def build_history(
    cache: Cache,
    network: Any,
    *,
    chunk: int,
    window: int | None,
    prefill: Prefill,
    sinks: int = 0,
    slides: bool = True,
    past_shown: Past = "clean",
    memory: Any = None,
    whole_rows: bool = False,
) -> History:
    """The empty history of a rollout in chunks of `chunk` tokens, or a UserError where it cannot be kept as `cache` says.

    slides: whether the rollout outgrows the window. memory: what a recurrent network holds before the first token; None is its own beginning.
    """
    check_choice("cache", cache, CACHES)
    noised = past_shown == "same" and cache != "none"
    require(not noised, f"cache={cache} with past_shown=same, which is noised anew in every row; pass cache=none")
    if cache != "none" and not getattr(network, "keeps_memory", True):
        raise UserError(
            f"cache={cache} keeps the past as it was computed, but {network.why_no_memory}; pass cache=none"
        )
    require(
        sinks == 0 or (sinks > 0 and cache == "streaming"),
        f"sinks is {sinks} with cache={cache}; cache=streaming keeps that many of the first tokens, 0 or more",
    )
    if cache != "none" and getattr(network, "recurrent", False):
        require(sinks == 0, f"sinks is {sinks} for a recurrent network, whose memory is one latent; pass 0")
        return RecurrentState(prefill, memory, whole_rows=whole_rows)
    what = "only a recurrent network under cache=exact or streaming"
    require(memory is None, f"{what} begins with a memory; pass context instead")
    if window is None:
        raise UserError(
            f"{what} rolls out without a window; pass window, the most tokens that the network may see at once"
        )
    if chunk > window:
        raise UserError(
            f"a chunk of {chunk} tokens exceeds the window of {window}; "
            f"pass algorithm.chunk_size<={window} or train with more frames"
        )
    if sinks and slides and sinks + chunk >= window:
        raise UserError(
            f"{sinks} sinks and a chunk of {chunk} tokens leave nothing of the window of {window} for the recent past; "
            "pass fewer sinks or a smaller chunk_size"
        )
    match cache:
        case "none":
            return SlidingWindow(window, past_shown)
        case "exact":
            return ExactCache(window, prefill)
        case "streaming":
            kind = StreamingCache if getattr(network, "memory_slides", False) else RestartedCache
            return kind(window, prefill, sinks)
