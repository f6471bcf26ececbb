"""A run's checkpoint from W&B: `load=<run id>` and `resume=<run id>` where the run is not on this machine.

    python -m diffusion_forcing.tracking.wandb_download RUN PROJECT [ENTITY] FOLDER

asks W&B for the newest version of the artifact `model-<run id>`, downloads it into FOLDER, which is empty, and compares every file with
W&B's own digests; one that lies beside FOLDER as <id>-<version> is not downloaded again. One line of JSON says what came:
{"version", "entity", "project"} or {"error"}. `fetch` runs that as a process of its own, so that wandb is not imported beside a training;
what was downloaded takes its place by one rename, after whoever asked has looked at it.
"""

from __future__ import annotations

import json
import netrc
import os
import re
import secrets
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from diffusion_forcing.errors import UserError
from diffusion_forcing.tracking.run import ID_LENGTH
from diffusion_forcing.tracking.wandb import EXTRA, installed, mirror_environment

RUN_ID = re.compile(rf"(?:(?P<entity>\w[\w.-]*)/(?P<project>\w[\w.-]*)/)?(?P<id>[a-z0-9]{{{ID_LENGTH}}})")
"""What is looked for on W&B: a run's id, or entity/project/id."""
REASON_LENGTH = 300


def is_run_id(spec: str) -> bool:
    """Whether `spec` could be a run on W&B: `abcd1234`, or `entity/project/abcd1234`."""
    return RUN_ID.fullmatch(spec) is not None


def logged_in() -> bool:
    """Whether this machine has a login for W&B, as far as can be told without asking anybody."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        hosts = netrc.netrc(os.environ.get("NETRC")).hosts
    except (OSError, netrc.NetrcParseError):
        return False
    ours = urlparse(os.environ.get("WANDB_BASE_URL", "")).hostname
    return any("wandb" in host or host == ours for host in hosts)


def fetch(spec: str, folder: Path, *, entity: str | None, project: str, check: Callable[[Path], None]) -> Path:
    """The newest checkpoint of the run `spec` on W&B, in `folder` as <id>-<version>: whole or not at all; one that is there already stays.

    `check(path)` looks at what came, before it takes its place, and raises UserError where it is not good. UserError in one line for
    all that can go wrong: no wandb, no network, no login, no such run, a download cut short.
    """
    found = RUN_ID.fullmatch(spec)
    assert found is not None
    if not installed():
        raise UserError(f"to look for run {spec} on W&B, wandb has to be installed: {EXTRA}")
    temporary = folder / f".{found['id']}.tmp-{secrets.token_hex(4)}"
    try:
        temporary.mkdir(parents=True)
        answer = _ask([found["id"], found["project"] or project, found["entity"] or entity or "", str(temporary)])
        place = folder / f"{found['id']}-{answer['version']}"
        if place.is_dir() and not any(temporary.iterdir()):
            return place
        check(temporary)
        if not place.is_dir():  # another process may have brought it meanwhile
            os.replace(temporary, place)
    except OSError as failure:
        raise UserError(f"cannot write the run from W&B into {folder}: {failure.strerror or failure}") from failure
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return place


def _ask(words: list[str]) -> dict[str, Any]:
    """The answer of the process of its own."""
    command = [sys.executable, "-m", "diffusion_forcing.tracking.wandb_download", *words]
    done = subprocess.run(
        command, env=mirror_environment(), stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    try:
        answer = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        answer = {"error": (done.stderr.strip().splitlines() or [f"wandb ended with {done.returncode}"])[-1]}
    if "error" in answer:
        raise UserError(str(answer["error"]))
    return dict(answer)


def download(run_id: str, project: str, entity: str | None, folder: Path) -> dict[str, Any]:
    """In the process of its own: the newest version of the run's artifact into `folder`. Returns the answer."""
    import wandb

    from diffusion_forcing.tracking.wandb_checkpoint import collection
    from diffusion_forcing.tracking.wandb_session import away

    if (gone := away()) is not None:
        return {"error": gone.why}
    api = wandb.Api(timeout=30)
    where = f"{entity or api.default_entity}/{project}"
    try:
        artifact = api.artifact(f"{where}/{collection(run_id)}:latest", type="model")
    except Exception as failure:
        return {
            "error": f"{where} has no checkpoint of a run {run_id} ({_line(failure)}); wandb.entity= and wandb.project= say where"
        }
    if not (folder.parent / f"{run_id}-{artifact.version}").is_dir():
        artifact.download(root=str(folder), skip_cache=True)
        artifact.verify(root=str(folder))
    return {"version": artifact.version, "entity": where.partition("/")[0], "project": project}


def _line(failure: BaseException) -> str:
    lines = str(failure).strip().splitlines()
    return lines[0][:REASON_LENGTH] if lines else type(failure).__name__


def main(words: list[str]) -> int:
    run_id, project, entity, folder = words
    try:
        answer = download(run_id, project, entity or None, Path(folder))
    except Exception as failure:
        answer = {"error": f"{type(failure).__name__}: {_line(failure)}"}
    print(json.dumps(answer), flush=True)
    return 1 if "error" in answer else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
