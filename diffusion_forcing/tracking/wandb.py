"""Weights & Biases beside the run's folder, by `tracking=wandb` or `wandb.mode=online|offline`.

The training never talks to W&B. A process of its own, the mirror (`wandb_mirror`), reads the run's folder as it grows and passes it on; so
a slow network, a lost one, an expired login or a crash in W&B's code costs the training nothing, and a training that is killed is marked
so. Here is the training's side: start the mirror, repeat its lines at the terminal, wait a while for it at the end.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from diffusion_forcing.errors import UserError
from diffusion_forcing.files import write_json
from diffusion_forcing.tracking.run import Run
from diffusion_forcing.tracking.tracker import Tracker, tell

FOLDER = "wandb"
"""In the run's folder: W&B's own files and the mirror's."""
SETTINGS, SENT, LOG, LOCK = "settings.json", "sent.json", "mirror.log", "mirror.lock"
QUIET_SECONDS = 3.0  # a wait as short as this is not talked about
HURRY_SECONDS = 5.0  # whoever interrupts a run does not want to wait
EXTRA = "pip install 'diffusion-forcing[wandb]'"
Mode = Literal["online", "offline", "disabled"]


@dataclass(frozen=True, kw_only=True)
class WandbOptions:
    """The keys of `wandb.*`."""

    entity: str | None = None
    """Whose project; null: the default of who is logged in."""
    project: str = "diffusion-forcing"
    mode: Mode | None = None
    """null: off, unless tracking=wandb is chosen, which means online."""
    checkpoints: bool = True
    """Upload the newest checkpoint as the artifact model-<run id>."""
    expire_days: float | None = 5
    """Once a newer checkpoint is there, an older one is deleted by W&B this long after it was made; null: kept."""
    retry_seconds: float = 60
    """How often to look whether W&B is back."""
    finish_seconds: float = 60
    """How long the end of a run waits for uploads, at most; what is left goes on behind its back."""

    def __post_init__(self) -> None:
        if not self.project or self.entity == "":
            raise UserError("wandb.project is the name of a project, and wandb.entity a user's or a team's, or null")
        if self.expire_days is not None and self.expire_days <= 0:
            raise UserError(f"wandb.expire_days is above 0, or null to keep old checkpoints; got {self.expire_days}")
        if self.retry_seconds <= 0 or self.finish_seconds < 0:
            raise UserError("wandb.retry_seconds is above 0 and wandb.finish_seconds is not below 0")


class Wandb(Tracker):
    """A mirror of the run on W&B. Everything it needs to know lies in the run's folder."""

    Options = WandbOptions
    options: WandbOptions

    def __init__(self, options: WandbOptions) -> None:
        super().__init__(options)
        self._relay: threading.Thread | None = None

    def start(self, run: Run, config: Mapping[str, Any]) -> None:
        if not installed():
            tell(f"warning: wandb is not installed, so nothing goes to W&B; the run's folder has everything; {EXTRA}")
            return
        prepare(run.folder, self.options, config)
        with (run.folder / FOLDER / LOG).open("ab") as log:
            process = subprocess.Popen(
                [*mirror_command(run.folder), f"--parent={os.getpid()}"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                env=mirror_environment(),
                start_new_session=True,  # a Ctrl-C is for the training, which ends its run; the mirror follows
            )
        self._relay = threading.Thread(target=_repeat, args=(process,), daemon=True, name="wandb")
        self._relay.start()

    def finish(self, status: str) -> None:
        """Wait for the mirror to pass on the rest, no longer than `finish_seconds`, and only a moment for a run that was interrupted."""
        if self._relay is None:
            return
        relay, self._relay = self._relay, None
        most = (
            min(self.options.finish_seconds, HURRY_SECONDS) if status == "interrupted" else self.options.finish_seconds
        )
        try:
            relay.join(min(most, QUIET_SECONDS))
            if relay.is_alive() and most > QUIET_SECONDS:
                tell(
                    f"W&B receives the rest; waiting for {most:.0f} s at most, Ctrl-C leaves it to a process in the background"
                )
                relay.join(most - QUIET_SECONDS)
        except KeyboardInterrupt:
            pass
        if relay.is_alive():
            tell("W&B is still receiving; a process in the background goes on with it")


def installed() -> bool:
    """Whether the package wandb is there; a folder of that name, which W&B leaves in projects, is not it."""
    try:
        spec = find_spec("wandb")
    except (ImportError, ValueError):
        return False
    return spec is not None and spec.origin is not None


def prepare(folder: Path, options: WandbOptions, config: Mapping[str, Any]) -> None:
    """Write what the mirror of the run in `folder` is to do."""
    (folder / FOLDER).mkdir(exist_ok=True)
    settings = asdict(options) | {"mode": options.mode or "online", "config": dict(config)}
    write_json(folder / FOLDER / SETTINGS, settings)


def mirror_command(folder: Path) -> list[str]:
    """The words that start a mirror of the run in `folder`."""
    return [sys.executable, "-m", "diffusion_forcing.tracking.wandb_process", str(folder.resolve())]


def mirror_environment() -> dict[str, str]:
    """The environment with this package found from anywhere, and without a W&B session of somebody else's."""
    package = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH", ""))))
    kept = {
        key: value for key, value in os.environ.items() if key not in ("WANDB_SERVICE", "WANDB_MODE", "WANDB_RUN_ID")
    }
    return {**kept, "PYTHONPATH": path}


def _repeat(process: subprocess.Popen[bytes]) -> None:
    """Say the mirror's lines until it closes its output: there is nothing left to wait for."""
    assert process.stdout is not None
    for line in process.stdout:
        tell(line.decode(errors="replace").rstrip())
    process.poll()
