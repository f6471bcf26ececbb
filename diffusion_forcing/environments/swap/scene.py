"""The MuJoCo scene of robot_swap: the Fetch arm of Gymnasium-Robotics at a table with three slots, an apple and an
orange.

Lengths are in metres. The robot stands at x ≈ 0.4 facing +x, with y to its left. As in the Fetch tasks of
Gymnasium-Robotics, a weld attaches the gripper to a mocap body, which drags it along.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
from mujoco.rendering.classic import gl_context
from numpy.typing import NDArray

from diffusion_forcing.errors import UserError

OBJECTS = ("apple", "orange")
SLOT_X, SLOTS_Y = 1.32, (0.57, 0.75, 0.93)
"""Centres of the three slots on the table."""
TABLE = 0.4
"""Height of the table top."""
CAMERAS = ("front", "over")
HOME = np.array([1.18, 0.75, TABLE + 0.3])
"""Where the gripper waits: away from the slots, so that its position does not show what has been done."""
DOWN = np.array([0.0, np.sqrt(0.5), 0.0, np.sqrt(0.5)])
"""The gripper looking down, as a quaternion (x, y, z, w)."""
DISTRACTORS = 2
OFF_TABLE = (0.3, 3.0, 0.1)
"""Where unused distractors lie, out of sight."""
_BASE = {"robot0:slide0": 0.4049, "robot0:slide1": 0.48, "robot0:slide2": 0.0}

_MJCF = """<mujoco model="robot_swap">
  <compiler angle="radian" meshdir="{assets}/stls/fetch" texturedir="{assets}/textures"/>
  <option timestep="0.002"/>
  <visual><quality shadowsize="0" offsamples="0"/><global offwidth="512" offheight="512"/></visual>
  <include file="{assets}/fetch/shared.xml"/>
  <worldbody>
    <geom name="floor0" pos=".8 .75 0" size="1.2 1.2 1" type="plane" condim="3" material="floor_mat"/>
    <include file="{assets}/fetch/robot.xml"/>
    <body pos="1.3 .75 .2" name="table0"><geom size=".25 .35 .2" type="box" mass="2000" rgba=".45 .32 .2 1"/></body>
    {slots}{objects}{distractors}
    <camera name="front" pos="2.0 .75 1.0" xyaxes="0 1 0 -.604 0 .797" fovy="38"/>
    <camera name="over" pos="1.33 .13 1.12" xyaxes="1 0 0 0 .734 .679" fovy="44"/>
    <light directional="true" ambient=".25 .25 .25" diffuse=".75 .75 .75" castshadow="false" pos="0 0 4" dir="0 0 -1"/>
  </worldbody>
  <actuator>
    <position ctrllimited="true" ctrlrange="0 .2" joint="robot0:l_gripper_finger_joint" kp="30000"/>
    <position ctrllimited="true" ctrlrange="0 .2" joint="robot0:r_gripper_finger_joint" kp="30000"/>
  </actuator>
