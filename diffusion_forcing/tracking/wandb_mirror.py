"""The mirror: reads a run's folder as it grows and passes it on to W&B. It is a process of its own, `wandb_process`.

Every row on W&B carries the number of the line of metrics.jsonl it stands for. So W&B itself says where to go on, whatever happened before:
a lost network, a crash, a login that expired, an offline run that was synced by hand. While W&B is away nothing is written, for the folder
has it all; it is looked for again every `retry_seconds`. If the run ends meanwhile, what W&B lacks becomes an offline run of its own, for
`wandb sync`.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from diffusion_forcing.files import read_json, write_json
from diffusion_forcing.tracking.wandb import FOLDER, SENT, SETTINGS
from diffusion_forcing.tracking.wandb_checkpoint import CheckpointUpload
from diffusion_forcing.tracking.wandb_session import Session, away, close, supersede_offline

POLL_SECONDS = 0.5
LAST_TRY_SECONDS = 15.0  # that W&B may take, at the end, to say that it has everything


class Mirror:
    """Passes one run on."""

    def __init__(
        self,
        folder: Path,
        *,
        say: Callable[[str], None],
        hang_up: Callable[[], None] = lambda: None,
        parent: int | None = None,
        follow: bool = False,
    ) -> None:
        """`say`: a line for the person at the terminal. `hang_up`: called once nobody need wait for the rest. `parent`: the process whose
        run this is. `follow`: the run is another machine's; go on until run.json says that it ended."""
        self.folder = folder
        self.say = say
        self.hang_up = hang_up
        self.parent = parent
        self.follow = follow
        self.settings = read_json(folder / FOLDER / SETTINGS, {})
        self.facts = read_json(folder / "run.json", {})
        self.session: Session | None = None
        self.upload = CheckpointUpload(folder, str(self.facts["id"]), expire_days=self.settings["expire_days"])
        self._sent: dict[str, Any] = {
            "lines": 0,
            "media": {},
            **read_json(folder / FOLDER / SENT, {}),
        }  # as of the last whole session
        self._lines = Lines(folder / "metrics.jsonl", 0)
        self._media: dict[str, int] = {}  # what was sent in this session or a whole one before, with the file's time
        self._summary_time = 0
        self._step = 0
        self._next_try = 0.0
        self._warned = False

    def run(self) -> bool:
        """Follow the run to its end. Returns whether W&B has all of it, or an offline run of W&B's has."""
        try:
            return self._follow()
        finally:
            close()

    def _follow(self) -> bool:
        self._connect()
        while True:
            status = self._ended()  # before reading: what is read after it is all there is
            self._pass_on()
            if status is not None:
                return self._finish(status)
            if time.monotonic() >= self._next_try:
                self._look()
            time.sleep(POLL_SECONDS)

    # Connecting

    def _connect(self) -> None:
        """Open a session if W&B is there; else say once that it is not."""
        self._next_try = time.monotonic() + self.settings["retry_seconds"]
        if self.settings["mode"] == "offline":
            self._begin(Session(self.folder, self.facts, self.settings, online=False), self._sent["lines"])
            return
        gone = away()
        why = gone.why if gone is not None else ""
        if gone is None:
            try:
                session = Session(self.folder, self.facts, self.settings, online=True)
            except Exception as failure:
                why = f"W&B does not take the run ({_line(failure)})"
            else:
                self.say(f"{'W&B is back: ' if self._warned else 'W&B: '}{session.url}")
                self._warned = False
                supersede_offline(self.folder)
                self._begin(session, session.lines)
                return
        if not self._warned:
            self.say(f"warning: {why}; tracked in the run's folder until W&B is back")
            self._warned = True

    def _begin(self, session: Session, lines: int) -> None:
        """Go on behind the first `lines` lines of metrics.jsonl."""
        self.session = session
        self._lines = Lines(self.folder / "metrics.jsonl", lines)
        self._media = dict(self._sent["media"])
        self._summary_time = 0

    def _look(self) -> None:
        """Is W&B back, or is it gone?"""
        if self.session is None:
            self._connect()
        elif self.session.online:
            self._next_try = time.monotonic() + self.settings["retry_seconds"]
            gone = away()
            if gone is not None and gone.login:  # a network that is gone is waited for by W&B's own process
                self._lose(gone.why)

    def _lose(self, why: str) -> None:
        """The session is of no use any more."""
        assert self.session is not None
        self.say(f"warning: {why}; tracked in the run's folder until W&B is back")
        self._warned = True
        self.session.abandon()
        self.session = None
        self._next_try = time.monotonic() + self.settings["retry_seconds"]

    # Passing on

    def _pass_on(self) -> None:
        """Send what is new in the folder. Where W&B fails at that, its session is given up, to be opened again later."""
        if self.session is None:
            return
        try:
            self._send(self.session)
        except Exception as failure:
            if not self.session.online:
                raise
            gone = away()
            self._lose(gone.why if gone is not None else f"W&B failed ({type(failure).__name__}: {_line(failure)})")

    def _send(self, session: Session) -> None:
        for line in self._lines.new():
            with contextlib.suppress(ValueError, TypeError, KeyError):  # a line that is none
                record = dict(json.loads(line))
                self._step = record.pop("step")
                numbers = {name: value for name, value in record.items() if isinstance(value, (int, float))}
                session.row(numbers, step=self._step, line=self._lines.sent, time=numbers.pop("time", None))
        self._show(session)
        summary = self.folder / "metrics.json"
        if (changed := _time_of(summary)) != self._summary_time:
            self._summary_time = changed
            session.summary(read_json(summary, {}))
        if session.online and self.settings["checkpoints"]:
            self._warn(self.upload.tick(session))

    def _show(self, session: Session) -> None:
        """Pictures, films and tables that are new or were replaced, in one row."""
        entries = read_json(self.folder / "pictures" / "media.json", {})
        shown, times = {}, {}
        for key, entry in entries.items():
            place = self.folder / ("tables" if entry["kind"] == "table" else "pictures") / entry["file"]
            changed = _time_of(place)
            if changed and self._media.get(key) != changed:
                times[key] = changed
                try:
                    shown[f"{entry['kind']}s/{entry['name']}"] = session.media(entry, place)
                except Exception as failure:  # one that W&B cannot show
                    print(f"{place}: {_line(failure)}", file=sys.stderr, flush=True)
        if shown:
            session.row(shown, step=self._step, line=self._lines.sent)
        self._media |= times

    # The end

    def _ended(self) -> str | None:
        """How the run ended, or None while it goes on."""
        alone = self.parent is not None and os.getppid() != self.parent  # asked before run.json is read
        status = str(read_json(self.folder / "run.json", {}).get("status"))
        if status == "running":
            return None if self.follow or (self.parent is not None and not alone) else "killed"
        return status

    def _finish(self, status: str) -> bool:
        """Close the session as W&B knows it; False if something is left for later."""
        if self.session is None:
            self._connect()
            self._pass_on()
        if self.session is None:
            return self._leave_offline(status)
        session, again = self.session, f"diffusion-forcing runs sync {self.facts['id']}"
        if not session.online:
            self._close_offline(session, status)
            self._note()
            self.say(f"W&B, offline: once there is a network and a login, wandb sync {session.folder}")
            return True
        gone = away()
        if gone is not None:
            self.say(f"warning: {gone.why}, and the run has ended; what it lacks can be sent later: {again}")
            self.hang_up()
        elif self.settings["checkpoints"]:
            self._warn(self.upload.finish(session))
        whole = session.finish(status) and gone is None and self._has_all(session)
        if whole:
            self._note()
        elif gone is None:
            self.say(f"warning: W&B has not received all of the run; what it lacks can be sent later: {again}")
        return whole

    def _leave_offline(self, status: str) -> bool:
        """W&B is not there at the end: write all that it may lack as an offline run."""
        session = Session(self.folder, self.facts, self.settings, online=False)
        self._begin(session, self._sent["lines"])
        self._pass_on()
        self._close_offline(session, status)
        self.say(
            f"W&B is not there at the end of the run; later: wandb sync {session.folder} (or diffusion-forcing runs sync {self.facts['id']})"
        )
        return False

    def _close_offline(self, session: Session, status: str) -> None:
        if self.settings["checkpoints"]:
            self._warn(self.upload.offline(session))
        session.finish(status)

    def _note(self) -> None:
        """All that was passed on in this session has arrived."""
        with contextlib.suppress(OSError):  # a full disk: it is sent twice, later
            write_json(self.folder / FOLDER / SENT, {"lines": self._lines.sent, "media": self._media})

    def _warn(self, line: str | None) -> None:
        if line:
            self.say(f"warning: {line}")

    def _has_all(self, session: Session) -> bool:
        """Whether W&B says it has every line."""
        deadline = time.monotonic() + LAST_TRY_SECONDS
        while True:
            with contextlib.suppress(Exception):
                if session.arrived() >= self._lines.sent:
                    return True
            if time.monotonic() > deadline:
                return False
            time.sleep(POLL_SECONDS)


class Lines:
    """The whole lines of a file that grows, each once. Cut shorter and written again (a resumed run), it is gone through anew: its line
    of a number is the same as before."""

    def __init__(self, path: Path, sent: int) -> None:
        self.sent = sent
        """Lines that were handed out, `sent` of them before."""
        self._path = path
        self._offset = self._number = 0

    def new(self) -> Iterator[bytes]:
        if (size := self._path.stat().st_size if self._path.exists() else 0) == self._offset:
            return
        if size < self._offset:
            self._offset = self._number = 0
        with self._path.open("rb") as file:
            file.seek(self._offset)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                self._offset += len(line)
                self._number += 1
                if self._number > self.sent:
                    self.sent = self._number
                    yield line


def _time_of(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def _line(failure: BaseException) -> str:
    lines = str(failure).strip().splitlines()
    return lines[0][:300] if lines else type(failure).__name__
