"""The four players without a browser: what they answer, that work can be interrupted, and that the commands they show are commands."""

from __future__ import annotations

import importlib.util
import io
import queue
import shlex
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("fastapi", reason="the page needs FastAPI: pip install 'diffusion-forcing[play]'")

from diffusion_forcing.algorithms.planning.algorithm import Planning
from diffusion_forcing.algorithms.planning.candidates import Support
from diffusion_forcing.algorithms.world import World, WorldDiffusionOptions, WorldNetworkOptions, WorldOptions
from diffusion_forcing.datasets.mazes.maze2d import Maze2d
from diffusion_forcing.environments.mazes.layout import MAZES
from diffusion_forcing.experiments.planning import play
from diffusion_forcing.launch.run import plan as plan_of_words
from diffusion_forcing.networks.world import SIZES, WorldSize
from diffusion_forcing.serve.play import plan as plan_view
from diffusion_forcing.serve.play import world as world_view
from diffusion_forcing.serve.play.plan import Place, PlanPlayer, shipped_planners
from diffusion_forcing.serve.play.world import STARTS, Dream, WorldPlayer, encoded
from tests.algorithms import small
from tests.serve.play.pages import playing

SIDE = 16


def composes(text: str) -> dict[str, Any]:
    """The options of a command that a view shows: it is one, and sets nothing twice."""
    words = shlex.split(text)
    keys = [word.partition("=")[0] for word in words]
    assert len(keys) == len(set(keys)), text
    assert words[:3] == ["python", "-m", "main"]
    return plan_of_words(words[3:]).options


# ------------------------------------------------------------------------------------------------ world


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setitem(SIZES, "A", WorldSize(widths=(8, 16, 32, 32), blocks=(0, 1, 1, 1), layers=2, embedding=16))
    torch.manual_seed(0)
    made = World(
        WorldOptions(
            observation_shape=(3, SIDE, SIDE),
            n_frames=6,
            context_frames=3,
            frame_skip=1,
            external_cond_dim=3,
            ema_decay=0.0,
            diffusion=WorldDiffusionOptions(
                timesteps=100, stabilization_level=20, sampling_timesteps=1, architecture=WorldNetworkOptions(window=4)
            ),
        )
    ).eval()
    with torch.no_grad():
        for parameter in made.network.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    return made


class Hall:
    """A simulator whose frames tell how often it was stepped."""

    pose = 0

    def reset(self) -> Any:
        return np.zeros((SIDE, SIDE, 3), np.uint8)

    def step(self, action: int) -> Any:
        self.pose += 1
        return np.full((SIDE, SIDE, 3), self.pose, np.uint8)

    def close(self) -> None: ...


@pytest.fixture
def player(model: World, monkeypatch: pytest.MonkeyPatch) -> WorldPlayer:
    def new(self: WorldPlayer, seed: int | None) -> Any:
        self.truth = Hall()
        frames = np.random.default_rng(seed or 0).integers(0, 256, (3, SIDE, SIDE, 3), np.uint8)
        return list(frames), [None, 0, 2]

    monkeypatch.setattr(WorldPlayer, "_new", new)
    return WorldPlayer(model)


def test_a_dream_is_the_rollout_of_the_model(model: World) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (3, SIDE, SIDE, 3), np.uint8)
    actions = [None, 0, 2, 1, 1, 0, 2, 0, 0]
    hot = torch.zeros(1, len(actions), 3)
    for number, action in enumerate(actions):
        if action is not None:
            hot[0, number, action] = 1
    known = torch.tensor([[action is not None for action in actions]])
    torch.manual_seed(1)
    context = torch.from_numpy(frames).permute(0, 3, 1, 2)[None]
    expected = torch.cat(list(model.stream(context, len(actions), actions=hot, known=known)), dim=1)
    torch.manual_seed(1)
    dream = Dream(model)
    dream.begin(list(frames), actions[:3])
    found = np.stack([dream.step(int(action)) for action in actions[3:] if action is not None])
    np.testing.assert_array_equal(found, (expected[0] * 255).round().byte().permute(0, 2, 3, 1).numpy())


def test_forgetting_shows_the_frames_so_far_as_pure_noise_and_the_new_ones_as_before(model: World) -> None:
    dream = Dream(model)
    dream.begin([np.zeros((SIDE, SIDE, 3), np.uint8)] * 3, [None, 0, 0])
    shown: list[tuple[int, int]] = []
    prefill = dream.sampler._prefill

    def watched(tokens: Any, memory: Any, **more: Any) -> Any:
        shown.append((len(tokens), dream.sampler.forcing.stabilization_level))
        return prefill(tokens, memory, **more)

    dream.sampler._prefill = watched  # type: ignore[method-assign]
    dream.step(0)
    dream.forget()
    assert list(dream.levels) == [100] * 4
    for _ in range(3):
        dream.step(1)
    assert shown == [(3, 20), (4, 100), (1, 20), (1, 20)]
    assert list(dream.levels) == [100, 20, 20, 20]
    dream.show_memory_at(60)
    dream.step(1)
    assert shown[-1] == (1, 60) and dream.levels[-1] == 60


