"""The camera images of a policy server: from the simulator, a folder, Video4Linux or RealSense cameras.

A camera that gives no image in time gives a grey one; the policy detects it as blocked and goes on with the others.
Images are resized exactly as those of the training data.
"""

from __future__ import annotations

import io
import math
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import av
import numpy as np
from numpy.typing import NDArray

from diffusion_forcing.datasets.video.container import read_image, resize
from diffusion_forcing.errors import UserError, check_minimum, check_positive, check_range, require
from diffusion_forcing.files import read_bytes
from diffusion_forcing.limits import check_limit

Image = NDArray[np.uint8]
Actions = NDArray[np.float32]

HOME = (1.18, 0.75, 0.7, 0.0, 0.70710678, 0.0, 0.70710678, 0.0)
"""Where the arm of robot_swap waits, open and pointing down, as an action."""
_GREY = 40
_FAILURES = (OSError, ValueError, RuntimeError, StopIteration, av.FFmpegError)
"""What folders, FFmpeg and pyrealsense2 raise where a camera gives no image."""
_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp")
IMAGE_BYTES = 2**25
"""The largest file of an image in a folder."""
TRIED = 3
"""Images of a folder that are tried, the newest first."""
AHEAD = 1.0
"""Seconds by which the time of a file may lie ahead of this machine's clock and count as now."""


@dataclass(frozen=True, kw_only=True)
class CameraOptions:
    """cameras: the source of the images.

    folder: for cameras=folder; a camera sees the newest image in <folder>/<camera>/, a regular file of at most 8 million
    pixels. devices: one per camera, for v4l2
    (/dev/video0, …) or realsense (serial numbers); the first ones found where empty. seed, distractors, blocking: of
    the simulator. home: (8,) where a real arm waits, as an action; that of robot_swap where empty. camera_timeout:
    seconds after which a camera without a new image counts as blocked.
    """

    cameras: Literal["sim", "realsense", "v4l2", "folder"] = "sim"
    folder: str | None = None
    devices: tuple[str, ...] = ()
    seed: int = 0
    distractors: int = 0
    blocking: float = 0.0
    home: tuple[float, ...] = ()
    camera_timeout: float = 2.0

    def __post_init__(self) -> None:
        require(
            self.cameras != "folder" or bool(self.folder),
            "cameras=folder needs folder=DIR with a folder of images for each camera",
        )
        require(
            len(self.home) in (0, 8),
            f"home has {len(self.home)} numbers; an action has 8: x y z, qx qy qz qw, grasp",
        )
        check_positive("camera_timeout", self.camera_timeout)
        check_range("blocking", self.blocking, 0, 1)
        check_minimum("seed", self.seed, 0)
        check_minimum("distractors", self.distractors, 0)


class Cameras(ABC):
    """The cameras of one session, and where its gripper is."""

    names: tuple[str, ...]

    @abstractmethod
    def observe(self, executed: Actions | None) -> tuple[Image, NDArray[np.float32]]:
        """Images (cameras, 3, size, size) and the gripper's state (8,) after the last answer `executed` (n, 8), if any.

        UserError where no camera gives an image.
        """

    @abstractmethod
    def reset(self) -> None:
        """Start a new episode."""

    def close(self) -> None:  # noqa: B027 (a folder has nothing to release)
        """Release the devices."""


def open_cameras(options: CameraOptions, *, names: tuple[str, ...], size: int, number: int) -> Cameras:
    """The cameras of session `number`. UserError where they cannot be opened."""
    if options.cameras == "sim":
        return Simulated(options, cameras=len(names), size=size, number=number)
    kinds: dict[str, Callable[..., Cameras]] = {"folder": Folder, "v4l2": Video4Linux, "realsense": RealSense}
    return kinds[options.cameras](options, names=names, size=size)


class Simulated(Cameras):
    """robot_swap. The actions of an answer are executed when the next one is asked for."""

    def __init__(self, options: CameraOptions, *, cameras: int, size: int, number: int) -> None:
        from diffusion_forcing.environments.swap import SwapBatch

        self._make = lambda seed: SwapBatch(
            1, seed=seed, size=size, distractors=options.distractors, blocking=options.blocking, cameras=cameras
        )
        self._seed = options.seed + number
        self._batch = self._make(self._seed)
        self.names = self._batch.cameras

    def observe(self, executed: Actions | None) -> tuple[Image, NDArray[np.float32]]:
        """A finished episode stands still until `reset`."""
        if executed is not None:
            self._batch.move(executed[None])
        images, states = self._batch.observe()
        return images[0], states[0]

    def reset(self) -> None:
        """Go on to the next seed."""
        self._seed += 1
        self._batch.close()
        self._batch = self._make(self._seed)

    def close(self) -> None:
        self._batch.close()


class _RealCameras(Cameras):
    """Cameras of a robot that the client moves."""

    def __init__(self, options: CameraOptions, *, names: tuple[str, ...], size: int) -> None:
        self.names, self._size, self._options = names, size, options
        self._home = np.array(options.home or HOME, np.float32)
        self._state = self._home
        self._open()

    def observe(self, executed: Actions | None) -> tuple[Image, NDArray[np.float32]]:
        """The gripper is assumed to be where it was last sent."""
        images, failures = [], []
        for index, name in enumerate(self.names):
            try:
                images.append(squared(self._read(index), self._size))
            except _FAILURES as failure:
                failures.append(f"{name}: {str(failure) or 'no frame'}")
                images.append(np.full((3, self._size, self._size), _GREY, np.uint8))
        require(len(failures) != len(self.names), f"no camera gives an image ({'; '.join(failures)})")
        if executed is not None:
            self._state = executed[-1]
        return np.stack(images), self._state

    def reset(self) -> None:
        self._state = self._home

    @abstractmethod
    def _open(self) -> None:
        """UserError where a camera is missing."""

    @abstractmethod
    def _read(self, index: int) -> Image:
        """The image of camera `index`, (h, w, 3) uint8. One of `_FAILURES` where it gives none."""


