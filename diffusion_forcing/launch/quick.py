"""A command starts without what Lightning imports in case of need: torch._dynamo, matplotlib and scipy take half of the time.

`import_lightning` imports Lightning with stand-ins for the few names that are looked up meanwhile. Whoever needs the real thing gets it:
matplotlib and scipy when they are imported, torch._dynamo when something is compiled. For our own command's process alone; a program that
imports this package imports Lightning as it is.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import ExitStack
from functools import wraps
from importlib import import_module
from types import ModuleType
from typing import Any
from unittest.mock import patch

_OPTIONAL = ("matplotlib", "scipy")
_DYNAMO = "torch._dynamo"


class _Compiled(type):
    """isinstance(x, OptimizedModule), for whoever has this class in its place: nothing is one before torch._dynamo is imported."""

    def __instancecheck__(cls, instance: Any) -> bool:
        real = sys.modules.get(f"{_DYNAMO}.eval_frame")
        return real is not None and isinstance(instance, real.OptimizedModule)


class _Later(ModuleType):
    """A module that is imported when an attribute of it is asked for."""

    def __getattr__(self, name: str) -> Any:
        return getattr(import_module(self.__name__), name)


def import_lightning() -> None:
    """Import `lightning.pytorch`, and let its optimisers do without torch._dynamo until something is compiled."""
    if "lightning" in sys.modules or _DYNAMO in sys.modules:
        return
    try:
        _import_with_stand_ins()
    except Exception:  # another version looks up more: as it is, then
        for name in [name for name in sys.modules if name.partition(".")[0] in ("lightning", "torchmetrics")]:
            del sys.modules[name]
        import lightning.pytorch  # noqa: F401


def _import_with_stand_ins() -> None:
    import lightning_utilities.core.imports as requirements
    import torch

    met, installed = requirements.RequirementCache.__bool__, requirements.package_available
    dynamo: Any = ModuleType(_DYNAMO)
    dynamo.OptimizedModule = _Compiled("OptimizedModule", (), {})
    dynamo.disable = _hidden
    with ExitStack() as stack:
        stack.callback(sys.modules.pop, _DYNAMO)
        sys.modules[_DYNAMO] = dynamo
        asked = requirements.RequirementCache
        stack.enter_context(patch.object(asked, "__bool__", lambda it: it.requirement not in _OPTIONAL and met(it)))
        for module in (requirements, sys.modules["lightning_utilities"]):
            if hasattr(module, "package_available"):
                there = lambda name: name not in _OPTIONAL and installed(name)  # noqa: E731
                stack.enter_context(patch.object(module, "package_available", there))
        import lightning.pytorch  # noqa: F401
    plot: Any = sys.modules.get("torchmetrics.utilities.plot")
    if plot is not None:  # it draws all the same
        plot.matplotlib, plot.plt = _Later("matplotlib"), _Later("matplotlib.pyplot")
    for name in ("add_param_group", "zero_grad", "state_dict", "load_state_dict"):
        function = getattr(getattr(torch.optim.Optimizer, name), "__wrapped__", None)
        if function is not None:  # where PyTorch keeps the function that its compiler shall not see
            function.__dynamo_disable = _hidden(function)
    for kind in [kind for kind in vars(torch.optim).values() if isinstance(kind, type)]:
        step = vars(kind).get("step")
        if hasattr(step, "__wrapped__"):
            kind.step = _step(step)  # type: ignore[attr-defined]


def _step(step: Any) -> Callable[..., Any]:
    """An optimiser's `step` without its wrapper, which would import the compiler; with it once that is imported."""

    @wraps(step)
    def run(self: Any, *args: Any, **kwargs: Any) -> Any:
        if _DYNAMO in sys.modules:
            return step(self, *args, **kwargs)
        with import_module("torch").set_grad_enabled(self.defaults["differentiable"]):
            return step.__wrapped__(self, *args, **kwargs)

    return run


def _hidden(function: Callable[..., Any], recursive: bool = True, **options: Any) -> Callable[..., Any]:
    """`torch._dynamo.disable`, which hides a function from the compiler, where the compiler is imported only if something is compiled."""
    hidden: Callable[..., Any] | None = None

    @wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        nonlocal hidden
        if _DYNAMO not in sys.modules:
            return function(*args, **kwargs)
        hidden = hidden or sys.modules[_DYNAMO].disable(function, recursive, **options)
        return hidden(*args, **kwargs)

    return run
