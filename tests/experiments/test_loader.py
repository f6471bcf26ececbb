import multiprocessing
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from diffusion_forcing.errors import UserError
from diffusion_forcing.experiments.loader import BatchLoader, Order, ResumableLoader, seed_all
from tests.experiments.toy import Samples

SEED = 5


def loader(count: int = 11, *, kind: type[BatchLoader] = ResumableLoader, **settings: Any) -> Any:
    given: dict[str, Any] = {"batch_size": 4, "shuffle": True, "seed": SEED, "num_workers": 0} | settings
    return kind(Samples(count), **given)


def drawn(source: Any, batches: int) -> list[torch.Tensor]:
    """The next batches, `iter()` called again at each epoch's end, as Lightning does."""
    found: list[torch.Tensor] = []
    while len(found) < batches:
        for batch in source:
            found.append(batch)
            if len(found) == batches:
                break
    return found


def equal(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_an_epoch_gives_every_sample_once_and_the_next_one_another_order() -> None:
    source = loader()
    seen = []
    for _ in range(2):
        epoch = []
        for _ in source:
            epoch += source.indices
        seen.append(epoch)
    assert sorted(seen[0]) == sorted(seen[1]) == list(range(11))
    assert seen[0] != seen[1]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("stop", [1, 2, 3, 5, 6])
def test_a_loader_put_back_to_a_saved_position_goes_on_with_exactly_the_next_batch(workers: int, stop: int) -> None:
    whole = drawn(loader(), 9)
    first = loader(num_workers=workers)
    drawn(first, stop)
    second = loader(num_workers=workers)
    second.load_state_dict(first.state_dict())
    rest = drawn(second, 9 - stop)
    first.close()
    second.close()
    assert equal(rest, whole[stop:])


def test_the_position_counts_what_was_handed_out_and_not_what_was_read_ahead() -> None:
    source = loader(count=40, num_workers=2)
    drawn(source, 3)
    source.close()
    assert source.state_dict()["batch"] == 3


def test_the_position_after_an_epochs_last_batch_is_the_next_epochs_first() -> None:
    source = loader()
    drawn(source, 3)
    assert (source.state_dict()["epoch"], source.state_dict()["batch"]) == (1, 0)


def test_a_dataset_that_makes_whole_batches_gives_the_same_as_one_that_makes_samples() -> None:
    whole = BatchLoader(Samples(11, whole_batches=True), batch_size=4, shuffle=True, seed=SEED, num_workers=0)
    assert equal(list(whole), list(loader(kind=BatchLoader)))


def test_what_a_dataset_draws_neither_depends_on_the_global_state_nor_changes_it() -> None:
    seed_all(1)
    first = drawn(loader(), 4)
    after = (torch.rand(1), np.random.rand())  # noqa: NPY002
    seed_all(1)
    assert (torch.rand(1), np.random.rand()) == after  # noqa: NPY002
    assert equal(drawn(loader(), 4), first)


def test_a_loader_for_evaluation_starts_over_each_time() -> None:
    source = loader(kind=BatchLoader, shuffle=False)
    assert equal(drawn(source, 1), drawn(source, 1))
    assert equal(list(source), list(source))
    assert not hasattr(source, "state_dict"), "Lightning would save and restore its position"


def test_without_shuffling_samples_come_in_their_order() -> None:
    source = loader(shuffle=False)
    drawn(source, 2)
    assert source.indices == [4, 5, 6, 7]


@pytest.mark.parametrize(("count", "drop", "lengths"), [(11, False, [4, 4, 3]), (11, True, [4, 4]), (3, True, [3])])
def test_the_last_smaller_batch_is_dropped_only_where_there_is_a_whole_one(
    count: int, drop: bool, lengths: list[int]
) -> None:
    source = loader(count, drop_last=drop)
    assert [len(batch) for batch in source] == lengths
    assert len(source) == len(lengths)


def places(samples: int, processes: int, *, whole_batch: int = 4, **settings: Any) -> list[list[list[int]]]:
    """For each process the dataset indices of its batches in epoch 0."""
    each = whole_batch // processes
    orders = [
        Order(samples=samples, batch_size=each, shuffle=True, seed=SEED, rank=rank, world_size=processes, **settings)
        for rank in range(processes)
    ]
    return [[indices for _, _, indices in order] for order in orders]


@pytest.mark.parametrize("drop", [True, False])
def test_processes_have_the_rows_of_the_same_whole_batches_as_one(drop: bool) -> None:
    (alone,) = places(11, 1, drop_last=drop)
    together = places(11, 2, drop_last=drop)
    for whole, first, second in zip(alone, *together, strict=True):
        assert [first, second] == [whole[::2], whole[1::2]]


def test_where_training_data_does_not_divide_all_processes_have_as_many_rows_and_miss_none() -> None:
    *_, last = zip(*places(13, 4, even=True), strict=True)
    assert [len(rows) for rows in last] == [1, 1, 1, 1]
    assert len({row for rows in last for row in rows}) == 1
    *_, last = zip(*places(15, 2, even=True), strict=True)
    assert [len(rows) for rows in last] == [2, 2]
    assert len({row for rows in last for row in rows}) == 3


@pytest.mark.parametrize(("samples", "processes"), [(5, 2), (9, 2), (1, 4), (7, 4), (8, 4)])
def test_in_an_evaluation_each_sample_counts_once_and_all_processes_have_as_many_batches(
    samples: int, processes: int
) -> None:
    counted: list[int] = []
    lengths = set()
    for rank in range(processes):
        settings: dict[str, Any] = {"rank": rank, "world_size": processes, "batch_size": 4 // processes}
        source = loader(samples, kind=BatchLoader, shuffle=False, **settings)
        for batch in source:
            assert len(batch) == len(source.indices) == len(source.share.rows) > 0
            counted += source.indices[: source.share.counted]
        lengths.add(len(source))
    assert sorted(counted) == list(range(samples))
    assert len(lengths) == 1


def test_one_process_knows_of_no_shares() -> None:
    source = loader()
    drawn(source, 1)
    assert source.share is None


def test_a_position_holds_for_another_number_of_processes_with_the_same_whole_batch() -> None:
    source = loader(24, batch_size=4)
    whole = drawn(source, 4)
    after = source.state_dict()
    assert [len(batch) for batch in whole] == [4] * 4
    two = [loader(24, batch_size=2, rank=rank, world_size=2) for rank in range(2)]
    for process in two:
        process.load_state_dict(after)
        drawn(process, 1)
    drawn(source, 1)
    assert [two[0].indices, two[1].indices] == [source.indices[::2], source.indices[1::2]]
    with pytest.raises(UserError, match=r"batch_size=8 \(2 processes\): the run was trained with batch_size=4"):
        loader(24, batch_size=4, world_size=2).load_state_dict(after)


@pytest.mark.parametrize("change", [{"batch_size": 2}, {"seed": 6}, {"shuffle": False}, {"count": 12}])
def test_other_data_or_another_batch_size_cannot_be_resumed_and_the_line_says_which(change: dict[str, Any]) -> None:
    state = loader().state_dict()
    with pytest.raises(UserError, match=r"cannot resume with \w+=.*load="):
        loader(**change).load_state_dict(state)


def test_no_data_is_one_line() -> None:
    with pytest.raises(UserError, match="no samples"):
        loader(0)


def test_a_closed_loader_leaves_no_process_behind_and_may_be_used_again() -> None:
    source = loader(num_workers=2)
    drawn(source, 1)
    assert len(multiprocessing.active_children()) == 2
    source.close()
    assert multiprocessing.active_children() == []
    assert len(drawn(source, 2)) == 2
    source.close()


def test_a_temporary_folder_with_a_long_path_starts_no_workers_that_would_wait_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = tmp_path / ("a" * 100)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    source = loader(num_workers=2)
    expected = drawn(loader(), 3)
    assert equal(drawn(source, 3), expected)
    assert not [child for child in multiprocessing.active_children() if child.daemon]
