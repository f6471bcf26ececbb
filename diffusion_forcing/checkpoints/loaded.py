"""What reading any checkpoint gives, ours or a released one."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class LoadedCheckpoint:
    """A checkpoint in memory, on the CPU. Nothing in it has been run; the algorithm decides whether it fits."""

    path: Path
    """The folder (native) or the `.ckpt` file (released)."""
    kind: str
    """`native` (our format) or `released` (a `.ckpt`)."""
    metadata: dict[str, Any]
    """What the weights are for: `task`, `line`, options, shapes. Released: what can be inferred from the tensors."""
    weights: dict[str, Tensor]
    """The network's, named as in `algorithm.network.state_dict()`; averaged ones where the run kept an average."""
    statistics: dict[str, Tensor] = field(default_factory=dict)
    """`data_mean`, `data_std`: one number per feature, data units."""
    buffers: dict[str, Tensor] = field(default_factory=dict)
    """Released only: the tables of the noise schedule (`betas`, `alphas_cumprod`, …), each (K,)."""
    step: int = 0
    """Optimiser steps taken."""
    optimizer: dict[str, dict[str, Tensor]] | None = None
    """Released only: AdamW's state by the weight's name in `weights`; None where it does not match them."""
    training: dict[str, Any] | None = None
    """Lightning's whole checkpoint, for resuming; None unless asked for, and in a shipped checkpoint."""
