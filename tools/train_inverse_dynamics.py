"""Trains the classifier that judges whether a world model obeys its actions, on real video, and writes it as a checkpoint with its card.

    python tools/train_inverse_dynamics.py pretrained/labmaze64_actions --dataset dataset=video_labmaze dataset.num_episodes=1800

Its accuracy is measured on the test episodes, whose mazes it never saw. About four minutes of one core.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from diffusion_forcing.checkpoints import save
from diffusion_forcing.datasets.batch import VideoBatch
from diffusion_forcing.errors import UserError
from diffusion_forcing.launch.run import plan
from diffusion_forcing.metrics.video import InverseDynamics, actions_recognised, inverse_dynamics_loss

CARD = """# {name}: which action led from one frame to the next

A convolutional classifier of two neighbouring frames ({parameters:,} parameters, float16), for the judge of world models: its accuracy on generated
video over its accuracy on real video says whether a model obeys its actions. It makes no frames.

**Accuracy on real pairs of mazes it never saw: {accuracy:.2%}** ({pairs:,} pairs of {clips} test clips).

| action | share of the real pairs | accuracy |
|---|---|---|
{rows}

Trained on real pairs alone, {steps} steps of {batch} clips of {frames} frames, Adam, learning rate 1e-3 falling to 0,
{minutes:.1f} minutes of processor time:
```
{command}
```
"""


def clips_of(words: list[str], frames: int) -> tuple[Any, Any]:
    """The training and the test clips of the data set that the command-line words name."""
    ready = plan([*words, f"dataset.n_frames={frames}", "dataset.context_length=1", "dataset.cache=none"])
    dataset = ready.classes["dataset"](ready.options["dataset"])
    dataset.prepare()
    return dataset.training(), dataset.test()


def pairs_of(batch: VideoBatch) -> tuple[torch.Tensor, torch.Tensor]:
    """Frames (b, t, c, h, w) in [0, 1] and the actions (b, t − 1, a) between them."""
    return batch.frames.float() / 255, batch.actions[:, 1:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--dataset", nargs="+", default=["dataset=video_labmaze"])
    parser.add_argument("--steps", type=int, default=240)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--frames", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    rng = np.random.default_rng(arguments.seed)
    training, test = clips_of(arguments.dataset, arguments.frames)
    frames, actions = pairs_of(test[0])
    network = InverseDynamics(frames.shape[2], frames.shape[3], actions.shape[-1])
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / arguments.steps)
    started = time.process_time()
    for step in range(arguments.steps):
        frames, actions = pairs_of(training.__getitems__(rng.integers(len(training), size=arguments.batch).tolist()))
        loss = inverse_dynamics_loss(network, frames, actions)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 20 == 0:
            print(f"step {step} loss {loss.item():.4f}", file=sys.stderr, flush=True)
    minutes = (time.process_time() - started) / 60

    network.eval()
    right, chosen = [], []
    for start in range(0, len(test), 8):
        frames, actions = pairs_of(test.__getitems__(range(start, min(len(test), start + 8))))
        right.append(actions_recognised(frames, actions, network).flatten())
        chosen.append(actions.argmax(dim=-1).flatten())
    recognised, action = torch.cat(right), torch.cat(chosen)
    rows = [
        f"| {number} | {(action == number).float().mean():.2f} | {recognised[action == number].mean():.2%} |"
        for number in range(network.actions)
    ]
    card = CARD.format(
        name=arguments.folder.name,
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        accuracy=recognised.mean().item(),
        pairs=len(recognised),
        clips=len(test),
        rows="\n".join(rows),
        steps=arguments.steps,
        batch=arguments.batch,
        frames=arguments.frames,
        minutes=minutes,
        command=f"python tools/train_inverse_dynamics.py {arguments.folder} --dataset {' '.join(arguments.dataset)}",
    )
    weights = {key: value.half() for key, value in network.state_dict().items()}
    metadata = network.describe() | {"accuracy_on_real_pairs": round(recognised.mean().item(), 5)}
    save(arguments.folder, None, metadata=metadata, model=weights, step=arguments.steps, card=card)
    print(card)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(str(error))
