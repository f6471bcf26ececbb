"""Batches in an order that is known beforehand, so that training can stop anywhere and go on with exactly the next one.

The order of epoch e is a permutation drawn from (seed, e) alone, and whatever a dataset draws at random while making
batch n of epoch e is drawn from (seed, e, n) alone. The position (epoch, batch) is therefore all there is to save: not
the number of workers, nor the process's own random state, has a part in which data comes next. The position counts
batches handed out, not those read ahead.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from diffusion_forcing.errors import UserError
from diffusion_forcing.experiments import randomness

Place = tuple[int, int, list[int]]
"""Epoch, batch within it, dataset indices of its samples."""


class BatchLoader:
    """Iterates over a map-style dataset in batches; every `iter()` starts at the beginning, in the same order. For
    validation and test."""

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
    ) -> None:
        """`dataset.__getitems__(indices)` makes a whole batch where it exists; else items are collated one by one.

        batch_size: samples a batch and process. drop_last: leave out an epoch's last, smaller batch (a dataset smaller
        than one batch still gives that one). num_workers: processes that read ahead; None lets the dataset decide (none
        if it makes whole batches). rank, world_size: this process among those that share each epoch. UserError if there
        is no data.
        """
        self.dataset = dataset
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.samples = len(dataset)  # type: ignore[arg-type]
        if self.samples == 0:
            raise UserError(
                "the dataset has no samples; check dataset.* (episode_len longer than every episode?) and its files"
            )
        mine = -(-self.samples // world_size)
        whole = mine // batch_size
        self.length = whole if drop_last and whole else -(-mine // batch_size)
        self.epoch = 0
        self.batch = 0
        self.indices: list[int] = []
        """Dataset indices of the batch handed out last."""
        if num_workers is None:
            num_workers = 0 if hasattr(dataset, "__getitems__") else min(4, (os.cpu_count() or 1) - 1)
        self._loader: DataLoader[Any] = DataLoader(
            _Batches(dataset, seed),
            batch_size=None,
            sampler=_Order(self),
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
            pin_memory=pin_memory,
            generator=torch.Generator().manual_seed(
                seed
            ),  # so that making an iterator draws nothing from the global state
        )

    def __len__(self) -> int:
        """Batches an epoch."""
        return self.length

    def __iter__(self) -> Iterator[Any]:
        self.epoch, self.batch = 0, 0
        yield from self._rest_of_epoch()

    def order(self, epoch: int) -> NDArray[np.int64]:
        """Dataset indices of this process in `epoch`, (ceil(samples / world_size),); the last ones repeat where it does
        not divide."""
        if self.shuffle:
            indices = np.random.default_rng([self.seed, epoch]).permutation(self.samples)
        else:
            indices = np.arange(self.samples)
        each = -(-self.samples // self.world_size)
        return np.resize(indices, each * self.world_size)[self.rank :: self.world_size]

    def _rest_of_epoch(self) -> Iterator[Any]:
        for (_, _, indices), batch in zip(self._places(), self._loader, strict=True):
            self.indices = indices
            self.batch += 1
            if self.batch == self.length:
                self.epoch, self.batch = self.epoch + 1, 0
            yield batch

    def _places(self) -> Iterator[Place]:
        """What is left of the current epoch."""
        epoch, size = self.epoch, self.batch_size
        order = self.order(epoch)
        for batch in range(self.batch, self.length):
            yield epoch, batch, order[batch * size : (batch + 1) * size].tolist()


class ResumableLoader(BatchLoader):
    """The same for training: each `iter()` goes on where the last one stopped, epoch after epoch, and the position can
    be saved."""

    def __iter__(self) -> Iterator[Any]:
        """The rest of the current epoch; all of the next one where the last one was finished."""
        yield from self._rest_of_epoch()

    def state_dict(self) -> dict[str, int]:
        """The position, and what it is a position in."""
        return {"epoch": self.epoch, "batch": self.batch, **self._signature()}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go to a saved position; UserError if the data, the batch size or the number of processes is not what it was."""
        for key, now in self._signature().items():
            if state.get(key) != now:
                raise UserError(
                    f"cannot resume with {key}={now}: the run was trained with {key}={state.get(key)}; "
                    "resume with the same settings, or start a new run from its weights with load="
                )
        self.epoch, self.batch = state["epoch"], state["batch"]

    def _signature(self) -> dict[str, int]:
        return {
            "samples": self.samples,
            "batch_size": self.batch_size,
            "shuffle": int(self.shuffle),
            "seed": self.seed,
            "processes": self.world_size,
        }


class _Order(Sampler[Place]):
    """A loader's own order, in the shape torch's DataLoader asks for."""

    def __init__(self, loader: BatchLoader) -> None:
        self._of = loader

    def __iter__(self) -> Iterator[Place]:
        return self._of._places()

    def __len__(self) -> int:
        return self._of.length - self._of.batch


class _Batches(Dataset[Any]):
    """A dataset whose item (epoch, batch, indices) is the whole batch, whatever it draws at random owned by (seed,
    epoch, batch)."""

    def __init__(self, dataset: Dataset[Any], seed: int) -> None:
        self._dataset = dataset
        self._seed = seed

    def __getitem__(self, place: Place) -> Any:
        epoch, number, indices = place
        with randomness.owned_by(self._seed, epoch, number):
            if hasattr(self._dataset, "__getitems__"):
                batch = self._dataset.__getitems__(indices)
                return default_collate(batch) if isinstance(batch, list) else batch
            return default_collate([self._dataset[i] for i in indices])
