"""What each part of the world model's recipe carries: one part is taken away at a time, and everything is trained on equally many frames.

    python -m benchmarks.world_ablation [--steps 2000] [--variants all,no_warp] [--seeds 1] [words of the command line …]

Every variant starts from the same seed, sees the same clips in the same order, and is judged by the task test (PSNR, sharpness, obedience, the
long rollouts' drift). 2,000 steps of 2 clips of 16 frames are 64,000 frames, about 40 minutes of one core for each. Runs that are there
already are not repeated, so it can be interrupted. Ends with one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

DIFFUSION, ARCHITECTURE = "algorithm.diffusion", "algorithm.diffusion.architecture"
VARIANTS: dict[str, tuple[str, ...]] = {
    "all": (),
    "no_warp": (f"{ARCHITECTURE}.warp=False",),
    "one_past_frame": (f"{ARCHITECTURE}.past_frames=1",),
    "short_window": (f"{ARCHITECTURE}.window=4",),
    "mixture_of_levels": ("algorithm.noise_level=mixture",),
    "wide_levels": (f"{DIFFUSION}.levels.target=[-0.4,3.0]", f"{DIFFUSION}.levels.pure=0"),
    "pred_v": (f"{DIFFUSION}.objective=pred_v", f"{DIFFUSION}.use_fused_snr=True"),
    "no_offset_noise": (f"{DIFFUSION}.offset_noise=0",),
    "nearly_clean_past": (f"{DIFFUSION}.levels.past=[-5.0,0.5]", f"{DIFFUSION}.stabilization_level=50"),
    "past_without_noise": (f"{DIFFUSION}.noisy_context=False",),
    "not_rounded": ("algorithm.quantize=False",),
    "first_frames_scored": ("algorithm.unscored_frames=0",),
    "own_past": ("algorithm.self_rollout=0.5",),
}
"""Words of the command line that take one part away, or put one in its place."""
BASE = (
    *("dataset=video_labmaze", "algorithm=df_world", "dataset.n_frames=16", "algorithm.metrics=[]"),
    *("experiment.training.batch_size=2", "experiment.training.lr=1e-3", "experiment.training.precision=bf16-mixed"),
    *("experiment.validation.val_every_n_step=null", "experiment.films=0", "experiment.shuffled_actions=False"),
)
JUDGED = (
    *("experiment.tasks=[training,test]", "experiment.test.batch_size=16", "experiment.test.limit_batch=4"),
    *("experiment.test.precision=bf16-mixed", "experiment.judge.inverse_dynamics=labmaze64_actions"),
    *("experiment.judge.frames=240", "experiment.judge.rollouts=16", "dataset.validation_multiplier=2"),
)
COLUMNS = (
    "psnr_frame_1",
    "psnr_frame_16",
    "sharpness_frame_16",
    "actions_relative_frames_1_16",
    "long_mean_difference_end",
    "long_alive",
)


def words_of(variant: str, steps: int, seed: int, more: list[str]) -> list[str]:
    """The command line of one run."""
    return [*BASE, *JUDGED, *VARIANTS[variant], f"experiment.training.max_steps={steps}", f"seed={seed}", *more]


def measured(variant: str, steps: int, seed: int, more: list[str], outputs: Path) -> dict[str, float]:
    """The numbers of one run, which is started unless it is there."""
    folder = outputs / f"{variant}-{steps}-{seed}"
    found = next(folder.rglob("metrics.json"), None)
    if found is None:
        words = [*words_of(variant, steps, seed, more), f"outputs={folder}", f"+name={variant}"]
        subprocess.run([sys.executable, "-m", "main", *words], check=True)
        found = next(folder.rglob("metrics.json"))
    numbers = json.loads(found.read_text())
    return {name: numbers[f"test/{name}"] for name in COLUMNS if f"test/{name}" in numbers}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--variants", default=",".join(VARIANTS))
    parser.add_argument("--outputs", type=Path, default=Path("outputs/world_ablation"))
    parser.add_argument("words", nargs="*")
    arguments = parser.parse_intermixed_args()
    table = Table(title=f"df_world, {arguments.steps} steps, one part changed")
    for column in ("", *COLUMNS):
        table.add_column(column, justify="right" if column else "left")
    figures = {}
    for variant in arguments.variants.split(","):
        runs = [
            measured(variant, arguments.steps, seed, arguments.words, arguments.outputs)
            for seed in range(arguments.seeds)
        ]
        mean = {name: sum(run[name] for run in runs) / len(runs) for name in runs[0]}
        table.add_row(variant, *(f"{mean[name]:.3f}" if name in mean else "–" for name in COLUMNS))
        figures[variant] = {name: round(value, 4) for name, value in mean.items()}
    Console(width=140).print(table)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
