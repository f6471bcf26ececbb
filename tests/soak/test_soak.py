"""A short soak: killed four times, once in each way, and resumed. `python -m tests.soak` is the long one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from diffusion_forcing.checkpoints import format as native
from diffusion_forcing.tracking.run import Run
from tests.datasets.video_makers import moving_pattern, write_video
from tests.soak.whole import leftovers, torn

ROOT = Path(__file__).resolve().parents[2]


def soak(*words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tests.soak", "--fork", *words]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked, which this system cannot")
def test_a_training_killed_in_every_way_ends_with_the_weights_of_one_left_alone() -> None:
    done = soak("--kills", "4", "--steps", "60")
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures["same_weights"] and figures["wrong"] == 0
    assert set(figures["ways"].values()) == {1}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run with a file of every kind."""
    made = Run.create(tmp_path / "outputs", "toy")
    made.config("a: 1\n")
    made.log(1, {"loss": 0.5})
    made.summary({"loss": 0.5})
    made.image("grey", np.zeros((4, 4), np.uint8))
    made.table("numbers", [{"a": 1}])
    write_video(made.pictures / "film.mp4", moving_pattern(6, 16))
    native.save(
        made.checkpoints / "step-00000001", {"global_step": 1}, metadata={}, model={"w": torch.zeros(3)}, step=1
    )
    made.finish()
    return made


KINDS = [
    "run.json",
    "metrics.jsonl",
    "metrics.json",
    "config.yaml",
    "index.html",
    "pictures/grey.png",
    "pictures/film.mp4",
    "checkpoints/step-00000001/model.safetensors",
    "checkpoints/step-00000001/training.pt",
]


def test_a_run_as_it_is_written_is_whole(run: Run) -> None:
    assert torn(run.folder) == []
    assert leftovers(run.folder) == []
    (run.folder / ".metrics.json.1-00000000").touch()
    assert len(leftovers(run.folder)) == 1


@pytest.mark.parametrize("name", KINDS)
def test_half_a_file_is_found(run: Run, name: str) -> None:
    file = run.folder / name
    half = b"a: [1" if name == "config.yaml" else file.read_bytes()[: file.stat().st_size // 2]
    file.write_bytes(half)
    found = torn(run.folder)
    assert found and all(name.split("/")[0] in line for line in found)
