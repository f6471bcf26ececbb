"""Batches in an order that is known beforehand, so that training can stop anywhere and go on with exactly the next one.

The order of epoch e is a permutation drawn from (seed, e) alone, and whatever a dataset draws at random while making
batch n of epoch e is drawn from (seed, e, n) alone. The position (epoch, batch) is therefore all there is to save: not
the number of workers, nor the process's own random state, has a part in which data comes next. The position counts
batches handed out, not those read ahead. Several processes share each batch: together they see what one process with a batch as large sees,
so a run may go on with another number of them.
"""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from diffusion_forcing.algorithms.parallel import Share, share_of
from diffusion_forcing.errors import UserError

# The process's random state as a value: Python, NumPy, PyTorch on the CPU and on every GPU.

# ruff: noqa: NPY002 (NumPy's global generator is one of those this module is about)


def seed_all(seed: int) -> None:
    """Start every global generator from `seed`, 0 … 2³² − 1; UserError for another one."""
    if not 0 <= seed < 2**32:
        raise UserError(f"seed={seed} is out of range; pass an integer from 0 to {2**32 - 1}")
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def get_state() -> dict[str, Any]:
    """The state of every global generator, for `set_state`."""
    state: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": np.random.get_state(),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def set_state(state: dict[str, Any]) -> None:
    """Put every global generator back; the GPUs' only where there are as many as there were."""
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    if len(state.get("cuda", ())) == torch.cuda.device_count() > 0:
        torch.cuda.set_rng_state_all(state["cuda"])


@contextlib.contextmanager
def owned_by(*seeds: int) -> Iterator[None]:
    """Inside, the CPU's generators start from `seeds`; outside they go on as if nothing had been drawn. Leaves GPUs
    alone: ~0.1 ms."""
    seed = int(np.random.SeedSequence(seeds).generate_state(1)[0])
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        random.seed(seed)
        np.random.seed(seed)
        torch.default_generator.manual_seed(seed)
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])


Place = tuple[int, int, list[int]]
"""Epoch, batch within it, dataset indices of its samples that are here."""


