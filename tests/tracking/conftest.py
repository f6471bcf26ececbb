"""A server that stands in for W&B's, and a training that is tracked on it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from diffusion_forcing.tracking.wandb import installed
from tests.tracking.wandb_server import KEY, WandbServer


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[WandbServer]:
    """The stand-in, with a login for it and W&B's caches out of the way."""
    if not installed():
        pytest.skip("wandb is not installed")
    with WandbServer() as running:
        for name, value in {
            "WANDB_BASE_URL": running.url,
            "WANDB_API_KEY": KEY,
            "WANDB_ERROR_REPORTING": "false",
            "WANDB_CACHE_DIR": str(tmp_path / "wandb-cache"),
            "WANDB_DATA_DIR": str(tmp_path / "wandb-data"),
            "WANDB_CONFIG_DIR": str(tmp_path / "wandb-config"),
        }.items():
            monkeypatch.setenv(name, value)
        yield running


def until(true: Callable[[], object], seconds: float = 300) -> None:
    """Wait until `true()`; the test fails if it does not become so."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)
