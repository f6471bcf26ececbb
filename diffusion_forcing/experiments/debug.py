"""debug=True: every task runs over one batch first, and the first layer whose output is not finite is named.

`rehearse` builds its own parts from the same options, prints the shapes of the data flow once, and leaves nothing
behind: its run is in a temporary folder. During the training that follows, `FiniteLayers` does for the forward pass
what PyTorch's anomaly detection does for the backward pass, and `Histograms` keeps the sizes of weights and gradients.
"""

from __future__ import annotations

import copy
import functools
import inspect
import re
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._pytree import keystr, tree_flatten_with_path, tree_leaves
from torch.utils.data import Subset
from torch.utils.hooks import RemovableHandle

from diffusion_forcing.checkpoints.format import sized_by
from diffusion_forcing.errors import UserError
from diffusion_forcing.files import replacing
from diffusion_forcing.tracking.run import Run

NOT_REHEARSED = ("generate_dataset",)
"""Tasks that write files that stay."""
HISTOGRAMS = Path("debug") / "histograms.npz"
_EDGES = np.linspace(-12.0, 6.0, 73)  # log10 |value|, quarter decades; the outer bins take what lies beyond them
_STEPS = ("training_step", "validation_step", "test_step")
_MOST_TENSORS = 8  # of a batch that are shown


def rehearse(
    classes: Mapping[str, type],
    options: Mapping[str, Any],
    *,
    seed: int,
    load: Path | None,
    say: Callable[[str], None],
) -> None:
    """Run each task of `options["experiment"]` once over one batch; what fails, fails here.

    `classes`, `options`: of dataset, algorithm and experiment. `load`: the checkpoint that the tasks start from. `say`
    is given the lines to print: shapes, and how long each task took.
    """
    experiment_class = classes["experiment"]
    small = experiment_class.one_batch(options["experiment"])  # type: ignore[attr-defined]
    with tempfile.TemporaryDirectory(prefix="diffusion-forcing-debug-") as folder:
        run = Run.create(Path(folder), "debug")
        with sized_by(load):
            algorithm = classes["algorithm"](options["algorithm"])
        dataset = first_batches(classes["dataset"](options["dataset"]), small)
        experiment = experiment_class(
            small, dataset=dataset, algorithm=algorithm, run=run, seed=seed, debug=True, load=load
        )
        experiment.rehearsing = True
        print_shapes(algorithm, say)
        try:
            for task in dict.fromkeys(small.tasks):
                if task in NOT_REHEARSED:
                    say(f"debug: {task} is skipped here, it writes files")
                    continue
                started = time.perf_counter()
                try:
                    experiment.run_task(task)
                except BaseException:
                    say(f"debug: {task} fails on one batch, before anything was done:")
                    raise
                say(f"debug: {task} works on one batch ({time.perf_counter() - started:.1f} s)")
        finally:
            run.finish()


def first_batches(dataset: Any, options: Any) -> Any:
    """A copy of `dataset` whose `training()`, `validation()` and `test()` give one batch of these experiment options."""
    small = copy.copy(dataset)
    for name in ("training", "validation", "test"):
        whole = getattr(dataset, name, None)
        if callable(whole):
            count = getattr(options, name).batch_size
            setattr(small, name, lambda whole=whole, count=count: FirstSamples(whole(), count))
    return small


class FirstSamples(Subset[Any]):
    """The first `count` samples of a map-style dataset; its other attributes are the dataset's."""

    def __init__(self, dataset: Any, count: int) -> None:
        super().__init__(dataset, range(min(count, len(dataset))))

    def __getattr__(self, name: str) -> Any:
        if name == "dataset":  # not there yet, while a copy is made
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def __getitems__(self, indices: list[int]) -> Any:
        together = getattr(self.dataset, "__getitems__", None)
        return together(indices) if together else [self.dataset[index] for index in indices]


class FiniteLayers(Callback):
    """Looks at the output of every layer in training. UserError naming the first that is not finite, and the step."""

    def __init__(self) -> None:
        self._hooks: list[RemovableHandle] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for name, layer in pl_module.named_modules():
            if name:  # inner layers are called, and looked at, before those that contain them
                look = functools.partial(check_finite, name, lambda: trainer.global_step + 1)
                self._hooks.append(layer.register_forward_hook(look, with_kwargs=True))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._remove()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._remove()

    def _remove(self) -> None:
        while self._hooks:
            self._hooks.pop().remove()


def check_finite(
    name: str, step: Callable[[], int], layer: nn.Module, args: Any, kwargs: dict[str, Any], output: Any
) -> None:
    """UserError if `layer`, in training mode, gave a nan or inf; it says whether weights or input had one already."""
    if not layer.training or _finite(output):
        return
    weights = [key for key, value in layer.named_parameters() if not _finite(value)]
    if weights:
        why = f"its weight {weights[0]} is not finite"
    elif _finite((args, kwargs)):
        why = "its input is finite"
    else:
        why = "its input is not finite, and comes from outside the layers"
    raise UserError(f"debug: layer {name} ({type(layer).__name__}) gave a nan or inf at step {step()}; {why}")


