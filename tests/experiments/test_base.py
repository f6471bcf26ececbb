"""Tasks, weights and evaluation."""

from pathlib import Path
from typing import Any

import pytest
import torch

from diffusion_forcing.checkpoints import LoadedCheckpoint
from diffusion_forcing.errors import UserError
from diffusion_forcing.experiments.base import BaseExperiment, task_names
from tests.experiments import toy


class Mine(BaseExperiment):
    """A user's experiment: one more task."""

    def count_samples(self) -> None:
        self.drawn = torch.rand(1).item()
        self.counted = len(self.dataset.training())

    def helper(self, argument: int) -> None: ...

    def _private(self) -> None: ...


def test_every_public_method_without_arguments_is_a_task() -> None:
    assert task_names(Mine) == ["count_samples", "distill", "test", "training", "validation"]


def test_a_users_own_task_runs_from_the_runs_seed_whatever_ran_before(tmp_path: Path) -> None:
    alone = toy.experiment(tmp_path / "a", kind=Mine)
    alone.run_task("count_samples")
    after = toy.experiment(tmp_path / "b", toy.options(max_steps=2), kind=Mine)
    after.run_task("training")
    after.run_task("count_samples")
    assert alone.counted == 22  # type: ignore[attr-defined]
    assert alone.drawn == after.drawn  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["helper", "_private", "run_task", "options"])
def test_what_is_not_a_task_is_refused_with_the_list(tmp_path: Path, name: str) -> None:
    with pytest.raises(
        UserError, match=f"experiment.tasks '{name}'.*count_samples, distill, test, training, validation"
    ):
        toy.experiment(tmp_path, kind=Mine).run_task(name)


def test_a_mistyped_task_says_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"experiment.tasks 'trainig'.*did you mean 'training'"):
        toy.experiment(tmp_path).run_task("trainig")


def test_building_an_experiment_does_nothing(tmp_path: Path) -> None:
    data = toy.ToyData()
    toy.experiment(tmp_path / "a", data=data, load=tmp_path / "missing")
    assert not data.prepared
    assert not (tmp_path / "a").exists()


def test_training_and_then_validation_and_test_use_the_trained_weights_and_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    experiment = toy.experiment(tmp_path)
    for task in ("training", "validation", "test"):
        experiment.run_task(task)
    last = experiment.run.lines()[-1]
    assert last["step"] == 17
    assert {"validation/loss", "test/loss"} <= experiment.run.metrics.keys()
    assert "not trained" not in capsys.readouterr().err


def test_nothing_but_the_runs_own_files_is_written(tmp_path: Path) -> None:
    toy.experiment(tmp_path, toy.options(validate=4)).run_task("training")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoints", "metrics.jsonl"]


def test_validation_with_load_or_resume_uses_those_weights(tmp_path: Path) -> None:
    trained = toy.experiment(tmp_path)
    trained.run_task("training")
    trained.run_task("validation")
    for source in ({"load": tmp_path / "checkpoints" / "latest"}, {"resume": tmp_path}):
        other = toy.experiment(tmp_path / "other", **source)  # type: ignore[arg-type]
        other.run_task("validation")
        assert other.step == 17
        assert other.run.metrics == trained.run.metrics


def test_untrained_weights_are_said_to_be(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    toy.experiment(tmp_path).run_task("validation")
    assert "the weights are not trained" in capsys.readouterr().err


def test_a_new_run_starts_from_loaded_weights_at_step_zero(tmp_path: Path) -> None:
    toy.experiment(tmp_path / "a").run_task("training")
    (tmp_path / "a" / "checkpoints" / "latest" / "training.pt").unlink()
    warm = toy.experiment(tmp_path / "b", toy.options(max_steps=1), load=tmp_path / "a" / "checkpoints" / "latest")
    warm.run_task("training")
    cold = toy.experiment(tmp_path / "c", toy.options(max_steps=1))
    cold.run_task("training")
    assert list(warm.run.losses()) == [1]
    assert warm.run.losses()[1] < cold.run.losses()[1]


def test_a_checkpoint_of_another_shape_is_refused_with_the_first_weight(tmp_path: Path) -> None:
    toy.experiment(tmp_path / "a", toy.options(max_steps=1)).run_task("training")

    class Wider(toy.Toy):
        def __init__(self) -> None:
            super().__init__()
            self.network[0] = torch.nn.Linear(4, 9)

    other = toy.experiment(tmp_path / "b", module=Wider(), load=tmp_path / "a" / "checkpoints" / "latest")
    with pytest.raises(
        UserError, match=r"does not fit Wider: 'network.0.weight' has shape \(8, 4\), .* needs \(9, 4\)"
    ):
        other.run_task("validation")


def test_an_algorithm_that_loads_weights_itself_is_asked_to(tmp_path: Path) -> None:
    toy.experiment(tmp_path / "a", toy.options(max_steps=1)).run_task("training")

    class Own(toy.Toy):
        loaded: LoadedCheckpoint | None = None

        def load_weights(self, checkpoint: LoadedCheckpoint) -> None:
            self.loaded = checkpoint

    module = Own()
    toy.experiment(tmp_path / "b", module=module, load=tmp_path / "a" / "checkpoints" / "latest").run_task("validation")
    assert module.loaded is not None
    assert module.loaded.step == 1


def test_the_runs_seed_reaches_an_algorithm_that_has_one(tmp_path: Path) -> None:
    class Seeded(toy.Toy):
        seed = 0

    module = Seeded()
    toy.experiment(tmp_path, toy.options(max_steps=1), module=module).run_task("training")
    assert module.seed == 1


def test_half_precision_falls_back_where_there_is_no_gpu_and_says_so_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    defaults: Any = toy.ExperimentOptions(training=toy.TrainingOptions(max_steps=1))
    experiment = toy.experiment(tmp_path, defaults)
    experiment.run_task("training")
    experiment.run_task("validation")
    assert capsys.readouterr().err.count("needs a CUDA GPU; using 32-true") == 1
