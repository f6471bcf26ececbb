"""Encoded videos (mp4, webm, mkv, avi, mov, gif) through PyAV, which ships its own ffmpeg: exact access to any frame, and writing.

Frames are counted in the order in which they are shown. Each has a presentation time, and `inspect_video` keeps all
times and keyframes, so that a clip is decoded from the keyframe before it and every decoded frame is known by its time.
Containers that seek unreliably are decoded from the start.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from diffusion_forcing.errors import UserError
from diffusion_forcing.limits import Refused, check_limit, limit, refusing

Pixels = NDArray[np.uint8]

_WITH_FRAME_TABLE = (".mp4", ".mov")
"""Containers that list all their frames; the frames of others are counted by decoding them once."""
_READERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,gif"
"""ffmpeg's names of the containers in `VIDEOS`."""
_WITH_TIMES = (*_WITH_FRAME_TABLE, ".mkv", ".webm")
"""Containers with reliable presentation times; clips of others are decoded from the start."""
_ONE_THREAD = {"threads": 1} if "threads" in (av.video.reformatter.VideoReformatter.reformat.__doc__ or "") else {}
"""Converting a small frame takes less time than starting threads; older PyAV has no such option."""


def inspect_video(path: Path) -> dict[str, Any]:
    """Fields of `Episode`: size and number of frames, times, keyframes. `Refused` for a damaged file."""
    with opened(path) as (container, stream):
        first = next(decoded(container, stream), None)
        if first is None:
            raise Refused("holds no frame that can be decoded")
        height, width = Converter()(first).shape[:2]
    with opened(path) as (container, stream):
        if path.suffix.lower() in _WITH_FRAME_TABLE:
            entries = [(packet.pts, packet.is_keyframe) for packet in shown_packets(path, container, stream)]
        else:
            entries = [(frame.pts, frame.key_frame) for frame in decoded(container, stream)]
    fields = {"kind": "video", "frames": len(entries), "height": height, "width": width}
    distinct_times = {time for time, _ in entries} - {None}
    if path.suffix.lower() not in _WITH_TIMES or len(distinct_times) < len(entries):
        return fields
    entries.sort()  # packets are stored in decoding order
    times = np.array([time for time, _ in entries], dtype=np.int64)
    keyframes = np.flatnonzero([is_keyframe for _, is_keyframe in entries])
    # Evenly spaced times, the usual case, take two numbers.
    steps = np.diff(times)
    is_even = len(times) > 2 and bool((steps == steps[0]).all())
    return {**fields, "keyframes": keyframes, "times": np.array([times[0], steps[0]]) if is_even else times}


def all_times(times: NDArray[np.int64], frames: int) -> NDArray[np.int64]:
    """Presentation times of all `frames`, from the `times` of `inspect_video`; empty if they are unknown."""
    return times[0] + times[1] * np.arange(frames) if len(times) == 2 and frames > 2 else times


def shown_packets(path: Path, container: Any, stream: Any) -> list[Any]:
    """One packet for each frame of a mp4 or mov file; nothing is decoded. `Refused` if the file is cut off."""
    packets = [packet for packet in container.demux(stream) if packet.size]
    if len(packets) < stream.frames:
        # The edit list of a trimmed video hides frames that the file still holds.
        with open_container(path, ignore_editlist="1") as whole:
            present = sum(1 for packet in whole.demux(whole.streams.video[0]) if packet.size)
        if present < stream.frames:
            raise Refused(f"is cut off: it holds {present} of {stream.frames} frames")
    return [packet for packet in packets if not packet.is_discard]


