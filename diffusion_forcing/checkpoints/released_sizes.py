"""What the tensors of a released checkpoint say about the network they are of.

Each function raises KeyError, IndexError or ValueError with the key for a tensor that is missing or has another rank.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

Tensors = Mapping[str, Tensor]

_ONLY_LAYOUT = re.compile(r"(?<![^.])(?:module|wrapper|attn_block)\.")
"""Words in the names of the released U-Net that stand for a change of layout and nothing else."""
_CONSTANTS = ("rotary_emb.freqs", "rotary_time_pos_embedding.freqs")
COLOURS = 3


def of_planning(weights: Tensors, tables: Tensors, statistics: Tensors) -> dict[str, Any]:
    """Facts of a v1.5 planner. The number of its attention heads leaves no trace."""
    x_dim, width = shape_of(weights, "out.weight", 2)
    layers = {int(key.split(".")[2]) for key in weights if key.startswith("transformer.layers.")}
    feedforward, _ = shape_of(weights, "transformer.layers.0.linear1.weight", 2)
    _, inputs = shape_of(weights, "init_mlp.0.weight", 2)
    features = statistics["data_mean"].numel()
    facts: dict[str, Any] = {
        "task": "planning",
        "line": "v1.5",
        "x_dim": x_dim,
        "features": features,
        "frame_stack": x_dim // features,
        "external_cond_dim": inputs - x_dim - width // 2,
        "architecture": {
            "network_size": width,
            "num_layers": max(layers) + 1,
            "dim_feedforward": feedforward,
        },
    }
    if "betas" in tables:
        facts["timesteps"] = tables["betas"].numel()
    return facts


def our_names(weights: Tensors) -> dict[str, Tensor]:
    """The released U-Net's weights by our names; its copies of the rotary frequencies, which are constants, left out."""
    return {_ONLY_LAYOUT.sub("", key): value for key, value in weights.items() if not key.endswith(_CONSTANTS)}


def of_video(released: Tensors, tables: Tensors, statistics: Tensors) -> dict[str, Any]:
    """Facts of a v1.5 video model.

    halvings: how often the frame is halved at each feature map that has attention; their resolutions follow from the
    data's. attention_width: heads times size of a head; both apart where rotary positions tell the size. Linear or full
    spatial attention, the objective, the window and whether it was trained to be causal leave no trace.
    """
    weights = our_names(released)
    rotary = next((value for key, value in released.items() if key.endswith(_CONSTANTS)), None)
    size, channels, *_ = shape_of(weights, "init_conv.weight", 5)
    stages = sorted({int(key.split(".")[1]) for key in weights if key.startswith("down_blocks.")})
    if stages != list(range(len(stages))) or not stages:
        raise KeyError(f"down_blocks.{len(stages)}")
    widths = [shape_of(weights, f"down_blocks.{stage}.0.1.out_layers.2.weight", 5)[0] for stage in stages]
    attended = [stage for stage in stages if f"down_blocks.{stage}.0.2.attn.to_qkv.weight" in weights]
    inner = shape_of(weights, "mid_block.1.attn.to_qkv.weight", 2)[0] // 3
    mean = statistics["data_mean"]
    colours = mean.numel() if mean.numel() > 1 else min(COLOURS, channels)
    architecture: dict[str, Any] = {
        "network_size": size,
        "dim_mults": [width // size for width in widths],
        "use_init_temporal_attn": "init_temporal_attn.attn.to_qkv.weight" in weights,
        "time_emb_type": "sinusoidal" if rotary is None else "rotary",
    }
    if rotary is not None:
        architecture["attn_dim_head"] = 2 * rotary.numel()
        architecture["attn_heads"] = inner // (2 * rotary.numel())
    if "mid_block.3.out_layers.2.weight" not in weights or "out.1.weight" not in weights:
        raise KeyError("mid_block.3.out_layers.2.weight" if "out.1.weight" in weights else "out.1.weight")
    facts: dict[str, Any] = {
        "task": "video",
        "line": "v1.5",
        "channels": colours,
        "frame_stack": channels // colours,
        "halvings": attended,
        "attention_width": inner,
        "architecture": architecture,
    }
    if "alphas_cumprod" in tables:
        facts |= signal_power(tables)
    return facts


def signal_power(tables: Tensors) -> dict[str, Any]:
    """The number of levels, and what is left of the signal's power at a quarter, half and three quarters of them."""
    power = tables["alphas_cumprod"]
    quarters = [power[power.numel() * quarter // 4].item() for quarter in (1, 2, 3)]
    return {"timesteps": power.numel(), "signal_power": quarters}


def shape_of(weights: Tensors, key: str, rank: int) -> tuple[int, ...]:
    """The shape of a tensor of `rank`."""
    shape = tuple(weights[key].shape)
    if len(shape) != rank:
        raise ValueError(f"'{key}'")
    return shape
