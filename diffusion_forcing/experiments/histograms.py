"""debug=True: how large the weights and their gradients are, parameter by parameter, while training goes on.

Counts of the decimal logarithm of absolute values, in quarter decades from 1e-12 to 1e6, of each parameter and of its gradient (before
clipping) at every logged step; kept in `debug/histograms.npz` in the run's folder and drawn on its page. Zeros and what is not finite are
counted beside them.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from numpy.typing import NDArray
from torch import Tensor
from torch.optim import Optimizer

from diffusion_forcing.tracking.files import write_atomic

LOWEST, HIGHEST, BINS = -12.0, 6.0, 72
EDGES = np.linspace(LOWEST, HIGHEST, BINS + 1)
"""log10 of |value|; what is smaller or larger is counted in the first or last bin."""
MOST = 128  # steps that are kept: when there are more, every other is let go
KINDS = ("gradients", "parameters")
FILE = Path("debug") / "histograms.npz"


class Histograms(Callback):
    """Counts at every `every_n_steps`-th step, writes now and then and at the end."""

    def __init__(self, run: Any, *, every_n_steps: int) -> None:
        """run: takes the pictures; its folder the file."""
        self._run = run
        self._every = every_n_steps
        self._names: list[str] = []
        self._steps: list[int] = []
        self._counts: dict[str, list[NDArray[np.int64]]] = {kind: [] for kind in KINDS}
        self._next_write = 1

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        step = trainer.global_step + 1  # the one that is being made
        if (step % self._every and self._steps) or not trainer.is_global_zero:
            return
        named = [(name, value) for name, value in pl_module.named_parameters() if value.requires_grad]
        self._names = [name for name, _ in named]
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        scale = 1.0 if scaler is None else scaler.get_scale()
        self._steps.append(step)
        self._counts["parameters"].append(np.stack([counts(value) for _, value in named]))
        self._counts["gradients"].append(np.stack([counts(value.grad, scale=scale) for _, value in named]))
        if len(self._steps) > MOST:
            self._steps = self._steps[::2]
            self._counts = {kind: rows[::2] for kind, rows in self._counts.items()}
            self._every *= 2
        if step >= self._next_write:  # 1, 2, 4, 8, …: a run that is killed has them too
            self.write()
            self._next_write = 2 * step

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.draw()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.draw()

    def write(self) -> None:
        """The file."""
        if not self._steps:
            return
        arrays: dict[str, Any] = {kind: np.stack(rows) for kind, rows in self._counts.items()}
        content = io.BytesIO()
        np.savez_compressed(content, steps=np.array(self._steps), names=np.array(self._names), edges=EDGES, **arrays)
        path = self._run.folder / FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, content.getvalue())

    def draw(self) -> None:
        """The file, and pictures of the newest step."""
        self.write()
        picture, draw = getattr(self._run, "picture", None), _drawing()
        if not self._steps or picture is None or draw is None:
            return
        for kind in KINDS:
            newest = self._counts[kind][-1][:, :BINS]
            caption = f"{kind} at step {self._steps[-1]}: how many values of each are how large; all steps in {FILE}"
            picture(f"debug_{kind}", draw(newest, names=self._names, edges=EDGES, title=kind), caption=caption)


def counts(values: Tensor | None, *, scale: float = 1.0) -> NDArray[np.int64]:
    """(BINS + 2,): values in each bin of log10 |value / scale|, then zeros, then those that are not finite. None: no value at all."""
    if values is None:
        return np.zeros(BINS + 2, np.int64)
    flat = values.detach().flatten().double().abs() / scale
    finite = torch.isfinite(flat)
    zero = flat == 0
    size = flat[finite & ~zero].log10().clamp(LOWEST, HIGHEST)
    found = torch.histc(size.cpu(), bins=BINS, min=LOWEST, max=HIGHEST).long().numpy()
    return np.concatenate([found, [int(zero.sum()), int((~finite).sum())]])


def _drawing() -> Any:
    """What draws them; None where matplotlib is not installed: the file has the same numbers."""
    try:
        from diffusion_forcing.visualization.histograms import draw_histograms
    except ModuleNotFoundError:
        return None
    return draw_histograms
