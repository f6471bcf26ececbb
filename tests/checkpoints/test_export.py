from pathlib import Path

import pytest
import torch

from diffusion_forcing.checkpoints import export, load, save
from diffusion_forcing.errors import UserError

RELEASED = Path(__file__).parents[1] / "parity" / "data" / "ckpt_planning.ckpt"


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    weights = {"w": torch.tensor([1.0, 1 / 3]), "n": torch.tensor([70000])}
    return save(tmp_path / "step-1", {"global_step": 8}, metadata={"task": "planning"}, model=weights)


def test_an_exported_checkpoint_keeps_weights_and_facts_and_drops_training(trained: Path, tmp_path: Path) -> None:
    found = load(export(trained, tmp_path / "out", card="# Card"))
    assert found.weights["w"].tolist() == pytest.approx([1.0, 1 / 3], rel=1e-7)
    assert (found.metadata["task"], found.step) == ("planning", 8)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["README.md", "checkpoint.json", "model.safetensors"]


def test_float16_halves_the_weights_and_leaves_integers(trained: Path, tmp_path: Path) -> None:
    found = load(export(trained, tmp_path / "out", dtype="float16"))
    assert found.weights["w"].dtype == torch.float16
    assert found.weights["n"].tolist() == [70000]


def test_a_released_checkpoint_is_converted_with_its_statistics(tmp_path: Path) -> None:
    before, after = load(RELEASED), load(export(RELEASED, tmp_path / "out"))
    assert after.kind == "native"
    assert all(torch.equal(after.weights[key], value) for key, value in before.weights.items())
    assert torch.equal(after.statistics["data_mean"], before.statistics["data_mean"])
    assert after.metadata["architecture"] == before.metadata["architecture"]


def test_a_folder_that_is_there_is_not_overwritten(trained: Path) -> None:
    with pytest.raises(UserError, match="step-1 exists already"):
        export(trained, trained)


def test_weights_that_float16_cannot_hold_are_named(tmp_path: Path) -> None:
    path = save(tmp_path / "big", None, metadata={}, model={"w": torch.tensor([1e6])})
    with pytest.raises(UserError, match="'w' is not finite as float16"):
        export(path, tmp_path / "out", dtype="float16")


def test_an_unknown_dtype_is_named(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="dtype 'int8'"):
        export(trained, tmp_path / "out", dtype="int8")
