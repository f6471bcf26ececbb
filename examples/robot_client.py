"""A robot's side of the policy server: ask, carry out fifteen actions, ask again. Needs pyzmq alone.

    diffusion-forcing serve-policy load=robot_swap_small
    python examples/robot_client.py

With the server's cameras=sim the world is the server's, and moves as it is asked. A real robot carries out `actions` where this prints them; its
cameras are the server's (cameras=v4l2, realsense or folder).
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import zmq

RATE = 10  # actions a second


class PolicyClient:
    """Asks the server at `address`; a server that does not answer within `timeout` s is asked again, `tries` times, on a new connection."""

    def __init__(self, address: str, *, session: str = "", timeout: float = 5.0, tries: int = 3) -> None:
        self.address, self.session, self.timeout, self.tries = address, session, timeout, tries
        self._context = zmq.Context()
        self._connect()

    def request(self) -> np.ndarray:
        """(n, 8) float32: x, y, z, qx, qy, qz, qw, grasp, one row an action. RuntimeError with what the server says, TimeoutError."""
        return np.frombuffer(self._ask(b"request"), np.float32).reshape(-1, 8)

    def stop(self) -> None:
        """Forget everything: before an episode."""
        self._ask(b"stop")

    def close(self) -> None:
        """Hang up."""
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
            self._socket.close()  # a socket that waits for an answer cannot ask again
            self._connect()
        raise TimeoutError(
            f"{self.address} did not answer {self.tries} times in {self.timeout} s; is serve-policy running?"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description="Asks a policy server for actions.")
    parser.add_argument("--address", default="tcp://127.0.0.1:5555")
    parser.add_argument("--session", default="", help="an id, under which the server remembers across connections")
    parser.add_argument("--requests", type=int, default=7)
    parser.add_argument("--real-time", action="store_true", help="wait as long as the actions take")
    asked = parser.parse_args()
    client = PolicyClient(asked.address, session=asked.session)
    client.stop()
    for number in range(asked.requests):
        began = time.perf_counter()
        actions = client.request()
        seconds = time.perf_counter() - began
        x, y, z = actions[-1, :3]
        holds = "closed" if actions[-1, 7] > 0.5 else "open"
        print(
            f"request {number}: {len(actions)} actions in {1000 * seconds:.0f} ms, to ({x:.2f}, {y:.2f}, {z:.2f}) m, {holds}"
        )
        if asked.real_time:
            time.sleep(max(0.0, len(actions) / RATE - seconds))
    client.close()


if __name__ == "__main__":
    main()