class Order(Sampler[Place]):
    """Which samples are in which batch, and how far we are. Iterating gives what is left of the current epoch."""

    def __init__(
        self,
        samples: int,
        *,
        batch_size: int,
        shuffle: bool,
        seed: int = 0,
        drop_last: bool = False,
        rank: int = 0,
        world_size: int = 1,
        even: bool = False,
    ) -> None:
        """`drop_last`: leave out an epoch's last, smaller batch, except where it is the only one. `even`: see `share_of`. Others: see
        `BatchLoader`."""
        self.samples = samples
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.even = even
        self.whole_batch = batch_size * world_size
        """Samples a batch, in all processes."""
        whole = samples // self.whole_batch
        self.length = whole if drop_last and whole else -(-samples // self.whole_batch)
        self.epoch = 0
        self.batch = 0

    def __len__(self) -> int:
        """Batches left in this epoch."""
        return self.length - self.batch

    def __iter__(self) -> Iterator[Place]:
        epoch, order = self.epoch, self.of_epoch(self.epoch)
        for batch in range(self.batch, self.length):
            first = batch * self.whole_batch
            yield epoch, batch, order[[first + row for row in self.share(batch).rows]].tolist()

    def of_epoch(self, epoch: int) -> NDArray[np.int64]:
        """Dataset indices of all samples in the order of `epoch`, whole batch after whole batch."""
        if self.shuffle:
            return np.random.default_rng([self.seed, epoch]).permutation(self.samples)
        return np.arange(self.samples)

    def share(self, batch: int) -> Share:
        """What of batch number `batch` is this process's."""
        total = min(self.whole_batch, self.samples - batch * self.whole_batch)
        return share_of(total, self.rank, self.world_size, even=self.even)

    def advance(self) -> None:
        """One batch was handed out."""
        self.batch += 1
        if self.batch == self.length:
            self.epoch, self.batch = self.epoch + 1, 0

    def signature(self) -> dict[str, int]:
        """What a position is a position in. batch_size: of all processes together."""
        return {
            "samples": self.samples,
            "batch_size": self.whole_batch,
            "shuffle": int(self.shuffle),
            "seed": self.seed,
        }


class BatchLoader:
    """Iterates over a map-style dataset in batches; each `iter()` starts over, in the same order. For validation, test."""

    def __init__(
        self,
        dataset: Dataset[Any],
        *,
        batch_size: int,
        shuffle: bool,
        seed: int = 0,
        num_workers: int | None = None,
        drop_last: bool = False,
        rank: int = 0,
        world_size: int = 1,
        pin_memory: bool = False,
        even: bool = False,
    ) -> None:
        """`dataset.__getitems__(indices)` makes a whole batch where it exists; else items are collated one by one.

        batch_size: samples a batch and process. drop_last: leave out an epoch's last, smaller batch (a dataset smaller
        than one batch still gives that one). num_workers: processes that read ahead; None lets the dataset decide (none
        if it makes whole batches). rank, world_size: this process among those that share each batch. even: all of them have as many
        rows, see `share_of`. UserError if there is no data.
        """
        samples = len(dataset)  # type: ignore[arg-type]
        if samples == 0:
            raise UserError(
                "the dataset has no samples; check dataset.* (episode_len longer than every episode?) and its files"
            )
        self.position = Order(
            samples,
            batch_size=batch_size,
            shuffle=shuffle,
            seed=seed,
            drop_last=drop_last,
            rank=rank,
            world_size=world_size,
            even=even,
        )
        self.indices: list[int] = []
        """Dataset indices of the batch handed out last."""
        self.share: Share | None = None
        """What of the batch handed out last is here; None where all of it is."""
        if num_workers is None:
            num_workers = 0 if hasattr(dataset, "__getitems__") else min(4, (os.cpu_count() or 1) - 1)
        self._loader: DataLoader[Any] = DataLoader(
            _Batches(dataset, seed, rank),
            batch_size=None,
            sampler=self.position,
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
            pin_memory=pin_memory,
            # its own, so that making an iterator draws nothing from the global one
            generator=torch.Generator().manual_seed(seed),
        )

    def __len__(self) -> int:
        """Batches an epoch."""
        return self.position.length

    def __iter__(self) -> Iterator[Any]:
        self.position.epoch, self.position.batch = 0, 0
        yield from self._rest_of_epoch()

    def close(self) -> None:
        """End the worker processes now. Left to the garbage collector, which may take their queues first, it takes 5
        seconds each."""
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
    """The same for training: each `iter()` goes on where the last one stopped, epoch after epoch; the position can be
    saved."""

    def __iter__(self) -> Iterator[Any]:
        """The rest of the current epoch; all of the next one where the last one was finished."""
        yield from self._rest_of_epoch()

    def state_dict(self) -> dict[str, int]:
        """The position, and what it is a position in."""
        return {"epoch": self.position.epoch, "batch": self.position.batch, **self.position.signature()}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go to a saved position; UserError if the data or the size of the whole batch is not what it was."""
        # states of earlier versions hold each process's part of a batch
        before = {**state, "batch_size": state["batch_size"] * state.get("processes", 1)}
        for key, now in self.position.signature().items():
            if before.get(key) != now:
                shared = f" ({self.position.world_size} processes)" if self.position.world_size > 1 else ""
                raise UserError(
                    f"cannot resume with {key}={now}{shared}: the run was trained with {key}={before.get(key)}; "
                    "resume with the same settings, or start a new run from its weights with load="
                    + ("; batch_size here is experiment.training.batch_size times the processes" if shared else "")
                )
        self.position.epoch, self.position.batch = state["epoch"], state["batch"]


class _Batches(Dataset[Any]):
    """A dataset whose item (epoch, batch, indices) is the whole batch, whatever it draws at random owned by (seed,
    epoch, batch), and the process where there are several."""

    def __init__(self, dataset: Dataset[Any], seed: int, rank: int = 0) -> None:
        self._dataset = dataset
        self._seed = seed
        self._rank = rank

    def __getitem__(self, place: Place) -> Any:
        epoch, number, indices = place
        with owned_by(self._seed, epoch, number, *[self._rank] * bool(self._rank)):
            if hasattr(self._dataset, "__getitems__"):
                batch = self._dataset.__getitems__(indices)
                return default_collate(batch) if isinstance(batch, list) else batch
            return default_collate([self._dataset[i] for i in indices])
