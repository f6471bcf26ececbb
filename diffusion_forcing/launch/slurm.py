"""A run as a Slurm job: its folder is made here, where it is submitted; the job goes on with that run until it is finished.

What was typed is checked and composed before anything is submitted, and lies in the run's folder. So a job's command is `resume=FOLDER`,
the first time as after each requeue: a run that has no checkpoint yet begins at its beginning.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from omegaconf import DictConfig

from diffusion_forcing.errors import UserError
from diffusion_forcing.launch.cluster import FOLDER, SCRIPT, ClusterOptions, script
from diffusion_forcing.launch.compose import as_yaml
from diffusion_forcing.launch.report import say
from diffusion_forcing.launch.run import Plan
from diffusion_forcing.tracking.files import write_atomic, write_json
from diffusion_forcing.tracking.run import Run

JOB = "job.json"
LOOK_SECONDS = 2.0
SHOWN_BYTES = 1 << 16
_OVER = (
    "COMPLETED",
    "FAILED",
    "CANCELLED",
    "TIMEOUT",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "BOOT_FAIL",
    "DEADLINE",
    "PREEMPTED",
)


def check(checked: Plan) -> None:
    """UserError for what cannot be submitted; makes nothing."""
    if shutil.which("sbatch") is None:
        raise UserError(
            "cluster= submits with sbatch, and there is none here: start this on a login node of the cluster, "
            "or leave cluster= out to run on this machine"
        )
    if checked.settings.seeds > 1:
        raise UserError("seeds= and cluster= do not go together: submit a job for each, with seed=0, seed=1, …")
    named = Path(checked.settings.resume or "")
    if checked.resumed is not None and named.exists() and named.resolve() != checked.resumed.resolve():
        raise UserError(
            f"a job goes on from the run's newest checkpoint, also when it is queued again; pass resume={checked.resumed}, "
            f"or start a new run with load={named}"
        )


def submit(checked: Plan, words: Sequence[str]) -> int:
    """Make the run's folder and script, hand them to sbatch, and follow the job. Returns the exit code."""
    check(checked)
    options = checked.cluster
    assert options is not None
    run = (
        Run.open(checked.resumed)
        if checked.resumed
        else Run.create(Path(checked.settings.outputs), checked.settings.run_name)
    )
    try:
        job = _hand_over(checked, options, run, words)
    except BaseException:
        run.finish("failed")
        raise
    run.finish("queued")
    log = _log_of(job, run.folder)
    say(f"submitted as job {job}, run {run.id}: {run.folder / FOLDER / SCRIPT}")
    say(f"  squeue --job {job}              where it stands")
    say(f"  tail -F {log}")
    say(f"  scancel {job}                   ends it; resume={run.id} cluster=… goes on")
    return follow(job, log) if options.follow else 0


def _hand_over(checked: Plan, options: ClusterOptions, run: Run, words: Sequence[str]) -> str:
    """Write configuration and script, submit, and return the job's number."""
    folder = run.folder.resolve() / FOLDER
    folder.mkdir(exist_ok=True)
    experiment = checked.options["experiment"]
    devices = getattr(getattr(experiment, "training", None), "devices", "auto")
    values = options.values(
        name=checked.settings.run_name, log_dir=folder, devices=devices, num_nodes=getattr(experiment, "num_nodes", 1)
    )
    again = [] if checked.resumed is None else [word for word in words if not _is_ours(word)]
    text = script(options.launch_template, values, [f"resume={run.folder.resolve()}", *again])
    if checked.resumed is None:
        run.config(as_yaml(for_job(checked.config)))
    write_atomic(folder / SCRIPT, text.encode())
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "SBATCH_"))}
    done = subprocess.run(
        ["sbatch", "--parsable", str(folder / SCRIPT)], env=environment, capture_output=True, text=True, check=False
    )
    job = done.stdout.strip().partition(";")[0]
    if done.returncode or not job.isdigit():
        said = (done.stderr.strip().splitlines() or ["it says nothing"])[-1]
        raise UserError(f"sbatch refused the job: {said}; its script is {folder / SCRIPT}")
    write_json(folder / JOB, {"job": job, "cluster": checked.config.get("choices", {}).get("cluster")})
    return job


def for_job(config: DictConfig) -> DictConfig:
    """The configuration that a job runs: what it is to do, not where."""
    saved = config.copy()
    saved["cluster"] = saved["resume"] = None
    return saved


def follow(job: str, log: Path, *, show: Callable[[str], None] | None = None) -> int:
    """Show the job's log as it grows, until the job is over; Ctrl-C leaves the job alone. Returns 0, or 1 where it did not end well."""
    show = show or _show
    shown, state, said = 0, "", ""
    try:
        while True:
            state = state_of(job)
            shown = _show_new(log, shown, show)
            if state in _OVER or not state:
                break
            if state != said and state != "RUNNING":
                say(f"job {job} is {state.lower()}")
            said = state
            time.sleep(LOOK_SECONDS)
    except KeyboardInterrupt:
        say(f"\nno longer watching; job {job} goes on: tail -F {log}")
        return 0
    shown = _show_new(log, shown, show)
    say(f"job {job} has ended: {state.lower() or 'Slurm knows it no more'}")
    return 0 if state in ("COMPLETED", "") else 1


def state_of(job: str) -> str:
    """What Slurm calls the job's state, such as PENDING or COMPLETED; empty for one it no longer knows."""
    done = subprocess.run(["scontrol", "show", "job", "--oneliner", job], capture_output=True, text=True, check=False)
    found = [word.partition("=")[2] for word in done.stdout.split() if word.startswith("JobState=")]
    return found[0] if found else ""


def _log_of(job: str, folder: Path) -> Path:
    """Where the job writes, as Slurm says."""
    done = subprocess.run(["scontrol", "show", "job", job], capture_output=True, text=True, check=False)
    for line in done.stdout.splitlines():
        if line.strip().startswith("StdOut="):
            return Path(line.strip().partition("=")[2])
    return folder / FOLDER / f"{job}.out"


def _show_new(log: Path, shown: int, show: Callable[[str], None]) -> int:
    """Show what `log` has behind its first `shown` bytes; the new number."""
    try:
        with log.open("rb") as file:
            file.seek(shown)
            while text := file.read(SHOWN_BYTES):
                show(text.decode(errors="replace"))
                shown += len(text)
    except OSError:  # not there yet
        pass
    return shown


def _show(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _is_ours(word: str) -> bool:
    """Whether a word of the command line is about where to run, not what."""
    key = word.lstrip("+~").partition("=")[0]
    return key in ("resume", "cluster") or key.startswith("cluster.")
