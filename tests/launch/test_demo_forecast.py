"""The forecasting demo is the ordinary experiment on real load profiles with whatever forecaster is shipped."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

pytest.importorskip("gluonts")
if importlib.util.find_spec("simbench") is None:
    pytest.skip("simbench is not installed", allow_module_level=True)

from diffusion_forcing.checkpoints import format as native
from diffusion_forcing.launch import demo_forecast
from diffusion_forcing.launch.run import plan

SMALL = ["dataset=ts_load", "dataset.variates=3", "algorithm.z_shape=[8]", "algorithm.diffusion.network_size=4"]


def test_the_demo_forecasts_and_says_where_its_pictures_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    ready = plan([*SMALL, "algorithm.diffusion.num_gru_layers=1"])
    forecaster = ready.classes["algorithm"](ready.options["algorithm"])
    data = ready.classes["dataset"](ready.options["dataset"])
    forecaster.adapt(data.spec)
    sampling = {"algorithm": {"calc_crps_sum": 3, "diffusion": {"sampling_timesteps": 2}}}
    facts = {**forecaster.describe(), "sampling": sampling}
    native.save(
        tmp_path / "pretrained" / "ts_load_small", None, facts=facts, model=forecaster.sampling_weights(), step=1
    )
    monkeypatch.setattr(demo_forecast, "WORDS", [*demo_forecast.WORDS, "dataset.variates=3"])
    assert demo_forecast.main() == 0
    said = capsys.readouterr().out
    folder = Path("outputs/latest-run").resolve()
    for name in ("index.html", "pictures/test_fans.png"):
        assert f"{folder.relative_to(tmp_path)}/{name}" in said
        assert (folder / name).is_file()
    assert (folder / "tables" / "forecast.csv").is_file()
    assert json.loads((folder / "metrics.json").read_text())["forecast/paths"] == 3


def test_a_demo_without_its_checkpoint_is_one_error_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(demo_forecast, "WORDS", ["dataset=ts_load", "load=no_such_forecaster"])
    assert demo_forecast.main() == 2
    assert [line.startswith("error: ") for line in capsys.readouterr().err.splitlines()] == [True]
