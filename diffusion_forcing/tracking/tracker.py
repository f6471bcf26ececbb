"""Trackers: what receives a copy of everything written into a run's folder, such as W&B, TensorBoard, or a class of the
user's.

`Run` writes into the folder and then calls its trackers; one that fails causes one warning and the run goes on. A
tracker is a subclass of `Tracker` with a frozen dataclass `Options`, named in
`configurations/tracking/<name>.yaml` by `_target_`, and chosen by `tracking=<name>`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class NoOptions:
    """For a tracker without options."""


class Tracker:
    """Receives what is written into a run's folder. Every method may do nothing; none may take long."""

    Options: type = NoOptions

    def __init__(self, options: Any) -> None:
        self.options = options

    def start(self, run: Any, config: Mapping[str, Any]) -> None:
        """The `Run` starts or is resumed; `config` is its whole configuration. If this raises, the tracker is left out."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """A line was appended to metrics.jsonl."""

    def summary(self, metrics: Mapping[str, Any]) -> None:
        """Headline numbers were merged into metrics.json."""

    def media(self, entry: Mapping[str, Any]) -> None:
        """An image, video or table was written; `entry` has kind, name, file and caption, as in media.json."""

    def finish(self, status: str) -> None:
        """The run has ended with `status`, and its folder is complete. May be called more than once."""
