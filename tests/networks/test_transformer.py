"""The transformer against PyTorch's own encoder, its causality, and its memory."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from diffusion_forcing.errors import UserError
from diffusion_forcing.networks import KVCache, Transformer
from diffusion_forcing.networks.attention import sinusoidal

X, SIZE, LAYERS, HEADS, HIDDEN, CONDITIONS = 5, 32, 3, 4, 48, 2
BATCH, TIME = 3, 9


def network(*, causal: bool, conditioned: bool = False, **sizes: Any) -> Transformer:
    """Random weights, norms and biases away from 1 and 0."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        built = Transformer(
            X,
            **{"network_size": SIZE, "num_layers": LAYERS, "attn_heads": HEADS, "dim_feedforward": HIDDEN} | sizes,
            external_cond_dim=CONDITIONS if conditioned else 0,
            causal=causal,
        )
        with torch.no_grad():
            for parameter in built.parameters():
                parameter += 0.1 * torch.randn_like(parameter)
    return built


@pytest.fixture
def given() -> tuple[Tensor, Tensor, Tensor]:
    """x: (b, t, X), levels (b, t), conditions (b, t, CONDITIONS)."""
    generator = torch.Generator().manual_seed(1)
    return (
        torch.randn(BATCH, TIME, X, generator=generator),
        torch.randint(0, 1000, (BATCH, TIME), generator=generator),
        torch.randn(BATCH, TIME, CONDITIONS, generator=generator),
    )


Given = tuple[Tensor, Tensor, Tensor]


def embedded(value: int, dim: int) -> list[float]:
    """Sines, then cosines, at dim/2 frequencies that fall geometrically from 1 to 1/10000."""
    half = dim // 2
    angles = [value * 10000 ** (-i / (half - 1)) for i in range(half)]
    return [math.sin(a) for a in angles] + [math.cos(a) for a in angles]


def test_the_embedding_is_sines_then_cosines() -> None:
    found = sinusoidal(torch.tensor([[0, 3], [7, 999]]), 8)
    expected = torch.tensor([[embedded(0, 8), embedded(3, 8)], [embedded(7, 8), embedded(999, 8)]])
    assert found.shape == (2, 2, 8)
    assert torch.allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("conditioned", [False, True])
