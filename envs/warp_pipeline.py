"""MuJoCo Warp as a sixth pipeline: the physics of native MuJoCo, written for NVIDIA GPUs.

It needs `pip install "mujoco-mjx[warp]"`. On a CPU it runs too, slowly, after a minute or two of compiling at the first
use. On a GPU the same program may end in other bits each time: threads add up forces in any order.
"""

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
from brax import base
from mujoco import mjx
from mujoco.mjx.warp import mjwp_types, warp  # None where it is not installed: `envs.make` says so

# Room for each environment. Random actions came to 16 and 65 on the task with the most, arm_binpick_easy_eef. Contacts
# are shared by the batch, so that one environment may have more of them; pairs of geometries that come near count too.
CONTACTS, CONSTRAINTS = 32, 160


class WarpPipeline:
    """Steps a batch of environments with MuJoCo Warp.

    Pure, and with the same states as `MujocoPipeline`: `q` and `qd` are new after a step while `x` and `xd` belong to
    the start of its last substep. Between two control steps nothing else is kept: the solver starts cold. Where the
    simulation is unstable, or had no room for all constraints, `q` is NaN. Where the batch has no room for all
    contacts, Warp leaves some out and prints that.
    """

    def __init__(self, model: mujoco.MjModel, n_frames: int):
        if model.na:
            raise ValueError("actuators with a state of their own (dyntype) are not supported")
        warp.config.log_level = warp.LOG_WARNING  # without a line for each kernel that it compiles
        self._mj_model, self._n_frames = model, n_frames
        # A solver that stops after its iterations is no news; with hundreds of environments it would fill the screen.
        kinds = mjwp_types.OverflowType
        warned = int(kinds.ALL & ~(kinds.ITERATIONS | kinds.LS_ITERATIONS))
        self._model = mjx.put_model(model, impl="warp").tree_replace({"opt._impl.warn_overflow": warned})
        self._split = np.cumsum([model.nq, model.nv])

    def init(self, sys: base.System, q, qd, act=None, ctrl=None, debug=False) -> base.State:
        """The state at joint positions q (nq,) and velocities qd (nv,)."""
        return self._run(mjx.forward, 1, q, qd, jnp.zeros(self._mj_model.nu))

    def step(self, state: base.State, action: jax.Array) -> base.State:
        """The state after `n_frames` substeps under controls `action`, (nu,)."""
        return self._run(mjx.step, self._n_frames, state.q, state.qd, action)

    def _run(self, function, times, q, qd, ctrl) -> base.State:
        """The state after `function` was applied so often to each of a batch of any shape."""

        @jax.custom_batching.custom_vmap
        def run(inputs):
            batch = inputs.reshape(-1, inputs.shape[-1])
            # Contacts are those of all environments: hence `custom_vmap`, which tells the size of the whole batch.
            room = dict(naconmax=CONTACTS * len(batch), njmax=CONSTRAINTS)
            data = mjx.make_data(self._mj_model, impl="warp", **room)

            def one(x):
                q, qd, ctrl = jnp.split(x, self._split)
                start = data.replace(qpos=q, qvel=qd, ctrl=ctrl)
                return jax.lax.fori_loop(0, times, lambda _, data: function(self._model, data), start)

            end = jax.vmap(one)(batch)
            moved = end.xpos - end.subtree_com[:, self._mj_model.body_rootid]
            ang, vel = jnp.split(end.cvel, 2, axis=-1)  # of the body's tree, about its centre of mass
            vel += jnp.cross(ang, moved)
            wild = jnp.abs(jnp.concatenate([end.qpos, end.qvel], axis=-1)).max(-1) >= mujoco.mjMAXVAL
            full = end._impl.overflow & mjwp_types.OverflowType.NEFC > 0  # in any of the substeps
            q = jnp.where((wild | full)[:, None], jnp.nan, end.qpos)
            parts = q, end.qvel, *(x[:, 1:] for x in (end.xpos, end.xquat, vel, ang))  # without the world
            return tuple(x.reshape(*inputs.shape[:-1], *x.shape[1:]) for x in parts)

        @run.def_vmap
        def run_batch(axis_size, in_batched, inputs):
            return run(inputs), (True,) * 6

        q, qd, pos, rot, vel, ang = run(jnp.concatenate([q, qd, ctrl]))
        return base.State(q, qd, base.Transform(pos, rot), base.Motion(ang, vel), contact=None)
