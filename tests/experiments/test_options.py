from datetime import timedelta
from typing import Any

import pytest

from diffusion_forcing.errors import UserError
from diffusion_forcing.experiments.options import (
    CheckpointingOptions,
    DataOptions,
    ExperimentOptions,
    OptimOptions,
    TestOptions,
    TrainingOptions,
    ValidationOptions,
    precision_name,
)


def test_the_defaults_are_those_of_the_interface() -> None:
    options = ExperimentOptions()
    training, validation = options.training, options.validation
    assert (options.tasks, options.num_nodes) == (("training",), 1)
    assert (training.precision, training.compile, training.lr, training.batch_size) == ("16-mixed", False, 1e-3, 16)
    assert (training.max_epochs, training.max_steps, training.max_time) == (1000, -1, None)
    assert (training.data.shuffle, training.optim.accumulate_grad_batches, training.optim.gradient_clip_val) == (
        True,
        1,
        0,
    )
    assert training.checkpointing.every_n_train_steps == 5000
    assert (validation.precision, validation.batch_size, validation.val_every_n_step) == ("16-mixed", 16, 2000)
    assert (validation.val_every_n_epoch, validation.limit_batch, validation.inference_mode) == (None, None, True)


@pytest.mark.parametrize(
    ("build", "key"),
    [
        (lambda: TrainingOptions(precision="17-mixed"), "training.precision '17-mixed'"),
        (lambda: TrainingOptions(lr=float("nan")), "training.lr"),
        (lambda: TrainingOptions(lr=-1.0), "training.lr"),
        (lambda: TrainingOptions(batch_size=0), "training.batch_size"),
        (lambda: TrainingOptions(max_steps=-2), "training.max_steps"),
        (lambda: TrainingOptions(max_time="soon"), "training.max_time='soon'"),
        (lambda: TrainingOptions(max_time="1:-2"), "training.max_time='1:-2'"),
        (lambda: OptimOptions(accumulate_grad_batches=0), "training.optim.accumulate_grad_batches"),
        (lambda: OptimOptions(gradient_clip_val=-0.1), "training.optim.gradient_clip_val"),
        (lambda: DataOptions(num_workers=-1), "data.num_workers"),
        (lambda: CheckpointingOptions(keep_last=0), "training.checkpointing.keep_last"),
        (lambda: CheckpointingOptions(save_top_k=-2), "training.checkpointing.save_top_k"),
        (lambda: CheckpointingOptions(filename="best"), "training.checkpointing.filename='best'"),
        (lambda: ValidationOptions(val_every_n_step=5, val_every_n_epoch=1), "validation.val_every_n_step=5"),
        (lambda: ValidationOptions(limit_batch=1.5), "validation.limit_batch=1.5"),
        (lambda: TestOptions(limit_batch=-1), "test.limit_batch=-1"),
        (lambda: ExperimentOptions(num_nodes=0), "num_nodes"),
    ],
)
def test_a_value_that_makes_no_sense_is_named_in_one_line(build: Any, key: str) -> None:
    with pytest.raises(UserError) as caught:
        build()
    assert str(caught.value).startswith(f"experiment.{key}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "seconds"), [("00:30", 30), ("01:00:00", 3600), ("02:00:00:01", 2 * 86400 + 1), ("90:00", 5400)]
)
def test_durations_are_read_from_the_right(text: str, seconds: int) -> None:
    assert TrainingOptions(max_time=text).time_limit == timedelta(seconds=seconds)


@pytest.mark.parametrize(
    ("given", "meant"), [(32, "32-true"), ("32", "32-true"), ("bf16", "bf16-mixed"), (16, "16-mixed")]
)
def test_precisions_may_be_written_short(given: str | int, meant: str) -> None:
    assert precision_name("training", given) == meant