@pytest.mark.parametrize("causal", [False, True])
def test_the_network_is_pytorchs_encoder_between_an_mlp_and_a_linear(
    given: Given, causal: bool, conditioned: bool
) -> None:
    x, k, conditions = given
    ours = network(causal=causal, conditioned=conditioned)
    layer = nn.TransformerEncoderLayer(SIZE, HEADS, HIDDEN, dropout=0.0, activation="relu", batch_first=True)
    encoder = nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False)
    encoder.load_state_dict(ours.transformer.state_dict())
    first, second = ours.init_mlp[0], ours.init_mlp[2]

    parts = [x, torch.tensor([[embedded(int(level), SIZE // 2) for level in row] for row in k])]
    if conditioned:
        parts.append(conditions)
    hidden = torch.cat(parts, dim=-1)
    hidden = (hidden @ first.weight.T + first.bias).relu() @ second.weight.T + second.bias
    hidden = hidden + torch.tensor([embedded(t, SIZE) for t in range(TIME)])
    mask = nn.Transformer.generate_square_subsequent_mask(TIME) if causal else None
    expected = encoder(hidden, mask=mask, is_causal=causal) @ ours.out.weight.T + ours.out.bias

    output, _ = ours(x, k, conditions if conditioned else None)
    assert torch.allclose(output, expected, atol=1e-5 * expected.abs().max().item())


def test_parameters_carry_the_released_names_in_the_released_order() -> None:
    names = [name for name, _ in network(causal=False, num_layers=1).named_parameters()]
    attention = [f"self_attn.{name}" for name in ("in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias")]
    rest = [f"{part}.{kind}" for part in ("linear1", "linear2", "norm1", "norm2") for kind in ("weight", "bias")]
    ends = [f"{part}.{kind}" for part in ("init_mlp.0", "init_mlp.2", "out") for kind in ("weight", "bias")]
    assert names == [f"transformer.layers.0.{name}" for name in attention + rest] + ends


def test_a_new_network_starts_where_pytorchs_does() -> None:
    torch.manual_seed(0)
    layer = Transformer(X).transformer.layers[0]
    bound = math.sqrt(6 / (128 + 3 * 128))  # Xavier's uniform
    weight = layer.self_attn.in_proj_weight
    assert weight.abs().max() <= bound
    assert weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05)
    assert (layer.self_attn.in_proj_bias == 0).all()
    assert (layer.self_attn.out_proj.bias == 0).all()
    assert (layer.norm1.weight == 1).all()


# ------------------------------------------------------------------------------------------------------------ causality


@pytest.mark.parametrize("changed", ["token", "level", "condition"])
@pytest.mark.parametrize("t", [0, 4, TIME - 1])
def test_changing_a_token_leaves_every_output_before_it_bit_identical(given: Given, t: int, changed: str) -> None:
    x, k, conditions = (part.clone() for part in given)
    causal = network(causal=True, conditioned=True)
    before, _ = causal(x, k, conditions)
    match changed:
        case "token":
            x[:, t] += 1.0
        case "level":
            k[:, t] = (k[:, t] + 500) % 1000
        case _:
            conditions[:, t] += 1.0
    after, _ = causal(x, k, conditions)
    assert torch.equal(before[:, :t], after[:, :t])
    assert (before[:, t:] != after[:, t:]).any(dim=-1).all()


def test_a_network_that_is_not_causal_looks_both_ways(given: Given) -> None:
    x, k, _ = given
    both = network(causal=False)
    before, _ = both(x, k)
    x = x.clone()
    x[:, 4] += 1.0
    after, _ = both(x, k)
    assert (before != after).any(dim=-1).all()


def test_a_sequence_is_not_seen_by_the_others_of_its_batch(given: Given) -> None:
    x, k, _ = given
    for causal in (False, True):
        built = network(causal=causal)
        together, _ = built(x, k)
        alone, _ = built(x[1:2], k[1:2])
        assert torch.allclose(together[1:2], alone, atol=1e-5)


# ------------------------------------------------------------------------------------------------------------ memory

SPLITS = ((TIME,), (4, 5), (1, 8), (3, 3, 3), (1,) * TIME)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("split", SPLITS)
def test_with_the_memory_of_the_past_the_last_tokens_come_out_the_same(
    given: Given, split: tuple[int, ...], fused: bool
) -> None:
    x, k, conditions = given
    causal = network(causal=True, conditioned=True)
    causal.transformer.fused = fused
    whole, _ = causal(x, k, conditions)
    memory, parts, start = None, [], 0
    for size in split:
        span = slice(start, start + size)
        part, memory = causal(x[:, span], k[:, span], conditions[:, span], memory)
        parts.append(part)
        start += size
        assert memory.length == start
    assert (torch.cat(parts, dim=1) - whole).abs().max() <= 1e-5


def test_memory_is_a_value(given: Given) -> None:
    x, k, _ = given
    causal = network(causal=True)
    _, memory = causal(x[:, :4], k[:, :4])
    assert isinstance(memory, KVCache)
    kept = [tensor.clone() for tensor in (*memory.keys, *memory.values)]
    once, longer = causal(x[:, 4:], k[:, 4:], memory=memory)
    again, _ = causal(x[:, 4:], k[:, 4:], memory=memory)
    assert torch.equal(once, again)
    assert (memory.length, longer.length) == (4, TIME)
    assert all(torch.equal(a, b) for a, b in zip(kept, (*memory.keys, *memory.values), strict=True))
    assert len(memory.keys) == len(memory.values) == LAYERS
    assert memory.keys[0].shape == (BATCH, HEADS, 4, SIZE // HEADS)


def test_memory_makes_a_difference(given: Given) -> None:
    x, k, _ = given
    causal = network(causal=True)
    _, memory = causal(x[:, :4], k[:, :4])
    with_past, _ = causal(x[:, 4:], k[:, 4:], memory=memory)
    without, _ = causal(x[:, 4:], k[:, 4:])
    assert (with_past - without).abs().max() > 0.01


def test_a_network_that_sees_the_future_keeps_and_takes_no_memory(given: Given) -> None:
    x, k, _ = given
    _, memory = network(causal=True)(x, k)
    both = network(causal=False)
    assert both(x, k)[1] is None
    with pytest.raises(UserError, match=r"causal=False sees the future and keeps no memory.*cache=none"):
        both(x, k, memory=memory)


def test_it_says_of_itself_what_it_can_remember() -> None:
    causal, both = network(causal=True), network(causal=False)
    assert (causal.keeps_memory, causal.why_no_memory) == (True, "")
    assert not both.keeps_memory
    assert "causal=False" in both.why_no_memory


def test_its_memory_cannot_slide_because_positions_are_in_the_tokens(given: Given) -> None:
    x, k, _ = given
    causal = network(causal=True, num_layers=1)  # with one layer a kept token knows of no other
    assert not causal.memory_slides
    _, memory = causal(x[:, :4], k[:, :4])
    slid, _ = causal(x[:, 4:5], k[:, 4:5], memory=memory.trimmed(3))
    afresh, _ = causal(x[:, 1:5], k[:, 1:5])
    assert (slid - afresh[:, 3:]).abs().max() > 0.01


# ------------------------------------------------------------------------------------------------------------ the rest


@pytest.mark.parametrize("causal", [False, True])
def test_gradients_reach_every_parameter_every_token_and_every_condition(given: Given, causal: bool) -> None:
    x, k, conditions = given
    x.requires_grad_()
    conditions.requires_grad_()
    built = network(causal=causal, conditioned=True)
    output, _ = built(x, k, conditions)
    output.square().mean().backward()
    for name, parameter in built.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name
    for part in (x, conditions):
        assert part.grad is not None and (part.grad.abs().sum(dim=-1) > 0).all()


def test_gradients_of_the_future_reach_the_past_through_memory(given: Given) -> None:
    x, k, _ = given
    causal = network(causal=True)
    x.requires_grad_()
    (through_whole,) = torch.autograd.grad(causal(x, k)[0][:, 5:].sum(), x)
    _, memory = causal(x[:, :5], k[:, :5])
    (through_memory,) = torch.autograd.grad(causal(x[:, 5:], k[:, 5:], memory=memory)[0].sum(), x)
    assert (through_memory[:, :5].abs().sum(dim=-1) > 0).all()
    assert torch.allclose(through_memory, through_whole, atol=1e-5)


@pytest.mark.parametrize(("conditioned", "passed"), [(True, False), (False, True)])
def test_conditions_are_needed_exactly_when_configured(given: Given, conditioned: bool, passed: bool) -> None:
    x, k, conditions = given
    built = network(causal=True, conditioned=conditioned)
    with pytest.raises(
        UserError, match=f"width {CONDITIONS if conditioned else 0}.*got {'none' if conditioned else ''}"
    ):
        built(x, k, conditions if passed else None)


def test_conditions_of_another_width_are_refused(given: Given) -> None:
    x, k, conditions = given
    with pytest.raises(UserError, match=rf"conditions of width {CONDITIONS} \(external_cond_dim\), got width 3"):
        network(causal=True, conditioned=True)(x, k, torch.cat([conditions, conditions[..., :1]], dim=-1))


@pytest.mark.parametrize(("size", "heads"), [(30, 4), (30, 5), (4, 2), (0, 1)])
def test_sizes_that_cannot_be_are_refused_in_words(size: int, heads: int) -> None:
    with pytest.raises(UserError, match=rf"network_size is {size} with attn_heads {heads}"):
        network(causal=False, network_size=size, attn_heads=heads)


def test_the_smallest_network_there_can_be_runs(given: Given) -> None:
    x, k, _ = given
    output, _ = network(causal=False, network_size=8, attn_heads=1, num_layers=1, dim_feedforward=1)(x, k)
    assert output.shape == x.shape
    assert output.isfinite().all()