def test_keys_give_frames_of_the_dream_and_of_the_simulator(player: WorldPlayer) -> None:
    with playing(player) as talk:
        assert talk.until("world")[0]["truth"] is True
        begin, data = talk.until("begin")
        assert len(data) == begin["frames"] * SIDE * SIDE * 3
        first = talk.until("frame")[0]["frame"]
        talk.say("world", do="truth", on=True)
        talk.say("world", do="keys", keys=["forward"], number=7)
        talk.say("world", do="keys", keys=[], number=8)
        header, data = talk.until("frame", again=False)  # a short press is one frame
        assert (header["frame"], header["pictures"]) == (first + 1, 2) and header["key"] in (7, 8)
        assert np.frombuffer(data[SIDE * SIDE * 3 :], np.uint8).max() == 1
        talk.say("world", do="forget")
        assert set(talk.until("memory")[0]["levels"]) == {1.0}
        talk.say("world", do="new", seed=3)
        assert talk.until("begin")
        composes(talk.until("command")[0]["text"])


def test_what_the_page_does_not_draw_is_not_dreamt(player: WorldPlayer) -> None:
    with playing(player) as talk:
        last = talk.until("frame")[0]["frame"]
        talk.say("world", do="pace", steps=1, fps=30, noise=0.2)
        talk.say("world", do="wander", on=True)
        for number in range(1, world_view.IN_FLIGHT + 1):
            assert talk.until("frame", again=False)[0]["frame"] == last + number
        with pytest.raises(queue.Empty):
            talk.until("frame", again=False, timeout=0.3)
        talk.say("world", do="seen", frame=last + world_view.IN_FLIGHT)
        assert talk.until("frame", again=False)


def test_a_student_takes_no_more_steps_than_it_was_distilled_for(player: WorldPlayer) -> None:
    options = player.model.options
    player.model.options = replace(options, diffusion=replace(options.diffusion, distilled_steps=2))
    with playing(player) as talk:
        assert talk.until("world")[0]["most"] == 2
        assert "sampling_timesteps=1" in talk.until("command")[0]["text"]
        talk.say("world", do="pace", steps=8, fps=30, noise=0.2)
        assert "sampling_timesteps=2" in talk.until("command")[0]["text"]


