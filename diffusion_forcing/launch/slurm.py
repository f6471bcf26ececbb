"""`cluster=…`: a run as a Slurm job: its script, its log, its upload to W&B from here if the job has no internet, and how it is queued
again before its time is over.

The command is checked and composed before anything is submitted, and the composed configuration lies in the run's folder. So a job's command is
`resume=FOLDER`, the first time and after each requeue: a run without a checkpoint starts at its beginning.

`{name}` in the `launch_template` of `cluster/*.yaml` stands for the value of that name, quoted for the shell, so nothing
of a run's name is ever executed. A line with a null value is left out. Everything else stays as it is: `$HOME`.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from omegaconf import DictConfig, OmegaConf

from diffusion_forcing.errors import UserError, did_you_mean, require
from diffusion_forcing.experiments.processes import JOB_SIGNALS, Interrupted, is_main_process, started_by_slurm
from diffusion_forcing.files import make_folder, open_file, read_json, write_atomic, write_json
from diffusion_forcing.launch.compose import as_yaml
from diffusion_forcing.terminal import say, tell
from diffusion_forcing.tracking.run import Run

FOLDER, SCRIPT = "slurm", "job.sh"
"""In the run's folder: the job's script, number and logs."""
_PLACEHOLDER = re.compile(r"(?<!\$)\{([A-Za-z_]\w*)\}")
_CLOSED = re.compile(r"""\\.|'[^']*'|"(?:\\.|[^"\\])*"|`[^`]*`|(?:^|(?<=\s))#[^\n]*|<<<""", re.DOTALL | re.MULTILINE)
"""An escaped character, a quoted text, a comment or a here-string of the shell."""
_DIRECTIVE = "#SBATCH"
_LOG = re.compile(r"\s(?:--(?:output|error)[=\s]|-[oe])\s*\S*$")
_PLAIN = re.compile(r"[\w@%+=:,./-]+", re.ASCII)
_PARAMS = ("env_name", "num_gpus", "gpu_type", "num_cpus", "memory", "time", "email", "partition", "account")
"""Parameters of base_slurm.yaml, which a template need not use."""
OTHERS_SECONDS = 3.0
"""Time for the job's other processes to end before Slurm ends the job."""

Value = str | int | float | bool | None


