"""A simulator for tests of generation: its episodes are noise; it can be slow and fail as simulators do."""

from __future__ import annotations

import os
import resource
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_forcing.datasets.generate import generate
from diffusion_forcing.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Noise:
    """Episodes of noise. `diary` gets a line for every episode that is begun and for every worker that ends."""

    diary: Path
    seed: int = 0
    frames: int = 5
    slow: float = 0.0
    fault: str = ""
    fault_at: tuple[str, int] = ("training", 2)

    @property
    def recipe(self) -> Mapping[str, str | int]:
        return {"simulator": "noise", "seed": self.seed, "frames": self.frames}

    def make(self, split: str, index: int) -> dict[str, NDArray[Any]]:
        self._note(f"{split} {index}")
        time.sleep(self.slow)
        if self.fault and (split, index) == self.fault_at:
            self._fail()
        rng = np.random.default_rng([self.seed, len(split), index])
        video = rng.integers(256, size=(self.frames, 8, 8, 3), dtype=np.uint8)
        return {"video": video, "actions": rng.integers(3, size=self.frames)}

    def close(self) -> None:
        self._note("closed")

    def _note(self, line: str) -> None:
        with open(self.diary, "a") as file:
            file.write(line + "\n")

    def _fail(self) -> None:
        match self.fault:
            case "user":
                raise UserError("no such world")
            case "bug":
                raise ZeroDivisionError("one of ours")
            case "death":
                os.kill(os.getpid(), signal.SIGKILL)
            case "full disk":
                resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500))


if __name__ == "__main__":  # a generation in a process of its own: noise_simulator.py FOLDER DIARY
    try:
        generate(Noise(diary=Path(sys.argv[2]), slow=0.05), Path(sys.argv[1]), {"training": 400}, workers=2)
    except KeyboardInterrupt:
        sys.exit(130)