def decode_frames(
    path: Path, wanted: NDArray[np.int64], times: NDArray[np.int64], keyframes: NDArray[np.int64]
) -> dict[int, Pixels]:
    """Frames `wanted` (sorted, distinct) by number, (h, w, 3) each. times: of all frames, or empty if unknown.

    A frame is missing in the result if the video ends before it. `Refused` for a damaged video.
    """
    if len(times):
        with suppress(Refused):
            found = _read_from_keyframe(path, wanted, times, keyframes)
            if len(found) == len(wanted):
                return found
    convert, numbers, found = Converter(), set(wanted.tolist()), {}
    with opened(path) as (container, stream):
        for number, frame in enumerate(decoded(container, stream)):
            if number in numbers:
                found[number] = convert(frame)
            if len(found) == len(wanted):
                break
    return found


def _read_from_keyframe(
    path: Path, wanted: NDArray[np.int64], times: NDArray[np.int64], keyframes: NDArray[np.int64]
) -> dict[int, Pixels]:
    """The same, decoded from the last keyframe before the first. `Refused` if the seek went elsewhere."""
    first, last = int(times[wanted[0]]), int(times[wanted[-1]])
    number_at = {int(times[number]): number for number in wanted.tolist()}
    keyframes = keyframes[keyframes <= wanted[0]]
    convert, found = Converter(), {}
    with opened(path) as (container, stream):
        if len(keyframes) and keyframes[-1] > 0:
            container.seek(int(times[keyframes[-1]]), stream=stream)
        started = False
        for packet in container.demux(stream):
            # Before the first wanted frame, skip the frames that no other frame refers to.
            is_before = packet.pts is not None and packet.pts < first
            stream.codec_context.skip_frame = "NONREF" if is_before else "DEFAULT"
            for frame in packet.decode():
                if frame.pts is None or (not started and frame.pts > first):
                    raise Refused("has frames in other places than it says")
                started = True
                if frame.pts in number_at:
                    found[number_at[frame.pts]] = convert(frame)
                if frame.pts >= last:
                    return found
    return found


@contextmanager
def opened(path: Path) -> Iterator[tuple[Any, Any]]:
    """Container and video stream of a file; inside the block ffmpeg's errors become `Refused`."""
    with refusing("cannot be decoded"), open_container(path) as container:
        if not container.streams.video:
            raise Refused("holds no video")
        stream = container.streams.video[0]
        codec = stream.codec_context
        codec.thread_count = 1  # many short clips are decoded in parallel instead
        check_limit("PIXELS", codec.width * codec.height, "frames")
        codec.options = {"max_pixels": str(min(limit("PIXELS"), 2**31 - 1))}  # also where the stream changes its size
        yield container, stream


def open_container(path: Path, **options: str) -> Any:
    """`path` opened by one of the readers of `VIDEOS`: a playlist, which names other files, is refused."""
    allowed = {"format_whitelist": _READERS, "protocol_whitelist": "file", **options}
    return av.open(str(path), options=allowed, metadata_errors="replace")


def decoded(container: Any, stream: Any) -> Iterator[Any]:
    """All frames of a stream. `Refused` at a corrupt one."""
    for frame in container.decode(stream):
        if frame.is_corrupt:
            raise Refused("is damaged")
        yield frame


class Converter:
    """Decoded frames to (h, w, 3) uint8 RGB, upright."""

    def __init__(self) -> None:
        self._reformatter = av.video.reformatter.VideoReformatter()

    def __call__(self, frame: Any) -> Pixels:
        rgb = self._reformatter.reformat(frame, format="rgb24", interpolation="FAST_BILINEAR", **_ONE_THREAD)
        return np.ascontiguousarray(upright(np.asarray(rgb.to_ndarray(), np.uint8), frame))


def resize(images: Pixels, size: int) -> Pixels:
    """(n, h, w, 3) to (n, size, size, 3), bilinear with antialiasing; the aspect ratio is not kept."""
    if images.shape[1:3] == (size, size):
        return images
    import torch  # not at the top: processes that only generate images need none
    from torch.nn import functional as F

    pixels = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2)
    resized = F.interpolate(pixels, (size, size), mode="bilinear", antialias=True, align_corners=False)
    return resized.permute(0, 2, 3, 1).contiguous().numpy()


