"""Native MuJoCo physics as a fifth pipeline beside brax's generalized, positional, spring and mjx.

Without an accelerator XLA runs a batched simulator as thousands of tiny kernels. The MuJoCo C library does not: here
it steps the whole batch on all cores, in one host call for each control step, under the same jitted scan as the rest.
"""

import hashlib
import os
import threading

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
from brax import base
from mujoco import rollout

from envs.host_call import host_call

_SENSORS = (
    mujoco.mjtSensor.mjSENS_FRAMEPOS,
    mujoco.mjtSensor.mjSENS_FRAMEQUAT,
    mujoco.mjtSensor.mjSENS_FRAMELINVEL,
    mujoco.mjtSensor.mjSENS_FRAMEANGVEL,
)


def add_body_sensors(spec: mujoco.MjSpec) -> mujoco.MjModel:
    """Compiles the model with four sensors more a body: position, rotation, linear and angular velocity of its frame.

    `mujoco.rollout` returns joint states and sensor values only; this is how it tells where the bodies are.
    """
    for i, body in enumerate(spec.bodies):
        body.name = body.name or f"body{i}"
    model = spec.compile()  # only now is it known which bodies are left after fusing
    for sensor in _SENSORS:
        for body in range(1, model.nbody):
            spec.add_sensor(type=sensor, objtype=mujoco.mjtObj.mjOBJ_XBODY, objname=model.body(body).name)
    return spec.compile()


class MujocoPipeline:
    """Steps a batch of environments with the MuJoCo C library.

    Pure: a state goes in, a state comes out, and the constraint solver starts cold each time. As in `mj_step` and in
    brax's mjx pipeline, `q` and `qd` are new after a step while `x` and `xd` belong to the start of its last substep.

    Where the simulation is unstable, or the state or control it starts from is not finite, all of the result is NaN.
    """

    def __init__(self, model: mujoco.MjModel, n_frames: int):
        if model.na:
            raise ValueError("actuators with a state of their own (dyntype) are not supported")
        # Without this MuJoCo answers an unstable state with a silent reset to the model's initial one.
        model.opt.disableflags |= mujoco.mjtDisableBit.mjDSBL_AUTORESET
        threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        self._model = model
        self._n_frames = n_frames
        self._data = [mujoco.MjData(model) for _ in range(threads)]
        self._pool = rollout.Rollout(nthread=threads)
        self._scratches = {}
        self._lock = threading.Lock()  # data, pool and scratch serve one call at a time
        contents = np.empty(mujoco.mj_sizeModel(model), np.uint8)
        mujoco.mj_saveModel(model, None, contents)
        self._digest = hashlib.sha256(contents).hexdigest()[:16]
        num_links = model.nbody - 1
        sizes = [model.nq, model.nv, 3 * num_links, 4 * num_links, 3 * num_links, 3 * num_links]
        self._split, self._size = np.cumsum(sizes[:-1]), sum(sizes)

    def init(self, sys: base.System, q, qd, act=None, ctrl=None, debug=False) -> base.State:
        """The state at joint positions q (nq,) and velocities qd (nv,)."""
        stepped = self._rollout(q, qd, jnp.zeros(self._model.nu), 1)
        # Sensors speak of the state before the substep: exactly what is wanted here.
        return stepped.replace(q=q, qd=qd)

    def step(self, state: base.State, action: jax.Array) -> base.State:
        """The state after `n_frames` substeps under controls `action`, (nu,)."""
        return self._rollout(state.q, state.qd, action, self._n_frames)

    def _rollout(self, q, qd, ctrl, n_frames) -> base.State:
        out = host_call(
            f"mujoco_{self._digest}_{n_frames}",
            lambda inputs: self._host_rollout(inputs, n_frames),
            (self._size,),
            jnp.concatenate([q, qd, ctrl]),
        )
        q, qd, pos, rot, vel, ang = jnp.split(out, self._split)
        return base.State(
            q=q,
            qd=qd,
            x=base.Transform(pos=pos.reshape(-1, 3), rot=rot.reshape(-1, 4)),
            xd=base.Motion(vel=vel.reshape(-1, 3), ang=ang.reshape(-1, 3)),
            contact=None,
        )

    def _host_rollout(self, inputs, n_frames: int) -> np.ndarray:
        model = self._model
        inputs = np.asarray(inputs, np.float64)
        batch_shape = inputs.shape[:-1]
        inputs = inputs.reshape(-1, inputs.shape[-1])
        num_coords = model.nq + model.nv
        # A full physics state is [time, qpos, qvel].
        initial_state = np.zeros((len(inputs), 1 + num_coords))
        initial_state[:, 1:] = inputs[:, :num_coords]
        control = np.repeat(inputs[:, None, num_coords:], n_frames, axis=1)
        with self._lock:
            models, states, sensors = self._scratch(len(inputs), n_frames)
            self._pool.rollout(
                models,
                self._data,
                initial_state,
                control,
                state=states,
                sensordata=sensors,
                nstep=n_frames,
                skip_checks=True,  # the shapes are right by construction
                chunk_size=max(1, len(inputs) // (4 * len(self._data))),  # MuJoCo's own choice is slower
            )
            final = states[:, -1]
            poses = sensors[:, -1, num_coords - self._size :]  # a task's own sensors lie before them
            result = np.concatenate([final[:, 1:], poses], axis=1, dtype=np.float32, casting="same_kind")
            # A rollout that MuJoCo warned about stands still from there on: its clock gives it away.
            stopped = final[:, 0] < (n_frames - 0.5) * model.opt.timestep
        sound = np.abs(inputs).max(axis=1) < mujoco.mjMAXVAL
        sound &= (np.abs(result).max(axis=1) < mujoco.mjMAXVAL) & ~stopped
        result[~sound] = np.nan
        return result.reshape(*batch_shape, -1)

    def _scratch(self, batch_size: int, n_frames: int):
        """Room for a rollout's results, kept because to allocate it costs a tenth of the time to fill it."""
        if (batch_size, n_frames) not in self._scratches:
            states = np.empty((batch_size, n_frames, 1 + self._model.nq + self._model.nv))
            sensors = np.empty((batch_size, n_frames, self._model.nsensordata))
            self._scratches[batch_size, n_frames] = [self._model] * batch_size, states, sensors
        return self._scratches[batch_size, n_frames]
