"""The policy server over a real socket: what it answers, whose memory is whose, and that nothing a client sends or fails to do ends it."""

from __future__ import annotations

import importlib.util
import os
import random
import re
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

zmq = pytest.importorskip("zmq", reason="the policy server needs pyzmq: pip install 'diffusion-forcing[robot]'")
Image = pytest.importorskip("PIL.Image", reason="cameras=folder reads pictures with pillow")

from diffusion_forcing.algorithms.base import TransformerOptions  # noqa: E402
from diffusion_forcing.algorithms.robot.algorithm import (  # noqa: E402
    ImageEncoderOptions,
    Robot,
    RobotDiffusionOptions,
    RobotPolicyOptions,
)
from diffusion_forcing.datasets.video.container import read_image, squeeze  # noqa: E402
from diffusion_forcing.errors import UserError  # noqa: E402
from diffusion_forcing.serve.cameras import open_cameras, squared  # noqa: E402
from diffusion_forcing.serve.policy_server import PolicyServer, ServeOptions  # noqa: E402

STACK, SIZE = 3, 16
NAMES = ("front", "over")
EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "robot_client.py"


@pytest.fixture(scope="module")
def robot() -> Robot:
    torch.manual_seed(0)
    diffusion = RobotDiffusionOptions(
        sampling_timesteps=1,
        transformer=TransformerOptions(network_size=16, num_layers=1, attn_heads=2, dim_feedforward=16),
        eyes=ImageEncoderOptions(features=8, width=8),
    )
    options = RobotPolicyOptions(
        observation_shape=(6 + STACK, SIZE, SIZE),
        action_stack=STACK,
        n_frames=6,
        network="attention",
        action_packing="vector",
        z_shape=(8,),
        part_noise=0.1,
        ema_decay=0.0,
        diffusion=diffusion,
    )
    return Robot(options).eval()


def show(folder: Path, *, seed: int = 0) -> None:
    """A new picture for each camera, put there whole."""
    for number, name in enumerate(NAMES):
        (folder / name).mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng([seed, number]).integers(0, 256, (24, 32, 3), np.uint8)
        temporary = folder / f"{name}.tmp"
        Image.fromarray(pixels).save(temporary, format="png")
        os.replace(temporary, folder / name / f"{seed:06d}.png")


@contextmanager
def serving(robot: Robot, folder: Path, **changes: Any) -> Iterator[tuple[PolicyServer, list[str]]]:
    show(folder)
    said: list[str] = []
    settings = {"address": "tcp://127.0.0.1:0", "cameras": "folder", "folder": str(folder), "camera_timeout": 600.0}
    server = PolicyServer(robot, ServeOptions(**{**settings, **changes}), cameras=NAMES, say=said.append)
    over = threading.Event()
    thread = threading.Thread(target=server.serve, args=(over.is_set,))
    thread.start()
    try:
        yield server, said
    finally:
        over.set()
        thread.join(10)
        assert not thread.is_alive()
        server.close()


@contextmanager
def client(server: PolicyServer) -> Iterator[Any]:
    context = zmq.Context()
    socket = context.socket(zmq.REQ)
    socket.setsockopt(zmq.LINGER, 0)
    socket.connect(server.address)

    def ask(*frames: bytes) -> bytes:
        socket.send_multipart(frames)
        assert socket.poll(10_000), "no answer in 10 s"
        reply: bytes = socket.recv()
        return reply

    try:
        yield ask
    finally:
        socket.close()
        context.term()


def actions(reply: bytes) -> np.ndarray:
    assert len(reply) == STACK * 8 * 4, reply[:100]
    return np.frombuffer(reply, np.float32).reshape(STACK, 8)


def test_a_request_is_answered_by_a_stack_of_actions_and_stop_forgets(robot: Robot, tmp_path: Path) -> None:
    with serving(robot, tmp_path) as (server, _), client(server) as ask:
        first = actions(ask(b"request"))
        assert np.isfinite(first).all()
        np.testing.assert_allclose(np.linalg.norm(first[:, 3:7], axis=1), 1, atol=1e-5)
        actions(ask(b"request"))
        (session,) = server.sessions._sessions.values()
        assert session.policy._history is not None
        assert ask(b"stop") == b"stopped"
        assert session.policy._history is None
        actions(ask(b"request"))
        assert server.report().startswith("3 requests answered, p50 ")
        assert ask(b"stop") == b"stopped"  # also before anything was asked
        with client(server) as other:
            assert other(b"stop") == b"stopped"


