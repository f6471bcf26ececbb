"""Which of several processes this one is, as whoever started it says: Lightning, torchrun or Slurm's srun. Reads the environment alone."""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType
from typing import Any

_RANKS = ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID")
"""Variables that are 0, or not there, in the main process."""


def is_main_process() -> bool:
    """Whether this is the process that prints, draws and writes: the first of all, on all machines."""
    return all(os.environ.get(name, "0") == "0" for name in _RANKS)


def started_by_slurm() -> bool:
    """Whether srun started this process, as one of a job's tasks: not a shell that Slurm gave, nor a job's script itself."""
    return "SLURM_STEP_ID" in os.environ and os.environ.get("SLURM_JOB_NAME") not in ("bash", "interactive")


def started_processes() -> tuple[int, int] | None:
    """(machines, processes on each) that srun or torchrun started; None where processes are ours to start."""
    if started_by_slurm():
        nodes = int(os.environ.get("SLURM_STEP_NUM_NODES") or os.environ.get("SLURM_NNODES") or 1)
        tasks = int(os.environ.get("SLURM_STEP_NUM_TASKS") or os.environ.get("SLURM_NTASKS") or 1)
        return nodes, max(1, tasks // nodes)
    if "LOCAL_WORLD_SIZE" in os.environ and "RANK" in os.environ:
        here = int(os.environ["LOCAL_WORLD_SIZE"])
        return max(1, int(os.environ.get("WORLD_SIZE", here)) // here), here
    return None


# Ctrl-C and SIGTERM as a wish: noticed at the next step boundary, where the work so far can be saved. A second one
# ends at once; in a Slurm job, where warnings come one after the other, only a second Ctrl-C does.

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
JOB_SIGNALS = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM)
"""What Slurm sends to a job whose time is nearly over, or that makes room for another."""


class Interrupted(SystemExit):
    """Training was asked to stop and did. Ends the process with 128 + the signal's number (130 for Ctrl-C, 143 for
    SIGTERM)."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(128 + signal_number)
        self.number = signal_number


class Interrupts:
    """While installed, `received` is the signal that asked to stop, or None."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, Any] = {}
        self._process = 0

    def install(self) -> None:
        """Take over the signals; nothing outside the main thread, where Python allows no handlers."""
        if threading.current_thread() is threading.main_thread() and not self._before:
            self._process = os.getpid()
            numbers = {*_SIGNALS, *JOB_SIGNALS} if started_by_slurm() else _SIGNALS
            self._before = {number: signal.signal(number, self._handle) for number in numbers}

    def remove(self, *, ending: bool = False) -> None:
        """Give the signals back to who had them. ending: this process is asked to stop, and Slurm need not say so again."""
        before, self._before = self._before, {}
        for number, handler in before.items():
            deaf = ending and number in JOB_SIGNALS and started_by_slurm()
            signal.signal(number, signal.SIG_IGN if deaf else handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            if started_by_slurm() and number != signal.SIGINT:
                return
            self.remove()
            raise Interrupted(number)
        self.received = number
        if is_main_process() and os.getpid() == self._process:  # not one that reads data, which hears it too
            again = "" if started_by_slurm() else "; again to stop at once"
            print(f"\nstopping at the next step, saving a checkpoint{again}", file=sys.stderr, flush=True)
