"""Imports released checkpoints of both lines: a Lightning `.ckpt`, read without running any of it.

A v1.5 checkpoint has the `state_dict` keys `data_mean`, `data_std`, `diffusion_model.<schedule table>` and `diffusion_model.model.<network>`,
with `_orig_mod.` in some place if the model was compiled, and the networks of its metrics, which are left out. Here the network's keys
become ours, and sizes are read off the tensors (`sizes.py`, which has the RNN line's keys too). What leaves no trace in a checkpoint must
come from the configuration.

Torch numbers an optimiser's parameters in the order they were passed. The released code passed the network's, in the order of its state
dict, each once (a U-Net's rotary frequencies are one parameter that many layers hold), then what an RNN learns beside its network; it
forgot `embed.` of time series.
"""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffusion_forcing.arrays import load_torch
from diffusion_forcing.checkpoints.loaded import LoadedCheckpoint
from diffusion_forcing.errors import UserError, first_line, require
from diffusion_forcing.released import sizes

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


def load(path: Path) -> LoadedCheckpoint:
    """The released checkpoint in the file `path`. UserError, one line, if it is not one of either line;
    nothing in it is run."""
    path = Path(path)
    content = _read(path)
    state = _state_dict(path, content)
    recurrent = any(key.startswith(sizes.PREFIX) for key in state)
    task = sizes.task(state) if recurrent else _task(path, state)
    statistics: dict[str, Tensor] = {key: state[key].float() for key in ("data_mean", "data_std") if key in state}
    try:
        if recurrent:
            weights, tables = sizes.weights(state), sizes.tables(state)
            metadata = sizes.metadata(task, weights, tables, statistics)
        else:
            own = {key: value for key, value in state.items() if key.startswith("diffusion_model.")}
            weights = {
                key.removeprefix(NETWORK_PREFIX): own.pop(key) for key in list(own) if key.startswith(NETWORK_PREFIX)
            }
            tables = {key.removeprefix("diffusion_model."): value for key, value in own.items()}
            read_sizes = sizes.of_video if task == "video" else sizes.of_planning
            metadata = read_sizes(weights, tables, statistics)
            weights = sizes.our_names(weights) if task == "video" else weights
    except (KeyError, IndexError, ValueError, ArithmeticError, RuntimeError, TypeError) as error:
        raise UserError(
            f"{path} is an incomplete {task} checkpoint ({error} is missing or misshapen); get it again"
        ) from None
    step = content.get("global_step", 0)
    return LoadedCheckpoint(
        path=path,
        kind="released",
        metadata=metadata,
        weights=weights,
        statistics=statistics,
        buffers=tables,
        step=step if isinstance(step, int) and 0 <= step < 2**63 else 0,
        optimizer=state_by_name(content, state, _renaming(recurrent, task)),
    )


def _renaming(recurrent: bool, task: str) -> Callable[[str], str | None]:
    """From the released name of a network's weight to ours; to None for a constant."""
    if recurrent:
        return lambda key: key.removeprefix(sizes.PREFIX)
    if task != "video":
        return lambda key: key.removeprefix(NETWORK_PREFIX)
    return lambda key: next(iter(sizes.our_names({key.removeprefix(NETWORK_PREFIX): torch.empty(0)})), None)


def _read(path: Path) -> Mapping[str, Any]:
    """The file's content through torch's restricted unpickler, which builds tensors and plain containers only."""
    try:
        with path.open("rb") as stream:
            start = stream.read(4)
        size = path.stat().st_size
    except OSError as error:
        raise UserError(f"cannot read the checkpoint {path}: {error.strerror or error}") from None
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
