"""training.pt: what trainers keep comes back; nothing but tensors and plain values is written or read."""

from __future__ import annotations

import json
import math
import os
import pickle
import random
from collections import OrderedDict
from datetime import timedelta
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from diffusion_forcing.checkpoints import format as native
from diffusion_forcing.checkpoints import load, save
from diffusion_forcing.errors import UserError
from tests.checkpoints.same import same


def through_a_checkpoint(folder: Path, value: Any) -> Any:
    path = save(folder / "step-1", {"value": value}, metadata={}, model={"w": torch.zeros(1)})
    found = load(path, training=True).training
    assert found is not None
    return found["value"]


@pytest.mark.parametrize(
    "value",
    [
        {"step": 3, "names": ["a", None, 1.5, True, "$"], 0: (1, 2), (1, "a"): {1, 2}},
        [math.nan, math.inf, -math.inf, -0.0, 2 + 1j, b"bytes", 10**30],
        [torch.arange(6).reshape(2, 3), torch.randn(2, dtype=torch.float64), torch.tensor(True), torch.zeros(0, 2)],
        [torch.float16, torch.device("cpu"), torch.Size([2, 3]), timedelta(days=1, microseconds=3), Path("a/b")],
        [np.float32(0.5), np.float64(0.1), np.int64(3), np.arange(3, dtype=np.uint32), np.array(["a"]), np.bool_(True)],
        OrderedDict(a=1),
    ],
)
def test_plain_values_come_back_equal_in_type_and_value(tmp_path: Path, value: Any) -> None:
    assert same(through_a_checkpoint(tmp_path, value), value)


def test_random_states_of_python_numpy_and_torch_come_back(tmp_path: Path) -> None:
    state = {"python": random.getstate(), "numpy": np.random.get_state(), "torch": torch.get_rng_state()}  # noqa: NPY002
    found = through_a_checkpoint(tmp_path, state)
    assert same(found, state)
    random.setstate(found["python"])
    np.random.set_state(found["numpy"])  # noqa: NPY002


def test_the_state_of_optimizers_and_schedulers_comes_back(tmp_path: Path) -> None:
    layer = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(layer.parameters(), betas=(0.9, 0.99))
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
    layer(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    plateau.step(np.float64(0.5))
    state = {"optimizer": optimizer.state_dict(), "plateau": plateau.state_dict()}
    found = through_a_checkpoint(tmp_path, state)
    assert same(found, state)
    torch.optim.AdamW(layer.parameters()).load_state_dict(found["optimizer"])


def test_tensors_that_share_memory_are_stored_once(tmp_path: Path) -> None:
    shared = torch.zeros(100_000)
    path = save(tmp_path / "step-1", {"a": shared, "b": shared}, metadata={}, model={})
    assert (path / native.TRAINING).stat().st_size < 1.1 * shared.nbytes


class Mode(str, Enum):
    MIN = "min"


class Calls:
    """Unpickled as it stands, makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("value", [len, Mode.MIN, lambda: 0, np.array([object()])])
def test_what_could_not_be_read_back_is_refused_when_it_is_saved(tmp_path: Path, value: Any) -> None:
    with pytest.raises(TypeError, match="keeps more than tensors and plain values"):
        save(tmp_path / "step-1", {"callbacks": [value]}, metadata={}, model={})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("protocol", [2, 5])
def test_a_training_state_never_runs_anything(tmp_path: Path, protocol: int) -> None:
    path = save(tmp_path / "step-1", {"global_step": 1}, metadata={}, model={"w": torch.zeros(1)})
    file, made = path / native.TRAINING, tmp_path / "made"
    for content in (
        lambda: torch.save(Calls(made), file),
        lambda: file.write_bytes(pickle.dumps(Calls(made), protocol)),
    ):
        content()
        header = native.read_header(path)
        header["files"][native.TRAINING] = native.fingerprint(file)
        (path / native.HEADER).write_text(json.dumps(header))
        with pytest.raises(UserError, match=r"training\.pt cannot be read: it") as caught:
            load(path, training=True)
        assert "\n" not in str(caught.value)
        assert not made.exists()


def test_the_training_state_of_an_earlier_version_is_refused_with_the_way_out(tmp_path: Path) -> None:
    path = save(tmp_path / "step-1", None, metadata={}, model={"w": torch.zeros(1)})
    (path / "training.safetensors").write_bytes(b"x")
    header = native.read_header(path)
    header["files"]["training.safetensors"] = native.fingerprint(path / "training.safetensors")
    (path / native.HEADER).write_text(json.dumps(header))
    with pytest.raises(UserError, match=rf"cannot resume from {path}: .* load={path} starts a new run"):
        load(path, training=True)
    assert load(path).weights.keys() == {"w"}
