"""results.json: the numbers of metrics.json with intervals, and what they were measured on."""

from __future__ import annotations

from typing import Any

import pytest

from diffusion_forcing.tracking.run import results


def metric(name: str, metrics: dict[str, Any]) -> dict[str, Any]:
    content = results({"command": ["main.py"]}, {"seed": 1}, metrics)
    (found,) = (entry for entry in content["metrics"] if entry["name"] == name)
    return found


def test_an_interval_is_wilson_s_for_a_rate_the_metric_s_own_or_the_normal_one() -> None:
    episodes = {"a/episodes": 10, "a/success_rate": 1.0, "a/success_rate_stderr": 0.0, "a/x": 5.0, "a/x_stderr": 0.5}
    assert metric("a/success_rate", episodes)["interval"] == pytest.approx([0.7225, 1], abs=1e-4)
    half = {**episodes, "a/success_rate": 0.5}
    assert metric("a/success_rate", half)["interval"] == pytest.approx([0.2366, 0.7634], abs=1e-4)
    assert metric("a/x", episodes)["interval"] == pytest.approx([4.02, 5.98])
    assert metric("t/fvd", {"t/fvd": 5.0, "t/fvd_low": 4.0, "t/fvd_high": 9.0})["interval"] == [4, 9]


def test_what_one_episode_or_no_error_says_has_no_interval() -> None:
    one = {"a/episodes": 1, "a/x": 5.0, "a/x_stderr": 0.0}
    assert metric("a/x", one) == {"name": "a/x", "value": 5.0, "stderr": None, "interval": None}
    assert metric("forecast/crps", {"forecast/crps": 0.1})["interval"] is None
    assert metric("a/x", {"a/x": None, "a/x_stderr": None})["interval"] is None


def test_counts_texts_and_what_belongs_to_a_metric_are_no_metrics() -> None:
    metrics = {"a/episodes": 4, "a/x": 1.0, "a/x_stderr": 0.1, "a/x_low": 0.5, "a/x_high": 2.0, "note": "text"}
    content = results({"command": ["/bin/diffusion-forcing", "a=[b c]"], "id": "k"}, {"seed": 1}, metrics)
    assert content["counts"] == {"a/episodes": 4}
    assert [entry["name"] for entry in content["metrics"]] == ["a/x"]
    assert (content["seed"], content["run"]["id"]) == (1, "k")
    assert content["command"] == "diffusion-forcing 'a=[b c]'" and content["resumed"] == []


def test_the_command_of_a_resumed_run_is_the_first_one_and_the_others_stand_apart() -> None:
    again = {"time": "2026-11-27T06:00:00+00:00", "command": ["/x/main.py", "resume=k"], "commit": None}
    content = results({"command": ["/x/main.py", "a=1"], "resumed": [again]}, {}, {})
    assert content["command"] == "python -m main a=1"
    assert content["resumed"] == [{"time": again["time"], "command": "python -m main resume=k"}]
