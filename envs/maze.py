"""Mazes as layout strings: walls, and cells in which an agent, a goal or a ball can be."""

from collections import Counter

import jax
import jax.numpy as jnp
import mujoco
import numpy as np

from envs.base import BOX, GoalEnv, UsageError

# One string a row: `#` a wall, `r` where the agent starts, `g` where a goal can be, `b` where a ball can be, `.` empty.
LAYOUTS = {  # by the ends of the tasks' ids
    "u_maze": "##### #rgg# ###g# #ggg# #####",
    "u_maze_eval": "##### #r..# ###.# #ggg# #####",
    "big_maze": "######## #rg##gg# #gg#ggg# ##ggg### #gg#ggg# #g#gg#g# #ggg#gg# ########",
    "big_maze_eval": "######## #r.##gg# #..#.gg# ##...### #..#...# #.#g.#g# #.gg#gg# ########",
    "hardest_maze": (
        "############ #rggg#ggggg# #g##g#g#g#g# #gggggg#ggg# #g####g###g# #gg#g#ggggg# ##g#g#g#g### #gg#ggg#ggg# "
        "############"
    ),
    "ball_u_maze": "##### #rgb# ###g# #ggg# #####",
    "ball_big_maze": "######## #r.##gg# #..#ggg# ##bgb### #gg#ggg# #g#gg#g# #ggg#gg# ########",
}


class MazeEnv(GoalEnv):
    """A task in a maze of square cells: that of row i, column j has its centre at x = cell_side · i, y = cell_side · j.

    Args:
      layout: a name in `LAYOUTS`, or rows of its characters separated by white space.
    """

    cell_side = 4.0  # metres
    marks = "rg"  # characters that the layout needs at least once
    near_walls = 3  # at most so many are near a place, those around a corner
    view = (90, -75)

    def __init__(self, backend: str, dense_reward: bool = False, layout: str = "u_maze"):
        rows = LAYOUTS.get(layout, layout).split()
        border = "".join([*rows[:1], *rows[-1:], *(row[0] + row[-1] for row in rows)])
        if len({len(row) for row in rows}) != 1 or not set("".join(rows)) <= set("#.rgb") or set(border) != {"#"}:
            names = ", ".join(LAYOUTS)
            raise UsageError(
                f"maze layout {layout!r}: one of {names}, or rows of equal length made of '#.rgb' with walls all around"
            )
        self._grid = np.array([list(row) for row in rows])
        for mark in self.marks:
            if not len(self.cells(mark)):
                raise UsageError(f"maze layout {layout!r}: needs at least one {mark!r}")
        super().__init__(backend, dense_reward)

    def cells(self, mark: str) -> np.ndarray:
        """Centres of the cells of this kind, (number, 2), metres."""
        return self.cell_side * np.argwhere(self._grid == mark).astype(np.float32)

    def draw_cell(self, key: jax.Array, mark: str) -> jax.Array:
        """The centre of a cell of this kind, each as likely as the others, (2,)."""
        return jax.random.choice(key, jnp.array(self.cells(mark)))

    def add_walls(self, spec: mujoco.MjSpec):
        """Fills each wall's cell with a box half as high as wide; what can touch walls must be in the model already."""
        others = Counter(geom.type for geom in spec.geoms if geom.contype or geom.conaffinity)
        # Of each two types of geoms brax and mjx look for contacts between the nearest pairs only.
        spec.add_numeric(name="max_geom_pairs", size=1, data=[self.near_walls * max(others.values())])
        for x, y in self.cells("#"):
            spec.worldbody.add_geom(
                type=BOX,
                pos=[x, y, self.cell_side / 4],
                size=[self.cell_side / 2, self.cell_side / 2, self.cell_side / 4],
                contype=1,
                conaffinity=1,
                rgba=[0.5, 0.55, 0.6, 1],
                material="",
            )
