"""A run as a Slurm job: its folder is made here, where it is submitted; the job goes on with that run until it is finished.

What was typed is checked and composed before anything is submitted, and lies in the run's folder. So a job's command is `resume=FOLDER`,
the first time as after each requeue: a run that has no checkpoint yet begins at its beginning.
"""

from __future__ import annotations

import codecs
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
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from diffusion_forcing.errors import UserError, did_you_mean
from diffusion_forcing.experiments.processes import JOB_SIGNALS, Interrupted, is_main_process, started_by_slurm
from diffusion_forcing.files import read_json, write_atomic, write_json
from diffusion_forcing.launch.compose import as_yaml
from diffusion_forcing.launch.report import say
from diffusion_forcing.tracking.run import Run

if TYPE_CHECKING:
    from diffusion_forcing.launch.run import Plan

# `cluster=…`: the script a Slurm job runs, from the yaml's template.
#
# `{name}` in a template becomes the value of that name, quoted for where it stands (a line of the shell, or of sbatch): whatever a run is
# called, nothing of it is executed. A line with a value that is null is left out. What has no name stays as it is: `$HOME`, `${HOME}`, `{ …; }`.

_PLACEHOLDER = re.compile(r"(?<!\$)\{([A-Za-z_]\w*)\}")
_DIRECTIVE = "#SBATCH"
_FILE_NAME = re.compile(r"#SBATCH\s+(--output|--error|-o|-e)\b")
_KNOWN = ("env_name", "num_gpus", "gpu_type", "num_cpus", "memory", "time", "email", "partition", "account")
"""Parameters of base_slurm; a template need not use them."""

FOLDER, SCRIPT = "slurm", "job.sh"
"""In the run's folder: the script, the job's number and its logs."""

Value = str | int | float | bool | None


@dataclass(frozen=True, kw_only=True)
class ClusterOptions:
    """One cluster: `cluster/*.yaml`. params: what the template names, beside what `job_values` gives."""

    launch_template: str
    params: dict[str, Any] = field(default_factory=dict)
    is_compute_node_offline: bool = False
    follow: bool = True

    def __post_init__(self) -> None:
        for name, value in self.params.items():
            if name not in _KNOWN and f"{{{name}}}" not in self.launch_template:
                raise UserError(
                    f"unknown key cluster.params.{name}{did_you_mean(name, _KNOWN)}: the cluster's launch_template has no {{{name}}}"
                )
            if not isinstance(value, str | int | float | bool | None):
                raise UserError(f"cluster.params.{name} is a number, a text or null; got {value!r}")
        for name, lowest in (("num_gpus", 0), ("num_cpus", 1)):
            value = self.params.get(name, lowest)
            if not isinstance(value, int) or isinstance(value, bool) or value < lowest:
                raise UserError(f"cluster.params.{name} is a whole number from {lowest} up, got {value!r}")

    def tasks_per_node(self, devices: int | str) -> int:
        """Processes on each machine: `devices` of the experiment, or as many as GPUs. UserError if there are GPUs, but too few."""
        gpus = int(self.params.get("num_gpus") or 0)
        if not isinstance(devices, int):
            return max(1, gpus)
        if gpus and devices > gpus:
            raise UserError(
                f"experiment.training.devices is {devices} and cluster.params.num_gpus {gpus}: a process has a GPU of its own; "
                f"pass cluster.params.num_gpus={devices}, or 0 for processes on CPUs"
            )
        return devices

    def values(self, *, name: str, log_dir: Path, devices: int | str, num_nodes: int) -> dict[str, Value]:
        """What a template can name, but for `python_args`; no GPUs are null too."""
        tasks, gpus, kind = (
            self.tasks_per_node(devices),
            self.params.get("num_gpus") or None,
            self.params.get("gpu_type"),
        )
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


def is_new_job(folder: Path) -> bool:
    """Whether the run in `folder` was made for a job that has saved nothing yet."""
    if not (folder / FOLDER / SCRIPT).is_file():
        return False
    from diffusion_forcing.checkpoints.resolve import latest

    return latest(folder) is None


def script(template: str, values: Mapping[str, Value], python_args: Sequence[str]) -> str:
    """The job's script; UserError for a template that names what is not there, or names it where quoting would not hold."""
    known: dict[str, tuple[Value, ...]] = {name: (value,) for name, value in values.items()}
    known["python_args"] = tuple(python_args)
    lines = []
    for number, line in enumerate(template.splitlines(), start=1):
        where = f"line {number} of cluster.launch_template"
        names = _PLACEHOLDER.findall(line)
        for name in names:
            if name not in known:
                there = ", ".join(sorted(known))
                raise UserError(f"{where} names {{{name}}}{did_you_mean(name, known)}; there are: {there}")
        if any(None in known[name] for name in names):
            continue
        _check_quotes(line, where)
        quote = _of_file_name if _FILE_NAME.match(line) else shlex.quote
        lines.append(_PLACEHOLDER.sub(lambda found: _quoted(found[1], known[found[1]], quote), line))  # noqa: B023
    return "\n".join(lines) + "\n"


