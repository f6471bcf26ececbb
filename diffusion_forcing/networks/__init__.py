"""Networks: modules (b, t, …) → (b, t, …) that know no schedule. `network(x, k, conditions, memory) -> (output, memory)`."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_PUBLIC = {
    "Transformer": "transformer",
    "UNet3D": "unet3d",
    "WorldNetwork": "world",
    "Recurrent": "recurrent",
    "recurrent_mlp": "recurrent",
    "recurrent_unet": "recurrent",
    "SensorNetwork": "sensors",
    "KVCache": "memory",
    "FrameCache": "memory",
    "Latent": "recurrent",
}
"""Public name: its module, imported when the name is first used."""

__all__ = [*_PUBLIC]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_PUBLIC[name]}"), name)
