"""The page's world view as a browser meets it: start to first picture, frames per second, and the time from a key to its picture.

    python -m benchmarks.play [--frames 300] [--presses 100] [--steps 1] [--threads 1]

Runs `diffusion-forcing play` and plays through its WebSocket: forward held for --frames frames, each acknowledged as a page does; then --presses
single keys from rest. With the simulator's pictures beside the dream. The last line is JSON; load: the machine's at the end, per core.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import struct
import subprocess
import sys
import time
from typing import Any

import numpy as np
from websockets.sync.client import ClientConnection, connect

ACTIONS = ("forward", "left", "right")
REST = 0.15
"""Seconds without a key before each press."""


class Page:
    """The world view's page, without pictures."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self.keys = self.bytes = 0

    def say(self, **message: Any) -> None:
        self._socket.send(json.dumps(message))

    def hold(self, *keys: str) -> None:
        self.keys += 1
        self.say(do="keys", keys=list(keys), number=self.keys)

    def frame(self, key: int = 0) -> dict[str, Any]:
        """The next frame that heeds key message number `key`."""
        while True:
            message = self._socket.recv(timeout=120)
            self.bytes += len(message)
            if isinstance(message, str):
                continue
            (length,) = struct.unpack("<I", message[:4])
            header: dict[str, Any] = json.loads(message[4 : 4 + length])
            if header["type"] == "frame":
                self.say(do="seen", frame=header["frame"])
                if header["key"] >= key:
                    return header


def run(page: Page, began: float, frames: int, presses: int, steps: int) -> dict[str, Any]:
    page.frame()
    first = time.perf_counter() - began
    page.say(do="truth", on=True)
    page.say(do="pace", steps=steps, fps=30, noise=0.19)

    # Frames per second, the first ones left out.
    page.hold("forward")
    for _ in range(20):
        page.frame(page.keys)
    started, before, computing = time.perf_counter(), page.bytes, []
    for _ in range(frames):
        computing.append(page.frame()["ms"])
    seconds = time.perf_counter() - started
    page.hold()
    rate = (page.bytes - before) / seconds

    # From a key to its picture.
    drawn, delays = np.random.default_rng(0), []
    for _ in range(presses):
        time.sleep(REST)
        pressed = time.perf_counter()
        page.hold(ACTIONS[drawn.integers(3)])
        page.frame(page.keys)
        delays.append(1000 * (time.perf_counter() - pressed))
        page.hold()
    p50, p95 = np.quantile(delays, [0.5, 0.95]).tolist()
    return {
        "start_to_first_picture_s": round(first, 2),
        "frames_per_second": round(frames / seconds, 1),
        "ms_per_frame_p50": round(float(np.median(computing)), 1),
        "key_to_picture_ms_p50": round(p50, 1),
        "key_to_picture_ms_p95": round(p95, 1),
        "kilobytes_per_second": round(rate / 1000),
        "load": round(os.getloadavg()[0] / (os.cpu_count() or 1), 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=300)
    parser.add_argument("--presses", type=int, default=100)
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    words = [sys.executable, "-m", "main", "play", "--no-browser", "--port", "0", "--threads", str(options.threads)]
    began = time.perf_counter()
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONUNBUFFERED": "1"}
    ) as server:
        try:
            assert server.stdout is not None
            found = re.search(r"http://(\S+?);", server.stdout.readline())
            assert found is not None, "the server did not start"
            address = found[1]
            with connect(f"ws://{address}/ws/world", origin=f"http://{address}", proxy=None) as socket:  # type: ignore[arg-type]
                result = run(Page(socket), began, options.frames, options.presses, options.steps)
        finally:
            server.send_signal(signal.SIGINT)
            server.wait(20)
    for name, value in result.items():
        print(f"{name:<26} {value}")
    print(json.dumps({"benchmark": "play", **vars(options), **result}))


if __name__ == "__main__":
    main()
