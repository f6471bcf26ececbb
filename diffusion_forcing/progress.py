"""The progress of long work on stderr: a `rich` bar on a terminal, a plain line every few seconds in a log file."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

LINE_SECONDS = 10.0
"""Seconds between two lines of a log."""
_RATE_SECONDS = 300.0
"""The rate is measured over at most this many last seconds."""


class Bar:
    """Progress of one task, as a context manager: call `advance(n)` after n more units; silent unless `show`."""

    def __init__(
        self,
        description: str,
        *,
        total: int | None,
        done: int = 0,
        unit: str = "steps",
        show: bool = True,
        console: Console | None = None,
        line_seconds: float = LINE_SECONDS,
    ) -> None:
        """total: number of units, 0 if unknown; done: units of an earlier run, which do not count for the rate."""
        self._console = console or Console(stderr=True, soft_wrap=True)
        self._prints_lines = show and not self._console.is_terminal
        self._unit = unit
        self._line_seconds = line_seconds
        self._next_line = time.monotonic() + line_seconds
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            _Rate(unit),
            TimeRemainingColumn(),
            console=self._console,
            speed_estimate_period=_RATE_SECONDS,
            get_time=time.monotonic,
            disable=not (show and self._console.is_terminal),
        )
        self._progress.add_task(description, total=total or None, completed=done, note="")

    def __enter__(self) -> Bar:
        if not self._progress.disable:
            self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._progress.disable:  # rich below 14.3 would end it with an empty line
            self._progress.stop()

    def advance(self, amount: int = 1) -> None:
        """Report `amount` more units as done."""
        self.update(int(self._task.completed) + amount)

    def update(self, completed: int | None = None, *, description: str | None = None, note: str | None = None) -> None:
        """Set the units that are done, the description, or a note that is shown behind them ("loss 0.123")."""
        fields: dict[str, Any] = {} if note is None else {"note": note}
        self._progress.update(self._task.id, completed=completed, description=description, **fields)
        is_last = self._task.total is not None and self._task.completed >= self._task.total
        if self._prints_lines and completed is not None and (is_last or time.monotonic() >= self._next_line):
            self._next_line = time.monotonic() + self._line_seconds
            self._console.print(self._line(), highlight=False, markup=False)

    @property
    def _task(self) -> Task:
        return self._progress.tasks[0]

    def _line(self) -> str:
        task = self._task
        of_total = "" if task.total is None else f" of {int(task.total):,}"
        parts = [f"{task.description}: {int(task.completed):,}{of_total} {self._unit}", task.fields["note"]]
        if task.speed:
            parts.append(_rate_text(task.speed, self._unit))
        if task.time_remaining is not None:
            parts.append(f"{task.time_remaining:.0f} s left")
        return ", ".join(part for part in parts if part)


class _Rate(ProgressColumn):
    """Units a second, or seconds a unit where a unit is slow."""

    def __init__(self, unit: str) -> None:
        super().__init__()
        self._unit = unit

    def render(self, task: Task) -> Text:
        return Text(_rate_text(task.speed, self._unit) if task.speed else "")


def _rate_text(speed: float, unit: str) -> str:
    return f"{speed:,.0f} {unit}/s" if speed >= 10 else f"{speed:.3g} {unit}/s"
