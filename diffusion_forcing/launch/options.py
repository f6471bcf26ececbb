"""A yaml mapping becomes a typed, frozen dataclass, or one line saying which key is wrong.

`build_options(cls, mapping, where)` walks the dataclass's annotations. Only conversions that lose nothing are made: an int where a
float is asked, a whole float (2e5) where an int is, a list where a tuple is, text where a path is. True is never a number.
"""

from __future__ import annotations

import dataclasses
import difflib
import sys
import types
import typing
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from diffusion_forcing.errors import UserError, did_you_mean

T = TypeVar("T")
LARGEST = 2**63
"""No option is as large: nan, infinity, and what no tensor's size can be, are refused."""
_SEQUENCES: tuple[Any, ...] = (list, tuple, Sequence)
_MAPPINGS: tuple[Any, ...] = (dict, Mapping)
_NAMES = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    type(None): "null",
    Path: "a path",
}


def build_options(cls: type[T], mapping: Any, where: str, *, everywhere: Sequence[str] = ()) -> T:
    """An instance of the dataclass `cls` from `mapping`; `where` is the mapping's dotted key, "" at the root.

    `everywhere`: all dotted keys of the configuration, for the advice about a key that was written in the wrong place.

    Raises UserError naming the dotted key: unknown (with the nearest valid one), of a wrong type, missing, or refused by the
    dataclass's own `__post_init__`.
    """
    if not isinstance(mapping, Mapping):
        raise UserError(f"{where or 'the configuration'} is a group of keys ({_fields(cls)}), got {_shown(mapping)}")
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}  # type: ignore[arg-type]
    for key in mapping:
        if key not in fields:
            siblings = [_join(where, name) for name in fields]
            raise UserError(unknown_key(_join(where, str(key)), siblings, everywhere))
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and name not in mapping:
            key = _join(where, name)
            raise UserError(f"{key} is missing: give {key}=VALUE, {describe(hints[name])}")
    values = {key: _convert(hints[key], value, _join(where, key)) for key, value in mapping.items()}
    try:
        return cls(**values)
    except UserError as refusal:
        message = str(refusal)
        raise UserError(message if not where or where in message else f"{where}: {message}") from refusal
    except ValueError as refusal:
        raise UserError(f"{where}: {refusal}" if where else str(refusal)) from refusal


def unknown_key(key: str, allowed: Sequence[str], everywhere: Sequence[str] = ()) -> str:
    """The line for a key that does not exist. `allowed` are its would-be siblings, `everywhere` all keys there are, both dotted.

    Names the nearest sibling, else a key of the same or a near last name elsewhere, else every sibling.
    """
    last = key.rpartition(".")[2]
    for candidates, cutoff in ((allowed, 0.6), (everywhere, 0.8)):
        by_last = {name.rpartition(".")[2]: name for name in candidates if name != key}
        near = difflib.get_close_matches(last, list(by_last), n=1, cutoff=cutoff)
        if near:
            return f"unknown key {key} (did you mean '{by_last[near[0]]}'?)"
    return f"unknown key {key}; there are: {', '.join(sorted(allowed)) or 'none'}"


