"""Imports released checkpoints of both lines: a Lightning `.ckpt`, read without running any of it.

A v1.5 checkpoint has the `state_dict` keys `data_mean`, `data_std`, `diffusion_model.<schedule table>` and `diffusion_model.model.<network>`,
with `_orig_mod.` in some place if the model was compiled, and the networks of its metrics, which are left out. An RNN checkpoint has
`[init_z], data_mean, data_std, transition_model.<schedule table>, transition_model.model.<transition>, transition_model.x_from_z.<head>`,
and `init_encoder.` for mazes, `embed.` for time series. Here the network's keys become ours, and sizes are read off the tensors. What leaves
no trace in a checkpoint must come from the configuration.

Torch numbers an optimiser's parameters in the order they were passed. The released code passed the network's, in the order of its state
dict, each once (a U-Net's rotary frequencies are one parameter that many layers hold), then what an RNN learns beside its network; it
forgot `embed.` of time series.
"""

from __future__ import annotations

import os
import pickle
import re
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffusion_forcing.arrays import load_torch
from diffusion_forcing.errors import UserError, explaining_os_errors, first_line, require

MOMENTS = ("exp_avg", "exp_avg_sq")
_NETWORKS = ("diffusion_model.model.", "transition_model.model.", "transition_model.x_from_z.")
_BESIDE = ("init_z", "init_encoder.")
_SHARED = ".freqs"


def trained(keys: Iterable[str]) -> list[str]:
    """Of the `keys` of a released state dict, those of the optimiser's parameters, in its order."""
    keys = list(keys)
    network = [key for key in keys if key.startswith(_NETWORKS)]
    shared = [key for key in network if key.endswith(_SHARED)][1:]
    return [key for key in network if key not in shared] + [key for key in keys if key.startswith(_BESIDE)]


def state_by_name(
    content: Mapping[str, Any], state: Mapping[str, Tensor], our_name: Callable[[str], str | None]
) -> dict[str, dict[str, Tensor]] | None:
    """`step`, `exp_avg` and `exp_avg_sq` of each weight, by our names; None where there are none or they do not match the weights.

    content: the whole checkpoint; state: its tensors by released names; our_name: ours, or None for a constant of ours.
    """
    try:
        numbered = content["optimizer_states"][0]["state"]
        names = trained(state)
        if not all(0 <= number < len(names) for number in numbered):
            return None
        found = {}
        for number, name in enumerate(names):
            if number not in numbered and our_name(name) is None:
                continue  # a constant has no state
            entry = numbered[number]
            if any(entry[moment].shape != state[name].shape for moment in MOMENTS) or entry["step"].numel() != 1:
                return None
            ours = our_name(name)
            if ours is not None:
                found[ours] = {key: entry[key] for key in ("step", *MOMENTS)}
    except (KeyError, IndexError, TypeError, AttributeError):
        return None
    return found


NETWORK_PREFIX = "diffusion_model.model."
_COMPILED = "_orig_mod."
_OWN = ("data_mean", "data_std", "diffusion_model.", "transition_model.", *_BESIDE, "embed.")  # what is not a metric's
_USE = (
    "released checkpoints hold `diffusion_model.model.transformer.*` (v1.5 planning), `diffusion_model.model.….init_conv.*` (v1.5 video) "
    "or `transition_model.*` (the RNN line)"
)


def load(path: Path) -> dict[str, Any]:
    """The fields of a `LoadedCheckpoint` of the released checkpoint in the file `path`. UserError, one line, if it is not one
    of either line; nothing in it is run."""
    path = Path(path)
    content = _read(path)
    state = _state_dict(path, content)
    recurrent = any(key.startswith(RNN_PREFIX) for key in state)
    task = rnn_task(state) if recurrent else _task(path, state)
    statistics: dict[str, Tensor] = {key: state[key].float() for key in ("data_mean", "data_std") if key in state}
    try:
        if recurrent:
            weights, tables = rnn_weights(state), rnn_tables(state)
            metadata = rnn_metadata(task, weights, tables, statistics)
        else:
            own = {key: value for key, value in state.items() if key.startswith("diffusion_model.")}
            weights = {
                key.removeprefix(NETWORK_PREFIX): own.pop(key) for key in list(own) if key.startswith(NETWORK_PREFIX)
            }
            tables = {key.removeprefix("diffusion_model."): value for key, value in own.items()}
            read_sizes = video_metadata if task == "video" else planner_metadata
            metadata = read_sizes(weights, tables, statistics)
            weights = our_names(weights) if task == "video" else weights
    except (KeyError, IndexError, ValueError, ArithmeticError, RuntimeError, TypeError) as error:
        raise UserError(
            f"{path} is an incomplete {task} checkpoint ({error} is missing or misshapen); get it again"
        ) from None
    step = content.get("global_step", 0)
    return {
        "path": path,
        "kind": "released",
        "metadata": metadata,
        "weights": weights,
        "statistics": statistics,
        "buffers": tables,
        "step": step if isinstance(step, int) and 0 <= step < 2**63 else 0,
        "optimizer": state_by_name(content, state, _renaming(recurrent, task)),
    }


