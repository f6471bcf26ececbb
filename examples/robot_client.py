"""The robot's side of the policy server: ask for actions, execute them, ask again. Needs numpy and pyzmq only.

    diffusion-forcing serve-policy load=robot_swap_small
    python examples/robot_client.py

With cameras=sim the server simulates the world, which moves when the next actions are asked for. A real robot executes
`actions` where this example prints them; its cameras are connected to the server (cameras=v4l2, realsense or folder).
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import zmq

RATE = 10  # actions per second


class PolicyClient:
    """A client of the server at `address`. Without an answer within `timeout` seconds it reconnects and asks again,
    up to `tries` times."""

    def __init__(self, address: str, *, session: str = "", timeout: float = 5.0, tries: int = 3) -> None:
        self.address, self.session, self.timeout, self.tries = address, session, timeout, tries
        self._context = zmq.Context()
        self._connect()

    def request(self) -> np.ndarray:
        """The next actions (n, 8) float32: x, y, z, qx, qy, qz, qw, grasp. RuntimeError with the server's message,
        or TimeoutError."""
        return np.frombuffer(self._ask(b"request"), np.float32).reshape(-1, 8)

    def stop(self) -> None:
        """Start a new episode: the server forgets the last one."""
        self._ask(b"stop")

    def close(self) -> None:
        """Disconnect."""
        self._socket.close()
        self._context.term()

    def _connect(self) -> None:
        self._socket = self._context.socket(zmq.REQ)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.connect(self.address)

    def _ask(self, word: bytes) -> bytes:
        for _ in range(self.tries):
            self._socket.send_multipart([self.session.encode(), word] if self.session else [word])
            if self._socket.poll(1000 * self.timeout):
                reply = self._socket.recv()
                if reply.startswith(b"error: "):
                    raise RuntimeError(reply.decode())
                return reply
            self._socket.close()  # a REQ socket cannot send before it was answered
            self._connect()
        raise TimeoutError(
            f"no answer from {self.address} in {self.tries} tries of {self.timeout} s; is serve-policy running?"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description="Ask a policy server for actions.")
    parser.add_argument("--address", default="tcp://127.0.0.1:5555")
    parser.add_argument("--session", default="", help="id of a session, which outlives the connection")
    parser.add_argument("--requests", type=int, default=7)
    parser.add_argument("--real-time", action="store_true", help="wait while the actions are executed")
    asked = parser.parse_args()
    client = PolicyClient(asked.address, session=asked.session)
    client.stop()
    for number in range(asked.requests):
        began = time.perf_counter()
        actions = client.request()
        seconds = time.perf_counter() - began
        x, y, z = actions[-1, :3]
        gripper = "closed" if actions[-1, 7] > 0.5 else "open"
        target = f"({x:.2f}, {y:.2f}, {z:.2f}) m, {gripper}"
        print(f"request {number}: {len(actions)} actions in {1000 * seconds:.0f} ms, to {target}")
        if asked.real_time:
            time.sleep(max(0.0, len(actions) / RATE - seconds))
    client.close()


if __name__ == "__main__":
    main()