@pytest.mark.parametrize(
    ("frames", "said"),
    [
        ([b""], "unknown request"),
        ([b"REQUEST"], "unknown request"),
        ([b"\xff\x00\x93NUMPY"], "unknown request"),
        ([b"cos\nsystem\n(S'true'\ntR."], "unknown request"),
        ([b"x" * 5000], "5,000 bytes"),
        ([b"a" * 3000, b"b" * 3000], "6,000 bytes"),
        ([b"x"] * 500, "got 500"),
        ([b"a", b"b", b"c"], "got 3"),
        ([b"../../etc", b"request"], "letters, digits"),
        ([b"", b"request"], "letters, digits"),
        ([b"@stolen", b"request"], "letters, digits"),
        ([b"n" * 65, b"request"], "letters, digits"),
    ],
)
def test_what_is_no_request_is_answered_with_an_error_in_one_line(
    robot: Robot, tmp_path: Path, frames: list[bytes], said: str
) -> None:
    with serving(robot, tmp_path) as (server, _), client(server) as ask:
        reply = ask(*frames)
        assert reply.startswith(b"error: ") and said.encode() in reply and b"\n" not in reply
        actions(ask(b"request"))
        assert server.refused == 1


def test_a_session_belongs_to_one_client_and_has_a_memory_of_its_own(robot: Robot, tmp_path: Path) -> None:
    with serving(robot, tmp_path) as (server, _), client(server) as one, client(server) as two:
        actions(one(b"arm", b"request"))
        assert b"another client" in two(b"arm", b"request")
        actions(two(b"leg", b"request"))
        actions(two(b"request"))
        assert len(server.sessions) == 3
        assert two(b"arm", b"stop") == b"stopped"  # a client that fell over comes back under another connection
        actions(two(b"arm", b"request"))
        assert b"another client" in one(b"arm", b"request")


