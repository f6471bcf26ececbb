"""The newest checkpoint of a run as W&B's artifact `model-<run id>`: uploaded while training goes on, older versions left to expire.

The artifact is the checkpoint's folder, and below `run/` what resuming elsewhere needs: run.json, config.yaml, metrics.jsonl
and metrics.json.
"""

from __future__ import annotations

import os
import shutil
from datetime import timedelta
from pathlib import Path
from typing import Any

from diffusion_forcing.files import read_json

TYPE = "model"
ALONG = ("run.json", "config.yaml", "metrics.jsonl", "metrics.json")
RUN = "run"
_LATEST, _FACTS = "latest", "checkpoint.json"
_ASK_SECONDS = 1  # W&B's artifacts are asked after in whole seconds


def collection(run_id: str) -> str:
    """The artifact's name; the released code's runs have the same."""
    return f"model-{run_id}"


class CheckpointUpload:
    """Uploads the newest checkpoint, one at a time."""

    def __init__(self, folder: Path, run_id: str, *, expire_days: float | None) -> None:
        """`folder`: the run's. `expire_days`: what an older version has left, counted from when it was made; None: all time."""
        self._folder = folder
        self._name = collection(run_id)
        self._expiry = None if expire_days is None else timedelta(days=expire_days)
        self._stage = folder / "wandb" / "staged"
        self._mark = folder / "wandb" / "checkpoint-sent"
        self._pending: tuple[Any, str] | None = None  # the artifact being uploaded, and the mark it leaves

    def forget(self) -> None:
        """What was sent did not arrive: send the newest again."""
        self._mark.unlink(missing_ok=True)
        self._pending = None

    def tick(self, session: Any) -> str | None:
        """Start an upload if there is something new, or look after the one under way. Returns a warning, or None."""
        if self._pending is not None:
            return self._look(session, _ASK_SECONDS)
        return self._begin(session)

    def finish(self, session: Any) -> str | None:
        """Wait for the upload under way, then send the last checkpoint, however long it takes."""
        warning = None
        for _ in range(2):
            if self._pending is not None:
                warning = self._look(session, None) or warning
            if self._pending is None and warning is None:
                warning = self._begin(session)
        return warning or (self._look(session, None) if self._pending is not None else None)

    def offline(self, session: Any) -> str | None:
        """Add the last checkpoint to an offline run; its copy stays for `wandb sync`, which uploads it."""
        warning = self._begin(session)
        if self._pending is not None:
            self._mark.write_text(self._pending[1])
            self._pending = None
        return warning

    def tidy(self) -> None:
        """Remove the copies: what was offline has been uploaded."""
        shutil.rmtree(self._stage, ignore_errors=True)

    def _begin(self, session: Any) -> str | None:
        import wandb

        newest = self._newest()
        if newest is None:
            return None
        facts = read_json(newest / _FACTS, {})
        mark = f"{newest.name} {facts.get('created')}"
        if self._mark.is_file() and self._mark.read_text() == mark:
            return None
        try:
            copy = self._copy(newest)
            about = {"step": facts.get("step"), "created": facts.get("created"), "checkpoint": newest.name}
            artifact = wandb.Artifact(self._name, TYPE, metadata=about)
            for file in sorted(path for path in copy.rglob("*") if path.is_file()):
                artifact.add_file(
                    str(file), name=file.relative_to(copy).as_posix(), policy="immutable", skip_cache=True
                )
            self._pending = (session.log_artifact(artifact), mark)
        except FileNotFoundError:  # a newer one took its place meanwhile
            return None
        except Exception as failure:
            self._mark.write_text(mark)  # not tried again and again
            return f"checkpoint {newest.name} is not uploaded to W&B: {failure}"
        return None

    def _look(self, session: Any, seconds: int | None) -> str | None:
        from wandb.sdk.artifacts.exceptions import WaitTimeoutError

        assert self._pending is not None
        artifact, mark = self._pending
        try:
            artifact.wait(seconds)
        except WaitTimeoutError:
            return None
        except Exception as failure:
            self._settle(mark)
            return f"checkpoint {mark.partition(' ')[0]} was not uploaded to W&B: {failure}"
        self._settle(mark)
        return self._expire(session)

    def _settle(self, mark: str) -> None:
        self._pending = None
        self._mark.write_text(mark)
        self.tidy()

    def _expire(self, session: Any) -> str | None:
        """Let W&B delete the versions before the newest, in their time."""
        import wandb

        if self._expiry is None:
            return None
        try:
            for version in list(wandb.Api(timeout=20).artifacts(TYPE, f"{session.path}/{self._name}")):  # newest first
                if "latest" in version.aliases:
                    continue
                if version.ttl == self._expiry:
                    break  # this one and all before it are settled
                version.ttl = self._expiry
                version.save()
        except Exception as failure:
            return f"older checkpoints stay on W&B: {failure}"
        return None

    def _copy(self, checkpoint: Path) -> Path:
        """What the artifact holds, of the checkpoint by hard links: W&B reads it while the training may delete the original."""
        copy = self._stage / checkpoint.name
        shutil.rmtree(copy, ignore_errors=True)
        (copy / RUN).mkdir(parents=True)
        for file in checkpoint.iterdir():
            if file.is_file():
                _link(file, copy / file.name)
        for name in ALONG:
            if (self._folder / name).is_file():
                shutil.copyfile(self._folder / name, copy / RUN / name)
        return copy

    def _newest(self) -> Path | None:
        """The checkpoint that `latest` points to, if it is whole."""
        pointed = self._folder / "checkpoints" / _LATEST
        try:
            path = pointed.parent / os.readlink(pointed)
        except OSError:
            return None
        return path if (path / _FACTS).is_file() else None


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, target)
