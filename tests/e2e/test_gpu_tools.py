"""The programs for a lent GPU, rehearsed on a CPU at toy size: what they bring home is a checkpoint that loads."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from diffusion_forcing.algorithms.world import World
from diffusion_forcing.launch.run import plan
from tools.gpu.world import Episodes, main

ROOT = Path(__file__).resolve().parents[2]
TOY = (
    "dataset.n_frames=6",
    "dataset.context_length=2",
    "dataset.resolution=32",
    "dataset.episode_frames=30",
    "algorithm.diffusion.architecture.size=A",
)


def rehearse(program: str, folder: Path, *words: str) -> list[dict[str, object]]:
    """Packs the sources, runs a program from the pack and returns the rows of its log."""
    pack = [sys.executable, ROOT / "tools/gpu/pack.py", folder / "pack", "--no-wheels"]
    subprocess.run(pack, check=True, capture_output=True)
    ended = subprocess.run(
        [sys.executable, f"tools/gpu/{program}.py", folder / "out", *words],
        cwd=folder / "pack",
        env={**os.environ, "PYTHONPATH": "stubs:."},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout[-2000:] + ended.stderr[-2000:]
    (log,) = (folder / "out").glob("*.jsonl")
    return [json.loads(line) for line in log.read_text().splitlines()]


@pytest.mark.slow
def test_a_teacher_and_its_student_come_home(tmp_path: Path) -> None:
    pytest.importorskip("vizdoom")
    pytest.importorskip("labmaze")
    words = [
        "--seconds",
        "4",
        "--batch",
        "2",
        "--episodes",
        "3",
        "--first",
        "1",
        "--size",
        "A",
        "--backend",
        "eager",
    ]
    rows = rehearse("world", tmp_path, *words, *TOY)
    assert [row["compiled"] for row in rows if "compiled" in row] == [True, True]
    assert [row["stage"] for row in rows if "steps" in row] == ["teacher", "student"]
    teacher, student = (World.from_pretrained(tmp_path / "out" / name) for name in ("teacher", "student"))
    weights = teacher.sampling_weights()
    assert not all(torch.equal(weights[key], value) for key, value in student.sampling_weights().items())
    for name, world in (("teacher", teacher), ("student", student)):
        assert (world.options.diffusion.distilled_steps == 2) == (name == "student")
        assert torch.isfinite(world.predict(torch.rand(1, 2, 3, 32, 32), 4, actions=torch.zeros(1, 4, 3))).all()


@pytest.mark.slow
def test_the_checks_pass_on_the_processor_itself(tmp_path: Path) -> None:
    rows = rehearse("check", tmp_path, "--models", "df_world", "--", *TOY)
    assert rows[-1] == {"stage": "end", "failed": []}
    assert [row["stage"] for row in rows] == ["start", "check", "check", "measure", "measure", "end"]


def test_an_episode_that_cannot_be_read_is_left_out_and_named(tmp_path: Path) -> None:
    (tmp_path / "0.npz").write_bytes(b"PK not really")
    np.savez(tmp_path / "1.npz", video=np.zeros((10, 32, 32, 3), np.uint8), actions=np.zeros(10, int))
    episodes = Episodes(tmp_path, 2, torch.device("cpu"))
    episodes.wait(1, lambda: None)
    assert episodes.count == 1
    assert set(episodes.unreadable) == {"0.npz"}
    with pytest.raises(SystemExit, match="no more"):
        episodes.wait(2, lambda: sys.exit("no more"))


@pytest.mark.parametrize("word", ["algorithm.self_rollout=0.3", "dataset.frame_skip=2", "experiment.training.lr=1"])
def test_an_override_without_effect_is_refused(
    word: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "argv", ["world.py", str(tmp_path / "out"), word])
    with pytest.raises(SystemExit):
        main()
    assert f"{word} has no effect here" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_clips_are_those_of_the_episodes_and_actions_lead_to_their_frames(tmp_path: Path) -> None:
    frames = np.broadcast_to(np.arange(10, dtype=np.uint8)[:, None, None, None], (10, 32, 32, 3))
    np.savez(tmp_path / "0.npz", video=frames, actions=np.arange(10) % 3)
    episodes = Episodes(tmp_path, 1, torch.device("cpu"))
    episodes.wait(1, lambda: None)
    ready = plan(["dataset=video_labmaze", "algorithm=df_world", *TOY])
    world = ready.classes["algorithm"](ready.options["algorithm"])
    tokens, present, conditions = episodes.clips(world, 8)
    assert conditions is not None
    shown = (world.frames(tokens)[:, :, 0, 0, 0] * 255).round().long()
    assert (shown.diff(dim=1) == 1).all() and (shown[:, 0] >= 1).all() and present.all()
    # The action that is stored with a frame leads to the next one; the last condition says that it is known.
    assert torch.equal(conditions[..., :3].argmax(-1), (shown - 1) % 3)
    assert (conditions[..., 3] == 1).all()
