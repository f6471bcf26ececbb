"""Where a task outside Lightning's loops computes, and in what precision."""

from __future__ import annotations

import contextlib
import resource
import sys
from collections.abc import Iterator

import torch

from diffusion_forcing.experiments.options import precision

_AUTOCAST = {
    "16-mixed": torch.float16,
    "16-true": torch.float16,
    "bf16-mixed": torch.bfloat16,
    "bf16-true": torch.bfloat16,
}
MEGABYTE = 2**20


def device() -> torch.device:
    """The accelerator there is, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


@contextlib.contextmanager
def computing(task: str, value: str | int, where: torch.device) -> Iterator[None]:
    """Networks in the block compute as experiment.<task>.precision=`value` says; 16 bits are 32 where there is no GPU."""
    dtype = _AUTOCAST.get(precision(task, value))
    if dtype is None or (dtype == torch.float16 and where.type != "cuda"):
        yield
        return
    with torch.autocast(where.type, dtype=dtype):
        yield


def peak_memory(where: torch.device) -> float:
    """Most memory held so far, in megabytes: by the GPU's tensors, or by this process."""
    if where.type == "cuda":
        return torch.cuda.max_memory_allocated(where) / MEGABYTE
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, kilobytes elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / MEGABYTE
