"""debug=True: every task once over one batch, before anything is done in earnest, so that a mistake in the last task shows in the first minute.

The rehearsal has parts of its own, built from the same options, and a run in a temporary folder that is removed: nothing of it is left. The
random state is set anew afterwards, so the numbers that follow are those of a run without it. Tasks that make files elsewhere are left out.
"""

from __future__ import annotations

import copy
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from diffusion_forcing.experiments.shapes import Shapes
from diffusion_forcing.tracking.run import Run

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
