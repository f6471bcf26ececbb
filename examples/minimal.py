"""Diffusion Forcing from nothing: torch alone, sine waves, half a minute on one CPU core.

    python examples/minimal.py                 train, then sample the same network in three ways
    python examples/minimal.py --steps 3       a quick look, with a network that has learned almost nothing

Every token of a sequence has its own noise level k. Training draws the levels independently (Algorithm 1), so one network learns every
combination. Sampling chooses the combination (Algorithm 2): a matrix says how noisy each token is in each row. One token after the other
is next-token prediction, all tokens together is full-sequence diffusion, and a slope between them is the pyramid.

The package adds memory, guidance, tasks and speed to this; the mathematics is the same.
"""

import argparse
import math

import torch
from torch import nn

K, S = 1000, 20  # noise levels in training, and in sampling
TOKENS, WIDTH, CONTEXT = 8, 8, 2  # a wave is 8 tokens of 8 samples; sampling begins with 2 clean tokens


def waves(count):
    """Sine waves of random period, phase and amplitude: (count, TOKENS, WIDTH). The first two tokens decide the rest."""
    period = torch.tensor([12.0, 24.0])[torch.randint(0, 2, (count, 1))]
    phase, amplitude = torch.rand(count, 1), 0.5 + 0.5 * torch.rand(count, 1)
    t = torch.arange(TOKENS * WIDTH)
    return (amplitude * torch.sin(2 * math.pi * (t / period + phase))).reshape(count, TOKENS, WIDTH)


# The cosine schedule: how much of a token is left at level k. The last entry is level -1, clean (Python counts it from the end).
u = torch.linspace(0, 1, K + 1)
signal_power = torch.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2
signal_power = torch.cat([(signal_power / signal_power[0])[1:].clamp(min=1e-5), torch.ones(1)])


def add_noise(x, k, noise):
    """x_k = sqrt(a)·x + sqrt(1 - a)·noise for tokens x: (b, t, c) at levels k: (b, t)."""
    a = signal_power[k][..., None]
    return a.sqrt() * x + (1 - a).sqrt() * noise


class Denoiser(nn.Module):
    """A causal transformer: predicts the clean token from noisy tokens x: (b, t, c) at levels k: (b, t)."""

    def __init__(self, size=64):
        super().__init__()
        self.embed = nn.Sequential(nn.Linear(WIDTH + 1, size), nn.SiLU(), nn.Linear(size, size))
        self.position = nn.Parameter(0.02 * torch.randn(TOKENS, size))
        layer = nn.TransformerEncoderLayer(
            size, nhead=4, dim_feedforward=256, dropout=0.0, batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, num_layers=3, enable_nested_tensor=False)
        self.out = nn.Linear(size, WIDTH)

    def forward(self, x, k):
        h = self.embed(torch.cat([x, k[..., None] / K], dim=-1)) + self.position[: x.shape[1]]
        future = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
        return self.out(self.layers(h, mask=future, is_causal=True))


def train(network, steps):
    """Algorithm 1."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(steps):
        x = waves(128)
        k = torch.randint(0, K, x.shape[:2])  # every token its own level: this is the method
        x_k = add_noise(x, k, torch.randn_like(x))
        loss = ((network(x_k, k) - x) ** 2).mean()  # the network predicts the clean token
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % max(1, steps // 5) == 0:
            print(f"step {step:4d}   loss {loss.item():.4f}")


def scheduling_matrix(kind, tokens):
    """(rows, tokens): rows are steps, entries sampling levels from S, pure noise, to 0, clean."""
    delay = {"autoregressive": S, "pyramid": 1, "full_sequence": 0}[kind]
    waits = delay * torch.arange(tokens)
    row = torch.arange(S + int(waits[-1]) + 1)
    return (S + waits[None, :] - row[:, None]).clamp(0, S)


@torch.no_grad()
def sample(network, context, kind):
    """Algorithm 2: the tokens after a clean context (b, CONTEXT, c), as noisy in each row as the matrix says."""
    x = torch.cat([context, torch.randn(len(context), TOKENS - CONTEXT, WIDTH)], dim=1)
    matrix = scheduling_matrix(kind, TOKENS - CONTEXT)
    matrix = torch.cat([torch.zeros(len(matrix), CONTEXT, dtype=torch.long), matrix], dim=1)
    levels = torch.linspace(-1, K - 1, S + 1).long()[matrix].unsqueeze(1).expand(-1, len(x), -1)
    for row in range(len(levels) - 1):
        k, k_to = levels[row], levels[row + 1]
        # Predict the clean token and its noise. Clean tokens are shown as if very slightly noisy (stabilization).
        shown = k.clamp(min=9)
        x0 = network(add_noise(x, torch.where(k < 0, shown, -1), torch.zeros_like(x)), shown)
        a = signal_power[shown][..., None]
        noise = (x - a.sqrt() * x0) / (1 - a).sqrt()
        # DDIM step: as noisy as the next row says. Tokens that stay keep their value.
        x = torch.where((k == k_to)[..., None], x, add_noise(x0, k_to, noise))
    return x


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=600)
    steps = parser.parse_args().steps
    torch.manual_seed(0)
    torch.set_num_threads(1)
    network = Denoiser()
    train(network, steps)
    if steps < 300:
        print(f"{steps} steps are too few to learn from: 600 are the default")
    truth = waves(256)
    for kind in ("autoregressive", "pyramid", "full_sequence"):
        error = (sample(network, truth[:, :CONTEXT], kind) - truth)[:, CONTEXT:].abs().mean()
        print(f"{kind:15s} mean error {error.item():.3f}   (all zeros: {truth[:, CONTEXT:].abs().mean().item():.3f})")


if __name__ == "__main__":
    main()
