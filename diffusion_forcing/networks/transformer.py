"""The v1.5 transformer for tokens that are vectors (docs/method.md §8): the planner, and any sequence of numbers.

[x ; sinusoidal(k) ; conditions] → 2-layer ReLU MLP → + sinusoidal(t) → post-norm ReLU encoder layers → linear. Parameters are named
and shaped as in the released checkpoints (those of `torch.nn.TransformerEncoder`); attention runs through PyTorch's fused kernel.
Causal, it keeps keys and values as memory: a call on the last tokens with the memory of the earlier ones equals a call on all.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from diffusion_forcing.errors import UserError
from diffusion_forcing.networks.attention import sinusoidal
from diffusion_forcing.networks.memory import KVCache, check_inputs

# ---------------------------------------------------------------------------------------------------- the fused encoder
# The transformer's encoder as one operation with its own backward pass: the fast path beside `Encoder`.
#
# Same mathematics, written once for the whole stack: nothing is recorded in between, residual gradients are accumulated by the matrix
# products themselves, ReLU's gradient is taken in place, queries, keys and values stay one tensor, and the gradients of weights that do
# not train (guidance, where only the tokens' gradient is wanted) are not computed. `Encoder` is the specification;
# tests hold the two equal, values and gradients. Gradients of gradients are refused.

aten = torch.ops.aten
LAYER_PARAMETERS = 12
SMALL_EPS = 1e-5  # torch.nn.LayerNorm's


class FusedEncoder(torch.autograd.Function):
    """apply(x, heads, causal, *parameters): x: (b, t, size) → (b, t, size).

    parameters: those of `EncoderLayer`, layer after layer, in the order of its `in_order`.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, heads: int, causal: bool, *parameters: Tensor) -> Tensor:
        b, t, size = x.shape
        shape = (b, t, heads, size // heads)
        hidden = x.reshape(b * t, size)
        saved: list[Tensor] = []
        for layer in _layers(parameters):
            in_weight, in_bias, out_weight, out_bias, weight1, bias1, weight2, bias2, gain1, shift1, gain2, shift2 = (
                layer
            )
            qkv = torch.addmm(in_bias, hidden, in_weight.t())
            attended, statistics = _attention(qkv, shape, causal)
            first = torch.addmm(out_bias, attended, out_weight.t()).add_(hidden)
            middle, mean1, scale1 = torch.native_layer_norm(first, (size,), gain1, shift1, SMALL_EPS)
            inner = torch.addmm(bias1, middle, weight1.t()).relu_()
            second = torch.addmm(bias2, inner, weight2.t()).add_(middle)
            saved += [hidden, qkv, attended, statistics, first, mean1, scale1, middle, inner, second]
            hidden, mean2, scale2 = torch.native_layer_norm(second, (size,), gain2, shift2, SMALL_EPS)
            saved += [mean2, scale2]
        ctx.save_for_backward(*saved, *parameters)
        ctx.shape, ctx.causal = shape, causal
        return hidden.view(b, t, size)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        shape, causal = ctx.shape, ctx.causal
        b, t, heads, width = shape
        size = heads * width
        kept = ctx.saved_tensors
        count = len(kept) // 2
        activations, parameters = kept[:count], kept[count:]
        training = any(ctx.needs_input_grad[3:])
        normal = [True, training, training]
        of_parameters: list[list[Tensor | None]] = []
        g = gradient.reshape(b * t, size)
        for index in reversed(range(count // LAYER_PARAMETERS)):
            span = slice(index * LAYER_PARAMETERS, (index + 1) * LAYER_PARAMETERS)
            hidden, qkv, attended, statistics, first, mean1, scale1, middle, inner, second, mean2, scale2 = activations[
                span
            ]
            in_weight, _, out_weight, _, weight1, _, weight2, _, gain1, shift1, gain2, shift2 = parameters[span]
            g_second, g_gain2, g_shift2 = aten.native_layer_norm_backward(
                g, second, (size,), mean2, scale2, gain2, shift2, normal
            )
            g_inner = g_second @ weight2
            aten.threshold_backward(g_inner, inner, 0, grad_input=g_inner)
            g_middle = torch.addmm(g_second, g_inner, weight1)
            g_first, g_gain1, g_shift1 = aten.native_layer_norm_backward(
                g_middle, first, (size,), mean1, scale1, gain1, shift1, normal
            )
            g_qkv = _attention_backward(g_first @ out_weight, qkv, attended, statistics, shape, causal)
            g = torch.addmm(g_first, g_qkv, in_weight)
            if training:
                of_parameters.append(
                    [
                        *(g_qkv.t() @ hidden, g_qkv.sum(0)),
                        *(g_first.t() @ attended, g_first.sum(0)),
                        *(g_inner.t() @ middle, g_inner.sum(0)),
                        *(g_second.t() @ inner, g_second.sum(0)),
                        *(g_gain1, g_shift1, g_gain2, g_shift2),
                    ]
                )
        flat = [tensor for layer in reversed(of_parameters) for tensor in layer]
        return g.view(b, t, size), None, None, *(flat or [None] * len(parameters))


def can_fuse(x: Tensor) -> bool:
    """Whether the fast path serves x: float32 on a CPU, no autocast, nothing being compiled."""
    return (
        hasattr(aten, "_scaled_dot_product_flash_attention_for_cpu")
        and x.device.type == "cpu"
        and x.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    )


def _layers(parameters: Sequence[Tensor]) -> list[Sequence[Tensor]]:
    return [parameters[i : i + LAYER_PARAMETERS] for i in range(0, len(parameters), LAYER_PARAMETERS)]


def _heads(qkv: Tensor, shape: tuple[int, int, int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values, each a view (b, heads, t, d) of qkv: (b·t, 3·size)."""
    b, t, heads, width = shape
    query, key, value = qkv.view(b, t, 3, heads, width).permute(2, 0, 3, 1, 4).unbind(0)
    return query, key, value


def _attention(qkv: Tensor, shape: tuple[int, int, int, int], causal: bool) -> tuple[Tensor, Tensor]:
    """(b·t, size) and the softmax's log-normalisers, by PyTorch's fused kernel."""
    b, t, heads, width = shape
    attended, statistics = aten._scaled_dot_product_flash_attention_for_cpu(*_heads(qkv, shape), 0.0, causal)
    return attended.transpose(1, 2).reshape(b * t, heads * width), statistics


def _attention_backward(
    gradient: Tensor, qkv: Tensor, attended: Tensor, statistics: Tensor, shape: tuple[int, int, int, int], causal: bool
) -> Tensor:
    b, t, heads, width = shape
    parts = aten._scaled_dot_product_flash_attention_for_cpu_backward(
        gradient.view(shape).transpose(1, 2),
        *_heads(qkv, shape),
        attended.view(shape).transpose(1, 2),
        statistics,
        0.0,
        causal,
    )
    return torch.cat([part.transpose(1, 2).reshape(b * t, heads * width) for part in parts], dim=-1)


# ---------------------------------------------------------------------------------------------------------- the network


class SelfAttention(nn.Module):
    """Multi-head self-attention with the parameters of `torch.nn.MultiheadAttention`."""

    def __init__(self, size: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * size, size))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * size))
        self.out_proj = nn.Linear(size, size)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(
        self, x: Tensor, causal: bool, past: tuple[Tensor, Tensor] | None, mask: Tensor | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """x: (b, t, size), past keys and values: (b, heads, t', d) each → (b, t, size) and x's own keys and values. mask: (t, t) bool, who
        sees whom, instead of `causal`."""
        b, t, size = x.shape
        qkv = F.linear(x, self.in_proj_weight, self.in_proj_bias)
        query, key, value = qkv.view(b, t, 3, self.heads, size // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        if past is None:
            attended = F.scaled_dot_product_attention(
                query, key, value, attn_mask=mask, is_causal=causal and mask is None
            )
        else:
            attended = _behind(query, key, value, *past)
        return self.out_proj(attended.transpose(1, 2).reshape(b, t, size)), (key, value)


def _behind(query: Tensor, key: Tensor, value: Tensor, past_key: Tensor, past_value: Tensor) -> Tensor:
    """Attention of t tokens: (b, heads, t, d) each, that see all of the past: (b, heads, t', d) each, and their own up to themselves.

    The same as over both joined, but the past, which every sampling level of a token looks at, is not copied for it.
    """
    t, length = query.shape[2], past_key.shape[2]
    query = query * query.shape[-1] ** -0.5
    own = query @ key.transpose(-2, -1)
    if t > 1:
        own = own.masked_fill(torch.ones(t, t, dtype=torch.bool, device=query.device).triu(1), -torch.inf)
    weights = torch.cat([query @ past_key.transpose(-2, -1), own], dim=-1).softmax(dim=-1)
    return weights[..., :length] @ past_value + weights[..., length:] @ value


class EncoderLayer(nn.Module):
    """Post-norm: x ← norm1(x + attention(x)), x ← norm2(x + linear2(relu(linear1(x))))."""

    def __init__(self, size: int, heads: int, feedforward: int) -> None:
        super().__init__()
        self.self_attn = SelfAttention(size, heads)
        self.linear1 = nn.Linear(size, feedforward)
        self.linear2 = nn.Linear(feedforward, size)
        self.norm1 = nn.LayerNorm(size)
        self.norm2 = nn.LayerNorm(size)

    def forward(
        self, x: Tensor, causal: bool, past: tuple[Tensor, Tensor] | None, mask: Tensor | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        attended, present = self.self_attn(x, causal, past, mask)
        x = self.norm1(x + attended)
        return self.norm2(x + self.linear2(self.linear1(x).relu_())), present

    def in_order(self) -> list[Tensor]:
        """The parameters as `FusedEncoder` takes them."""
        attention, norms = self.self_attn, (self.norm1, self.norm2)
        linears = (attention.out_proj, self.linear1, self.linear2)
        ordered: list[Tensor] = [attention.in_proj_weight, attention.in_proj_bias]
        return ordered + [p for module in (*linears, *norms) for p in (module.weight, module.bias)]


class Encoder(nn.Module):
    """The stack of layers, under the released name `transformer.layers`. fused: take the fast path of `FusedEncoder` where it serves."""

    fused = True

    def __init__(self, size: int, layers: int, heads: int, feedforward: int) -> None:
        super().__init__()
        self.heads = heads
        self.layers = nn.ModuleList(EncoderLayer(size, heads, feedforward) for _ in range(layers))

    def forward(
        self, x: Tensor, causal: bool, memory: KVCache | None, mask: Tensor | None = None
    ) -> tuple[Tensor, KVCache | None]:
        """x: (b, t, size) → (b, t, size) and, where causal, the memory after x. mask: as for `SelfAttention`."""
        if self.fused and not causal and can_fuse(x):
            layers = cast(Iterable[EncoderLayer], self.layers)
            parameters = [parameter for layer in layers for parameter in layer.in_order()]
            return FusedEncoder.apply(x, self.heads, causal, *parameters), None
        presents = []
        for index, layer in enumerate(self.layers):
            past = None if memory is None else (memory.keys[index], memory.values[index])
            x, present = layer(x, causal, past, mask)
            presents.append(present)
        own = KVCache(tuple(key for key, _ in presents), tuple(value for _, value in presents))
        return x, own if memory is None else memory.then(own)


class Transformer(nn.Module):
    """x: (b, t, x_dim) at levels k: (b, t) → (b, t, x_dim).

    conditions: (b, t, external_cond_dim), needed exactly when external_cond_dim > 0. memory: a KVCache of earlier tokens, for causal
    networks; positions continue after it.
    """

    def __init__(
        self,
        x_dim: int,
        *,
        network_size: int = 128,
        num_layers: int = 12,
        attn_heads: int = 4,
        dim_feedforward: int = 512,
        external_cond_dim: int = 0,
        causal: bool = False,
    ) -> None:
        super().__init__()
        if network_size % attn_heads or network_size % 4 or network_size < 8:
            raise UserError(
                f"network_size is {network_size} with attn_heads {attn_heads}; "
                "it must be a multiple of the heads and of 4, and at least 8"
            )
        self.x_dim = x_dim
        self.network_size = network_size
        self.external_cond_dim = external_cond_dim
        self.causal = causal
        # registered in the order of the released optimiser states
        self.transformer = Encoder(network_size, num_layers, attn_heads, dim_feedforward)
        self.init_mlp = nn.Sequential(
            nn.Linear(x_dim + network_size // 2 + external_cond_dim, network_size),
            nn.ReLU(inplace=True),
            nn.Linear(network_size, network_size),
        )
        self.out = nn.Linear(network_size, x_dim)

    @property
    def keeps_memory(self) -> bool:
        """Whether it can be called with a memory: no token's output depends on a later token."""
        return self.causal

    @property
    def memory_slides(self) -> bool:
        """Whether a memory that lost its oldest tokens still serves. Here positions are added to the tokens, and every key and value
        has its own in it: the tokens that stay cannot move to the front of the window."""
        return False

    @property
    def why_no_memory(self) -> str:
        """What stands in the way of a memory, for a message; empty where nothing does."""
        return "" if self.causal else "a network with causal=False sees the future and keeps no memory of the past"

    def forward(
        self, x: Tensor, k: Tensor, conditions: Tensor | None = None, memory: KVCache | None = None
    ) -> tuple[Tensor, KVCache | None]:
        if memory is not None and not self.causal:
            raise UserError(f"{self.why_no_memory}; sample it with cache=none")
        start = 0 if memory is None else memory.length
        hidden, present = self.transformer(self._embed(x, k, conditions, start), self.causal, memory)
        return self.out(hidden), present if self.causal else None

    def teacher_forced(
        self,
        clean: Tensor,
        clean_k: Tensor,
        x: Tensor,
        k: Tensor,
        conditions: Tensor | None = None,
        memory: KVCache | None = None,
    ) -> Tensor:
        """Each token of x: (b, t, x_dim) at its level k: (b, t), when it sees itself and the `clean` tokens before it, shown at levels
        clean_k: (b, t, x_dim). One call on both, in which clean tokens see clean ones alone. For causal networks, without a memory."""
        if not self.causal or memory is not None:
            raise UserError("a clean past beside noised tokens is for causal networks, from a sequence's beginning")
        t = x.shape[1]
        ones = torch.ones(t, t, dtype=torch.bool, device=x.device)
        own = torch.eye(t, dtype=torch.bool, device=x.device)
        mask = torch.cat([torch.cat([ones.tril(), ~ones], dim=1), torch.cat([ones.tril(-1), own], dim=1)])
        # (b, 2t, size): the clean tokens, then the noised ones.
        both = [self._embed(tokens, levels, conditions, 0) for tokens, levels in ((clean, clean_k), (x, k))]
        hidden, _ = self.transformer(torch.cat(both, dim=1), True, None, mask)
        output: Tensor = self.out(hidden[:, t:])
        return output

    def _embed(self, x: Tensor, k: Tensor, conditions: Tensor | None, start: int) -> Tensor:
        """(b, t, network_size): tokens x at levels k with their conditions, the first at position `start`."""
        check_inputs(conditions, self.external_cond_dim)
        # (b, t, x_dim + size/2 + d) → (b, t, size)
        inputs = [x, sinusoidal(k, self.network_size // 2).to(x.dtype)]
        if conditions is not None:
            inputs.append(conditions)
        positions = torch.arange(start, start + x.shape[1], device=x.device)
        embedded: Tensor = self.init_mlp(torch.cat(inputs, dim=-1))
        return embedded + sinusoidal(positions, self.network_size).to(x.dtype)
