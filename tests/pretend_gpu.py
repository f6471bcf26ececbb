"""A GPU without one: a device that is not the CPU, refuses what CUDA refuses, and counts what would wait for it.

CUDA refuses tensors or generators of two devices in one operation. The host waits where a number is read, where a boolean mask
indexes, and at a blocking copy. The numbers of the device lie on the CPU, so results must be the CPU's. `install` registers a
backend with PyTorch, so it belongs in a process of its own, before the package is imported.
"""

from __future__ import annotations

import sys
from collections import Counter
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

NAME = "pretend"
DEVICE = torch.device("cpu")
"""The pretended device, once installed."""
aten = torch.ops.aten
READS = {aten._local_scalar_dense, aten.nonzero, aten.masked_select, aten.equal, aten._unique2}
INDEXING = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_}

waits: Counter[tuple[str, str]] = Counter()
"""How often the host waited since `waits.clear()`, by kind and by line of the package."""
_CPUGenerator = torch.Generator


class Generator(_CPUGenerator):
    """A generator that remembers the device it was made for."""

    where: str

    def __new__(cls, device: Any = "cpu") -> Any:
        made = _CPUGenerator.__new__(cls, "cpu")
        made.where = torch.device(device).type
        return made


class Pretend(torch.Tensor):
    """A tensor on the device. real_: its numbers, on the CPU."""

    real_: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, real: torch.Tensor) -> Any:
        layout = {"strides": real.stride(), "storage_offset": real.storage_offset(), "dtype": real.dtype}
        made = torch.Tensor._make_wrapper_subclass(cls, real.shape, **layout, device=f"{NAME}:0")  # type: ignore[attr-defined]
        made.real_ = real
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class Operations(TorchDispatchMode):
    """Sends every operation on tensors through the device, those that only make a tensor there too."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class Calls(torch.overrides.TorchFunctionMode):
    """What has to be caught before it reaches an operation: made tensors, read lists, fused kernels, generators."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, here = kwargs or {}, any(isinstance(a, Pretend) for a in args)
        where = torch.device(kwargs.get("device") or "cpu").type
        if func is torch.Tensor.tolist and here:
            _wait("read")
            return args[0].real_.tolist()
        if func is torch.tensor and where == NAME:
            _wait("copy")
            return Pretend(torch.tensor(*args, **{**kwargs, "device": "cpu"}))
        if getattr(func, "__name__", "") == "gru_cell" and here:
            return _gru_cell(*args)
        if func is F.scaled_dot_product_attention and here:
            return _attention(*args, **kwargs)
        generator = kwargs.get("generator")
        assert generator is None or getattr(generator, "where", "cpu") == where, (
            f"{func}: a generator of another device"
        )
        return func(*args, **kwargs)


def install() -> None:
    """Register the device with PyTorch. Before the package is imported, which makes a subclass of `torch.Generator`."""
    global DEVICE
    from torch.utils.backend_registration import _setup_privateuseone_for_python_backend as register

    torch.Generator = Generator  # type: ignore[misc]
    numbers = {"is_available": 1, "is_initialized": 1, "device_count": 1}
    names = (*numbers, "current_device", "_is_in_bad_fork", "manual_seed_all", "get_rng_state", "set_rng_state")
    functions = {name: staticmethod(lambda *_, name=name: numbers.get(name, 0)) for name in names}
    functions["get_amp_supported_dtype"] = staticmethod(lambda: [torch.float16, torch.bfloat16])
    register(rename=NAME, backend_module=type("Backend", (), functions)())
    DEVICE = torch.device(NAME, 0)


def to_device(module: Any) -> Any:
    """A LightningModule with its parameters and buffers on the device."""
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                moved = Pretend(parameter.data.clone())
                part._parameters[name] = torch.nn.Parameter(moved, parameter.requires_grad)
        for name, buffer in part._buffers.items():
            part._buffers[name] = None if buffer is None else Pretend(buffer.clone())
    module._device = DEVICE
    return module


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """`func` on the numbers of its tensors; AssertionError where CUDA would refuse it."""
    packet, device = func.overloadpacket, kwargs.get("device")
    there = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
    ours, made = [t for t in there if isinstance(t, Pretend)], device is not None and device.type == NAME
    if not ours and not made:
        return func(*args, **kwargs)
    down = (packet is aten._to_copy and device is not None and not made) or (
        packet is aten.copy_ and not isinstance(args[0], Pretend)
    )
    if packet in INDEXING:
        assert isinstance(args[0], Pretend), f"{func}: an index on the GPU for a tensor on the CPU"
        for index in args[1]:
            if index is not None and (index.dtype == torch.bool or not isinstance(index, Pretend)):
                _wait("mask or CPU index")
    elif packet in (aten._to_copy, aten.copy_):
        blocking = not (kwargs.get("non_blocking") or (packet is aten.copy_ and len(args) > 2 and args[2]))
        if down or (blocking and len(ours) < len(there)):
            _wait("copy")
    elif packet in READS:
        _wait("read")
    elif ours:
        assert all(isinstance(t, Pretend) or not t.ndim for t in there), f"{func}: tensors on the GPU and on the CPU"

    kwargs_there = kwargs if device is None else {**kwargs, "device": torch.device("cpu")}
    real_args, real_kwargs = tree_map(lambda t: t.real_ if isinstance(t, Pretend) else t, (args, kwargs_there))
    if down:
        return func(args[0] if packet is aten.copy_ else real_args[0], *real_args[1:], **real_kwargs)
    out = tree_map(lambda t: Pretend(t) if isinstance(t, torch.Tensor) else t, func(*real_args, **real_kwargs))
    if ours and any(argument.alias_info for argument in func._schema.arguments):
        return return_and_correct_aliasing(func, args, kwargs, out)
    return out


def _wait(kind: str) -> None:
    frame: Any = sys._getframe(1)
    while frame is not None and "/diffusion_forcing/" not in frame.f_code.co_filename:
        frame = frame.f_back
    line = "outside" if frame is None else f"{frame.f_code.co_filename.split('/')[-1]}:{frame.f_lineno}"
    waits[kind, line] += 1


def _gru_cell(x: Any, h: Any, *weights: Any) -> torch.Tensor:
    (rx, ux, nx), (rh, uh, nh) = (F.linear(v, weights[i], weights[2 + i]).chunk(3, -1) for i, v in enumerate((x, h)))
    return torch.lerp(torch.tanh(nx + torch.sigmoid(rx + rh) * nh), h, torch.sigmoid(ux + uh))


def _attention(query: Any, key: Any, value: Any, *, attn_mask: Any = None, is_causal: bool = False) -> torch.Tensor:
    assert query.shape[:-2].numel() <= 65_535, f"attention of {query.shape[:-2].numel()} heads: above CUDA's grid limit"
    bias = None
    if attn_mask is not None:
        bias = torch.zeros_like(attn_mask, dtype=torch.float32).masked_fill(~attn_mask, -torch.inf)
    return aten._scaled_dot_product_attention_math(query, key, value, bias, 0.0, is_causal)[0]
