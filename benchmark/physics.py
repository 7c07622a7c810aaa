"""Do the tasks move as they should?

    python -m benchmark.physics peer    # as those of jaxgcrl 0.2.8, on the benchmark's pipelines, in double precision?
    python -m benchmark.physics mjx     # native MuJoCo and mjx: for how long do they agree?

Both sides have the same starts and the same random actions. Beside the peer, every number of the observation is
compared but reacher's tip velocity, which differs on purpose. For the same reason the cheetah is given the peer's mass.

Beside mjx there is one id of each model. In contacts small differences grow: of rounding, as mjx has single precision,
and of collision functions. So mjx gets as many solver iterations here as it needs, where the benchmark gives it few;
the last column has the benchmark's.
"""

import argparse
import os
import subprocess
import tempfile

import jax
import jax.numpy as jnp
import numpy as np

import envs
from benchmark.peer import ROOT, peer_side, rollout, set_up
from envs.base import load_robot
from envs.cheetah import Cheetah

PEERS = ("reacher", "cheetah", "pusher_easy", "ant", "ant_u_maze", "humanoid", "simple_u_maze")
MODELS = (
    "reacher", "cheetah", "pusher_easy", "pusher_reacher", "pusher2", "ant", "ant_u_maze", "ant_ball",
    "ant_ball_u_maze", "ant_push", "humanoid", "humanoid_u_maze", "simple_u_maze", "arm_reach", "arm_grasp",
    "arm_push_easy", "arm_binpick_easy", "arm_binpick_easy_eef",
)  # fmt: skip
STARTS = 4


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


def our_rollouts(env, steps):
    """Starts, actions, and the observations that follow."""
    keys = jax.random.split(jax.random.key(0), STARTS)
    actions = jax.random.uniform(jax.random.key(1), (STARTS, steps, env.action_size), minval=-1, maxval=1)

    def one(key, actions):
        state = env.reset(key)
        return state.pipeline_state.q, state.pipeline_state.qd, rollout(env, state, actions)

    q, qd, obs = jax.jit(jax.vmap(one))(keys, actions)
    return {"q": q, "qd": qd, "actions": actions, "obs": obs}


def beside_peer(env_ids, steps=50):
    jax.config.update("jax_enable_x64", True)  # in single precision, contacts make rounding visible
    set_up()
    backends = {env_id: envs.make(env_id).benchmark_backend for env_id in env_ids}
    results = {
        env_id: our_rollouts(PublishedCheetah(backend) if env_id == "cheetah" else envs.make(env_id, backend), steps)
        for env_id, backend in backends.items()
    }
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "rollouts.npz")
        np.savez(path, **{f"{env_id}/{name}": x for env_id, data in results.items() for name, x in data.items()})
        subprocess.run(peer_side("rollouts", path), cwd=ROOT, check=True)
        published = dict(np.load(path))
    print(f"largest difference in an observation, {STARTS} starts\n")
    print("| id | pipeline | after 1 step | 10 steps | 50 steps | largest value |\n|" + " --- |" * 6)
    for env_id, data in results.items():
        difference = jnp.abs(data["obs"] - published[env_id])
        if env_id == "reacher":
            difference = difference.at[..., 7:10].set(0.0)
        cells = " | ".join(f"{difference[:, :n].max():.1e}" for n in (1, 10, steps))
        print(f"| `{env_id}` | {backends[env_id]} | {cells} | {jnp.abs(data['obs']).max():.1f} |")


def positions(env, steps=20):
    """Joint positions, (starts, time, nq), under random actions."""

    def one(key):
        def step(state, key):
            state = env.step(state, jax.random.uniform(key, (env.action_size,), minval=-1, maxval=1))
            return state, state.pipeline_state.q

        return jax.lax.scan(step, env.reset(key), jax.random.split(key, steps))[1]

    return np.array(jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(0), STARTS)))


def beside_mjx(env_ids):
    print(f"| id | after 5 actions | 20 | starts of {STARTS} within 1e-3 throughout | benchmark's solver, after 20 |")
    print("|" + " --- |" * 5)
    for env_id in env_ids:
        native = positions(envs.make(env_id, "mujoco"))
        mjx = envs.make(env_id, "mjx")
        with_few = np.abs(native - positions(mjx)).max()
        mjx.sys = mjx.sys.tree_replace({"opt.iterations": 30, "opt.ls_iterations": 30})
        difference = np.abs(native - positions(mjx)).max(-1)
        within = (difference.max(-1) < 1e-3).sum()
        after_5 = difference[:, :5].max()
        print(f"| `{env_id}` | {after_5:.0e} | {difference.max():.0e} | {within} | {with_few:.0e} |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("beside", choices=("peer", "mjx"))
    parser.add_argument("--env-id", nargs="+", choices=envs.ENV_IDS, metavar="ID")
    given = parser.parse_args()
    if given.beside == "peer":
        beside_peer(given.env_id or PEERS)
    else:
        beside_mjx(given.env_id or MODELS)


if __name__ == "__main__":
    main()
