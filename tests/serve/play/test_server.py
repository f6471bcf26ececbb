"""The page's server over real sockets: what it serves, whom it lets in, and that nothing a page says harms it."""

from __future__ import annotations

import contextlib
import json
import random
import re
import threading
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the page needs FastAPI: pip install 'diffusion-forcing[play]'")

from websockets.exceptions import ConnectionClosed, InvalidStatus

from diffusion_forcing.errors import UserError
from diffusion_forcing.launch.cli import main
from diffusion_forcing.serve.play import messages, server
from diffusion_forcing.serve.play.plan import shipped_planners
from diffusion_forcing.serve.play.server import MOST_BYTES, STATIC, PlayOptions, is_own_name
from diffusion_forcing.serve.play.session import Session
from tests.serve.play.pages import ask, page, serving, unpacked

VALID: dict[str, list[dict[str, Any]]] = {
    "world": [
        {"do": "keys", "keys": ["forward", "left"], "number": 3},
        {"do": "pace", "steps": 2, "fps": 12, "noise": 0.2},
        {"do": "record", "on": True},
        {"do": "forget"},
        {"do": "new", "seed": 3},
        {"do": "seen", "frame": 1},
    ],
    "plan": [
        {"do": "maze", "maze": "umaze", "rows": ["#####", "#OOO#", "#####"]},
        {"do": "plan", "start": [1, 1], "goal": [1, 3], "matrix": "pyramid", "rows": 5, "guidance": 2, "candidates": 3},
        {"do": "stop"},
    ],
    "forecast": [
        {"do": "forecast", "window": 1, "paths": 20, "way": "model", "known": [{"series": 1, "step": 2, "value": 3.5}]},
        {"do": "train", "seconds": 20},
        {"do": "shipped"},
    ],
    "robot": [
        {"do": "cover", "camera": 1, "on": True},
        {"do": "distractor", "on": True},
        {"do": "speed", "speed": 2},
        {"do": "forget"},
    ],
}


class Listener:
    """A player that hears."""

    def __init__(self) -> None:
        self.heard: list[Any] = []
        self.left = threading.Event()

    def play(self, session: Session) -> None:
        self.left.clear()
        try:
            while True:
                message = session.receive()
                self.heard.append(message)
                session.send("heard")
        finally:
            self.left.set()

    def close(self) -> None: ...


@pytest.fixture(scope="module")
def listener() -> Listener:
    return Listener()


@pytest.fixture(scope="module")
def address(listener: Listener) -> Any:
    def broken() -> Any:
        raise UserError("robot_swap needs the Fetch arm")

    class Failing(Listener):
        def play(self, session: Session) -> None:
            raise ZeroDivisionError("ours")

    builders = {view: lambda: listener for view in ("world", "forecast")}
    with serving({**builders, "robot": broken, "plan": Failing}) as found:  # type: ignore[dict-item]
        yield found


def comes_next(address: str) -> bool:
    """Whether a page gets the world once the one before has gone: until the server sees that, the model is taken."""
    for _ in range(100):
        with contextlib.suppress(ConnectionClosed), page(address, "world") as connection:
            return bool(next_of(connection, "ready"))
        time.sleep(0.1)
    return False


def next_of(connection: Any, kind: str) -> dict[str, Any]:
    while True:
        header, _ = unpacked(connection.recv(timeout=60))
        if header["type"] == kind:
            return header


def ends(connection: Any) -> bool:
    """Whether the server closes the connection, whatever it says before."""
    try:
        while True:
            connection.recv(timeout=60)
    except ConnectionClosed:
        return True
    except TimeoutError:
        return False


# ------------------------------------------------------------------------------------------------ files


def test_the_page_is_served_from_the_package_with_a_policy_that_allows_no_other_host(address: str) -> None:
    for path, start in (("/", b"<!doctype html>"), ("/static/app.js", b"//"), ("/static/style.css", b"/*")):
        status, headers, body = ask(address, path)
        assert status == 200 and body.startswith(start)
        assert "default-src 'none'" in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"


