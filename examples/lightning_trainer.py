"""Lightning's own Trainer trains one of our modules; our experiments, configurations and command line stay out of it.

python examples/lightning_trainer.py            200 steps on circles: 10 seconds of one CPU core
python examples/lightning_trainer.py 3          a quick look
"""

import sys

import lightning
import torch
from torch.utils.data import DataLoader

from diffusion_forcing import Planning, PlanningOptions, SequenceBatch
from diffusion_forcing.algorithms.base import DiffusionOptions, TransformerOptions

small = DiffusionOptions(architecture=TransformerOptions(network_size=32, num_layers=2), sampling_timesteps=10)
options = PlanningOptions(
    observation_mean=(3.0, 3.0),
    observation_std=(0.7, 0.7),
    episode_len=60,
    frame_stack=10,
    warmup_steps=20,
    diffusion=small,
)
angle = 0.05 * torch.arange(61) + 2 * torch.pi * torch.rand(512, 1)
x, v = 3 + torch.stack([angle.cos(), angle.sin()], dim=-1), torch.zeros(512, 61, 2)
walks = SequenceBatch(torch.cat([x, v], dim=-1), v, v[..., 0], torch.ones(512, 61, dtype=torch.bool))
batches = DataLoader([SequenceBatch(*walk) for walk in zip(*walks, strict=True)], batch_size=32, shuffle=True)

planning = Planning(options)
steps = int(sys.argv[1]) if len(sys.argv) > 1 else 200
trainer = lightning.Trainer(max_steps=steps, accelerator="cpu", logger=False, enable_checkpointing=False)
trainer.fit(planning, batches)
with torch.no_grad():
    plan, _ = planning.eval().planner().plan(x[:1, 0], x[:1, 60], 60)
print("distance from the circle, mean:", (plan.observations[0] - 3).norm(dim=-1).sub(1).abs().mean().item())
