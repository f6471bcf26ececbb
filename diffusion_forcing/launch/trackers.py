"""Who is told of a run beside its own folder: the sections of `tracking`, each a class by `_target_` and its options."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from diffusion_forcing.errors import UserError
from diffusion_forcing.launch.parts import read_part
from diffusion_forcing.tracking.tracker import Tracker


def read_trackers(config: Mapping[str, Any], *, everywhere: Sequence[str] = ()) -> list[tuple[type[Tracker], Any]]:
    """Class and options of each tracker in `config`, which is resolved; one whose `mode` is disabled is left out."""
    sections = config.get("tracking") or {}
    if not isinstance(sections, Mapping):
        raise UserError(f"tracking is a group of trackers, chosen as tracking=[wandb,tensorboard]; got {sections!r}")
    found = []
    for name, section in sections.items():
        where = f"tracking.{name}"
        if not isinstance(section, Mapping):
            raise UserError(f"{where} is a tracker, with _target_ and its options; got {section!r}")
        cls, options = read_part(section, where, everywhere=everywhere)
        if not issubclass(cls, Tracker):
            raise UserError(
                f"{where}._target_ names a class that is no diffusion_forcing.tracking.tracker.Tracker: {cls.__name__}"
            )
        if getattr(options, "mode", None) != "disabled":
            found.append((cls, options))
    return found
