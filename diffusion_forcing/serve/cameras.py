"""Where a policy's pictures come from: the simulator, a folder, Video4Linux or RealSense cameras. One protocol for all.

A camera that gives no picture in time is a picture of nothing: the policy finds it blocked, and goes on with the others.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from diffusion_forcing.errors import UserError
from diffusion_forcing.serve.policy_server import ServeOptions

Picture = NDArray[np.uint8]
Actions = NDArray[np.float32]
_GREY = 40
_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp")


class Cameras(Protocol):
    """What a session looks through."""

    names: tuple[str, ...]

    def look(self, done: Actions | None) -> tuple[Picture, NDArray[np.float32]]:
        """Pictures (cameras, 3, size, size) uint8 and where the gripper is (8,), after the actions `done` (n, 8), which were answered last; None:
        none were. UserError where no camera sees anything."""

    def reset(self) -> None:
        """A new episode begins."""

    def close(self) -> None:
        """Give everything back."""


class Simulated:
    """robot_swap: the actions that were answered are carried out when the next are asked for."""

    def __init__(self, options: ServeOptions, *, cameras: int, size: int, number: int) -> None:
        from diffusion_forcing.environments.swap.environment import SwapBatch

        self._make = lambda seed: SwapBatch(
            1, seed=seed, size=size, distractors=options.distractors, blocking=options.blocking, cameras=cameras
        )
        self._seed = options.seed + number
        self._batch = self._make(self._seed)
        self.names = self._batch.cameras

    def look(self, done: Actions | None) -> tuple[Picture, NDArray[np.float32]]:
        """See `Cameras`. An episode that is over stays as it is until `reset`."""
        if done is not None:
            self._batch.move(done[None])
        pictures, states = self._batch.look()
        return pictures[0], states[0]

    @property
    def success(self) -> bool:
        """Whether both fruits are swapped."""
        return bool(self._batch.success[0])

    def reset(self) -> None:
        """The next seed."""
        self._seed += 1
        self._batch.close()
        self._batch = self._make(self._seed)

    def close(self) -> None:
        """Give the renderers back."""
        self._batch.close()


class _Real(ABC):
    """Cameras that somebody else moves. Subclasses give `_read(camera)`: (h, w, 3) uint8, or raise OSError."""

    names: tuple[str, ...]

    def __init__(self, options: ServeOptions, *, names: Sequence[str], size: int) -> None:
        self.names, self._size, self._options = tuple(names), size, options
        self._home = np.array(options.home or HOME, np.float32)
        self._last: NDArray[np.float32] | None = None

    def look(self, done: Actions | None) -> tuple[Picture, NDArray[np.float32]]:
        """See `Cameras`. The gripper is where it was last sent."""
        pictures, failures = [], []
        for index, name in enumerate(self.names):
            try:
                pictures.append(squared(self._read(index), self._size))
            except (OSError, ValueError) as failure:
                failures.append(f"{name}: {failure}")
                pictures.append(np.full((3, self._size, self._size), _GREY, np.uint8))
        if len(failures) == len(self.names):
            raise UserError(f"no camera shows anything ({'; '.join(failures)})")
        if done is not None:
            self._last = done[-1]
        return np.stack(pictures), self._home if self._last is None else self._last

    def reset(self) -> None:
        self._last = None

    def close(self) -> None:  # noqa: B027 (a folder has nothing to close)
        """Give everything back."""

    @abstractmethod
    def _read(self, index: int) -> Picture:
        """What camera `index` sees."""


class Folder(_Real):
    """The newest picture of <folder>/<camera>/, put there whole (written elsewhere, then renamed) by whoever has the cameras."""

    def __init__(self, options: ServeOptions, *, names: Sequence[str], size: int) -> None:
        super().__init__(options, names=names, size=size)
        self._root = Path(options.folder or "").expanduser()
        if not self._root.is_dir():
            raise UserError(
                f"folder={self._root} does not exist; make it, with a folder for each of {', '.join(names)}"
            )

    def _read(self, index: int) -> Picture:
        from PIL import Image, UnidentifiedImageError

        folder = self._root / self.names[index]
        found = [path for path in folder.glob("*") if path.suffix.lower() in _SUFFIXES]
        for path in sorted(found, key=lambda path: (path.stat().st_mtime_ns, path.name), reverse=True)[:3]:
            if time.time() - path.stat().st_mtime > self._options.camera_timeout:
                raise OSError(f"its newest picture is older than {self._options.camera_timeout:g} s")
            try:
                with Image.open(path) as image:
                    return np.array(image.convert("RGB"))
            except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError):
                continue  # not whole yet: the one before
        raise OSError(f"no picture in {folder}")


class Video4Linux(_Real):
    """/dev/video… through FFmpeg."""

    def __init__(self, options: ServeOptions, *, names: Sequence[str], size: int) -> None:
        super().__init__(options, names=names, size=size)
        import av

        devices = options.devices or tuple(str(path) for path in sorted(Path("/dev").glob("video*")))
        if len(devices) < len(names):
            raise UserError(
                f"{len(names)} cameras are needed and {len(devices)} are there ({', '.join(devices) or 'none'}); connect them, or give "
                "devices=[/dev/video0,…]"
            )
        self._open: list[Any] = []
        for device in devices[: len(names)]:
            try:
                self._open.append(av.open(device, format="v4l2", timeout=options.camera_timeout))
            except (OSError, av.FFmpegError, ValueError) as failure:
                self.close()
                raise UserError(
                    f"camera {device} cannot be opened: {failure}; choose others with devices=[…]"
                ) from failure

    def _read(self, index: int) -> Picture:
        import av

        try:
            frame = next(self._open[index].decode(video=0))
        except (av.FFmpegError, StopIteration) as failure:
            raise OSError(str(failure) or "it gives no frame") from failure
        return np.asarray(frame.to_ndarray(format="rgb24"))

    def close(self) -> None:
        for container in self._open:
            container.close()


class RealSense(_Real):
    """Intel RealSense cameras through pyrealsense2, which is imported only here."""

    def __init__(self, options: ServeOptions, *, names: Sequence[str], size: int) -> None:
        super().__init__(options, names=names, size=size)
        try:
            import pyrealsense2 as rs
        except ImportError as missing:
            raise UserError("cameras=realsense needs pyrealsense2: pip install pyrealsense2") from missing
        serials = options.devices or tuple(
            device.get_info(rs.camera_info.serial_number) for device in rs.context().query_devices()
        )
        if len(serials) < len(names):
            raise UserError(f"{len(names)} RealSense cameras are needed and {len(serials)} are connected")
        self._pipelines = []
        for serial in serials[: len(names)]:
            pipeline, config = rs.pipeline(), rs.config()
            config.enable_device(serial)
            config.enable_stream(rs.stream.color, rs.format.rgb8, 30)
            try:
                pipeline.start(config)
            except RuntimeError as failure:
                self.close()
                raise UserError(f"RealSense {serial} cannot be started: {failure}") from failure
            self._pipelines.append(pipeline)

    def _read(self, index: int) -> Picture:
        try:
            frames = self._pipelines[index].wait_for_frames(int(1000 * self._options.camera_timeout))
        except RuntimeError as failure:
            raise OSError(str(failure)) from failure
        return np.asarray(frames.get_color_frame().get_data(), np.uint8)

    def close(self) -> None:
        for pipeline in self._pipelines:
            pipeline.stop()


HOME = (1.18, 0.75, 0.7, 0.0, 0.70710678, 0.0, 0.70710678, 0.0)
"""Where robot_swap's arm waits, open and looking down."""


