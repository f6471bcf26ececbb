"""A run as a Slurm job: its folder is made here, where it is submitted; the job goes on with that run until it is finished.

What was typed is checked and composed before anything is submitted, and lies in the run's folder. So a job's command is `resume=FOLDER`,
the first time as after each requeue: a run that has no checkpoint yet begins at its beginning.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig

from diffusion_forcing.errors import UserError
from diffusion_forcing.launch import syncer
from diffusion_forcing.launch.cluster import FOLDER, SCRIPT, ClusterOptions, script
from diffusion_forcing.launch.compose import as_yaml
from diffusion_forcing.launch.follow import follow, log_of
from diffusion_forcing.launch.report import say
from diffusion_forcing.launch.run import Plan
from diffusion_forcing.tracking.files import write_atomic, write_json
from diffusion_forcing.tracking.run import Run

JOB = "job.json"
_KEPT = ("SLURM_CONF", "SLURM_CLUSTERS")
"""Of Slurm's variables: those of a job that one may sit in are not this job's."""


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
    assert checked.cluster is not None
    _script(checked, checked.cluster, Path("run"), ())  # a mistake in the template, before a folder is made


def submit(checked: Plan, words: Sequence[str]) -> int:
    """Make the run's folder and script, hand them to sbatch, and follow the job. Returns the exit code."""
    check(checked)
    options = checked.cluster
    assert options is not None
    outputs, name = Path(checked.settings.outputs), checked.settings.run_name
    run = Run.create(outputs, name) if checked.resumed is None else Run.open(checked.resumed)
    try:
        job = _hand_over(checked, options, run, words)
    except BaseException:
        run.finish("failed")
        raise
    log = log_of(job) or run.folder / FOLDER / f"{job}.out"
    say(f"submitted as job {job}, run {run.id}: {run.folder / FOLDER / SCRIPT}")
    say(f"  squeue --job {job}              where it stands")
    say(f"  tail -F {log}")
    say(f"  scancel {job}                   ends it; resume={run.id} cluster=… goes on")
    if options.is_compute_node_offline and syncer.wanted(checked.config):
        number = syncer.start(run.folder.resolve(), run.id, job)
        say(
            f"  the job has no internet: process {number} here passes its run on to W&B; {run.folder / FOLDER / syncer.LOG}"
        )
    return follow(job, log) if options.follow else 0


def _hand_over(checked: Plan, options: ClusterOptions, run: Run, words: Sequence[str]) -> str:
    """Write configuration and script, submit, and return the job's number."""
    folder = run.folder.resolve() / FOLDER
    folder.mkdir(exist_ok=True)
    again = [] if checked.resumed is None else [word for word in words if not _is_ours(word)]
    write_atomic(folder / SCRIPT, _script(checked, options, folder.parent, again).encode())
    if checked.resumed is None:
        run.config(as_yaml(for_job(checked.config, offline=options.is_compute_node_offline)))
    run.finish("queued")  # before the job may begin to write there
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_") or name in _KEPT}
    done = subprocess.run(
        ["sbatch", "--parsable", str(folder / SCRIPT)], env=environment, capture_output=True, text=True, check=False
    )
    job = done.stdout.strip().partition(";")[0]
    if done.returncode or not job.isdigit():
        said = (done.stderr.strip().splitlines() or ["it says nothing"])[-1]
        raise UserError(f"sbatch refused the job: {said}; its script is {folder / SCRIPT}")
    write_json(folder / JOB, {"job": job, "cluster": checked.config.get("choices", {}).get("cluster")})
    return job


def _script(checked: Plan, options: ClusterOptions, run: Path, words: Sequence[str]) -> str:
    """The text of the script that goes on with the run in `run`, told `words` too."""
    experiment = checked.options["experiment"]
    values = options.values(
        name=checked.settings.run_name,
        log_dir=run / FOLDER,
        devices=getattr(getattr(experiment, "training", None), "devices", "auto"),
        num_nodes=getattr(experiment, "num_nodes", 1),
    )
    return script(options.launch_template, values, [f"resume={run}", *words])


def for_job(config: DictConfig, *, offline: bool) -> DictConfig:
    """The configuration that a job runs: what it is to do, not where; without W&B where that is passed on from here."""
    saved = config.copy()
    saved["cluster"] = saved["resume"] = None
    if offline and syncer.wanted(config):
        saved["wandb"]["mode"] = "disabled"
    return saved


def _is_ours(word: str) -> bool:
    """Whether a word of the command line is about where to run, not what."""
    key = word.lstrip("+~").partition("=")[0]
    return key in ("resume", "cluster") or key.startswith("cluster.")
