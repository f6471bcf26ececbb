"""The page loads nothing, runs nothing, escapes everything, and says what the run says."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest

from diffusion_forcing.tracking import page
from diffusion_forcing.tracking.page import label, line_chart, log_ticks, smoothed, ticks
from diffusion_forcing.tracking.records import Curve, read_runs
from diffusion_forcing.tracking.run import Run

VOID = {"meta", "img", "br", "hr", "link", "input", "line", "polyline", "polygon", "circle"}
HOSTILE = "<script>alert('x')</script>\"><img src=http://evil.example/x onerror=alert(1)>&amp;"


class Reader(HTMLParser):
    """Collects tags, attributes and text, and fails on tags that do not nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


ENDS = {"": 0.0, "_low": -0.005, "_high": 0.005}


def full_run(outputs: Path, name: str = "maze2d_medium_x") -> Run:
    run = Run.create(
        outputs, name, command=["/somewhere/main.py", "algorithm=df_planning", f"+name={name}", "load=old"]
    )
    run.config(f"name: {name}\n")
    for step in range(60):
        run.log(step, {"training/loss": 1 / (step + 1), name: step})
    run.log(60, {"once": 5.0})
    run.summary(
        {"planning/success_rate": 0.98, "planning/success_rate_stderr": 0.014, "planning/episodes": 100, name: name}
    )
    run.image(name, np.zeros((4, 4, 3), np.uint8), caption=name)
    run.video(name, np.zeros((3, 16, 16, 3), np.uint8), fps=5, caption=name)
    run.table(name, [{name: name, "reward": 1.23456789}], caption=name)
    run.finish(name if name == HOSTILE else "finished")
    return run


def read(run: Run) -> Reader:
    return Reader((run.folder / "index.html").read_text("utf-8"))


@pytest.mark.parametrize("name", ["maze2d_medium_x", HOSTILE])
def test_the_page_loads_nothing_from_elsewhere_and_runs_nothing(tmp_path: Path, name: str) -> None:
    run = full_run(tmp_path, name)
    for tag, attributes in read(run).tags:
        assert tag not in ("script", "link", "iframe", "object", "embed", "base")
        assert not [key for key in attributes if key.startswith("on")]
        for key in ("src", "poster"):
            assert (attributes.get(key) or "data:").startswith("data:")
        if "href" in attributes:
            assert (run.folder / unquote(str(attributes["href"]))).is_file()
    text = (run.folder / "index.html").read_text("utf-8")
    assert "url(" not in text and "@import" not in text


def test_a_hostile_name_is_shown_as_the_text_it_is(tmp_path: Path) -> None:
    reader = read(full_run(tmp_path, HOSTILE))
    assert reader.text.count(HOSTILE) >= 5  # title, heading, status, picture, table …
    assert [tag for tag, _ in reader.tags].count("img") == 1


def test_the_page_says_what_the_run_says(tmp_path: Path) -> None:
    run = full_run(tmp_path)
    assert "resume=" not in " ".join(read(run).text)  # nothing to go on with yet
    (run.checkpoints / "step-00000001").mkdir(parents=True)
    (run.checkpoints / "step-00000001" / "checkpoint.json").write_text("{}")
    run.finish()
    reader = read(run)
    text = " ".join(reader.text)
    for wanted in (run.id, "finished", "98.0 ± 1.4", "100", "training/loss", "name: maze2d_medium_x", "1.2346"):
        assert wanted in text, wanted
    kinds = [tag for tag, _ in reader.tags]
    assert (kinds.count("svg"), kinds.count("img"), kinds.count("video")) == (2, 1, 1)
    assert f"python -m main resume={run.id}" in reader.text
    assert f"python -m main algorithm=df_planning +name=maze2d_medium_x load={run.id}" in text
    assert "refresh" not in str(reader.tags)


def test_many_results_come_after_the_pictures_and_fold_out_except_the_first(tmp_path: Path) -> None:
    run = Run.create(tmp_path, "rollouts")
    frames = {f"test/mse_frame_{n}{end}": 0.01 * n + by for n in range(1, 40) for end, by in ENDS.items()}
    run.summary(frames)
    run.summary({"test/psnr": 21.5, "test/psnr_low": 20.26, "test/psnr_high": 22.26}, first=["test/no", "test/psnr"])
    run.image("sheet", np.zeros((4, 4, 3), np.uint8))
    run.finish()
    reader = read(run)
    rows = [str(row["title"]) for tag, row in reader.tags if tag == "tr" and "title" in row]
    assert rows == ["test/psnr", *(f"test/mse_frame_{n}" for n in range(1, 40))]
    assert "21.5 (20.3 … 22.3)" in reader.text and "0.0100 (0.0050 … 0.0150)" in reader.text
    tags = [tag for tag, _ in reader.tags]
    assert tags.index("img") < tags.index("tr") and tags[: tags.index("details")].count("tr") == 1 + page.SHORT
    assert f"{len(rows) - page.SHORT} more" in reader.text


def test_the_commands_of_a_resumed_run_have_what_was_changed_when_it_was_resumed(tmp_path: Path) -> None:
    started = ["main.py", "dataset=toy", "experiment.training.max_steps=40", "outputs=here", "+seed=3"]
    run = Run.create(tmp_path, "toy", command=started)
    (run.checkpoints / "step-00000001").mkdir(parents=True)
    (run.checkpoints / "step-00000001" / "checkpoint.json").write_text("{}")
    for words in (
        ["experiment.training.max_steps=80", "outputs=here"],
        ["seed=4", "~dataset.x", "+experiment.training.max_steps=90"],
    ):
        run = Run.open(run.folder, command=["main.py", f"resume={run.id}", *words])
    run.finish()
    same = "python -m main dataset=toy outputs=here seed=4 '~dataset.x' +experiment.training.max_steps=90"
    again = [text for text in read(run).text if text.startswith("python -m main")][-3:]
    assert again == [f"python -m main resume={run.id} outputs=here", f"{same} load={run.id}", same]


