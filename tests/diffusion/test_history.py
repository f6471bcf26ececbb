"""The past of a rollout: which tokens a chunk sees under each cache, that all give the same numbers where they must, and that none grows."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from diffusion_forcing.diffusion import DiffusionForcing, Sampler, build_parameterization, build_schedule
from diffusion_forcing.diffusion.scheduling import SCHEDULING_MATRICES
from diffusion_forcing.errors import UserError
from diffusion_forcing.networks import KVCache, Transformer
from tests.diffusion.gaussian import randn

WIDTH, CONDITIONS, STEPS = 3, 2, 3


class Diary(nn.Module):
    """Conditions are token numbers; its memory is the numbers of the tokens in it. `pages`: the numbers in memory and in x, a call each."""

    keeps_memory = True
    why_no_memory = ""

    def __init__(self, *, memory_slides: bool = True) -> None:
        super().__init__()
        self.memory_slides = memory_slides
        self.pages: list[tuple[list[int], list[int]]] = []

    def forward(
        self, x: Tensor, k: Tensor, conditions: Tensor | None = None, memory: KVCache | None = None
    ) -> tuple[Tensor, KVCache]:
        assert conditions is not None
        old = [] if memory is None else memory.keys[0][0, :, 0].long().tolist()
        self.pages.append((old, conditions[0, :, 0].long().tolist()))
        numbers = conditions if memory is None else torch.cat([memory.keys[0], conditions], dim=1)
        return torch.zeros_like(x), KVCache((numbers,), (numbers,))


class Relative(nn.Module):
    """Causal attention without positions: what is remembered serves wherever the window begins."""

    keeps_memory = True
    why_no_memory = ""
    memory_slides = True

    def __init__(self, *, conditioned: bool = True) -> None:
        super().__init__()
        self.to_qkv, self.out = nn.Linear(WIDTH + conditioned * CONDITIONS + 1, 24), nn.Linear(8, WIDTH)

    def forward(
        self, x: Tensor, k: Tensor, conditions: Tensor | None = None, memory: KVCache | None = None
    ) -> tuple[Tensor, KVCache]:
        given = [x, k[..., None] / 1000] if conditions is None else [x, k[..., None] / 1000, conditions]
        query, key, value = self.to_qkv(torch.cat(given, dim=-1)).chunk(3, dim=-1)
        if memory is not None:
            key, value = torch.cat([memory.keys[0], key], dim=1), torch.cat([memory.values[0], value], dim=1)
        scores = query @ key.transpose(1, 2)
        future = torch.ones_like(scores, dtype=torch.bool).triu(key.shape[1] - query.shape[1] + 1)
        attended = scores.masked_fill(future, float("-inf")).softmax(dim=-1) @ value
        return self.out(attended), KVCache((key,), (value,))


def forcing_over(network: nn.Module, *, objective: str = "pred_v", **settings: Any) -> DiffusionForcing:
    return DiffusionForcing(
        network.eval(), build_schedule("cosine"), build_parameterization(objective, clip_noise=6.0), **settings
    )


def seeded(build: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build()


def transformer() -> nn.Module:
    return seeded(
        lambda: Transformer(
            WIDTH,
            network_size=16,
            num_layers=2,
            attn_heads=2,
            dim_feedforward=32,
            external_cond_dim=CONDITIONS,
            causal=True,
        )
    )


NETWORKS = {"fixed positions": transformer, "relative positions": lambda: seeded(Relative)}


def rollout(network: nn.Module, length: int, *, kind: str = "pyramid", context: int = 2, **how: Any) -> Tensor:
    """The same noise and conditions every time."""
    settings = {name: how.pop(name) for name in ("eta", "uncertainty_scale") if name in how}
    level = {"stabilization_level": how.pop("stabilization_level", 10)}
    sampler = Sampler(forcing_over(network, **level), sampling_timesteps=STEPS, scheduling_matrix=kind, **settings)
    return sampler.rollout(
        randn(3, context, WIDTH),
        length,
        conditions=randn(3, length, CONDITIONS, seed=1),
        generator=torch.Generator().manual_seed(5),
        **how,
    )


# ------------------------------------------------------------------------------------------------------- the same numbers


@pytest.mark.parametrize("window", [8, 4])
@pytest.mark.parametrize("chunk_size", [1, 2, 3, -1])
@pytest.mark.parametrize("kind", SCHEDULING_MATRICES)
def test_an_exact_cache_equals_none_before_and_after_the_window_slides(kind: str, chunk_size: int, window: int) -> None:
    length = 8 if chunk_size > 0 or window == 8 else 6  # a chunk of all that remain must fit the window
    how = {"window": window, "chunk_size": chunk_size, "uncertainty_scale": 1.5, "kind": kind}
    plain, cached = (rollout(transformer(), length, cache=cache, **how) for cache in ("none", "exact"))
    assert (plain - cached).abs().max() <= 1e-5
    assert plain[:, 2:].std() > 0.1


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("sinks", [0, 2])
@pytest.mark.parametrize("chunk_size", [1, 2, 3, -1])
@pytest.mark.parametrize("kind", SCHEDULING_MATRICES)
def test_a_streaming_cache_equals_none_while_the_window_is_not_full(
    kind: str, chunk_size: int, sinks: int, network: str
) -> None:
    how = {"window": 8, "chunk_size": chunk_size, "uncertainty_scale": 1.5, "kind": kind}
    plain = rollout(NETWORKS[network](), 8, cache="none", **how)
    streamed = rollout(NETWORKS[network](), 8, cache="streaming", sinks=sinks, **how)
    assert (plain - streamed).abs().max() <= 1e-5


@pytest.mark.parametrize("cache", ["exact", "streaming"])
@pytest.mark.parametrize(("eta", "stabilization_level"), [(0.7, 10), (1.0, 1), (0.0, 1), (0.0, 400)])
def test_a_cache_changes_nothing_at_any_stabilization_nor_what_is_drawn(
    eta: float, stabilization_level: int, cache: str
) -> None:
    how = {"window": 8, "chunk_size": 2, "eta": eta, "stabilization_level": stabilization_level}
    plain, cached = (rollout(transformer(), 8, cache=kept, **how) for kept in ("none", cache))
    assert (plain - cached).abs().max() <= 1e-5


@pytest.mark.parametrize("cache", ["exact", "streaming"])
@pytest.mark.parametrize("context", [0, 6, 11])
def test_a_cache_changes_nothing_for_no_context_and_for_more_of_it_than_the_window(context: int, cache: str) -> None:
    length = max(6, context + 1)
    plain, cached = (rollout(transformer(), length, window=6, context=context, cache=kept) for kept in ("none", cache))
    assert plain.shape == (3, length, WIDTH)
    assert (plain - cached).abs().max() <= 1e-5


def test_exact_differs_from_a_window_that_never_slid() -> None:
    wide, narrow = (rollout(transformer(), 8, window=window, cache="exact") for window in (8, 4))
    assert torch.equal(wide[:, :4], narrow[:, :4])
    assert (wide[:, 5:] - narrow[:, 5:]).abs().max() > 1e-3


# ------------------------------------------------------------------------------------------------------- who sees whom


def diary(length: int, *, memory_slides: bool = True, **how: Any) -> list[tuple[list[int], list[int]]]:
    """Token numbers in memory and in x, a call each, of a rollout with 2 tokens of context and one denoising row a chunk."""
    network = Diary(memory_slides=memory_slides)
    sampler = Sampler(forcing_over(network), sampling_timesteps=1, scheduling_matrix="full_sequence")
    numbers = torch.arange(length, dtype=torch.float32)[None, :, None]
    sampler.rollout(randn(1, how.pop("context", 2), WIDTH), length, conditions=numbers, **how)
    return network.pages


def span(start: int, end: int) -> list[int]:
    return list(range(start, end))


def test_without_a_cache_a_chunk_sees_the_window_in_every_row() -> None:
    assert diary(7, window=4) == [
        ([], [0, 1, 2]),
        ([], [0, 1, 2, 3]),
        ([], [1, 2, 3, 4]),
        ([], [2, 3, 4, 5]),
        ([], [3, 4, 5, 6]),
    ]


def test_an_exact_cache_computes_the_past_once_and_again_when_the_window_slides() -> None:
    assert diary(7, window=4, cache="exact") == [
        ([], [0, 1]),
        ([0, 1], [2]),
        ([0, 1], [2]),  # the finished token is remembered
        ([0, 1, 2], [3]),
        ([], [1, 2, 3]),  # and the window once more
        ([1, 2, 3], [4]),
        ([], [2, 3, 4]),
        ([2, 3, 4], [5]),
        ([], [3, 4, 5]),
        ([3, 4, 5], [6]),
    ]


def test_a_last_chunk_that_is_smaller_sees_as_much_of_the_past_as_fits() -> None:
    pages = {cache: diary(8, window=5, chunk_size=4, context=3, cache=cache) for cache in ("none", "exact")}
    assert pages["none"] == [([], [2, 3, 4, 5, 6]), ([], [3, 4, 5, 6, 7])]
    assert pages["exact"] == [([], [2]), ([2], [3, 4, 5, 6]), ([], [3, 4, 5, 6]), ([3, 4, 5, 6], [7])]


def test_a_streaming_cache_drops_the_oldest_and_computes_nothing_twice() -> None:
    assert diary(7, window=4, cache="streaming") == [
        ([], [0, 1]),
        ([0, 1], [2]),
        ([0, 1], [2]),
        ([0, 1, 2], [3]),
        ([0, 1, 2], [3]),
        ([1, 2, 3], [4]),
        ([1, 2, 3], [4]),
        ([2, 3, 4], [5]),
        ([2, 3, 4], [5]),
        ([3, 4, 5], [6]),
    ]


def test_where_positions_are_fixed_streaming_begins_again_with_half_a_window() -> None:
    assert diary(9, window=4, cache="streaming", memory_slides=False) == [
        ([], [0, 1]),
        ([0, 1], [2]),
        ([0, 1], [2]),
        ([0, 1, 2], [3]),
        ([], [2, 3]),
        ([2, 3], [4]),
        ([2, 3], [4]),
        ([2, 3, 4], [5]),
        ([], [4, 5]),
        ([4, 5], [6]),
        ([4, 5], [6]),
        ([4, 5, 6], [7]),
        ([], [6, 7]),
        ([6, 7], [8]),
    ]


@pytest.mark.parametrize("memory_slides", [True, False])
@pytest.mark.parametrize(("sinks", "chunk_size", "window"), [(1, 1, 4), (2, 3, 8), (3, 1, 6), (2, 5, 8)])
def test_sinks_survive_and_the_rest_is_recent(sinks: int, chunk_size: int, window: int, memory_slides: bool) -> None:
    pages = diary(40, window=window, chunk_size=chunk_size, sinks=sinks, cache="streaming", memory_slides=memory_slides)
    slid = [(old, new) for old, new in pages if old and max(new) >= 2 * window]
    assert len(slid) >= 6
    for old, new in slid:
        assert old[:sinks] == span(0, sinks)
        recent = old[sinks:]
        assert recent == span(new[0] - len(recent), new[0])
        assert recent


@pytest.mark.parametrize("memory_slides", [True, False])
@pytest.mark.parametrize("cache", ["none", "exact", "streaming"])
@pytest.mark.parametrize(("sinks", "chunk_size", "context"), [(0, 1, 2), (0, 3, 20), (2, 2, 0), (4, 1, 12), (0, 8, 5)])
def test_memory_and_tokens_together_never_exceed_the_window(
    sinks: int, chunk_size: int, context: int, cache: str, memory_slides: bool
) -> None:
    sinks = sinks if cache == "streaming" else 0
    pages = diary(
        60,
        window=8,
        chunk_size=chunk_size,
        context=context,
        sinks=sinks,
        cache=cache,
        memory_slides=memory_slides,
    )
    sizes = [len(old) + len(new) for old, new in pages]
    assert max(sizes) == 8
    assert max(new[-1] for _, new in pages) == 59


def test_a_streaming_rollout_costs_the_same_however_long_it_is() -> None:
    def tokens(length: int, cache: str, memory_slides: bool) -> int:
        """Computed by the network in all calls but those for the chunk itself."""
        pages = diary(length, window=16, cache=cache, memory_slides=memory_slides)
        return sum(len(new) for _, new in pages) - (length - 2)

    def a_token(cache: str, memory_slides: bool) -> float:
        return (tokens(432, cache, memory_slides) - tokens(32, cache, memory_slides)) / 400

    assert a_token("streaming", True) == 1
    assert a_token("streaming", False) == 15 / 8  # 8 at the beginning, then 7 more
    assert a_token("exact", True) == 15


# ------------------------------------------------------------------------------------------------------- a stream


def test_a_stream_hands_out_the_chunks_of_the_rollout() -> None:
    sampler = Sampler(forcing_over(transformer()), sampling_timesteps=STEPS, scheduling_matrix="pyramid")
    context, conditions = randn(2, 2, WIDTH), randn(2, 9, CONDITIONS, seed=1)
    how = {"window": 5, "chunk_size": 3, "conditions": conditions, "cache": "exact"}
    whole = sampler.rollout(context, 9, **how, generator=torch.Generator().manual_seed(0))
    chunks = list(sampler.stream(context, 9, **how, generator=torch.Generator().manual_seed(0)))
    assert [chunk.shape[1] for chunk in chunks] == [3, 3, 1]
    assert torch.equal(torch.cat([context, *chunks], dim=1), whole)
    # handed out for good: not a view of the window
    assert all(chunk.untyped_storage().nbytes() == chunk.nbytes for chunk in chunks)


@pytest.mark.parametrize("cache", ["none", "exact", "streaming"])
def test_actions_are_asked_for_as_frames_appear_and_once(cache: str) -> None:
    actions = randn(2, 12, CONDITIONS, seed=1)
    asked: list[tuple[int, int]] = []

    def choose(start: int, end: int) -> Tensor:
        asked.append((start, end))
        return actions[:, start:end]

    sampler = Sampler(forcing_over(transformer()), sampling_timesteps=STEPS, scheduling_matrix="pyramid")
    how = {"window": 6, "chunk_size": 2, "cache": cache}
    frames = sampler.stream(
        randn(2, 3, WIDTH), None, conditions=choose, **how, generator=torch.Generator().manual_seed(0)
    )
    chunks = []
    for shown in range(1, 5):
        chunks.append(next(frames))
        assert asked == [(0, 3)] + [(3 + 2 * i, 5 + 2 * i) for i in range(shown)]
    known = sampler.rollout(
        randn(2, 3, WIDTH), 11, conditions=actions, **how, generator=torch.Generator().manual_seed(0)
    )
    assert torch.equal(torch.cat(chunks, dim=1), known[:, 3:])


def test_actions_of_context_that_is_out_of_sight_are_not_asked_for() -> None:
    asked: list[tuple[int, int]] = []

    def choose(start: int, end: int) -> Tensor:
        asked.append((start, end))
        return torch.zeros(1, end - start, CONDITIONS)

    sampler = Sampler(forcing_over(transformer()), sampling_timesteps=1)
    for context in (0, 9):
        sampler.rollout(randn(1, context, WIDTH), context + 2, window=4, conditions=choose)
    assert asked == [(0, 1), (1, 2), (5, 9), (9, 10), (10, 11)]


def held() -> int:
    """Bytes of all tensors there are."""
    storages = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
        for tensor in gc.get_objects()
        if type(tensor) is Tensor
    }
    return sum(storages.values())


@pytest.mark.slow
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize(("cache", "sinks"), [("none", 0), ("exact", 0), ("streaming", 0), ("streaming", 2)])
def test_a_long_stream_keeps_no_more_than_a_short_one(cache: str, sinks: int, network: str) -> None:
    sampler = Sampler(forcing_over(NETWORKS[network]()), sampling_timesteps=1, history_scale=2.0)

    def choose(start: int, end: int) -> Tensor:
        return torch.zeros(1, end - start, CONDITIONS)

    stream = sampler.stream(
        randn(1, 2, WIDTH), None, window=8, cache=cache, sinks=sinks, conditions=choose, generator=torch.Generator()
    )
    gc.collect()
    sizes: list[int] = []
    for _, chunk in zip(range(100), stream, strict=False):
        assert chunk.isfinite().all()
        sizes.append(held() if len(sizes) in (*range(36, 40), *range(96, 100)) else 0)
    assert max(sizes[96:]) == max(sizes[36:40]) > 0


def test_conditions_are_needed_for_every_token() -> None:
    sampler = Sampler(forcing_over(transformer()), sampling_timesteps=STEPS)
    with pytest.raises(UserError, match=r"tokens 4 to 4 have shape \(2, 0, 2\); \(2, 1, width\) is needed"):
        sampler.rollout(randn(2, 2, WIDTH), 6, window=6, conditions=randn(2, 4, CONDITIONS))
    with pytest.raises(UserError, match=r"tokens 0 to 1 have shape \(1, 2, 2\); \(2, 2, width\) is needed"):
        sampler.rollout(
            randn(2, 2, WIDTH), 6, window=6, conditions=lambda start, end: randn(1, end - start, CONDITIONS)
        )


# ------------------------------------------------------------------------------------------------------- refusals


def refused(network: nn.Module, message: str, **how: Any) -> None:
    sampler = Sampler(forcing_over(network), sampling_timesteps=STEPS)
    with pytest.raises(UserError, match=message):
        sampler.stream(randn(1, 2, WIDTH), **{"length": 20, "window": 8} | how)  # before anything is asked of it


def test_a_cache_that_is_not_known_is_refused() -> None:
    refused(transformer(), "cache 'exat' is unknown.*none, exact, streaming.*exact", cache="exat")
    refused(transformer(), "cache True is unknown.*none, exact, streaming", cache=True)


@pytest.mark.parametrize("cache", ["exact", "streaming"])
def test_a_network_that_sees_the_future_has_no_past_to_keep(cache: str) -> None:
    both = Transformer(WIDTH, network_size=16, num_layers=1, attn_heads=2, causal=False)
    refused(both, f"cache={cache} keeps the past.*causal=False sees the future.*pass cache=none", cache=cache)


def test_a_network_that_says_nothing_of_memory_and_keeps_none_is_refused_when_asked() -> None:
    class Silent(nn.Module):
        def forward(self, x: Tensor, k: Tensor, conditions: Any = None, memory: Any = None) -> tuple[Tensor, None]:
            return x, None

    sampler = Sampler(forcing_over(Silent()), sampling_timesteps=STEPS)
    with pytest.raises(UserError, match="keeps no memory of the past; sample it with cache=none"):
        sampler.rollout(randn(1, 2, WIDTH), 4, window=4, cache="exact")


def test_sinks_belong_to_streaming_and_leave_room() -> None:
    for cache in ("none", "exact"):
        refused(transformer(), f"sinks is 2 with cache={cache}", cache=cache, sinks=2)
    refused(transformer(), "sinks is -1 with cache=streaming", cache="streaming", sinks=-1)
    refused(
        transformer(),
        "6 sinks and a chunk of 2 tokens leave nothing of the window of 8",
        cache="streaming",
        sinks=6,
        chunk_size=2,
    )
    # where the window does not slide, all are kept anyway
    assert rollout(transformer(), 8, window=8, cache="streaming", sinks=7, chunk_size=6).shape == (3, 8, WIDTH)


def test_a_rollout_without_end_needs_a_chunk_size() -> None:
    refused(transformer(), "chunk_size=-1", length=None, chunk_size=-1)


def test_a_chunk_longer_than_the_window_is_refused() -> None:
    refused(transformer(), "chunk of 9 tokens exceeds the window of 8; pass algorithm.chunk_size<=8", chunk_size=9)
    refused(transformer(), "chunk of 18 tokens exceeds the window of 8", chunk_size=-1)
