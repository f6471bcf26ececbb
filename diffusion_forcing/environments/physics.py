"""The point mass of D4RL's maze2d, in MuJoCo: a sphere on two slide joints among boxes.

One step is 0.01 s of Euler integration; the two motors push with 100 N at full action and each joint brakes with 1 N s/m. The sphere weighs
4.19 kg (radius 0.1 m, density 1000 kg/m3). Velocities are clipped to +-5 m/s *before* a step, so the largest one seen after it is 5.23.
The frame is D4RL's: joint positions are measured from a particle at world (1.2, 1.2) while the wall of cell (i, j) stands at world
(i + 1, j + 1). All numbers are D4RL's own; a test compares trajectories with gymnasium-robotics' PointMaze.
"""

from __future__ import annotations

from collections.abc import Sequence

import mujoco
import numpy as np
from numpy.typing import NDArray

from diffusion_forcing.environments.mazes import Maze

MAX_VELOCITY = 5.0
"""m/s, clipped before every step."""
TIMESTEP = 0.01
"""s of one step."""
_PARTICLE = 1.2
"""World x and y of the particle where both joints are 0."""
_WALL = 1.0
"""World x of the middle of a wall in row 0."""

_MJCF = """<mujoco model="maze2d">
  <compiler inertiafromgeom="true" angle="radian"/>
  <option timestep="{timestep}" gravity="0 0 0" iterations="20" integrator="Euler"/>
  <default>
    <joint damping="1" limited="false"/>
    <geom friction=".5 .1 .1" density="1000" margin="0.002" condim="1"/>
  </default>
  <worldbody>
    <body name="particle" pos="{particle} {particle} 0">
      <geom type="sphere" size="0.1" contype="1" conaffinity="0"/>
      <joint name="ball_x" type="slide" axis="1 0 0"/>
      <joint name="ball_y" type="slide" axis="0 1 0"/>
    </body>
{walls}
  </worldbody>
  <actuator>
    <motor joint="ball_x" ctrlrange="-1 1" ctrllimited="true" gear="100"/>
    <motor joint="ball_y" ctrlrange="-1 1" ctrllimited="true" gear="100"/>
  </actuator>
</mujoco>"""


def build_model(maze: Maze) -> mujoco.MjModel:
    """MuJoCo model of `maze`. Walls that no free cell touches are left out: nothing can reach them."""
    walls = [
        f'    <geom name="wall_{i}_{j}" type="box" pos="{i + _WALL} {j + _WALL} 0" size="0.5 0.5 0.2" contype="0" conaffinity="1"/>'
        for i, j in np.argwhere(maze.walls & _beside(~maze.walls))
    ]
    return mujoco.MjModel.from_xml_string(_MJCF.format(timestep=TIMESTEP, particle=_PARTICLE, walls="\n".join(walls)))


def _beside(free: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """(H, W), True where one of the eight neighbours is True."""
    padded = np.pad(free, 1)
    height, width = free.shape
    shifted = [padded[i : i + height, j : j + width] for i in range(3) for j in range(3)]
    return np.any(shifted, axis=0)


class PointMass:
    """One particle in a model of `build_model`. `position` and `velocity` are live views of MuJoCo's state, (2,) each, m and m/s."""

    def __init__(self, model: mujoco.MjModel) -> None:
        self.model = model
        self.data = mujoco.MjData(model)
        self.position: NDArray[np.float64] = self.data.qpos
        self.velocity: NDArray[np.float64] = self.data.qvel
        self._ctrl = self.data.ctrl

    def reset(self, position: NDArray[np.floating], velocity: NDArray[np.floating]) -> None:
        """Put the particle at `position` (m) with `velocity` (m/s), forgetting everything before."""
        mujoco.mj_resetData(self.model, self.data)
        self.position[:] = position
        self.velocity[:] = velocity

    def step(self, action: Sequence[float] | NDArray[np.floating]) -> None:
        """Push with `action` (ax, ay), clipped to +-1, for one step of 0.01 s."""
        clip_velocity(self.velocity)
        self._ctrl[0] = action[0]
        self._ctrl[1] = action[1]
        mujoco.mj_step(self.model, self.data)

    def state(self) -> NDArray[np.float64]:
        """Everything a later `set_state` needs to continue bit for bit, warm start of the contact solver included."""
        kind = mujoco.mjtState.mjSTATE_INTEGRATION
        state = np.empty(mujoco.mj_stateSize(self.model, kind))
        mujoco.mj_getState(self.model, self.data, state, kind)
        return state

    def set_state(self, state: NDArray[np.float64]) -> None:
        """Continue from an earlier `state`."""
        mujoco.mj_setState(self.model, self.data, state, mujoco.mjtState.mjSTATE_INTEGRATION)


def clip_velocity(velocity: NDArray[np.float64]) -> None:
    """Clip (2,) `velocity` to +-5 m/s in place; plain comparisons, since this runs a million times in a generation."""
    for axis in (0, 1):
        value = velocity[axis]
        if value > MAX_VELOCITY:
            velocity[axis] = MAX_VELOCITY
        elif value < -MAX_VELOCITY:
            velocity[axis] = -MAX_VELOCITY
