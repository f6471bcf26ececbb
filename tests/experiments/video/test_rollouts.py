"""Rollouts are scored as they come: what is known in closed form comes out, and nothing is kept that grows with the clip."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from diffusion_forcing.algorithms.video import UNetOptions, Video, VideoDiffusionOptions, VideoOptions
from diffusion_forcing.datasets.batch import VideoBatch
from diffusion_forcing.errors import UserError
from diffusion_forcing.experiments.options import TestOptions as EvaluationOptions
from diffusion_forcing.experiments.video import report as video_report
from diffusion_forcing.experiments.video.experiment import RolloutsInTraining, VideoExperiment
from diffusion_forcing.experiments.video.report import Drawing, pixels_of, writing
from diffusion_forcing.experiments.video.rollouts import BLEND, COPY, MEAN, MODEL, SHUFFLED, OnChunk, Roller, Scores
from diffusion_forcing.metrics.video import PSNR_CAP
from diffusion_forcing.tracking.records import read_media
from diffusion_forcing.tracking.run import NullRun, Run
from tests.datasets.video_makers import decode, moving_pattern

GIVEN = 2


def video(*, causal: bool = True, actions: int = 0, **changes: Any) -> Video:
    architecture = UNetOptions(
        network_size=8,
        dim_mults=(1,),
        attn_resolutions=(8,),
        attn_heads=1,
        attn_dim_head=8,
        use_init_temporal_attn=False,
    )
    options = VideoOptions(
        observation_shape=(3, 8, 8),
        n_frames=6,
        context_frames=GIVEN,
        frame_skip=1,
        external_cond_dim=actions,
        causal=causal,
        **changes,
        diffusion=VideoDiffusionOptions(sampling_timesteps=2, architecture=architecture),
    )
    torch.manual_seed(0)
    return Video(options).eval()


def batch(length: int, clips: int = 2, actions: int = 0) -> VideoBatch:
    frames = np.stack([moving_pattern(length, 8, seed=seed) for seed in range(clips)])
    return VideoBatch(
        torch.from_numpy(frames).permute(0, 1, 4, 2, 3),
        torch.eye(max(actions, 1))[torch.arange(length) % max(actions, 1)].repeat(clips, 1, 1)[..., :actions],
        torch.ones(clips, length, dtype=torch.bool),
        torch.ones(clips, length, dtype=torch.bool),
    )


def roller(model: Video, **words: Any) -> Roller:
    return Roller(model, model.sampler(), metrics=["mse", "psnr"], seed=0, **words)


class Knowing(Roller):
    """Predicts the truth, two frames at a time; told other actions it predicts black."""

    def __init__(self, truth: VideoBatch) -> None:
        super().__init__(video(), None, metrics=["mse", "psnr"], seed=0)  # type: ignore[arg-type]
        self.truth = truth

    def stream(self, batch: VideoBatch, number: int, length: int) -> Any:
        for start in range(GIVEN, length, 2):
            piece = self.truth.frames[:, start : min(start + 2, length)].float() / 255
            yield piece if batch is self.truth else torch.zeros_like(piece)


def test_the_truth_scores_the_cap_and_the_baselines_what_their_formulas_say() -> None:
    clips = batch(9)
    scores = Scores(["mse", "psnr"])
    seen: list[tuple[int, int]] = []
    Knowing(clips).roll(clips, 0, scores, on_chunk=lambda now, guess, truth: seen.append((now, guess.shape[1])))
    assert seen == [(2, 2), (4, 2), (6, 2), (8, 1)]
    assert (scores.curve(MODEL, "psnr") == PSNR_CAP).all() and (scores.curve(MODEL, "mse") == 0).all()
    frames = clips.frames.double().numpy() / 255
    future = frames[:, GIVEN:]
    for who, said in ((COPY, frames[:, 1:2]), (MEAN, frames[:, :2].mean(1, keepdims=True))):
        error = ((future - said) ** 2).mean(axis=(2, 3, 4))
        np.testing.assert_allclose(scores.curve(who, "mse"), error, rtol=1e-4)
        np.testing.assert_allclose(scores.curve(who, "psnr"), -10 * np.log10(error), rtol=1e-4)
    for index, found in enumerate((future.mean(axis=(0, 2, 3, 4)), future.var(axis=(0, 2, 3, 4)))):
        for who in (MODEL, "truth"):
            np.testing.assert_allclose(scores.pixels(who)[index], found, rtol=1e-4)


def test_the_table_has_a_row_for_each_predicted_frame_and_the_gain_is_that_over_other_actions() -> None:
    clips = batch(9, actions=3)
    knowing, scores = Knowing(clips), Scores(["mse", "psnr"])
    knowing.roll(clips, 0, scores)
    knowing.roll_shuffled(clips, 0, scores)
    rows = video_report.rows(scores)
    assert [row["frame"] for row in rows] == list(range(1, 8))
    assert all(row["clips"] == 2 and row["psnr"] == PSNR_CAP for row in rows)
    black = -10 * np.log10(((clips.frames[:, GIVEN:].double() / 255) ** 2).mean(dim=(2, 3, 4)).numpy())
    gain = video_report.action_gain(scores)
    assert gain["actions_gain"] == pytest.approx(PSNR_CAP - black.mean(), rel=1e-5)
    assert gain["actions_gain_frame_4"] == pytest.approx(PSNR_CAP - black.mean(axis=0)[3], rel=1e-5)


def test_a_last_batch_of_one_clip_has_no_other_actions_and_spoils_nothing() -> None:
    scores = Scores(["mse", "psnr"])
    for number, count in enumerate((2, 1)):
        clips = batch(9, count, actions=3)
        knowing = Knowing(clips)
        knowing.roll(clips, number, scores)
        knowing.roll_shuffled(clips, number, scores)
    assert scores.curve(SHUFFLED, "psnr").shape == (3, 7)
    assert np.isfinite(video_report.action_gain(scores)["actions_gain"])
    alone = Scores(["mse", "psnr"])
    clips = batch(9, 1, actions=3)
    Knowing(clips).roll(clips, 0, alone)
    Knowing(clips).roll_shuffled(clips, 0, alone)
    assert video_report.action_gain(alone) == {}


def test_padded_frames_count_nothing() -> None:
    clips = batch(9)
    clips.valid[1, 5:] = False
    scores = Scores(["mse", "psnr"])
    Knowing(clips).roll(clips, 0, scores)
    assert [row["clips"] for row in video_report.rows(scores)] == [2, 2, 2, 1, 1, 1, 1]


def test_filling_gives_both_ends_back_and_is_scored_beside_copying_and_blending() -> None:
    model, clips = video(causal=False), batch(6)
    scores, seen = Scores(["mse", "psnr"]), []
    filler = roller(model)
    filler.fill(clips, 0, scores, end_frames=1, on_chunk=lambda now, guess, truth: seen.append((now, guess.shape[1])))
    assert seen == [(GIVEN, 3)]
    (whole,) = filler._filled(clips, 0, 1)
    truth = clips.frames.float() / 255
    torch.testing.assert_close(whole[:, [0, 1, 5]], truth[:, [0, 1, 5]], atol=1e-6, rtol=0)
    first, last = truth[:, 1].numpy(), truth[:, 5].numpy()
    for index, share in enumerate((0.25, 0.5, 0.75)):
        error = (((1 - share) * first + share * last - truth[:, GIVEN + index].numpy()) ** 2).mean(axis=(1, 2, 3))
        np.testing.assert_allclose(scores.curve(BLEND, "mse")[:, index], error, rtol=1e-3)


def test_a_causal_network_does_not_see_the_given_end_and_another_does() -> None:
    clips = batch(6)
    other = clips._replace(frames=clips.frames.clone())
    other.frames[:, -1] = 255 - other.frames[:, -1]
    for causal in (True, False):
        model = video(causal=causal)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
        one, two = (next(roller(model)._filled(each, 0, 1))[:, GIVEN:-1] for each in (clips, other))
        assert torch.equal(one, two) == causal


def retained() -> int:
    """Bytes of all tensors alive that were made since `gc.freeze()`."""
    gc.collect()
    tensors = [found for found in gc.get_objects() if type(found) is Tensor]
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


@pytest.fixture
def only_new_objects() -> Iterator[None]:
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def most_retained(length: int, folder: Path) -> int:
    """The most bytes of tensors beside the clips at a chunk of a rollout of `length` frames: filmed, written to disk, scored."""
    model, clips, found = video(), batch(length), []
    scores, run = Scores(["mse", "psnr"]), Run.create(folder, "long")
    drawing = Drawing(run, "test", clips=1, context=GIVEN, predictions=folder)
    before = retained()
    with drawing.of(clips, 0) as on_chunk:

        def watching(now: int, guess: Tensor, truth: Tensor) -> None:
            on_chunk(now, guess, truth)
            if now % 6 == 1:
                found.append(retained() - before)

        roller(model).roll(clips, 0, scores, on_chunk=watching)
    assert len(decode(run.pictures / "test_clip_1.mp4")) == length
    assert np.load(folder / "test_0000.npy").shape == (2, length - GIVEN, 8, 8, 3)
    return max(found)


def test_the_videos_of_clips_are_listed_in_their_order(tmp_path: Path) -> None:
    run, clips = Run.create(tmp_path, "order"), batch(GIVEN + 2)
    with Drawing(run, "test", clips=2, context=GIVEN).of(clips, 0) as on_chunk:
        frames = clips.frames[:, GIVEN:].float() / 255
        on_chunk(GIVEN, frames, frames)
    assert [entry["name"] for entry in read_media(run.folder)] == ["test_clip_1", "test_clip_2"]


@pytest.mark.slow
@pytest.mark.usefixtures("only_new_objects")
def test_memory_of_a_rollout_does_not_grow_with_its_length(tmp_path: Path) -> None:
    short, long = (most_retained(length, tmp_path / str(length)) for length in (20, 60))
    # Of 40 more frames of 2 clips: two errors of three predictors, two pairs of moments, texture of all four.
    scalars = 2 * 40 * 4 * (3 * 2 + 2 * 2 + 4)
    pixels = 2 * 40 * 3 * 8 * 8  # had they been kept, in bytes
    assert short > 0
    assert long - short <= scalars < pixels / 3


def stopped_after_two_frames(on_chunk: OnChunk, clips: VideoBatch) -> None:
    frames = clips.frames[:, GIVEN : GIVEN + 2].float() / 255
    on_chunk(GIVEN, frames, frames)
    raise KeyboardInterrupt


def test_predictions_are_written_whole_or_not_at_all(tmp_path: Path) -> None:
    clips = batch(9)
    drawing = Drawing(NullRun(tmp_path / "null"), "test", clips=0, context=GIVEN, predictions=tmp_path / "kept")
    with drawing.of(clips, 3) as on_chunk:
        Knowing(clips).roll(clips, 0, Scores(["mse", "psnr"]), on_chunk=on_chunk)
    kept = np.load(tmp_path / "kept" / "test_0003.npy")
    np.testing.assert_array_equal(kept, pixels_of(clips.frames[:, GIVEN:]))
    with pytest.raises(KeyboardInterrupt), drawing.of(clips, 4) as on_chunk:
        stopped_after_two_frames(on_chunk, clips)
    assert [path.name for path in (tmp_path / "kept").iterdir()] == ["test_0003.npy"]


def test_what_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    said = r"cannot write .*kept\.npy: .*leave experiment\.save_predictions out"
    with pytest.raises(UserError, match=said), writing(tmp_path / "file" / "kept.npy", (1, 1, 2, 2, 3)):
        pass


def test_a_film_that_is_interrupted_leaves_nothing(tmp_path: Path) -> None:
    run, clips = Run.create(tmp_path, "stopped"), batch(9)
    drawing = Drawing(run, "test", clips=2, context=GIVEN)
    with pytest.raises(KeyboardInterrupt), drawing.of(clips, 0) as on_chunk:
        stopped_after_two_frames(on_chunk, clips)
    drawing.grid()
    assert not list(run.pictures.iterdir())


class Halved(Knowing):
    """Its predictions come in half precision, as from a network under autocast."""

    def stream(self, batch: VideoBatch, number: int, length: int) -> Any:
        for chunk in super().stream(batch, number, length):
            yield (chunk * 0.9).bfloat16()


def test_scores_are_computed_in_float32_whatever_the_precision_of_the_model() -> None:
    clips = batch(9)
    plain, autocast = Scores(["mse", "psnr"]), Scores(["mse", "psnr"])
    Halved(clips).roll(clips, 0, plain)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        Halved(clips).roll(clips, 0, autocast)
    prediction = (clips.frames[:, GIVEN:].float() / 255 * 0.9).bfloat16().double().numpy()
    for scores in (plain, autocast):
        assert set(scores.curves) == set(plain.curves)
        mean, variance = scores.pixels(MODEL)
        np.testing.assert_allclose(mean, prediction.mean(axis=(0, 2, 3, 4)), rtol=1e-5)
        np.testing.assert_allclose(variance, prediction.var(axis=(0, 2, 3, 4)), rtol=1e-4)
        np.testing.assert_array_equal(scores.curve(MODEL, "psnr"), plain.curve(MODEL, "psnr"))


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_clips_go_to_a_gpu_through_pinned_memory(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diffusion_forcing.experiments.devices.device", lambda: torch.device(kind))
    dataset = SimpleNamespace(validation=lambda: [0, 1])
    loader = VideoExperiment._loader(SimpleNamespace(dataset=dataset, seed=0), "test", EvaluationOptions())  # type: ignore[arg-type]
    assert loader._loader.pin_memory == (kind == "cuda")


@pytest.mark.parametrize("better", [0, 1])
@pytest.mark.parametrize("first", [False, True])
def test_the_average_that_rolls_out_better_is_sampled_with(better: int, first: bool) -> None:
    model = video(ema_decay=0.5, second_ema_decay=0.9)
    model.samples_second = first
    averages = model.averages

    class Judged:
        metrics = ("psnr",)

        def __init__(self, network: torch.nn.Module) -> None:
            self.network = network

        def roll(self, clips: VideoBatch, number: int, scores: Scores, on_chunk: OnChunk | None) -> None:
            value = 20.0 if self.network is averages[better] else 10.0
            curves = {
                "psnr": torch.full((2, 3), value),
                "pixel_mean": torch.zeros(2, 3),
                "pixel_square": torch.zeros(2, 3),
            }
            for who in (MODEL, "truth"):
                scores.add(who, curves, torch.ones(2, 3))

    drawing = SimpleNamespace(of=lambda *_: nullcontext(), grid=lambda *_: None)
    experiment: Any = SimpleNamespace(
        seed=0, roller=lambda *_, network, **__: Judged(network), drawing=lambda *_, **__: drawing
    )
    logged: dict[str, float] = {}
    model.log = lambda name, value, **_: logged.update({name: value})  # type: ignore[method-assign]
    trainer: Any = SimpleNamespace(global_step=1, precision_plugin=SimpleNamespace(val_step_context=nullcontext))
    callback = RolloutsInTraining(experiment)
    callback.on_validation_start(trainer, model)
    callback.on_validation_batch_end(trainer, model, None, batch(3), 0)
    callback.on_validation_epoch_end(trainer, model)
    assert model.samples_second == bool(better)
    assert model.sampling_network is averages[better]
    assert {logged["validation/psnr"], logged["validation/psnr_other_average"]} == {10.0, 20.0}
    # A checkpoint keeps the choice.
    saved: dict[str, Any] = {}
    model.on_save_checkpoint(saved)
    other = video(ema_decay=0.5, second_ema_decay=0.9)
    other.on_load_checkpoint(saved)
    assert other.samples_second == model.samples_second


def test_both_averages_follow_the_weights_and_take_a_checkpoints() -> None:
    model = video(ema_decay=0.5, second_ema_decay=0.9)
    weights = {name: torch.full_like(value, 2.0) for name, value in model.network.state_dict().items()}
    model.take_weights(weights)
    assert all((value == 2).all() for network in model.averages for value in network.parameters())
    assert video(ema_decay=0.5).averages == []
    with pytest.raises(UserError, match="second_ema_decay"):
        video(ema_decay=0.0, second_ema_decay=0.9)
