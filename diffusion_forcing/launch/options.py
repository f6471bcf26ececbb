"""A section of the configuration becomes the class that `_target_` names and its typed options (`diffusion_forcing/options.py`)."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from diffusion_forcing.errors import UserError, did_you_mean, require
from diffusion_forcing.launch.overrides import TARGET
from diffusion_forcing.options import build_options

_METHODS = {
    "experiment": ("run_task",),
    "algorithm": ("training_step", "configure_optimizers"),
    "dataset": ("training", "validation"),
}
"""The methods by which a class of each kind is recognised, most specific kind first."""


def read_part(section: Mapping[str, Any], where: str, *, everywhere: Sequence[str] = ()) -> tuple[type, Any]:
    """The class and the options of one section: `dataset`, `algorithm`, `experiment` or a tracker."""
    target = section.get(TARGET)
    if not isinstance(target, str) or not target:
        raise UserError(f"{where}.{TARGET} must be a class, as package.module.Class; got {target!r}")
    cls = import_class(target, f"{where}.{TARGET}")
    kinds = [kind for kind, methods in _METHODS.items() if all(callable(getattr(cls, name, None)) for name in methods)]
    if kinds and where in _METHODS and kinds[0] != where:
        raise UserError(f"{where}.{TARGET}={target} is a class for {kinds[0]}, not for {where}")
    options = getattr(cls, "Options", None)
    if not (isinstance(options, type) and dataclasses.is_dataclass(options)):
        raise UserError(f"{where}.{TARGET}={target} needs a class attribute Options, a frozen dataclass of its options")
    values = {key: value for key, value in section.items() if key != TARGET}
    return cls, build_options(options, values, where, everywhere=everywhere)


def import_class(target: str, where: str) -> type:
    """The class at a dotted path. Raises UserError if it does not exist or its module cannot be imported."""
    module_name, _, name = target.rpartition(".")
    require(bool(module_name), f"{where}={target} is not a dotted path; write package.module.Class")
    here = str(Path.cwd())
    if here not in sys.path and "" not in sys.path:
        sys.path.append(here)  # the installed command does not add the user's folder
    try:
        module = import_module(module_name)
    except ModuleNotFoundError as failure:
        missing = failure.name or module_name
        if f"{module_name}.".startswith(f"{missing}."):
            raise UserError(
                f"{where}={target}: there is no module '{missing}' in {here} or among the installed packages"
            ) from failure
        # our own tasks need more than the package's dependencies
        package = "'diffusion-forcing[planning]'" if module_name.startswith("diffusion_forcing.") else missing
        raise UserError(f"{where}={target} needs the package '{missing}': pip install {package}") from failure
    except UserError:
        raise
    except SyntaxError as failure:
        raise UserError(f"{where}={target}: {failure.filename} line {failure.lineno}: {failure.msg}") from failure
    except Exception as failure:
        raise UserError(
            f"{where}={target}: its import failed with {type(failure).__name__}: {failure} (debug=True shows where)"
        ) from failure
    found = getattr(module, name, None)
    if not isinstance(found, type):
        public = [name for name, value in vars(module).items() if isinstance(value, type)]
        raise UserError(f"{where}={target}: '{module_name}' has no class '{name}'{did_you_mean(name, public)}")
    return found
