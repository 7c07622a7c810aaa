"""Mazes as layout strings: walls, and cells in which an agent, a goal or a ball can be."""

from collections import Counter

import jax
import jax.numpy as jnp
import mujoco
import numpy as np

from envs.base import BOX, UsageError, limit_pairs

# One string a row: `#` a wall, `r` where the agent starts, `g` where a goal can be, `b` where a ball can be, `.` empty.
LAYOUTS = {
    "u": "##### #rgg# ###g# #ggg# #####",
    "u_eval": "##### #r..# ###.# #ggg# #####",
    "big": "######## #rg##gg# #gg#ggg# ##ggg### #gg#ggg# #g#gg#g# #ggg#gg# ########",
    "big_eval": "######## #r.##gg# #..#.gg# ##...### #..#...# #.#g.#g# #.gg#gg# ########",
    "hardest": (
        "############ #rggg#ggggg# #g##g#g#g#g# #gggggg#ggg# #g####g###g# #gg#g#ggggg# ##g#g#g#g### #gg#ggg#ggg# "
        "############"
    ),
    "ball_u": "##### #rgb# ###g# #ggg# #####",
    "ball_big": "######## #r.##gg# #..#ggg# ##bgb### #gg#ggg# #g#gg#g# #ggg#gg# ########",
}


class Maze:
    """A maze of square cells: that of row i, column j has its centre at x = side · i, y = side · j.

    Args:
      layout: a name in `LAYOUTS`, or rows of its characters separated by white space.
      side: of a cell, metres.
      marks: characters that the task needs at least once.
    """

    def __init__(self, layout: str, side: float, marks: str = "rg"):
        rows = LAYOUTS.get(layout, layout).split()
        if len({len(row) for row in rows}) != 1 or not set("".join(rows)) <= set("#.rgb"):
            names = ", ".join(LAYOUTS)
            raise UsageError(f"maze layout {layout!r}: one of {names}, or rows of equal length made of '#.rgb'")
        self.side = side
        self._grid = np.array([list(row) for row in rows])
        for mark in marks:
            if not len(self.cells(mark)):
                raise UsageError(f"maze layout {layout!r}: needs at least one {mark!r}")

    def cells(self, mark: str) -> np.ndarray:
        """Centres of the cells of this kind, (number, 2), metres."""
        return self.side * np.argwhere(self._grid == mark).astype(np.float32)

    def draw(self, key: jax.Array, mark: str) -> jax.Array:
        """The centre of a cell of this kind, each as likely as the others, (2,)."""
        return jax.random.choice(key, jnp.array(self.cells(mark)))

    def add_walls(self, spec: mujoco.MjSpec):
        """Fills each wall's cell with a box half as high as wide; what can touch walls must be in the model already."""
        others = Counter(geom.type for geom in spec.geoms if geom.contype or geom.conaffinity)
        limit_pairs(spec, 3 * max(others.values()))  # at most three walls are near a place, those around a corner
        for x, y in self.cells("#"):
            spec.worldbody.add_geom(
                type=BOX,
                pos=[x, y, self.side / 4],
                size=[self.side / 2, self.side / 2, self.side / 4],
                contype=1,
                conaffinity=1,
                rgba=[0.5, 0.55, 0.6, 1],
                material="",
            )
