"""`cluster=…`: submit a run as a Slurm job, show its log, and upload it to W&B from here if the job has no internet.

The command is checked and composed before anything is submitted, and the composed configuration lies in the run's folder. So a job's command is
`resume=FOLDER`, the first time and after each requeue: a run without a checkpoint starts at its beginning.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from diffusion_forcing.errors import UserError
from diffusion_forcing.files import make_folder, open_file, read_json, write_atomic, write_json
from diffusion_forcing.launch.cluster import FOLDER, SCRIPT, ClusterOptions, script
from diffusion_forcing.launch.compose import as_yaml
from diffusion_forcing.launch.run import Plan
from diffusion_forcing.terminal import say
from diffusion_forcing.tracking.run import Run

JOB, SYNC_LOG = "job.json", "sync.log"
POLL_SECONDS = 2.0
SYNC_SECONDS = 15.0
UNKNOWN = "UNKNOWN"
MAYBE_REQUEUED = ("PREEMPTED", "NODE_FAIL")
"""States before a job is queued again, or for good."""
ENDED = ("", "COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE", *MAYBE_REQUEUED)


def submit(plan: Plan, words: Sequence[str]) -> int:
    """Make the run's folder and script, pass them to sbatch, and follow the job. Returns the exit code.

    words: the command line, whose overrides a resumed run repeats.
    """
    options = plan.cluster
    assert options is not None
    _check(plan, options)
    run = Run.open(plan.resumed) if plan.resumed else Run.create(Path(plan.settings.outputs), plan.settings.run_name)
    try:
        job = _sbatch(plan, options, run, words)
    except BaseException:
        run.finish("failed")
        raise
    folder = run.folder / FOLDER
    named = _scontrol(job, "StdOut")
    log = folder / f"{job}.out" if named in ("", UNKNOWN) else Path(named)
    say(f"submitted job {job}, run {run.id}: {folder / SCRIPT}")
    say(f"  squeue --job {job}              its state")
    say(f"  tail -F {log}")
    say(f"  scancel {job}                   end it; resume={run.id} cluster=… continues")
    if options.is_compute_node_offline and _uses_wandb(plan.config):
        process = _start_uploading(run.folder.resolve(), run.id, job)
        say(f"  the job has no internet: process {process} here uploads the run to W&B; {folder / SYNC_LOG}")
    return follow(job, log) if options.follow else 0


def _check(plan: Plan, options: ClusterOptions) -> None:
    """UserError for what cannot be submitted, before a folder is made."""
    if shutil.which("sbatch") is None:
        raise UserError("cluster= needs sbatch, which is not here: start this on a login node, or leave cluster= out")
    if plan.settings.seeds > 1:
        raise UserError("seeds= and cluster= exclude each other: submit a job per seed, with seed=0, seed=1, …")
    named = Path(plan.settings.resume or "")
    if plan.resumed and named.exists() and named.resolve() != plan.resumed.resolve():
        raise UserError(
            f"a job always resumes from the newest checkpoint, got resume={named}: pass resume={plan.resumed}, or start a "
            f"new run with load={named}"
        )
    _script(plan, options, Path("run"), ())


def _sbatch(plan: Plan, options: ClusterOptions, run: Run, words: Sequence[str]) -> str:
    """Write the configuration and the script, submit, and return the job's number."""
    folder = make_folder(run.folder.resolve() / FOLDER)
    again = [word for word in words if word.lstrip("+~").partition("=")[0].split(".")[0] not in ("resume", "cluster")]
    write_atomic(folder / SCRIPT, _script(plan, options, folder.parent, again if plan.resumed else ()))
    if not plan.resumed:
        run.config(as_yaml(_job_config(plan.config, offline=options.is_compute_node_offline)))
    run.finish("queued")  # before the job may start to write there
    # the variables of a job that one may sit in are not this job's
    kept = ("SLURM_CONF", "SLURM_CLUSTERS")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_") or name in kept}
    command = ["sbatch", "--parsable", str(folder / SCRIPT)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    job = done.stdout.strip().partition(";")[0]
    if done.returncode or not job.isdigit():
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise UserError(f"sbatch refused the job: {reason}; its script is {folder / SCRIPT}")
    write_json(folder / JOB, {"job": job, "cluster": plan.config.get("choices", {}).get("cluster")})
    return job


def _script(plan: Plan, options: ClusterOptions, run: Path, words: Sequence[str]) -> str:
    """The script of a job that resumes the run in `run` with the overrides `words`."""
    experiment = plan.options["experiment"]
    values = options.values(
        name=plan.settings.run_name,
        log_dir=run / FOLDER,
        devices=getattr(getattr(experiment, "training", None), "devices", "auto"),
        num_nodes=getattr(experiment, "num_nodes", 1),
    )
    return script(options.launch_template, values, [f"resume={run}", *words])


def _job_config(config: DictConfig, *, offline: bool) -> DictConfig:
    """The configuration of a job: what to do, not where; without W&B if this machine uploads the run."""
    saved = config.copy()
    saved["cluster"] = saved["resume"] = None
    if offline and _uses_wandb(config):
        saved["wandb"]["mode"] = "disabled"
    return saved


def _uses_wandb(config: DictConfig) -> bool:
    mode = OmegaConf.select(config, "wandb.mode")
    return mode == "online" or (mode is None and "wandb" in (OmegaConf.select(config, "tracking") or {}))


def follow(job: str, log: Path) -> int:
    """Show the job's log until the job ends; Ctrl-C leaves the job alone. Returns 0, or 1 if the job failed."""
    shown, before = 0, ""
    try:
        while True:
            state = state_of(job)
            shown = _show(log, shown)
            if state in ENDED and (state not in MAYBE_REQUEUED or state == before):
                break
            if state not in (before, "RUNNING", UNKNOWN):
                say(f"job {job} is {state.lower()}")
            before = state
            time.sleep(POLL_SECONDS)
    except KeyboardInterrupt:
        _show(log, shown)
        say(f"\njob {job} continues: tail -F {log}")
        return 0
    _show(log, shown)
    say(f"job {job} has ended: {state.lower() or 'no longer known to Slurm'}")
    return 0 if state in ("COMPLETED", "") else 1


def _show(log: Path, shown: int) -> int:
    """Print what the file holds beyond its first `shown` bytes, if it exists. Returns the bytes shown in all."""
    try:
        with log.open("rb") as file:
            file.seek(shown)
            new = file.read()
    except OSError:
        return shown
    sys.stdout.flush()
    sys.stdout.buffer.write(new)
    sys.stdout.flush()
    return shown + len(new)


def state_of(job: str) -> str:
    """Slurm's state of a job, such as PENDING; "" if Slurm no longer knows the job, UNKNOWN while it does not answer."""
    return _scontrol(job, "JobState")


def _scontrol(job: str, name: str) -> str:
    """The value that `scontrol show job` has for `name`; "" for an unknown job, UNKNOWN without an answer."""
    done = subprocess.run(["scontrol", "show", "job", job], capture_output=True, text=True, check=False)
    found = re.search(rf"(?:^|\s){name}=(.*?)(?=\s+\w+=|\s*$)", done.stdout, re.MULTILINE)  # a path may hold spaces
    if found:
        return found[1]
    return "" if "Invalid job id" in done.stderr else UNKNOWN


def _start_uploading(run: Path, run_id: str, job: str) -> int:
    """Run `upload` in a process that outlives the terminal. Returns its number."""
    sync = [sys.executable, "-m", "diffusion_forcing", "runs", "sync", run_id, "--follow", f"outputs={run.parents[1]}"]
    with open_file(run / FOLDER / SYNC_LOG, "ab+") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "diffusion_forcing.launch.slurm", str(run), job, *sync],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            start_new_session=True,
        )
    return process.pid


def upload(run: Path, job: str, sync: Sequence[str], *, wait: Callable[[float], None] = time.sleep) -> bool:
    """Run the command `sync` while the run in `run` is running, until the job ends, then once more. Whether that succeeded."""
    while state_of(job) not in ENDED:
        if read_json(run / "run.json", {}).get("status") == "running":
            subprocess.run(sync, check=False)
        wait(SYNC_SECONDS)
    metadata = read_json(run / "run.json", {})
    if metadata.get("status") == "running":  # killed before it could write its end
        write_json(run / "run.json", {**metadata, "status": "failed"})
    last = [word for word in sync if word != "--follow"]
    return subprocess.run(last, check=False).returncode == 0


if __name__ == "__main__":
    sys.exit(0 if upload(Path(sys.argv[1]), sys.argv[2], sys.argv[3:]) else 1)
