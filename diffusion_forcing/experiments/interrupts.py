"""Ctrl-C and SIGTERM as a wish: noticed at the next step boundary, where the work so far can be saved. A second one
ends at once."""

from __future__ import annotations

import signal
import sys
import threading
from types import FrameType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(SystemExit):
    """Training was asked to stop and did. Ends the process with 128 + the signal's number (130 for Ctrl-C, 143 for
    SIGTERM)."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(128 + signal_number)


class Interrupts:
    """While installed, `received` is the signal that asked to stop, or None."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, Any] = {}

    def install(self) -> None:
        """Take over the signals; nothing outside the main thread, where Python allows no handlers."""
        if threading.current_thread() is threading.main_thread() and not self._before:
            self._before = {number: signal.signal(number, self._handle) for number in _SIGNALS}

    def remove(self) -> None:
        """Give the signals back to who had them."""
        before, self._before = self._before, {}
        for number, handler in before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            self.remove()
            raise Interrupted(number)
        self.received = number
        print("\nstopping at the next step, saving a checkpoint; again to stop at once", file=sys.stderr, flush=True)
