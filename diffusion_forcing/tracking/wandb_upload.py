"""Upload of a run's folder to W&B, and download of its newest checkpoint: everything that calls the package wandb.

Every row on W&B carries the number of its line in metrics.jsonl, so W&B itself says where to continue: after a lost
connection, a crash or a resume no row is missing and none is sent twice. While W&B cannot be used nothing is lost, for
the folder has everything.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import shlex
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Collection, Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import wandb
from wandb.sdk.artifacts.exceptions import WaitTimeoutError

from diffusion_forcing.errors import UserError, first_line
from diffusion_forcing.files import (
    file_name,
    folders,
    is_plain,
    is_regular,
    open_file,
    read_bytes,
    read_json,
    replacing,
    write_json,
)
from diffusion_forcing.terminal import say
from diffusion_forcing.tracking.records import (
    LINE_BYTES,
    RUN,
    RUN_FILES,
    media_path,
    parse_line,
    read_media,
    read_metadata,
    read_results,
)

POLL_SECONDS = 0.5
CONNECT_SECONDS = 20  # for W&B to answer
INIT_SECONDS = 60.0  # for W&B to accept a run
FINISH_SECONDS = 120.0  # for the last rows, after the run has ended
CONFIRM_SECONDS = 15.0  # for W&B to report the last row
RETRIES = 1_000_000  # W&B's client waits for a lost network
STEP = "trainer/global_step"  # the x axis of every curve, as Lightning's logger names it
LINE = "line"  # the line of metrics.jsonl that a row is
ROWS_BYTES = 2**26  # of a table


class Upload:
    """Uploads the run in a folder while it grows, until it has ended."""

    def __init__(self, folder: Path, settings: Mapping[str, Any], *, report: Callable[[str], None]) -> None:
        """`settings`: see `start_upload`. `report` prints a message."""
        self.folder, self.settings, self.report = folder, settings, report
        self.parent: int | None = settings["parent"]
        self.metadata = read_metadata(folder) or {}
        self.online = settings["mode"] != "offline"
        self.session: Any = None  # W&B's run; None while W&B is not available
        self._note = folder / "wandb" / f"sent-{settings['mode']}.json"
        self._lines = _Lines(folder / "metrics.jsonl", 0)
        self._media_time = self._summary_time = self._step = 0
        self._checkpoint = ""  # the last one that was uploaded, or is being uploaded
        self._artifact: Any = None  # being uploaded
        self._next_try = 0.0
        self._warned = False

    def run(self) -> bool:
        """Upload until the run has ended; whether W&B has all of it."""
        while True:
            status = self._status()  # read before the files: nothing is written after the run has ended
            if self.session is None and (status or time.monotonic() >= self._next_try):
                self._connect()
            if self.session is not None:
                self._send()
            if status:
                return self._finish(status)
            time.sleep(POLL_SECONDS)

    def _status(self) -> str | None:
        """How the run ended; None while it is running."""
        orphaned = self.parent is not None and os.getppid() != self.parent  # asked before run.json is read
        status = str(read_json(self.folder / "run.json", {}).get("status"))
        if status != "running":
            return status
        return None if self.settings["follow"] or (self.parent is not None and not orphaned) else "killed"

    def _connect(self) -> None:
        self._next_try = time.monotonic() + self.settings["retry_seconds"]
        reason = unavailable() if self.online else None
        if reason is None:
            try:
                self.session = self._open()
            except Exception as error:
                wandb.teardown()  # the run's id stays taken otherwise
                reason = f"W&B does not accept the run ({first_line(error)})"
        if reason is not None:
            self._warn(reason)
            return
        note = read_json(self._note, {})
        # Online, W&B knows how many lines it has; offline, the note of the last session does.
        sent = self.session.summary.get(LINE) or 0 if self.online else note.get("lines", 0)
        self._lines = _Lines(self.folder / "metrics.jsonl", int(sent))
        self._media_time, self._summary_time = note.get("media_time", 0), 0
        self._checkpoint = note.get("checkpoint", "")
        if self.online:
            self.report(f"W&B: {self.session.url}")
        self._warned = False

    def _open(self) -> Any:
        session = wandb.init(
            entity=self.settings["entity"],
            project=self.settings["project"],
            id=self.metadata["id"],
            name=self.metadata["name"],
            config=self.settings["config"],
            resume="allow",
            mode="online" if self.online else "offline",
            dir=str(self.folder),
            settings=wandb.Settings(
                console="off",
                silent=True,
                init_timeout=INIT_SECONDS,
                finish_timeout=FINISH_SECONDS,
                finish_timeout_raises=True,
                program=shlex.join(str(word) for word in self.metadata.get("command", [])),
                x_stats_pid=self.parent or os.getpid(),  # the load of the training, not of this process
                x_stats_track_process_tree=True,
                disable_git=True,
                save_code=False,
                x_file_stream_retry_max=RETRIES,
                x_file_transfer_retry_max=RETRIES,
                x_graphql_retry_max=RETRIES,
            ),
        )
        session.define_metric(STEP)
        session.define_metric(LINE, hidden=True)
        session.define_metric("*", step_metric=STEP)
        about = {key: self.metadata.get(key) for key in ("commit", "host", "started", "command")}
        session.config.update({"run": about}, allow_val_change=True)
        return session

    def _send(self) -> None:
        """Upload what is new in the folder. After an error of W&B's the session is closed, to be opened again later."""
        try:
            for number, line in self._lines.new():
                if (record := parse_line(line)) is not None:
                    self._step, moment = int(record.pop("step")), record.pop("time", None)
                    self._row(number, record | ({} if moment is None else {"_timestamp": moment}))
            self._send_media()
            summary = self.folder / "metrics.json"
            if (changed := _time_of(summary)) != self._summary_time:
                self._summary_time = changed
                self.session.summary.update(read_results(self.folder))
            if self.online:
                self._send_checkpoint()
        except Exception as error:
            if not self.online:
                raise
            self._warn(unavailable() or f"W&B failed ({type(error).__name__}: {first_line(error)})")
            self.session = self._artifact = None
            wandb.teardown()

    def _row(self, number: int, values: dict[str, Any]) -> None:
        self.session.log({STEP: self._step, LINE: number, **values})

    def _send_media(self) -> None:
        """Upload images, videos and tables that are new or were replaced, as one row."""
        shown, newest = {}, self._media_time
        for entry in read_media(self.folder):
            path = media_path(self.folder, entry)
            if (changed := _time_of(path)) > self._media_time:
                newest = max(newest, changed)
                try:
                    shown[f"{entry['kind']}s/{entry['name']}"] = _media(entry, path)
                except Exception as error:
                    say(f"{path}: {first_line(error)}")
        if shown:
            self._row(self._lines.sent, shown)
        self._media_time = newest

    def _send_checkpoint(self, seconds: int = 1) -> bool:
        """Upload the newest checkpoint, one at a time; whether an upload is in progress after at most `seconds`."""
        if not self.settings["checkpoints"]:
            return False
        if self._artifact is not None:
            try:
                self._artifact.wait(seconds)
                self._expire()
            except WaitTimeoutError:
                return True
            except Exception as error:
                self.report(f"warning: uploading checkpoint {self._checkpoint} to W&B: {first_line(error)}")
            self._artifact = None
        newest = self._newest()
        metadata = read_json(newest / "checkpoint.json", {})
        mark = f"{newest.name} {metadata.get('created')}"
        if metadata and mark != self._checkpoint:
            about = {"step": metadata.get("step"), "created": metadata.get("created"), "checkpoint": newest.name}
            artifact = wandb.Artifact(artifact_name(self.metadata["id"]), "model", metadata=about)
            try:
                files = {path.name: path for path in newest.iterdir()}
                files |= {f"{RUN}/{name}": self.folder / name for name in RUN_FILES}
                for name, path in files.items():
                    if is_regular(path):  # a copy is sent: the training may delete the checkpoint
                        artifact.add_file(str(path), name=name, skip_cache=True)
            except (OSError, ValueError) as error:
                if newest.is_dir():  # else a newer one has replaced it
                    self.report(f"warning: checkpoint {newest.name} cannot be uploaded to W&B: {first_line(error)}")
                    self._checkpoint = mark
                return False
            self._artifact, self._checkpoint = self.session.log_artifact(artifact, aliases=["latest"]), mark
        return self._artifact is not None

    def _newest(self) -> Path:
        """The newest checkpoint of the run's own."""
        checkpoints = self.folder / "checkpoints"
        with contextlib.suppress(OSError):
            found = checkpoints / os.readlink(checkpoints / "latest")
            if found in folders(checkpoints):
                return found
        return checkpoints / "none"

    def _expire(self) -> None:
        """Let W&B delete every version but the newest after `expire_days`."""
        if self.settings["expire_days"] is None:
            return
        expiry = timedelta(days=self.settings["expire_days"])
        name = f"{self.session.entity}/{self.session.project}/{artifact_name(self.metadata['id'])}"
        for version in wandb.Api(timeout=CONNECT_SECONDS).artifacts("model", name):
            if "latest" not in version.aliases and version.ttl != expiry:
                version.ttl = expiry
                version.save()

    def _finish(self, status: str) -> bool:
        """Close the session as the run ended; whether W&B has everything."""
        later = f"diffusion-forcing runs sync {self.metadata['id']} sends later what W&B lacks"
        reason = "W&B is not available" if self.session is None else unavailable() if self.online else None
        if reason is not None:
            self.report(f"warning: {reason} at the end of the run; {later}")
            return False
        # The last checkpoint takes as long as it takes; an offline run only receives it.
        while self._send_checkpoint(5) and self.online and unavailable() is None:
            pass
        whole = self._artifact is None or not self.online
        try:
            self.session.summary["status"] = status
            self.session.finish(exit_code=0 if status == "finished" else 1)
            whole = whole and (not self.online or self._confirmed())
        except Exception as error:
            say(f"finish: {first_line(error)}")
            whole = False
        if not whole:
            self.report(f"warning: W&B has not received all of the run; {later}")
            return False
        note = {"lines": self._lines.sent, "media_time": self._media_time, "checkpoint": self._checkpoint}
        write_json(self._note, note)
        if not self.online:
            self.report(f"W&B, offline: upload it with wandb sync {Path(self.session.dir).parent}")
        return True

    def _confirmed(self) -> bool:
        """Whether W&B says that it has every line; finish() succeeds also where an upload failed."""
        place = f"{self.session.entity}/{self.session.project}/{self.session.id}"
        deadline = time.monotonic() + CONFIRM_SECONDS
        while time.monotonic() < deadline:
            with contextlib.suppress(Exception):
                if int(wandb.Api(timeout=CONNECT_SECONDS).run(place).summary.get(LINE) or 0) >= self._lines.sent:
                    return True
            time.sleep(POLL_SECONDS)
        return False

    def _warn(self, reason: str) -> None:
        if not self._warned:
            self.report(f"warning: {reason}; the run's folder has everything, W&B is tried again")
            self._warned = True


