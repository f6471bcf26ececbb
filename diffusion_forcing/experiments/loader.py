"""Batches in a known order, so that training can stop anywhere and continue with exactly the next one.

The order of epoch e is a permutation drawn from (seed, e) alone, and whatever a dataset draws at random while making
batch n of epoch e is drawn from (seed, e, n) alone. So the position (epoch, batch) is all there is to save, whatever
the number of workers and the process's own random state. It counts batches handed out, not those loaded ahead. Several
processes share each batch: together they see what one process with a batch as large sees, so a run may be resumed with
another number of them.
"""

from __future__ import annotations

import contextlib
import os
import random
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from diffusion_forcing.algorithms.parallel import Share, share_of
from diffusion_forcing.errors import UserError, require

# ruff: noqa: NPY002 (NumPy's global generator is one of those this module is about)

Place = tuple[int, int, list[int]]
"""Epoch, batch within it, dataset indices of its samples that are in this process."""


def seed_all(seed: int) -> None:
    """Start every global generator from `seed`, 0 … 2³² − 1; UserError for another one."""
    if not 0 <= seed < 2**32:
        raise UserError(f"seed={seed} is out of range; pass an integer from 0 to {2**32 - 1}")
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def random_state(*, gpus: bool = True) -> dict[str, Any]:
    """The state of every global generator: Python's, NumPy's, PyTorch's on the CPU and, with `gpus`, on GPUs."""
    state: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": np.random.get_state(),
        "torch": torch.get_rng_state(),
    }
    if gpus and torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    if gpus and torch.backends.mps.is_available():
        state["mps"] = torch.mps.get_rng_state()
    return state


def restore_random_state(state: dict[str, Any]) -> None:
    """Restore what `random_state` gave; GPUs' generators only where the same GPUs are there."""
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    if state.get("cuda") and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
    if "mps" in state and torch.backends.mps.is_available():
        torch.mps.set_rng_state(state["mps"])


@contextlib.contextmanager
def seeded(*seeds: int) -> Iterator[None]:
    """Inside, the CPU's generators start from `seeds`; outside they go on as if nothing had been drawn (~0.1 ms)."""
    seed = int(np.random.SeedSequence(seeds).generate_state(1)[0])
    before = random_state(gpus=False)
    try:
        random.seed(seed)
        np.random.seed(seed)
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed GPUs too
        yield
    finally:
        restore_random_state(before)


