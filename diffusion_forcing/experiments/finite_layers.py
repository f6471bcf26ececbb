"""debug=True: the first layer whose result is not finite is named, with the step, before the loss is.

PyTorch's anomaly detection names the operation of a backward pass; this is the same for the forward pass.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from diffusion_forcing.errors import UserError


class FiniteLayers(Callback):
    """Looks at what every layer gives, in training. UserError with the layer's name for the first that is not finite of finite input."""

    def __init__(self) -> None:
        self._hooks: list[RemovableHandle] = []
        self._step: Callable[[], int] = lambda: 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._step = lambda: trainer.global_step + 1
        for name, layer in pl_module.named_modules():
            if name:  # inner ones are called, and looked at, before those made of them
                self._hooks.append(layer.register_forward_hook(functools.partial(self._look, name), with_kwargs=True))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._remove()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._remove()

    def _look(self, name: str, layer: nn.Module, words: Any, named: dict[str, Any], result: Any) -> None:
        if not layer.training or _finite(result):
            return
        weights = [key for key, value in layer.named_parameters() if not torch.isfinite(value).all()]
        if weights:
            why = f"its weight {weights[0]} is not finite"
        elif _finite((words, named)):
            why = "what it was given is finite"
        else:
            why = "what it was given is not finite either: it came from outside the layers"
        raise UserError(f"debug: layer {name} ({type(layer).__name__}) gave a nan or inf at step {self._step()}; {why}")

    def _remove(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()


def _finite(value: Any) -> bool:
    if isinstance(value, Tensor):
        return not value.is_floating_point() or bool(torch.isfinite(value).all())
    if isinstance(value, Mapping):
        return all(map(_finite, value.values()))
    if isinstance(value, (list, tuple)):
        return all(map(_finite, value))
    return True
