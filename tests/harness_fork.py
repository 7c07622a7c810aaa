"""Random search, written from the contract in `harness/__init__.py` alone: no network, no buffer, a dict as its runner.

It learns nothing, but tests of the harness run it in seconds.
"""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp

import envs
import harness


@dataclass(frozen=True)
class Args(harness.RunArgs):
    # task
    env_id: str = "reacher"  # task
    eval_env_id: str | None = None  # another to evaluate on
    episode_length: int | None = None  # steps of an episode
    num_eval_envs: int = 4  # episodes of an evaluation
    eval_noise: float = 1.0  # standard deviations
    total_timesteps: int = 140  # 12 epochs of 10 steps, after two iterations of warm-up
    num_evals: int = 12  # epochs at most

    # search
    seed: int = 7  # another default than that of all scripts
    step_size: float = 0.1  # how far it goes
    anneal_lr: bool = False  # let it fall
    distribution: Literal["normal", "cauchy"] = "normal"  # of a step
    sizes: tuple[int, ...] = (3, 2)  # of nothing
    breaks_at: int = -1  # epoch whose loss is not a number


class Schedule(NamedTuple):
    num_epochs: int
    iterations_per_epoch: int
    steps_per_iteration: int = 10
    updates_per_iteration: int = 2
    warmup_iterations: int = 2


@flax.struct.dataclass
class Search:
    weights: jax.Array
    key: jax.Array


def make_schedule(args):
    iterations = max(math.ceil(args.total_timesteps / 10) - 2, 1)
    per_epoch = math.ceil(iterations / args.num_evals)
    return Schedule(math.ceil(iterations / per_epoch), per_epoch)


def act(runner, obs, noise):
    return jnp.tanh(obs @ runner["search"].weights + noise)


def make_train(args, env=None, eval_env=None):
    env = env or envs.make(args.env_id)
    draw = {"normal": jax.random.normal, "cauchy": jax.random.cauchy}[args.distribution]

    def init(key):
        return {"epoch": jnp.int32(0), "search": Search(jnp.zeros((env.observation_size, env.action_size)), key)}

    def epoch(runner, _):
        key, step_key = jax.random.split(runner["search"].key)
        weights = runner["search"].weights
        weights += args.step_size * draw(step_key, weights.shape)
        number = runner["epoch"] + 1
        size = jnp.where(number == args.breaks_at, jnp.nan, jnp.linalg.norm(weights))
        metrics = {"eval/success_rate": 0.5, "eval/time_near_goal": 0.25, "eval/final_dist": size}
        metrics |= {"losses/size": size, "losses/epoch": number}
        return {"epoch": number, "search": Search(weights, key)}, jax.tree.map(jnp.float32, metrics)

    def train(runner, num_epochs):
        return jax.lax.scan(epoch, runner, length=num_epochs)

    return init, train


@harness.errors_in_one_line()
def main():
    args = harness.parse_args(Args)
    env = envs.make(args.env_id)
    eval_env = envs.make_eval(env, args.eval_env_id)
    init, train = make_train(args, env)
    harness.run(args, env, eval_env, make_schedule(args), init, train, act)


if __name__ == "__main__":
    main()