def _finite(value: Any) -> bool:
    return all(bool(torch.isfinite(leaf).all()) for leaf in tree_leaves(value) if isinstance(leaf, Tensor))


class Histograms(Callback):
    """Counts how large the values of each weight and of its gradient, before clipping, are at steps 1, 2, 4, 8, ….

    `debug/histograms.npz` in the run's folder has `steps`, `names`, `edges` (log10 of the absolute value), and
    `weights` and `gradients` (step, name, bin); zeros and values that are not finite are in no bin.
    """

    def __init__(self, folder: Path) -> None:
        """`folder`: the run's."""
        self._path = folder / HISTOGRAMS
        self._steps: list[int] = []
        self._counts: dict[str, list[Any]] = {"weights": [], "gradients": []}

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        step = trainer.global_step + 1  # the one that is being made
        if not trainer.is_global_zero or (self._steps and step < 2 * self._steps[-1]):
            return
        weights = {name: value for name, value in pl_module.named_parameters() if value.requires_grad}
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        scale = 1.0 if scaler is None else scaler.get_scale()
        self._steps.append(step)
        self._counts["weights"].append([sizes(value) for value in weights.values()])
        self._counts["gradients"].append([sizes(value.grad, scale=scale) for value in weights.values()])
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(self._path) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, steps=self._steps, names=list(weights), edges=_EDGES, **self._counts)  # type: ignore[arg-type]


def sizes(values: Tensor | None, *, scale: float = 1.0) -> Any:
    """How many of `values / scale` are in each bin of `_EDGES`, by log10 of the absolute value."""
    if values is None:
        return np.zeros(len(_EDGES) - 1, np.int64)
    size = values.detach().float().abs().cpu().double() / scale
    size = size[size.isfinite() & (size > 0)].log10().clamp(_EDGES[0], _EDGES[-1])
    return np.histogram(size.numpy(), _EDGES)[0]


def print_shapes(algorithm: nn.Module, say: Callable[[str], None]) -> None:
    """From here on, the first batch, the first call of each network and the first loss are printed, a line each.

    For an algorithm that is thrown away afterwards: hooks stay on its networks, wrappers on its steps.
    """
    printed: set[str] = set()
    hooked: set[str] = set()

    def note(stage: str, text: Callable[[], str]) -> None:
        if not printed:
            say("debug: shapes, stage by stage")
        if stage not in printed:
            printed.add(stage)
            say(f"  {stage:<8}  {text()}")

    def on_forward(name: str, network: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        def text() -> str:
            inputs = dict(zip(inspect.signature(network.forward).parameters, args, strict=False)) | kwargs
            count = sum(parameter.numel() for parameter in network.parameters())
            return f"{described(inputs)} → {described(output)}   {type(network).__name__}, {count:,} parameters"

        note(name, text)

    def hook_networks() -> None:
        for name, network in networks(algorithm).items():
            if name not in hooked:
                hooked.add(name)
                network.register_forward_hook(functools.partial(on_forward, name), with_kwargs=True)

    def watched(step: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(step)
        def wrapper(batch: Any, *args: Any, **kwargs: Any) -> Any:
            hook_networks()  # some are made once the data is known
            note("batch", lambda: described(batch))
            output = step(batch, *args, **kwargs)
            if step.__name__ == "training_step":
                note("loss", lambda: described(output.get("loss") if isinstance(output, Mapping) else output))
            return output

        return wrapper

    hook_networks()
    for name in _STEPS:
        if callable(getattr(algorithm, name, None)):
            setattr(algorithm, name, watched(getattr(algorithm, name)))


def networks(algorithm: nn.Module) -> dict[str, nn.Module]:
    """Its `network`, or that of its `forcing`, where it has one; else every module it is made of, by name."""
    forcing = getattr(algorithm, "forcing", None)
    for network in (getattr(forcing, "network", None), getattr(algorithm, "network", None)):
        if isinstance(network, nn.Module):
            return {"network": network}
    return dict(algorithm.named_children())


def described(value: Any) -> str:
    """The tensors in a nested value with their names: `x (8, 16, 2) float32 in [-1.3, 2], k (8, 16) int64 in [0, 999]`."""
    parts = []
    for path, leaf in tree_flatten_with_path(value)[0]:
        if isinstance(leaf, Tensor):
            name = re.sub(r"\[\d+\]|['\]]", "", keystr(path)).replace("[", ".").lstrip(".")  # "['a'][0].b" is a.b
            parts.append(f"{name} {_tensor(leaf)}".lstrip())
    more = [f"and {len(parts) - _MOST_TENSORS} more"] if len(parts) > _MOST_TENSORS else []
    return ", ".join(parts[:_MOST_TENSORS] + more) or f"{type(value).__name__} without tensors"


def _tensor(value: Tensor) -> str:
    text = f"{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}"
    if value.numel() == 1:
        return f"{text} = {value.item():.4g}"
    if value.numel() and value.dtype != torch.bool and not value.is_complex():
        low, high = value.detach().aminmax()
        text += f" in [{low.item():.4g}, {high.item():.4g}]"
    return text
