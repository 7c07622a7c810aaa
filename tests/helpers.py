"""What tests of the algorithms share: small trainings, tasks without a model, and references in float64 numpy."""

import dataclasses
import importlib
import typing
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np

import envs

SCRIPTS = ("crl_jax", "sac_her_jax", "td3_her_jax", "ppo_jax")
SMALL = dict(
    backend="mujoco", num_envs=2, unroll_length=4, total_timesteps=24, num_evals=1, num_eval_envs=2, episode_length=4,
    env_steps_per_update=8, batch_size=4, buffer_size=8, learning_starts=4, width=4, depth=1, repr_dim=2,
    num_minibatches=2, update_epochs=1,
)  # fmt: skip
LEARNS = dict(  # to slide on the plane below, in seconds
    num_envs=16, unroll_length=10, total_timesteps=32_000, num_eval_envs=64, episode_length=None, batch_size=64,
    buffer_size=1000, learning_starts=60, width=64, depth=2, repr_dim=16, learning_rate=3e-3, update_epochs=4,
)  # fmt: skip


# ---- trainings -------------------------------------------------------------------------------------------------------


def load(script):
    return importlib.import_module(script)


def choices(script, flag):
    """Values of a flag that is a `Literal`."""
    return typing.get_args(typing.get_type_hints(load(script).Args)[flag])


def make_args(script, **flags):
    """Flags of a training that takes no time: SMALL and others, those of them that the script has."""
    names = {field.name for field in dataclasses.fields(load(script).Args)}
    return load(script).Args(**{name: value for name, value in (SMALL | flags).items() if name in names})


# ---- tasks without a model -------------------------------------------------------------------------------------------


class Line(envs.GoalEnv):
    """Walks from -4.5 … 2.5 to a goal at 0; beyond 3 the episode ends, and what follows is at 0."""

    state_dim, goal_indices, goal_reach_thresh, episode_length = 1, (0,), 1.0, 6
    dense_reward, sys = False, SimpleNamespace(act_size=lambda: 1, q_size=lambda: 1, qd_size=lambda: 0)

    def __init__(self):
        pass

    def start(self, key):
        return jax.random.randint(key, (1,), -5, 3) + 0.5, jnp.zeros(0)

    def pipeline_init(self, q, qd):
        return {"x": q, "ended": jnp.bool_(False)}

    def pipeline_step(self, physics, control):
        x = jnp.where(physics["x"] > 3, 0.0, physics["x"] + control)
        return {"x": x, "ended": (x > 3).all()}

    def get_state(self, physics, control):
        return physics["x"]

    def get_goal(self, physics):
        return jnp.zeros(1)

    def terminated(self, physics):
        return physics["ended"]


class Plane(Line):
    """Slides over a square to a goal in it."""

    state_dim, goal_indices, goal_reach_thresh, episode_length = 2, (0, 1), 0.2, 30
    sys = SimpleNamespace(act_size=lambda: 2, q_size=lambda: 4, qd_size=lambda: 0)

    def __init__(self, dense_reward=False):
        self.dense_reward = dense_reward

    def start(self, key):
        return jax.random.uniform(key, (4,), minval=-1, maxval=1), jnp.zeros(0)

    def pipeline_init(self, q, qd):
        return {"x": q[:2], "goal": q[2:], "ended": jnp.bool_(False)}

    def pipeline_step(self, physics, control):
        return physics | {"x": jnp.clip(physics["x"] + 0.1 * control, -1, 1)}

    def get_goal(self, physics):
        return physics["goal"]


# ---- float64 numpy ---------------------------------------------------------------------------------------------------


def draw(*shape, seed=0, scale=1.0):
    return (scale * np.random.default_rng(seed).standard_normal(shape)).astype(np.float32)


def numpy_dense(params, x):
    return x @ np.float64(params["kernel"]) + np.float64(params["bias"])


def numpy_mlp(params, *inputs):
    """Output of an `MLP` of relus that is neither residual nor normalised."""
    layers = params["params"]
    x = np.concatenate(inputs, axis=-1).astype(np.float64)
    for i in range(len(layers) - 1):
        x = np.maximum(numpy_dense(layers[f"Layer_{i}"]["Dense_0"], x), 0)
    return numpy_dense(layers["Dense_0"], x)


def numpy_policy(actor_out):
    """Mean and standard deviation of the Gaussian whose tanh is the action."""
    mean, log_std = np.split(np.float64(actor_out), 2, axis=-1)
    return mean, np.exp(-5 + 3.5 * (np.tanh(log_std) + 1))


def numpy_log_prob(mean, std, u):
    """Logarithm of the density of the action tanh(u), (...,), u (..., action_dim)."""
    u = np.float64(u)
    log_one_minus_tanh_sq = -2 * (np.logaddexp(u, -u) - np.log(2))  # 1 - tanh² = 1 / cosh²
    log_normal = -0.5 * ((u - mean) / std) ** 2 - np.log(std) - 0.5 * np.log(2 * np.pi)
    return (log_normal - log_one_minus_tanh_sq).sum(-1)
