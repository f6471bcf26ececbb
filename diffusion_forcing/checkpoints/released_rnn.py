"""What the tensors of a released checkpoint of the paper's RNN line say: the task and the sizes of its network.

Upstream saved `[init_z], data_mean, data_std, transition_model.<schedule table>, transition_model.model.<transition>,
transition_model.x_from_z.<head>`, and `init_encoder.` for mazes, `embed.` for time series. Here the network's keys lose
`transition_model.`; the others keep their names. Each function raises KeyError or ValueError with the key for a tensor that is missing or
has another rank.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from diffusion_forcing.checkpoints.released_sizes import COLOURS, shape_of, signal_power

PREFIX = "transition_model."
_NETWORK = (f"{PREFIX}model.", f"{PREFIX}x_from_z.")
_BESIDE = ("init_z", "init_encoder.", "embed.")


def task(state: Mapping[str, Tensor]) -> str:
    """`planning`, `prediction`, `robot` or `video`."""
    mean = state.get("data_mean")
    if any(key.startswith("init_encoder.") for key in state):
        return "planning"
    if any(".mlp_before_gru." in key for key in state):
        return "prediction"
    return "robot" if mean is not None and mean.ndim == 3 else "video"


def weights(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The network's, by our names, and what is trained beside it."""
    own = {key: value for key, value in state.items() if key.startswith((*_NETWORK, *_BESIDE))}
    return {key.removeprefix(PREFIX): value for key, value in own.items()}


def tables(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The diffusion schedule's."""
    return {
        key.removeprefix(PREFIX): value
        for key, value in state.items()
        if key.startswith(PREFIX) and not key.startswith(_NETWORK)
    }


def facts(
    of: str, network: Mapping[str, Tensor], tables: Mapping[str, Tensor], statistics: Mapping[str, Tensor]
) -> dict[str, Any]:
    """Facts of a model of task `of`. The objective, the loss weighting and the number of the data's colours leave no trace."""
    size = shape_of(network, "model.time_mlp.1.weight", 2)[1]
    vectors = of in ("planning", "prediction")
    found: dict[str, Any] = {"task": of, "line": "rnn", "network_size": size}
    if vectors:
        x, z = shape_of(network, "x_from_z.weight", 2)
        layers = _mlp_layers(network)
        first = {0: "weight", 1: "mlp.0.weight"}.get(layers, "0.mlp.0.weight")
        inputs = shape_of(network, f"model.mlp_before_gru.{first}", 2)[1]
        condition, told = "model.external_cond_mlp.0.weight", size
        found |= {"x_dim": x, "z_shape": [z], "num_mlp_layers": layers, "num_gru_layers": _gru_layers(network)}
    else:
        z = shape_of(network, "model.final_conv.weight", 4)[0]
        x = shape_of(network, "x_from_z.1.weight", 4)[0]
        inputs = shape_of(network, "model.init_conv.weight", 4)[1]
        condition, told = "model.external_cond_mlp.0.weight", 0
        sides = list(network["init_z"].shape[1:]) if "init_z" in network else []
        found |= {"x_dim": x, "z_shape": [z, *sides], "num_gru_layers": int("model.gru.x2h.weight" in network)}
    conditioned = condition in network
    inputs -= z + (told * (2 if conditioned else 1))
    if inputs not in (x, 2 * x):
        raise ValueError("'model.mlp_before_gru'" if vectors else "'model.init_conv.weight'")
    features = statistics["data_mean"]
    colours = min(COLOURS, x) if features.numel() == 1 else features.shape[0]
    found |= {
        "external_cond_dim": shape_of(network, condition, 2)[1] if conditioned else 0,
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
    prefix = "model.mlp_before_gru."
    named = [key.removeprefix(prefix) for key in network if key.startswith(prefix)]
    if not named:
        raise KeyError("model.mlp_before_gru")
    numbered = [int(key.split(".")[0]) for key in named if re.match(r"\d+\.", key)]
    return max(numbered) + 1 if numbered else int(any(key.startswith("mlp.") for key in named))


def _gru_layers(network: Mapping[str, Tensor]) -> int:
    return 1 + max((int(key.split(".")[2]) for key in network if key.startswith("model.gru_stack.")), default=-1)
