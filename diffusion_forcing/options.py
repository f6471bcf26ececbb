"""Plain values become typed options, or one line that names the wrong key.

`build_options(cls, mapping, where)` converts a yaml mapping, or the options in a checkpoint, to the frozen dataclass `cls` by its annotations.
Only lossless conversions are made: an int to a float, a whole float (2e5) to an int, a list to a tuple, a string to a path. `true` is never
a number.
"""

from __future__ import annotations

import dataclasses
import difflib
import numbers
import types
import typing
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from diffusion_forcing.errors import (
    UserError,
    check_choice,
    check_minimum,
    check_not_negative,
    check_positive,
    check_range,
    did_you_mean,
)

T = TypeVar("T")

# Types of options with limits, which `check_limits` checks.
Count = Annotated[int, partial(check_minimum, least=1)]
Natural = Annotated[int, partial(check_minimum, least=0)]
Positive = Annotated[float, check_positive]
NotNegative = Annotated[float, check_not_negative]
Share = Annotated[float, partial(check_range, low=0, high=1)]
Decay = Annotated[float, partial(check_range, low=0, high=0.999999)]

LARGEST = 2**63
"""Numbers must be smaller, which excludes nan, infinity and impossible tensor sizes."""
_SCALARS = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    type(None): "null",
    Path: "a path",
}


def build_options(cls: type[T], mapping: Any, where: str, *, everywhere: Sequence[str] = ()) -> T:
    """An instance of the dataclass `cls` from `mapping`.

    where: dotted key of the mapping, "" at the root.
    everywhere: all dotted keys of the configuration, to find the right place of a misplaced key.

    Raises UserError naming the dotted key if it is unknown, missing, of the wrong type, or refused by `__post_init__`.
    """
    if not isinstance(mapping, Mapping):
        raise _wrong(where, cls, mapping)
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
    except (UserError, ValueError) as refusal:
        message = str(refusal)
        raise UserError(message if where in message else f"{where}: {message}") from refusal


def check_limits(where: str, options: Any) -> None:
    """UserError for the first field of a dataclass whose value its annotation does not allow: a `Literal`, or a type with
    limits such as `Count`, `Share | None` or `tuple[Count, ...]`. where: dotted key of the options."""
    for name, choices, checks in _limits(type(options)):  # type: ignore[arg-type]
        key, value = f"{where}.{name}", getattr(options, name)
        if choices:
            check_choice(key, value, choices)
        for number in value if isinstance(value, (tuple, list)) else (value,):
            for check in checks if isinstance(number, numbers.Real) else ():
                check(key, number)


@cache
def _limits(cls: type) -> list[tuple[str, tuple[str, ...], list[Callable[[str, Any], None]]]]:
    """Each field's name, the choices of its `Literal`, and the checks in its annotation and in those of base classes."""

    def checks(hint: Any) -> list[Any]:
        own = [check for check in getattr(hint, "__metadata__", ()) if callable(check)]
        return [*own, *(check for inner in get_args(hint) for check in checks(inner))]

    bases = [typing.get_type_hints(base, include_extras=True) for base in cls.__mro__ if dataclasses.is_dataclass(base)]
    found = []
    for name in (field.name for field in dataclasses.fields(cls)):
        hints = [hints[name] for hints in bases if name in hints]
        choices = get_args(hints[0]) if get_origin(hints[0]) is Literal else ()
        found.append((name, choices, list(dict.fromkeys(check for hint in hints for check in checks(hint)))))
    return found


def unknown_key(key: str, allowed: Sequence[str], everywhere: Sequence[str] = ()) -> str:
    """The error for a key that does not exist: names the nearest of its siblings `allowed`, else of all keys `everywhere`."""
    last = key.rpartition(".")[2]
    for candidates, cutoff in ((allowed, 0.6), (everywhere, 0.8)):
        by_last = {name.rpartition(".")[2]: name for name in candidates if name != key}
        near = difflib.get_close_matches(last, list(by_last), n=1, cutoff=cutoff)
        if near:
            return f"unknown key {key} (did you mean '{by_last[near[0]]}'?)"
    return f"unknown key {key}; known: {', '.join(sorted(allowed)) or 'none'}"


def describe(hint: Any) -> str:
    """A type in words: `a number`, `one of pyramid, trapezoid`, `a list, each a number`."""
    origin, inner = get_origin(hint) or hint, get_args(hint)
    if origin is Literal:
        return "one of " + ", ".join(str(choice) for choice in inner)
    if origin in (Union, types.UnionType):
        return " or ".join(describe(option) for option in inner)
    if _is_subclass(origin, Sequence):
        if origin is tuple and inner and inner[-1] is not Ellipsis:
            return "a list of " + ", ".join(describe(item) for item in inner)
        return f"a list, each {describe(inner[0])}" if inner else "a list"
    if dataclasses.is_dataclass(hint):
        return f"a group of keys ({', '.join(field.name for field in dataclasses.fields(hint) if field.init)})"
    if _is_subclass(origin, Mapping):
        return "a group of keys"
    return _SCALARS.get(hint, str(hint))


