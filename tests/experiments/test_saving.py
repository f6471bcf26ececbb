"""When checkpoints are written and which are kept."""

import errno
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from diffusion_forcing.checkpoints import latest, load
from diffusion_forcing.errors import UserError
from diffusion_forcing.experiments import checkpointing
from diffusion_forcing.experiments.checkpointing import Checkpoints
from diffusion_forcing.experiments.options import CheckpointingOptions
from tests.experiments import toy


def kept(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").iterdir() if path.is_dir() and not path.is_symlink())


def steps(folder: Path) -> list[int]:
    return [int(name.rpartition("-")[2]) for name in kept(folder)]


def trained(folder: Path, *, module: Any = None, **options: Any) -> Path:
    toy.experiment(folder, toy.options(**options), module=module).run_task("training")
    return folder


def test_the_newest_two_are_kept_and_latest_points_to_the_last_step(tmp_path: Path) -> None:
    trained(tmp_path)
    assert kept(tmp_path) == ["step-00000016", "step-00000017"]
    assert os.readlink(tmp_path / "checkpoints" / "latest") == "step-00000017"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"keep_last": 3}, [12, 16, 17]),
        ({"save_top_k": -1}, [4, 8, 12, 16, 17]),
        ({"save_top_k": 4}, [8, 12, 16, 17]),
        ({"save_top_k": 0}, [17]),
        ({"every": None}, [17]),
        ({"every": 0}, [17]),
        ({"every": None, "every_n_epochs": 2, "save_top_k": -1}, [10, 17]),
        ({"every": 17}, [17]),
        ({"max_steps": -1, "max_epochs": 2, "save_top_k": -1}, [4, 8, 10]),
        ({"every": None, "train_time_interval": "00:00:00", "save_top_k": -1, "max_steps": 3}, [1, 2, 3]),
    ],
)
def test_checkpoints_are_kept_as_the_options_say(tmp_path: Path, options: dict[str, Any], expected: list[int]) -> None:
    assert steps(trained(tmp_path, **options)) == expected


class Scored(toy.Toy):
    """validation/loss is what the list says."""

    def __init__(self, scores: dict[int, float]) -> None:
        super().__init__()
        self.scores = scores

    def validation_step(self, batch: torch.Tensor, batch_idx: int) -> None:
        self.log("validation/loss", self.scores[self.global_step])


SCORES = {2: 5.0, 4: 1.0, 6: 3.0, 8: 2.0, 10: 4.0, 12: 6.0}


@pytest.mark.parametrize(
    ("mode", "top", "expected"),
    [("min", 1, [4, 11, 12]), ("min", 2, [4, 8, 11, 12]), ("max", 1, [11, 12]), ("max", 2, [2, 11, 12])],
)
def test_the_best_by_a_metric_are_kept_beside_the_newest(
    tmp_path: Path, mode: str, top: int, expected: list[int]
) -> None:
    trained(
        tmp_path,
        module=Scored(SCORES),
        max_steps=12,
        every=11,
        validate=2,
        monitor="validation/loss",
        mode=mode,
        save_top_k=top,
    )
    assert steps(tmp_path) == expected


def test_the_best_is_still_known_after_resuming(tmp_path: Path) -> None:
    options: dict[str, Any] = {"every": 11, "validate": 2, "monitor": "validation/loss"}
    trained(tmp_path, module=Scored(SCORES), max_steps=7, **options)
    again = toy.experiment(tmp_path, toy.options(max_steps=12, **options), module=Scored(SCORES), resume=tmp_path)
    again.run_task("training")
    assert steps(tmp_path) == [4, 11, 12]


def test_a_metric_that_is_never_logged_is_no_reason_to_lose_checkpoints_and_is_said_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert steps(trained(tmp_path, validate=2, monitor="validation/los")) == [16, 17]
    said = capsys.readouterr().err
    assert said.count("monitor='validation/los' is not measured in validation (did you mean 'validation/loss'?)") == 1


def test_a_score_that_is_not_a_number_is_never_the_best(tmp_path: Path) -> None:
    scores = SCORES | {2: float("nan")}
    trained(tmp_path, module=Scored(scores), max_steps=12, every=11, validate=2, monitor="validation/loss")
    assert steps(tmp_path) == [4, 11, 12]


def test_a_checkpoint_that_a_user_put_there_is_not_removed(tmp_path: Path) -> None:
    found = latest(trained(tmp_path, max_steps=4))
    assert found is not None
    found.rename(tmp_path / "checkpoints" / "my-favourite")
    again = toy.experiment(tmp_path, toy.options(), resume=tmp_path / "checkpoints" / "my-favourite")
    again.run_task("training")
    assert kept(tmp_path) == ["my-favourite", "step-00000016", "step-00000017"]


def test_checkpoints_with_a_name_of_their_own_are_removed_after_resuming_too(tmp_path: Path) -> None:
    trained(tmp_path, max_steps=8, filename="{epoch}-{step}")
    toy.experiment(tmp_path, toy.options(filename="{epoch}-{step}"), resume=tmp_path).run_task("training")
    assert kept(tmp_path) == ["epoch=3-step=16", "epoch=3-step=17"]