class _Lines:
    """The complete lines of a file that grows, each once; a resumed run may cut it shorter and write it again."""

    def __init__(self, path: Path, sent: int) -> None:
        """Lines up to number `sent` are skipped."""
        self.sent = sent
        self._path = path
        self._offset = self._number = 0

    def new(self) -> Iterator[tuple[int, bytes]]:
        """Yield (number, line) for what was appended."""
        try:
            file = open_file(self._path)
        except OSError:
            return
        with file:
            if file.seek(0, os.SEEK_END) < self._offset:
                self._offset = self._number = 0
            file.seek(self._offset)
            while (line := file.readline(LINE_BYTES)).endswith(b"\n"):
                self._offset += len(line)
                self._number += 1
                if self._number > self.sent:
                    self.sent = self._number
                    yield self._number, line


def artifact_name(run_id: str) -> str:
    """The name of a run's checkpoint on W&B, as in the released code."""
    return f"model-{run_id}"


def unavailable() -> str | None:
    """Why W&B cannot be used now; None if it answers and accepts the login."""
    url = str(wandb.setup().settings.base_url)
    try:
        urllib.request.urlopen(url, timeout=CONNECT_SECONDS).close()
    except urllib.error.HTTPError:
        pass  # it answers
    except (OSError, ValueError, http.client.HTTPException) as error:
        return f"W&B at {url} cannot be reached ({getattr(error, 'reason', None) or error})"
    try:
        wandb.Api(timeout=CONNECT_SECONDS).viewer  # noqa: B018  raises without a login
    except Exception as error:
        return f"W&B at {url} does not accept the login ({first_line(error)}); run wandb login or set WANDB_API_KEY"
    return None


