"""Who is told of a run beside its own folder: W&B, TensorBoard, or a class of a user's.

The folder comes first. `TrackedRun` writes into it as `Run` does and then tells its trackers, one call each; a tracker that fails is
warned of once and the run goes on. A tracker is a subclass of `Tracker` with a frozen dataclass `Options`; it is named in
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
    """A tracker without any."""


class Tracker:
    """Hears of everything that is written into a run's folder. Each method may do nothing; none may wait for long."""

    Options: type = NoOptions

    def __init__(self, options: Any) -> None:
        self.options = options

    def start(self, run: Run, config: Mapping[str, Any]) -> None:
        """`run` begins, or goes on; `config` is its whole configuration, resolved. Raising means: do without this tracker."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """A line was appended to metrics.jsonl."""

    def summary(self, metrics: Mapping[str, Any]) -> None:
        """Headline numbers were merged into metrics.json."""

    def shown(self, entry: Mapping[str, Any]) -> None:
        """A picture, film or table lies in the folder: `entry` has kind, name, file and caption, as in media.json."""

    def finish(self, status: str) -> None:
        """The run has ended so; its folder is complete. May be called more than once."""


class TrackedRun(Run):
    """A run's folder, and trackers told of all that is written into it."""

    _trackers: tuple[Tracker, ...] = ()

    def follow(self, trackers: Sequence[Tracker], config: Mapping[str, Any]) -> None:
        """Start `trackers`; one that cannot start is warned of and left out."""
        for tracker in trackers:
            with self._never_stopping(_name(tracker)):
                tracker.start(self, config)
                self._trackers = (*self._trackers, tracker)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        super().log(step, metrics)
        for tracker in self._trackers:
            with self._never_stopping(_name(tracker)):
                tracker.log(int(step), metrics)

    def summary(self, metrics: Mapping[str, Any]) -> None:
        super().summary(metrics)
        for tracker in self._trackers:
            with self._never_stopping(_name(tracker)):
                tracker.summary(metrics)

    def finish(self, status: str = "finished") -> None:
        super().finish(status)
        for tracker in self._trackers:
            with self._never_stopping(_name(tracker)):
                tracker.finish(status)

    def _show(self, name: str, entry: dict[str, Any]) -> None:
        super()._show(name, entry)
        for tracker in self._trackers:
            with self._never_stopping(_name(tracker)):
                tracker.shown(entry | {"name": name})


def tell(line: str) -> None:
    """One line for the person at the terminal, beside the training's own."""
    print(line, file=sys.stderr, flush=True)


def _name(tracker: Tracker) -> str:
    return f"{type(tracker).__name__}, a tracker,"