@dataclass(frozen=True, kw_only=True)
class ClusterOptions:
    """One cluster: `cluster/*.yaml`."""

    launch_template: str
    """The script, with placeholders: those of `values`, all of `params`, and {python_args}."""
    params: dict[str, Any] = field(default_factory=dict)
    is_compute_node_offline: bool = False
    """Jobs have no internet: the machine that submits uploads the run to W&B."""
    follow: bool = True
    """Show the job's log until it ends."""

    def __post_init__(self) -> None:
        for name, value in self.params.items():
            key = f"cluster.params.{name}"
            if name not in _PARAMS and f"{{{name}}}" not in self.launch_template:
                near = did_you_mean(name, _PARAMS)
                raise UserError(f"unknown key {key}{near}: launch_template has no {{{name}}}")
            is_plain = isinstance(value, str | int | float | bool | None)
            require(is_plain, f"{key} must be a number, text or null, got {value!r}")
        for name, lowest in (("num_gpus", 0), ("num_cpus", 1)):
            value = self.params.get(name, lowest)
            is_count = isinstance(value, int) and not isinstance(value, bool) and value >= lowest
            require(is_count, f"cluster.params.{name} must be a whole number, at least {lowest}, got {value!r}")

    def tasks_per_node(self, devices: int | str) -> int:
        """Processes on each machine: `experiment.training.devices`, or one per GPU. UserError if there are too few GPUs."""
        gpus = int(self.params.get("num_gpus") or 0)
        if not isinstance(devices, int):
            return max(1, gpus)
        if gpus and devices > gpus:
            raise UserError(
                f"experiment.training.devices is {devices}, but cluster.params.num_gpus is {gpus} and each process needs a "
                f"GPU: pass cluster.params.num_gpus={devices}, or 0 for processes on CPUs"
            )
        return devices

    def values(self, *, name: str, log_dir: Path, devices: int | str, num_nodes: int) -> dict[str, Value]:
        """The values of the placeholders but for {python_args}. No GPUs are null."""
        tasks = self.tasks_per_node(devices)
        gpus, kind = self.params.get("num_gpus") or None, self.params.get("gpu_type")
        return {
            **self.params,
            "num_gpus": gpus,
            "name": name,
            "log_dir": str(log_dir),
            "project_root": str(Path.cwd()),
            "python": "python" if self.params.get("env_name") else sys.executable,
            "num_nodes": num_nodes,
            "tasks_per_node": tasks,
            "cpus_per_task": max(1, int(self.params.get("num_cpus", 1)) // tasks),
            "gres": None if gpus is None else f"gpu:{kind}:{gpus}" if kind else f"gpu:{gpus}",
        }


def script(template: str, values: Mapping[str, Value], python_args: Sequence[str]) -> str:
    """The template with `values`, and `python_args` for {python_args}, each quoted. UserError for an unknown name, for one
    within quotes, where quoting would not hold, and for a value that is no single line."""
    words = {
        name: [str(value).lower() if value is True or value is False else str(value)] for name, value in values.items()
    }
    words["python_args"] = list(python_args)
    code = ""
    for number, line in enumerate(template.splitlines(), start=1):
        if not any(values.get(name, "") is None for name in _PLACEHOLDER.findall(line)):
            code += _filled(line, code, words, f"line {number} of cluster.launch_template") + "\n"
    return code


def _filled(line: str, before: str, words: Mapping[str, Sequence[str]], where: str) -> str:
    """The line, which follows the script `before`, with `words` for its placeholders."""
    is_directive = line.startswith(_DIRECTIVE)

    def quoted(found: re.Match[str]) -> str:
        name = found[1]
        if name not in words:
            raise UserError(f"{where} has unknown {{{name}}}{did_you_mean(name, words)}; known: {', '.join(words)}")
        start = line[len(_DIRECTIVE) : found.start()] if is_directive else before + line[: found.start()]
        rest = _CLOSED.sub("", start)
        if "<<" in rest or rest.endswith("\\") or set(rest) & set("'\"`"):
            raise UserError(f"{where} has {found[0]} within quotes; remove them: values are quoted automatically")
        for word in words[name]:
            what = f"{name} {word!r} has a line break or another character that a script cannot hold"
            require(word.isprintable(), what)
        if not is_directive:
            return shlex.join(words[name])
        is_log = _LOG.search(line[: found.start()]) is not None  # where sbatch replaces %j and the like
        return " ".join(_directive_word(word.replace("%", "%%") if is_log else word) for word in words[name])

    return _PLACEHOLDER.sub(quoted, line)


def _directive_word(word: str) -> str:
    """`word` as one argument of a #SBATCH line, where a backslash is an escape within single quotes too."""
    escaped = word.replace("\\", "\\\\").replace('"', '\\"')
    return word if _PLAIN.fullmatch(word) else f'"{escaped}"'


def is_new_job(folder: Path) -> bool:
    """Whether the run in `folder` was made for a job that has not saved a checkpoint yet."""
    if not (folder / FOLDER / SCRIPT).is_file():
        return False
    from diffusion_forcing.checkpoints.places import latest

    return latest(folder) is None


@contextlib.contextmanager
def requeued_when_preempted(how_to_resume: str) -> Iterator[None]:
    """Queue the job again when Slurm preempts it or its time is nearly over. Outside of a job, nothing.

    SIGUSR1 and SIGUSR2 are warnings (`--signal`), and so is SIGTERM when a job makes room for another. Training saves at its next step
    (`experiments.processes.Interrupts`); other tasks stop, and start anew. A job that was cancelled or timed out gets SIGTERM as well, but
    Slurm no longer counts it as running, and it is not queued again. `how_to_resume` is printed where queueing fails.
    """
    if not started_by_slurm():
        yield
        return
    before = {number: signal.signal(number, _interrupt) for number in JOB_SIGNALS}
    try:
        yield
    except Interrupted as end:
        for number in JOB_SIGNALS:  # further warnings have the same reason
            signal.signal(number, signal.SIG_IGN)
        if end.number in JOB_SIGNALS and is_main_process():
            tell(_requeue(end.number, how_to_resume))
        raise
    finally:
        for number, handler in before.items():
            if signal.getsignal(number) is _interrupt:
                signal.signal(number, handler)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise Interrupted(number)


def _requeue(number: int, how_to_resume: str) -> str:
    """Queue this job again, unless Slurm has ended it. Returns a line about the outcome."""
    job = os.environ["SLURM_JOB_ID"]
    if number == signal.SIGTERM and _last_line("squeue", "--noheader", "--format=%T", "--job", job) != "RUNNING":
        return f"job {job} was ended by Slurm; {how_to_resume}"
    if os.environ.get("SLURM_NTASKS", "1") != "1":
        time.sleep(OTHERS_SECONDS)
    refusal = _last_line("scontrol", "requeue", job)
    return f"job {job} cannot be requeued ({refusal}); {how_to_resume}" if refusal else f"job {job} is queued again"


def _last_line(*command: str) -> str:
    """The last line of a command's output, or why it could not be started."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as failure:
        return str(failure)
    lines = (done.stdout + done.stderr).strip().splitlines()
    return lines[-1].strip() if lines else ""


JOB, SYNC_LOG = "job.json", "sync.log"
POLL_SECONDS = 2.0
SYNC_SECONDS = 15.0
UNKNOWN = "UNKNOWN"
MAYBE_REQUEUED = ("PREEMPTED", "NODE_FAIL")
"""States before a job is queued again, or for good."""
ENDED = ("", "COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE", *MAYBE_REQUEUED)


def submit(plan: Any, words: Sequence[str]) -> int:
    """Make the run's folder and script, pass them to sbatch, and follow the job. Returns the exit code.

    plan: a `run.Plan`. words: the command line, whose overrides a resumed run repeats.
    """
    options = plan.cluster
    assert options is not None
    _check(plan, options)
    run = Run.open(plan.resumed) if plan.resumed else Run.create(Path(plan.settings.outputs), plan.settings.run_name)
    try:
        job = _sbatch(plan, options, run, words)
    except BaseException as failure:
        run.finish("failed", str(failure))
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


def _check(plan: Any, options: ClusterOptions) -> None:
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


def _sbatch(plan: Any, options: ClusterOptions, run: Run, words: Sequence[str]) -> str:
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


def _script(plan: Any, options: ClusterOptions, run: Path, words: Sequence[str]) -> str:
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
