"""A video as a small animated WebP for the front page: cropped, scaled to one height, thinned, its last frame held.

    python tools/animate.py outputs/latest-run/pictures/validation_plan_from_noise.mp4 docs/pictures/film_plan.webp \\
        --crop 14,34,494,394 --every 2 --fps 15
"""

from __future__ import annotations

import argparse
from pathlib import Path

import av
from PIL import Image

HOLD_SECONDS = 1.0


def animate(frames: list[Image.Image], out: Path, *, height: int = 180, fps: float = 12, quality: int = 60) -> None:
    """Write frames of one size as an animation that repeats for ever."""
    width = round(frames[0].width * height / frames[0].height)
    small = [frame.resize((width, height), Image.Resampling.LANCZOS) for frame in frames]
    durations = [round(1000 / fps)] * len(small)
    durations[-1] += round(1000 * HOLD_SECONDS)
    small[0].save(out, save_all=True, append_images=small[1:], duration=durations, loop=0, quality=quality, method=6)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("video", type=Path)
    parser.add_argument("out", type=Path, help="a .webp file")
    parser.add_argument("--crop", help="left,top,right,bottom in pixels of the video")
    parser.add_argument("--start", type=int, default=0, help="the first frame that is taken")
    parser.add_argument("--every", type=int, default=1, help="take every n-th frame")
    parser.add_argument("--fps", type=float, default=12)
    parser.add_argument("--height", type=int, default=180)
    options = parser.parse_args()
    with av.open(str(options.video)) as video:
        frames = [frame.to_image() for frame in video.decode(video=0)]
    frames = [*frames[options.start :: options.every], frames[-1]]
    if options.crop:
        left, top, right, bottom = map(int, options.crop.split(","))
        frames = [frame.crop((left, top, right, bottom)) for frame in frames]
    animate(frames, options.out, height=options.height, fps=options.fps)
    print(f"{options.out}: {len(frames)} frames, {options.out.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