def open_cameras(options: ServeOptions, *, names: Sequence[str], size: int, number: int) -> Cameras:
    """The cameras of session `number`. UserError where they cannot be opened."""
    match options.cameras:
        case "sim":
            return Simulated(options, cameras=len(names), size=size, number=number)
        case "folder":
            return Folder(options, names=names, size=size)
        case "v4l2":
            return Video4Linux(options, names=names, size=size)
        case "realsense":
            return RealSense(options, names=names, size=size)


def squared(picture: Picture, size: int) -> Picture:
    """(h, w, 3) → (3, size, size) uint8: the middle square, averaged down."""
    if picture.ndim != 3 or picture.shape[2] != 3 or min(picture.shape[:2]) < 8:
        raise ValueError(f"a picture of shape {picture.shape}; (height, width, 3), 8 pixels or more, is needed")
    side = min(picture.shape[:2])
    top, left = (picture.shape[0] - side) // 2, (picture.shape[1] - side) // 2
    middle = torch.from_numpy(np.array(picture[top : top + side, left : left + side])).permute(2, 0, 1)
    if side == size:
        return middle.numpy()
    found = F.interpolate(middle[None].float(), size=(size, size), mode="bilinear", antialias=True, align_corners=False)
    return found[0].round().clamp(0, 255).to(torch.uint8).numpy()
