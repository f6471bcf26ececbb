"""Where tasks compute, and in what precision."""

from __future__ import annotations

import contextlib
import resource
import sys
from collections.abc import Iterator
from typing import Any

import torch
from lightning.pytorch.plugins.precision import Precision
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor, nn

from diffusion_forcing.experiments.options import precision_name

MEGABYTE = 2**20
_DTYPES = {
    "16-mixed": torch.float16,
    "16-true": torch.float16,
    "bf16-mixed": torch.bfloat16,
    "bf16-true": torch.bfloat16,
    "64-true": torch.float64,
}


def device() -> torch.device:
    """The accelerator if there is one, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


@contextlib.contextmanager
def computing(task: str, precision: str | int, where: torch.device) -> Iterator[None]:
    """For tasks outside Lightning's loops: networks in the block compute as experiment.<task>.precision says.

    16 bits are 32 where there is no GPU; so are 64, whose data and weights only a Lightning trainer converts.
    """
    dtype = _DTYPES.get(precision_name(task, precision), torch.float64)
    if dtype == torch.float64 or (dtype == torch.float16 and where.type != "cuda"):
        yield
        return
    with torch.autocast(where.type, dtype=dtype):
        yield


@contextlib.contextmanager
def matmul_precision(name: str) -> Iterator[None]:
    """In the block, float32 matrix products have the precision `name` of `torch.set_float32_matmul_precision`."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(name)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


class TruePrecision(Precision):
    """64-true, bf16-true and 16-true, while a trainer runs; afterwards the module has 32 bits again.

    64 bits: weights, tables and data. 16 bits: trained matrices and convolutions, under autocast. Data, noise
    schedules, norms, averaged weights, losses and metrics need more digits: 1,000 noise levels are 507 numbers in bf16.
    """

    def __init__(self, precision: str) -> None:
        self.precision = precision  # type: ignore[assignment]
        self.dtype = _DTYPES[precision]
        self._is_double = self.dtype == torch.float64
        self._module = nn.Module()
        self._converted: list[Tensor] = []

    def convert_module(self, module: nn.Module) -> nn.Module:
        self._module = module
        tensors = [*module.parameters(), *module.buffers()]
        if not self._is_double:
            tensors = [tensor for tensor in tensors if tensor.requires_grad and tensor.ndim > 1]
        self._converted = [tensor for tensor in tensors if tensor.dtype == torch.float32]
        self._convert(self.dtype)
        return module

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Lightning restores weights before it converts the module: again, for the digits that 32 bits do not have."""
        if self._is_double:
            self._module.load_state_dict(checkpoint["state_dict"])

    def convert_input(self, data: Any) -> Any:
        def doubled(tensor: Tensor) -> Tensor:
            return tensor.double() if tensor.is_floating_point() else tensor

        return apply_to_collection(data, Tensor, doubled) if self._is_double else data

    @contextlib.contextmanager
    def forward_context(self) -> Iterator[None]:
        if not self._is_double:
            with torch.autocast(self._converted[0].device.type if self._converted else "cpu", dtype=self.dtype):
                yield
            return
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        try:
            yield
        finally:
            torch.set_default_dtype(before)

    def teardown(self) -> None:
        self._convert(torch.float32)
        self._converted = []

    def _convert(self, dtype: torch.dtype) -> None:
        for tensor in self._converted:
            tensor.data = tensor.data.to(dtype)


def peak_memory(where: torch.device) -> float:
    """Most memory held so far, in megabytes: by the GPU's tensors, or by this process."""
    if where.type == "cuda":
        return torch.cuda.max_memory_allocated(where) / MEGABYTE
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, kilobytes elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / MEGABYTE