@dataclass(kw_only=True, eq=False)
class Order(Sampler[Place]):
    """Which samples are in which batch, and the position in them. Iterating gives the rest of the current epoch."""

    samples: int
    """In the dataset."""
    batch_size: int
    """Samples per batch and process."""
    shuffle: bool
    seed: int = 0
    drop_last: bool = False
    """Without an epoch's last, smaller batch, unless it is the only one."""
    rank: int = 0
    world_size: int = 1
    """This process among those that share each batch."""
    even: bool = False
    """Whether all processes have as many rows of a batch; see `share_of`."""
    epoch: int = field(default=0, init=False)
    batch: int = field(default=0, init=False)

    @property
    def whole_batch(self) -> int:
        """Samples per batch, in all processes."""
        return self.batch_size * self.world_size

    @property
    def length(self) -> int:
        """Batches per epoch."""
        complete = self.samples // self.whole_batch
        return complete if self.drop_last and complete else -(-self.samples // self.whole_batch)

    def __len__(self) -> int:
        """Batches left in this epoch."""
        return self.length - self.batch

    def __iter__(self) -> Iterator[Place]:
        epoch, order = self.epoch, self.of_epoch(self.epoch)
        for batch in range(self.batch, self.length):
            first = batch * self.whole_batch
            yield epoch, batch, order[[first + row for row in self.share(batch).rows]].tolist()

    def of_epoch(self, epoch: int) -> NDArray[np.int64]:
        """Dataset indices of all samples in the order of `epoch`, batch after batch."""
        if self.shuffle:
            return np.random.default_rng([self.seed, epoch]).permutation(self.samples)
        return np.arange(self.samples)

    def share(self, batch: int) -> Share:
        """This process's share of batch number `batch`."""
        total = min(self.whole_batch, self.samples - batch * self.whole_batch)
        return share_of(total, self.rank, self.world_size, even=self.even)

    def advance(self) -> None:
        """One batch was handed out."""
        self.batch += 1
        if self.batch == self.length:
            self.epoch, self.batch = self.epoch + 1, 0

    def signature(self) -> dict[str, int]:
        """What must be the same for a saved position to hold. batch_size: of all processes together."""
        return {
            "samples": self.samples,
            "batch_size": self.whole_batch,
            "shuffle": int(self.shuffle),
            "seed": self.seed,
        }


LONGEST_TEMPORARY_FOLDER = 70
"""Characters. A worker's socket is `TMPDIR/pymp-xxxxxxxx/listener-xxxxxxxx`, and a socket's path has at most 107 on Linux, 103 on macOS."""


class BatchLoader:
    """Batches of a map-style dataset, for validation and test; each `iter()` starts over, in the same order."""

    def __init__(
        self,
        dataset: Dataset[Any],
        *,
        batch_size: int,
        shuffle: bool,
        seed: int = 0,
        num_workers: int | None = None,
        pin_memory: bool = False,
        **order: Any,
    ) -> None:
        """`dataset.__getitems__(indices)` makes a whole batch, where it exists; else samples are collated.

        `num_workers`: processes that load ahead; None: none for a dataset that makes whole batches, else up to 4. None start where the
        path of the temporary folder (TMPDIR) is too long for the sockets that they pass batches through: PyTorch would wait for ever.
        `order`: more fields of `Order`. UserError if there is no data.
        """
        samples = len(dataset)  # type: ignore[arg-type]
        require(samples > 0, "the dataset has no samples; check dataset.* (episode_len too long?) and its files")
        self.position = Order(samples=samples, batch_size=batch_size, shuffle=shuffle, seed=seed, **order)
        self.indices: list[int] = []
        """Dataset indices of the newest batch."""
        self.share: Share | None = None
        """Which rows of the newest batch are in this process; None for all."""
        if num_workers is None:
            num_workers = 0 if hasattr(dataset, "__getitems__") else min(4, (os.cpu_count() or 1) - 1)
        if num_workers and len(tempfile.gettempdir()) > LONGEST_TEMPORARY_FOLDER:
            num_workers = 0
        self._loader: DataLoader[Any] = DataLoader(
            _Batches(dataset, seed, self.position.rank),
            batch_size=None,
            sampler=self.position,
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
            pin_memory=pin_memory and not getattr(dataset, "on_device", False),
            generator=torch.Generator().manual_seed(seed),  # making an iterator must not draw from the global one
        )

    def __len__(self) -> int:
        """Batches per epoch."""
        return self.position.length

    def __iter__(self) -> Iterator[Any]:
        self.position.epoch, self.position.batch = 0, 0
        yield from self._rest_of_epoch()

    def close(self) -> None:
        """End the worker processes. The garbage collector would need 5 seconds each, if it took their queues first."""
        workers = self._loader._iterator
        if workers is not None and hasattr(workers, "_shutdown_workers"):
            workers._shutdown_workers()
        self._loader._iterator = None

    def _rest_of_epoch(self) -> Iterator[Any]:
        for (_, number, indices), batch in zip(self.position, self._loader, strict=True):
            self.indices = indices
            self.share = self.position.share(number) if self.position.world_size > 1 else None
            self.position.advance()
            yield batch


class ResumableLoader(BatchLoader):
    """For training: each `iter()` continues where the last one stopped, and the position can be saved."""

    def __iter__(self) -> Iterator[Any]:
        """The rest of the current epoch, or all of the next one where that was finished."""
        yield from self._rest_of_epoch()

    def state_dict(self) -> dict[str, int]:
        """The position, and what must be the same for it to hold."""
        return {"epoch": self.position.epoch, "batch": self.position.batch, **self.position.signature()}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go to a saved position; UserError if the data or the size of the whole batch differs."""
        for key, now in self.position.signature().items():
            if state[key] != now:
                shared = self.position.world_size > 1
                raise UserError(
                    f"cannot resume with {key}={now}{f' ({self.position.world_size} processes)' if shared else ''}: "
                    f"the run was trained with {key}={state[key]}; resume with the same settings, or start a new run "
                    "from its weights with load="
                    + ("; batch_size here is experiment.training.batch_size times the processes" if shared else "")
                )
        self.position.epoch, self.position.batch = state["epoch"], state["batch"]


class _Batches(Dataset[Any]):
    """A dataset whose item (epoch, batch, indices) is the batch, drawn from (seed, epoch, batch) and, in further
    processes, the rank."""

    def __init__(self, dataset: Dataset[Any], seed: int, rank: int = 0) -> None:
        self._dataset = dataset
        self._seed = seed
        self._rank = rank

    def __getitem__(self, place: Place) -> Any:
        epoch, number, indices = place
        seeds = [self._seed, epoch, number] + ([self._rank] if self._rank else [])
        with seeded(*seeds):
            if hasattr(self._dataset, "__getitems__"):
                batch = self._dataset.__getitems__(indices)
                return default_collate(batch) if isinstance(batch, list) else batch
            return default_collate([self._dataset[i] for i in indices])