</mujoco>"""
_SLOT = '<geom name="slot{i}" type="cylinder" size=".07 .004" pos="{x} {y} {z}" rgba=".95 .95 1 1"/>'
_OBJECT = (
    '<body name="{name}" pos="{x} {y} {z}"><joint name="{name}" type="free" damping="0.001"/>'
    '<geom type="sphere" size=".025" mass=".1" condim="6" friction="1.5 .05 .02" rgba="{colour}"/></body>'
)
_DISTRACTOR = (
    '<body name="distractor{i}" pos="0 0 0" mocap="true">'
    '<geom type="box" size=".022 .022 .022" contype="0" conaffinity="0" rgba="{colour}"/></body>'
)


def build_model() -> mujoco.MjModel:
    """The compiled scene. UserError where the assets are not installed."""
    found = importlib.util.find_spec("gymnasium_robotics")
    if found is None or found.origin is None:
        raise UserError("robot_swap needs the Fetch arm of gymnasium-robotics: pip install 'diffusion-forcing[robot]'")
    assets = Path(found.origin).parent / "envs" / "assets"
    colours = dict(zip(OBJECTS, (".85 .08 .08 1", "1 .6 .05 1"), strict=True))
    model = mujoco.MjModel.from_xml_string(
        _MJCF.format(
            assets=assets,
            slots="".join(_SLOT.format(i=i, x=SLOT_X, y=y, z=TABLE + 0.004) for i, y in enumerate(SLOTS_Y)),
            objects="".join(
                _OBJECT.format(name=name, colour=colours[name], x=SLOT_X, y=SLOTS_Y[i], z=TABLE + 0.04)
                for i, name in enumerate(OBJECTS)
            ),
            distractors="".join(
                _DISTRACTOR.format(i=i, colour=colour) for i, colour in enumerate((".1 .7 .2 1", ".2 .3 .9 1"))
            ),
        )
    )
    # Weld the gripper to the middle of the mocap body, without an offset.
    for weld in np.flatnonzero(model.eq_type == mujoco.mjtEq.mjEQ_WELD):
        model.eq_data[weld, :3] = model.eq_data[weld, 3:6] = 0
        model.eq_data[weld, 6:10] = [1, 0, 0, 0]
    hand = model.body("robot0:mocap").id
    model.geom_rgba[model.geom_bodyid == hand, 3] = 0  # hide the cross that marks the mocap body
    return model


class SwapScene:
    """The simulation: reset to a layout, move the gripper, render."""

    SUBSTEPS = 50
    """Simulation steps of 2 ms per control step: 10 control steps per second."""

    def __init__(self) -> None:
        self.model = build_model()
        self.data = mujoco.MjData(self.model)
        self._renderers: dict[int, mujoco.Renderer] = {}
        data, model = self.data, self.model
        # Place the robot's base, then let the arm settle at home.
        for name, value in _BASE.items():
            data.joint(name).qpos[0] = value
        mujoco.mj_forward(model, data)
        self._hand = int(model.body("robot0:mocap").mocapid[0])
        data.mocap_pos[:] = OFF_TABLE
        data.mocap_pos[self._hand] = HOME
        data.mocap_quat[self._hand] = _wxyz(DOWN)
        data.ctrl[:] = 0.05
        mujoco.mj_step(model, data, 1500)
        self.offset = self.grip - data.mocap_pos[self._hand]
        for _ in range(2):  # twice: `offset` is the gripper's distance from the mocap body
            data.mocap_pos[self._hand] = HOME - self.offset
            mujoco.mj_step(model, data, 1000)
        self._home = (data.qpos.copy(), data.mocap_pos.copy(), data.mocap_quat.copy())

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_renderers": {}}  # a copy opens its own

    @property
    def grip(self) -> NDArray[np.float64]:
        """(3,) position between the fingertips."""
        return np.array(self.data.site("robot0:grip").xpos)

    @property
    def orientation(self) -> NDArray[np.float64]:
        """(4,) orientation of the gripper, a quaternion (x, y, z, w)."""
        quaternion = np.zeros(4)
        mujoco.mju_mat2Quat(quaternion, self.data.site("robot0:grip").xmat)
        return quaternion[[1, 2, 3, 0]]

    @property
    def opening(self) -> float:
        """Distance of a finger from the middle: 0 closed, 0.05 open."""
        return float(self.data.joint("robot0:r_gripper_finger_joint").qpos[0])

    def reset(self, slots: NDArray[np.int64], jitter: NDArray[np.float64], distractors: NDArray[np.float64]) -> None:
        """Put the arm at home and object i at slots[i] + jitter[i]: (2,), with distractors at (n ≤ 2, 2) on the
        table."""
        data, model = self.data, self.model
        mujoco.mj_resetData(model, data)
        data.qpos[:], data.mocap_pos[:], data.mocap_quat[:] = self._home
        data.ctrl[:] = 0.05
        for name, slot, (dx, dy) in zip(OBJECTS, slots, jitter, strict=True):
            data.joint(name).qpos[:] = [SLOT_X + dx, SLOTS_Y[slot] + dy, TABLE + 0.034, 1, 0, 0, 0]
        self.place_distractors(distractors)
        mujoco.mj_step(model, data, 100)

    def place_distractors(self, places: NDArray[np.float64]) -> None:
        """Distractors on the table at places (n ≤ 2, 2); the others out of sight."""
        for number in range(DISTRACTORS):
            position = (*places[number], TABLE + 0.022) if number < len(places) else OFF_TABLE
            self.data.mocap_pos[int(self.model.body(f"distractor{number}").mocapid[0])] = position

    def move_gripper(self, position: NDArray[np.float64], orientation: NDArray[np.float64], closed: bool) -> None:
        """Spend 0.1 s moving the gripper evenly to `position` (3,) and `orientation` (4,) (x, y, z, w)."""
        data, hand = self.data, self._hand
        start, end = data.mocap_pos[hand].copy(), position - self.offset
        data.mocap_quat[hand] = _wxyz(orientation)
        data.ctrl[:] = 0.0 if closed else 0.05
        parts = 5
        for part in range(1, parts + 1):
            data.mocap_pos[hand] = start + (end - start) * part / parts
            mujoco.mj_step(self.model, data, self.SUBSTEPS // parts)

    @property
    def target(self) -> NDArray[np.float64]:
        """(3,) position the gripper was last moved to."""
        return np.array(self.data.mocap_pos[self._hand] + self.offset)

    def position(self, name: str) -> NDArray[np.float64]:
        """(3,) position of an object."""
        return np.array(self.data.joint(name).qpos[:3])

    def slot_of(self, name: str) -> int:
        """The slot in which an object lies, or −1."""
        x, y, z = self.position(name)
        distance = np.hypot(x - SLOT_X, y - np.array(SLOTS_Y))
        return int(distance.argmin()) if distance.min() < 0.05 and z < TABLE + 0.06 else -1

    def render(self, camera: str, size: int) -> NDArray[np.uint8]:
        """(size, size, 3) image of a camera. UserError where rendering is not possible."""
        if size not in self._renderers:
            _use_egl_without_display()
            try:
                self._renderers[size] = mujoco.Renderer(self.model, size, size)
            except Exception as failure:
                raise UserError(
                    f"MuJoCo cannot render here ({failure}); install a software OpenGL (Debian: apt-get install "
                    "libegl1 libosmesa6) "
                    "and set MUJOCO_GL=egl or osmesa"
                ) from failure
        renderer = self._renderers[size]
        renderer.update_scene(self.data, camera)
        renderer.scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = 0
        renderer.scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = 0
        return np.array(renderer.render(), np.uint8)

    def close(self) -> None:
        """Free the renderers."""
        for renderer in self._renderers.values():
            renderer.close()
        self._renderers.clear()


def _use_egl_without_display() -> None:
    """Let MuJoCo render with EGL where there is no display; it chose at import, so its module is loaded again."""
    if sys.platform == "linux" and not os.environ.get("DISPLAY") and not os.environ.get("MUJOCO_GL"):
        os.environ["MUJOCO_GL"] = "egl"
        importlib.reload(gl_context)


def _wxyz(quaternion: NDArray[np.float64]) -> NDArray[np.float64]:
    return quaternion[[3, 0, 1, 2]]
