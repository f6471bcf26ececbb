"""A short film of the page, recorded in Chromium while it is played with: docs/pictures/film_play.webp.

diffusion-forcing play --no-browser --port 8123 &
python tools/record_play.py http://127.0.0.1:8123 docs/pictures/film_play.webp
"""

from __future__ import annotations

import argparse
import base64
import io
import shutil
import time
from pathlib import Path
from typing import Any

from animate import animate
from PIL import Image
from playwright.sync_api import Page, sync_playwright

WIDTH, HEIGHT = 1180, 790
FPS = 10
SPEED = 1.6
"""Seconds of the recording in one of the film."""


class Film:
    """The page's pictures while `recording`, as its screencast gives them, with their times."""

    def __init__(self, page: Page) -> None:
        self.pictures: list[tuple[float, Image.Image]] = []
        self.recording = False
        self._offset = self._stopped = 0.0
        self._session = page.context.new_cdp_session(page)
        self._session.on("Page.screencastFrame", self._keep)
        self._session.send("Page.startScreencast", {"format": "png", "everyNthFrame": 1})

    def _keep(self, event: dict[str, Any]) -> None:
        self._session.send("Page.screencastFrameAck", {"sessionId": event["sessionId"]})
        if self.recording:
            picture = Image.open(io.BytesIO(base64.b64decode(event["data"]))).convert("RGB")
            self.pictures.append((time.monotonic() - self._offset, picture))

    def start(self) -> None:
        self._offset += time.monotonic() - self._stopped
        self.recording = True

    def stop(self) -> None:
        self.recording, self._stopped = False, time.monotonic()

    def end(self) -> None:
        self._session.send("Page.stopScreencast")

    def frames(self) -> list[Image.Image]:
        """FPS pictures for every second of the film."""
        first, last = self.pictures[0][0], self.pictures[-1][0]
        found, at = [], 0
        for number in range(int((last - first) / SPEED * FPS) + 1):
            while at + 1 < len(self.pictures) and self.pictures[at + 1][0] <= first + number * SPEED / FPS:
                at += 1
            found.append(self.pictures[at][1])
        return found


def view(page: Page, name: str, selector: str) -> None:
    page.click(f"#tabs a[href='#{name}']")
    page.wait_for_selector(selector, timeout=120_000)
    page.mouse.move(5, 5)
    page.wait_for_timeout(700)


def play(page: Page, film: Film) -> None:
    view(page, "world", ".stage[data-frame]")
    page.keyboard.press("t")
    page.wait_for_timeout(400)
    film.start()
    for _ in range(2):  # it drives by itself, then in another maze
        page.keyboard.press("g")
        page.wait_for_timeout(3000)
        page.keyboard.press("g")
        page.keyboard.press("n")
        page.wait_for_timeout(300)
    film.stop()

    view(page, "plan", ".result.good")
    film.start()
    box = page.locator("canvas.maze").bounding_box()
    assert box is not None
    cell = box["width"] / 8
    page.mouse.click(box["x"] + 6.5 * cell, box["y"] + 1.5 * cell)
    page.wait_for_selector(".result:not(.good)")
    page.wait_for_selector(".result.good, .result.bad", timeout=60_000)
    page.wait_for_timeout(500)
    film.stop()

    view(page, "forecast", '.stage[data-forecast="model"]')
    page.get_by_label("Sample paths").fill("20")
    page.wait_for_selector('.stage[data-paths="20"]', timeout=120_000)
    page.wait_for_timeout(500)
    film.start()
    box = page.locator("canvas.chart").first.bounding_box()
    assert box is not None
    x, y = box["x"] + 0.86 * box["width"], box["y"]
    page.mouse.move(x, y + 200)
    page.mouse.down()
    page.mouse.move(x, y + 20, steps=25)
    page.mouse.up()
    page.wait_for_selector('.stage[data-known="1"]', timeout=120_000)
    page.wait_for_timeout(1500)
    film.stop()

    view(page, "robot", ".stage[data-decisions]")
    film.start()
    page.wait_for_timeout(2500)
    page.locator(".camera").nth(1).click()
    page.wait_for_selector(".lid:visible")
    decisions = page.get_attribute(".stage", "data-decisions")
    page.wait_for_function("before => document.querySelector('.stage').dataset.decisions > before", arg=decisions)
    page.wait_for_timeout(1500)
    film.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("address", help="of a running page")
    parser.add_argument("out", type=Path, help="a .webp file")
    parser.add_argument("--height", type=int, default=440)
    parser.add_argument("--quality", type=int, default=45)
    options = parser.parse_args()
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
        page.set_default_timeout(120_000)
        page.goto(f"{options.address}/?lang=en")
        film = Film(page)
        play(page, film)
        film.end()
        browser.close()
    frames = film.frames()
    animate(frames, options.out, height=options.height, fps=FPS, quality=options.quality)
    print(f"{options.out}: {len(frames)} frames, {options.out.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
