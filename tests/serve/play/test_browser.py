"""The page in a real browser: Chromium without a window, driven by Playwright, against the command as a user starts it.

Screenshots are left in the test's temporary folder (pytest's --basetemp chooses it).
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the page needs FastAPI: pip install 'diffusion-forcing[play]'")
playwright = pytest.importorskip("playwright.sync_api", reason="browser tests need Playwright: pip install playwright")

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
ROOT = Path(__file__).resolve().parents[3]
SLOW_MACHINE = 180_000
"""Milliseconds that a view may take to be there."""
DRAWN = "canvas => canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data.some((v) => v)"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="browser tests need Chromium (Debian: apt-get install chromium)"),
]


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    words = [sys.executable, "-m", "main", "play", "--no-browser", "--port", "0"]
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            assert process.stdout is not None
            found = re.search(r"http://\S+?(?=;)", process.stdout.readline())
            assert found is not None
            yield found[0]
        finally:
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 0
            assert "Traceback" not in process.stdout.read()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def shots(tmp_path: Path) -> Path:
    return tmp_path


@contextlib.contextmanager
def opened(browser: Any, address: str, view: str, **options: Any) -> Iterator[Any]:
    """The page at a view, ready; at the end nothing was logged as an error, no other host was asked, nothing jumped."""
    language = options.pop("lang", "en")
    context = browser.new_context(viewport={"width": 1280, "height": 900}, **options)
    page = context.new_page()
    page.set_default_timeout(SLOW_MACHINE)
    wrong: list[str] = []
    page.on("console", lambda message: wrong.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("request", lambda request: wrong.append(request.url) if not own(request.url, address) else None)
    page.add_init_script(
        "window.jumps = 0; new PerformanceObserver((list) => { for (const entry of list.getEntries()) "
        "if (!entry.hadRecentInput) window.jumps += entry.value; }).observe({type: 'layout-shift', buffered: true});"
    )
    try:
        page.goto(f"{address}/?lang={language}#{view}")
        page.wait_for_selector('[data-state="ready"]')
        if view != "forecast" or importlib.util.find_spec("simbench") is not None:
            assert page.locator("canvas").first.evaluate(DRAWN), "the page says Ready before its first picture"
        yield page
        assert page.evaluate("window.jumps") < 0.1
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "the page is wider than the window"
        assert wrong == []
    finally:
        context.close()


def own(url: str, address: str) -> bool:
    return url.startswith((address, address.replace("http", "ws"), "blob:", "data:"))


def pixels(page: Any, selector: str) -> str:
    """What a canvas shows, as text to compare."""
    return str(page.locator(selector).first.evaluate("canvas => canvas.toDataURL()"))


def test_keys_move_the_picture_of_the_world(browser: Any, address: str, shots: Path) -> None:
    with opened(browser, address, "world") as page:
        page.wait_for_selector(".stage[data-frame]")
        before, first = pixels(page, "canvas.screen"), page.get_attribute(".stage", "data-frame")
        page.keyboard.down("ArrowUp")
        page.wait_for_function("first => +document.querySelector('.stage').dataset.frame > +first + 4", arg=first)
        page.keyboard.up("ArrowUp")
        assert pixels(page, "canvas.screen") != before
        page.keyboard.press("f")  # the memory becomes noise, and the dream goes on
        page.keyboard.press("a")
        page.wait_for_timeout(500)
        page.screenshot(path=shots / "world.png", full_page=True)
        assert "labmaze64_world_student" in page.inner_text(".command code")
        page.keyboard.press("r")
        page.keyboard.down("d")
        page.wait_for_timeout(600)
        page.keyboard.up("d")
        with page.expect_download() as clip:
            page.keyboard.press("r")
        assert clip.value.suggested_filename == "dream.mp4"
        assert Path(clip.value.path()).read_bytes()[4:8] == b"ftyp"


def test_a_click_makes_a_plan_and_so_does_the_keyboard(browser: Any, address: str, shots: Path) -> None:
    with opened(browser, address, "plan", color_scheme="dark") as page:
        page.wait_for_selector(".stage[data-maze]")
        box = page.locator("canvas.maze").bounding_box()
        cell = box["width"] / 8
        page.mouse.click(box["x"] + 6.5 * cell, box["y"] + 1.5 * cell)
        page.wait_for_selector(".stage[data-plan]")
        page.wait_for_timeout(300)
        page.screenshot(path=shots / "plan_rows.png", full_page=True)
        page.wait_for_selector(".result.good, .result.bad")
        page.screenshot(path=shots / "plan.png", full_page=True)
        assert page.evaluate("document.documentElement.dataset.theme") == "dark"
        page.focus("canvas.maze")
        for key in ("ArrowLeft", "Enter"):
            page.keyboard.press(key)
        page.wait_for_selector(".stage[data-end] .result:not(.good):not(.bad)")


def test_a_csv_makes_a_fan_chart_and_a_point_can_be_dragged(browser: Any, address: str, shots: Path) -> None:
    pytest.importorskip("gluonts")
    rows = [f"2024-{1 + d // 28:02d}-{1 + d % 28:02d},{10 + 5 * (d % 7)},{30 - d % 5}" for d in range(150)]
    with opened(browser, address, "forecast", lang="zh") as page:
        if importlib.util.find_spec("simbench") is not None:
            page.wait_for_selector('.stage[data-forecast="model"]')
            box = page.locator("canvas.chart").first.bounding_box()
            x = box["x"] + 0.9 * box["width"]
            page.mouse.move(x, box["y"] + 200)
            page.mouse.down()
            page.mouse.move(x, box["y"] + 60, steps=4)
            page.mouse.up()
            page.wait_for_selector('.stage[data-known="1"]')
            page.screenshot(path=shots / "forecast.png", full_page=True)
        before = pixels(page, "canvas.chart")
        csv = {"name": "sales.csv", "mimeType": "text/csv", "buffer": "\n".join(["day,north,south", *rows]).encode()}
        page.set_input_files("input[type=file]", csv)
        page.wait_for_selector('.stage[data-forecast="model"][data-file="sales.csv"]')
        page.wait_for_timeout(200)
        assert pixels(page, "canvas.chart") != before
        assert "sales.csv" in page.inner_text(".command code")
        assert page.evaluate("document.documentElement.lang") == "zh-CN"
        page.screenshot(path=shots / "forecast_csv.png", full_page=True)


def test_a_covered_camera_shows_as_covered(browser: Any, address: str, shots: Path) -> None:
    pytest.importorskip("gymnasium_robotics")
    with opened(browser, address, "robot") as page:
        page.wait_for_selector(".stage[data-decisions]")
        page.locator(".camera").nth(1).click()
        page.wait_for_selector(".camera[aria-pressed=true] .lid:not([hidden])")
        assert page.locator(".lid:visible").count() == 1
        assert "blocking" in page.inner_text(".command code")
        page.screenshot(path=shots / "robot.png", full_page=True)


def test_the_views_fit_a_phone_and_a_second_tab_waits(browser: Any, address: str, shots: Path) -> None:
    with opened(browser, address, "world") as page:
        page.set_viewport_size({"width": 375, "height": 760})
        page.evaluate("window.jumps = 0")
        second = page.context.new_page()
        second.goto(f"{address}/#world")
        second.wait_for_selector('[data-state="taken"]')
        second.close()
        for view in ("world", "plan", "forecast", "robot"):
            page.click(f"#tabs a[href='#{view}']")
            page.wait_for_selector(f'.view.{view}[data-state="ready"]')
            page.wait_for_timeout(500)
            page.evaluate("window.jumps = 0")
            assert page.evaluate("document.documentElement.scrollWidth") <= 375
            page.screenshot(path=shots / f"phone_{view}.png", full_page=True)


def test_the_keyboard_reaches_everything_and_shows_where_it_is(browser: Any, address: str) -> None:
    with opened(browser, address, "world") as page:
        page.wait_for_selector(".stage[data-frame]")
        reached = set()
        for _ in range(40):
            page.keyboard.press("Tab")
            reached.add(
                page.evaluate(
                    "document.activeElement.innerText || document.activeElement.type || document.activeElement.id"
                )
            )
            width = page.evaluate("getComputedStyle(document.activeElement).outlineWidth")
            assert width == "3px" or page.evaluate("document.activeElement === document.body")
        text = " ".join(map(str, reached))
        assert all(word in text for word in ("Plan", "New maze", "Forget the past", "range", "Copy")), text