def test_no_file_of_the_page_names_another_host() -> None:
    for file in STATIC.iterdir():
        if file.suffix != ".npz":
            found = re.findall(r"""(?:https?:|["'(])//[^\s"'`)]+""", file.read_text("utf-8"))
            assert set(found) <= {"http://www.w3.org/2000/svg"}, file


@pytest.mark.parametrize(
    "path",
    ["/static/../server.py", "/static/%2e%2e%2fserver.py", "/static/..%5cserver.py", "//etc/passwd", "/static//etc/passwd",
     "/static/starts.npz/..", "/docs", "/openapi.json", "/static/"],
)  # fmt: skip
def test_no_other_file_can_be_asked_for(address: str, path: str) -> None:
    assert ask(address, path)[0] == 404


def test_another_sites_name_does_not_lead_here(address: str) -> None:
    assert ask(address, "/", Host="evil.example:8000")[0] == 403
    assert [is_own_name(name) for name in ("localhost:8000", "127.0.0.1", "[::1]:8000", "192.168.0.7:1", "x.org:1", "")] == [
        True, True, True, True, False, False,
    ]  # fmt: skip


# ------------------------------------------------------------------------------------------------ sockets


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://127.0.0.1:1"])
def test_a_page_of_another_origin_is_refused(address: str, origin: str) -> None:
    with pytest.raises(InvalidStatus, match="403"):
        page(address, "world", origin=origin)


def test_an_unknown_view_is_refused(address: str) -> None:
    with pytest.raises(InvalidStatus, match="403"):
        page(address, "secrets")


def test_every_message_of_a_page_reaches_its_player(address: str, listener: Listener) -> None:
    with page(address, "world") as connection:
        listener.heard.clear()
        for message in VALID["world"]:
            connection.send(json.dumps(message))
            next_of(connection, "heard")
    assert [message["do"] for message in listener.heard] == [message["do"] for message in VALID["world"]]


def test_a_second_page_is_told_that_the_model_is_taken_and_comes_next(address: str) -> None:
    with page(address, "world") as first:
        next_of(first, "ready")
        with page(address, "world") as second:
            assert unpacked(second.recv(timeout=60))[0]["type"] == "taken"
            assert ends(second)
        first.send(json.dumps({"do": "forget"}))
        assert next_of(first, "heard")
    with page(address, "world") as third:
        assert next_of(third, "ready")


def test_leaving_a_page_ends_its_work(address: str, listener: Listener) -> None:
    with page(address, "world") as connection:
        next_of(connection, "ready")
    assert listener.left.wait(60)


def test_a_view_that_cannot_be_built_says_why_and_the_others_go_on(address: str, capfd: Any) -> None:
    with page(address, "robot") as connection:
        assert "Fetch arm" in next_of(connection, "failed")["text"]
        assert ends(connection)
        with page(address, "robot") as second:  # it need not wait for the first to leave
            assert "Fetch arm" in next_of(second, "failed")["text"]
    for _ in range(2):
        with page(address, "plan") as connection:
            assert "ZeroDivisionError" in next_of(connection, "failed")["text"]
    with page(address, "world") as connection:
        assert next_of(connection, "ready")
    assert "ZeroDivisionError" in capfd.readouterr().err


def test_a_shutdown_waits_for_a_player_that_is_slow_to_leave_and_prints_nothing(capfd: Any) -> None:
    class Slow(Listener):
        def play(self, session: Session) -> None:
            while not session.closed:
                time.sleep(0.01)
            time.sleep(2)  # longer than the server waits for its connections
            self.left.set()

    slow = Slow()
    with serving({"world": lambda: slow}) as found:
        connection = page(found, "world").__enter__()
        next_of(connection, "ready")
    assert slow.left.is_set()
    assert capfd.readouterr().err == ""


