"""First frames of a few test mazes for the page's world view, for machines without ViZDoom: serve/play/static/starts.npz.

python tools/play_starts.py
"""

from __future__ import annotations

import numpy as np

from diffusion_forcing.environments.labmaze import LabMaze, Walker
from diffusion_forcing.serve.play.world import STARTS

MAZES, FRAMES = 6, 8


def main() -> None:
    frames, actions = [], []
    for seed in range(MAZES):
        with LabMaze.random(seed) as maze:
            walker = Walker(maze.walls, np.random.default_rng(seed))
            seen, done = [maze.reset()], [-1]
            while len(seen) < FRAMES:
                done.append(walker.act(maze.pose))
                seen.append(maze.step(done[-1]))
        frames.append(np.stack(seen))
        actions.append(done)
    np.savez_compressed(STARTS, frames=np.stack(frames), actions=np.array(actions, np.int8))
    print(f"{STARTS}: {STARTS.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