def _convert(hint: Any, value: Any, where: str) -> Any:
    """`value` as the annotation `hint` requires, or a UserError naming `where`."""
    origin, inner = get_origin(hint) or hint, get_args(hint)
    if hint is Any or hint is object:
        return value
    if origin in (Union, types.UnionType):
        return _convert_union(hint, value, where)
    if origin is Literal:
        for choice in inner:
            if choice == value and isinstance(choice, bool) == isinstance(value, bool):
                return choice
        raise _wrong(where, hint, value, near=did_you_mean(value, map(str, inner)) if isinstance(value, str) else "")
    if dataclasses.is_dataclass(hint):
        return build_options(hint, value, where)  # type: ignore[arg-type]
    if _is_subclass(origin, Sequence) and isinstance(value, list | tuple):
        items = inner or (Any,)
        if origin is tuple and inner and inner[-1] is not Ellipsis:
            if len(value) != len(items):
                raise UserError(f"{where} must have {len(items)} values, got {len(value)}: {_shown(value)}")
        else:
            items = items[:1] * len(value)
        pairs = enumerate(zip(items, value, strict=True))
        entries = [_convert(item, entry, f"{where}[{i}]") for i, (item, entry) in pairs]
        return entries if origin is list else tuple(entries)
    if _is_subclass(origin, Mapping) and isinstance(value, Mapping):
        item = inner[1] if inner else Any
        return {str(key): _convert(item, entry, _join(where, str(key))) for key, entry in value.items()}
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < LARGEST
    if is_number and (hint is float or (hint is int and int(value) == value)):
        return hint(value)
    if hint is Path and isinstance(value, str):
        return Path(value)
    if hint in (bool, str, type(None)) and isinstance(value, hint):
        return value
    if hint not in _SCALARS and not _is_subclass(origin, Collection):
        raise TypeError(f"{where}: an option cannot be annotated {hint!r}")
    raise _wrong(where, hint, value)


def _convert_union(hint: Any, value: Any, where: str) -> Any:
    """The first member that takes the value as it is, else the first that takes it converted."""
    options = get_args(hint)
    for option in sorted(options, key=lambda option: type(value) is not option):
        try:
            return _convert(option, value, where)
        except UserError:
            continue
    nested = [option for option in options if dataclasses.is_dataclass(option) or get_origin(option) is not None]
    if nested and (isinstance(value, (Mapping, list)) or len(nested) == len(options) - 1):
        return _convert(nested[0], value, where)  # raises the more precise error
    raise _wrong(where, hint, value)


def _wrong(where: str, hint: Any, value: Any, *, near: str = "") -> UserError:
    expected = describe(hint)
    example = f"; write lists as {where}=[1,2]" if "a list" in expected and not isinstance(value, (list, tuple)) else ""
    if hint is str and isinstance(value, (int, float)):
        example = f"; text that looks like a number needs quotes in quotes: '\"{value}\"'"
    return UserError(f"{where or 'the configuration'} must be {expected}, got {_shown(value)}{near}{example}")


def _shown(value: Any) -> str:
    """A value as it is typed, cut to fit a line."""
    text = {"None": "null", "True": "true", "False": "false"}.get(repr(value), repr(value))
    return text if len(text) <= 80 else text[:77] + "…"


def leaves(mapping: Mapping[str, Any], where: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and values of a nested mapping; an empty mapping is a value."""
    for key, value in mapping.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{where}{key}.")
        else:
            yield f"{where}{key}", value


def merged(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """Nested `old` with the values of `new`."""
    both = {
        key: merged(old[key], value)
        for key, value in new.items()
        if isinstance(value, Mapping) and isinstance(old.get(key), Mapping)
    }
    return {**old, **new, **both}


def whole_numbers(value: Any) -> list[int]:
    """The sizes of all whole numbers in nested mappings and lists."""
    if isinstance(value, (Mapping, list)):
        entries = value.values() if isinstance(value, Mapping) else value
        return [number for entry in entries for number in whole_numbers(entry)]
    return [abs(value)] if isinstance(value, int) else []


def _join(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key


def _is_subclass(origin: Any, kind: type) -> bool:
    return isinstance(origin, type) and origin is not str and issubclass(origin, kind)