# ------------------------------------------------------------------------------------------------ malformed messages


def malformed(view: str, random: random.Random) -> str:
    """Text that is no message of `view`: noise, other JSON, or a valid message with something wrong in it."""
    kind = random.randrange(6)
    if kind == 0:
        return "".join(
            chr(random.choice([*range(1, 128), 0xE9, 0x4E16, 0x1F600])) for _ in range(random.randrange(1, 200))
        )
    if kind == 1:
        return json.dumps(
            random.choice([None, 1, -1.5, "x", [], [[[]]], {}, {"do": None}, {"do": ["keys"]}, {"do": "rm -rf"}])
        )
    if kind == 2:
        return "[" * random.randrange(1, 5000)
    message = dict(random.choice(VALID[view]))
    key = random.choice(list(message))
    wrong = [
        None,
        "NaN",
        1e400,
        -(10**30),
        10**30,
        [[]],
        {"$ref": "#"},
        "../../etc/passwd",
        "\0",
        True,
        ["forward"] * 50,
    ]
    if kind == 3:
        message[f"{key}_{random.randrange(9)}"] = random.choice(wrong)
    elif kind == 4:
        message["do"] = str(message["do"]) + chr(random.randrange(33, 127))
    else:
        del message[key]
        message[key.upper() + "x"] = random.choice(wrong)
    text = json.dumps(message)
    return text.replace("Infinity", "1e999")


def test_a_thousand_malformed_messages_are_answered_and_change_nothing(
    address: str, listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "RATE", 1e9)
    monkeypatch.setattr(server, "BURST", 1e9)
    chance = random.Random(7)
    with page(address, "world") as connection:
        next_of(connection, "ready")
        listener.heard.clear()
        for _ in range(1000):
            connection.send(malformed("world", chance))
            answer = next_of(connection, "error")
            assert "\n" not in answer["text"] and len(answer["text"]) < 400
        connection.send(b"\x00\xff" * 10)
        next_of(connection, "error")
        connection.send(json.dumps({"do": "forget"}))
        next_of(connection, "heard")
    assert [message["do"] for message in listener.heard] == ["forget"]


@pytest.mark.parametrize("view", messages.VIEWS)
def test_what_is_wrong_is_refused_and_what_is_right_is_read_in_every_view(view: str) -> None:
    chance = random.Random(3)
    for message in VALID[view]:
        assert messages.read(view, json.dumps(message))["do"] == message["do"]
    for _ in range(1000):
        with pytest.raises(UserError):
            messages.read(view, malformed(view, chance))
    with pytest.raises(UserError, match="characters"):
        messages.read(view, " " * 20_000)


def test_a_table_cannot_come_over_the_socket() -> None:
    with pytest.raises(UserError):
        messages.read("forecast", json.dumps({"do": "table", "name": "x", "content": "eA=="}))


def test_too_many_messages_are_ignored_and_then_end_the_connection(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "RATE", 1.0)
    monkeypatch.setattr(server, "BURST", 5.0)
    monkeypatch.setattr(server, "PATIENT", 50)
    with page(address, "world") as connection:
        next_of(connection, "ready")
        with contextlib.suppress(ConnectionClosed):
            for _ in range(200):
                connection.send(json.dumps({"do": "forget"}))
                time.sleep(0.001)
        assert ends(connection)


def test_a_message_that_is_far_too_long_ends_the_connection_alone(address: str) -> None:
    with page(address, "world") as connection:
        next_of(connection, "ready")
        connection.send("x" * 200_000)
        assert ends(connection)
    assert comes_next(address)


# ------------------------------------------------------------------------------------------------ uploads