def _quoted(name: str, values: Sequence[Value], quote: Callable[[str], str]) -> str:
    """`values` as words."""
    words = [str(value) for value in values]
    for word in words:
        if not word.isprintable():
            raise UserError(
                f"{name} {word!r} has a line break or another sign that no line of a script can hold; leave it out"
            )
    return " ".join(quote(word) for word in words)


def _of_file_name(word: str) -> str:
    """The word in the name of a log, where sbatch gives % a meaning. Its quotes are the shell's."""
    return shlex.quote(word.replace("%", "%%"))


def _check_quotes(line: str, where: str) -> None:
    """UserError for a placeholder within quotes, where the quotes of its value would end them, or in a text for another command."""
    quote, position = "", 0
    placeholders = {found.start(): found[0] for found in _PLACEHOLDER.finditer(line)}
    while position < len(line):
        sign = line[position]
        if position in placeholders and quote:
            raise UserError(
                f"{where} has {placeholders[position]} within quotes; leave them out: a value is quoted where it needs to be"
            )
        if sign == "\\" and quote != "'":
            position += 1
        elif sign == quote:
            quote = ""
        elif sign in "'\"`" and not quote:
            quote = sign
        elif (
            sign == "#"
            and not quote
            and (position == 0 or line[position - 1].isspace())
            and not line.startswith(_DIRECTIVE)
        ):
            return  # a comment
        position += 1
    if "<<" in line and "<<<" not in line:
        raise UserError(
            f"{where} begins a text for another command (<<): what stands in it would not be quoted; write it into a file"
        )


# A Slurm job seen from outside: its state, and its log as it grows.

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


# In a Slurm job: when Slurm wants the machine back, the run saves, queues its job again, and ends.
#
# SIGUSR1 and SIGUSR2 are warnings (`--signal`), SIGTERM is one too where the job makes room for another. Training saves at its next step
# (`experiments.interrupts`); other tasks stop where they are, and begin again. A job that was cancelled, or whose time is over, gets SIGTERM
# as well: Slurm has given it up then, and it is not queued again.

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


# On the machine that submitted: passes a job's run on to W&B while it trains where there is no internet.
#
#     python -m diffusion_forcing.launch.slurm FOLDER JOB COMMAND …
#
# The run's folder, which both machines see, has everything; so the job itself knows of no W&B, and COMMAND (`runs sync ID --follow`) reads
# the folder here as it grows. It ends when the run does; after a requeue the run goes on, and so does this, until the job is over.

LOG, FOLLOW = "sync.log", "--follow"
SYNC_SECONDS = 15.0
"""How often to look whether the run goes on; what it logs is passed on as it comes."""
RETRIES = 3
"""How often the last pass is tried."""


def wanted(config: DictConfig) -> bool:
    """Whether the run is one for W&B, online: by its mode, or as one of its trackers."""
    mode = OmegaConf.select(config, "wandb.mode")
    return mode == "online" or (mode is None and "wandb" in (OmegaConf.select(config, "tracking") or {}))


def start(run: Path, run_id: str, job: str) -> int:
    """Start it in the background, for longer than the terminal lives; the process's number."""
    log = run / FOLDER / LOG
    command = [
        sys.executable,
        "-m",
        "diffusion_forcing",
        "runs",
        "sync",
        run_id,
        FOLLOW,
        f"outputs={run.parents[1]}",
    ]
    with log.open("ab") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "diffusion_forcing.launch.slurm", str(run), job, *command],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            start_new_session=True,
        )
    return process.pid


def keep_passing_on(run: Path, job: str, command: Sequence[str], *, wait: Callable[[float], None] = time.sleep) -> bool:
    """Run `command` whenever the run in `run` is running, until the job is over, and a last time then. Whether that went well."""
    while state_of(job) not in OVER:
        if read_json(run / "run.json", {}).get("status") == "running":
            subprocess.run(command, check=False)
        wait(SYNC_SECONDS)
    facts = read_json(run / "run.json", {})
    if facts.get("status") == "running":  # its processes were killed, and could not say so
        write_json(run / "run.json", {**facts, "status": "failed"})
    command = [word for word in command if word != FOLLOW]
    for attempt in range(RETRIES):
        if subprocess.run(command, check=False).returncode == 0:
            return True
        if attempt < RETRIES - 1:
            wait(SYNC_SECONDS)
    return False


def main(words: Sequence[str]) -> int:
    folder, job, *command = words
    return 0 if keep_passing_on(Path(folder), job, command) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

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
    if options.is_compute_node_offline and wanted(checked.config):
        number = start(run.folder.resolve(), run.id, job)
        say(f"  the job has no internet: process {number} here passes its run on to W&B; {run.folder / FOLDER / LOG}")
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
    if offline and wanted(config):
        saved["wandb"]["mode"] = "disabled"
    return saved


def _is_ours(word: str) -> bool:
    """Whether a word of the command line is about where to run, not what."""
    key = word.lstrip("+~").partition("=")[0]
    return key in ("resume", "cluster") or key.startswith("cluster.")
