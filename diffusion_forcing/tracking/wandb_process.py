"""The process that mirrors a run on W&B.

    python -m diffusion_forcing.tracking.wandb_process FOLDER [--parent=PID | --follow]

With `--parent` it follows that process's run until run.json says how it ended, or the process is gone (then the run is marked as failed
on W&B); with `--follow` a run of another machine, until run.json says so. With neither it passes on what is there and ends:
`diffusion-forcing runs sync`. Ends with 0 if W&B has all of the run, or an offline run of W&B's has, else with 1.

Lines on standard output are for the person at the terminal; it is closed once there is nothing more to wait for. All else is in the run's
wandb/mirror.log.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sys
from pathlib import Path

from diffusion_forcing.tracking.wandb import FOLDER, LOCK


class Terminal:
    """Standard output, taken away from everything else in this process and from the ones it starts, which would hold it open."""

    def __init__(self) -> None:
        self._file = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)

    def say(self, line: str) -> None:
        """To the person, if somebody is there to repeat it, and to the log."""
        print(line, file=sys.stderr, flush=True)
        with contextlib.suppress(OSError, ValueError):
            print(line, file=self._file, flush=True)

    def hang_up(self) -> None:
        with contextlib.suppress(OSError):
            self._file.close()


def main(words: list[str]) -> int:
    folder = Path(words[0])
    parents = [int(word.removeprefix("--parent=")) for word in words if word.startswith("--parent=")]
    terminal = Terminal()
    with (folder / FOLDER / LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # one mirror a run: an earlier session's may still be at its end
        try:
            from diffusion_forcing.tracking.wandb_mirror import Mirror

            parent, follow = parents[0] if parents else None, "--follow" in words
            mirror = Mirror(folder, say=terminal.say, hang_up=terminal.hang_up, parent=parent, follow=follow)
            return 0 if mirror.run() else 1
        except Exception as failure:
            line = (str(failure).strip().splitlines() or [""])[0]
            terminal.say(
                f"warning: nothing (more) goes to W&B ({type(failure).__name__}: {line}); the run's folder has everything"
            )
            raise


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