def download_newest_checkpoint(
    run_id: str,
    project: str,
    entity: str | None,
    folder: Path,
    *,
    files: Collection[str],
    check: Callable[[Path], None],
) -> Path:
    """Download the run's newest checkpoint as folder/<run id>-<version>, unless it is there already.

    Only `files` and the `RUN_FILES` are downloaded, or one .ckpt. They are compared with W&B's digests, then passed to
    `check`, which may refuse them with a UserError. UserError where W&B cannot be used or has no checkpoint.
    """
    try:
        if (reason := unavailable()) is not None:
            raise UserError(reason)
        api = wandb.Api(timeout=CONNECT_SECONDS)
        name = f"{entity or api.default_entity}/{project}/{artifact_name(run_id)}:latest"
        try:
            artifact = api.artifact(name, type="model")
            place = folder / file_name(f"{run_id}-{artifact.version}")
            if not place.is_dir():
                with replacing(place) as temporary:
                    _download(artifact, temporary, [*files, *(f"{RUN}/{name}" for name in RUN_FILES)])
                    check(temporary)
        except UserError:
            raise
        except Exception as error:
            raise UserError(
                f"{name} cannot be downloaded from W&B ({first_line(error)}); pass wandb.entity= and wandb.project="
            ) from error
        return place
    finally:
        wandb.teardown()


