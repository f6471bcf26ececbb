"""How good a shipped video model is: PSNR of each predicted frame beside two trivial predictors, and with the actions of other clips.

    python benchmarks/video_quality.py [--checkpoint labmaze64] [--clips 64] [--steps 10] [--picture sheet.png]

Clips are the first of the test episodes (mazes never trained on; generated on the first use), 8 frames of context and 16 predicted. Prints a
table and, as its last line, JSON. Intervals are 95 %, of the mean over clips (normal approximation); differences are paired.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from pathlib import Path

import numpy as np
import torch

from diffusion_forcing.algorithms.video import Video
from diffusion_forcing.checkpoints import load
from diffusion_forcing.launch.allocator import keep_freed_memory
from diffusion_forcing.launch.run import plan

CONTEXT, HORIZON, BATCH = 8, 16, 16


def psnr(prediction: torch.Tensor, truth: torch.Tensor) -> np.ndarray:
    """(b, t) in dB, of frames (b, t, c, h, w) in [0, 1]."""
    error = (prediction - truth).square().mean(dim=(2, 3, 4)).clamp(min=1e-10)
    return (-10 * error.log10()).numpy()


def mean_and_half_width(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean over clips and half the 95 % interval of it."""
    return values.mean(0), 1.96 * values.std(0, ddof=1) / np.sqrt(len(values))


def sheet(truth: torch.Tensor, prediction: torch.Tensor, path: Path) -> None:
    """Clips as rows, truth above prediction; columns are frames, a white line ends the context."""
    from PIL import Image

    rows = []
    for clip in range(len(truth)):
        for film in (truth[clip], prediction[clip]):
            frames = [frame.permute(1, 2, 0) for frame in film]
            frames.insert(CONTEXT, torch.ones(frames[0].shape[0], 3, 3))
            rows.append(torch.cat(frames, dim=1))
        rows.append(torch.ones(4, rows[-1].shape[1], 3))
    picture = (torch.cat(rows).numpy() * 255).round().astype(np.uint8)
    Image.fromarray(picture).save(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default="labmaze64")
    parser.add_argument("--clips", type=int, default=64)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--picture", type=Path)
    words = parser.parse_args()
    keep_freed_memory()
    checked = plan(["dataset=video_labmaze", f"load={words.checkpoint}", "dataset.validation_multiplier=2"])
    options = checked.options["algorithm"]
    diffusion = dataclasses.replace(options.diffusion, sampling_timesteps=words.steps)
    video = Video(dataclasses.replace(options, diffusion=diffusion))
    video.load_weights(load(checked.checkpoint))
    dataset = checked.classes["dataset"](checked.options["dataset"])
    dataset.prepare()
    clips = dataset.test()
    found: dict[str, list[np.ndarray]] = {"model": [], "copy_last": [], "mean_frame": [], "shuffled": []}
    began = time.perf_counter()
    for first in range(0, words.clips, BATCH):
        batch = clips.__getitems__(list(range(first, min(first + BATCH, words.clips))))
        frames = batch.frames[:, : CONTEXT + HORIZON].float() / 255
        context, truth = frames[:, :CONTEXT], frames[:, CONTEXT:]
        told = {
            "model": batch.actions,
            "shuffled": torch.cat([batch.actions[:, :CONTEXT], batch.actions.roll(1, 0)[:, CONTEXT:]], 1),
        }
        for who, actions in told.items():
            rolled = video.predict(
                context, CONTEXT + HORIZON, actions=actions, generator=torch.Generator().manual_seed(first)
            )
            found[who].append(psnr(rolled[:, CONTEXT:], truth))
            if who == "model" and first == 0 and words.picture:
                sheet(frames[:6], rolled[:6], words.picture)
        found["copy_last"].append(psnr(context[:, -1:].expand_as(truth), truth))
        found["mean_frame"].append(psnr(context.mean(1, keepdim=True).expand_as(truth), truth))
        print(
            f"{min(first + BATCH, words.clips)} of {words.clips} clips, {time.perf_counter() - began:.0f} s", flush=True
        )
    curves = {who: np.concatenate(parts) for who, parts in found.items()}
    gain, gain_half = mean_and_half_width(curves["model"] - curves["copy_last"])
    listens, listens_half = mean_and_half_width(curves["model"] - curves["shuffled"])
    print("frame  model  copy last  mean frame  model - copy last   model - shuffled actions")
    for frame in range(HORIZON):
        model, copy, mean = (curves[who][:, frame].mean() for who in ("model", "copy_last", "mean_frame"))
        print(
            f"{frame + 1:5d}  {model:5.2f}  {copy:9.2f}  {mean:10.2f}  {gain[frame]:8.2f} ± {gain_half[frame]:.2f}"
            f"  {listens[frame]:10.2f} ± {listens_half[frame]:.2f}"
        )
    facts = {who: np.round(values.mean(0), 3).tolist() for who, values in curves.items()}
    print(json.dumps({"clips": len(curves["model"]), "steps": words.steps, "psnr": facts}))


if __name__ == "__main__":
    main()