def test_a_table_reaches_the_session_that_its_token_names_and_no_other(address: str, listener: Listener) -> None:
    origin = {"Origin": f"http://{address}"}
    assert ask(address, "/series", method="POST", body=b"x", **origin, X_Session="guess")[0] == 403
    with page(address, "forecast") as connection:
        token = next_of(connection, "ready")["token"]
        listener.heard.clear()
        assert ask(address, "/series", method="POST", body=b"x", **origin, X_Session="guess")[0] == 403
        assert ask(address, "/series", method="POST", body=b"x", X_Session=token)[0] == 403
        too_much = b"x" * (MOST_BYTES + 1)
        assert ask(address, "/series", method="POST", body=too_much, **origin, X_Session=token)[0] == 413
        assert (
            ask(address, "/series", method="POST", body=b"t,a\n1,2\n", **origin, X_Session=token, X_Name="a.csv")[0]
            == 200
        )
        next_of(connection, "heard")
    assert [(table["name"], table["content"]) for table in listener.heard] == [("a.csv", b"t,a\n1,2\n")]


def test_one_table_waits_at_most_and_the_next_is_taken_once_it_is_read() -> None:
    session = Session(None, None)
    table = {"do": "table", "name": "a.csv", "content": b"t,a"}
    session.put(table)
    with pytest.raises(UserError, match="not been read yet"):
        session.put(table)
    session.put({"do": "other"})  # what is not a table may wait beside it
    assert session.receive(0) == table
    session.put(table)
    assert [session.receive(0)["do"] for _ in range(2)] == ["other", "table"]


# ------------------------------------------------------------------------------------------------ the command


def test_only_a_loopback_address_is_local() -> None:
    local = {"127.0.0.1": True, "::1": True, "localhost": True, "0.0.0.0": False, "192.168.1.2": False, "::": False}
    assert {host: PlayOptions(host=host).local for host in local} == local


@pytest.mark.parametrize("words", [["--port", "99999"], ["--prot", "1"], ["--port", "many"], ["--host", ""], ["extra"]])
def test_a_mistyped_command_is_one_line(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["play", *words]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_port_in_use_is_one_line(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["play", "--no-browser", "--port", address.rpartition(":")[2]]) == 2
    assert "--port" in capsys.readouterr().err


def test_colours_of_text_have_enough_contrast() -> None:
    """WCAG AA: 4.5 for text, in both themes, on every ground that text stands on."""
    css = (STATIC / "style.css").read_text("utf-8")
    for selector in (":root {", ':root[data-theme="dark"] {'):
        block = css.split(selector, 1)[1].split("}", 1)[0]
        named = dict(part.strip()[2:].split(": ", 1) for part in block.split(";") if part.strip().startswith("--"))
        for text in ("ink", "soft", "accent", "good", "bad"):
            for ground in ("bg", "surface", "raised") if text in ("ink", "soft") else ("bg", "surface"):
                assert contrast(named[text], named[ground]) >= 4.5, (selector, text, ground)
        assert contrast(named["on-accent"], named["accent"]) >= 4.5
        assert contrast(named["edge"], named["surface"]) >= 3


def contrast(one: str, other: str) -> float:
    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_every_text_of_the_page_has_a_chinese_one() -> None:
    strings = re.compile(r'\bt\(\s*"((?:[^"\\]|\\.)*)"')
    keys = re.findall(r'^  "((?:[^"\\]|\\.)*)": "', (STATIC / "zh.js").read_text("utf-8"), re.MULTILINE)
    files = [file for file in STATIC.glob("*.js") if file.name != "zh.js"]
    used = {text for file in files for text in strings.findall(file.read_text("utf-8"))}
    assert len(used) > 100 and (used | set(shipped_planners())) - set(keys) == set()


def test_the_files_of_the_page_are_part_of_the_package() -> None:
    assert {file.name for file in STATIC.iterdir()} >= {
        "index.html",
        "app.js",
        "world.js",
        "plan.js",
        "forecast.js",
        "robot.js",
    }
    assert Path(server.__file__).parent == STATIC.parent
