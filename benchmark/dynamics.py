"""Do our tasks move as those of jaxgcrl 0.2.8 do? Same starts, same actions, 50 steps, on the benchmark's pipelines, in
double precision.

    python benchmark/dynamics.py --peer .venv-peer/bin/python

`peer.py` says how to set up the peer. Compares every number of the observation but reacher's tip velocity, which
differs on purpose; the cheetah is given the peer's mass, for the same reason.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

ENV_IDS = ("reacher", "cheetah", "pusher_easy", "ant", "ant_u_maze", "humanoid", "simple_u_maze")
STARTS, STEPS = 4, 50


def rollout(env, state, actions):
    """Observations (time, observation size) from `state` on."""
    widen = lambda x: x.astype(float) if jnp.issubdtype(x.dtype, jnp.floating) else x  # noqa: E731
    state = jax.tree.map(widen, state)

    def step(state, action):
        state = env.step(state, action)
        return state, state.obs

    return jax.lax.scan(step, state, actions)[1]


def peer(path):
    """Runs in the peer's environment: reads starts and actions, and adds its observations."""
    from jaxgcrl.utils.env import create_env

    results = {}
    inputs = np.load(path)
    for env_id in ENV_IDS:
        env = create_env(env_id)

        def one(q, qd, actions, env=env):
            state = env.reset(jax.random.PRNGKey(0))
            return rollout(env, state.replace(pipeline_state=env.pipeline_init(q, qd)), actions)

        q, qd, actions = (inputs[f"{env_id}/{name}"] for name in ("q", "qd", "actions"))
        results[env_id] = np.array(jax.jit(jax.vmap(one))(q, qd, actions))
    np.savez(path, **results)


def ours(env_id):
    """Starts, actions, and the observations that follow."""
    sys.path.insert(0, str(Path(__file__).parent.parent))
    import envs
    from envs.base import load_robot
    from envs.cheetah import Cheetah

    class PublishedCheetah(Cheetah):
        """The model's total mass of 14 includes the target there, which is 1 before all masses are scaled."""

        def build(self, backend):
            spec, n_frames = super().build(backend)
            robot = load_robot("half_cheetah")
            robot.compiler.settotalmass = -1
            mass = robot.compile().body_mass.sum()
            for geom in spec.geoms:
                geom.density *= mass / (mass + 1)
            return spec, n_frames

    backend = envs.make(env_id).benchmark_backend
    env = PublishedCheetah(backend) if env_id == "cheetah" else envs.make(env_id, backend)
    keys = jax.random.split(jax.random.key(0), STARTS)
    actions = jax.random.uniform(jax.random.key(1), (STARTS, STEPS, env.action_size), minval=-1, maxval=1)

    def one(key, actions):
        state = env.reset(key)
        return state.pipeline_state.q, state.pipeline_state.qd, rollout(env, state, actions)

    q, qd, obs = jax.jit(jax.vmap(one))(keys, actions)
    return {"q": q, "qd": qd, "actions": actions, "obs": obs}, backend


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", default=".venv-peer/bin/python", help="the Python that has jaxgcrl")
    parser.add_argument("--as-peer", help=argparse.SUPPRESS)
    args = parser.parse_args()
    jax.config.update("jax_enable_x64", True)  # in single precision, contacts make rounding visible
    if args.as_peer:
        return peer(args.as_peer)
    results = {env_id: ours(env_id) for env_id in ENV_IDS}
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "rollouts.npz")
        np.savez(path, **{f"{env_id}/{name}": x for env_id, (data, _) in results.items() for name, x in data.items()})
        command = [os.path.abspath(args.peer), os.path.abspath(__file__), "--as-peer", path]
        subprocess.run(command, check=True, cwd=folder, env=os.environ | {"WANDB_MODE": "disabled"})
        published = dict(np.load(path))
    print(f"largest difference in an observation, {STARTS} starts\n")
    print(
        "| id | pipeline | after 1 step | 10 steps | 50 steps | largest value |\n| --- | --- | --- | --- | --- | --- |"
    )
    for env_id, (data, backend) in results.items():
        difference = jnp.abs(data["obs"] - published[env_id])
        if env_id == "reacher":
            difference = difference.at[..., 7:10].set(0.0)
        columns = [difference[:, :n].max() for n in (1, 10, 50)]
        cells = " | ".join(f"{x:.1e}" for x in columns)
        print(f"| `{env_id}` | {backend} | {cells} | {jnp.abs(data['obs']).max():.1f} |", flush=True)


if __name__ == "__main__":
    main()
