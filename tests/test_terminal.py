"""Output that cannot be written is dropped, and the program goes on."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from diffusion_forcing.terminal import ForgivingStream, clean, counted, forgiving_output, say

ROOT = Path(__file__).resolve().parents[1]
PRINTS = """
import sys
from diffusion_forcing.terminal import forgiving_output
with forgiving_output():
    for number in range(3000):
        print("x̂₀ of batch", number, flush=number % 2 == 0)
        print("loss", number, file=sys.stderr)
open(sys.argv[1], "w").close()
sys.exit(7)
"""


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
@pytest.mark.parametrize("broken", ["nothing", "stdout", "stderr", "both", "absent", "full disk"])
def test_a_program_ends_as_it_would_whoever_reads_its_output(tmp_path: Path, encoding: str, broken: str) -> None:
    reading, closed = os.pipe()
    os.close(reading)
    with open("/dev/full", "w") as full, open(os.devnull, "w") as fine:
        streams = {
            "nothing": (fine, fine),
            "stdout": (closed, fine),
            "stderr": (fine, closed),
            "both": (closed, closed),
            "absent": (fine, fine),
            "full disk": (full, full),
        }
        command = [sys.executable, "-c", PRINTS, str(tmp_path / "ended")]
        if broken == "absent":
            command = ["sh", "-c", '"$@" >&- 2>&-', "sh", *command]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": encoding}
        stdout, stderr = streams[broken]
        ended = subprocess.run(command, stdout=stdout, stderr=stderr, env=environment, timeout=60, check=False)
    os.close(closed)
    assert ended.returncode == 7
    assert (tmp_path / "ended").exists()


def test_characters_that_cannot_be_encoded_are_replaced() -> None:
    bytes_ = io.BytesIO()
    stream = ForgivingStream(io.TextIOWrapper(bytes_, "ascii"))
    assert stream.write("x̂₀ = 1\n") == len("x̂₀ = 1\n")
    stream.flush()
    assert bytes_.getvalue() == b"x?? = 1\n"
    assert stream.encoding == "ascii"


def test_the_streams_are_put_back(capsys: pytest.CaptureFixture[str]) -> None:
    before = sys.stdout, sys.stderr
    with forgiving_output():
        assert sys.stdout is not before[0]
        print("printed")
    assert (sys.stdout, sys.stderr) == before
    assert capsys.readouterr().out == "printed\n"


@pytest.mark.slow
@pytest.mark.parametrize("words", [["--help"], ["--cfg"], ["dataset=nothing"]])
def test_commands_end_as_they_would_when_their_reader_has_gone(words: list[str]) -> None:
    command = [sys.executable, "-m", "diffusion_forcing", *words]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "ascii"}
    whole = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    reading, closed = os.pipe()
    os.close(reading)
    gone = subprocess.run(command, env=environment, stdout=closed, stderr=subprocess.PIPE, timeout=60, check=False)
    os.close(closed)
    assert gone.returncode == whole.returncode == (2 if "=" in words[0] else 0)
    assert gone.stderr.decode() == whole.stderr
    assert "Traceback" not in whole.stderr


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b]0;title\x07", "?]0;title?"),
        ("\x1b[2J\x9b31mred", "?[2J?31mred"),
        ("a\r\nb\tc\x7f", "a  b c?"),
        ("exe.\u202egnp", "exe.?gnp"),
        ("\ud800", "?"),
        ("x̂₀ 中文 🎉", "x̂₀ 中文 🎉"),
    ],
)
def test_escape_sequences_and_what_reverses_text_are_replaced(text: str, shown: str) -> None:
    assert clean(text) == shown
    assert clean(text * 50, 20) == (clean(text * 50)[:19] + "…" if len(text) * 50 > 20 else shown)


def test_lines_stay_lines(capsys: pytest.CaptureFixture[str]) -> None:
    say("one\ntwo \x1b[31m")
    assert capsys.readouterr().out == "one\ntwo ?[31m\n"


def test_one_thing_is_counted_in_the_singular() -> None:
    assert [counted(n, "window") for n in (0, 1, 2, 1000)] == ["0 windows", "1 window", "2 windows", "1,000 windows"]