def test_sessions_are_few_and_silent_ones_make_room(
    robot: Robot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(robot, tmp_path, max_sessions=2) as (server, _), client(server) as ask, client(server) as other:
        actions(ask(b"a", b"request"))
        actions(ask(b"request"))
        assert b"are in use" in other(b"request")
        monkeypatch.setattr("diffusion_forcing.serve.policy_server.SILENT", 0.0)
        actions(other(b"request"))  # a nameless one that is silent
        assert len(server.sessions) == 2
    with serving(robot, tmp_path, session_timeout=0.05) as (server, _), client(server) as ask:
        actions(ask(b"a", b"request"))
        time.sleep(0.6)
        assert len(server.sessions) == 0


@pytest.mark.slow
def test_two_hundred_requests_among_bad_ones_and_dropped_clients(robot: Robot, tmp_path: Path) -> None:
    drawn = random.Random(0)
    with serving(robot, tmp_path) as (server, said):
        context = zmq.Context()

        def torment(number: int) -> None:
            socket = context.socket(drawn.choice([zmq.REQ, zmq.DEALER]))
            socket.setsockopt(zmq.LINGER, 0 if number % 2 else 100)
            socket.connect(server.address)
            junk = [drawn.randbytes(drawn.randrange(9000)) for _ in range(drawn.randrange(1, 5))]
            socket.send_multipart([b"request"] if number % 3 == 0 else junk)
            socket.close()  # it does not wait for an answer

        with client(server) as ask:
            for number in range(200):
                if number % 20 == 0:
                    torment(number)
                actions(ask(b"good", b"request"))
        context.term()
        assert not [line for line in said if "failed" in line]
        assert server.report().startswith(("200", "201", "202", "203", "204"))
        assert any("requests answered" in line for line in said)


def test_a_fault_of_ours_is_an_error_to_one_client(
    robot: Robot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(robot, tmp_path) as (server, said), client(server) as ask:
        with monkeypatch.context() as broken:
            broken.setattr("diffusion_forcing.serve.policy_server.Session.request", lambda self: 1 / 0)
            assert ask(b"request") == b"error: the server failed (ZeroDivisionError); send stop and start again"
        actions(ask(b"request"))
        assert "ZeroDivisionError" in said[0]


def test_the_example_is_a_client(robot: Robot, tmp_path: Path) -> None:
    module = example()
    with serving(robot, tmp_path) as (server, _):
        asking = module.PolicyClient(server.address, session="example")
        asking.stop()
        assert asking.request().shape == (STACK, 8)
        stranger = module.PolicyClient(server.address, session="bad id")
        with pytest.raises(RuntimeError, match="letters, digits"):
            stranger.request()
        asking.close()
        stranger.close()
    gone = module.PolicyClient("tcp://127.0.0.1:9", timeout=0.05, tries=2)
    with pytest.raises(TimeoutError, match="is serve-policy running"):
        gone.request()
    gone.close()


def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("robot_client", EXAMPLE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def folder_of(path: Path, **changes: Any) -> Any:
    settings = {"cameras": "folder", "folder": str(path), "camera_timeout": 600.0, **changes}
    return open_cameras(ServeOptions(**settings), names=NAMES, size=SIZE, number=0)


def test_the_newest_whole_picture_of_a_folder_is_what_a_camera_sees(tmp_path: Path) -> None:
    show(tmp_path, seed=1)
    show(tmp_path, seed=2)
    cameras = folder_of(tmp_path)
    pictures, state = cameras.observe(None)
    pixels = np.random.default_rng([2, 0]).integers(0, 256, (24, 32, 3), np.uint8)
    assert pictures.shape == (2, 3, SIZE, SIZE) and state.shape == (8,)
    assert np.array_equal(pictures[0], squared(pixels, SIZE))
    (tmp_path / "front" / "9.png").write_bytes(b"\x89PNG half of")
    assert np.array_equal(cameras.observe(None)[0], pictures)
    for path in (tmp_path / "front").iterdir():
        path.unlink()
    one, _ = cameras.observe(None)
    assert len(np.unique(one[0])) == 1 and np.array_equal(one[1], pictures[1])  # a camera that is gone is blocked
    for path in (tmp_path / "over").iterdir():
        os.utime(path, (0, 0))
    with pytest.raises(UserError, match=r"no camera gives an image.*older than"):
        cameras.observe(None)


def stamped(folder: Path, name: str, value: int, *, ahead: float) -> None:
    """A grey picture of the first camera, its time ahead of the clock."""
    (folder / NAMES[0]).mkdir(exist_ok=True)
    Image.fromarray(np.full((32, 32, 3), value, np.uint8)).save(folder / NAMES[0] / name)
    os.utime(folder / NAMES[0] / name, (time.time() + ahead,) * 2)


def seen(cameras: Any) -> int:
    return int(cameras._read(0).mean())


def test_a_picture_is_as_old_as_our_clock_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr("diffusion_forcing.serve.cameras.time.monotonic", lambda: now[0])
    cameras = folder_of(tmp_path, camera_timeout=2.0)
    stamped(tmp_path, "a.png", 10, ahead=3600)
    with pytest.raises(OSError, match="older than 2 s"):
        seen(cameras)  # nobody knows when it came
    now[0] += 0.5
    stamped(tmp_path, "b.png", 200, ahead=0)
    stamped(tmp_path, "c.png", 20, ahead=7200)
    assert seen(cameras) == 200
    now[0] += 1.5
    stamped(tmp_path, "d.png", 90, ahead=3600)  # a camera whose clock is wrong: it came since the last look
    assert seen(cameras) == 90
    now[0] += 2.1
    with pytest.raises(OSError, match="older than 2 s"):
        seen(cameras)
    stamped(tmp_path, "a.png", 60, ahead=0.5)
    assert seen(cameras) == 60


def test_only_small_regular_files_are_pictures_and_nothing_is_waited_for(tmp_path: Path) -> None:
    stamped(tmp_path, "a.png", 50, ahead=-1)
    folder = tmp_path / NAMES[0]
    os.mkfifo(folder / "fifo.png")
    (folder / "zero.png").symlink_to("/dev/zero")
    (folder / "folder.png").mkdir()
    cameras = folder_of(tmp_path)
    assert seen(cameras) == 50
    Image.new("1", (12_000, 12_000)).save(folder / "large.png")
    (folder / "script.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 99 99\n")
    assert seen(cameras) == 50


def test_an_address_that_is_a_file_is_refused_and_the_file_kept(robot: Robot, tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("kept")
    (tmp_path / "link").symlink_to("nowhere")
    for name in ("precious", "link"):
        with pytest.raises(UserError, match=f"{name} exists"):
            PolicyServer(robot, ServeOptions(address=f"ipc://{tmp_path / name}"), cameras=NAMES)
    assert (tmp_path / "precious").read_text() == "kept"
    with (
        serving(robot, tmp_path / "images", address=f"ipc://{tmp_path / 'socket'}") as (server, _),
        client(server) as ask,
    ):
        actions(ask(b"request"))
        with pytest.raises(UserError, match="socket exists"):
            PolicyServer(robot, ServeOptions(address=server.address), cameras=NAMES)
        actions(ask(b"request"))
    assert not (tmp_path / "socket").exists()


@pytest.mark.parametrize(
    "address", ["tcp://127.0.0.1", "tcp://127.0.0.1:x", "tcp://127.0.0.1:99999", "tcp://no.host.invalid:1"]
)
def test_an_address_that_cannot_be_is_one_line(robot: Robot, address: str) -> None:
    with pytest.raises(UserError, match="cannot listen at"):
        PolicyServer(robot, ServeOptions(address=address), cameras=NAMES)


def test_where_the_gripper_is_follows_what_was_answered(tmp_path: Path) -> None:
    show(tmp_path)
    cameras = folder_of(tmp_path, home=tuple(range(8)))
    assert cameras.observe(None)[1].tolist() == list(range(8))
    done = np.arange(STACK * 8, dtype=np.float32).reshape(STACK, 8)
    assert cameras.observe(done)[1].tolist() == done[-1].tolist()
    cameras.reset()
    assert cameras.observe(None)[1].tolist() == list(range(8))


@pytest.mark.parametrize("shape", [(48, 64), (64, 48), (32, 32), (16, 16), (33, 47)])
def test_a_served_image_is_resized_as_training_data_is(shape: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    assert np.array_equal(squared(image, 16), squeeze(image[None], 16)[0].transpose(2, 0, 1))
    assert squared(image, 80).shape == (3, 80, 80)  # a small camera's image is enlarged
    with pytest.raises(ValueError, match="at least 8 pixels"):
        squared(image[:4], 16)


def test_a_folder_is_read_as_training_data_is(tmp_path: Path) -> None:
    """Upright as EXIF says, 16 bits of grey as 8, and the whole width of the image."""
    show(tmp_path)
    y, x = np.mgrid[:24, :32]
    pixels = np.stack([x * 8, y * 10, 0 * x], -1).astype(np.uint8)
    exif = Image.Exif()
    exif[0x112] = 6
    for name, file, image, words in (
        ("front", "9.jpg", Image.fromarray(pixels), {"exif": exif, "quality": 95}),
        ("over", "9.png", Image.fromarray((y * 2700).astype(np.uint16)), {}),
    ):
        image.save(tmp_path / name / file, **words)
    images, _ = folder_of(tmp_path).observe(None)
    for camera, file in enumerate(("front/9.jpg", "over/9.png")):
        trained = squeeze(read_image((tmp_path / file).read_bytes())[None], SIZE)[0]
        assert np.array_equal(images[camera].transpose(1, 2, 0), trained)
    assert images[0, 1, 0, 0] > images[0, 1, 0, -1] + 150  # what was the left edge is at the top now
    assert images[1].max() < 250


def test_cameras_that_are_not_there_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="does not exist"):
        folder_of(tmp_path / "nowhere")
    options = ServeOptions(cameras="v4l2", devices=(str(tmp_path / "video0"), str(tmp_path / "video1")))
    with pytest.raises(UserError, match="cannot open camera"):
        open_cameras(options, names=NAMES, size=SIZE, number=0)
    with pytest.raises(UserError, match="2 cameras are needed, 1"):
        open_cameras(ServeOptions(cameras="v4l2", devices=("/dev/video0",)), names=NAMES, size=SIZE, number=0)
    monkeypatch.setitem(sys.modules, "pyrealsense2", None)
    with pytest.raises(UserError, match="pip install pyrealsense2"):
        open_cameras(ServeOptions(cameras="realsense"), names=NAMES, size=SIZE, number=0)


@pytest.mark.slow
def test_the_simulated_world_moves_by_what_was_answered() -> None:
    pytest.importorskip("gymnasium_robotics")
    cameras = open_cameras(ServeOptions(seed=3), names=NAMES, size=SIZE, number=0)
    try:
        before, state = cameras.observe(None)
        down = np.tile(np.r_[1.32, 0.75, 0.6, 0, 0.7071, 0, 0.7071, 0].astype(np.float32), (5, 1))
        after, moved = cameras.observe(down)
        assert not np.array_equal(before, after)
        np.testing.assert_allclose(moved[:3], down[0, :3], atol=0.03)
        cameras.reset()
        assert np.abs(cameras.observe(None)[1] - state).max() < 0.02
    finally:
        cameras.close()


def test_an_address_in_use_is_one_line(robot: Robot, tmp_path: Path) -> None:
    with serving(robot, tmp_path) as (server, _), pytest.raises(UserError, match="cannot listen at"):
        PolicyServer(robot, ServeOptions(address=server.address), cameras=NAMES)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"address": "localhost"}, "address is 'localhost'"),
        ({"cameras": "folder"}, "needs folder=DIR"),
        ({"home": (1.0,)}, "home has 1"),
        ({"camera_timeout": 0.0}, "camera_timeout is 0.0"),
        ({"max_sessions": 0}, "max_sessions"),
        ({"blocking": 2.0}, "blocking is 2.0"),
        ({"seed": -1}, "seed"),
    ],
)
def test_settings_that_cannot_be_are_one_line(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=re.escape(said)):
        ServeOptions(**changes)


@pytest.mark.parametrize(
    ("address", "local"),
    [("tcp://127.0.0.1:5555", True), ("tcp://*:5555", False), ("tcp://0.0.0.0:1", False), ("ipc:///tmp/x", True)],
)
def test_only_loopback_is_local(address: str, local: bool) -> None:
    assert ServeOptions(address=address).local is local
    assert ServeOptions().local
