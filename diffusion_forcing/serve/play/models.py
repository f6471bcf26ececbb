"""The shipped models of the page, and the commands that do the same: both go through the command line's own plan."""

from __future__ import annotations

import shlex
import threading
from collections.abc import Sequence
from typing import Any

from diffusion_forcing.checkpoints import format as native
from diffusion_forcing.experiments.checkpointing import load_weights
from diffusion_forcing.experiments.devices import device
from diffusion_forcing.launch.run import Plan, plan

_COMPOSING = threading.Lock()


def command(*words: str) -> str:
    """The command with `words`, as one types it into a shell."""
    return shlex.join(["python", "-m", "main", *words])


def plan_of(words: Sequence[str]) -> Plan:
    """The checked command line `words`; one at a time, since Hydra composes with a global state."""
    with _COMPOSING:
        return plan(list(words))


def built(planned: Plan) -> Any:
    """The algorithm of a command line, with the weights that it loads, ready to sample."""
    assert planned.checkpoint is not None
    algorithm = planned.classes["algorithm"](planned.options["algorithm"])
    load_weights(algorithm, native.load(planned.checkpoint))
    return algorithm.to(device()).eval()
