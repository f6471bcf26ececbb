"""debug=True: what passes from batch to tokens to network to loss, once, a line a stage: names, shapes, types, ranges."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

_STEPS = ("training_step", "validation_step", "test_step")
_ENCODERS = ("encode",)
_MOST_ITEMS = 8  # of a batch that are shown


class Shapes:
    """While entered, the first call of each stage of an algorithm is written down. `lines()` are what is new since they were asked for."""

    def __init__(self, algorithm: nn.Module) -> None:
        self._algorithm = algorithm
        self._found: dict[str, str] = {}
        self._told: set[str] = set()
        self._undo: list[Callable[[], None]] = []

    def __enter__(self) -> Shapes:
        for name in (*_STEPS, *_ENCODERS):
            if callable(getattr(self._algorithm, name, None)):
                self._watch_method(name)
        # networks may be made once the data is known; theirs are found when a step begins
        self._watch_networks()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for undo in reversed(self._undo):
            undo()
        self._undo.clear()

    def lines(self) -> list[str]:
        """A line for each stage that was met and not told yet, a heading before the first."""
        new = [name for name in self._found if name not in self._told]
        heading = ["debug: shapes, stage by stage"] if new and not self._told else []
        self._told |= set(new)
        width = max((len(name) for name in new), default=0)
        return heading + [f"  {name:<{width}}  {self._found[name]}" for name in new]

    def _note(self, stage: str, text: Callable[[], str]) -> None:
        if stage not in self._found:
            self._found[stage] = text()

    def _watch_method(self, name: str) -> None:
        method = getattr(self._algorithm, name)

        @functools.wraps(method)
        def watched(*words: Any, **named: Any) -> Any:
            if name in _STEPS:
                self._watch_networks()
                batch = words[0] if words else named.get("batch")
                self._note("batch", lambda: described(batch))
            result = method(*words, **named)
            if name in _ENCODERS:
                self._note("tokens", lambda: described(result))
            elif name == "training_step":
                loss = result.get("loss") if isinstance(result, Mapping) else result
                self._note("loss", lambda: described(loss))
            return result

        own = self._algorithm.__dict__
        before = own.get(name)
        own[name] = watched

        def undo() -> None:
            if before is None:
                own.pop(name, None)
            else:
                own[name] = before

        self._undo.append(undo)

    def _watch_networks(self) -> None:
        for name, network in networks(self._algorithm).items():
            if getattr(network, "_shapes_are_watched", False):
                continue
            network.__dict__["_shapes_are_watched"] = True
            hook = network.register_forward_hook(functools.partial(self._on_forward, name), with_kwargs=True)
            self._undo += [functools.partial(network.__dict__.pop, "_shapes_are_watched", None), hook.remove]

    def _on_forward(self, name: str, network: nn.Module, words: Any, named: dict[str, Any], result: Any) -> None:
        def text() -> str:
            given = dict(zip(_parameters(network), words, strict=False)) | named
            count = sum(parameter.numel() for parameter in network.parameters())
            return f"{described(given)} → {described(result)}   {type(network).__name__}, {count:,} parameters"

        self._note(name, text)


def networks(algorithm: nn.Module) -> dict[str, nn.Module]:
    """Its `network`, where it has one; else every module it is made of, by name."""
    own = getattr(algorithm, "network", None) if getattr(algorithm, "forcing", True) is not None else None
    if isinstance(own, nn.Module):
        return {"network": own}
    forcing = getattr(getattr(algorithm, "forcing", None), "network", None)
    if isinstance(forcing, nn.Module):
        return {"network": forcing}
    return dict(algorithm.named_children())


def described(value: Any) -> str:
    """`x (8, 16, 2) float32 in [-1.3, 2], k (8, 16) int64 in [0, 999]`: the tensors in a value, by name where they have one."""
    if isinstance(value, Tensor):
        return _tensor(value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        value = dict(zip(value._fields, value, strict=True))
    if isinstance(value, Mapping):
        parts = [f"{name} {described(item)}" for name, item in value.items() if _has_tensor(item)]
    elif isinstance(value, (list, tuple)):
        parts = [described(item) for item in value if _has_tensor(item)]
    else:
        return type(value).__name__
    more = [f"and {len(parts) - _MOST_ITEMS} more"] if len(parts) > _MOST_ITEMS else []
    return ", ".join(parts[:_MOST_ITEMS] + more) or "no tensors"


def _tensor(value: Tensor) -> str:
    kind = str(value.dtype).removeprefix("torch.")
    if value.numel() == 1:
        return f"{tuple(value.shape)} {kind} = {value.detach().item():.4g}"
    text = f"{tuple(value.shape)} {kind}"
    if value.numel() and value.dtype != torch.bool and not value.is_complex():
        low, high = value.detach().aminmax()
        text += f" in [{low.item():.4g}, {high.item():.4g}]"
    return text


def _has_tensor(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(map(_has_tensor, value.values()))
    if isinstance(value, (list, tuple)):
        return any(map(_has_tensor, value))
    return isinstance(value, Tensor)


def _parameters(network: nn.Module) -> list[str]:
    return list(inspect.signature(network.forward).parameters)
