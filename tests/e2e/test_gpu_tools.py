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

from diffusion_forcing import checkpoints
from diffusion_forcing.algorithms.world import World
from diffusion_forcing.launch.run import plan
from tools.gpu.adversarial import OFFSETS, PAST, Chains, Critic, penalty, relativistic, windows
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


# ---------------------------------------------------------------------------------------- training against a critic


@pytest.fixture(scope="module")
def world() -> World:
    ready = plan(["dataset=video_labmaze", "algorithm=df_world", *TOY])
    return ready.classes["algorithm"](ready.options["algorithm"])


@pytest.fixture
def episodes(tmp_path: Path) -> Episodes:
    """Two episodes in which a frame's brightness is its number, and the action to frame i is i mod 3."""
    (tmp_path / "data" / "training").mkdir(parents=True)
    for number in range(2):
        frames = np.broadcast_to(np.arange(60, dtype=np.uint8)[:, None, None, None] + 100 * number, (60, 32, 32, 3))
        np.savez(tmp_path / "data" / "training" / f"{number}.npz", video=frames, actions=np.arange(1, 61) % 3)
    found = Episodes(tmp_path / "data" / "training", 2, torch.device("cpu"))
    found.wait(2, lambda: None)
    return found


def numbers(world: World, tokens: torch.Tensor) -> torch.Tensor:
    """The brightness of the first pixel of frames (n, t, c, h, w), 0 to 255."""
    return (world.frames(tokens)[:, :, 0, 0, 0] * 255).round().long()


def test_chains_begin_with_a_clip_and_follow_its_actions(world: World, episodes: Episodes) -> None:
    torch.manual_seed(0)
    chains = Chains(world, episodes, 6, 2)
    first = chains.step(2)
    shown, true = numbers(world, first.fake)[:, :PAST], numbers(world, first.real)
    assert torch.equal(shown, true[:, :PAST])
    assert (true.diff(dim=1) == 1).all()
    assert torch.equal(first.real_actions.argmax(-1), true % 100 % 3)
    assert torch.equal(first.fake_actions, first.real_actions)
    assert (first.depth == 0).all()
    assert torch.allclose(first.truth, torch.exp(-torch.arange(2) / 8).expand(6, -1))
    # The next step goes on where this one ended, wherever no chain began anew.
    second = chains.step(2)
    same = second.depth == 2
    assert same.any()
    assert torch.equal(second.fake[same, :PAST], first.fake[same, -PAST:].detach())
    assert torch.equal(second.fake_actions[same, :PAST], first.fake_actions[same, -PAST:])


def test_a_chain_outlives_its_clip_with_the_actions_of_another(world: World, episodes: Episodes) -> None:
    chains = Chains(world, episodes, 4, 2)
    chains.life.fill_(1e9)
    for _ in range(25):
        with torch.no_grad():
            steps = chains.step(2)
    assert (steps.depth == 48).all()
    assert (steps.truth == 0).all()
    assert (numbers(world, steps.real).diff(dim=1) == 1).all()


def test_only_the_newest_frame_of_a_window_has_a_gradient() -> None:
    frames = torch.randn(2, PAST + 3, 1, 4, 4)
    new = frames[:, PAST:].clone().requires_grad_()
    seen, actions = windows(frames, torch.randn(2, PAST + 3, 5), new)
    assert seen.shape == (6, len(OFFSETS), 4, 4)
    assert actions.shape == (6, PAST * 5)
    assert torch.equal(seen, windows(frames, torch.randn(2, PAST + 3, 5))[0])
    for place, offset in enumerate(OFFSETS):
        assert torch.equal(seen[4, place], frames[1, PAST + 1 - offset, 0])
    (slope,) = torch.autograd.grad(seen[:, :-1].sum(), new, allow_unused=True, retain_graph=True)
    assert slope is None or not slope.any()
    (slope,) = torch.autograd.grad(seen[:, -1].sum(), new)
    assert (slope == 1).all()


def test_the_critic_is_trained_towards_the_true_side_and_its_slope_is_measured() -> None:
    higher, lower = torch.full((3, 65), 2.0), torch.full((3, 65), -1.0)
    assert relativistic(higher, lower) < relativistic(lower, higher)
    assert float(relativistic(higher, higher)) == pytest.approx(2 * np.log(2))
    critic, frames, actions = Critic(6, 4, (4, 4, 4, 4, 4)), torch.randn(2, 6, 64, 64), torch.randn(2, 4)
    assert critic(frames, actions).shape == (2, 65)

    def total(x: torch.Tensor) -> torch.Tensor:
        scores = critic(x, actions)
        return scores[:, :-1].mean(1).sum() + scores[:, -1].sum()

    # The penalty is the squared length of the gradient: by finite differences along it.
    (slope,) = torch.autograd.grad(total(frames.requires_grad_()), frames)
    along = 0.01 * slope / slope.norm()
    with torch.no_grad():
        length = (total(frames + along) - total(frames - along)).item() / 0.02
    assert penalty(critic, frames, actions).item() == pytest.approx(length**2 / 2, rel=0.05)


@pytest.mark.slow
def test_a_model_trained_against_a_critic_comes_home(world: World, episodes: Episodes, tmp_path: Path) -> None:
    checkpoints.save(tmp_path / "start", None, metadata=world.metadata(), model=world.sampling_weights(), step=1)
    far = {key: value + 1 for key, value in world.sampling_weights().items()}
    checkpoints.save(tmp_path / "far", None, metadata=world.metadata(), model=far, step=1)
    words = ["--weights", tmp_path / "start", "--anchor", tmp_path / "far", "--data", tmp_path / "data"]
    sizes = ["--seconds", "6", "--chains", "2", "--steps", "2", "--episodes", "2", "--first", "1"]
    rows = rehearse("adversarial", tmp_path, *map(str, words), *sizes, "--widths", "4", "4", "4", "4", "4")
    assert rows[-1]["stage"] == "end"
    trained, student = (World.from_pretrained(tmp_path / "out" / name) for name in ("trained", "student"))
    assert student.options.diffusion.distilled_steps == 1
    for key, value in student.sampling_weights().items():
        mean = 0.7 * trained.sampling_weights()[key] + 0.3 * far[key]
        assert torch.allclose(value, mean, atol=2e-3)
    assert torch.isfinite(student.predict(torch.rand(1, 2, 3, 32, 32), 4, actions=torch.zeros(1, 4, 3))).all()