def _renaming(recurrent: bool, task: str) -> Callable[[str], str | None]:
    """From the released name of a network's weight to ours; to None for a constant."""
    if recurrent:
        return lambda key: key.removeprefix(RNN_PREFIX)
    if task != "video":
        return lambda key: key.removeprefix(NETWORK_PREFIX)
    return lambda key: next(iter(our_names({key.removeprefix(NETWORK_PREFIX): torch.empty(0)})), None)


def _read(path: Path) -> Mapping[str, Any]:
    """The file's content through torch's restricted unpickler, which builds tensors and plain containers only."""
    with (
        explaining_os_errors(f"cannot read the checkpoint {path}", "check the path and its permissions"),
        path.open("rb") as file,
    ):
        start, size = file.read(4), os.fstat(file.fileno()).st_size
    require(size != 0, f"{path} is empty; get the checkpoint again")
    zipped = start == b"PK\x03\x04"
    if zipped and not zipfile.is_zipfile(path):
        raise UserError(f"{path} is truncated ({size} bytes, the end of the file is missing); get it again")
    if not zipped and start[:1] != b"\x80":
        raise UserError(
            f"{path} is not a checkpoint (neither a PyTorch file nor one of our folders); pass load=<a checkpoint>"
        )
    try:
        content = load_torch(path, mmap=zipped)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} may run code when opened ({error}), so it was not opened; where it was made, save its weights alone: "
            "torch.save(checkpoint['state_dict'], FILE)"
        ) from None
    except Exception as error:  # a hostile file makes torch raise anything
        raise UserError(f"{path} is damaged or truncated ({first_line(error)}); get it again") from None
    kind = type(content).__name__
    require(isinstance(content, Mapping), f"{path} holds a {kind}, not a checkpoint; pass load=<a checkpoint>")
    return content


def _state_dict(path: Path, content: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors by name, compiled prefixes removed. Also a bare state dict, as upstream's `rewrite_compiled_ckpt`
    writes it."""
    state = content.get("state_dict", content)
    kind = type(state).__name__
    require(isinstance(state, Mapping), f"{path} has a state_dict that is a {kind}; pass load=<a checkpoint>")
    tensors = {str(key).replace(_COMPILED, ""): value for key, value in state.items() if isinstance(value, Tensor)}
    require(bool(tensors), f"{path} holds no weights; pass load=<a checkpoint>")
    own = {key: value for key, value in tensors.items() if key.startswith(_OWN)}
    return {key: value.detach().clone() for key, value in (own or tensors).items()}


def _task(path: Path, state: Mapping[str, Tensor]) -> str:
    """`planning` or `video`; UserError that says what the checkpoint is if it is neither."""
    network = [key.removeprefix(NETWORK_PREFIX) for key in state if key.startswith(NETWORK_PREFIX)]
    if any(key.startswith("transformer.layers.") for key in network):
        return "planning"
    is_video = any("init_conv." in key or "down_blocks." in key for key in network)
    require(
        is_video, f"{path} is not a Diffusion Forcing checkpoint (its first weight is '{next(iter(state))}'); {_USE}"
    )
    return "video"


# ---------------------------------------------------------------------- sizes, read off the tensors
# KeyError, IndexError or ValueError with the key of a tensor that is missing or has another rank.

Tensors = Mapping[str, Tensor]

_ONLY_LAYOUT = re.compile(r"(?<![^.])(?:module|wrapper|attn_block)\.")
"""Parts of the released U-Net's names that only reshape."""
_CONSTANTS = ("rotary_emb.freqs", "rotary_time_pos_embedding.freqs")
COLOURS = 3


def planner_metadata(weights: Tensors, tables: Tensors, statistics: Tensors) -> dict[str, Any]:
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


def video_metadata(released: Tensors, tables: Tensors, statistics: Tensors) -> dict[str, Any]:
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


RNN_PREFIX = "transition_model."
_RNN_NETWORK = (f"{RNN_PREFIX}model.", f"{RNN_PREFIX}x_from_z.")
_RNN_BESIDE = (*_BESIDE, "embed.")
_OF_VECTORS = ("x_from_z.weight", "model.mlp_before_gru.", "model.gru_stack.")
"""What only a network of vectors has: that of images has convolutions in these places."""
_CONDITION = "model.external_cond_mlp.0.weight"


def rnn_task(state: Mapping[str, Tensor]) -> str:
    """`planning`, `prediction`, `robot` or `video`."""
    mean = state.get("data_mean")
    if any(key.startswith("init_encoder.") for key in state):
        return "planning"
    if any(key.removeprefix(RNN_PREFIX).startswith(_OF_VECTORS) for key in state):
        return "prediction"
    return "robot" if mean is not None and mean.ndim == 3 else "video"


def rnn_weights(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The network's, by our names, and what is trained beside it."""
    own = {key: value for key, value in state.items() if key.startswith((*_RNN_NETWORK, *_RNN_BESIDE))}
    return {key.removeprefix(RNN_PREFIX): value for key, value in own.items()}


def rnn_tables(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The diffusion schedule's."""
    own = {
        key: value for key, value in state.items() if key.startswith(RNN_PREFIX) and not key.startswith(_RNN_NETWORK)
    }
    return {key.removeprefix(RNN_PREFIX): value for key, value in own.items()}


def rnn_metadata(
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
