"""A training in a process of its own, to be killed: a command as a user starts it, or a fork of a process that has imported everything."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path

POLL_SECONDS = 0.005


class Command:
    """`python -m diffusion_forcing …`; what it says goes to `log`."""

    def __init__(self, words: list[str], *, folder: Path, log: Path, environment: dict[str, str]) -> None:
        command = [sys.executable, "-m", "diffusion_forcing", *words]
        with log.open("wb") as said:
            self._process = subprocess.Popen(command, cwd=folder, stdout=said, stderr=said, env=environment)
        self.pid = self._process.pid

    def code(self) -> int | None:
        """The exit code, −n for signal n; None while it runs."""
        return self._process.poll()


class Fork:
    """The same command in a fork of this process, which should have imported what it needs; no thread may run here."""

    def __init__(self, words: list[str], *, folder: Path, log: Path, environment: dict[str, str]) -> None:
        self._code: int | None = None
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            self._be_the_command(words, folder, log)

    def code(self) -> int | None:
        if self._code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self._code = os.waitstatus_to_exitcode(status) if pid else None
        return self._code

    @staticmethod
    def _be_the_command(words: list[str], folder: Path, log: Path) -> None:
        code = 1
        try:
            from diffusion_forcing.launch.cli import main

            signal.signal(signal.SIGINT, signal.default_int_handler)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            said = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(said, 1)
            os.dup2(said, 2)
            os.chdir(folder)
            code = main(words)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)


def ended(process: Command | Fork, seconds: float) -> int | None:
    """The exit code once the process ends; None where it does not within `seconds`."""
    until = time.monotonic() + seconds
    while (code := process.code()) is None and time.monotonic() < until:
        time.sleep(POLL_SECONDS)
    return code