def test_a_clip_is_a_film_of_the_frames_enlarged(player: WorldPlayer) -> None:
    av = pytest.importorskip("av")
    with playing(player) as talk:
        last = talk.until("frame")[0]["frame"]
        talk.say("world", do="pause", on=True)
        talk.say("world", do="record", on=True)
        for number in range(4):
            talk.say("world", do="step")
            talk.say("world", do="seen", frame=last + number + 1)
        talk.until("frame", frame=last + 4)
        talk.say("world", do="record", on=False)
        header, film = talk.until("clip")
    with av.open(io.BytesIO(film)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert header["frames"] == len(frames) == 4
    assert frames[0].shape == (6 * SIDE, 6 * SIDE, 3)


def test_a_film_in_memory_shows_what_was_drawn() -> None:
    av = pytest.importorskip("av")
    drawn = np.full((3, 8, 8, 3), [[[200, 40, 90]]], np.uint8)
    with av.open(io.BytesIO(encoded(drawn, fps=10))) as container:
        frame = next(container.decode(video=0)).to_ndarray(format="rgb24")
    assert np.abs(frame.astype(int) - [200, 40, 90]).max() < 12


def test_without_a_simulator_the_shipped_starts_are_used(model: World) -> None:
    with np.load(STARTS, allow_pickle=False) as starts:
        assert starts["frames"].shape[1:] == (8, 64, 64, 3) and starts["actions"].shape == starts["frames"].shape[:2]
    player = WorldPlayer.__new__(WorldPlayer)
    frames, actions = player._shipped(7, 3)
    assert len(frames) == len(actions) == 3 and all(action in (0, 1, 2) for action in actions)


# ------------------------------------------------------------------------------------------------ plan

UMAZE = MAZES["umaze"]


def place(name: str, model: Planning) -> Place:
    """A maze of D4RL with `model` as its planner."""
    options = {"algorithm": model.options, "dataset": Maze2d.Options(env_id=f"maze2d-{name}-v1")}
    planned = SimpleNamespace(options=options, classes={"dataset": Maze2d})
    return Place((f"dataset=maze2d_{name}", f"load=maze2d_{name}_x"), planned, model)


@pytest.fixture
def planner(monkeypatch: pytest.MonkeyPatch) -> PlanPlayer:
    monkeypatch.setattr(plan_view, "AT_THE_GOAL", 3)
    mazes = ("umaze", "medium")
    return PlanPlayer({name: place(name, small.planning(env_id=f"maze2d-{name}-v1")) for name in mazes})


ASK = {"do": "plan", "start": [1, 3], "goal": [1, 1], "matrix": "pyramid", "rows": 4, "guidance": 1, "candidates": 3}


def test_a_plan_comes_with_its_matrix_and_rows_and_the_ball_runs_it(planner: PlanPlayer) -> None:
    with playing(planner) as talk:
        talk.say("plan", do="maze", maze="umaze")
        talk.until("maze", name="umaze")
        talk.say("plan", **ASK)
        composes(talk.until("command")[0]["text"])
        header, data = talk.until("schedule")
        matrix = np.frombuffer(data, np.uint8).reshape(header["rows"], header["tokens"])
        assert (matrix[0] == 4).all() and (matrix[-1] == 0).all() and header["tokens"] == 4
        row, points = talk.until("row")
        assert row["levels"] == matrix[row["row"]].tolist()
        assert np.frombuffer(points, np.float32).size == 3 * 3 * 2  # candidates, every fourth of 12 steps, x and y
        made, points = talk.until("plan")
        assert made["candidates"] == 3 and 0 <= made["best"] < 3 and len(made["valid"]) == 3
        ball, path = talk.until("ball")
        start = np.frombuffer(path, np.float32)[:2]
        assert np.abs(start - [1, 3]).max() < 0.3 and ball["step"] == 0


def test_a_new_plan_ends_the_one_at_hand(planner: PlanPlayer) -> None:
    with playing(planner) as talk:
        talk.say("plan", do="maze", maze="umaze")
        talk.say("plan", **ASK)
        talk.until("plan")
        talk.say("plan", **ASK, seed=5)
        talk.until("schedule")
        while (heard := talk.heard.get(timeout=180)[0])["type"] != "end":
            pass
        assert heard["step"] == UMAZE.max_steps and talk.heard.empty()  # the first one's end was not told


def test_a_ball_at_its_goal_has_arrived(planner: PlanPlayer) -> None:
    with playing(planner) as talk:
        talk.say("plan", do="maze", maze="umaze")
        talk.say("plan", **(ASK | {"goal": ASK["start"]}))
        assert talk.until("end")[0] == {"type": "end", "arrived": True, "step": 1, "most": UMAZE.max_steps}


def test_the_command_plays_the_same_way_from_the_clicked_start_to_the_clicked_goal(planner: PlanPlayer) -> None:
    way = b""
    with playing(planner) as talk:
        talk.say("plan", do="maze", maze="umaze")
        talk.say("plan", **(ASK | {"candidates": 1, "seed": 7}))
        options = composes(talk.until("command")[0]["text"])["experiment"]
        while (heard := talk.heard.get(timeout=180))[0]["type"] != "end":
            way += heard[1] if heard[0]["type"] == "ball" else b""
    assert (options.episodes, options.start, options.goal) == (1, (1, 3), (1, 1))
    place = planner.place
    played = play(
        place.environment(None),
        place.model.planner(),
        place.model.options,
        seed=options.episode_seed,
        start=options.start,
        goal=options.goal,
        device=place.model.device,
    )
    assert np.array_equal(np.frombuffer(way, np.float32).reshape(-1, 2), played.trajectories[0, 1:, :2].astype("f4"))


def test_no_plan_is_shown_after_the_goal_is_reached(planner: PlanPlayer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_view, "AT_THE_GOAL", 40)
    with playing(planner) as talk:
        talk.say("plan", do="maze", maze="umaze")
        talk.say("plan", **(ASK | {"goal": ASK["start"]}))
        kinds = []
        while (heard := talk.heard.get(timeout=180)[0])["type"] != "end":
            kinds.append(heard["type"])
        assert kinds.count("plan") == 1 and kinds.count("ball") > 1  # the one that was asked for


def test_a_planner_with_a_goal_token_draws_its_own_candidates() -> None:
    model = small.planning(env_id="maze2d-umaze-v1", goal_token=True, search="candidates", candidates=6)
    model.support = Support(torch.ones(200, 200, dtype=torch.bool), (-1000.0, -1000.0), 10.0, 1e9)
    with playing(PlanPlayer({"umaze": place("umaze", model)})) as talk:
        shown = talk.until("maze")[0]
        assert (shown["candidates"], shown["guided"]) == (6, False)
        talk.say("plan", **(ASK | {"candidates": 5}))
        assert "algorithm.candidates=5" in talk.until("command")[0]["text"]
        assert talk.until("row")[0]["candidates"] == 5
        assert talk.until("plan")[0]["candidates"] == 1  # the one that it chose
        assert talk.until("ball")


def test_every_shipped_planner_that_sees_ahead_is_found() -> None:
    found = shipped_planners()
    assert [name for name in found if "OGBench" not in name] == [
        "umaze",
        "medium",
        "medium, goal token",
        "large",
        "large, goal token",
    ]
    assert found["medium, OGBench, goal token"][1] == "load=ogbench_medium_goal"
    assert found["medium"] == ("dataset=maze2d_medium", "load=maze2d_medium_x")
    assert found["large, goal token"] == ("dataset=maze2d_large", "load=maze2d_large_goal")


def test_walls_are_drawn_and_a_maze_that_falls_apart_is_refused(planner: PlanPlayer) -> None:
    with playing(planner) as talk:
        rows = ["#####", "#GOO#", "####O#"[:5], "#OOO#", "#####"]
        drawn = [list(row) for row in UMAZE.rows]
        drawn[1][1] = "#"
        talk.say("plan", do="maze", maze="umaze", rows=["".join(row) for row in drawn])
        talk.until("maze", name="umaze", changed=True)
        talk.say("plan", **(ASK | {"goal": [3, 1]}))
        text = talk.until("command")[0]["text"]
        assert composes(text)["dataset"].maze_map == "\\".join("".join(row) for row in drawn)
        for bad in (rows, ["###", "#O#", "###"], ["#####"] * 5):
            talk.say("plan", do="maze", maze="umaze", rows=bad)
            assert talk.until("error")
        talk.say("plan", do="maze", maze="medium", rows=["#####"] * 5)
        assert talk.until("error")
        talk.say("plan", **(ASK | {"goal": [3, 1]}))  # the maze drawn before is still played
        assert talk.until("command")[0]["text"] == text
        talk.say("plan", **(ASK | {"goal": [2, 1]}))
        assert "lies in a wall" in talk.until("error")[0]["text"]
        talk.say("plan", do="maze", maze="nowhere")
        assert talk.until("error")


# ------------------------------------------------------------------------------------------------ forecast


def table(rows: int = 160) -> bytes:
    lines = ["time,north,south"]
    lines += [
        f"2024-{1 + d // 28:02d}-{1 + d % 28:02d},{10 + 5 * (d % 7)},{20 - 2 * (d % 7) + d % 3}" for d in range(rows)
    ]
    return "\n".join(lines).encode()


@pytest.mark.slow
def test_a_table_is_forecast_at_once_then_by_a_small_model_which_keeps_what_it_is_given(tmp_path: Path) -> None:
    pytest.importorskip("gluonts")
    from diffusion_forcing.serve.play.forecast import ForecastPlayer

    class Bare(ForecastPlayer):
        def __init__(self) -> None:
            self._shipped, self._why = None, "no data"

    with playing(Bare()) as talk:
        assert talk.until("nodata")[0]["why"] == "no data"
        talk.put({"do": "table", "name": "../../etc/my sales.csv", "content": table()})
        data = talk.until("data")[0]
        assert data["names"] == ["north", "south"] and data["file"] == "mysales.csv" and data["trained"] is True
        assert talk.until("command")[0]["text"].startswith("diffusion-forcing forecast mysales.csv --horizon ")
        header, values = talk.until("forecast")
        whole = header["history"] + 8 * header["horizon"]
        assert header["way"] == "model" and np.frombuffer(values, np.float32).size == 3 * whole
        talk.say("forecast", do="forecast", window=1, paths=5, way="seasonal")
        assert talk.until("forecast")[0]["way"] == "seasonal"
        talk.say("forecast", do="train", seconds=2)
        assert talk.until("training")[0]["step"] > 0
        (tmp_path / "mysales.csv").write_bytes(table())
        command = talk.until("command")[0]["text"]
        composes(command.replace("mysales.csv", str(tmp_path / "mysales.csv")))
        assert talk.until("forecast")[0]["way"] == "model"
        known = {"series": 1, "step": 2, "value": 55.5}
        talk.say("forecast", do="forecast", window=1, paths=5, known=[known])
        header, values = talk.until("forecast")
        south = np.frombuffer(values, np.float32).reshape(3, whole)[1, header["history"] :].reshape(8, -1)
        np.testing.assert_allclose(south[:7, 2], 55.5, rtol=1e-5)
        assert south[6, 3] > south[0, 3]  # the next step is still open

        for bad in (b"\x1f\x8b" + b"x" * 50, b"PAR1xxxx", b"", b"\xff\x00\x01" * 30, b"a,b\n1,2\n"):
            talk.put({"do": "table", "name": "x.csv", "content": bad})
            error = talk.until("error")[0]["text"]
            assert "\n" not in error and "/tmp" not in error
        talk.say("forecast", do="forecast", window=1, known=[{"series": 9, "step": 0, "value": 1}])
        assert "series 9" in talk.until("error")[0]["text"]


@pytest.mark.slow
def test_the_shipped_forecaster_answers_and_a_new_question_interrupts_it() -> None:
    pytest.importorskip("gluonts")
    if importlib.util.find_spec("simbench") is None:
        pytest.skip("its data is simbench's: pip install --no-deps simbench==1.6.3")
    from diffusion_forcing.serve.play.forecast import ForecastPlayer

    with playing(ForecastPlayer()) as talk:
        assert len(talk.until("data")[0]["names"]) == 96
        talk.say("forecast", do="forecast", paths=200)
        talk.until("step")
        talk.say("forecast", do="forecast", paths=5)
        assert talk.until("idle")
        composes(talk.until("command")[0]["text"])
        header, values = talk.until("forecast")
        assert header["paths"] == 5 and header["series"] == 97
        each = np.frombuffer(values, np.float32).reshape(97, -1)
        np.testing.assert_allclose(each[-1, : header["history"]], each[:-1, : header["history"]].sum(axis=0), rtol=1e-4)


# ------------------------------------------------------------------------------------------------ robot


@pytest.mark.slow
def test_the_robot_is_disturbed_and_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gymnasium_robotics")
    from diffusion_forcing.algorithms.base import TransformerOptions
    from diffusion_forcing.algorithms.robot.algorithm import (
        ImageEncoderOptions,
        Robot,
        RobotDiffusionOptions,
        RobotPolicyOptions,
    )
    from diffusion_forcing.serve.play import robot as robot_view
    from diffusion_forcing.serve.play.robot import RobotPlayer

    monkeypatch.setattr(robot_view, "REST", 60.0)
    monkeypatch.setattr(robot_view, "SECONDS", 0.0)
    torch.manual_seed(0)
    robot = Robot(
        RobotPolicyOptions(
            observation_shape=(6 + 3, 16, 16),
            action_stack=3,
            n_frames=6,
            network="attention",
            action_packing="vector",
            z_shape=(8,),
            part_noise=0.1,
            ema_decay=0.0,
            diffusion=RobotDiffusionOptions(
                sampling_timesteps=1,
                transformer=TransformerOptions(network_size=16, num_layers=1, attn_heads=2, dim_feedforward=16),
                eyes=ImageEncoderOptions(features=8, width=8),
            ),
        )
    ).eval()
    player = RobotPlayer(robot, pixels=32)
    try:
        with playing(player) as talk:
            talk.say("robot", do="speed", speed=4)
            header, data = talk.until("decision")
            assert header["levels"] == [[0, 0, 0]] and len(data) == 4 * 16 * 16 * 3
            talk.say("robot", do="cover", camera=1, on=True)
            assert not talk.until("scene", covered=[False, True])[0]["over"]  # however long an action takes
            monkeypatch.setattr(robot_view, "SECONDS", 0.1)
            assert talk.until("decision")[0]["levels"][-1] == [0, 999, 0]
            talk.say("robot", do="cover", camera=1, on=False)
            talk.until("scene", covered=[False, False])
            assert talk.until("decision")[0]["levels"][-1] == [0, 0, 0]
            talk.say("robot", do="play", on=False)
            talk.say("robot", do="distractor", on=True)
            while "experiment.distractors=1" not in (text := talk.until("command")[0]["text"]):
                composes(text)
            composes(text)
            talk.say("robot", do="forget")
            talk.until("forgot")
            talk.say("robot", do="new", seed=4)
            assert talk.until("episode")[0]["seed"] == 4
            assert talk.until("scene")[0]["actions"] == 0
            monkeypatch.setattr(robot_view, "MAX_ACTIONS", 3)
            talk.say("robot", do="play", on=True)
            talk.until("scene", over=True)
            for on in (True, False, True):  # what is changed between two episodes starts none
                talk.say("robot", do="cover", camera=0, on=on)
                assert talk.until("scene")[0]["over"]
    finally:
        player.close()