class Folder(_RealCameras):
    """The newest image in <folder>/<camera>/, which another program puts there (writes elsewhere, then renames).

    How old an image is, this process's clock says: it arrived at the time of its file or, where that lies ahead, between
    the last look into the folder and the one that found it. Links and what is no regular file are no images.
    """

    def _open(self) -> None:
        self._root = Path(self._options.folder or "").expanduser()
        names = ", ".join(self.names)
        require(self._root.is_dir(), f"folder={self._root} does not exist; it needs a folder for each of {names}")
        self._arrived: list[dict[_Stamp, float]] = [{} for _ in self.names]
        self._looked = [-math.inf for _ in self.names]

    def _read(self, index: int) -> Image:
        now, folder = time.monotonic(), self._root / self.names[index]
        before, self._arrived[index] = self._arrived[index], {}
        for stamp in _images(folder):
            age = time.time() - stamp.time / 1e9
            arrived = now - max(age, 0.0) if age > -AHEAD else self._looked[index]
            self._arrived[index][stamp] = before.get(stamp, arrived)
        self._looked[index] = now
        newest = sorted(self._arrived[index].items(), key=lambda item: (item[1], item[0].time, item[0].name))
        for stamp, arrived in newest[: -1 - TRIED : -1]:
            if now - arrived > self._options.camera_timeout:
                raise OSError(f"its newest image is older than {self._options.camera_timeout:g} s")
            try:
                return _picture(folder / stamp.name)
            except (OSError, ValueError):
                continue  # still being written: take the one before
        raise OSError(f"no image in {folder}")


class _Stamp(NamedTuple):
    """An image's file, and its time in nanoseconds."""

    name: str
    inode: int
    time: int


def _images(folder: Path) -> Iterator[_Stamp]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.lower().endswith(_SUFFIXES) and entry.is_file(follow_symlinks=False):
                status = entry.stat(follow_symlinks=False)
                yield _Stamp(entry.name, status.st_ino, status.st_mtime_ns)


def _picture(path: Path) -> Image:
    """An image's file, (h, w, 3). OSError or ValueError for a damaged one or one beyond the limits."""
    from PIL import Image as Pillow

    data = read_bytes(path, IMAGE_BYTES)
    try:
        with Pillow.open(io.BytesIO(data), formats=("PNG", "JPEG", "BMP")) as image:
            width, height = image.size
    except (SyntaxError, Pillow.DecompressionBombError) as error:
        raise ValueError(str(error)) from error
    check_limit("CAMERA_PIXELS", width * height, "an image")
    return read_image(data)


class _Devices(_RealCameras):
    """Cameras that are opened by name: those of `devices=[…]`, or the first ones that `_find` returns."""

    def _open(self) -> None:
        self._devices: list[Any] = []
        devices = self._options.devices or self._find()
        require(
            len(devices) >= len(self.names),
            f"{len(self.names)} cameras are needed, {len(devices)} found ({', '.join(devices) or 'none'}); "
            "connect them or give devices=[…]",
        )
        for device in devices[: len(self.names)]:
            try:
                self._devices.append(self._start(device))
            except _FAILURES as failure:
                self.close()
                raise UserError(f"cannot open camera {device}: {failure}; choose others by devices=[…]") from failure

    @abstractmethod
    def _find(self) -> tuple[str, ...]:
        """Names of the connected devices."""

    @abstractmethod
    def _start(self, device: str) -> Any:
        """The opened device. One of `_FAILURES` where that fails."""


class Video4Linux(_Devices):
    """/dev/video… through FFmpeg."""

    def _find(self) -> tuple[str, ...]:
        return tuple(str(path) for path in sorted(Path("/dev").glob("video*")))

    def _start(self, device: str) -> Any:
        return av.open(device, format="v4l2", timeout=self._options.camera_timeout)

    def _read(self, index: int) -> Image:
        return np.asarray(next(self._devices[index].decode(video=0)).to_ndarray(format="rgb24"))

    def close(self) -> None:
        for container in self._devices:
            container.close()


class RealSense(_Devices):
    """Intel RealSense cameras through pyrealsense2, which is only imported here."""

    def _open(self) -> None:
        try:
            import pyrealsense2
        except ImportError as missing:
            raise UserError("cameras=realsense needs pyrealsense2: pip install pyrealsense2") from missing
        self._rs = pyrealsense2
        super()._open()

    def _find(self) -> tuple[str, ...]:
        serial = self._rs.camera_info.serial_number
        return tuple(device.get_info(serial) for device in self._rs.context().query_devices())

    def _start(self, device: str) -> Any:
        pipeline, config = self._rs.pipeline(), self._rs.config()
        config.enable_device(device)
        config.enable_stream(self._rs.stream.color, self._rs.format.rgb8, 30)
        pipeline.start(config)
        return pipeline

    def _read(self, index: int) -> Image:
        frames = self._devices[index].wait_for_frames(int(1000 * self._options.camera_timeout))
        return np.asarray(frames.get_color_frame().get_data(), np.uint8)

    def close(self) -> None:
        for pipeline in self._devices:
            pipeline.stop()


def squared(image: Image, size: int) -> Image:
    """(h, w, 3) → (3, size, size), squeezed as the training data's images are."""
    if image.ndim != 3 or image.shape[2] != 3 or min(image.shape[:2]) < 8:
        raise ValueError(f"image of shape {image.shape}, expected (height, width, 3) with at least 8 pixels a side")
    return np.ascontiguousarray(resize(image[None], size)[0].transpose(2, 0, 1))
