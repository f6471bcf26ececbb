"""Between an algorithm (any LightningModule) and a checkpoint: what goes in, what comes out, and whether it fits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning.pytorch import LightningModule
from torch import Tensor, nn

from diffusion_forcing.checkpoints import LoadedCheckpoint
from diffusion_forcing.errors import UserError


def describe(module: LightningModule) -> dict[str, Any]:
    """The facts a checkpoint of `module` carries: its `describe()`, or none for a module that has no such method."""
    found = getattr(module, "describe", None)
    return dict(found()) if callable(found) else {}


def sampling_weights(module: LightningModule) -> dict[str, Tensor]:
    """What one samples with: the module's `sampling_weights()`, or its whole state for one that has no such method."""
    found = getattr(module, "sampling_weights", None)
    return dict(found()) if callable(found) else module.state_dict()


def load_weights(module: LightningModule, checkpoint: LoadedCheckpoint) -> None:
    """Put a checkpoint's weights into `module`: its own `load_weights`, or its state dict for one without that method.

    UserError with the first weight that does not fit.
    """
    own = getattr(module, "load_weights", None)
    if callable(own):
        own(checkpoint)
        return
    check_fits(module, checkpoint.weights, checkpoint.path)
    module.load_state_dict(checkpoint.weights)


def check_fits(module: LightningModule, state: Mapping[str, Tensor], source: object) -> None:
    """UserError with the first weight, in the module's order, that `state` (read from `source`) has not or has in
    another shape."""
    ours = module.state_dict()
    for key in [*ours, *state]:
        needed, given = ours.get(key), state.get(key)
        if needed is None or given is None or needed.shape != given.shape:
            there = "is missing" if given is None else f"has shape {tuple(given.shape)}"
            here = "has no such weight" if needed is None else f"needs {tuple(needed.shape)}"
            raise UserError(
                f"checkpoint {source} does not fit {type(module).__name__}: '{key}' {there}, the algorithm {here}; "
                "use the configuration it was trained with"
            )


def compile_network(module: nn.Module, mode: bool | str) -> None:
    """Compile in place, so that weights keep their names: the module's `network` if it has one, else its `forward`.

    `mode`: True, or the name of one of torch.compile's modes.
    """
    target = getattr(module, "network", module)
    target.compile(mode="default" if mode is True else str(mode))
