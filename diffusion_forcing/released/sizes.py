"""The task and the sizes of a released network, read off the tensors of its checkpoint.

Each function raises KeyError, IndexError or ValueError with the key of a tensor that is missing or has another rank. An RNN checkpoint has
`[init_z], data_mean, data_std, transition_model.<schedule table>, transition_model.model.<transition>, transition_model.x_from_z.<head>`,
and `init_encoder.` for mazes, `embed.` for time series. Here the network's keys lose `transition_model.`; the others keep their names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

Tensors = Mapping[str, Tensor]

_ONLY_LAYOUT = re.compile(r"(?<![^.])(?:module|wrapper|attn_block)\.")
"""Parts of the released U-Net's names that only reshape."""
_CONSTANTS = ("rotary_emb.freqs", "rotary_time_pos_embedding.freqs")
COLOURS = 3


def of_planning(weights: Tensors, tables: Tensors, statistics: Tensors) -> dict[str, Any]:
    """Metadata of a v1.5 planner. The number of its attention heads leaves no trace."""
    x_dim, width = shape_of(weights, "out.weight", 2)
    layers = {int(key.split(".")[2]) for key in weights if key.startswith("transformer.layers.")}
    feedforward, _ = shape_of(weights, "transformer.layers.0.linear1.weight", 2)
    _, inputs = shape_of(weights, "init_mlp.0.weight", 2)
    features = statistics["data_mean"].numel()
    metadata: dict[str, Any] = {
        "task": "planning",
        "line": "v1.5",
        "x_dim": x_dim,
        "features": features,
        "frame_stack": x_dim // features,
        "external_cond_dim": inputs - x_dim - width // 2,
        "architecture": {"network_size": width, "num_layers": max(layers) + 1, "dim_feedforward": feedforward},
    }
    if "betas" in tables:
        metadata["timesteps"] = tables["betas"].numel()
    return metadata


def our_names(weights: Tensors) -> dict[str, Tensor]:
    """The released U-Net's weights by our names; its copies of the rotary frequencies, which are constants, left out."""
    return {_ONLY_LAYOUT.sub("", key): value for key, value in weights.items() if not key.endswith(_CONSTANTS)}


def of_video(released: Tensors, tables: Tensors, statistics: Tensors) -> dict[str, Any]:
    """Metadata of a v1.5 video model.

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
    metadata: dict[str, Any] = {
        "task": "video",
        "line": "v1.5",
        "channels": colours,
        "frame_stack": channels // colours,
        "halvings": attended,
        "attention_width": inner,
        "architecture": architecture,
    }
    if "alphas_cumprod" in tables:
        metadata |= signal_power(tables)
    return metadata


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


PREFIX = "transition_model."
_NETWORK = (f"{PREFIX}model.", f"{PREFIX}x_from_z.")
_BESIDE = ("init_z", "init_encoder.", "embed.")
_OF_VECTORS = ("x_from_z.weight", "model.mlp_before_gru.", "model.gru_stack.")
"""What only a network of vectors has: that of images has convolutions in these places."""
_CONDITION = "model.external_cond_mlp.0.weight"


def task(state: Mapping[str, Tensor]) -> str:
    """`planning`, `prediction`, `robot` or `video`."""
    mean = state.get("data_mean")
    if any(key.startswith("init_encoder.") for key in state):
        return "planning"
    if any(key.removeprefix(PREFIX).startswith(_OF_VECTORS) for key in state):
        return "prediction"
    return "robot" if mean is not None and mean.ndim == 3 else "video"


def weights(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The network's, by our names, and what is trained beside it."""
    own = {key: value for key, value in state.items() if key.startswith((*_NETWORK, *_BESIDE))}
    return {key.removeprefix(PREFIX): value for key, value in own.items()}


def tables(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The diffusion schedule's."""
    own = {key: value for key, value in state.items() if key.startswith(PREFIX) and not key.startswith(_NETWORK)}
    return {key.removeprefix(PREFIX): value for key, value in own.items()}


def metadata(
    of: str, network: Mapping[str, Tensor], tables: Mapping[str, Tensor], statistics: Mapping[str, Tensor]
) -> dict[str, Any]:
    """Metadata of a model of task `of`. The objective, the loss weighting and the number of the data's colours leave no trace."""
    size = shape_of(network, "model.time_mlp.1.weight", 2)[1]
    vectors = of in ("planning", "prediction")
    found: dict[str, Any] = {"task": of, "line": "rnn", "network_size": size}
    if vectors:
        x, z = shape_of(network, "x_from_z.weight", 2)
        layers = _mlp_layers(network)
        inputs = _mlp_inputs(network, layers) or z + x + size * (2 if _CONDITION in network else 1)
        level_width = size
        found |= {"x_dim": x, "z_shape": [z], "num_mlp_layers": layers, "num_gru_layers": _gru_layers(network)}
    else:
        z = shape_of(network, "model.final_conv.weight", 4)[0]
        x = shape_of(network, "x_from_z.1.weight", 4)[0]
        inputs = shape_of(network, "model.init_conv.weight", 4)[1]
        level_width = 0
        sides = list(network["init_z"].shape[1:]) if "init_z" in network else []
        found |= {"x_dim": x, "z_shape": [z, *sides], "num_gru_layers": int("model.gru.x2h.weight" in network)}
    conditioned = _CONDITION in network
    inputs -= z + (level_width * (2 if conditioned else 1))
    if inputs not in (x, 2 * x):
        raise ValueError("'model.mlp_before_gru'" if vectors else "'model.init_conv.weight'")
    features = statistics["data_mean"]
    colours = min(COLOURS, x) if features.numel() == 1 else features.shape[0]
    found |= {
        "external_cond_dim": shape_of(network, _CONDITION, 2)[1] if conditioned else 0,
        "self_condition": inputs == 2 * x,
        "learnable_init_z": "init_z" in network,
        "frame_stack": x // colours,
    }
    if of == "planning":
        found["start_dim"] = shape_of(network, "init_encoder.0.weight", 2)[1]
    if "embed.weight" in network:
        found["variates"] = shape_of(network, "embed.weight", 2)[0]
    if of == "robot":
        found["resolution"] = features.shape[-1]
    if "alphas_cumprod" in tables:
        found |= signal_power(tables)
    return found


def _mlp_layers(network: Mapping[str, Tensor]) -> int:
    """Layers on either side of the GRU cells; 0 where there are none."""
    prefix = "model.mlp_before_gru."
    named = [key.removeprefix(prefix) for key in network if key.startswith(prefix)]
    numbered = [int(key.split(".")[0]) for key in named if re.match(r"\d+\.", key)]
    return max(numbered) + 1 if numbered else int(bool(named))


def _mlp_inputs(network: Mapping[str, Tensor], layers: int) -> int | None:
    """Numbers that the first layer or cell takes; None where the transition is neither and hands z on."""
    if layers:
        first = "mlp.0.weight" if layers == 1 else "0.mlp.0.weight"
        return shape_of(network, f"model.mlp_before_gru.{first}", 2)[1]
    return shape_of(network, "model.gru_stack.0.weight_ih", 2)[1] if _gru_layers(network) else None


def _gru_layers(network: Mapping[str, Tensor]) -> int:
    return 1 + max((int(key.split(".")[2]) for key in network if key.startswith("model.gru_stack.")), default=-1)