def upright(pixels: Pixels, frame: Any) -> Pixels:
    """(h, w, 3) `pixels` of a frame, turned and mirrored as its display matrix says (phones record sideways)."""
    side_data = frame.side_data.get("DISPLAYMATRIX")
    if side_data is None:
        return pixels
    # The matrix maps (x, y) to (a·x + c·y, b·x + d·y), with y down.
    a, b, _, c, d = np.frombuffer(side_data, np.int32)[:5].tolist()
    if abs(b) > abs(a):
        pixels, a, d = pixels.swapaxes(0, 1), c, b
    return pixels[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]


# ----------------------------------------------------------------------------------------------- videos of cameras, and images
# Written losslessly or with a common codec, read whole or in part, and squeezed to a square, not cropped, as in the released
# code: what lies at an edge may matter to an arm. They are never enlarged for training. Rotations and mirrorings that a file
# asks for (the display matrix of a video, the EXIF orientation of a photo) are applied.

_TOLERANCE = 0.25
"""Of the time between two frames: how far from its time a frame may be shown."""
_BLOCK_BYTES = 64 << 20
"""Bytes of frames held in memory at their original size at once."""


@dataclass(frozen=True)
class Codec:
    """An encoder of ffmpeg, its pixel format and options."""

    encoder: str
    pixel_format: str
    options: tuple[tuple[str, str], ...]


CODECS = {
    "lossless": Codec("libx264rgb", "rgb24", (("qp", "0"), ("preset", "veryfast"))),
    "h264": Codec("libx264", "yuv420p", (("crf", "10"), ("preset", "veryfast"))),
    "av1": Codec("libsvtav1", "yuv420p", (("crf", "30"), ("preset", "8"), ("svtav1-params", "lp=1"))),
}
"""lossless: h264 in RGB, bit-exact; ffmpeg plays it, browsers do not. h264, av1: any player, but colours at half the
resolution."""


class VideoWriter:
    """A video at `path`, written clip by clip. Every clip starts with a key frame, and `key_every` seconds later
    there is another."""

    def __init__(
        self, path: Path, size: tuple[int, int], fps: float, codec: str = "lossless", *, key_every: float = 1.0
    ) -> None:
        chosen, rate = CODECS[codec], Fraction(fps).limit_denominator(1001)
        if chosen.encoder not in av.codecs_available:
            have = ", ".join(name for name, known in CODECS.items() if known.encoder in av.codecs_available)
            raise UserError(
                f"codec '{codec}' needs ffmpeg's encoder {chosen.encoder}, which PyAV {av.__version__} lacks; install a newer av, or choose of {have}"
            )
        self.frames = self.bytes = 0
        self._time_base = 1 / rate
        container = av.open(str(path), "w", format="mp4")
        self._container: Any = container
        stream: Any = container.add_stream(chosen.encoder, rate=rate, options=dict(chosen.options))
        stream.height, stream.width = size
        stream.pix_fmt = chosen.pixel_format
        stream.codec_context.gop_size = max(1, round(fps * key_every))
        self._stream = stream

    def add(self, images: Pixels) -> None:
        """Append a clip (n, h, w, 3)."""
        for number, image in enumerate(images):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            frame.pts, frame.time_base = self.frames, self._time_base
            frame.pict_type = av.video.frame.PictureType.I if number == 0 else av.video.frame.PictureType.NONE
            self._mux(self._stream.encode(frame))
            self.frames += 1

    def close(self) -> None:
        """Write the frames still in the encoder, and the index; after an error nothing."""
        if self._container is not None:
            self._mux(self._stream.encode())
            self._container.close()

    def _mux(self, packets: Iterable[Any]) -> None:
        container, self._container = self._container, None  # after an error, ffmpeg ends the process if called again
        for packet in packets:
            self.bytes += packet.size
            container.mux(packet)
        self._container = container


