"""Weights & Biases, added to a run by `tracking=wandb` or `wandb.mode=online|offline`.

The training never calls wandb. A second process (`wandb_upload`) reads the run's folder as it grows and logs it with
W&B's own client; so a slow or lost network, a missing login or a crash in W&B's code cannot stop or delay a training
step. This module is the training's side: start that process, repeat its messages at the terminal, and wait for it at
the end, for a limited time.

    python -m diffusion_forcing.tracking.wandb FOLDER

uploads the run in FOLDER as `start_upload` has written it into settings.json. Exit code 0 means that W&B has everything.
"""

from __future__ import annotations

import contextlib
import math
import netrc
import os
import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlparse

from diffusion_forcing.errors import UserError, check_not_negative, check_positive, first_line
from diffusion_forcing.files import locked, make_folder, open_file, read_json, write_json
from diffusion_forcing.terminal import tell
from diffusion_forcing.tracking.run import Run, Tracker

FOLDER = "wandb"
"""In the run's folder: W&B's own files, and the two below."""
SETTINGS, LOG = "settings.json", "upload.log"
QUIET_SECONDS = 3.0  # a shorter wait at the end is not announced
INTERRUPTED_SECONDS = 5.0  # the longest wait for a run that was interrupted
EXTRA = "pip install 'diffusion-forcing[wandb]'"
Mode = Literal["online", "offline", "disabled"]


@dataclass(frozen=True, kw_only=True)
class WandbOptions:
    """The keys of `wandb.*`."""

    entity: str | None = None
    """User or team; null: the default of the login."""
    project: str = "diffusion-forcing"
    mode: Mode | None = None
    """null: off, or online with tracking=wandb."""
    checkpoints: bool = True
    """Upload the newest checkpoint as the artifact model-<run id>."""
    expire_days: float | None = 5
    """W&B deletes an older checkpoint this many days after it was made; null: never."""
    retry_seconds: float = 60
    """How often to try again while W&B is not available."""
    finish_seconds: float = 60
    """The longest that the end of a run waits for uploads; the rest continues in the background."""

    def __post_init__(self) -> None:
        if not self.project or self.entity == "":
            raise UserError("wandb.project must be the name of a project, and wandb.entity a user, a team or null")
        if self.expire_days is not None:
            check_positive("wandb.expire_days", self.expire_days)
        check_positive("wandb.retry_seconds", self.retry_seconds)
        check_not_negative("wandb.finish_seconds", self.finish_seconds)


class Wandb(Tracker):
    """Uploads the run to W&B from a process of its own."""

    Options = WandbOptions
    options: WandbOptions
    _messages: threading.Thread | None = None
    _id = ""

    def start(self, run: Run, config: Mapping[str, Any]) -> None:
        if not installed():
            tell(f"warning: wandb is not installed, nothing is uploaded; the run's folder has everything; {EXTRA}")
            return
        self._id = run.id
        process = start_upload(run.folder, self.options, config, parent=os.getpid())
        self._messages = threading.Thread(target=_repeat, args=(process,), daemon=True, name="wandb")
        self._messages.start()

    def finish(self, status: str) -> None:
        """Wait until the rest is uploaded, at most `finish_seconds`, and at most 5 s for an interrupted run."""
        messages, self._messages = self._messages, None
        if messages is None:
            return
        longest = min(self.options.finish_seconds, INTERRUPTED_SECONDS if status == "interrupted" else math.inf)
        with contextlib.suppress(KeyboardInterrupt):
            messages.join(min(longest, QUIET_SECONDS))
            if messages.is_alive() and longest > QUIET_SECONDS:
                tell(f"uploading the rest to W&B, at most {longest:.0f} s; Ctrl-C leaves it to the background")
                messages.join(longest - QUIET_SECONDS)
        if messages.is_alive():
            tell(f"the upload to W&B continues in the background; runs sync {self._id} sends what W&B lacks")


def _repeat(process: subprocess.Popen[bytes]) -> None:
    """Print the messages of `process` until it ends."""
    assert process.stdout is not None
    for line in process.stdout:
        tell(line.decode(errors="replace").rstrip())
    process.poll()


def installed() -> bool:
    """Whether the package wandb can be found (not only a folder `wandb`, which W&B leaves in projects)."""
    try:
        spec = find_spec("wandb")
    except (ImportError, ValueError):
        return False
    return spec is not None and spec.origin is not None


def logged_in() -> bool:
    """Whether this machine has a W&B login, as far as can be told without the network."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        hosts = netrc.netrc(os.environ.get("NETRC")).hosts
    except (OSError, netrc.NetrcParseError):
        return False
    configured = urlparse(os.environ.get("WANDB_BASE_URL", "")).hostname
    return any("wandb" in host or host == configured for host in hosts)


def start_upload(
    folder: Path,
    options: WandbOptions,
    config: Mapping[str, Any],
    *,
    parent: int | None = None,
    follow: bool = False,
) -> subprocess.Popen[bytes]:
    """Start the process that uploads the run in `folder` with the configuration `config`.

    It ends when the run or the process `parent` ends, which gets its messages through a pipe; with `follow`, when
    run.json says that another machine has ended the run; with neither, when W&B has what there is now.
    """
    make_folder(folder / FOLDER)
    settings = asdict(options) | {"mode": options.mode or "online", "config": dict(config)}
    write_json(folder / FOLDER / SETTINGS, settings | {"parent": parent, "follow": follow})
    # The package is found from any working directory, and variables of another W&B session do not apply.
    foreign = ("WANDB_SERVICE", "WANDB_MODE", "WANDB_RUN_ID")
    environment = {key: value for key, value in os.environ.items() if key not in foreign}
    environment["PYTHONPATH"] = f"{Path(__file__).parents[2]}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    with open_file(folder / FOLDER / LOG, "ab+") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "diffusion_forcing.tracking.wandb", str(folder.resolve())],
            stdin=subprocess.DEVNULL,
            stdout=None if parent is None else subprocess.PIPE,
            stderr=log,
            env=environment,
            start_new_session=True,  # Ctrl-C is for the training alone
        )


def main(folder: Path) -> int:
    # Standard output is for our messages only; wandb and its processes write into the log.
    terminal = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def report(line: str) -> None:
        tell(line)
        with contextlib.suppress(OSError, ValueError):  # the terminal may be closed
            terminal.write(f"{line}\n")
            terminal.flush()

    with locked(folder / FOLDER):  # the upload of an earlier session may not have ended yet
        try:
            from diffusion_forcing.tracking.wandb_upload import Upload

            settings = read_json(folder / FOLDER / SETTINGS, {})
            return 0 if Upload(folder, settings, report=report).run() else 1
        except Exception as error:
            failure = f"{type(error).__name__}: {first_line(error)}"
            report(f"warning: the upload to W&B failed ({failure}); the run's folder has everything")
            raise


if __name__ == "__main__":
    code = main(Path(sys.argv[1]))
    sys.stderr.flush()
    os._exit(code)  # wandb would wait for what cannot be sent
