"""Weights that a user fetched: found where they may lie, read only with the right content, and never run."""

from __future__ import annotations

import hashlib
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from diffusion_forcing.metrics.weights import Pinned, Unavailable

WANTED = Pinned(
    metric="LPIPS",
    network="Net",
    url="https://host.example/net-0123.pth",
    sha256="0" * 64,
    megabytes=2,
    variable="DF_NET",
)


@pytest.fixture(autouse=True)
def own_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIFFUSION_FORCING_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.delenv("DF_NET", raising=False)


def written(path: Path, thing: object = None) -> Pinned:
    """A file of `thing`, and the pin that it satisfies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"a": torch.arange(3.0)} if thing is None else thing, path)
    return replace(WANTED, sha256=hashlib.sha256(path.read_bytes()).hexdigest())


@pytest.mark.parametrize("place", ["cache/net-0123.pth", "torch/hub/checkpoints/net-0123.pth", "elsewhere/mine.pth"])
def test_the_file_is_found_in_our_cache_in_pytorch_s_and_where_the_variable_says(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pin = written(tmp_path / place)
    if place.startswith("elsewhere"):
        assert isinstance(pin.read(), Unavailable)
        monkeypatch.setenv("DF_NET", str(tmp_path / place))
    tensors = pin.read()
    assert isinstance(tensors, dict) and torch.equal(tensors["a"], torch.arange(3.0))


def test_an_absent_file_is_a_line_with_the_command_that_gets_it(tmp_path: Path) -> None:
    found = WANTED.read()
    target = tmp_path / "cache" / "net-0123.pth"
    assert isinstance(found, Unavailable)
    assert str(found) == (
        f"unavailable, because the weights of its network (Net) are not in {target} or "
        f"{tmp_path / 'torch/hub/checkpoints/net-0123.pth'}, get it by "
        f"`curl -fL --create-dirs -o {target} https://host.example/net-0123.pth` (2 MB), or by naming it in $DF_NET"
    )
    assert not (tmp_path / "cache").exists()


def test_another_content_is_refused_by_its_digest(tmp_path: Path) -> None:
    path = tmp_path / "cache" / "net-0123.pth"
    pin = written(path)
    path.write_bytes(path.read_bytes()[:-1])
    found = pin.read()
    assert isinstance(found, Unavailable)
    assert f"{path} has SHA-256 {hashlib.sha256(path.read_bytes()).hexdigest()[:12]}" in found.because
    assert f"expected {pin.sha256[:12]}" in found.because


class _Attack:
    def __reduce__(self):
        return (print, ("run from a pickle",))


def test_nothing_but_tensors_is_built_even_with_the_right_digest(tmp_path: Path, capsys) -> None:
    pin = written(tmp_path / "cache" / "net-0123.pth", {"a": _Attack()})
    with pytest.raises(pickle.UnpicklingError):
        pin.read()
    assert capsys.readouterr().out == ""


def test_a_file_that_cannot_be_read_is_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DF_NET", str(tmp_path))
    found = WANTED.read()
    assert isinstance(found, Unavailable) and f"{tmp_path} cannot be read" in found.because
    monkeypatch.setenv("DF_NET", str(tmp_path / "none.pth"))
    assert f"are not in {tmp_path / 'none.pth'}," in str(WANTED.read())