def test_a_running_page_reloads_itself(tmp_path: Path) -> None:
    run = Run.create(tmp_path, "running")
    assert any(attributes.get("http-equiv") == "refresh" for _, attributes in read(run).tags)


def test_videos_too_large_for_the_page_are_linked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "VIDEO_BYTES", 10)
    sources = [attributes["src"] for tag, attributes in read(full_run(tmp_path)).tags if tag == "video"]
    assert sources == ["pictures/maze2d_medium_x.mp4"]


def test_a_long_log_makes_a_small_page(tmp_path: Path) -> None:
    run = Run.create(tmp_path, "long")
    lines = (json.dumps({"step": step, "loss": 1.0 / (1 + step)}) for step in range(20_000))
    (run.folder / "metrics.jsonl").write_text("\n".join(lines))
    run.finish()
    assert (run.folder / "index.html").stat().st_size < 100_000


@pytest.mark.parametrize(
    ("name", "value", "stderr", "shown"),
    [
        ("planning/success_rate", 0.987, 0.0123, ("98.7 ± 1.2", "%")),
        ("planning/success_rate", 1.0, 0.0, ("100.0", "%")),
        ("planning/first_reach", 176.44, 3.21, ("176.4 ± 3.2", "steps")),
        ("planning/seconds_per_plan", 0.0981234, 0.0026, ("0.0981 ± 0.0026", "s")),
        ("planning/episodes", 1200, None, ("1,200", "")),
        ("planning/other", None, None, ("not a number", "")),
        ("large", 12345.678, 150.0, ("12,346 ± 150", "")),
    ],
)
def test_headline_numbers_are_rounded_to_their_error(
    name: str, value: float, stderr: float, shown: tuple[str, str]
) -> None:
    assert page.quantity(name, {name: value, f"{name}_stderr": stderr}) == shown


@pytest.mark.parametrize(
    ("words", "command"),
    [
        (["/a/main.py", "x=1"], ["python", "-m", "main", "x=1"]),
        (["/usr/bin/diffusion-forcing", "x=1"], ["diffusion-forcing", "x=1"]),
        (["mine.py", "x=1"], ["python", "mine.py", "x=1"]),
        (["/a/diffusion_forcing/__main__.py", "forecast"], ["python", "-m", "diffusion_forcing", "forecast"]),
        ([], ["python", "-m", "main"]),
    ],
)
def test_the_command_is_the_one_a_person_types(words: list[str], command: list[str]) -> None:
    assert page.started_with(words) == command


def test_ticks_are_round_and_inside() -> None:
    assert ticks(0, 9600, 5) == [0, 2000, 4000, 6000, 8000]
    assert ticks(-0.12, 0.31, 5) == [-0.1, 0.0, 0.1, 0.2, 0.3]
    assert ticks(3, 3, 5) == [3]
    assert log_ticks(0.03, 2.5) == pytest.approx([0.05, 0.1, 0.2, 0.5, 1, 2])
    assert log_ticks(1e-9, 1e5) == pytest.approx([1e-9, 1e-6, 1e-3, 1, 1e3])
    assert [label(value) for value in (0, 20_000, 1_500_000, 0.00002, -3)] == ["0", "20k", "1.5M", "2e−5", "−3"]


@pytest.mark.parametrize(
    "values", [[1.0, 1.0], [0.0, 0.0], [-5.0, 3.0], [1e-300, 1e300], [1e-8, 1.0, 0.5], [1e30, 2e30]]
)
def test_charts_keep_every_curve_inside_the_picture(values: list[float]) -> None:
    curve = Curve()
    for step, value in enumerate(values):
        curve.add(step * 10, value)
    reader = Reader(line_chart("loss", {"one": curve.points()}))
    for _tag, attributes in reader.tags:
        for pair in (attributes.get("points") or "").split():
            x, y = map(float, pair.split(","))
            assert 0 <= x <= 440 and 0 <= y <= 240


def test_only_what_changes_is_drawn_and_a_logarithmic_axis_says_so(tmp_path: Path) -> None:
    run = Run.create(tmp_path, "curves")
    for step in range(3):
        run.log(step, {"epoch": 0, "lr": 1e-3, "training/loss": 1.0 / (1 + step), "share": step / 2})
    run.finish()
    reader = read(run)
    labels = [attributes["aria-label"] for tag, attributes in reader.tags if tag == "svg"]
    assert labels == ["training/loss over steps", "share over steps"]
    assert [text for text in reader.text if "logarithmic" in text] == ["logarithmic"]
    assert {"epoch", "0.001"} <= set(reader.text)  # constants are rows of the table
    runs = read_runs(tmp_path)
    compared = Reader(page.comparison_page(tmp_path, runs, runs))
    assert [tag for tag, _ in compared.tags].count("svg") == 2


def test_smoothing_keeps_a_constant_and_does_not_lag_behind_a_slope() -> None:
    assert smoothed([2.0] * 100) == pytest.approx([2.0] * 100)
    slope = [float(i) for i in range(100)]
    assert smoothed(slope)[10:90] == pytest.approx(slope[10:90])
