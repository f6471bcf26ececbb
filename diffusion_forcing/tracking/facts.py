"""What a run says of itself in run.json: who it is, what started it, where and when, from which code; and how it is found again."""

from __future__ import annotations

import os
import secrets
import socket
import string
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from diffusion_forcing.errors import UserError, did_you_mean
from diffusion_forcing.tracking.files import read_json

ID_LENGTH = 8


def new_facts(name: str, command: Sequence[str] | None = None) -> dict[str, Any]:
    """The facts of a run that starts now. `command`: the words that started it, sys.argv unless given."""
    return {
        "id": new_id(),
        "name": name,
        "status": "running",
        "command": list(sys.argv if command is None else command),
        "started": now(),
        "directory": os.getcwd(),
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "python": sys.version.split()[0],
        "commit": commit(),
    }


def resumed_facts(facts: Mapping[str, Any], command: Sequence[str] | None = None) -> dict[str, Any]:
    """`facts` of a run that goes on now: running again, this start noted under "resumed"."""
    words = list(sys.argv if command is None else command)
    again = {"time": now(), "command": words, "commit": commit()}
    kept = {key: value for key, value in facts.items() if key != "ended"}
    here = {"status": "running", "host": socket.gethostname(), "pid": os.getpid()}
    return {**kept, **here, "resumed": [*facts.get("resumed", []), again]}


def checked_facts(facts: Any) -> dict[str, Any]:
    """What a run.json says, as `new_facts` makes it; ValueError where it is not so."""
    if not isinstance(facts, dict):
        raise ValueError("it holds no mapping")
    for key, kind in (("id", str), ("name", str), ("started", str), ("resumed", list)):
        if not isinstance(facts.get(key, [] if key == "resumed" else None), kind):
            raise ValueError(f"'{key}' is missing or of another type")
    return facts


def find_run(outputs: Path, run_id: str) -> Path:
    """The folder in `outputs` of the run with this id; UserError with the nearest id if there is none."""
    ids = []
    for facts in sorted(Path(outputs).glob("*/*/run.json"), reverse=True):  # newest first
        found = read_json(facts, {}).get("id")
        if found == run_id:
            return facts.parent
        ids.append(str(found))
    near = did_you_mean(run_id, ids)
    raise UserError(
        f"no run '{run_id}' in {str(outputs)!r}{near}; {len(ids)} run{'s' * (len(ids) != 1)} there, the id is in each run.json"
    )


def new_id() -> str:
    """Eight lower-case letters and digits, a letter first; there are 2e12 of them, so two do not meet."""
    rest = (secrets.choice(string.ascii_lowercase + string.digits) for _ in range(ID_LENGTH - 1))
    return secrets.choice(string.ascii_lowercase) + "".join(rest)


def now() -> str:
    """The time here, to the second: 2026-11-23T14:15:46+01:00."""
    return datetime.now().astimezone().isoformat(timespec="seconds")


def commit() -> str | None:
    """The git commit of the checkout this package runs from; None when it is an installed copy or git is not there."""
    package = Path(__file__).resolve().parents[1]
    words = ["git", "-C", str(package), "rev-parse", "--show-toplevel", "HEAD"]
    try:
        lines = subprocess.run(words, capture_output=True, text=True, timeout=5, check=True).stdout.splitlines()
    except (OSError, subprocess.SubprocessError):
        return None
    return lines[1] if len(lines) == 2 and Path(lines[0]) == package.parent else None
