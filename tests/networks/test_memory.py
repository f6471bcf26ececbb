"""Keys and values that are kept: how many tokens they stand for, and which of them stay when there are too many."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from diffusion_forcing.networks import KVCache


def cache(tokens: int, *axes: int) -> KVCache:
    """Two layers of different width; every number is its token's index."""
    index = torch.arange(tokens, dtype=torch.float32)[:, None]
    return KVCache(
        tuple(index.expand(*axes, tokens, width).clone() for width in (4, 6)),
        tuple(-index.expand(*axes, tokens, width).clone() for width in (4, 6)),
    )


def tokens_of(memory: KVCache) -> list[int]:
    """Which tokens it stands for; the same in every layer, keys and values."""
    found = [
        tensor[..., :, 0].reshape(-1, tensor.shape[-2]).unique(dim=0).abs() for tensor in (*memory.keys, *memory.values)
    ]
    assert all(torch.equal(found[0], other) for other in found)
    assert len(found[0]) == 1
    return [int(index) for index in found[0][0]]


@pytest.mark.parametrize("axes", [(2, 3), (2,), (5, 7, 2, 3)])
def test_its_length_is_its_tokens_however_many_axes_stand_before_them(axes: tuple[int, ...]) -> None:
    memory = cache(9, *axes)
    assert memory.length == 9
    assert tokens_of(memory.trimmed(3, 2)) == [0, 1, 6, 7, 8]
    assert memory.trimmed(3, 2).keys[1].shape == (*axes, 5, 6)


@pytest.mark.parametrize(
    ("last", "sinks", "kept"),
    [
        (3, 0, [6, 7, 8]),
        (0, 2, [0, 1]),
        (0, 0, []),
        (1, 1, [0, 8]),
        (7, 1, [0, 2, 3, 4, 5, 6, 7, 8]),
    ],
)
def test_trimming_keeps_the_first_and_the_last(last: int, sinks: int, kept: list[int]) -> None:
    trimmed = cache(9, 2, 3).trimmed(last, sinks)
    assert trimmed.length == len(kept)
    if kept:
        assert tokens_of(trimmed) == kept


@pytest.mark.parametrize(("last", "sinks"), [(9, 0), (5, 4), (8, 8), (100, 0)])
def test_what_fits_is_left_as_it_is(last: int, sinks: int) -> None:
    memory = cache(9, 2, 3)
    assert memory.trimmed(last, sinks) is memory


def test_a_negative_count_is_our_own_mistake() -> None:
    with pytest.raises(ValueError, match="cannot keep -1 last"):
        cache(3, 1).trimmed(-1)


def test_what_is_trimmed_again_and_again_holds_no_more_than_it_stands_for() -> None:
    def held(memory: KVCache) -> int:
        return sum(tensor.untyped_storage().nbytes() for tensor in (*memory.keys, *memory.values))

    def longer(memory: KVCache) -> KVCache:
        def join(tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return tuple(torch.cat([tensor, tensor[..., -1:, :]], dim=-2) for tensor in tensors)

        return KVCache(join(memory.keys), join(memory.values))

    for sinks in (0, 2):
        memory = cache(8, 2)
        for _ in range(30):
            memory = longer(memory).trimmed(8 - sinks, sinks)
        assert memory.length == 8
        assert held(memory) <= held(longer(cache(8, 2)))
