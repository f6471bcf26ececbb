"""A Slurm job from the inside: the script it runs, and how it is queued again before its time is over. `slurm` submits it.

`{name}` in the `launch_template` of `cluster/*.yaml` stands for the value of that name, quoted for the shell, so nothing
of a run's name is ever executed. A line with a null value is left out. Everything else stays as it is: `$HOME`.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from diffusion_forcing.errors import UserError, did_you_mean, require
from diffusion_forcing.experiments.processes import JOB_SIGNALS, Interrupted, is_main_process, started_by_slurm
from diffusion_forcing.terminal import tell

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
    from diffusion_forcing.checkpoints.resolve import latest

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
