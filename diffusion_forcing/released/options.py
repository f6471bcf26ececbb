"""The network and the options of a released model, so that its checkpoints and recordings can be run here.

`released_network` builds the network of either line from the sizes in a checkpoint. The v1.5 configuration is one mapping, `cfg.algorithm`,
dataset statistics included; this is the one place where it becomes a `PlanningOptions` or a `VideoOptions`. To run a recording or a
checkpoint of the released code:

    options = planning_options_from_released(config)     # the resolved `cfg.algorithm` it was made with
    planning = Planning(options)
    planning.load_weights(checkpoints.load(path))        # or planning.network.load_state_dict(…)
    planner = planning.planner(guidance_scale=released_guidance_scale(options.guidance_scale, batch))
    frames = planner.plan_normalized(start, goal, horizon, noise=noise)

Ours is batch-first; the released code was time-first.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from diffusion_forcing.algorithms.base import DiffusionOptions, TransformerOptions
from diffusion_forcing.algorithms.planning.algorithm import PlanningOptions
from diffusion_forcing.algorithms.planning.guidance import RELEASED_BATCH
from diffusion_forcing.algorithms.video import UNetOptions, VideoDiffusionOptions, VideoOptions
from diffusion_forcing.arrays import load_torch, read_npy
from diffusion_forcing.checkpoints.format import LoadedCheckpoint
from diffusion_forcing.diffusion import build_schedule
from diffusion_forcing.diffusion.schedules import BETA_SCHEDULES
from diffusion_forcing.errors import UserError, did_you_mean, first_line, require
from diffusion_forcing.limits import check_limit
from diffusion_forcing.networks import Transformer
from diffusion_forcing.networks.recurrent import recurrent_mlp, recurrent_unet
from diffusion_forcing.networks.unet3d import UNet3D

LINES = {"rnn": "the paper's RNN line", "v1.5": "the attention line (v1.5)"}
_RESOLUTION = 256  # any that can be halved as often as a released U-Net does: its parameters do not depend on it


def released_network(metadata: Mapping[str, Any]) -> nn.Module:
    """The network of a released checkpoint with these `metadata`, without memory of its own (on torch's `meta` device).

    What is trained beside the network of an RNN for time series (`embed`) is a module of that name in it.
    """
    with torch.device("meta"):
        network = _attention(metadata) if metadata["line"] == "v1.5" else _recurrent(metadata)
        if "variates" in metadata:
            network.add_module("embed", nn.Embedding(metadata["variates"], 1))
    return network


def check_released(checkpoint: LoadedCheckpoint) -> None:
    """UserError with the first key in which a released `checkpoint` is not the network that its sizes say."""
    network = released_network(checkpoint.metadata)
    what = (
        f"the {checkpoint.metadata['task']} network of {LINES[checkpoint.metadata['line']]}; get the checkpoint again"
    )
    path, own = checkpoint.path, network.state_dict()
    for key, value in own.items():
        shape = list(value.shape)
        require(key in checkpoint.weights, f"{path} lacks '{key}' {shape} of {what}")
        found = list(checkpoint.weights[key].shape)
        require(found == shape, f"{path}: '{key}' is {found}, not {shape} as in {what}")
    for key in checkpoint.weights:
        require(key in own, f"{path}: '{key}' has no place in {what}")


def _attention(metadata: Mapping[str, Any]) -> nn.Module:
    sizes = dict(metadata["architecture"])
    if metadata["task"] == "planning":  # its heads leave no trace
        return Transformer(
            metadata["x_dim"], external_cond_dim=metadata["external_cond_dim"], **{"attn_heads": 1, **sizes}
        )
    if "attn_heads" not in sizes:
        sizes |= {"attn_heads": 1, "attn_dim_head": metadata["attention_width"]}
    sizes["attn_resolutions"] = [_RESOLUTION // 2**halved for halved in metadata["halvings"]]
    return UNet3D(metadata["channels"] * metadata["frame_stack"], _RESOLUTION, **sizes)


def _recurrent(metadata: Mapping[str, Any]) -> nn.Module:
    z_shape = metadata["z_shape"]
    common = {
        key: metadata[key]
        for key in ("network_size", "num_gru_layers", "external_cond_dim", "learnable_init_z", "self_condition")
    }
    if "num_mlp_layers" in metadata:
        return recurrent_mlp(
            metadata["x_dim"],
            *z_shape,
            num_mlp_layers=metadata["num_mlp_layers"],
            start_dim=metadata.get("start_dim", 0),
            **common,
        )
    channels, height, width = z_shape if len(z_shape) == 3 else (*z_shape, _RESOLUTION, _RESOLUTION)
    return recurrent_unet(metadata["x_dim"], (channels, height, width), **common)


UNREAD = ("x_shape", "data_mean", "data_std")  # upstream filled them in from the statistics
UNREAD_IN_VIDEO = ("x_shape", "metadata")
UNREAD_IN_DIFFUSION = ("use_snr", "use_cum_snr")  # never read: min-SNR weighting is on unless use_fused_snr


def _sections(
    config: Mapping[str, Any], unread: Sequence[str], *, needed: str, task: str
) -> tuple[dict[str, Any], dict[str, Any], Mapping[str, Any]]:
    """What is read of a released `config`: its algorithm, diffusion and architecture. UserError where one is missing."""
    algorithm = {key: value for key, value in config.items() if key not in unread}
    diffusion = algorithm.pop("diffusion", None)
    architecture = diffusion.get("architecture") if isinstance(diffusion, Mapping) else None
    if not isinstance(diffusion, Mapping) or not isinstance(architecture, Mapping) or needed not in config:
        raise UserError(
            f"this is no released {task} configuration ({needed}, diffusion and diffusion.architecture are needed); "
            f"pass the resolved cfg.algorithm of algorithm=df_{task}"
        )
    own = {key: value for key, value in diffusion.items() if key not in (*UNREAD_IN_DIFFUSION, "architecture")}
    return algorithm, own, architecture


def planning_options_from_released(config: Mapping[str, Any]) -> PlanningOptions:
    """The options of the planner that the released `config` describes: the resolved `cfg.algorithm` of `algorithm=df_planning`.

    As it stands, but for: keys the released code never reads (`use_snr`, `use_cum_snr`, `x_shape`, `data_mean`, `data_std`) are left
    out; lists become tuples; `chunk_size` is −1, because a plan was always drawn whole; `ema_decay` is 0, because there was no
    average; what the released planner did not have keeps the setting that reproduces it (`guidance_weights=released`, one continuation,
    the PD law). `config` is not changed. A key that no released planner has, or a missing one, is a UserError.
    """
    algorithm, own, architecture = _sections(config, UNREAD, needed="observation_mean", task="planning")
    return PlanningOptions(
        **_known(PlanningOptions, algorithm, "") | {"chunk_size": -1, "ema_decay": 0.0},
        diffusion=DiffusionOptions(
            **_known(DiffusionOptions, own, "diffusion."),
            architecture=TransformerOptions(**_known(TransformerOptions, architecture, "diffusion.architecture.")),
        ),
    )


def video_options_from_released(config: Mapping[str, Any]) -> VideoOptions:
    """The options of the video model that the released `config` describes: the resolved `cfg.algorithm` of `algorithm=df_video`.

    As it stands, but for: keys the released code never reads, or reads in the data set alone, are left out; `x_shape` is
    `observation_shape`; frames that make no whole token are dropped; `data_mean` and `data_std` may name an `.npy` or `.pt` file; what the
    released model did not have is set as it was (`norm=clip`, no cache, no average). `config` is not changed. A key that no released video
    model has, a missing one, or a file that cannot be read, is a UserError.
    """
    algorithm, own, architecture = _sections(config, UNREAD_IN_VIDEO, needed="x_shape", task="video")
    sizes = {key: value for key, value in architecture.items() if key != "resolution"}
    for name in ("data_mean", "data_std"):
        if isinstance(algorithm.get(name), str):
            algorithm[name] = _read_statistic(name, Path(algorithm[name]))
        if isinstance(algorithm.get(name), list):
            algorithm[name] = _flat(algorithm[name])
    stack = algorithm.get("frame_stack", 1)
    for name in ("n_frames", "context_frames"):  # upstream dropped the frames that make no whole token
        if isinstance(algorithm.get(name), int) and isinstance(stack, int) and stack > 0:
            algorithm[name] -= algorithm[name] % stack
    return VideoOptions(
        **_known(VideoOptions, algorithm, "") | {"norm": "clip", "cache": "none", "ema_decay": 0.0},
        observation_shape=tuple(config["x_shape"]),
        diffusion=VideoDiffusionOptions(
            **_known(VideoDiffusionOptions, own, "diffusion."),
            architecture=UNetOptions(**_known(UNetOptions, sizes, "diffusion.architecture.")),
        ),
    )


def released_video_structure(metadata: Mapping[str, Any], resolution: int) -> dict[str, Any]:
    """What a released video checkpoint with these `metadata` (`checkpoints.LoadedCheckpoint`) says of the configuration, as nested keys
    under `algorithm`, for frames of `resolution` pixels a side. The released normalisation keeps no cache; there was no conditioning."""
    architecture = dict(metadata["architecture"])
    architecture["attn_resolutions"] = sorted(resolution // 2**halved for halved in metadata["halvings"])
    diffusion: dict[str, Any] = {"architecture": architecture}
    if "timesteps" in metadata:
        diffusion["timesteps"] = metadata["timesteps"]
    if schedule := _schedule_of(metadata):
        diffusion["beta_schedule"] = schedule
    return {
        "norm": "clip",
        "cache": "none",
        "external_cond_dim": 0,
        "frame_stack": metadata["frame_stack"],
        "diffusion": diffusion,
    }


def released_recurrent_structure(metadata: Mapping[str, Any], resolution: int | None) -> dict[str, Any]:
    """As `released_video_structure`, for a checkpoint of the paper's RNN line: of video, or of mazes, where there is no `resolution`."""
    sizes = ("network_size", "num_gru_layers", "num_mlp_layers", "self_condition", "timesteps")
    diffusion = {key: metadata[key] for key in sizes if key in metadata}
    if schedule := _schedule_of(metadata):
        diffusion["beta_schedule"] = schedule
    structure = {"frame_stack": metadata["frame_stack"], "z_shape": metadata["z_shape"], "diffusion": diffusion}
    if metadata["task"] == "prediction":  # released networks take no conditions, though they carry an embedding
        structure |= {"network": "rnn", "scaling": "global", "use_covariates": metadata["external_cond_dim"] > 0}
    if resolution is not None:
        channels, *sides = metadata["z_shape"]
        structure["z_shape"] = [channels, *(sides or (resolution, resolution))]
        structure["learnable_init_z"] = metadata["learnable_init_z"]
        if not metadata["external_cond_dim"]:
            structure["external_cond_dim"] = 0
    return structure


def _schedule_of(metadata: Mapping[str, Any]) -> str | None:
    """The schedule with default arguments that leaves as much signal at a quarter, half and three quarters; None: another."""
    powers: list[float] = metadata.get("signal_power", [])
    for name in BETA_SCHEDULES if powers else ():
        table = build_schedule(name, metadata["timesteps"]).alphas_cumprod
        ours = [table[len(table) * quarter // 4].item() for quarter in (1, 2, 3)]
        if all(math.isclose(one, other, rel_tol=1e-4) for one, other in zip(powers, ours, strict=True)):
            return name
    return None


def released_guidance_scale(guidance_scale: float, batch: int) -> float:
    """The `guidance_scale` that gives here what the released code did with `guidance_scale` for `batch` plans at once.

    The released strength per plan is divided by the batch; ours never is, and stands for the default batch of 128 (docs/method.md §10).
    """
    require(batch >= 1, f"batch is {batch}; the released code planned for 1 start or more at once")
    return guidance_scale * RELEASED_BATCH / batch


def _flat(values: list[Any]) -> tuple[float, ...]:
    """[[[0.4]], [[0.5]], [[0.6]]] as (0.4, 0.5, 0.6)."""
    return tuple(number for value in values for number in (_flat(value) if isinstance(value, list) else (value,)))


def _read_statistic(name: str, path: Path) -> float | list[Any]:
    """The number, or the numbers of each colour, in the array that `path` holds. Nothing in the file is run."""
    try:
        if path.suffix == ".pt":
            array = load_torch(path).numpy()
        else:
            array = read_npy(path)
        check_limit("PIXELS", array.size, "a statistic")
        values = np.asarray(array, dtype=np.float64).flatten().tolist()
    except Exception as error:  # torch and NumPy raise many kinds for a file that is none of theirs
        reason = getattr(error, "strerror", None) or first_line(error)
        raise UserError(
            f"{name} of the released configuration is the file {path}, which cannot be read ({reason}); "
            f"put the file there, or set {name} to its numbers"
        ) from None
    return values[0] if len(values) == 1 else values


def _known(options: type, given: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The values of `given` as arguments of the options class, lists as tuples."""
    allowed = {field.name for field in fields(options)}
    for key in given:
        if key not in allowed:
            raise UserError(
                f"the released configuration has '{where}{key}', which no released planner has{did_you_mean(key, allowed)}"
            )
    return {key: tuple(value) if isinstance(value, list) else value for key, value in given.items()}
