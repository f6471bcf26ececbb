"""Every algorithm on a device that is not the CPU (`tests/pretend_gpu.py`): no mixed devices, the CPU's numbers, few waits."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
Case = tuple[int, Callable[[], Any], Callable[[Any, Any], Any], Any]
"""The most waits it may have, what makes the algorithm, what is done with it, and the batch."""


@pytest.mark.slow
def test_everything_on_a_device_that_is_not_the_cpu() -> None:
    """In a process of its own, which registers a backend with PyTorch."""
    command = [sys.executable, "-m", "tests.algorithms.test_pretend_gpu"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


def cases() -> dict[str, Case]:
    """By name. The numbers of waits are a ratchet: lower them as they fall."""
    import torch

    from diffusion_forcing import checkpoints
    from tests.algorithms import small
    from tests.algorithms import test_forecasting as series
    from tests.algorithms import test_planning_rnn as rnn
    from tests.algorithms import test_video as film
    from tests.algorithms import test_world as dream
    from tests.algorithms.robot import test_algorithm as arm

    def seeded(algorithm: Any) -> Any:
        return torch.Generator(algorithm.device).manual_seed(0)

    def train(algorithm: Any, loss: Any) -> Any:
        """A step of AdamW and of the average."""
        loss.backward()
        torch.optim.AdamW(algorithm.network.parameters(), lr=1e-3).step()
        algorithm.ema.update_parameters(algorithm.network)
        return loss

    def train_video(algorithm: Any, batch: Any) -> Any:
        clips = algorithm.encode(batch)
        return train(algorithm, algorithm.loss(clips, algorithm.draw(clips, generator=seeded(algorithm)))[0])

    def train_planning(algorithm: Any, batch: Any) -> Any:
        tokens, mask = algorithm.encode(batch)
        draws = algorithm.draw(*tokens.shape[:2], generator=seeded(algorithm))
        return train(algorithm, algorithm.loss(tokens, mask, draws)[0])

    def train_series(algorithm: Any, batch: Any) -> Any:
        encoded = algorithm.encode(batch, algorithm.network)
        return train(algorithm, algorithm.loss(encoded, *algorithm.draw(encoded.x, generator=seeded(algorithm))))

    def roll(algorithm: Any, batch: Any) -> Any:
        told = {"actions": batch.actions, "known": batch.known}
        return algorithm.predict(batch.frames[:, :2], 9, **told, generator=seeded(algorithm))

    def reload(algorithm: Any, batch: Any) -> Any:
        """A checkpoint there and back."""
        with tempfile.TemporaryDirectory() as folder:
            path, weights = Path(folder) / "c", algorithm.sampling_weights()
            checkpoints.save(path, None, metadata=algorithm.describe(), model=weights, step=1)
            algorithm.load_weights(checkpoints.load(path))
        return roll(algorithm, batch)

    def plan(algorithm: Any, batch: Any) -> Any:
        """A plan, and one that goes on from it."""
        planner, asked = algorithm.planner(), (batch.observations[:, 0], batch.observations[:, 5], 11)
        earlier = planner.plan(*asked, generator=seeded(algorithm))[1][:, 5:]
        return planner.plan(*asked, previous=earlier, restart=2, generator=seeded(algorithm))[1]

    def forecast(algorithm: Any, batch: Any) -> Any:
        return algorithm.forecast(batch, generator=seeded(algorithm))

    def act(algorithm: Any, batch: Any) -> Any:
        policy, found = arm.RobotPolicy(algorithm, generator=seeded(algorithm)), []
        for frames in batch.frames[:, :3].unbind(1):
            policy.observe(frames, state=arm.STATE)
            found.append(policy.act())
        return found

    net = {"dim_mults": (1, 2), "attn_resolutions": (4, 8), "use_init_temporal_attn": True}
    noisy = {"diffusion": {"ddim_sampling_eta": 1.0, "sampling_timesteps": 2}}
    clips, long_clips, windows, shown = film.batch(), film.batch(2, 9), series.batch(), small.batch()

    def video(**changes: Any) -> Any:
        return film.video(architecture=net, external_cond_dim=3, **changes)

    return {
        "saved and loaded": (370, video, reload, long_clips),
        "train video": (1, lambda: video(ema_decay=0.9), train_video, clips),
        "train world": (1, lambda: dream.world(ema_decay=0.9), train_video, dream.batch()),
        "roll world": (13, lambda: dream.world(cache="streaming"), roll, dream.batch(2, 9)),
        "train planning": (1, lambda: small.planning("xva", ema_decay=0.9), train_planning, shown),
        "train series": (1, lambda: series.build(ema_decay=0.9), train_series, windows),
        "roll none": (0, lambda: video(cache="none"), roll, long_clips),
        "roll exact": (0, lambda: video(cache="exact", **noisy), roll, long_clips),
        "roll streaming": (0, lambda: video(cache="streaming", sink_frames=1), roll, long_clips),
        "plan": (0, lambda: small.planning("xva", mcg_samples=2, refine=0.5).eval(), plan, shown),
        "plan recurrent": (0, lambda: rnn.planning("xva").eval(), plan, shown),
        "forecast rnn": (0, lambda: series.build(network="rnn"), forecast, windows),
        "forecast transformer": (0, lambda: series.build(network="transformer"), forecast, windows),
        **{
            f"act {kind}": (1, lambda kind=kind: arm.robot(*kind, part_noise=0.3), act, arm.batch())
            for kind in arm.KINDS
        },
    }


def main() -> None:
    """Run every case twice, on the CPU and on the device; AssertionError where they differ, or the host waits too often."""
    import torch
    from torch.utils._pytree import tree_leaves

    from tests import pretend_gpu

    torch.set_num_threads(1)
    pretend_gpu.install()
    for name, (most, make, act, batch) in cases().items():
        wanted = tree_leaves(act(make(), batch))
        with pretend_gpu.Operations(), pretend_gpu.Calls():
            algorithm = pretend_gpu.to_device(make())
            there = type(batch)(*(part if part is None else pretend_gpu.Pretend(part) for part in batch))
            pretend_gpu.waits.clear()
            found = tree_leaves(act(algorithm, there))
        for one, other in zip(wanted, found, strict=True):
            torch.testing.assert_close(
                other.real_.detach(), one.detach(), rtol=1e-3, atol=1e-4, msg=lambda m, name=name: f"{name}: {m}"
            )
        count = sum(pretend_gpu.waits.values())
        print(f"{name}: {count} of {most} waits, {dict(pretend_gpu.waits)}")
        assert count <= most, f"{name} waits for the GPU more often than it did"


if __name__ == "__main__":
    main()
