"""Errors that a user can cause.

Whatever a user can get wrong (a key, a file, a horizon, a maze) raises `UserError`; the command line prints its message as one `error:` line
and exits with code 2. Our own mistakes stay ordinary exceptions with a traceback.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager

_LONGEST = 1000
"""Characters of a message."""


class UserError(Exception):
    """A mistake in a request. The message is one line: what is wrong, the value given, what is allowed, what to do. A
    value from a file that has several lines is put on one; a very long one is shortened."""

    def __init__(self, message: object = "") -> None:
        text = " ".join(str(message).splitlines())
        super().__init__(text if len(text) <= _LONGEST else f"{text[: _LONGEST // 2]} … {text[-_LONGEST // 2 :]}")

    everywhere = False
    """Whether all processes of a run find the same mistake: only the main one prints it, the others exit quietly."""


def did_you_mean(name: str, allowed: Iterable[str]) -> str:
    """` (did you mean 'x'?)` with the nearest of `allowed`, or "" if none is near."""
    near = difflib.get_close_matches(name, list(allowed), n=1, cutoff=0.6)
    return f" (did you mean '{near[0]}'?)" if near else ""


def first_line(error: BaseException) -> str:
    """The first line of an exception's message, or the exception's name."""
    lines = str(error).strip().splitlines()
    return lines[0].strip() if lines else type(error).__name__


def check_choice(key: str, value: object, allowed: Collection[object]) -> None:
    """`UserError` unless `value` is one of `allowed`. key: the name a user knows it by, like dataset.source."""
    if value not in allowed:
        choices = [str(choice) for choice in allowed]
        hint = did_you_mean(str(value), choices)
        raise UserError(f"{key} {value!r} is unknown; choose one of {', '.join(choices)}{hint}")


def check_minimum(key: str, value: float | None, least: float) -> None:
    """`UserError` unless `value` is at least `least` (NaN is not) or None."""
    if value is not None and not value >= least:
        raise UserError(f"{key} must be at least {least}, got {value}")


def check_positive(key: str, value: float) -> None:
    """`UserError` unless `value` is above 0."""
    if not value > 0:
        raise UserError(f"{key} is {value}; it must be above 0")


def check_not_negative(key: str, value: float) -> None:
    """`UserError` unless `value` is a finite number, 0 or more."""
    if not (math.isfinite(value) and value >= 0):
        raise UserError(f"{key} is {value}; it must be 0 or more")


def check_range(key: str, value: float, low: float, high: float) -> None:
    """`UserError` unless `value` lies in low…high, both included."""
    if not low <= value <= high:
        raise UserError(f"{key} is {value}; it must lie in {low}…{high}")


def check_fixed(where: str, options: object, only: Mapping[str, object], why: str) -> None:
    """`UserError` unless each attribute of `options` that `only` names has that value. why: whose limit it is."""
    for name, value in only.items():
        if getattr(options, name) != value:
            raise UserError(
                f"{where}.{name} is {getattr(options, name)!r}, but {why} needs {value!r}; leave it at that"
            )


def require(holds: bool, message: str) -> None:
    """`UserError` with `message` unless `holds`: for the checks of options."""
    if not holds:
        raise UserError(message)


@contextmanager
def explaining_os_errors(problem: str, remedy: str) -> Iterator[None]:
    """Turn an OSError inside the block into the `UserError` "{problem}: {reason}; {remedy}"."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{problem}: {error.strerror or error}; {remedy}") from error
