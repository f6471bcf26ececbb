"""The optimiser's state of a released checkpoint, by the names of the weights it belongs to.

Torch numbers an optimiser's parameters in the order they were given. Upstream gave it the network's, in the order of its state dict, each
once (a U-Net's rotary frequencies are one parameter that many layers hold), and after them what an RNN learns beside its network. It
forgot `embed.` of time series.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor

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
