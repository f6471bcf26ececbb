"""The network that a released checkpoint of either line is of, from what its tensors say, and whether the checkpoint is that network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from diffusion_forcing.checkpoints.loaded import LoadedCheckpoint
from diffusion_forcing.errors import UserError
from diffusion_forcing.networks import Transformer
from diffusion_forcing.networks.recurrent import recurrent_mlp, recurrent_unet
from diffusion_forcing.networks.unet3d import UNet3D

LINES = {"rnn": "the paper's RNN line", "v1.5": "the attention line (v1.5)"}
_RESOLUTION = 256  # any that can be halved as often as a released U-Net does: its parameters do not depend on it


def released_network(facts: Mapping[str, Any]) -> nn.Module:
    """The network of a released checkpoint with these `facts`, without memory of its own (on torch's `meta` device).

    What is trained beside the network of an RNN for time series (`embed`) is a module of that name in it.
    """
    with torch.device("meta"):
        network = _attention(facts) if facts["line"] == "v1.5" else _recurrent(facts)
        if "variates" in facts:
            network.add_module("embed", nn.Embedding(facts["variates"], 1))
    return network


def check_released(checkpoint: LoadedCheckpoint) -> None:
    """UserError with the first key in which a released `checkpoint` is not the network that its sizes say."""
    network = released_network(checkpoint.facts)
    what = f"the {checkpoint.facts['task']} network of {LINES[checkpoint.facts['line']]}"
    own = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    for key, shape in own.items():
        if key not in checkpoint.weights:
            raise UserError(f"{checkpoint.path} lacks '{key}' {list(shape)} of {what}; get the checkpoint again")
        found = tuple(checkpoint.weights[key].shape)
        if found != shape:
            raise UserError(
                f"{checkpoint.path}: '{key}' is {list(found)}, in {what} it is {list(shape)}; get the checkpoint again"
            )
    for key in checkpoint.weights:
        if key not in own:
            raise UserError(f"{checkpoint.path}: '{key}' has no place in {what}; get the checkpoint again")


def _attention(facts: Mapping[str, Any]) -> nn.Module:
    sizes = dict(facts["architecture"])
    if facts["task"] == "planning":  # its heads leave no trace
        return Transformer(facts["x_dim"], external_cond_dim=facts["external_cond_dim"], **{"attn_heads": 1, **sizes})
    if "attn_heads" not in sizes:
        sizes |= {"attn_heads": 1, "attn_dim_head": facts["attention_width"]}
    sizes["attn_resolutions"] = [_RESOLUTION // 2**halved for halved in facts["halvings"]]
    return UNet3D(facts["channels"] * facts["frame_stack"], _RESOLUTION, **sizes)


def _recurrent(facts: Mapping[str, Any]) -> nn.Module:
    z_shape = facts["z_shape"]
    common = {
        key: facts[key]
        for key in ("network_size", "num_gru_layers", "external_cond_dim", "learnable_init_z", "self_condition")
    }
    if "num_mlp_layers" in facts:
        return recurrent_mlp(
            facts["x_dim"],
            *z_shape,
            num_mlp_layers=facts["num_mlp_layers"],
            start_dim=facts.get("start_dim", 0),
            **common,
        )
    channels, height, width = z_shape if len(z_shape) == 3 else (*z_shape, _RESOLUTION, _RESOLUTION)
    return recurrent_unet(facts["x_dim"], (channels, height, width), **common)
