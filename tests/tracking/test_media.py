"""Images and videos, read back by other programs' decoders."""

from __future__ import annotations

import io
from pathlib import Path

import av
import numpy as np
import pytest

from diffusion_forcing.tracking.run import Mp4, Run, png_bytes


def write(path: Path, frames: np.ndarray, *, fps: float) -> None:
    video = Mp4(path, fps=fps)
    video.add(frames)
    video.close()


def decoded(source: object) -> np.ndarray:
    with av.open(source) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


@pytest.mark.parametrize("shape", [(5, 7, 3), (1, 1, 3), (64, 33, 3), (5, 7, 4), (5, 7)])
def test_a_png_holds_exactly_its_pixels(shape: tuple[int, ...]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    if shape[-1] == 4:
        pixels[..., 3] = 255
    found = decoded(io.BytesIO(png_bytes(pixels)))[0]
    expected = pixels[..., :3] if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, axis=2)
    assert (found == expected).all()


@pytest.mark.parametrize(("height", "width"), [(32, 48), (33, 49)])
def test_a_video_has_its_frames_size_rate_and_colours(tmp_path: Path, height: int, width: int) -> None:
    frames = np.zeros((6, height, width, 3), np.uint8)
    frames[:, :, width // 2 :] = (200, 40, 90)
    frames += np.arange(6, dtype=np.uint8)[:, None, None, None] * 8
    before = frames.copy()
    write(tmp_path / "video.mp4", frames, fps=12.5)
    found = decoded(str(tmp_path / "video.mp4"))
    assert found.shape == (6, height + height % 2, width + width % 2, 3)  # the codec wants even sides
    assert np.abs(found[:, :height, :width].astype(int) - frames).mean() < 4
    with av.open(str(tmp_path / "video.mp4")) as container:
        assert float(container.streams.video[0].average_rate) == 12.5  # type: ignore[arg-type]
        assert container.streams.video[0].codec_context.pix_fmt == "yuv420p"  # what every browser plays
    assert (frames == before).all()


def test_a_run_keeps_a_video_with_its_last_frame_as_poster(tmp_path: Path) -> None:
    run = Run.create(tmp_path, "video")
    frames = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), dtype=np.uint8)
    run.video("the plan", frames, fps=10, caption="row by row")
    assert (decoded(str(run.pictures / "the-plan-poster.png"))[0] == frames[-1]).all()
    assert len(decoded(str(run.pictures / "the-plan.mp4"))) == 4
    assert sorted(path.name for path in run.pictures.iterdir()) == ["media.json", "the-plan-poster.png", "the-plan.mp4"]


@pytest.mark.parametrize("pixels", [np.zeros((4, 4, 3)), np.zeros((4, 4, 2), np.uint8), np.zeros((0, 4, 3), np.uint8)])
def test_images_of_another_kind_are_refused(pixels: np.ndarray) -> None:
    with pytest.raises(ValueError, match="uint8"):
        png_bytes(pixels)


def test_videos_of_another_kind_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="uint8"):
        write(tmp_path / "x.mp4", np.zeros((3, 4, 4, 3)), fps=5)
    with pytest.raises(ValueError, match="fps"):
        write(tmp_path / "x.mp4", np.zeros((3, 4, 4, 3), np.uint8), fps=0)


def test_a_video_that_comes_in_pieces_is_the_video_that_comes_at_once(tmp_path: Path) -> None:
    run = Run.create(tmp_path, "video")
    frames = np.random.default_rng(0).integers(0, 256, (7, 18, 24, 3), dtype=np.uint8)
    run.video("whole", frames, fps=10)
    with run.video_writer("pieces", fps=10) as add:
        for start in range(0, 7, 3):
            add(frames[start : start + 3])
    whole, pieces = (decoded(str(run.pictures / f"{name}.mp4")) for name in ("whole", "pieces"))
    assert np.array_equal(whole, pieces)
    assert sorted(path.name for path in run.pictures.iterdir()) == [
        "media.json",
        "pieces-poster.png",
        "pieces.mp4",
        "whole-poster.png",
        "whole.mp4",
    ]


def test_a_video_that_is_given_up_leaves_nothing(tmp_path: Path) -> None:
    run = Run.create(tmp_path, "video")

    def interrupted() -> None:
        with run.video_writer("half") as add:
            add(np.zeros((2, 16, 16, 3), np.uint8))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(run.pictures.iterdir()) == []
