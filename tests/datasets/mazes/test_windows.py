"""Windows: the right steps, none across an episode's end, padding marked, the fast path equal to the plain one."""

from __future__ import annotations

import itertools
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from diffusion_forcing.datasets.mazes.base import Store, Windows, open_store
from diffusion_forcing.errors import UserError

from ..makers import steps


def make_store(folder: Path, count: int, *, terminals: tuple[int, ...] = ()) -> Store:
    ends = np.zeros(count, dtype=bool)
    ends[list(terminals)] = True
    source = folder / "source"
    source.write_text("x")
    return open_store(
        source, folder / "cache", lambda: {**steps(count), "ends": ends}, settings=str((count, terminals))
    )


def test_a_window_is_the_steps_that_follow_its_number(tmp_path: Path) -> None:
    windows = Windows(make_store(tmp_path, 50), 10)
    assert len(windows) == 41
    batch = windows.__getitems__([0, 40, 7])
    assert batch.observations[:, 0, 2].tolist() == [0.0, 40.0, 7.0]
    assert batch.observations[1, :, 2].tolist() == list(range(40, 50))
    expected = steps(50)
    assert (batch.actions[2].numpy() == expected["actions"][7:17]).all()
    assert (batch.rewards[2].numpy() == expected["rewards"][7:17]).all()
    assert batch.valid.all() and batch.valid.dtype == torch.bool
    assert [tuple(part.shape) for part in batch] == [(3, 10, 4), (3, 10, 2), (3, 10), (3, 10)]
    assert all(part.is_contiguous() for part in batch)
    assert tuple(windows[3].observations.shape) == (1, 10, 4)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    count=st.integers(2, 40),
    length=st.integers(1, 12),
    ends=st.sets(st.integers(0, 39), max_size=5),
)
def test_windows_are_all_and_only_those_within_an_episode(
    tmp_path: Path, count: int, length: int, ends: set[int]
) -> None:
    store = make_store(tmp_path, count, terminals=tuple(sorted(end for end in ends if end < count)))
    borders = sorted({0, count, *(end + 1 for end in ends if end < count)})
    expected = []
    for begin, end in itertools.pairwise(borders):
        if end - begin >= 2:
            for start in range(begin, max(end - length, begin) + 1):
                rows = [min(row, end - 1) for row in range(start, start + length)]
                expected.append((rows, [row < end for row in range(start, start + length)]))
    if not expected:
        with pytest.raises(UserError, match="no window fits"):
            Windows(store, length)
        return
    windows = Windows(store, length)
    assert len(windows) == len(expected)
    batch = windows.__getitems__(list(range(len(windows))))
    assert batch.observations[:, :, 2].tolist() == [rows for rows, _ in expected]
    assert batch.valid.tolist() == [valid for _, valid in expected]
    one_by_one = [windows[index] for index in range(len(windows))]
    for field in batch._fields:
        assert torch.equal(getattr(batch, field), torch.cat([getattr(one, field) for one in one_by_one]))


def test_a_jump_no_ball_can_make_ends_an_episode(tmp_path: Path) -> None:
    arrays = {**steps(30), "ends": np.zeros(30, dtype=bool)}
    arrays["observations"][10:, 1] += 1.0
    arrays["observations"][20:, 1] += 1.0
    (tmp_path / "source").write_text("x")
    store = open_store(tmp_path / "source", tmp_path / "cache", lambda: arrays)
    assert store.episodes.tolist() == [[0, 10], [10, 20], [20, 30]]


def test_training_and_validation_windows_share_no_step(tmp_path: Path) -> None:
    store = make_store(tmp_path, 60)
    training, validation = Windows(store, 10, end=40), Windows(store, 10, begin=40)
    assert (len(training), len(validation)) == (31, 11)
    assert training[30].observations[0, -1, 2] == 39 and validation[0].observations[0, 0, 2] == 40


def test_an_index_out_of_range_is_an_index_error(tmp_path: Path) -> None:
    windows = Windows(make_store(tmp_path, 20), 10)
    for index in (-1, 11):
        with pytest.raises(IndexError):
            windows[index]


def test_the_data_are_mapped_not_pickled(tmp_path: Path) -> None:
    windows = Windows(make_store(tmp_path, 5000), 10)
    windows[0]
    packed = pickle.dumps(windows)
    assert len(packed) < 2000
    assert torch.equal(pickle.loads(packed)[7].observations, windows[7].observations)


def test_workers_of_a_loader_give_the_same_batches(tmp_path: Path) -> None:
    windows = Windows(make_store(tmp_path, 60), 10)
    loaders = [DataLoader(windows, batch_size=16, collate_fn=lambda batch: batch, num_workers=n) for n in (0, 1)]
    for one, two in zip(*loaders, strict=True):
        assert torch.equal(one.observations, two.observations)


def test_changing_a_batch_does_not_change_the_data(tmp_path: Path) -> None:
    windows = Windows(make_store(tmp_path, 20), 10)
    windows[0].observations.zero_()
    assert windows[3].observations[0, 0, 2] == 3.0


def test_the_cache_is_kept_until_the_source_changes(tmp_path: Path) -> None:
    calls = []
    source = tmp_path / "source"
    source.write_text("one")

    def read() -> dict[str, np.ndarray]:
        calls.append(1)
        return {**steps(10), "ends": np.zeros(10, dtype=bool)}

    for _ in range(2):
        assert len(open_store(source, tmp_path / "cache", read)) == 10
    assert len(calls) == 1
    source.write_text("three")
    open_store(source, tmp_path / "cache", read)
    assert len(calls) == 2
    open_store(source, tmp_path / "cache", read, settings="other maze")
    assert len(calls) == 3


def test_a_reading_that_fails_leaves_no_cache_behind(tmp_path: Path) -> None:
    (tmp_path / "source").write_text("x")

    def read() -> dict[str, np.ndarray]:
        return {"observations": np.full((10, 4), "x"), "ends": np.zeros(10, dtype=bool)}

    with pytest.raises(ValueError, match="could not convert"):
        open_store(tmp_path / "source", tmp_path / "cache", read)
    assert not list(tmp_path.glob("cache*"))


def test_statistics_are_those_of_the_columns(tmp_path: Path) -> None:
    found, arrays = make_store(tmp_path, 1000).statistics, steps(1000)
    for kind in ("observation", "action"):
        values = arrays[f"{kind}s"].astype(np.float64)
        expected = {"mean": values.mean(0), "std": values.std(0), "min": values.min(0), "max": values.max(0)}
        assert all(found[f"{kind}_{name}"] == pytest.approx(value) for name, value in expected.items())
