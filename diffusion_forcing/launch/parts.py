"""From a section of the configuration to a class and its options: `_target_` names the class, the class names its `Options`."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from diffusion_forcing.errors import UserError, did_you_mean
from diffusion_forcing.launch.options import build_options

TARGET = "_target_"
_EXTRA = "'diffusion-forcing[planning]'"
"""The extra with what our own tasks need beyond the package's dependencies."""


def read_part(section: Mapping[str, Any], where: str, *, everywhere: Sequence[str] = ()) -> tuple[type, Any]:
    """The class and the built options of one section (`dataset`, `algorithm` or `experiment`)."""
    target = section.get(TARGET)
    if not isinstance(target, str) or not target:
        raise UserError(f"{where}.{TARGET} names the class to build, as package.module.Class; got {target!r}")
    cls = import_class(target, f"{where}.{TARGET}")
    kind = _kind(cls)
    if kind and kind != where:
        raise UserError(f"{where}.{TARGET}={target} is of the kind '{kind}'; name a class of the kind '{where}'")
    options = getattr(cls, "Options", None)
    if not (isinstance(options, type) and dataclasses.is_dataclass(options)):
        raise UserError(f"{where}.{TARGET}={target} has no class attribute Options (a frozen dataclass of its options)")
    values = {key: value for key, value in section.items() if key != TARGET}
    return cls, build_options(options, values, where, everywhere=everywhere)


def import_class(target: str, where: str) -> type:
    """The class at a dotted path. Raises UserError where module or name do not exist or the module cannot be imported."""
    module_name, _, name = target.rpartition(".")
    if not module_name:
        raise UserError(f"{where}={target} is not a dotted path; write package.module.Class")
    here = str(Path.cwd())
    if here not in sys.path and "" not in sys.path:
        sys.path.insert(0, here)  # the user's own classes, when started through the installed command
    try:
        module = import_module(module_name)
    except ModuleNotFoundError as failure:
        missing = failure.name or module_name
        if module_name == missing or module_name.startswith(f"{missing}."):
            raise UserError(
                f"{where}={target}: there is no module '{missing}' (looked in {here} and the installed packages)"
            ) from failure
        wanted = _EXTRA if module_name.startswith("diffusion_forcing.") else missing
        raise UserError(
            f"{where}={target} needs the package '{missing}', which is not installed: pip install {wanted}"
        ) from failure
    except UserError:
        raise
    except SyntaxError as failure:
        raise UserError(f"{where}={target}: {failure.filename} line {failure.lineno}: {failure.msg}") from failure
    except Exception as failure:
        raise UserError(
            f"{where}={target}: importing it failed with {type(failure).__name__}: {failure} (debug=True shows where)"
        ) from failure
    found = getattr(module, name, None)
    if found is None:
        raise UserError(
            f"{where}={target}: module '{module_name}' has no '{name}'{did_you_mean(name, _public(module))}"
        )
    if not isinstance(found, type):
        raise UserError(f"{where}={target} is not a class")
    return found


def _kind(cls: type) -> str:
    """Which part a class is by its methods; '' where they do not tell."""

    def has(*names: str) -> bool:
        return all(callable(getattr(cls, name, None)) for name in names)

    if has("run_task"):
        return "experiment"
    if has("training_step", "configure_optimizers"):
        return "algorithm"
    return "dataset" if has("training", "validation") else ""


def _public(module: Any) -> list[str]:
    return [name for name in vars(module) if not name.startswith("_")]
