"""`cluster=…`: the script a Slurm job runs, from the yaml's template.

`{name}` in a template becomes the value of that name, quoted for where it stands (a line of the shell, or of sbatch): whatever a run is
called, nothing of it is executed. A line with a value that is null is left out. What has no name stays as it is: `$HOME`, `${HOME}`, `{ …; }`.
"""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diffusion_forcing.errors import UserError, did_you_mean

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