def test_weights_only_checkpoints_can_be_loaded_and_not_resumed(tmp_path: Path) -> None:
    found = latest(trained(tmp_path, save_weights_only=True))
    assert found is not None
    assert load(found).weights.keys() == toy.Toy().state_dict().keys()
    with pytest.raises(UserError, match="keeps weights only"):
        toy.experiment(tmp_path, resume=tmp_path).run_task("training")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"filename": "{epoch}-{step}"}, "epoch=3-step=17"),
        ({"filename": "at-{step:03d}", "auto_insert_metric_name": False}, "at-017"),
    ],
)
def test_a_checkpoints_name_can_be_chosen(tmp_path: Path, options: dict[str, Any], expected: str) -> None:
    trained(tmp_path, **options)
    assert expected in kept(tmp_path)
    assert latest(tmp_path) == tmp_path / "checkpoints" / expected


def test_a_name_with_an_unknown_part_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"filename='\{step\}-\{val\}'"):
        trained(tmp_path, filename="{step}-{val}")


def test_time_limits_end_training_with_a_checkpoint_and_count_earlier_sessions(tmp_path: Path) -> None:
    trained(tmp_path, max_time="00:00", every=None)
    assert steps(tmp_path) == [1]
    toy.experiment(tmp_path, toy.options(max_time="00:00", every=None), resume=tmp_path).run_task("training")
    assert steps(tmp_path) == [1, 2]


def test_failing_training_is_saved_at_its_last_step_where_that_is_asked_for(tmp_path: Path) -> None:
    class Failing(toy.Toy):
        def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
            if self.global_step == 6:
                raise RuntimeError("out of memory")
            return super().training_step(batch, batch_idx)

    with pytest.raises(RuntimeError):
        trained(tmp_path, module=Failing(), save_on_exception=True)
    assert steps(tmp_path) == [4, 6]


def test_a_disk_that_fills_up_stops_training_in_one_line_and_the_older_checkpoints_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch_save = torch.save

    def full(state: Any, file: Any) -> None:
        if state["global_step"] == 8:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        torch_save(state, file)

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(UserError, match=r"cannot save the checkpoint .*step-00000008: No space left on device; older"):
        trained(tmp_path)
    assert kept(tmp_path) == ["step-00000004"]
    monkeypatch.undo()
    toy.experiment(tmp_path, resume=tmp_path).run_task("training")
    assert toy.ToyRun(tmp_path).losses() == toy.ToyRun(trained(tmp_path / "b")).losses()


def test_what_a_killed_process_left_half_written_is_cleared_away(tmp_path: Path) -> None:
    trained(tmp_path, max_steps=4)
    leftover = tmp_path / "checkpoints" / ".step-00000008.999999999-0123abcd.tmp"
    leftover.mkdir()
    toy.experiment(tmp_path, resume=tmp_path).run_task("training")
    assert not leftover.exists()


class Describing(toy.Toy):
    """Says what it is and has other weights to sample with, as our algorithms do."""

    def describe(self) -> dict[str, Any]:
        return {"task": "toy", "statistics": {"data_mean": [1.0], "data_std": [2.0]}}

    def sampling_weights(self) -> dict[str, torch.Tensor]:
        return {"average": torch.full((2,), float(self.global_step))}


def test_an_algorithm_says_what_it_is_and_which_weights_one_samples_with(tmp_path: Path) -> None:
    found = load(tmp_path / "checkpoints" / "latest") if trained(tmp_path, module=Describing()) else None
    assert found is not None
    assert found.metadata["task"] == "toy"
    assert found.statistics["data_std"].tolist() == [2.0]
    assert found.weights["average"].tolist() == [17.0, 17.0]
    assert found.step == 17


@pytest.mark.parametrize(("world_size", "device", "steps"), [(1, "cuda", 20), (2, "cpu", 20), (2, "cuda", 2)])
def test_only_processes_with_gpus_are_asked_now_and_then_whether_to_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, world_size: int, device: str, steps: int
) -> None:
    asked: list[int] = []
    monkeypatch.setattr(checkpointing, "_highest", lambda trainer, number: asked.append(number) or 0)
    checkpoints = Checkpoints(CheckpointingOptions(), folder=tmp_path)
    trainer: Any = SimpleNamespace(global_step=0, world_size=world_size, fit_loop=SimpleNamespace(state_dict=dict))
    trainer.strategy = SimpleNamespace(root_device=torch.device(device))
    checkpoints._take_boundary(trainer)
    for trainer.global_step in range(1, 21):
        checkpoints.on_train_batch_start(trainer, None, None, 0)  # type: ignore[arg-type]
    assert len(asked) == steps
    checkpoints.on_validation_start(trainer, None)  # type: ignore[arg-type]
    assert len(asked) == steps + 1
