"""debug=True: every task once over one batch, before anything is done in earnest, so that a mistake in the last task shows in the first minute.

The rehearsal has parts of its own, built from the same options, and a run in a temporary folder that is removed: nothing of it is left. The
random state is set anew afterwards, so the numbers that follow are those of a run without it. Tasks that make files elsewhere are left out.
"""

from __future__ import annotations

import copy
import functools
import inspect
import io
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import Dataset
from torch.utils.hooks import RemovableHandle

from diffusion_forcing.errors import UserError
from diffusion_forcing.files import write_atomic
from diffusion_forcing.tracking.run import Run

# debug=True: the first layer whose result is not finite is named, with the step, before the loss is.
#
# PyTorch's anomaly detection names the operation of a backward pass; this is the same for the forward pass.


class FiniteLayers(Callback):
    """Looks at what every layer gives, in training. UserError with the layer's name for the first that is not finite of finite input."""

    def __init__(self) -> None:
        self._hooks: list[RemovableHandle] = []
        self._step: Callable[[], int] = lambda: 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._step = lambda: trainer.global_step + 1
        for name, layer in pl_module.named_modules():
            if name:  # inner ones are called, and looked at, before those made of them
                self._hooks.append(layer.register_forward_hook(functools.partial(self._look, name), with_kwargs=True))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._remove()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._remove()

    def _look(self, name: str, layer: nn.Module, words: Any, named: dict[str, Any], result: Any) -> None:
        if not layer.training or _finite(result):
            return
        weights = [key for key, value in layer.named_parameters() if not torch.isfinite(value).all()]
        if weights:
            why = f"its weight {weights[0]} is not finite"
        elif _finite((words, named)):
            why = "what it was given is finite"
        else:
            why = "what it was given is not finite either: it came from outside the layers"
        raise UserError(f"debug: layer {name} ({type(layer).__name__}) gave a nan or inf at step {self._step()}; {why}")

    def _remove(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()


def _finite(value: Any) -> bool:
    if isinstance(value, Tensor):
        return not value.is_floating_point() or bool(torch.isfinite(value).all())
    if isinstance(value, Mapping):
        return all(map(_finite, value.values()))
    if isinstance(value, (list, tuple)):
        return all(map(_finite, value))
    return True


# debug=True: how large the weights and their gradients are, parameter by parameter, while training goes on.
#
# Counts of the decimal logarithm of absolute values, in quarter decades from 1e-12 to 1e6, of each parameter and of its gradient (before
# clipping) at every logged step; kept in `debug/histograms.npz` in the run's folder and drawn on its page. Zeros and what is not finite are
# counted beside them.

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
        from diffusion_forcing.visualization.curves import draw_histograms
    except ModuleNotFoundError:
        return None
    return draw_histograms


# debug=True: what passes from batch to tokens to network to loss, once, a line a stage: names, shapes, types, ranges.

_STEPS = ("training_step", "validation_step", "test_step")
_ENCODERS = ("encode",)
_MOST_ITEMS = 8  # of a batch that are shown


class Shapes:
    """While entered, the first call of each stage of an algorithm is written down. `lines()` are what is new since they were asked for."""

    def __init__(self, algorithm: nn.Module) -> None:
        self._algorithm = algorithm
        self._found: dict[str, str] = {}
        self._told: set[str] = set()
        self._undo: list[Callable[[], None]] = []

    def __enter__(self) -> Shapes:
        for name in (*_STEPS, *_ENCODERS):
            if callable(getattr(self._algorithm, name, None)):
                self._watch_method(name)
        # networks may be made once the data is known; theirs are found when a step begins
        self._watch_networks()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for undo in reversed(self._undo):
            undo()
        self._undo.clear()

    def lines(self) -> list[str]:
        """A line for each stage that was met and not told yet, a heading before the first."""
        new = [name for name in self._found if name not in self._told]
        heading = ["debug: shapes, stage by stage"] if new and not self._told else []
        self._told |= set(new)
        width = max((len(name) for name in new), default=0)
        return heading + [f"  {name:<{width}}  {self._found[name]}" for name in new]

    def _note(self, stage: str, text: Callable[[], str]) -> None:
        if stage not in self._found:
            self._found[stage] = text()

    def _watch_method(self, name: str) -> None:
        method = getattr(self._algorithm, name)

        @functools.wraps(method)
        def watched(*words: Any, **named: Any) -> Any:
            if name in _STEPS:
                self._watch_networks()
                batch = words[0] if words else named.get("batch")
                self._note("batch", lambda: described(batch))
            result = method(*words, **named)
            if name in _ENCODERS:
                self._note("tokens", lambda: described(result))
            elif name == "training_step":
                loss = result.get("loss") if isinstance(result, Mapping) else result
                self._note("loss", lambda: described(loss))
            return result

        own = self._algorithm.__dict__
        before = own.get(name)
        own[name] = watched

        def undo() -> None:
            if before is None:
                own.pop(name, None)
            else:
                own[name] = before

        self._undo.append(undo)

    def _watch_networks(self) -> None:
        for name, network in networks(self._algorithm).items():
            if getattr(network, "_shapes_are_watched", False):
                continue
            network.__dict__["_shapes_are_watched"] = True
            hook = network.register_forward_hook(functools.partial(self._on_forward, name), with_kwargs=True)
            self._undo += [functools.partial(network.__dict__.pop, "_shapes_are_watched", None), hook.remove]

    def _on_forward(self, name: str, network: nn.Module, words: Any, named: dict[str, Any], result: Any) -> None:
        def text() -> str:
            given = dict(zip(_parameters(network), words, strict=False)) | named
            count = sum(parameter.numel() for parameter in network.parameters())
            return f"{described(given)} → {described(result)}   {type(network).__name__}, {count:,} parameters"

        self._note(name, text)


def networks(algorithm: nn.Module) -> dict[str, nn.Module]:
    """Its `network`, where it has one; else every module it is made of, by name."""
    own = getattr(algorithm, "network", None) if getattr(algorithm, "forcing", True) is not None else None
    if isinstance(own, nn.Module):
        return {"network": own}
    forcing = getattr(getattr(algorithm, "forcing", None), "network", None)
    if isinstance(forcing, nn.Module):
        return {"network": forcing}
    return dict(algorithm.named_children())


def described(value: Any) -> str:
    """`x (8, 16, 2) float32 in [-1.3, 2], k (8, 16) int64 in [0, 999]`: the tensors in a value, by name where they have one."""
    if isinstance(value, Tensor):
        return _tensor(value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        value = dict(zip(value._fields, value, strict=True))
    if isinstance(value, Mapping):
        parts = [f"{name} {described(item)}" for name, item in value.items() if _has_tensor(item)]
    elif isinstance(value, (list, tuple)):
        parts = [described(item) for item in value if _has_tensor(item)]
    else:
        return type(value).__name__
    more = [f"and {len(parts) - _MOST_ITEMS} more"] if len(parts) > _MOST_ITEMS else []
    return ", ".join(parts[:_MOST_ITEMS] + more) or "no tensors"


def _tensor(value: Tensor) -> str:
    kind = str(value.dtype).removeprefix("torch.")
    if value.numel() == 1:
        return f"{tuple(value.shape)} {kind} = {value.detach().item():.4g}"
    text = f"{tuple(value.shape)} {kind}"
    if value.numel() and value.dtype != torch.bool and not value.is_complex():
        low, high = value.detach().aminmax()
        text += f" in [{low.item():.4g}, {high.item():.4g}]"
    return text


def _has_tensor(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(map(_has_tensor, value.values()))
    if isinstance(value, (list, tuple)):
        return any(map(_has_tensor, value))
    return isinstance(value, Tensor)


def _parameters(network: nn.Module) -> list[str]:
    return list(inspect.signature(network.forward).parameters)


NOT_REHEARSED = ("generate_dataset",)
"""Tasks whose work is files that stay."""
_PARTS = ("training", "validation", "test")


def rehearse(
    classes: Mapping[str, type],
    options: Mapping[str, Any],
    *,
    seed: int,
    load: Path | None,
    say: Callable[[str], None],
) -> None:
    """Run each task of `options["experiment"]` once over one batch, and say how long it took; the first with its shapes, stage by stage.

    classes, options: of dataset, algorithm and experiment. load: the checkpoint that the tasks will begin with. What fails, fails here.
    """
    experiment_class = classes["experiment"]
    small = experiment_class.one_batch(options["experiment"])  # type: ignore[attr-defined]
    with tempfile.TemporaryDirectory(prefix="diffusion-forcing-debug-") as folder:
        run = Run.create(Path(folder), "debug")
        algorithm = classes["algorithm"](options["algorithm"])
        dataset = classes["dataset"](options["dataset"])
        experiment = experiment_class(
            small,
            dataset=first_batches(dataset, small),
            algorithm=algorithm,
            run=run,
            seed=seed,
            debug=True,
            load=load,
            resume=None,
        )
        experiment.rehearsing = True
        shapes = Shapes(algorithm)
        try:
            for task in dict.fromkeys(small.tasks):
                if task in NOT_REHEARSED:
                    say(f"debug: {task} is not rehearsed, it makes files")
                    continue
                began = time.perf_counter()
                try:
                    with shapes:
                        experiment.run_task(task)
                except BaseException:
                    say(f"debug: {task} fails on one batch, before anything was done:")
                    raise
                for line in shapes.lines():
                    say(line)
                say(f"debug: {task} works on one batch ({time.perf_counter() - began:.1f} s)")
        finally:
            run.finish()


def first_batches(dataset: Any, options: Any) -> Any:
    """`dataset`, whose `training()`, `validation()` and `test()` give no more samples than one batch of these experiment options."""
    small = copy.copy(dataset)

    def limited(name: str) -> Callable[[], Head]:
        whole = getattr(type(dataset), name)
        return lambda: Head(whole(small), getattr(options, name).batch_size)

    for name in _PARTS:
        if callable(getattr(type(dataset), name, None)):
            setattr(small, name, limited(name))
    return small


class Head(Dataset[Any]):
    """The first samples of a map-style dataset; everything else about it is the dataset's own."""

    def __init__(self, data: Any, count: int) -> None:
        self._data = data
        self._count = min(count, len(data))

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Any:
        return self._data[index]

    def __getattr__(self, name: str) -> Any:
        if name in ("_data", "_count"):  # while it is being copied
            raise AttributeError(name)
        return getattr(self._data, name)
