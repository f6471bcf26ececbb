"""Which of several processes this one is, and how a signal stops it. Reads the environment alone: no torch."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType
from typing import Any

from diffusion_forcing.terminal import tell

_RANKS = ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID")
"""Variables of Lightning, torchrun and srun that are 0 or absent in the main process."""
_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
JOB_SIGNALS = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM)
"""What Slurm sends to a job whose time is nearly over, or that is preempted."""


def is_main_process() -> bool:
    """Whether this is the process that prints, draws and writes: the first of all, on all machines."""
    return all(os.environ.get(name, "0") == "0" for name in _RANKS)


def started_by_slurm() -> bool:
    """Whether srun started this process as one of a job's tasks; False in a shell or a batch script of Slurm's."""
    return "SLURM_STEP_ID" in os.environ and os.environ.get("SLURM_JOB_NAME") not in ("bash", "interactive")


def started_processes() -> tuple[int, int] | None:
    """(machines, processes on each) that srun or torchrun started; None if Lightning is to start them."""
    if started_by_slurm():
        nodes = int(os.environ.get("SLURM_STEP_NUM_NODES") or os.environ.get("SLURM_NNODES") or 1)
        tasks = int(os.environ.get("SLURM_STEP_NUM_TASKS") or os.environ.get("SLURM_NTASKS") or 1)
        return nodes, max(1, tasks // nodes)
    if "LOCAL_WORLD_SIZE" in os.environ and "RANK" in os.environ:
        here = int(os.environ["LOCAL_WORLD_SIZE"])
        return max(1, int(os.environ.get("WORLD_SIZE", here)) // here), here
    return None


class Interrupted(SystemExit):
    """Training stopped because it was asked to. Exit code 128 + the signal's number: 130 Ctrl-C, 143 SIGTERM."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(128 + signal_number)
        self.number = signal_number


class Interrupts:
    """While installed, Ctrl-C and SIGTERM only set `received`, so that the step at hand can be finished and saved.

    A second one ends at once. In a Slurm job only a second Ctrl-C does: Slurm repeats its warnings.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, Any] = {}
        self._process = 0

    def install(self) -> None:
        """Take over the signals, except outside the main thread, where Python allows no handlers."""
        if threading.current_thread() is threading.main_thread() and not self._before:
            self._process = os.getpid()
            numbers = {*_STOP_SIGNALS, *JOB_SIGNALS} if started_by_slurm() else _STOP_SIGNALS
            self._before = {number: signal.signal(number, self._handle) for number in numbers}

    def remove(self, *, ending: bool = False) -> None:
        """Restore the former handlers. `ending`: this process is stopping, so Slurm's further warnings are ignored."""
        before, self._before = self._before, {}
        for number, handler in before.items():
            ignored = ending and number in JOB_SIGNALS and started_by_slurm()
            signal.signal(number, signal.SIG_IGN if ignored else handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            if started_by_slurm() and number != signal.SIGINT:
                return
            self.remove()
            raise Interrupted(number)
        self.received = number
        if is_main_process() and os.getpid() == self._process:  # not in a loader's worker, which gets the signal too
            again = "" if started_by_slurm() else "; again to stop at once"
            tell(f"\nstopping at the next step, saving a checkpoint{again}")
