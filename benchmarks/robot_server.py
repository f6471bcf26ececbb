"""Response times of the policy server, among malformed requests and clients that disconnect.

    python -m benchmarks.robot_server [--requests 1000] [--load robot_swap_small] [--threads 2]

Runs `diffusion-forcing serve-policy` with simulated cameras. One client sends requests, and starts a new episode every
8. One request in twenty follows a malformed or oversized one, or a client that disconnects without waiting. The last
line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from typing import Any

import numpy as np
import zmq
from rich.progress import track

BAD_EVERY = 20
"""Requests between two bad ones."""
EPISODE = 8
"""Requests per episode."""
LIMIT_S = 1.5
"""How long a stack of 15 actions lasts, at 10 per second."""


def bad_client(context: zmq.Context[Any], address: str, drawn: random.Random) -> str:
    """Let one client do something wrong; returns what."""
    socket = context.socket(zmq.REQ)
    socket.setsockopt(zmq.LINGER, 100)
    socket.connect(address)
    kind = drawn.choice(["malformed", "oversized", "dropped"])
    if kind == "dropped":
        socket.send(b"request")
    else:
        socket.send_multipart([drawn.randbytes(200 if kind == "malformed" else 100_000)])
        if not socket.poll(10_000) or not socket.recv().startswith(b"error: "):
            kind += ", not refused"
    socket.close()
    return kind


def run(address: str, requests: int) -> dict[str, Any]:
    """Send requests, and measure at the client."""
    context, drawn = zmq.Context(), random.Random(0)
    socket = context.socket(zmq.REQ)
    socket.connect(address)
    seconds, errors, bad = [], 0, {}
    for number in track(range(requests), description="requests", transient=True):
        if number % BAD_EVERY == 0:
            kind = bad_client(context, address, drawn)
            bad[kind] = bad.get(kind, 0) + 1
        if number % EPISODE == 0:
            socket.send_multipart([b"good", b"stop"])
            socket.recv()
        began = time.perf_counter()
        socket.send_multipart([b"good", b"request"])
        reply = socket.recv() if socket.poll(60_000) else b""
        seconds.append(time.perf_counter() - began)
        if len(reply) != 15 * 8 * 4 or not np.isfinite(np.frombuffer(reply, np.float32)).all():
            errors += 1
    socket.close(0)
    context.term()
    p50, p95, worst = (float(value) for value in np.quantile(seconds, [0.5, 0.95, 1.0]))
    return {"requests": requests, "errors": errors, "bad": bad, "p50_s": p50, "p95_s": p95, "worst_s": worst}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--load", default="robot_swap_small")
    parser.add_argument("--threads", type=int, default=2)
    asked = parser.parse_args()
    command = [sys.executable, "-u", "-m", "diffusion_forcing", "serve-policy", f"load={asked.load}"]
    command += ["address=tcp://127.0.0.1:0", "report_every=1000000"]
    environment = {**os.environ, "OMP_NUM_THREADS": str(asked.threads)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            line = server.stdout.readline()
            found = re.search(r"answers at ([^\s,;]+)", line)
            if not found:
                raise SystemExit(f"the server did not start: {line}")
            figures = run(found[1], asked.requests)
        finally:
            server.send_signal(signal.SIGTERM)
        output = server.stdout.read().strip().splitlines()
    print(f"server: {output[-1]}")
    print(
        f"client: {figures['errors']} errors of {asked.requests:,}; p50 {figures['p50_s']:.3f} s, p95 "
        f"{figures['p95_s']:.3f} s, "
        f"limit {LIMIT_S} s"
    )
    print(json.dumps({"benchmark": "robot_server", "threads": asked.threads, **figures}))


if __name__ == "__main__":
    main()
