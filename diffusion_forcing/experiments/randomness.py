"""The process's random state as a value: Python, NumPy, PyTorch on the CPU and on every GPU."""

# ruff: noqa: NPY002 (NumPy's global generator is one of those this module is about)

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from diffusion_forcing.errors import UserError


def seed_all(seed: int) -> None:
    """Start every global generator from `seed`, 0 … 2³² − 1; UserError for another one."""
    if not 0 <= seed < 2**32:
        raise UserError(f"seed={seed} is out of range; pass an integer from 0 to {2**32 - 1}")
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def get_state() -> dict[str, Any]:
    """The state of every global generator, for `set_state`."""
    state: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": np.random.get_state(),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def set_state(state: dict[str, Any]) -> None:
    """Put every global generator back; the GPUs' only where there are as many as there were."""
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    if len(state.get("cuda", ())) == torch.cuda.device_count() > 0:
        torch.cuda.set_rng_state_all(state["cuda"])


@contextlib.contextmanager
def owned_by(*seeds: int) -> Iterator[None]:
    """Inside, the CPU's generators start from `seeds`; outside they go on as if nothing had been drawn. Leaves GPUs
    alone: ~0.1 ms."""
    seed = int(np.random.SeedSequence(seeds).generate_state(1)[0])
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        random.seed(seed)
        np.random.seed(seed)
        torch.default_generator.manual_seed(seed)
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])
