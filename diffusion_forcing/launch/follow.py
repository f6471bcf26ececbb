"""A Slurm job seen from outside: its state, and its log as it grows."""

from __future__ import annotations

import codecs
import subprocess
import sys
import time
from pathlib import Path

from diffusion_forcing.launch.report import say

LOOK_SECONDS = 2.0
UNKNOWN = "UNKNOWN"
_ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE")
_MAYBE_AGAIN = ("PREEMPTED", "NODE_FAIL")
"""States that a job is in for a moment before it is queued again, or for good."""
OVER = ("", *_ENDED, *_MAYBE_AGAIN)
"""States of a job that runs no more."""


def follow(job: str, log: Path) -> int:
    """Show the job's log as it grows, until the job is over; Ctrl-C leaves the job alone. Returns 0, or 1 where it did not end well."""
    reader, before = _Log(log), ""
    try:
        while True:
            state = state_of(job)
            reader.show_new()
            if state in OVER and (state not in _MAYBE_AGAIN or state == before):
                break
            if state not in (before, "RUNNING", UNKNOWN):
                say(f"job {job} is {state.lower()}")
            before = state
            time.sleep(LOOK_SECONDS)
    except KeyboardInterrupt:
        reader.show_new()
        say(f"\nno longer watching; job {job} goes on: tail -F {log}")
        return 0
    reader.show_new()
    say(f"job {job} has ended: {state.lower() or 'Slurm knows it no more'}")
    return 0 if state in ("COMPLETED", "") else 1


def state_of(job: str) -> str:
    """What Slurm calls the job's state, such as PENDING or COMPLETED; empty for one it no longer knows, UNKNOWN while it does not answer."""
    done = subprocess.run(["scontrol", "show", "job", "--oneliner", job], capture_output=True, text=True, check=False)
    found = [word.partition("=")[2] for word in done.stdout.split() if word.startswith("JobState=")]
    if found:
        return found[0]
    return "" if "Invalid job id" in done.stderr else UNKNOWN


def log_of(job: str) -> Path | None:
    """Where the job writes, as Slurm says."""
    done = subprocess.run(["scontrol", "show", "job", job], capture_output=True, text=True, check=False)
    for line in done.stdout.splitlines():
        if line.strip().startswith("StdOut="):
            return Path(line.strip().partition("=")[2])
    return None


class _Log:
    """A file that grows, or is not there yet."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._shown = 0
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def show_new(self) -> None:
        """Show what is new in it."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._shown)
                text = file.read()
        except OSError:
            return
        self._shown += len(text)
        sys.stdout.write(self._decoder.decode(text))
        sys.stdout.flush()
