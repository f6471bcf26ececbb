"""One progress bar for long data work: what, how much, rate and time left. Off a terminal it prints a line now and then instead."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

_SECONDS_BETWEEN_LINES = 10.0


class Bar(Protocol):
    """What the work sees of its bar."""

    def advance(self, amount: int) -> None:
        """Say that `amount` more units are done."""


class _Silent:
    def advance(self, amount: int) -> None:
        """Say nothing."""


class _Lines:
    """A line at most every ten seconds, for logs."""

    def __init__(self, what: str, total: int, done: int, unit: str) -> None:
        self.what, self.total, self.done, self.unit = what, total, done, unit
        self._begin, self._first = time.monotonic(), done
        self._said = self._begin

    def advance(self, amount: int) -> None:
        self.done += amount
        now = time.monotonic()
        if now - self._said < _SECONDS_BETWEEN_LINES and self.done != self.total:
            return
        self._said = now
        rate = (self.done - self._first) / max(now - self._begin, 1e-9)
        left = f", {(self.total - self.done) / max(rate, 1e-9):.0f} s left" if self.total else ""
        done = f"{self.done:,} of {self.total:,}" if self.total else f"{self.done:,}"
        print(f"{self.what}: {done} {self.unit}, {rate:,.0f}/s{left}", file=sys.stderr)


class _Rich:
    def __init__(self, what: str, total: int, done: int, unit: str) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            SpinnerColumn,
            TextColumn,
            TimeRemainingColumn,
        )

        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn(unit),
        )
        self.progress = Progress(
            *columns, TextColumn("{task.fields[rate]}"), TimeRemainingColumn(), console=Console(stderr=True)
        )
        self._task = self.progress.add_task(what, total=total or None, completed=done, rate="")
        self._begin, self._made, self._unit = time.monotonic(), 0, unit

    def advance(self, amount: int) -> None:
        self._made += amount
        rate = self._made / max(time.monotonic() - self._begin, 1e-9)
        self.progress.update(self._task, advance=amount, rate=f"{rate:,.0f} {self._unit}/s")


@contextmanager
def progress_bar(what: str, *, total: int, done: int = 0, unit: str = "steps", show: bool = True) -> Iterator[Bar]:
    """A bar on stderr for `total` units (0: not known) of which `done` were made earlier; silent without `show`."""
    if not show:
        yield _Silent()
    elif sys.stderr.isatty():
        bar = _Rich(what, total, done, unit)
        with bar.progress:
            yield bar
    else:
        yield _Lines(what, total, done, unit)