def _download(artifact: Any, folder: Path, files: Collection[str]) -> None:
    """Download what is known of an artifact, and check it. UserError where a file of it lies elsewhere."""
    entries = artifact.manifest.entries
    wanted = set(entries) & set(files) or {name for name in entries if is_plain(name) and name.endswith(".ckpt")}
    for name in set(entries) - wanted:
        if name.startswith(tuple(wanted)):
            raise UserError(f"the artifact {artifact.name} has a file {name}, which no checkpoint has")
    for name in wanted:
        if entries[name].ref is not None:
            raise UserError(f"the artifact {artifact.name} refers to {entries[name].ref}, which is not read")
        artifact.download(root=str(folder), path_prefix=name, skip_cache=True)
    for name in set(entries) - wanted:  # `verify` is about what is downloaded
        del entries[name]
    artifact.verify(root=str(folder))


def _media(entry: dict[str, Any], path: Path) -> Any:
    """The image, video or table at `path` as W&B's data type."""
    caption = str(entry.get("caption") or "")
    if entry["kind"] == "table":
        rows = read_json(path.with_suffix(".json"), {}, most=ROWS_BYTES).get("rows", [])
        columns = list(dict.fromkeys(key for row in rows for key in row))
        return wandb.Table(columns, [[row.get(key) for key in columns] for row in rows], allow_mixed_types=True)
    if path.suffix == ".mp4":
        return wandb.Video(str(path), caption=caption, format="mp4")
    if path.suffix == ".svg":
        return wandb.Html(read_bytes(path, ROWS_BYTES).decode("utf-8", "replace"))
    return wandb.Image(str(path), caption=caption)


def _time_of(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0
