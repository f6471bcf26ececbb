"""In a Slurm job: when Slurm wants the machine back, the run saves, queues its job again, and ends.

SIGUSR1 and SIGUSR2 are warnings (`--signal`), SIGTERM is one too where the job makes room for another. Training saves at its next step
(`experiments.interrupts`); other tasks stop where they are, and begin again. A job that was cancelled, or whose time is over, gets SIGTERM
as well: Slurm has given it up then, and it is not queued again.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from types import FrameType

from diffusion_forcing.experiments.interrupts import JOB_SIGNALS, Interrupted
from diffusion_forcing.experiments.processes import is_main_process, started_by_slurm

OTHERS_SECONDS = 3.0
"""What the job's other processes have to end in peace, before Slurm ends the job."""


@contextlib.contextmanager
def requeued_when_preempted(how_to_go_on: str) -> Iterator[None]:
    """Around all that a job does; nothing outside of a job. `how_to_go_on`: said where the job cannot be queued again."""
    if not started_by_slurm():
        yield
        return
    before = {number: signal.signal(number, _stop) for number in JOB_SIGNALS}
    try:
        yield
    except Interrupted as end:
        for number in JOB_SIGNALS:  # those that follow are about the same
            signal.signal(number, signal.SIG_IGN)
        if end.number in JOB_SIGNALS and is_main_process():
            print(_requeue(end.number, how_to_go_on), file=sys.stderr, flush=True)
        raise
    finally:
        for number, handler in before.items():
            if signal.getsignal(number) is _stop:
                signal.signal(number, handler)


def _stop(number: int, frame: FrameType | None) -> None:
    raise Interrupted(number)


def _requeue(number: int, how_to_go_on: str) -> str:
    """Queue this job again, unless Slurm has given it up. What came of it, in a line."""
    job = os.environ["SLURM_JOB_ID"]
    if number == signal.SIGTERM and _asked("squeue", "--noheader", "--format=%T", "--job", job) != "RUNNING":
        return f"job {job} was ended by Slurm; {how_to_go_on}"
    if os.environ.get("SLURM_NTASKS", "1") != "1":
        time.sleep(OTHERS_SECONDS)
    refusal = _asked("scontrol", "requeue", job)
    return (
        f"job {job} is queued again and goes on by itself"
        if not refusal
        else f"job {job} cannot be queued again ({refusal}); {how_to_go_on}"
    )


def _asked(*command: str) -> str:
    """The last line that a command of Slurm's says; what went wrong, where it could not be started."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as failure:
        return str(failure)
    lines = (done.stdout + done.stderr).strip().splitlines()
    return lines[-1].strip() if lines else ""
