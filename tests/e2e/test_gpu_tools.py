"""The GPU run, rehearsed on a CPU at toy size: every stage works, and what it brings home is a checkpoint that loads."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import torch

from diffusion_forcing.checkpoints import load
from diffusion_forcing.datasets.batch import VideoBatch
from tools.gpu.run import OnCard

ROOT = Path(__file__).resolve().parents[2]
TOY = (
    *(
        "dataset.episode_frames=30",
        "dataset.n_frames=10",
        "dataset.resolution=32",
        "algorithm.diffusion.architecture.size=A",
    ),
    "experiment.judge.inverse_dynamics=null",  # it knows 64x64 only
)


@pytest.mark.slow
def test_the_whole_run_works_at_toy_size(tmp_path: Path) -> None:
    pytest.importorskip("vizdoom")
    pytest.importorskip("labmaze")
    run = [sys.executable, ROOT / "tools/gpu/pack.py", tmp_path / "pack", "--no-wheels"]
    subprocess.run(run, check=True, capture_output=True)
    words = ["--toy", "--seconds", "1", "--distil-seconds", "1", "--episodes", "3", *TOY]
    ended = subprocess.run(
        [sys.executable, "tools/gpu/run.py", tmp_path / "out", *words],
        cwd=tmp_path / "pack",
        env={**os.environ, "PYTHONPATH": "."},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout[-2000:] + ended.stderr[-2000:]
    rows = [json.loads(line) for line in (tmp_path / "out" / "run.jsonl").read_text().splitlines()]
    assert {"check", "measure", "data", "train", "distil", "judge teacher", "judge student"} <= {
        row["stage"] for row in rows
    }
    assert rows[-1] == {"seconds": rows[-1]["seconds"], "stage": "end", "failed": []}
    for name in ("teacher", "student"):
        numbers = json.loads((tmp_path / "out" / f"{name}.json").read_text())
        assert {"test/psnr_frame_1", "test/long_alive", "test/turn_2_back_psnr"} <= numbers.keys()
        pieces = sorted((tmp_path / "out").glob(f"world_{name}.tar.*"))
        assert max(piece.stat().st_size for piece in pieces) <= 16 << 20
        (tmp_path / "whole.tar").write_bytes(b"".join(piece.read_bytes() for piece in pieces))
        with tarfile.open(tmp_path / "whole.tar") as archive:
            archive.extractall(tmp_path, filter="data")
        loaded = load(tmp_path / f"world_{name}")
        assert ("sampling" in loaded.metadata) == (name == "student")


def test_clips_on_the_card_are_the_episodes_clips() -> None:
    frames = torch.arange(2 * 6).reshape(2, 6, 1, 1, 1).to(torch.uint8)
    known = torch.ones(2, 6, dtype=torch.bool)
    clips = OnCard(VideoBatch(frames, frames[..., 0, 0].float(), known, known), 4, torch.device("cpu"))
    assert len(clips) == 2 * 3
    batch = clips.__getitems__([0, 2, 3, 5])
    assert batch.frames.flatten(1).tolist() == [[0, 1, 2, 3], [2, 3, 4, 5], [6, 7, 8, 9], [8, 9, 10, 11]]
    assert torch.equal(batch.actions[..., 0], batch.frames[..., 0, 0, 0].float())