def write_video(path: Path, images: Pixels, fps: float, codec: str = "lossless") -> None:
    """Write one clip (n, h, w, 3) with few key frames: it will be read from its beginning."""
    with closing(VideoWriter(path, (images.shape[1], images.shape[2]), fps, codec, key_every=25.0)) as video:
        video.add(images)


def read_video(path: Path, size: int | None = None, *, most: int | None = None) -> Pixels:
    """All frames (n, h, w, 3), or (n, size, size, 3), or the first `most`. `Refused` for a damaged file."""
    with opened(path) as (container, stream):
        return stack(map(_pixels, itertools.islice(container.decode(stream), most)), size)


def read_segment(path: Path, start: float, count: int, fps: float, size: int | None = None) -> Pixels:
    """The `count` frames shown at `start`, `start` + 1 / `fps`, … seconds. `Refused` where one is missing."""
    half = 0.5 / fps
    with opened(path) as (container, stream):
        if start > half:
            container.seek(int((start - half) / stream.time_base), stream=stream)
        # The frames between the key frame and the start are left out.
        shown = (frame for frame in container.decode(stream) if frame.time is not None and frame.time >= start - half)
        images = stack(map(_pixels, _checked(itertools.islice(shown, count), start, fps)), size)
    if len(images) < count:
        raise Refused(f"ends after {len(images)} of {count} frames from {start:.3f} s")
    return images


def _checked(frames: Iterable[Any], start: float, fps: float) -> Iterator[Any]:
    """`frames`; `Refused` where one is not shown at its time."""
    for number, frame in enumerate(frames):
        if abs(frame.time - start - number / fps) > _TOLERANCE / fps:
            raise Refused(f"has no frame at {start + number / fps:.3f} s")
        yield frame


def video_metadata(path: Path) -> tuple[int, float]:
    """Number of frames and frames per second, without decoding. `Refused` for a damaged file."""
    with opened(path) as (container, stream):
        count = len(shown_packets(path, container, stream))
        if not count or not stream.average_rate:
            raise Refused("holds no frames")
        return count, float(stream.average_rate)


def read_image(data: bytes) -> Pixels:
    """(h, w, 3) of a png or jpeg file's bytes. ValueError or OSError for a damaged one."""
    from PIL import Image, ImageOps

    try:
        image: Image.Image = Image.open(io.BytesIO(data), formats=("PNG", "JPEG", "WEBP", "BMP", "GIF"))
        check_limit("PIXELS", image.width * image.height, "an image")
        image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I"):  # 16 bits of grey, which Pillow would clip to 8
            grey = (np.asarray(image) // 256).astype(np.uint8)
            return np.repeat(grey[..., None], 3, axis=-1)
        return np.array(image.convert("RGB"))
    except (SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(str(error)) from error


def squeeze(images: Pixels, size: int) -> Pixels:
    """(n, h, w, 3) → (n, size, size, 3). `Refused` where they would be enlarged."""
    height, width = images.shape[1:3]
    if min(height, width) < size:
        raise Refused(
            f"holds images of {height} x {width}, smaller than {size} x {size}; images are not enlarged",
            remedy="lower dataset.resolution or choose another dataset.save_dir",
        )
    return resize(images, size)


def _pixels(frame: Any) -> Pixels:
    return upright(frame.to_ndarray(format="rgb24"), frame)


def stack(images: Iterable[Pixels], size: int | None = None) -> Pixels:
    """Images (h, w, 3) as one array (n, h, w, 3), or resized block by block to (n, size, size, 3)."""
    images = iter(images)
    blocks: list[Pixels] = []
    whole = 0
    for first in images:
        block = [first, *itertools.islice(images, max(0, _BLOCK_BYTES // first.nbytes - 1))]
        if len({image.shape for image in block}) > 1:
            raise Refused("holds frames of different sizes")
        blocks.append(np.stack(block) if size is None else squeeze(np.stack(block), size))
        whole += blocks[-1].nbytes
        check_limit("ARRAY_BYTES", whole, "a video")
    if not blocks:
        raise Refused("holds no frames")
    return np.concatenate(blocks)
