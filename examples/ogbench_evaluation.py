"""OGBench's own evaluation loop, with one of our planners as its agent.

    python examples/ogbench_evaluation.py dataset=ogbench_pointmaze_giant load=RUN_ID [EPISODES] [key=value …]
    python examples/ogbench_evaluation.py dataset=ogbench_antmaze_giant load=ogbench_giant_goal [EPISODES] [film=ant.webp]

Needs `pip install 'diffusion-forcing[ogbench]'`. The environments, their noise on starts and goals, the length of an
episode and what counts as success are OGBench's; EPISODES (50) are played of each of the five tasks. `film` shows the
first episode from above, every third step, as OGBench renders it; without a display, set MUJOCO_GL=egl.
"""

from __future__ import annotations

import sys
from typing import Any

import gymnasium
import numpy as np
import ogbench.locomaze  # noqa: F401  (registers the environments)
from PIL import Image

from diffusion_forcing import PlanningAgent
from diffusion_forcing.checkpoints import format as checkpoints
from diffusion_forcing.datasets.mazes.antmaze import load_executor
from diffusion_forcing.experiments.checkpointing import load_weights
from diffusion_forcing.launch.run import plan


def agent_of(words: list[str]) -> tuple[PlanningAgent, str]:
    """The agent of a command line like that of a run, and the name of its environment."""
    chosen = plan(["experiment=exp_planning", "algorithm=df_planning", *words])
    planning: Any = chosen.classes["algorithm"](chosen.options["algorithm"])
    if chosen.checkpoint is None:
        raise SystemExit("give a planner: load=RUN_ID, a name or a path")
    load_weights(planning, checkpoints.load(chosen.checkpoint))
    executor = getattr(chosen.options["dataset"], "executor", None)
    if executor is not None:
        return PlanningAgent(planning, "ant", load_executor(executor)), planning.options.env_id
    return PlanningAgent(planning), planning.options.env_id


def evaluate(agent: Any, env: Any, task: int, episodes: int) -> tuple[float, float]:
    """Success and mean steps of `episodes` episodes of a task: what `impls/utils/evaluation.py` of OGBench does."""
    success, steps = [], []
    for _ in range(episodes):
        observation, info = env.reset(options={"task_id": task})
        goal, done, step = info["goal"], False, 0
        while not done:
            action = agent.sample_actions(observations=observation, goals=goal, seed=step, temperature=0)
            observation, _, terminated, truncated, info = env.step(np.clip(action, -1, 1))
            done, step = terminated or truncated, step + 1
        success.append(info["success"])
        steps.append(step)
    return float(np.mean(success)), float(np.mean(steps))


def film(agent: Any, env: Any, file: str) -> None:
    """Write an episode of the first task as an animated WebP."""
    frames: list[Image.Image] = []

    class Filmed(gymnasium.Wrapper):  # type: ignore[type-arg]
        def step(self, action: Any) -> Any:
            self.count = getattr(self, "count", -1) + 1
            if self.count % 3 == 0:
                frames.append(Image.fromarray(np.asarray(self.render())))
            return super().step(action)

    evaluate(agent, Filmed(env), 1, 1)
    frames[0].save(file, save_all=True, append_images=frames[1:], duration=60, loop=0, quality=60)


def main() -> None:
    words = [word for word in sys.argv[1:] if not word.isdigit() and not word.startswith("film=")]
    file = next((word.removeprefix("film=") for word in sys.argv[1:] if word.startswith("film=")), None)
    episodes = next((int(word) for word in sys.argv[1:] if word.isdigit()), 50)
    agent, env_id = agent_of(words)
    env = gymnasium.make(env_id)
    if file:
        film(agent, gymnasium.make(env_id, width=480, height=480), file)
    np.random.seed(0)  # noqa: NPY002  (OGBench draws its noise from NumPy's global state)
    results = [evaluate(agent, env, task, episodes) for task in range(1, 6)]
    for task, (success, steps) in enumerate(results, start=1):
        print(f"task {task}: success {success:.1%}, {steps:.0f} steps")
    print(f"{env_id}: success {np.mean([success for success, _ in results]):.1%} over {5 * episodes} episodes")


if __name__ == "__main__":
    main()
