"""The transformer's encoder as one operation with its own backward pass: the fast path beside `transformer.Encoder`.

Same mathematics, written once for the whole stack: nothing is recorded in between, residual gradients are accumulated by the matrix
products themselves, ReLU's gradient is taken in place, queries, keys and values stay one tensor, and the gradients of weights that do
not train (guidance, where only the tokens' gradient is wanted) are not computed. `transformer.Encoder` is the specification;
tests hold the two equal, values and gradients. Gradients of gradients are refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

aten = torch.ops.aten
LAYER_PARAMETERS = 12
SMALL_EPS = 1e-5  # torch.nn.LayerNorm's


class FusedEncoder(torch.autograd.Function):
    """apply(x, heads, causal, *parameters): x: (b, t, size) → (b, t, size).

    parameters: those of `transformer.EncoderLayer`, layer after layer, in the order of its `in_order`.
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
