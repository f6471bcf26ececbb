"""debug=True: every task on one batch first, without a trace; layers that give nan are named; histograms; shapes."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from diffusion_forcing.checkpoints import load
from diffusion_forcing.datasets.batch import SequenceBatch
from diffusion_forcing.errors import UserError
from diffusion_forcing.experiments.debug import (
    FirstSamples,
    check_finite,
    described,
    first_batches,
    print_shapes,
    sizes,
)
from diffusion_forcing.launch.cli import main
from diffusion_forcing.launch.commands import write_project
from tests.checkpoints.same import same
from tests.experiments import toy

MINE = [
    "dataset=my_dataset",
    "algorithm=my_algorithm",
    "experiment=my_experiment",
    "dataset.count=32",
    "experiment.training.batch_size=8",
    "experiment.training.max_steps=6",
    "experiment.training.log_every_n_steps=1",
    "experiment.validation.val_every_n_step=3",
]
MORE = """
    def counted(self) -> None:
        self.run.summary({"rehearsed": float(self.rehearsing), "samples": len(self.dataset.training())})

    def broken(self) -> None:
        raise UserError("this cannot work")
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A project as `new` writes it, with two more tasks, where one stands; temporary files lie in tmp_path/temporary."""
    folder, temporary = tmp_path / "my_waves", tmp_path / "temporary"
    write_project(folder)
    temporary.mkdir()
    experiment = folder / "my_waves" / "experiment.py"
    experiment.write_text(experiment.read_text().replace("\n\ndef draw_pairs", f"{MORE}\n\ndef draw_pairs"))
    monkeypatch.chdir(folder)
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    monkeypatch.setattr(sys, "path", [str(folder), *sys.path])
    yield folder
    for name in [name for name in sys.modules if name.split(".")[0] == "my_waves"]:
        del sys.modules[name]
    torch.autograd.set_detect_anomaly(False)


def run(project: Path, *words: str) -> Path:
    assert main([*MINE, *words]) == 0
    return (project / "outputs" / "latest-run").resolve()


def end_of(folder: Path) -> dict[str, Any]:
    """The training state of a run at step 6, without the seconds it took."""
    state: dict[str, Any] | None = load(folder / "checkpoints" / "step-00000006", training=True).training
    assert state is not None
    state["callbacks"]["Checkpoints"].pop("seconds")
    return state


def numbers(folder: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    timed = ("time", "training/steps_per_second")
    return [{key: value for key, value in line.items() if key not in timed} for line in lines]


@pytest.mark.slow
def test_the_numbers_with_debug_are_those_without_and_the_rehearsal_leaves_no_trace(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = run(project, "+name=plain")
    capsys.readouterr()
    debugged = run(project, "+name=debugged", "debug=True")
    said = capsys.readouterr().err
    assert numbers(debugged) == numbers(plain)
    assert same(end_of(debugged), end_of(plain))
    results = [json.loads((folder / "metrics.json").read_text()) for folder in (debugged, plain)]
    assert results[0]["my_task/rmse"] == results[1]["my_task/rmse"]
    assert list((project.parent / "temporary").iterdir()) == []
    assert len(list(project.glob("outputs/*/*/run.json"))) == 2
    lines = said.splitlines()
    begin = lines.index("debug: shapes, stage by stage")
    assert lines[begin + 1].split()[:5] == ["batch", "(8,", "8,", "8)", "float32"]
    assert "Transformer" in lines[begin + 2] and "x (8, 8, 8) float32" in lines[begin + 2]
    assert lines[begin + 3].split()[0] == "loss"
    assert [line.split(" (")[0] for line in lines if "works on one batch" in line] == [
        "debug: training works on one batch",
        "debug: my_task works on one batch",
    ]
    assert said.count("trained to step") == 1, "the rehearsal says nothing of its own"


@pytest.mark.slow
def test_histograms_of_weights_and_gradients_are_in_the_runs_folder(project: Path) -> None:
    folder = run(project, "debug=True", "experiment.tasks=[training]")
    with np.load(folder / "debug" / "histograms.npz") as kept:
        assert kept["steps"].tolist() == [1, 2, 4]
        names, counts = kept["names"].tolist(), kept["weights"]
        assert kept["gradients"].shape == counts.shape == (3, len(names), len(kept["edges"]) - 1)
        assert counts[0, names.index("forcing.network.out.weight")].sum() == 32 * 8


def test_a_task_that_cannot_work_is_found_before_anything_is_trained(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*MINE, "debug=True", "experiment.tasks=[training,my_task,broken]"]) == 2
    said = capsys.readouterr().err
    assert "debug: broken fails on one batch, before anything was done:" in said
    assert said.splitlines()[-1] == "error: this cannot work"
    (folder,) = (file.parent for file in project.glob("outputs/*/*/run.json"))
    assert (folder / "metrics.jsonl").read_text() == ""
    assert list((folder / "checkpoints").iterdir()) == []
    assert list((project.parent / "temporary").iterdir()) == []


def test_a_task_of_ones_own_sees_one_batch_in_the_rehearsal_and_all_afterwards(project: Path) -> None:
    folder = run(project, "debug=True", "experiment.tasks=[counted]")
    assert json.loads((folder / "metrics.json").read_text()) == {"rehearsed": 0.0, "samples": 32}


@pytest.mark.slow
def test_a_run_is_resumed_under_debug_as_it_is_without(project: Path) -> None:
    for name, words in (("plain", []), ("debugged", ["debug=True"])):
        folder = run(project, f"+name={name}", "experiment.tasks=[training]", "experiment.training.max_steps=3")
        assert main([f"resume={folder}", *words, "experiment.training.max_steps=6"]) == 0
    ends = [end_of(file.parent) for file in project.glob("outputs/*/*/run.json")]
    assert len(ends) == 2 and same(*ends)


def test_the_first_samples_of_a_dataset_are_a_dataset_with_its_other_attributes() -> None:
    small = first_batches(toy.ToyData(22), toy.options(batch_size=4))
    head = small.training()
    assert isinstance(small, toy.ToyData)
    assert isinstance(head, FirstSamples)
    assert (len(head), len(small.validation())) == (4, 3)
    assert head.data.shape == (22, 4)
    assert not hasattr(small, "test")
    whole = toy.Samples(6, whole_batches=True)
    assert torch.is_tensor(FirstSamples(whole, 2).__getitems__([0, 1]))
    assert len(FirstSamples(whole, 100)) == 6


class Bad(toy.Toy):
    """Divides by nothing in its second layer at step 3."""

    def __init__(self, *, weight: bool = False) -> None:
        super().__init__()
        self.weight = weight
        self.network = nn.Sequential(nn.Linear(4, 4), Inverse(self))

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        if self.global_step == 2 and self.weight:
            self.network[0].weight.data[0, 0] = torch.nan
        return super().training_step(batch, batch_idx)


class Inverse(nn.Module):
    def __init__(self, owner: nn.Module) -> None:
        super().__init__()
        self.owner = [owner]

    def forward(self, x: Tensor) -> Tensor:
        owner = self.owner[0]
        return x / 0 if owner.global_step == 2 and not owner.weight else x  # type: ignore[operator]


@pytest.mark.parametrize(
    ("weight", "line"),
    [
        (False, r"layer network\.1 \(Inverse\) gave a nan or inf at step 3; its input is finite"),
        (True, r"layer network\.0 \(Linear\) gave a nan or inf at step 3; its weight weight is not finite"),
    ],
)
def test_the_layer_that_gives_nan_is_named(tmp_path: Path, weight: bool, line: str) -> None:
    study = toy.experiment(tmp_path, module=Bad(weight=weight))
    study.debug = True
    with pytest.raises(UserError, match=line):
        study.run_task("training")
    assert not any(layer._forward_hooks for layer in study.algorithm.modules())


def test_layers_are_looked_at_in_training_only() -> None:
    layer, arguments = nn.Linear(1, 1), (torch.ones(1, 1),)
    with pytest.raises(UserError, match=r"layer out \(Linear\) gave a nan or inf at step 7; its input is finite"):
        check_finite("out", lambda: 7, layer, arguments, {}, torch.tensor(torch.nan))
    check_finite("out", lambda: 7, layer.eval(), arguments, {}, torch.tensor(torch.nan))


def test_outputs_of_any_nesting_are_looked_at() -> None:
    layer = nn.Linear(1, 1)
    check_finite("out", lambda: 1, layer, (), {}, {"a": [torch.ones(1), None, torch.tensor([1])]})
    with pytest.raises(UserError):
        check_finite("out", lambda: 1, layer, (), {}, {"a": [torch.ones(1), (torch.tensor(torch.inf),)]})


def test_sizes_count_finite_values_by_their_logarithm() -> None:
    counts = sizes(torch.tensor([0.0, 1.0, -1.0, 1e-30, 1e30, torch.inf, torch.nan]))
    assert (counts[0], counts[48], counts[-1], counts.sum()) == (1, 2, 1, 4)  # 1e-12 and less, 1, 1e6 and more
    assert sizes(None).sum() == 0
    assert np.array_equal(sizes(torch.tensor([8.0]), scale=8.0), sizes(torch.tensor([1.0])))


def test_a_batch_is_described_by_its_names() -> None:
    batch = SequenceBatch(torch.zeros(2, 3, 4), torch.ones(2, 3, 2), torch.zeros(2, 3), torch.ones(2, 3).bool())
    assert described(batch) == (
        "observations (2, 3, 4) float32 in [0, 0], actions (2, 3, 2) float32 in [1, 1], rewards (2, 3) float32 in [0, 0], "
        "valid (2, 3) bool"
    )
    assert described({"x": torch.tensor(2.5), "name": "a"}) == "x () float32 = 2.5"
    assert described([[torch.zeros(0)], 3]) == "(0,) float32"
    assert described(None) == "NoneType without tensors"
    assert described([torch.zeros(2)] * 10).endswith("and 2 more")


def test_shapes_are_printed_once() -> None:
    module, lines = toy.Toy(), []
    print_shapes(module, lines.append)
    for rows in (2, 3):
        module.network(torch.zeros(rows, 4))
    assert [line.split()[0] for line in lines] == ["debug:", "network"]
    assert "input (2, 4) float32" in lines[1] and "Sequential, 76 parameters" in lines[1]
