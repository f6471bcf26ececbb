"""Trackers: what receives a copy of everything written into a run's folder, such as W&B, TensorBoard, or a class of the
user's.

`TrackedRun` writes into the folder as `Run` does and then calls its trackers; a tracker that fails causes one warning
and the run goes on. A tracker is a subclass of `Tracker` with a frozen dataclass `Options`, named in
`configurations/tracking/<name>.yaml` by `_target_`, and chosen by `tracking=<name>`.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from diffusion_forcing.tracking.run import Run


@dataclass(frozen=True, kw_only=True)
class NoOptions:
    """For a tracker without options."""


class Tracker:
    """Receives what is written into a run's folder. Every method may do nothing; none may take long."""

    Options: type = NoOptions

    def __init__(self, options: Any) -> None:
        self.options = options

    def start(self, run: Run, config: Mapping[str, Any]) -> None:
        """`run` starts or is resumed; `config` is its whole configuration. If this raises, the tracker is left out."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """A line was appended to metrics.jsonl."""

    def summary(self, metrics: Mapping[str, Any]) -> None:
        """Headline numbers were merged into metrics.json."""

    def media(self, entry: Mapping[str, Any]) -> None:
        """An image, video or table was written; `entry` has kind, name, file and caption, as in media.json."""

    def finish(self, status: str) -> None:
        """The run has ended with `status`, and its folder is complete. May be called more than once."""


class TrackedRun(Run):
    """A run's folder with trackers."""

    _trackers: tuple[Tracker, ...] = ()

    def follow(self, trackers: Sequence[Tracker], config: Mapping[str, Any]) -> None:
        """Start `trackers`; one that cannot start causes a warning and is left out."""
        for tracker in trackers:
            with self._never_stopping(_name(tracker)):
                tracker.start(self, config)
                self._trackers = (*self._trackers, tracker)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        super().log(step, metrics)
        self._notify("log", int(step), metrics)

    def summary(self, metrics: Mapping[str, Any]) -> None:
        super().summary(metrics)
        self._notify("summary", metrics)

    def finish(self, status: str = "finished") -> None:
        super().finish(status)
        self._notify("finish", status)

    def _show(self, name: str, entry: dict[str, Any]) -> None:
        super()._show(name, entry)
        self._notify("media", entry | {"name": name})

    def _notify(self, method: str, *arguments: Any) -> None:
        for tracker in self._trackers:
            with self._never_stopping(_name(tracker)):
                getattr(tracker, method)(*arguments)


def tell(line: str) -> None:
    """Print a line for the user, beside the training's own output."""
    print(line, file=sys.stderr, flush=True)


def _name(tracker: Tracker) -> str:
    return f"the tracker {type(tracker).__name__}"