def describe(hint: Any) -> str:
    """A type as a user reads it: `a number`, `one of pyramid, trapezoid`, `a list of numbers`."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Literal:
        return "one of " + ", ".join(str(choice) for choice in inner)
    if origin in (Union, types.UnionType):
        return " or ".join(describe(option) for option in inner)
    if hint in _SEQUENCES or origin in _SEQUENCES or _abstract(origin, Sequence):
        if not inner:
            return "a list"
        if origin is tuple and inner[-1] is not Ellipsis:
            return "a list of " + ", ".join(describe(item) for item in inner)
        return f"a list, each {describe(inner[0])}"
    if hint in _MAPPINGS or origin in _MAPPINGS or _abstract(origin, Mapping):
        return "a group of keys"
    if dataclasses.is_dataclass(hint):
        return f"a group of keys ({_fields(hint)})"
    return _NAMES.get(hint, getattr(hint, "__name__", str(hint)))


def _convert(hint: Any, value: Any, where: str) -> Any:
    """`value` as the annotation `hint` asks for it, or a UserError naming `where`."""
    origin, inner = get_origin(hint), get_args(hint)
    if hint is Any or hint is object:
        return value
    if origin in (Union, types.UnionType):
        return _convert_union(inner, value, where, hint)
    if origin is Literal:
        return _convert_literal(inner, value, where)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return value if isinstance(value, hint) else build_options(hint, value, where)
    if hint in _SEQUENCES or origin in _SEQUENCES or _abstract(origin, Sequence):
        return _convert_sequence(origin or hint, inner, value, where, hint)
    if hint in _MAPPINGS or origin in _MAPPINGS or _abstract(origin, Mapping):
        if not isinstance(value, Mapping):
            raise _wrong(where, hint, value)
        item = inner[1] if inner else Any
        return {str(key): _convert(item, entry, _join(where, str(key))) for key, entry in value.items()}
    return _convert_plain(hint, value, where)


def _convert_plain(hint: Any, value: Any, where: str) -> Any:
    """bool, int, float, str, None, Path. True is no number, nor is nan or infinity; 2.0 is a whole one."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and -LARGEST < value < LARGEST
    if hint is float and number:
        return float(value)
    if hint is int and number and int(value) == value:
        return int(value)
    if hint is Path and isinstance(value, str):
        return Path(value)
    if (hint is bool and isinstance(value, bool)) or (hint is str and isinstance(value, str)):
        return value
    if hint in (None, type(None)) and value is None:
        return None
    if hint not in (bool, int, float, str, Path, None, type(None)):
        raise TypeError(f"{where}: an option cannot be annotated {hint!r}")
    raise _wrong(where, hint, value)


def _convert_union(options: Sequence[Any], value: Any, where: str, hint: Any) -> Any:
    """The first member that takes the value as it is, else the first that takes it converted."""
    if value is None and type(None) in options:
        return None
    exact = [option for option in options if isinstance(option, type) and type(value) is option]
    for option in [*exact, *options]:
        try:
            return _convert(option, value, where)
        except UserError:
            continue
    inner = [option for option in options if dataclasses.is_dataclass(option) or get_origin(option) is not None]
    if inner and (isinstance(value, (Mapping, list)) or len(inner) == len(options) - 1):
        return _convert(inner[0], value, where)  # raises the line about what is inside
    raise _wrong(where, hint, value)


def _convert_literal(choices: Sequence[Any], value: Any, where: str) -> Any:
    for choice in choices:
        if choice == value and isinstance(choice, bool) == isinstance(value, bool):
            return choice
    near = did_you_mean(value, [str(choice) for choice in choices]) if isinstance(value, str) else ""
    raise UserError(f"{where} is one of {', '.join(str(choice) for choice in choices)}, got {_shown(value)}{near}")


def _convert_sequence(kind: Any, inner: Sequence[Any], value: Any, where: str, hint: Any) -> Any:
    if not isinstance(value, (list, tuple)):
        raise _wrong(where, hint, value)
    if kind is tuple and inner and inner[-1] is not Ellipsis:
        if len(value) != len(inner):
            raise UserError(f"{where} is a list of {len(inner)} values, got {len(value)}: {_shown(value)}")
        return tuple(
            _convert(item, entry, f"{where}[{i}]") for i, (item, entry) in enumerate(zip(inner, value, strict=True))
        )
    item = inner[0] if inner else Any
    entries = [_convert(item, entry, f"{where}[{i}]") for i, entry in enumerate(value)]
    return entries if kind is list else tuple(entries)


def _wrong(where: str, hint: Any, value: Any) -> UserError:
    example = (
        f"; lists are written {where}=[1,2]"
        if "a list" in describe(hint) and not isinstance(value, (list, tuple))
        else ""
    )
    return UserError(f"{where} is {describe(hint)}, got {_shown(value)}{example}")


def _shown(value: Any) -> str:
    """A value as a user would have typed it, cut to a line."""
    text = (
        {None: "null", True: "true", False: "false"}[value] if value is None or isinstance(value, bool) else repr(value)
    )
    return text if len(text) <= 80 else text[:77] + "…"


def _fields(cls: Any) -> str:
    return ", ".join(field.name for field in dataclasses.fields(cls) if field.init)


def _join(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key


def _abstract(origin: Any, kind: Any) -> bool:
    return isinstance(origin, type) and origin is not str and issubclass(origin, kind)


# From a section of the configuration to a class and its options: `_target_` names the class, the class names its `Options`.

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
