"""What uniform random actions reach on every task, into `random.csv`: figures that are no merit of a method.

python -m benchmark.random_actions
"""

import csv

import jax
from jax.scipy.stats import norm

import envs
from benchmark.learning import HERE, MEASURES

EPISODES = 128


def random_policy(obs, noise):
    return 2 * norm.cdf(noise) - 1


def main():
    rows = [["task", *MEASURES]]
    for env_id in envs.ENV_IDS:
        env = envs.make(env_id)
        measures = jax.jit(envs.evaluate, static_argnums=(0, 1, 3, 4))(
            env, random_policy, jax.random.key(0), EPISODES, env.episode_length
        )
        rows.append([env_id, *(f"{measures[f'eval/{name}']:.4g}" for name in MEASURES)])
        print(*rows[-1], flush=True)
    with (HERE / "random.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)


if __name__ == "__main__":
    main()
