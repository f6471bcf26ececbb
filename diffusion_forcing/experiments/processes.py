"""Which of several processes this one is, as whoever started it says: Lightning, torchrun or Slurm's srun. Reads the environment alone."""

from __future__ import annotations

import os

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
